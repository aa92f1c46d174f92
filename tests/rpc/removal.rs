//! Remove, Cleanup, and what stays on disk.

use std::fs;
use std::process::Command;
use std::time::Duration;

use overstream_testkit::{run, wait_for};

use super::frame::{names, serve, serve_as};

/// SEMANTICS X1
#[test]
fn remove_leaves_the_files_to_cleanup() {
    serve(|bed| {
        bed.prepare("a", "");
        fs::create_dir_all(bed.fs(1).join("deep/tree")).unwrap();
        fs::write(bed.fs(1).join("deep/tree/file"), "x").unwrap();
        bed.client.remove("a").unwrap();
        assert!(bed.fs(1).join("deep/tree/file").exists());
        // Its key is free at once, and gets a directory of its own.
        bed.prepare("a", "");
        assert!(names(&bed.fs(2)).is_empty());
        bed.client.cleanup().unwrap();
        assert_eq!(names(&bed.daemon.root().join("snapshots")), ["2"]);
        bed.client.cleanup().unwrap();
    });
}

/// SEMANTICS X1
#[test]
fn remove_can_delete_at_once() {
    serve_as(
        |daemon| daemon.with_arg("--sync-remove"),
        |bed| {
            bed.prepare("a", "");
            bed.layer("c", "");
            bed.view("v", "c");
            fs::write(bed.fs(1).join("file"), "x").unwrap();
            for (key, left) in [("a", ["2", "3"].as_slice()), ("v", &["2"]), ("c", &[])] {
                bed.client.remove(key).unwrap();
                assert_eq!(names(&bed.daemon.root().join("snapshots")), left);
            }
        },
    );
}

#[test]
fn cleanup_deletes_nothing_that_is_alive() {
    serve(|bed| {
        bed.layer("c", "");
        bed.prepare("a", "c");
        bed.view("v", "c");
        fs::write(bed.fs(2).join("file"), "x").unwrap();
        for _ in 0..3 {
            bed.client.cleanup().unwrap();
        }
        assert_eq!(names(&bed.daemon.root().join("snapshots")), ["1", "2", "3"]);
        assert!(bed.fs(2).join("file").exists() && bed.own(2).join("work").exists());
    });
}

#[test]
fn a_start_deletes_what_was_removed_and_what_no_row_knows() {
    serve(|bed| {
        bed.prepare("a", "");
        bed.prepare("b", "");
        bed.client.remove("a").unwrap();
        bed.daemon.stop();
        let snapshots = bed.daemon.root().join("snapshots");
        fs::create_dir_all(snapshots.join("77/fs")).unwrap();
        fs::create_dir_all(snapshots.join("not-ours")).unwrap();
        bed.daemon.start();
        let left = ["2", "not-ours"];
        wait_for("the start's cleanup", Duration::from_secs(10), || names(&snapshots) == left);
        // The number of a stray directory is not given out again.
        bed.prepare("c", "");
        assert!(bed.fs(78).is_dir());
    });
}

#[test]
fn children_go_before_their_parents() {
    serve(|bed| {
        bed.layer("c1", "");
        bed.layer("c2", "c1");
        bed.prepare("a", "c2");
        bed.view("v", "c2");
        for key in ["c1", "c2"] {
            bed.client.remove(key).unwrap_err();
        }
        for key in ["a", "v", "c2", "c1"] {
            bed.client.remove(key).unwrap();
        }
        bed.client.cleanup().unwrap();
        assert!(names(&bed.daemon.root().join("snapshots")).is_empty());
    });
}

#[test]
fn numbers_are_not_used_again_after_a_restart() {
    serve(|bed| {
        bed.prepare("a", "");
        bed.prepare("b", "");
        bed.client.remove("b").unwrap();
        bed.client.cleanup().unwrap();
        bed.daemon.restart();
        bed.prepare("c", "");
        assert!(bed.fs(3).is_dir());
    });
}

/// SEMANTICS X2
#[test]
fn what_cannot_be_deleted_is_tried_again() {
    serve(|bed| {
        for key in ["stuck", "free"] {
            bed.prepare(key, "");
        }
        let stuck = bed.fs(1).join("file");
        fs::write(&stuck, "x").unwrap();
        let attribute = |change: &str| run(Command::new("chattr").arg(change).arg(&stuck)).ok();
        attribute("+i");
        for key in ["stuck", "free"] {
            bed.client.remove(key).unwrap();
        }
        bed.client.cleanup().unwrap();
        assert_eq!(names(&bed.daemon.root().join("snapshots")), ["1"]);
        assert!(bed.daemon.log().contains("cannot delete, kept for later"));
        attribute("-i");
        bed.client.cleanup().unwrap();
        assert!(names(&bed.daemon.root().join("snapshots")).is_empty());
    });
}
