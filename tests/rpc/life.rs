//! Starting, stopping, and doing so again on the same root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overstream_testkit::proto::snapshots::ListSnapshotsRequest;
use overstream_testkit::{Daemon, Scratch, limit, require_root, wait_for};

use super::frame::{BINARY, names, serve, serve_as};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_restart_changes_nothing_a_client_sees() {
    serve(|bed| {
        bed.client.prepare("c-key", "", &[("k", "v"), ("odd \u{1f980}", "\n\"")]).unwrap();
        bed.client.commit("c", "c-key", &[("k", "v")]).unwrap();
        let a = bed.client.prepare("a", "c", &[("odd \u{1f980}", "\n\"")]).unwrap();
        let v = bed.view("v", "c");
        fs::write(bed.fs(2).join("file"), "content").unwrap();
        let (before, usage) = (bed.all(), bed.client.usage("a").unwrap());
        for crash in [false, true] {
            if crash {
                bed.daemon.kill();
                bed.daemon.start();
            } else {
                bed.daemon.restart();
            }
            assert_eq!(bed.all(), before);
            assert_eq!(bed.client.mounts("a").unwrap(), a);
            assert_eq!(bed.client.mounts("v").unwrap(), v);
            assert_eq!(bed.client.usage("a").unwrap(), usage);
        }
    });
}

/// Writes a program that starts the daemon with this umask.
fn with_umask(scratch: &Scratch, umask: &str) -> std::path::PathBuf {
    let script = format!("#!/bin/sh\numask {umask}\nexec {BINARY} \"$@\"\n");
    let path = scratch.write(format!("umask-{umask}"), script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// SEMANTICS M6
#[test]
fn modes_do_not_depend_on_the_umask() {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        for umask in ["000", "022", "077", "777"] {
            let scratch = Scratch::new();
            let mut daemon = Daemon::new(&scratch, with_umask(&scratch, umask));
            daemon.start();
            let client = daemon.client("over");
            client.prepare("a", "", &[]).unwrap();
            client.view("v", "", &[]).unwrap();
            let root = daemon.root();
            let expected = [
                ("", 0o700),
                ("metadata.db", 0o600),
                ("snapshots", 0o700),
                ("snapshots/1", 0o700),
                ("snapshots/1/fs", 0o755),
                ("snapshots/1/work", 0o711),
                ("snapshots/2", 0o700),
                ("snapshots/2/fs", 0o755),
            ];
            for (name, wanted) in expected {
                let found = mode(&root.join(name));
                assert_eq!(found, wanted, "umask {umask}: {name} has mode {found:o}");
            }
            assert_eq!(mode(daemon.socket()), 0o600, "umask {umask}");
            assert_eq!(names(&root.join("snapshots/2")), ["fs"]);
        }
    });
}

#[test]
fn sigterm_lets_a_running_call_finish() {
    serve(|bed| {
        let database = rusqlite::Connection::open(bed.daemon.root().join("metadata.db")).unwrap();
        // A call that writes waits for this transaction.
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let client = bed.daemon.client("over");
        let call = std::thread::spawn(move || client.prepare("a", "", &[]));
        bed.wait_for_directories(1);
        bed.daemon.signal(Signal::SIGTERM);
        let announced = || bed.daemon.log().contains("finishing calls under way");
        wait_for("the daemon to stop", Duration::from_secs(10), announced);
        database.execute_batch("COMMIT").unwrap();
        assert_eq!(call.join().unwrap().unwrap().len(), 1);
        assert_eq!(bed.daemon.wait_exit(Duration::from_secs(10)).code(), Some(0));
        bed.daemon.start();
        bed.client.stat("a").unwrap();
    });
}

#[test]
fn sigterm_lets_a_list_that_is_read_slowly_finish() {
    serve(|bed| {
        let label = "v".repeat(2 << 20);
        for number in 0..20 {
            bed.client.prepare(&number.to_string(), "", &[("k", &label)]).unwrap();
        }
        let (client, snapshotter) = (&bed.client, "over".to_owned());
        let request = ListSnapshotsRequest { snapshotter, filters: Vec::new() };
        let mut stream = client.block_on(client.raw().list(request)).unwrap().into_inner();
        let mut seen = client.block_on(stream.message()).unwrap().unwrap().info.len();
        bed.daemon.signal(Signal::SIGTERM);
        let announced = || bed.daemon.log().contains("finishing calls under way");
        wait_for("the daemon to stop", Duration::from_secs(10), announced);
        // Longer than the daemon waits where no call is under way.
        std::thread::sleep(Duration::from_secs(1));
        while let Some(message) = client.block_on(stream.message()).unwrap() {
            seen += message.info.len();
        }
        assert_eq!(seen, 20);
        assert_eq!(bed.daemon.wait_exit(Duration::from_secs(10)).code(), Some(0));
    });
}

#[test]
fn sigterm_does_not_wait_for_ever() {
    serve_as(
        |daemon| daemon.with_config("shutdown_grace_seconds = 1\n"),
        |bed| {
            let path = bed.daemon.root().join("metadata.db");
            let database = rusqlite::Connection::open(path).unwrap();
            database.execute_batch("BEGIN IMMEDIATE").unwrap();
            let client = bed.daemon.client("over");
            let call = std::thread::spawn(move || client.prepare("a", "", &[]));
            bed.wait_for_directories(1);
            bed.daemon.signal(Signal::SIGTERM);
            assert_eq!(bed.daemon.wait_exit(Duration::from_secs(8)).code(), Some(0));
            call.join().unwrap().unwrap_err();
            drop(database);
            // What the call had made on disk is not there for ever.
            bed.daemon.start();
            let snapshots = bed.daemon.root().join("snapshots");
            let gone = || names(&snapshots).is_empty();
            wait_for("the start's cleanup", Duration::from_secs(10), gone);
        },
    );
}

#[test]
fn calls_threads_and_the_last_sync_share_one_grace() {
    serve_as(
        |daemon| daemon.with_config("shutdown_grace_seconds = 3\n"),
        |bed| {
            bed.layer("not synced yet", "");
            let path = bed.daemon.root().join("metadata.db");
            let database = rusqlite::Connection::open(path).unwrap();
            // Both a call and the sync's record wait for this transaction.
            database.execute_batch("BEGIN IMMEDIATE").unwrap();
            let client = bed.daemon.client("over");
            let call = std::thread::spawn(move || client.prepare("a", "", &[]));
            bed.wait_for_directories(2);
            let began = Instant::now();
            bed.daemon.signal(Signal::SIGTERM);
            assert_eq!(bed.daemon.wait_exit(Duration::from_secs(30)).code(), Some(0));
            assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
            call.join().unwrap().unwrap_err();
            drop(database);
            bed.daemon.start();
            bed.prepare("b", "not synced yet");
        },
    );
}

#[test]
fn a_client_that_does_not_listen_does_not_hold_up_a_stop() {
    serve(|bed| {
        // Its connection is only looked after while it waits for an answer.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut client = runtime.block_on(bed.daemon.snapshots());
        let request =
            || ListSnapshotsRequest { snapshotter: "over".to_owned(), ..Default::default() };
        runtime.block_on(client.list(request())).unwrap();
        let began = Instant::now();
        bed.daemon.signal(Signal::SIGINT);
        assert_eq!(bed.daemon.wait_exit(Duration::from_secs(10)).code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    });
}

#[test]
fn one_root_has_one_daemon() {
    serve(|bed| {
        let root = bed.daemon.root().to_owned();
        let mut second = Daemon::named(&bed.scratch, "second", BINARY).with_root(&root);
        let status = second.try_start().unwrap_err();
        assert_eq!(status.code(), Some(1));
        let (log, pid) = (second.log(), bed.daemon.pid().to_string());
        assert!(log.contains("another Overstream") && log.contains(&pid), "{log}");
        bed.prepare("a", "");
        // The lock dies with its holder, however it died.
        bed.daemon.kill();
        second.start();
        assert_eq!(second.client("over").list(&[]).unwrap().len(), 1);
    });
}

#[test]
fn one_socket_has_one_daemon() {
    serve(|bed| {
        let socket = bed.daemon.socket().to_owned();
        let second = Daemon::named(&bed.scratch, "second", BINARY).with_socket(&socket);
        let mut second = second;
        second.launch();
        assert_eq!(second.wait_exit(Duration::from_secs(10)).code(), Some(1));
        assert!(second.log().contains("another process listens there"), "{}", second.log());
        bed.prepare("a", "");
    });
}

#[test]
fn a_socket_that_a_dead_daemon_left_is_replaced() {
    serve(|bed| {
        bed.daemon.kill();
        assert!(bed.daemon.socket().exists());
        bed.daemon.start();
        bed.prepare("a", "");
        bed.daemon.stop();
        fs::remove_file(bed.daemon.socket()).ok();
        fs::write(bed.daemon.socket(), "precious").unwrap();
        bed.daemon.launch();
        assert_eq!(bed.daemon.wait_exit(Duration::from_secs(10)).code(), Some(1));
        assert_eq!(fs::read(bed.daemon.socket()).unwrap(), b"precious");
    });
}
