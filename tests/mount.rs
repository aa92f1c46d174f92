//! `overstream mount`: a view in the foreground, its end, and what it refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use overstream_testkit::{
    Process, Scratch, limit, mounts_below, require_fuse, require_root, run, wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const SOON: Duration = Duration::from_secs(10);

fn command(lower: &str, target: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["mount", "--lower", lower, "-o", "nodev,fsname=test"]).arg(target);
    command
}

/// A mounted view of the directories `a:b` and `b`, of which the upper one is `a:b`.
fn mounted(scratch: &Scratch) -> Process {
    for name in ["a:b", "b"] {
        scratch.dir(name);
        scratch.write(format!("{name}/both"), name);
    }
    scratch.write("b/only", "only in b");
    let target = scratch.dir("mnt");
    let lower = format!("{0}/a\\:b:{0}/b", scratch.path().display());
    let process = scratch.spawn("mount", &mut command(&lower, &target));
    wait_for("the mount", SOON, || mounts_below(&target) == [target.clone()]);
    process
}

fn with_scratch(body: impl FnOnce(&Scratch) + Send + 'static) {
    if require_root() && require_fuse() {
        limit(Duration::from_secs(60), move || body(&Scratch::new()));
    }
}

/// SEMANTICS O13, O15
#[test]
fn a_view_is_seen_and_unmounted_by_a_signal() {
    with_scratch(|scratch| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let process = mounted(scratch);
            let read = |name: &str| fs::read_to_string(scratch.join("mnt").join(name)).unwrap();
            assert_eq!(read("both"), "a:b");
            assert_eq!(read("only"), "only in b");
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let target = scratch.join("mnt");
            let line = table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap();
            assert!(line.contains(" ro,nodev,") && line.contains(" - fuse test "), "{line}");
            process.signal(signal);
            assert!(process.wait_exit(SOON).success(), "{}", process.describe());
            assert_eq!(mounts_below(&target), [] as [&Path; 0]);
        }
    });
}

/// SEMANTICS O15
#[test]
fn an_unmount_ends_the_command() {
    with_scratch(|scratch| {
        let process = mounted(scratch);
        run(Command::new("umount").arg(scratch.join("mnt"))).ok();
        assert!(process.wait_exit(SOON).success(), "{}", process.describe());
    });
}

/// SEMANTICS O15
#[test]
fn who_uses_the_view_at_a_signal_may_finish() {
    with_scratch(|scratch| {
        let process = mounted(scratch);
        let target = scratch.join("mnt");
        let mut user = File::open(target.join("both")).unwrap();
        process.signal(Signal::SIGTERM);
        wait_for("its name to go", SOON, || mounts_below(&target).is_empty());
        let mut content = String::new();
        user.read_to_string(&mut content).unwrap();
        assert_eq!(content, "a:b");
        assert!(process.ended().is_none());
        drop(user);
        assert!(process.wait_exit(SOON).success(), "{}", process.describe());
    });
}

/// SEMANTICS O11, O13
#[test]
fn what_cannot_be_mounted_says_why() {
    with_scratch(|scratch| {
        let target = scratch.dir("mnt");
        let (a, b) = (scratch.dir("a"), scratch.dir("b"));
        let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
        let inside = scratch.dir("a/inside");
        let file = scratch.write("file", "");
        for (lower, target, why) in [
            ("/no/such".to_owned(), &target, "/no/such: No such file or directory"),
            (format!("{a}:{a}"), &target, "are one, or one lies in the other"),
            (format!("{a}:{b}"), &inside, "the mount point"),
            (format!("{a}::{b}"), &target, "is empty"),
            (format!("{a}:{}", file.display()), &target, "Not a directory"),
            (a.to_owned(), &scratch.join("none"), "none: No such file or directory"),
            (a.to_owned(), &file, "file: not a directory"),
        ] {
            let said = run(&mut command(&lower, target)).fails().errors();
            assert!(said.starts_with("overstream: ") && said.contains(why), "{lower}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let mut read_write = Command::new(BINARY);
        read_write.args(["mount", "-o", "rw", "--lower", a]).arg(&target);
        assert!(run(&mut read_write).fails().errors().contains("read-only"));
    });
}
