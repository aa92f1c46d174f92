//! Calls that wait hold up none that need not, and many at once leave nothing behind.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use overstream_testkit::{snapshots_in, spares_in, wait_for};

use super::frame::serve;

/// How long another program keeps the database.
const KEPT: Duration = Duration::from_secs(3);

#[test]
fn those_who_wait_for_the_database_do_not_hold_up_those_who_read_it() {
    serve(|bed| {
        bed.prepare("a", "");
        let other = rusqlite::Connection::open(bed.daemon.root().join("metadata.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        std::thread::scope(|scope| {
            let began = Instant::now();
            let waiting: Vec<_> = ["b", "c", "d"]
                .map(|key| {
                    let client = bed.daemon.client("over");
                    scope.spawn(move || {
                        client.prepare(key, "", &[]).unwrap();
                        client.remove(key).unwrap();
                    })
                })
                .into();
            while began.elapsed() < KEPT {
                let asked = Instant::now();
                bed.client.stat("a").unwrap();
                bed.client.mounts("a").unwrap();
                assert!(asked.elapsed() < Duration::from_secs(1), "held up by those who wait");
            }
            assert!(!waiting.iter().any(std::thread::ScopedJoinHandle::is_finished));
            other.execute_batch("COMMIT").unwrap();
            waiting.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(bed.all().len(), 1);
        bed.client.cleanup().unwrap();
        assert_eq!(snapshots_in(bed.daemon.root()).len(), 1);
    });
}

#[test]
fn snapshots_made_in_a_burst_are_like_any_other_and_the_spares_go_with_the_daemon() {
    serve(|bed| {
        let mut count = 0;
        wait_for("spares to be made", Duration::from_secs(20), || {
            for _ in 0..64 {
                count += 1;
                bed.prepare(&format!("burst-{count}"), "");
            }
            !spares_in(bed.daemon.root()).is_empty()
        });
        // At least one of these takes a spare.
        bed.prepare("last", "");
        let ids = snapshots_in(bed.daemon.root());
        assert_eq!(ids.len(), count + 1);
        for id in ids {
            let mode = |path: std::path::PathBuf| path.symlink_metadata().unwrap().mode() & 0o7777;
            let modes = [bed.own(id), bed.fs(id), bed.own(id).join("work")].map(mode);
            assert_eq!(modes, [0o700, 0o755, 0o711], "snapshot {id}");
        }
        assert!(bed.daemon.stop().success());
        assert!(spares_in(bed.daemon.root()).is_empty());
        bed.daemon.start();
        assert_eq!(bed.all().len(), count + 1);
    });
}
