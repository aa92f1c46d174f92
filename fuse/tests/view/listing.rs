//! Big directories, offsets, and what is kept in memory and open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use overstream_fuse::{Format, Ino};
use rustix::fs::{OFlags, RawDir, SeekFrom};

use super::facts::NOBODY;
use super::frame::{Layers, with_scratch};
use crate::entries::read;

/// Entries of all layers together.
const MANY: usize = 10_000;

/// Makes a directory in two layers whose merged listing has `MANY` names, and 1000 deleted ones.
fn many(layers: &Layers) -> BTreeSet<String> {
    for layer in 0..2 {
        fs::create_dir(layers.dir(layer).join("many")).unwrap();
    }
    let path = |layer: usize, name: &str| layers.dir(layer).join("many").join(name);
    let mut names = BTreeSet::new();
    for number in 0..MANY + 1000 {
        let name = format!("{number}");
        // A third is in both layers.
        if number < MANY && number % 3 > 0 {
            File::create(path(0, &name)).unwrap();
        }
        if number % 3 < 2 || number >= MANY {
            File::create(path(1, &name)).unwrap();
        }
        if number < MANY {
            names.insert(name);
        } else {
            let char_device = nix::sys::stat::SFlag::S_IFCHR;
            let mode = nix::sys::stat::Mode::empty();
            nix::sys::stat::mknod(&path(0, &name), char_device, mode, 0).unwrap();
        }
    }
    names
}

fn listed(path: &Path) -> (File, Vec<(String, u64)>) {
    let dir = File::open(path).unwrap();
    let names = read(&dir, usize::MAX);
    (dir, names)
}

/// SEMANTICS O5
#[test]
fn a_big_directory_is_listed_once_each_and_offsets_stay() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "big", 2);
        let expected = many(&layers);
        let served = layers.served(Format::Trusted);
        let path = served.path().join("many");
        let (dir, names) = listed(&path);
        assert_eq!(names[0].0, ".");
        assert_eq!(names[1].0, "..");
        let found: BTreeSet<_> = names.iter().skip(2).map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), 2 + MANY);
        assert!(found == expected);
        // From any offset the next name is the same, in this open directory and in another.
        let other = File::open(&path).unwrap();
        for number in (0..MANY).step_by(97).chain([MANY]) {
            for dir in [&dir, &other] {
                rustix::fs::seek(dir, SeekFrom::Start(names[number].1)).unwrap();
                assert_eq!(read(dir, 1), names[number + 1..number + 2]);
            }
        }
        rustix::fs::seek(&dir, SeekFrom::Start(names[MANY + 1].1)).unwrap();
        assert_eq!(read(&dir, 1), []);
        rustix::fs::seek(&dir, SeekFrom::Start(0)).unwrap();
        assert!(read(&dir, usize::MAX) == names);
    });
}

/// SEMANTICS O6
#[test]
fn a_directory_lists_its_own_number_and_that_of_the_one_above() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "dots", 3);
        for layer in 1..3 {
            fs::create_dir_all(layers.dir(layer).join("a/b")).unwrap();
        }
        let served = layers.served(Format::Trusted);
        let path = |name: &str| served.path().join(name);
        for (below, above) in [("a", ""), ("a/b", "a")] {
            let dir = File::open(path(below)).unwrap();
            let mut buffer = [MaybeUninit::uninit(); 512];
            let mut raw = RawDir::new(&dir, &mut buffer);
            for name in [below, above] {
                let number = raw.next().unwrap().unwrap().ino();
                assert_eq!(number, fs::metadata(path(name)).unwrap().ino(), "{below}");
            }
        }
    });
}

/// SEMANTICS O12
#[test]
fn what_is_forgotten_takes_no_memory_and_few_directories_are_open() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "few", 1);
        for number in 0..1500 {
            fs::create_dir_all(layers.dir(0).join(format!("{number}/below"))).unwrap();
        }
        let overlay = layers.overlay(Format::Trusted);
        let mut lookups: BTreeMap<Ino, u64> = BTreeMap::new();
        for _ in 0..2 {
            for number in 0..1500 {
                let dir = overlay.lookup(Ino::ROOT, number.to_string().as_ref()).unwrap().ino;
                let below = overlay.lookup(dir, "below".as_ref()).unwrap().ino;
                let handle = overlay.open_dir(below).unwrap();
                let mut dots = 0;
                let count = |_: &_, _, _, _| {
                    dots += 1;
                    ControlFlow::Continue(())
                };
                overlay.read_dir(handle, 0, count).unwrap();
                assert_eq!(dots, 2);
                overlay.release_dir(handle);
                for ino in [dir, below] {
                    *lookups.entry(ino).or_default() += 1;
                }
            }
        }
        assert_eq!(overlay.remembered(), 3000);
        let own = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|path| path.to_string_lossy().contains("below"))
        };
        let open = fs::read_dir("/proc/self/fd").unwrap().filter(|e| own(e.as_ref().unwrap()));
        assert!(open.count() <= 512);
        for (ino, count) in &lookups {
            overlay.forget(*ino, *count);
        }
        assert_eq!(overlay.remembered(), 0);
    });
}

/// SEMANTICS O12
#[test]
fn one_forget_too_few_keeps_a_file() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "forget", 1);
        fs::write(layers.dir(0).join("f"), "f").unwrap();
        let overlay = layers.overlay(Format::Trusted);
        let ino = overlay.lookup(Ino::ROOT, "f".as_ref()).unwrap().ino;
        overlay.lookup(Ino::ROOT, "f".as_ref()).unwrap();
        overlay.forget(ino, 1);
        overlay.attr(ino).unwrap();
        overlay.forget(ino, 1);
        assert!(overlay.attr(ino).is_err());
        overlay.forget(ino, 1);
        overlay.forget(Ino::ROOT, 1);
        overlay.attr(Ino::ROOT).unwrap();
    });
}

/// SEMANTICS O12
#[test]
fn lookups_and_forgets_of_many_threads_balance() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "race", 2);
        for number in 0..40 {
            fs::write(layers.dir(number % 2).join(format!("{number}")), "x").unwrap();
        }
        let overlay = layers.overlay(Format::Trusted);
        let worker = &|seed: usize| {
            for step in 0..5000 {
                let name = ((step * 7 + seed * 13) % 40).to_string();
                let ino = overlay.lookup(Ino::ROOT, name.as_ref()).unwrap().ino;
                assert_eq!(overlay.attr(ino).unwrap().stat.size, 1);
                let handle = overlay.open(&NOBODY, ino, OFlags::RDONLY).unwrap();
                overlay.forget(ino, 1);
                assert_eq!(overlay.read(handle, 0, 10).unwrap(), b"x");
                overlay.release(handle);
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || worker(seed)))));
        assert_eq!(overlay.remembered(), 0);
    });
}
