use std::fs::{self, File};
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use overstream_testkit::{FsKind, LoopFs, Scratch, limit, wait_for};

const EIO: i32 = 5;

fn with_fs(kind: FsKind, body: fn(&LoopFs)) {
    limit(Duration::from_secs(120), move || {
        if !kind.available() {
            return;
        }
        let scratch = Scratch::new();
        body(&LoopFs::new(&scratch, "fs", kind, 64));
    });
}

fn power_loss_loses_what_was_not_synced(fs: &LoopFs) {
    let synced = fs.join("synced");
    fs::write(&synced, "synced").unwrap();
    File::open(&synced).unwrap().sync_all().unwrap();
    File::open(fs.path()).unwrap().sync_all().unwrap();
    fs::write(&synced, "changed").unwrap();
    fs::write(fs.join("unsynced"), "unsynced").unwrap();
    fs::create_dir(fs.join("directory")).unwrap();
    fs.power_loss();
    // The length may have been the first to go.
    assert_ne!(fs::read_to_string(&synced).unwrap(), "changed");
    assert!(!fs.join("unsynced").exists());
    assert!(!fs.join("directory").exists());
    fs::write(fs.join("after"), "after").unwrap();
}

fn a_full_file_system_refuses_writes(fs: &LoopFs) {
    fs.fill();
    let error = (0..1000).find_map(|n| fs::write(fs.join(format!("f{n}")), [b'x'; 8192]).err());
    assert_eq!(error.unwrap().kind(), ErrorKind::StorageFull);
    fs.drain();
    fs::write(fs.join("again"), [b'x'; 8192]).unwrap();
    fs.remount_readonly();
    assert_eq!(fs::write(fs.join("ro"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    fs.remount_writable();
    fs::write(fs.join("rw"), "x").unwrap();
}

fn a_shut_down_file_system_fails(fs: &LoopFs) {
    let file = File::create(fs.join("file")).unwrap();
    fs.shutdown();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(EIO));
    assert_eq!(File::create(fs.join("other")).unwrap_err().raw_os_error(), Some(EIO));
    drop(file);
    fs.remount();
    File::create(fs.join("other")).unwrap();
}

/// A container that starts meanwhile has a copy of the mount for a moment.
fn a_copy_of_the_mount_elsewhere_is_waited_for(fs: &LoopFs) {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).unwrap();
    let mut elsewhere = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "2"])
        .spawn()
        .unwrap();
    let id = elsewhere.id().to_string();
    wait_for("the copy", Duration::from_secs(10), || namespace(&id) != namespace("self"));
    fs.power_loss();
    fs::write(fs.join("after"), "after").unwrap();
    assert!(elsewhere.wait().unwrap().success());
}

#[test]
fn a_copy_of_the_mount_elsewhere_is_waited_for_ext4() {
    with_fs(FsKind::Ext4, a_copy_of_the_mount_elsewhere_is_waited_for);
}

#[test]
fn a_copy_of_the_mount_elsewhere_is_waited_for_xfs() {
    with_fs(FsKind::Xfs, a_copy_of_the_mount_elsewhere_is_waited_for);
}

#[test]
fn power_loss_loses_what_was_not_synced_ext4() {
    with_fs(FsKind::Ext4, power_loss_loses_what_was_not_synced);
}

#[test]
fn power_loss_loses_what_was_not_synced_xfs() {
    with_fs(FsKind::Xfs, power_loss_loses_what_was_not_synced);
}

#[test]
fn power_loss_loses_what_was_not_synced_btrfs() {
    with_fs(FsKind::Btrfs, power_loss_loses_what_was_not_synced);
}

#[test]
fn a_full_file_system_refuses_writes_ext4() {
    with_fs(FsKind::Ext4, a_full_file_system_refuses_writes);
}

#[test]
fn a_full_file_system_refuses_writes_xfs() {
    with_fs(FsKind::Xfs, a_full_file_system_refuses_writes);
}

#[test]
fn a_full_file_system_refuses_writes_btrfs() {
    with_fs(FsKind::Btrfs, a_full_file_system_refuses_writes);
}

#[test]
fn a_shut_down_file_system_fails_ext4() {
    with_fs(FsKind::Ext4, a_shut_down_file_system_fails);
}

#[test]
fn a_shut_down_file_system_fails_xfs() {
    with_fs(FsKind::Xfs, a_shut_down_file_system_fails);
}
