//! kill -9 at every step of the first start, and of later ones that find something to mend.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use overstream_testkit::{Scratch, limit, require_root, run, wait_for};
use tonic::Code;

use super::steps::{DEATH, reached};
use super::world::{Op, World, names};

/// Starts under `wanted` until it dies there, then starts without.
fn die_at(world: &mut World, wanted: &str) {
    world.arm(Some(wanted));
    world.daemon.launch();
    let status = world.daemon.wait_exit(DEATH);
    assert_eq!(status.signal(), Some(9), "{wanted}: {}", world.daemon.describe());
    world.arm(None);
    world.daemon.start();
}

/// Starts it and returns the points it passes until it serves and has cleaned up.
fn trace(world: &mut World) -> BTreeMap<String, u64> {
    let mark = world.daemon.log().len();
    world.daemon.start();
    wait_for("the clean-up at start", DEATH, || {
        reached(world, mark).contains_key("cleanup: deleted")
    });
    reached(world, mark)
}

fn each(points: &BTreeMap<String, u64>) -> impl Iterator<Item = String> + '_ {
    points.iter().flat_map(|(point, times)| (1..=*times).map(move |nth| format!("{point}#{nth}")))
}

fn unstarted(scratch: &Arc<Scratch>, name: &str) -> World {
    let (root, fast) = (scratch.join(name), scratch.join(format!("{name}-fast")));
    World::unstarted(scratch, name, &root, &fast)
}

/// Kills first starts on empty roots.
fn first_starts(scratch: &Arc<Scratch>) -> BTreeSet<String> {
    let points = trace(&mut unstarted(scratch, "first"));
    for (number, wanted) in each(&points).enumerate() {
        eprintln!("first start: {wanted}");
        let mut world = unstarted(scratch, &format!("first-{number}"));
        die_at(&mut world, &wanted);
        assert!(world.check().places.is_empty());
        let layer = world.layer("fast", "");
        world.prepared("plain", &layer);
        world.kill_and_start();
        assert_eq!(world.check().places.len(), 2);
        world.daemon.kill();
    }
    points.into_keys().collect()
}

/// What a crash may have left: a directory in each store, a link, a probe, half a marker.
fn leave_strays(world: &mut World) {
    let last = 1000 * world.fresh();
    for (base, id) in [(&world.root, last + 3), (&world.fast, last + 4)] {
        fs::create_dir_all(base.join(format!("snapshots/{id}/fs"))).unwrap();
        fs::create_dir_all(base.join(format!("snapshots/{id}/work/some"))).unwrap();
        fs::write(base.join(format!("snapshots/{id}/work/some/file")), "stray").unwrap();
    }
    symlink("/nowhere", world.root.join(format!("snapshots/{}", last + 5))).unwrap();
}

/// Moves the second store to another path, so that its links have to be made anew.
fn move_store(world: &mut World) {
    let name = world.fast.file_name().unwrap().to_string_lossy().into_owned();
    let to = match name.strip_suffix("-moved") {
        Some(former) => world.fast.with_file_name(former),
        None => world.fast.with_file_name(format!("{name}-moved")),
    };
    fs::rename(&world.fast, &to).unwrap();
    world.fast = to;
    world.configure(super::world::DEFAULTS);
}

/// Kills later starts, on a root with snapshots and strays.
fn later_starts(scratch: &Arc<Scratch>) -> BTreeSet<String> {
    let mut world = World::new(scratch, "later");
    let layer = world.layer("extract", "");
    let layer = world.layer("fast", &layer);
    world.prepared("plain", &layer);
    world.prepared("vol", &layer);
    let before = world.check();
    let prepare = |world: &mut World| {
        leave_strays(world);
        world.daemon.kill();
        move_store(world);
    };
    prepare(&mut world);
    let points = trace(&mut world);
    for wanted in each(&points) {
        eprintln!("later start: {wanted}");
        prepare(&mut world);
        die_at(&mut world, &wanted);
        let after = world.check();
        assert_eq!(after.infos, before.infos);
        let largest = after.ids().last().copied();
        let key = world.prepared("plain", &layer);
        assert!(Some(world.client.state().places[&key].id) > largest);
        world.client.ok(&Op::remove(&key));
    }
    world.daemon.kill();
    points.into_keys().collect()
}

/// Kills starts of one kind and returns the points that were reached.
pub(crate) fn run_all(scratch: &Arc<Scratch>, part: usize) -> BTreeSet<String> {
    if part == 0 { first_starts(scratch) } else { later_starts(scratch) }
}

fn with_world(body: fn(World)) {
    limit(Duration::from_secs(60), move || {
        if !require_root() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        body(unstarted(&scratch, "over"));
    });
}

#[test]
fn an_empty_database_without_snapshots_is_a_first_start() {
    with_world(|mut world| {
        fs::create_dir_all(world.root.join("snapshots")).unwrap();
        fs::write(world.root.join("metadata.db"), "").unwrap();
        world.daemon.start();
        assert!(world.check().places.is_empty());
    });
}

/// A power failure takes only what was never seen on disk; the rest somebody deleted.
#[test]
fn an_upper_deleted_by_hand_is_not_made_again() {
    with_world(|mut world| {
        world.daemon.start();
        let keys = ["plain", "fast", "plain"].map(|kind| world.prepared(kind, ""));
        world.daemon.restart();
        assert!(world.daemon.stop().success());
        let state = |world: &World| world.client.state().places.clone();
        world.daemon.start();
        let [plain, fast, workless] =
            keys.map(|key| (PathBuf::from(&state(&world)[&key].upper), key));
        world.daemon.kill();
        for (upper, _) in [&plain, &fast] {
            fs::remove_dir_all(upper.parent().unwrap()).unwrap();
        }
        fs::remove_dir(workless.0.with_file_name("work")).unwrap();
        world.daemon.start();
        for (upper, key) in [plain, fast] {
            let error = world.client.call(&Op::Mounts { key: key.clone() }).unwrap_err();
            assert_eq!(error.code(), Code::Unavailable, "{error}");
            assert!(error.message().contains("is not in"), "{error}");
            assert!(!upper.exists(), "{} was made again", upper.display());
            assert!(world.daemon.log().contains("the upper of a snapshot is missing"));
            world.client.ok(&Op::remove(&key));
        }
        world.client.ok(&Op::Mounts { key: workless.1 });
        world.check();
    });
}

/// A volume may be away for a moment; its upper is garbage for as long as its mount point exists.
#[test]
fn an_upper_on_a_volume_that_is_away_is_deleted_later() {
    with_world(|mut world| {
        world.daemon.start();
        let volume = world.volume();
        let bind = |what: &str| match what {
            "umount" => run(Command::new("umount").arg(&volume)).ok(),
            _ => run(Command::new("mount").arg("--bind").arg(&volume).arg(&volume)).ok(),
        };
        let garbage = |world: &World| {
            let database = rusqlite::Connection::open(world.root.join("metadata.db")).unwrap();
            let query = "SELECT count(*) FROM garbage";
            database.query_row(query, [], |row| row.get::<_, u64>(0)).unwrap()
        };
        let homes = || names(&volume.join("overstream"));
        let layer = world.layer("extract", "");
        let key = world.prepared("vol", &layer);
        world.client.ok(&Op::remove(&key));
        bind("umount");
        world.client.ok(&Op::Cleanup);
        assert_eq!((garbage(&world), homes().len()), (1, 1));
        bind("mount");
        world.client.ok(&Op::Cleanup);
        assert_eq!((garbage(&world), homes().len()), (0, 0));

        let key = world.prepared("vol", &layer);
        world.client.ok(&Op::remove(&key));
        bind("umount");
        fs::rename(&volume, volume.with_file_name("gone")).unwrap();
        world.client.ok(&Op::Cleanup);
        assert_eq!(garbage(&world), 0);
    });
}

#[test]
fn a_write_ahead_log_left_by_a_kill_is_read() {
    with_world(|mut world| {
        world.daemon.start();
        let key = world.prepared("plain", "");
        world.daemon.kill();
        assert!(fs::metadata(world.root.join("metadata.db-wal")).unwrap().len() > 0);
        // Its index is made anew.
        fs::remove_file(world.root.join("metadata.db-shm")).unwrap();
        world.daemon.start();
        assert!(world.check().places.contains_key(&key));
        assert!(world.daemon.stop().success());
        assert!(!names(&world.root).contains("metadata.db-wal"));
    });
}

#[test]
fn a_write_ahead_log_without_its_database_is_nobodys() {
    with_world(|mut world| {
        fs::create_dir_all(&world.root).unwrap();
        fs::write(world.root.join("metadata.db-wal"), [7; 4096]).unwrap();
        world.daemon.start();
        world.prepared("plain", "");
        world.kill_and_start();
        assert_eq!(world.check().places.len(), 1);
    });
}

#[test]
fn half_written_markers_are_written_anew() {
    with_world(|mut world| {
        fs::write(world.fast.join(".overstream-store.new"), "{\"sto").unwrap();
        world.daemon.start();
        let layer = world.layer("fast", "");
        let home = world.volume().join("overstream/vol-9");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("overstream.json.new"), "{").unwrap();
        world.prepared_as("default/9/vol-9", &layer);
        assert_eq!(world.check().places.len(), 2);
    });
}

/// SQLite itself may be killed before it uses its write-ahead log.
#[test]
fn a_journal_left_by_a_kill_is_undone() {
    with_world(|mut world| {
        world.daemon.start();
        let key = world.prepared("plain", "");
        assert!(world.daemon.stop().success());
        let path = world.root.join("metadata.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let half =
            "PRAGMA journal_mode = DELETE; PRAGMA cache_size = 1; BEGIN; CREATE TABLE junk (x);
             INSERT INTO junk SELECT randomblob(9000) FROM json_each('[1,2,3,4,5,6,7,8]');
             DELETE FROM snapshots;";
        connection.execute_batch(half).unwrap();
        let torn: Vec<_> = ["metadata.db", "metadata.db-journal"]
            .into_iter()
            .map(|name| (name, fs::read(world.root.join(name)).unwrap()))
            .collect();
        drop(connection);
        for (name, content) in torn {
            fs::write(world.root.join(name), content).unwrap();
        }
        world.daemon.start();
        assert!(world.check().places.contains_key(&key));
    });
}
