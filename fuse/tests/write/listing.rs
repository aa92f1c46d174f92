//! Listings of directories that change meanwhile, and names of all kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::stat::{Mode, SFlag, mknod};
use overstream_testkit::Scratch;
use rustix::fs::SeekFrom;

use super::both::{Log, alike};
use super::frame::as_root;
use super::pair::{Layers, Pair, Setup};
use crate::entries::read;

/// Fills `d` with names that only the lower layer has, only the upper, both, and deleted ones; as many of each.
fn fill(layers: &Layers, each: usize) {
    let (lower, upper) = (layers.lowers[0].join("d"), layers.upper.join("d"));
    for dir in [&lower, &upper] {
        fs::create_dir(dir).unwrap();
    }
    for number in 0..each {
        File::create(lower.join(format!("lower-{number}"))).unwrap();
        File::create(upper.join(format!("upper-{number}"))).unwrap();
        for dir in [&lower, &upper] {
            File::create(dir.join(format!("both-{number}"))).unwrap();
        }
        let deleted = format!("deleted-{number}");
        File::create(lower.join(&deleted)).unwrap();
        mknod(&upper.join(deleted), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Everything is deleted while it is listed, and nothing is missed (fuse-backend-rs: a sixth stays).
#[test]
fn what_is_deleted_while_it_is_listed_is_listed() {
    const EACH: usize = 400;
    as_root(|| {
        alike(
            Setup::default(),
            |layers| fill(layers, EACH),
            |root, log| {
                let dir = root.join("d");
                let mut seen = 0;
                for entry in fs::read_dir(&dir).unwrap() {
                    fs::remove_file(entry.unwrap().path()).unwrap();
                    seen += 1;
                }
                assert_eq!(seen, 3 * EACH);
                log.note("left", names(&dir));
                log.end("remove", fs::remove_dir(&dir));
            },
        );
    });
}

/// Every name that stays is listed once, whatever becomes of others meanwhile, and an offset is where it was.
#[test]
fn offsets_stay_while_names_come_and_go() {
    const EACH: usize = 300;
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |layers| fill(layers, EACH));
        let path = pair.subject().join("d");
        let stays = names(&path);
        let dir = File::open(&path).unwrap();
        let mut seen = Vec::new();
        let mut round = 0;
        loop {
            let some = read(&dir, 7);
            let Some((_, last)) = some.last() else { break };
            // As who looks again from a place that it has noted.
            rustix::fs::seek(&dir, SeekFrom::Start(*last)).unwrap();
            seen.extend(some.into_iter().map(|(name, _)| name));
            fs::write(path.join(format!("new-{round}")), "").unwrap();
            if round > 3 {
                fs::remove_file(path.join(format!("new-{}", round - 3))).unwrap();
            }
            round += 1;
        }
        let known = |name: &&String| stays.contains(*name);
        let of_those: Vec<_> = seen.iter().filter(known).collect();
        assert_eq!(of_those.len(), stays.len());
        assert_eq!(of_those.iter().copied().collect::<BTreeSet<_>>().len(), stays.len());
        // Who rewinds sees what is there now.
        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
        let again: BTreeSet<_> = read(&dir, usize::MAX).into_iter().map(|(name, _)| name).collect();
        let mut now = names(&path);
        now.extend([".", ".."].map(str::to_owned));
        assert_eq!(again, now);
    });
}

/// A listing that begins after a change shows it, whoever listed before.
#[test]
fn a_change_is_listed_at_once() {
    as_root(|| {
        alike(
            Setup::default(),
            |layers| fill(layers, 3),
            |root, log| {
                let dir = root.join("d");
                let mut listed = |when: &str| log.note(when, names(&dir));
                listed("first");
                fs::write(dir.join("new"), "").unwrap();
                listed("created");
                fs::rename(dir.join("new"), root.join("moved")).unwrap();
                listed("moved away");
                fs::rename(root.join("moved"), dir.join("lower-1")).unwrap();
                listed("moved over");
                fs::remove_file(dir.join("both-0")).unwrap();
                listed("deleted");
                fs::create_dir(dir.join("both-0")).unwrap();
                symlink("to", dir.join("deleted-0")).unwrap();
                fs::hard_link(dir.join("upper-0"), dir.join("deleted-1")).unwrap();
                listed("in the place of deleted ones");
            },
        );
    });
}

/// While others come and go at once, every name that stays is listed once.
#[test]
fn names_that_stay_are_listed_while_others_come_and_go() {
    const EACH: usize = 200;
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |layers| fill(layers, EACH));
        let path = pair.subject().join("d");
        let stays = names(&path);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..2 {
                let (path, done) = (&path, &done);
                scope.spawn(move || {
                    let mut number = 0;
                    while !done.load(Ordering::Acquire) {
                        let name = path.join(format!("new-{thread}-{}", number % 10));
                        fs::write(&name, "").unwrap();
                        fs::rename(&name, path.join(format!("renamed-{thread}"))).unwrap();
                        if number % 3 == 0 {
                            fs::remove_file(path.join(format!("renamed-{thread}"))).unwrap();
                        }
                        number += 1;
                    }
                });
            }
            for _ in 0..100 {
                let mut seen = BTreeMap::new();
                for entry in fs::read_dir(&path).unwrap() {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    *seen.entry(name).or_insert(0) += 1;
                }
                let times = stays.iter().map(|name| seen.get(name).copied().unwrap_or(0));
                let wrong = times.filter(|times| *times != 1).count();
                if wrong > 0 {
                    done.store(true, Ordering::Release);
                }
                assert_eq!(wrong, 0);
            }
            done.store(true, Ordering::Release);
        });
    });
}

/// Twenty thousand names are listed, some deleted, and listed again.
#[test]
fn a_big_directory_is_listed_as_it_changes() {
    const EACH: usize = 6_700;
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |layers| fill(layers, EACH));
        let path = pair.subject().join("d");
        let mut expected = names(&path);
        assert_eq!(expected.len(), 3 * EACH);
        for number in (0..EACH).step_by(7) {
            for name in [format!("lower-{number}"), format!("upper-{number}")] {
                fs::remove_file(path.join(&name)).unwrap();
                expected.remove(&name);
            }
            let name = format!("deleted-{number}");
            File::create_new(path.join(&name)).unwrap();
            expected.insert(name);
        }
        assert_eq!(names(&path), expected);
        let pair = pair.mounted_again();
        assert_eq!(names(&path), expected);
        drop(pair);
    });
}

/// Any bytes but a slash are a name, up to 255 of them (fuse-overlayfs 1 and 2: 251, none that begins with `.wh.`;
/// fuse-backend-rs: text only).
#[test]
fn any_name_can_be_given() {
    let longest = "l".repeat(255);
    let longest_bytes = [0xff; 255];
    let names: Vec<Vec<u8>> = [
        &b"\xff\xfe"[..],
        longest.as_bytes(),
        &longest_bytes,
        &longest.as_bytes()[..252],
        b".wh.name",
        b".wh..wh..opq",
        b".wh.",
        b"a\nb",
        b"...",
        b" ",
        b"#1",
        b"-",
        b"name:with,all=of%it\\",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    let too_long = "l".repeat(256);
    let fill = {
        let names = names.clone();
        move |layers: &Layers| {
            fs::create_dir(layers.lowers[0].join("lower")).unwrap();
            for name in names.iter().map(|name| OsStr::from_bytes(name)) {
                fs::write(layers.lowers[0].join("lower").join(name), "lower").unwrap();
            }
            fs::write(layers.lowers[0].join("name"), "not deleted").unwrap();
        }
    };
    let act = move |root: &Path, log: &mut Log| {
        fs::create_dir(root.join("new")).unwrap();
        for name in names.iter().map(|name| OsStr::from_bytes(name)) {
            let shown = &name.as_bytes()[..name.len().min(20)];
            let [lower, new] = ["lower", "new"].map(|dir| root.join(dir).join(name));
            log.end(format!("{shown:?}"), fs::create_dir(&new));
            log.end("remove", fs::remove_dir(&new));
            log.end("write", fs::write(&new, "new"));
            log.end("append", File::options().append(true).open(&lower).map(drop));
            log.end("exchange", fs::rename(&lower, &new));
            log.end("link", fs::hard_link(&new, &lower));
            log.end("delete", fs::remove_file(&lower));
            log.end("attribute", xattr::set(&new, "user.a", b"a"));
            log.end("symlink", symlink("to", &lower));
        }
        for name in [too_long.as_str(), ".", ".."] {
            log.end("create", fs::create_dir(root.join(name)));
            log.end("rename", fs::rename(root.join("new"), root.join(name)));
            log.end("look", fs::symlink_metadata(root.join(name)).map(|_| ()));
        }
        log.note("name", fs::read_to_string(root.join("name")).unwrap());
    };
    as_root(move || alike(Setup::default(), fill, act));
}
