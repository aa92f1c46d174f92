//! Links that lead out of the root: planted among the snapshots, and as what a container left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::frame::attack;

#[test]
fn a_link_planted_in_place_of_the_next_snapshot_is_not_followed() {
    attack(|bed| {
        let snapshots = bed.daemon.root().join("snapshots");
        bed.client.prepare("a", "", &[]).unwrap();
        for (next, target) in [(2, "dir"), (4, "missing")] {
            symlink(bed.victim.join(target), snapshots.join(next.to_string())).unwrap();
            let mounts = bed.client.prepare(&format!("after {next}"), "", &[]).unwrap();
            let expected = snapshots.join((next + 1).to_string()).join("fs");
            assert_eq!(Path::new(&mounts[0].source), expected);
            fs::remove_file(snapshots.join(next.to_string())).unwrap();
        }
    });
}

#[test]
fn a_directory_planted_in_place_of_the_next_snapshot_is_not_taken_for_one() {
    attack(|bed| {
        let planted = bed.daemon.root().join("snapshots/2/fs");
        bed.client.prepare("a", "", &[]).unwrap();
        fs::create_dir_all(&planted).unwrap();
        fs::write(planted.join("foreign"), "x").unwrap();
        let mounts = bed.client.prepare("b", "", &[]).unwrap();
        assert_eq!(fs::read_dir(&mounts[0].source).unwrap().count(), 0);
    });
}

#[test]
fn a_link_found_at_start_is_deleted_and_not_followed() {
    attack(|bed| {
        bed.client.prepare("a", "", &[]).unwrap();
        bed.daemon.stop();
        let snapshots = bed.daemon.root().join("snapshots");
        let link = snapshots.join("7");
        symlink(&bed.victim, &link).unwrap();
        bed.daemon.start();
        bed.client.cleanup().unwrap();
        assert!(fs::symlink_metadata(&link).is_err(), "the link is still there");
        bed.client.prepare("b", "", &[]).unwrap();
        assert!(snapshots.join("8/fs").is_dir());
    });
}

/// SEMANTICS X3
#[test]
fn deleting_and_counting_do_not_follow_what_a_container_left() {
    attack(|bed| {
        let mounts = bed.client.prepare("a", "", &[]).unwrap();
        let fs = PathBuf::from(&mounts[0].source);
        let up = PathBuf::from("../../../../victim");
        for (name, target) in [("abs", bed.victim.clone()), ("root", "/".into()), ("up", up)] {
            symlink(target, fs.join(name)).unwrap();
        }
        symlink("loop", fs.join("loop")).unwrap();
        fs::create_dir(fs.join("dir")).unwrap();
        symlink(&bed.victim, fs.join("dir/link")).unwrap();
        assert_eq!(bed.client.usage("a").unwrap().1, 7);
        bed.client.remove("a").unwrap();
        bed.client.cleanup().unwrap();
        assert!(!fs.exists());
    });
}

#[test]
fn a_snapshot_swapped_for_a_link_is_not_followed_either() {
    attack(|bed| {
        let mounts = bed.client.prepare("a", "", &[]).unwrap();
        let fs = PathBuf::from(&mounts[0].source);
        fs::remove_dir(&fs).unwrap();
        symlink(&bed.victim, &fs).unwrap();
        if let Ok(usage) = bed.client.usage("a") {
            assert_eq!(usage, (0, 0), "the link's target was counted");
        }
        bed.client.remove("a").unwrap();
        bed.client.cleanup().unwrap();
        assert!(!fs.parent().unwrap().exists());
    });
}
