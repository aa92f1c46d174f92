//! What Usage counts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use overstream_testkit::wait_for;

use super::frame::serve;

/// Bytes allocated for one file or directory.
fn allocated(path: &Path) -> i64 {
    i64::try_from(fs::symlink_metadata(path).unwrap().blocks() * 512).unwrap()
}

#[test]
fn an_empty_snapshot_takes_one_inode() {
    serve(|bed| {
        bed.prepare("a", "");
        assert_eq!(bed.client.usage("a").unwrap(), (allocated(&bed.fs(1)), 1));
    });
}

/// SEMANTICS U1
#[test]
fn a_file_with_several_names_counts_once() {
    serve(|bed| {
        bed.prepare("a", "");
        let fs = bed.fs(1);
        fs::write(fs.join("one"), vec![1; 100_000]).unwrap();
        fs::create_dir(fs.join("dir")).unwrap();
        for name in ["two", "dir/three"] {
            fs::hard_link(fs.join("one"), fs.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("one", fs.join("link")).unwrap();
        let bytes = ["", "one", "dir", "link"].map(|name| allocated(&fs.join(name))).iter().sum();
        assert_eq!(bed.client.usage("a").unwrap(), (bytes, 4));
    });
}

#[test]
fn a_hole_takes_no_space() {
    serve(|bed| {
        bed.prepare("a", "");
        fs::File::create(bed.fs(1).join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let (bytes, inodes) = bed.client.usage("a").unwrap();
        assert!(bytes < 1 << 20 && inodes == 2, "{bytes} bytes, {inodes} inodes");
    });
}

/// SEMANTICS U1
#[test]
fn parents_and_workdirs_do_not_count_and_views_take_nothing() {
    serve(|bed| {
        bed.prepare("below", "");
        fs::write(bed.fs(1).join("file"), vec![1; 50_000]).unwrap();
        bed.client.commit("c", "below", &[]).unwrap();
        bed.prepare("a", "c");
        fs::write(bed.own(2).join("work/file"), vec![1; 50_000]).unwrap();
        assert_eq!(bed.client.usage("a").unwrap(), (allocated(&bed.fs(2)), 1));
        bed.view("v", "c");
        bed.view("v0", "");
        for view in ["v", "v0"] {
            assert_eq!(bed.client.usage(view).unwrap(), (0, 0), "{view}");
        }
    });
}

/// SEMANTICS U1
#[test]
fn a_committed_snapshot_keeps_what_commit_found() {
    serve(|bed| {
        bed.prepare("a", "");
        fs::write(bed.fs(1).join("file"), vec![1; 50_000]).unwrap();
        let before = bed.client.usage("a").unwrap();
        bed.client.commit("c", "a", &[]).unwrap();
        assert_eq!(bed.client.usage("c").unwrap(), before);
        fs::write(bed.fs(1).join("later"), vec![1; 50_000]).unwrap();
        assert_eq!(bed.client.usage("c").unwrap(), before);
        bed.daemon.restart();
        assert_eq!(bed.client.usage("c").unwrap(), before);
    });
}

/// Makes and deletes trees until told to stop.
fn churn(below: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for number in 0..20 {
            let dir = below.join(format!("dir-{number}/deeper"));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..5 {
                fs::write(dir.join(file.to_string()), "x").unwrap();
            }
        }
        for number in 0..20 {
            fs::remove_dir_all(below.join(format!("dir-{number}"))).unwrap();
        }
    }
}

/// SEMANTICS U2
#[test]
fn files_that_vanish_during_the_walk_are_skipped() {
    serve(|bed| {
        bed.prepare("a", "");
        let (fs, stop) = (bed.fs(1), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| churn(&fs, &stop));
            let all: Vec<_> = (0..300).map(|_| bed.client.usage("a")).collect();
            stop.store(true, Ordering::Relaxed);
            for usage in all {
                let (bytes, inodes) = usage.unwrap();
                assert!(bytes >= 0 && (1..=1 + 20 * 7).contains(&inodes), "{bytes}, {inodes}");
            }
        });
        // A walk that took long is not repeated at once.
        let settled = || bed.client.usage("a").unwrap().1 == 1;
        wait_for("a fresh walk", Duration::from_secs(20), settled);
    });
}

#[test]
fn directories_that_move_during_the_walk_do_no_harm() {
    serve(|bed| {
        bed.prepare("a", "");
        let (fs, stop) = (bed.fs(1), AtomicBool::new(false));
        fs::create_dir_all(fs.join("x/y/z")).unwrap();
        fs::create_dir_all(fs.join("other")).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fs::rename(fs.join("x/y/z"), fs.join("other/z")).unwrap();
                    fs::rename(fs.join("other/z"), fs.join("x/y/z")).unwrap();
                }
            });
            let all: Vec<_> = (0..1000).map(|_| bed.client.usage("a")).collect();
            stop.store(true, Ordering::Relaxed);
            for usage in all {
                usage.unwrap();
            }
        });
    });
}
