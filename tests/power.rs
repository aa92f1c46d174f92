//! Power loss: what was answered is there, and what may be damaged is not served.
//!
//! ext4 only, unless `OVERSTREAM_FULL=1` asks for xfs and btrfs and for more repetitions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "crash/world.rs"]
#[expect(dead_code, reason = "shared with another test, which uses the rest")]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use overstream_testkit::{FsKind, LoopFs, Scratch, limit, wait_for};
use tonic::Code;
use world::{Client, Labels, Op, World};

const SYNC_AT_COMMIT: &str = "layer_sync = \"commit\"\n";
const SYNC_LATER: &str = "layer_sync = \"background\"\n";

/// A daemon whose root, and store beside it, lie on a disk that can lose power.
struct Machine {
    world: World,
    fs: LoopFs,
}

impl Machine {
    fn new(kind: FsKind, configuration: &str) -> Self {
        let scratch = Arc::new(Scratch::new());
        let fs = LoopFs::new(&scratch, "disk", kind, 96);
        let mut world = World::unstarted(&scratch, "over", &fs.join("over"), &fs.join("fast"));
        world.configure(configuration);
        world.daemon.start();
        Self { world, fs }
    }

    /// Loses power; the daemon is not started yet.
    fn cut(&mut self) {
        // Killing it writes nothing to the disk.
        self.world.daemon.kill();
        self.fs.power_loss();
        // What a test wrote through the page cache may be gone, and is not the daemon's to keep.
        self.world.written.clear();
    }

    /// Has the database say that what is not synced was committed before the last boot.
    fn boot(&self) {
        self.sql(
            "UPDATE snapshots SET unsynced_boot = 'another boot' WHERE unsynced_boot IS NOT NULL",
        );
    }

    fn sql(&self, statement: &str) {
        let database = rusqlite::Connection::open(self.world.root.join("metadata.db")).unwrap();
        database.execute_batch(statement).unwrap();
    }

    fn unsynced(&self) -> u64 {
        let database = rusqlite::Connection::open(self.world.root.join("metadata.db")).unwrap();
        let query = "SELECT count(*) FROM snapshots WHERE unsynced_boot IS NOT NULL";
        database.query_row(query, [], |row| row.get(0)).unwrap()
    }

    fn directory(&self, key: &str) -> PathBuf {
        let upper = &self.world.client.state().places[key].upper;
        Path::new(upper).parent().unwrap().to_owned()
    }
}

/// Runs a test on one kind of file system.
fn on(kind: FsKind, body: fn(FsKind)) {
    let full = std::env::var_os("OVERSTREAM_FULL").is_some();
    if kind != FsKind::Ext4 && !full {
        eprintln!("skipped: set OVERSTREAM_FULL=1");
        return;
    }
    limit(Duration::from_secs(if full { 600 } else { 120 }), move || {
        if kind.available() {
            body(kind);
        }
    });
}

fn repetitions() -> u64 {
    if std::env::var_os("OVERSTREAM_FULL").is_some() { 20 } else { 3 }
}

/// Makes a layer of some size and returns its name, and the file to compare.
fn big_layer(world: &mut World, kind: &str, parent: &str) -> (String, PathBuf, Vec<u8>) {
    let key = world.prepared(kind, parent);
    let upper = PathBuf::from(&world.client.state().places[&key].upper);
    let content: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).take(3 << 20).collect();
    fs::write(upper.join("big"), &content).unwrap();
    let name = format!("{key}-layer");
    world.client.ok(&Op::commit(&key, &name));
    (name, upper.join("big"), content)
}

/// Cuts the power after each call of a container's life.
fn each_answered_call(kind: FsKind) {
    let mut machine = Machine::new(kind, SYNC_AT_COMMIT);
    let labels: Labels = [("colour".to_owned(), "green".to_owned())].into();
    let key = |n: u64, kind: &str| format!("default/{n}/{kind}-{n}");
    let calls = [
        Op::prepare(&key(1, "extract"), ""),
        Op::commit(&key(1, "extract"), "default/2/layer"),
        Op::prepare(&key(3, "fast"), "default/2/layer"),
        Op::Update { key: key(3, "fast"), labels },
        Op::commit(&key(3, "fast"), "default/4/layer"),
        Op::View { key: key(5, "view"), parent: "default/4/layer".to_owned() },
        Op::prepare(&key(6, "keep"), "default/4/layer"),
        Op::remove(&key(5, "view")),
        Op::remove(&key(6, "keep")),
        Op::prepare(&key(7, "keep"), "default/4/layer"),
        Op::Cleanup,
        Op::remove(&key(7, "keep")),
        Op::remove("default/4/layer"),
    ];
    for op in calls {
        machine.world.client.ok(&op);
        let before = machine.world.client.state();
        machine.cut();
        machine.world.daemon.start();
        assert_eq!(machine.world.check(), before, "after {op:?}");
    }
    machine.world.daemon.kill();
}

/// Cuts the power while four clients call; returns when all have noticed.
fn under_load(kind: FsKind) {
    let mut machine = Machine::new(kind, SYNC_AT_COMMIT);
    let layer = machine.world.layer("extract", "");
    let mut answered = BTreeMap::new();
    for round in 0..repetitions() {
        let (client, layer) = (&machine.world.client, &layer);
        let cut = &AtomicBool::new(false);
        let results = thread::scope(|scope| {
            let work = |number| scope.spawn(move || load(client, round, number, layer, cut));
            let threads: Vec<_> = (0..4).map(work).collect();
            // The instant is the point of this test.
            thread::sleep(Duration::from_millis(100 + 70 * (round % 5)));
            cut.store(true, Ordering::SeqCst);
            if kind == FsKind::Btrfs {
                machine.world.daemon.kill();
            } else {
                machine.fs.shutdown();
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        machine.world.daemon.kill();
        if kind == FsKind::Btrfs {
            machine.fs.power_loss()
        } else {
            machine.fs.remount()
        }
        machine.world.written.clear();
        machine.world.daemon.start();
        let state = machine.world.check();
        results.into_iter().for_each(|result| answered.extend(result));
        assert!(!answered.is_empty());
        for (key, there) in &answered {
            if let Some(there) = there {
                assert_eq!(state.infos.contains_key(key), *there, "{key}, round {round}");
            }
        }
        eprintln!("round {round}: {} keys", answered.len());
    }
    machine.world.daemon.kill();
}

/// Calls until an error; tells which keys must be there, must not, or may.
///
/// An answer that comes when the power may be gone
/// tells nothing: the shutdown takes a while, and a sync that runs meanwhile may report success.
fn load(
    client: &Client,
    round: u64,
    number: u64,
    layer: &str,
    cut: &AtomicBool,
) -> BTreeMap<String, Option<bool>> {
    let answered = |op: &Op| client.call(op).is_ok() && !cut.load(Ordering::SeqCst);
    let mut known = BTreeMap::new();
    for n in 0.. {
        let kind = if n % 2 == 0 { "plain" } else { "fast" };
        let key = format!("default/{n}/{kind}-{round}-{number}-{n}");
        let name = format!("{key}-layer");
        known.insert(key.clone(), None);
        if !answered(&Op::prepare(&key, layer)) {
            break;
        }
        known.insert(key.clone(), Some(true));
        let next = match n % 4 {
            0 => Op::remove(&key),
            1 => Op::commit(&key, &name),
            _ => continue,
        };
        known.extend([(key.clone(), None), (name.clone(), None)]);
        if !answered(&next) {
            break;
        }
        known.extend([(key, Some(false)), (name, Some(n % 4 == 1))]);
    }
    known
}

/// An upper whose directory never reached the disk is made again; a layer committed just before is
/// refused, and everything on older layers goes on.
fn lost_directories(kind: FsKind) {
    let mut machine = Machine::new(kind, SYNC_LATER);
    let key = machine.world.prepared("extract", "");
    chown(machine.directory(&key).join("fs"), Some(1234), Some(5678)).unwrap();
    machine.world.client.ok(&Op::commit(&key, "default/90/old"));
    assert!(machine.world.daemon.stop().success());
    machine.world.daemon.start();
    let uppers = ["plain", "fast"].map(|kind| machine.world.prepared(kind, "default/90/old"));
    let (new, ..) = big_layer(&mut machine.world, "extract", "default/90/old");
    let before = machine.world.client.state();
    let directories = uppers.clone().map(|key| machine.directory(&key));
    machine.cut();
    machine.boot();
    for directory in &directories {
        // Some file systems had them on disk already.
        fs::remove_dir_all(directory).ok();
    }
    machine.world.daemon.start();
    assert_eq!(machine.world.client.state().infos, before.infos);
    for (key, directory) in uppers.iter().zip(&directories) {
        machine.world.client.ok(&Op::Mounts { key: key.clone() });
        let found = |name: &str| fs::metadata(directory.join(name)).unwrap();
        assert_eq!((found("fs").uid(), found("fs").gid()), (1234, 5678), "{key}");
        let modes = ["", "fs", "work"].map(|name| found(name).permissions().mode() & 0o7777);
        assert_eq!(modes, [0o700, 0o755, 0o711], "{key}");
    }
    for op in [
        Op::prepare("default/91/plain-91", &new),
        Op::View { key: "default/92/view".to_owned(), parent: new.clone() },
    ] {
        let error = machine.world.client.call(&op).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
        assert!(error.message().contains("pull it again"), "{error:?}");
    }
    // The way out works.
    machine.world.client.ok(&Op::remove(&new));
    machine.world.client.ok(&Op::prepare("default/93/plain-93", "default/90/old"));
    machine.world.check();
    machine.world.daemon.kill();
}

/// Layers that are said to be synced are whole after a power loss, however they were synced.
fn synced_layers(kind: FsKind) {
    let mut machine = Machine::new(kind, SYNC_AT_COMMIT);
    let mut files = Vec::new();
    let mut parent = String::new();
    for (how, configuration) in
        [("commit", SYNC_AT_COMMIT), ("background", SYNC_LATER), ("stop", SYNC_LATER)]
    {
        machine.world.configure(configuration);
        machine.world.kill_and_start();
        for store in ["extract", "fast"] {
            let (name, file, content) = big_layer(&mut machine.world, store, &parent);
            files.push((how, file, content));
            parent = name;
        }
        match how {
            "commit" => assert_eq!(machine.unsynced(), 0),
            "background" => wait_for("the layers to be synced", Duration::from_secs(30), || {
                machine.unsynced() == 0
            }),
            _ => {
                assert_eq!(machine.unsynced(), 2);
                assert!(machine.world.daemon.stop().success());
            }
        }
        machine.cut();
        assert_eq!(machine.unsynced(), 0, "{how}");
        machine.boot();
        machine.world.daemon.start();
        for (how, file, content) in &files {
            assert!(fs::read(file).unwrap() == *content, "{how}: {} is damaged", file.display());
        }
        machine.world.check();
        let key = machine.world.fresh();
        machine.world.client.ok(&Op::prepare(&format!("default/{key}/plain-{key}"), &parent));
    }
    machine.world.daemon.kill();
}

/// A store's disk goes away under a running daemon and comes back without what was not synced.
fn store_alone(kind: FsKind) {
    let scratch = Arc::new(Scratch::new());
    let disk = LoopFs::new(&scratch, "disk", kind, 96);
    let mut world = World::unstarted(&scratch, "over", &scratch.join("over"), disk.path());
    world.configure(SYNC_LATER);
    world.daemon.start();
    let old = world.layer("fast", "");
    world.daemon.restart();
    let upper = world.prepared("fast", &old);
    let (new, ..) = big_layer(&mut world, "fast", &old);
    let (other, ..) = big_layer(&mut world, "extract", "");
    disk.shutdown();
    let error = world.client.call(&Op::prepare("default/80/fast-80", &other)).unwrap_err();
    assert!(matches!(error.code(), Code::Internal | Code::Unavailable), "{error:?}");
    world.client.ok(&Op::prepare("default/81/plain-81", &other));
    wait_for("the daemon to notice", Duration::from_secs(40), || {
        world.daemon.log().contains("are refused from now on")
    });
    disk.remount();
    world.written.clear();
    let error = world.client.call(&Op::prepare("default/82/plain-82", &new)).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    world.client.ok(&Op::prepare("default/83/plain-83", &old));
    world.client.ok(&Op::prepare("default/84/plain-84", &other));
    world.daemon.restart();
    world.client.ok(&Op::Mounts { key: upper });
    world.client.call(&Op::prepare("default/85/plain-85", &new)).unwrap_err();
    world.client.ok(&Op::remove(&new));
    world.check();
    world.daemon.kill();
}

/// SEMANTICS D1
#[test]
fn every_answered_call_survives_ext4() {
    on(FsKind::Ext4, each_answered_call);
}

#[test]
fn every_answered_call_survives_xfs() {
    on(FsKind::Xfs, each_answered_call);
}

#[test]
fn every_answered_call_survives_btrfs() {
    on(FsKind::Btrfs, each_answered_call);
}

#[test]
fn every_answered_call_under_load_survives_ext4() {
    on(FsKind::Ext4, under_load);
}

#[test]
fn every_answered_call_under_load_survives_xfs() {
    on(FsKind::Xfs, under_load);
}

#[test]
fn every_answered_call_under_load_survives_btrfs() {
    on(FsKind::Btrfs, under_load);
}

/// SEMANTICS D3
#[test]
fn lost_uppers_are_made_again_and_lost_layers_refused_ext4() {
    on(FsKind::Ext4, lost_directories);
}

#[test]
fn lost_uppers_are_made_again_and_lost_layers_refused_xfs() {
    on(FsKind::Xfs, lost_directories);
}

#[test]
fn lost_uppers_are_made_again_and_lost_layers_refused_btrfs() {
    on(FsKind::Btrfs, lost_directories);
}

#[test]
fn synced_layers_are_whole_ext4() {
    on(FsKind::Ext4, synced_layers);
}

#[test]
fn synced_layers_are_whole_xfs() {
    on(FsKind::Xfs, synced_layers);
}

#[test]
fn synced_layers_are_whole_btrfs() {
    on(FsKind::Btrfs, synced_layers);
}

#[test]
fn a_store_that_loses_power_alone_is_noticed_ext4() {
    on(FsKind::Ext4, store_alone);
}

#[test]
fn a_store_that_loses_power_alone_is_noticed_xfs() {
    on(FsKind::Xfs, store_alone);
}
