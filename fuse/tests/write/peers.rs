//! What went wrong in other overlays served through FUSE (fuse-overlayfs 1 and 2, fuse-backend-rs), as their users
//! reported it, or as it was seen when they were tried.
//!
//! Most of it is covered where the rule is: names and renames in `rules`, metadata in `copy_up`, deleted and mapped
//! files in `open_files`, setuid in `permissions`, big directories in `listing`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use overstream_testkit::{Random, Scratch, require_command, run};
use rustix::fs::FallocateFlags;

use super::both::{Log, alike, alike_in_every_mode};
use super::frame::{Data, as_root};
use super::pair::{Layers, Pair, Setup};

/// Fills the lower layer with `f`, `d/a` and `d/e/b`, and the same below `above`.
fn usual(layers: &Layers) {
    for dir in ["", "above/"] {
        let dir = layers.lowers[0].join(dir);
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("f"), "of the layer").unwrap();
        fs::write(dir.join("d/a"), "a").unwrap();
        fs::write(dir.join("d/e/b"), "b").unwrap();
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// A directory that was deleted and made again is empty, also at the root and after the next mount; no file says so
/// that the kernel would show (fuse-overlayfs 2, fuse-backend-rs: what it held comes back; fuse-overlayfs 1 and 2:
/// `.wh..wh..opq`).
#[test]
fn a_directory_that_is_made_again_stays_empty() {
    as_root(|| {
        alike(Setup::default(), usual, |root, log| {
            for dir in ["d", "above/d"] {
                fs::remove_dir_all(root.join(dir)).unwrap();
                fs::create_dir(root.join(dir)).unwrap();
                assert!(names(&root.join(dir)).is_empty());
                log.end("remove", fs::remove_dir(root.join(dir)));
                fs::create_dir(root.join(dir)).unwrap();
            }
        });
    });
}

/// A name that was moved away, made again and deleted is deleted (fuse-overlayfs 2: the lower file comes back).
#[test]
fn a_name_that_is_deleted_twice_stays_deleted() {
    as_root(|| {
        alike(Setup::default(), usual, |root, log| {
            for dir in ["", "above"] {
                let dir = root.join(dir);
                fs::rename(dir.join("f"), dir.join("f2")).unwrap();
                fs::write(dir.join("f"), "").unwrap();
                fs::remove_file(dir.join("f")).unwrap();
                assert_eq!(fs::read_to_string(dir.join("f2")).unwrap(), "of the layer");
                log.note("names", names(&dir));
            }
        });
    });
}

/// A deleted name takes whatever is made there (fuse-overlayfs 2: EISDIR).
#[test]
fn a_deleted_name_takes_anything() {
    as_root(|| {
        alike(Setup::default(), usual, |root, _| {
            let path = root.join("f");
            for _ in 0..2 {
                fs::remove_file(&path).unwrap();
                symlink("to", &path).unwrap();
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                fs::remove_dir(&path).unwrap();
                File::create_new(&path).unwrap();
            }
        });
    });
}

/// Whatever took a directory's place meanwhile, made again it is empty (fuse-backend-rs: what it held comes back).
#[test]
fn a_directory_that_was_a_file_is_empty() {
    as_root(|| {
        alike(Setup::default(), usual, |root, _| {
            for dir in ["d", "above/d"] {
                let path = root.join(dir);
                fs::remove_dir_all(&path).unwrap();
                fs::create_dir(&path).unwrap();
                fs::remove_dir(&path).unwrap();
                fs::write(&path, "").unwrap();
                fs::remove_file(&path).unwrap();
                fs::create_dir(&path).unwrap();
                assert!(names(&path).is_empty());
            }
        });
    });
}

/// A file that is saved by moving a new one over it, and a repository, as programs do it (fuse-backend-rs: EXDEV).
#[test]
fn programs_replace_files_by_renaming() {
    let git = |root: &Path, arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(root).args(["-c", "user.name=n", "-c", "user.email=e"]);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        run(command.args(arguments)).ok().text()
    };
    as_root(move || {
        if !require_command("git", "git") {
            return;
        }
        for data in Data::ALL {
            let scratch = Scratch::new();
            let pair = Pair::new(&scratch, Setup { data, ..Setup::default() }, |layers| {
                usual(layers);
                git(&layers.lowers[0], &["init", "-q", "-b", "main"]);
                git(&layers.lowers[0], &["add", "f"]);
                git(&layers.lowers[0], &["commit", "-q", "-m", "first"]);
            });
            let root = pair.subject();
            let ran = |arguments: &[&str]| git(root, arguments);
            fs::write(root.join("f"), "changed").unwrap();
            assert_eq!(ran(&["diff", "--name-only"]), "f");
            ran(&["add", "-A"]);
            ran(&["commit", "-q", "-m", "second"]);
            ran(&["mv", "d/a", "f2"]);
            ran(&["commit", "-q", "-m", "third"]);
            ran(&["gc", "-q"]);
            ran(&["checkout", "-q", "HEAD~2"]);
            assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "of the layer");
            ran(&["checkout", "-q", "main"]);
            assert_eq!(ran(&["status", "--porcelain"]), "");
            ran(&["fsck", "--strict"]);
            assert_eq!(ran(&["rev-list", "--count", "HEAD"]), "3");
            pair.assert_seen_by_the_kernel();
        }
    });
}

/// What a killed process left in the work directory is gone, and in nobody's way (fuse-overlayfs 2: what it left is
/// taken for the copy).
#[test]
fn what_is_left_in_work_is_thrown_away() {
    as_root(|| {
        let scratch = Scratch::new();
        let fill = |layers: &Layers| fs::write(layers.lowers[0].join("f"), "short").unwrap();
        let work = scratch.join("layers/subject-work");
        let pair = Pair::with_work(&scratch, Setup::default(), fill, |work| {
            fs::create_dir(work.join("work")).unwrap();
            for name in (0..30).map(|number| format!("#{number:x}")) {
                fs::write(work.join("work").join(&name), "left").unwrap();
            }
            fs::create_dir(work.join("work/dir")).unwrap();
            fs::write(work.join("work/dir/file"), "left").unwrap();
        });
        let left = names(&work.join("work"));
        assert!(left.is_empty(), "{left:?}");
        for root in [pair.oracle(), pair.subject()] {
            let mut file = OpenOptions::new().append(true).open(root.join("f")).unwrap();
            file.write_all(b"+").unwrap();
            assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "short+");
        }
        pair.assert_same(&[]);
        pair.assert_interchangeable(&[]);
    });
}

/// A file of which the upper has only the metadata is refused, never read as zeros (all three).
#[test]
fn a_file_without_its_data_is_no_zeros() {
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |layers| {
            fs::write(layers.lowers[0].join("f"), "DATA!").unwrap();
            fs::write(layers.upper.join("f"), [0; 5]).unwrap();
            xattr::set(layers.upper.join("f"), "trusted.overlay.metacopy", b"").unwrap();
        });
        let path = pair.subject().join("f");
        for refused in [
            fs::read(&path).map(drop),
            OpenOptions::new().append(true).open(&path).map(drop),
            fs::hard_link(&path, path.with_file_name("link")),
            fs::rename(&path, path.with_file_name("moved")),
        ] {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(nix::libc::EPERM));
        }
    });
}

/// A lower file that nobody may change is not changed (fuse-overlayfs 1 and 2, fuse-backend-rs: it is).
#[test]
fn an_immutable_lower_file_stays() {
    const IMMUTABLE: rustix::fs::IFlags = rustix::fs::IFlags::IMMUTABLE;
    let set = |path: &Path, flags| {
        rustix::fs::ioctl_setflags(File::open(path).unwrap(), flags).unwrap();
    };
    as_root(move || {
        let scratch = Scratch::new();
        let setup = Setup { on_disk: true, ..Setup::default() };
        let pair = Pair::new(&scratch, setup, |layers| {
            usual(layers);
            let extents =
                rustix::fs::ioctl_getflags(File::open(layers.lowers[0].join("f")).unwrap());
            set(&layers.lowers[0].join("f"), extents.unwrap() | IMMUTABLE);
            set(&layers.lowers[0].join("above/d"), extents.unwrap() | IMMUTABLE);
        });
        let tried = |root: &Path| {
            let (file, dir) = (root.join("f"), root.join("above/d"));
            [
                OpenOptions::new().append(true).open(&file).map(drop),
                fs::remove_file(&file),
                fs::rename(&file, root.join("moved")),
                fs::hard_link(&file, root.join("link")),
                fs::write(dir.join("new"), ""),
                fs::remove_file(dir.join("a")),
                fs::remove_dir(&dir),
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)),
            ]
            .map(|tried| tried.map_err(|error| error.raw_os_error().unwrap()))
        };
        let [expected, found] = [pair.oracle(), pair.subject()].map(tried);
        for lower in ["f", "above/d"].map(|name| scratch.join("layers/lower-0").join(name)) {
            let flags = rustix::fs::ioctl_getflags(File::open(&lower).unwrap()).unwrap();
            set(&lower, flags - IMMUTABLE);
        }
        assert_eq!(found, expected);
        assert!(found.iter().all(|tried| *tried == Err(nix::libc::EPERM)), "{found:?}");
    });
}

/// While a big file is copied up, everybody else goes on, also in its directory (fuse-overlayfs 1 and 2: all wait).
#[test]
fn nobody_waits_for_the_copy_of_another_file() {
    const SIZE: u64 = 512 << 20;
    as_root(|| {
        let scratch = Scratch::new();
        let setup = Setup { on_disk: true, ..Setup::default() };
        let pair = Pair::new(&scratch, setup, |layers| {
            usual(layers);
            let file = File::create(layers.lowers[0].join("big")).unwrap();
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE).unwrap();
        });
        let (root, copied) = (pair.subject(), AtomicBool::new(false));
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                OpenOptions::new().append(true).open(root.join("big")).unwrap();
                copied.store(true, Ordering::Release);
            });
            let mut done = 0;
            while !copied.load(Ordering::Acquire) {
                let path = root.join(format!("new-{done}"));
                fs::write(&path, "new").unwrap();
                fs::rename(&path, root.join("renamed")).unwrap();
                names(root);
                assert_eq!(fs::metadata(root.join("big")).unwrap().len(), SIZE);
                done += 1;
            }
            done
        });
        assert!(done > 10, "only {done} rounds during the copy");
    });
}

/// Files that are written over, longer and shorter, by cutting them or in place, and a database with pages written
/// anywhere, hold what was written, also after the next mount (fuse-overlayfs 1: old content is reported).
#[test]
fn files_that_are_written_over_hold_what_was_written() {
    const PAGE: u64 = 4096;
    const PAGES: u64 = 2048;
    let fill = |layers: &Layers| {
        for number in 0..200 {
            let old = format!("old {number} ").repeat(number * 10);
            fs::write(layers.lowers[0].join(format!("{number}")), old).unwrap();
        }
        let pages: Vec<_> = (0..PAGES * PAGE).map(|at| (at / PAGE % 251) as u8).collect();
        fs::write(layers.lowers[0].join("database"), pages).unwrap();
    };
    let act = |root: &Path, _: &mut Log| {
        let mut random = Random::new(1);
        for number in 0..200 {
            let path = root.join(format!("{number}"));
            let new = format!("new {number} ").repeat(random.below(2000));
            let mut options = OpenOptions::new();
            let cuts = number % 2 == 0;
            let mut file = options.write(true).truncate(cuts).open(&path).unwrap();
            file.write_all(new.as_bytes()).unwrap();
            drop(file);
            assert!(fs::read(&path).unwrap().starts_with(new.as_bytes()));
        }
        let database = OpenOptions::new().read(true).write(true).open(root.join("database"));
        let database = database.unwrap();
        for number in 0..3000_u32 {
            let at = random.below(usize::try_from(PAGES).unwrap()) as u64 * PAGE;
            let page = number.to_le_bytes().repeat(1024);
            database.write_all_at(&page, at).unwrap();
            let mut found = vec![0; page.len()];
            database.read_exact_at(&mut found, at).unwrap();
            assert!(found == page);
            if number % 1000 == 0 {
                database.sync_all().unwrap();
            }
        }
    };
    as_root(move || alike_in_every_mode(Setup::default(), fill, act));
}

/// An archive of a tree that nobody changes notices no change, also of what was just copied up (fuse-overlayfs 1:
/// "file changed as we read it").
#[test]
fn nothing_changes_while_it_is_archived() {
    as_root(|| {
        for data in Data::ALL {
            let scratch = Scratch::new();
            let pair = Pair::new(&scratch, Setup { data, ..Setup::default() }, usual);
            let root = pair.subject();
            let seen = |when: &str| {
                let archive = scratch.join("archive");
                let mut tar = Command::new("tar");
                let output = run(tar.arg("-cf").arg(&archive).arg("-C").arg(root).arg(".")).ok();
                assert_eq!(output.errors(), "", "{when}, {data:?}");
                let output = run(Command::new("tar").arg("-df").arg(&archive).arg("-C").arg(root));
                assert_eq!(output.ok().text(), "", "{when}, {data:?}");
            };
            seen("first");
            OpenOptions::new().append(true).open(root.join("d/e/b")).unwrap();
            seen("copied up");
            fs::write(root.join("d/e/b"), "new").unwrap();
            fs::rename(root.join("f"), root.join("d/f")).unwrap();
            seen("changed");
        }
    });
}

/// Two names of one lower file are still two names of one file when it has been copied up, also after the next mount
/// (fuse-overlayfs 2: until the next mount; fuse-backend-rs: not at all; the kernel: only with `index=on`).
#[test]
#[ignore = "links are kept in memory only, so after the next mount the names are two files"]
fn names_of_one_lower_file_stay_together() {
    as_root(|| {
        let scratch = Scratch::new();
        let pair = Pair::new(&scratch, Setup::default(), |layers| {
            fs::write(layers.lowers[0].join("a"), "of the layer").unwrap();
            fs::hard_link(layers.lowers[0].join("a"), layers.lowers[0].join("b")).unwrap();
        });
        let seen = |root: &Path| {
            let [a, b] = ["a", "b"].map(|name| fs::metadata(root.join(name)).unwrap());
            assert_eq!((a.ino(), a.nlink(), a.len()), (b.ino(), 2, b.len()));
            assert_eq!(fs::read(root.join("a")).unwrap(), fs::read(root.join("b")).unwrap());
            a.ino()
        };
        let number = seen(pair.subject());
        fs::write(pair.subject().join("a"), "changed").unwrap();
        assert_eq!(seen(pair.subject()), number);
        let pair = pair.mounted_again();
        assert_eq!(seen(pair.subject()), number);
    });
}
