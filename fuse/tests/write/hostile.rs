//! What somebody may do who wants the mount to fail.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use overstream_fuse::Format;
use overstream_testkit::Scratch;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

use super::both::alike;
use super::frame::{Data, Place, as_root, full, kernel, mount_memory, subject};
use super::pair::{Layers, Pair, Setup};

/// Deeper than a stack would be that takes one step per directory, and than a path can tell.
const DEPTH: usize = 10_000;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

fn enter(dir: impl AsFd, name: &str) -> OwnedFd {
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()).unwrap()
}

fn root_of(path: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).unwrap()
}

/// Makes directories in each other, and a file in the last.
fn make_deep(path: &Path) {
    let mut dir = root_of(path);
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, "d", Mode::from_raw_mode(0o755)).unwrap();
        dir = enter(&dir, "d");
    }
    write(&dir, "file", "deep");
}

fn write(dir: impl AsFd, name: &str, content: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).unwrap();
    File::from(file).write_all(content.as_bytes()).unwrap();
}

fn read(dir: impl AsFd, name: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap();
    std::io::read_to_string(File::from(file)).unwrap()
}

/// Goes down all the way.
fn bottom(path: &Path) -> OwnedFd {
    (0..DEPTH).fold(root_of(path), |dir, _| enter(&dir, "d"))
}

/// Removes it all, from the bottom up.
fn remove_deep(path: &Path) {
    let mut dir = bottom(path);
    rustix::fs::unlinkat(&dir, "file", AtFlags::empty()).unwrap();
    for _ in 0..DEPTH {
        dir = enter(&dir, "..");
        rustix::fs::unlinkat(&dir, "d", AtFlags::REMOVEDIR).unwrap();
    }
}

/// Directories as deep as nobody needs them are made, walked, copied up, moved and removed, and a mount with such
/// directories ends.
#[test]
fn no_depth_of_directories_is_too_much() {
    as_root(|| {
        let scratch = Scratch::new();
        let base = scratch.dir("layers");
        mount_memory(&base);
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
        [&lower, &upper, &work].iter().for_each(|dir| fs::create_dir(dir).unwrap());
        fs::create_dir(lower.join("lower")).unwrap();
        make_deep(&lower.join("lower"));
        let (format, data) = (Format::Trusted, Data::default());
        let place = Place { lowers: vec![lower], upper, work, format, data, index: false };
        let root = base.join("subject");
        let (new, lower, moved) = (root.join("new"), root.join("lower"), root.join("moved"));

        let served = subject(&place, &root);
        fs::create_dir(&new).unwrap();
        make_deep(&new);
        write(bottom(&lower), "file", " and copied up");
        served.unmount();

        let by_kernel = kernel(&place, &root);
        assert_eq!(read(bottom(&lower), "file"), "deep and copied up");
        assert_eq!(read(bottom(&new), "file"), "deep");
        by_kernel.unmount();

        let served = subject(&place, &root);
        assert_eq!(read(bottom(&lower), "file"), "deep and copied up");
        let middle = (0..DEPTH / 2).fold(root_of(&new), |dir, _| enter(&dir, "d"));
        rustix::fs::renameat_with(&middle, "d", CWD, &moved, RenameFlags::NOREPLACE).unwrap();
        rustix::fs::renameat_with(CWD, &moved, &middle, "d", RenameFlags::NOREPLACE).unwrap();
        drop(middle);
        assert_eq!(read(bottom(&new), "file"), "deep");
        for deep in [&new, &lower] {
            remove_deep(deep);
            fs::remove_dir(deep).unwrap();
        }
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        served.unmount();
    });
}

fn times(seconds: &[i64]) {
    let times = seconds
        .iter()
        .flat_map(|seconds| [0, 1, 999_999_999].map(|part| TimeSpec::new(*seconds, part)));
    let times: Vec<_> = times.collect();
    as_root(move || {
        for on_disk in [false, true] {
            let fill = |layers: &Layers| fs::write(layers.lowers[0].join("f"), "").unwrap();
            alike(Setup { on_disk, ..Setup::default() }, fill, |root, log| {
                for time in &times {
                    let (here, path) = (nix::fcntl::AT_FDCWD, root.join("f"));
                    let flags = UtimensatFlags::NoFollowSymlink;
                    log.end("set", nix::sys::stat::utimensat(here, &path, time, time, flags));
                    let meta = fs::metadata(&path).unwrap();
                    log.note(format!("{time:?}"), (meta.mtime(), meta.mtime_nsec()));
                }
            });
        }
    });
}

/// No time is taken for another one.
#[test]
fn no_time_is_too_far_away() {
    times(&[-1 << 40, -1 << 32, -1 << 31, -1, 0, 1 << 33, 1 << 40, i64::MIN + 1, i64::MAX]);
}

/// The first time of all does not end the mount.
#[test]
#[ignore = "fuser 0.18 panics when it reads it, and the caller waits for ever"]
fn the_first_time_of_all_is_not_too_far_away() {
    times(&[i64::MIN]);
}

/// More names are deleted than one whiteout can have (ext4: 65,000).
#[test]
fn no_number_of_deletions_is_too_much() {
    let count = if full() { 70_000 } else { 1_000 };
    as_root(move || {
        let scratch = Scratch::new();
        let setup = Setup { on_disk: true, ..Setup::default() };
        let pair = Pair::new(&scratch, setup, |layers| {
            let lower = layers.lowers[0].join("d");
            fs::create_dir(&lower).unwrap();
            (0..count).for_each(|number| {
                File::create(lower.join(number.to_string())).unwrap();
            });
        });
        for root in [pair.oracle(), pair.subject()] {
            let dir = root.join("d");
            (0..count).for_each(|number| fs::remove_file(dir.join(number.to_string())).unwrap());
            fs::remove_dir(&dir).unwrap();
            fs::create_dir(&dir).unwrap();
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        }
        pair.assert_same(&[]);
        pair.assert_interchangeable(&[]);
    });
}
