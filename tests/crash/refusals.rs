//! Databases that are refused, by the real program: the way out is named and nothing is changed.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overstream_testkit::{Daemon, Scratch, limit, require_root};

use super::world::World;

/// Runs a body with a daemon.
fn with_world(body: impl FnOnce(&Arc<Scratch>, &mut World) + Send + 'static) {
    limit(Duration::from_secs(60), move || {
        if require_root() {
            let scratch = Arc::new(Scratch::new());
            let mut world = World::new(&scratch, "over");
            body(&scratch, &mut world);
        }
    });
}

/// Stops a daemon with snapshots, spoils its database, and checks that the next start refuses it.
fn refused(spoil: fn(&Path), messages: &'static [&'static str]) {
    with_world(move |_, world| {
        let layer = world.layer("extract", "");
        for _ in 0..20 {
            world.prepared("plain", &layer);
        }
        assert!(world.daemon.stop().success());
        let database = world.root.join("metadata.db");
        let sound = fs::read(&database).unwrap();
        spoil(&database);
        let before = files(&world.root);
        let status = world.daemon.try_start().expect_err("a refusal");
        assert!(status.code().is_some_and(|code| code != 0), "{status}");
        let log = world.daemon.log();
        for message in messages {
            assert!(log.contains(message), "{message:?} is not in {log}");
        }
        assert_eq!(files(&world.root), before, "something was changed");
        // The way out works.
        fs::write(&database, sound).unwrap();
        world.daemon.start();
        assert_eq!(world.check().places.len(), 21);
    });
}

/// Every path below a directory, with what stands for the content of files; not the lock, which each start
/// writes, nor the index of the log, which each reader does.
fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push((path.clone(), 0));
            all.extend(files(&path));
        } else if !["lock", "metadata.db-shm"].iter().any(|name| path.ends_with(name)) {
            let mut hasher = DefaultHasher::new();
            fs::read(&path).unwrap().hash(&mut hasher);
            all.push((path, hasher.finish()));
        }
    }
    all.sort();
    all
}

fn sql(database: &Path, statement: &str) {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.execute_batch(statement).unwrap();
}

/// SEMANTICS D4
#[test]
fn a_corrupt_page_is_refused() {
    let spoil = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        // The root page of a table, in the middle of its list of cells.
        file.write_all_at(&[0xff; 64], 4096 + 8).unwrap();
    };
    refused(spoil, &["damaged", "restore the file from a backup", "Nothing was changed"]);
}

/// Not even the log of a killed daemon is folded into a database that is refused.
#[test]
fn a_corrupt_page_beside_a_log_is_refused() {
    with_world(|_, world| {
        world.prepared("plain", "");
        world.daemon.restart();
        world.prepared("plain", "");
        world.daemon.kill();
        let database = world.root.join("metadata.db");
        let file = File::options().write(true).open(&database).unwrap();
        file.write_all_at(b"SQLite formal 4", 0).unwrap();
        let before = files(&world.root);
        world.daemon.try_start().expect_err("a refusal");
        assert!(world.daemon.log().contains("damaged"), "{}", world.daemon.log());
        assert_eq!(files(&world.root), before, "something was changed");
    });
}

#[test]
fn a_newer_database_with_a_log_is_refused() {
    with_world(|_, world| {
        let key = world.prepared("plain", "");
        world.daemon.kill();
        let database = world.root.join("metadata.db");
        let set_version = |version: u32| {
            let connection = rusqlite::Connection::open(&database).unwrap();
            let off = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
            connection.set_db_config(off, true).unwrap();
            connection.pragma_update(None, "user_version", version).unwrap();
        };
        set_version(99);
        let before = files(&world.root);
        world.daemon.try_start().expect_err("a refusal");
        assert!(world.daemon.log().contains("run the newer Overstream"), "{}", world.daemon.log());
        assert_eq!(files(&world.root), before, "something was changed");
        set_version(1);
        world.daemon.start();
        assert!(world.check().places.contains_key(&key));
    });
}

#[test]
fn a_corrupt_header_is_refused() {
    let spoil = |path: &Path| {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(b"SQLite formal 4", 0)
            .unwrap();
    };
    refused(spoil, &["damaged", "restore the file from a backup"]);
}

#[test]
fn a_truncated_database_is_refused() {
    let spoil = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(2 * 4096 + 100).unwrap();
    };
    refused(spoil, &["damaged", "restore the file from a backup"]);
}

/// SEMANTICS D4
#[test]
fn another_programs_database_is_refused() {
    let spoil = |path: &Path| {
        fs::remove_file(path).unwrap();
        sql(path, "CREATE TABLE theirs (x); PRAGMA application_id = 77; PRAGMA user_version = 3;");
    };
    refused(spoil, &["another program", "choose another root"]);
}

/// SEMANTICS D4
#[test]
fn a_newer_database_is_refused() {
    let spoil = |path: &Path| sql(path, "PRAGMA user_version = 99; PRAGMA journal_mode = DELETE;");
    refused(spoil, &["version 99", "run the newer Overstream again"]);
}

#[test]
fn a_missing_database_beside_snapshots_is_refused() {
    let spoil = |path: &Path| fs::remove_file(path).unwrap();
    refused(spoil, &["missing or empty", "restore the database from a backup"]);
}

#[test]
fn an_empty_database_beside_snapshots_is_refused() {
    let spoil = |path: &Path| fs::write(path, "").unwrap();
    refused(spoil, &["missing or empty", "restore the database from a backup"]);
}

/// What `cp metadata.db` makes of a young database whose rows are in its log.
#[test]
fn a_database_copied_without_its_log_is_refused() {
    let spoil = |path: &Path| {
        fs::remove_file(path).unwrap();
        sql(path, "PRAGMA journal_mode = WAL; VACUUM;");
        assert!(fs::metadata(path).unwrap().len() > 0);
    };
    refused(spoil, &["missing or empty", "restore the database from a backup"]);
}

/// What a backup from before the last uppers looks like: they must not pass for strays.
#[test]
fn a_database_older_than_the_disk_is_refused() {
    let spoil = |path: &Path| {
        let older = "DELETE FROM snapshots WHERE id = (SELECT max(id) FROM snapshots);
                     UPDATE sqlite_sequence SET seq = (SELECT max(id) FROM snapshots);";
        sql(path, older);
    };
    refused(spoil, &["older than the disk: it knows snapshots up to number 20", "snapshots/21"]);
}

/// SEMANTICS D5
#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    with_world(|scratch, world| {
        let key = world.prepared("plain", "");
        let mut second = Daemon::named(scratch, "second", env!("CARGO_BIN_EXE_overstream"))
            .with_root(&world.root);
        let status = second.try_start().expect_err("a refusal");
        assert!(status.code().is_some_and(|code| code != 0), "{status}");
        let wanted = format!("another Overstream (pid {})", world.daemon.pid());
        assert!(second.log().contains(&wanted), "{wanted:?} is not in {}", second.log());
        assert!(world.check().places.contains_key(&key));
        world.daemon.kill();
        second.start();
    });
}
