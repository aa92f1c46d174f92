//! What makes a lower file lie in the upper changes nothing else of it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use overstream_fuse::Format;
use overstream_testkit::Scratch;
use overstream_testkit::facts::{self, Facts};
use rustix::fs::FallocateFlags;

use super::both::{Log, alike};
use super::frame::as_root;
use super::pair::{Layers, Pair, Setup};
use super::sample::{CONTENT, Kind, make, set_times};

/// Something that makes a file lie in the upper.
#[derive(Clone, Copy)]
struct Trigger {
    name: &'static str,
    /// Which types of file it is for.
    kinds: &'static [Kind],
    run: fn(&Path),
    /// What it changes, by whatever is on the file.
    changes: &'static [&'static str],
}

const ALL: &[Kind] = &Kind::ALL;
const FILE: &[Kind] = &[Kind::File];
const NO_DIRECTORY: &[Kind] =
    &[Kind::File, Kind::Symlink, Kind::Fifo, Kind::CharDevice, Kind::BlockDevice, Kind::Socket];
const NO_SYMLINK: &[Kind] =
    &[Kind::File, Kind::Directory, Kind::Fifo, Kind::CharDevice, Kind::BlockDevice, Kind::Socket];

/// Where a file is moved or linked to.
const OTHER_NAME: &str = "other-name";

const TRIGGERS: &[Trigger] = &[
    // A mode is also the mask of the access control list.
    Trigger { name: "chmod", kinds: NO_SYMLINK, changes: &["mode", "xattrs"], run: chmod },
    // A new owner takes setuid and capabilities away.
    Trigger { name: "chown", kinds: ALL, changes: &["owner", "mode", "xattrs"], run: chown },
    Trigger { name: "chgrp", kinds: ALL, changes: &["owner", "mode", "xattrs"], run: chgrp },
    Trigger { name: "utimens", kinds: ALL, changes: &["modified"], run: utimens },
    Trigger { name: "setxattr", kinds: ALL, changes: &["xattrs"], run: setxattr },
    Trigger { name: "removexattr", kinds: ALL, changes: &["xattrs"], run: removexattr },
    Trigger { name: "link", kinds: NO_DIRECTORY, changes: &["links"], run: link },
    Trigger { name: "rename", kinds: NO_DIRECTORY, changes: &[], run: rename },
    Trigger { name: "open", kinds: FILE, changes: &[], run: open },
    Trigger { name: "append", kinds: FILE, changes: DATA, run: append },
    Trigger { name: "cut", kinds: FILE, changes: DATA, run: cut },
    Trigger { name: "truncate-less", kinds: FILE, changes: DATA, run: |path| truncate(path, 5) },
    Trigger { name: "truncate-more", kinds: FILE, changes: DATA, run: |path| truncate(path, 9999) },
    Trigger { name: "truncate-same", kinds: FILE, changes: DATA, run: truncate_same },
    Trigger { name: "fallocate", kinds: FILE, changes: DATA, run: fallocate },
    Trigger { name: "create", kinds: &[Kind::Directory], changes: INSIDE, run: create_in },
    Trigger { name: "remove", kinds: &[Kind::Directory], changes: INSIDE, run: remove_in },
    Trigger { name: "touch", kinds: &[Kind::Directory], changes: &["links"], run: touch_in },
];

/// Writing takes capabilities away, even if root does it.
const DATA: &[&str] = &["size", "content", "modified", "xattrs"];
/// A merged directory has 1 link.
const INSIDE: &[&str] = &["size", "listing", "modified", "links"];

fn chmod(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
}

fn chown(path: &Path) {
    lchown(path, Some(77), None).unwrap();
}

fn chgrp(path: &Path) {
    lchown(path, None, Some(77)).unwrap();
}

fn utimens(path: &Path) {
    set_times(path, (-2_000_000_000, 1));
}

fn setxattr(path: &Path) {
    xattr::set(path, "trusted.new", b"new").unwrap();
}

fn removexattr(path: &Path) {
    xattr::remove(path, "trusted.kept").unwrap();
}

fn link(path: &Path) {
    fs::hard_link(path, path.with_file_name(OTHER_NAME)).unwrap();
}

fn rename(path: &Path) {
    fs::rename(path, path.with_file_name(OTHER_NAME)).unwrap();
}

fn open(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap();
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"and more").unwrap();
}

fn cut(path: &Path) {
    OpenOptions::new().write(true).truncate(true).open(path).unwrap();
}

fn truncate(path: &Path, length: i64) {
    nix::unistd::truncate(path, length).unwrap();
}

fn truncate_same(path: &Path) {
    truncate(path, CONTENT.len().try_into().unwrap());
}

fn fallocate(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    rustix::fs::fallocate(file, FallocateFlags::empty(), 4000, 8000).unwrap();
}

fn create_in(path: &Path) {
    fs::create_dir(path.join("new")).unwrap();
}

fn remove_in(path: &Path) {
    fs::remove_file(path.join("child")).unwrap();
}

fn touch_in(path: &Path) {
    set_times(&path.join("child"), (1, 1));
}

/// A file that is to be copied up, in two directories of its own.
struct Case {
    kind: Kind,
    trigger: &'static Trigger,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let cases = |kind| TRIGGERS.iter().map(move |trigger| Self { kind, trigger });
        let all = Kind::ALL.into_iter().flat_map(cases);
        all.filter(|case| case.trigger.kinds.contains(&case.kind))
    }

    fn make(&self, lower: &Path) {
        let path = self.path(lower);
        let above = path.parent().unwrap();
        fs::create_dir_all(above).unwrap();
        make(self.kind, &path);
        set_times(above, (-1, 999_999_999));
        set_times(above.parent().unwrap(), (0, 1));
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.join(format!("{:?}-{}", self.kind, self.trigger.name)).join("above/file")
    }

    /// Triggers it, and writes down what has changed.
    fn run(&self, root: &Path, log: &mut Log) {
        let path = self.path(root);
        let above: Vec<_> = path.ancestors().skip(1).take(2).map(Path::to_owned).collect();
        let before = facts::of(&path).unwrap();
        let above_before: Vec<_> = above.iter().map(|path| facts::of(path).unwrap()).collect();
        (self.trigger.run)(&path);
        let moved = path.with_file_name(OTHER_NAME);
        let now = if self.trigger.name == "rename" { &moved } else { &path };
        let found = changes(&before, &facts::of(now).unwrap());
        let is_expected = |change: &&str| {
            let expected = self.trigger.changes.contains(change) || *change == "changed";
            expected || self.kind == Kind::Directory && *change == "links"
        };
        assert!(found.iter().all(is_expected), "{}: {found:?}", path.display());
        log.note(now.strip_prefix(root).unwrap().to_string_lossy(), found);
        let in_above = ["rename", "link"].contains(&self.trigger.name);
        for (path, before) in above.iter().zip(&above_before) {
            let mut found = changes(before, &facts::of(path).unwrap());
            log.note(path.strip_prefix(root).unwrap().to_string_lossy(), &found);
            found.retain(|change| !["changed", "links"].contains(change));
            assert!(found.is_empty() || in_above, "{}: {found:?}", path.display());
        }
    }
}

/// Names what differs; not how many blocks are allocated, which is the file system's affair.
fn changes(before: &Facts, after: &Facts) -> BTreeSet<&'static str> {
    let is_directory = before.mode & 0o170_000 == 0o040_000;
    [
        ("ino", before.ino != after.ino),
        ("mode", before.mode != after.mode),
        ("links", before.links != after.links),
        ("owner", before.owner != after.owner),
        ("device", before.device != after.device),
        ("size", !is_directory && before.size != after.size),
        ("modified", before.modified != after.modified),
        ("changed", before.changed != after.changed),
        ("xattrs", before.xattrs != after.xattrs),
        ("content", before.content != after.content),
        ("listing", before.listing != after.listing),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

fn every_case(setup: Setup) {
    // Where there is no place for the origin, the kernel gives two names of one file two numbers.
    let has_origin = |kind| [Kind::File, Kind::Directory].contains(&kind);
    let is_right = |case: &Case| {
        setup.format == Format::Trusted || case.trigger.name != "link" || has_origin(case.kind)
    };
    let cases = || Case::all().filter(is_right);
    let fill = |layers: &Layers| cases().for_each(|case| case.make(&layers.lowers[0]));
    alike(setup, fill, |root, log| cases().for_each(|case| case.run(root, log)));
}

/// Whatever makes a file of whatever type lie in the upper, its number, and all that the caller did not ask to be
/// changed, stays; so do the times of the directories above.
#[test]
fn a_copy_keeps_all_that_its_trigger_does_not_change() {
    as_root(|| every_case(Setup::default()));
}

/// The same on another file system, with handles of another form.
#[test]
fn a_copy_on_disk_keeps_all_that_its_trigger_does_not_change() {
    as_root(|| every_case(Setup { on_disk: true, ..Setup::default() }));
}

/// The same with marks that need no privilege.
#[test]
fn a_copy_with_user_marks_keeps_all_that_its_trigger_does_not_change() {
    as_root(|| every_case(Setup { format: Format::User, ..Setup::default() }));
}

const MIB: u64 = 1 << 20;

/// A copy has holes where the lower file has them.
#[test]
fn holes_stay_holes() {
    as_root(|| {
        let scratch = Scratch::new();
        let setup = Setup { on_disk: true, ..Setup::default() };
        let pair = Pair::new(&scratch, setup, |layers| {
            let file = File::create(layers.lowers[0].join("holes")).unwrap();
            file.set_len(64 * MIB).unwrap();
            for at in [0, 20 * MIB + 5000, 40 * MIB] {
                file.write_all_at(b"data", at).unwrap();
            }
            let file = File::create(layers.lowers[0].join("hole")).unwrap();
            file.set_len(64 * MIB).unwrap();
        });
        for name in ["holes", "hole"] {
            append(&pair.subject().join(name));
            append(&pair.oracle().join(name));
            let [expected, found] =
                [pair.oracle(), pair.subject()].map(|root| fs::read(root.join(name)).unwrap());
            assert!(expected == found);
            let upper = fs::metadata(pair.subject_upper().join(name)).unwrap();
            let seen = fs::metadata(pair.subject().join(name)).unwrap();
            assert_eq!(upper.blocks(), seen.blocks());
            assert!(upper.blocks() * 512 < MIB / 8, "{name}: {} blocks", upper.blocks());
        }
    });
}

/// Data that nobody will see again are not copied: those of a file that is deleted, replaced or cut.
#[test]
fn data_that_go_away_are_not_copied() {
    as_root(|| {
        let scratch = Scratch::new();
        let setup = Setup { on_disk: true, ..Setup::default() };
        let names = ["unlinked", "replaced", "cut", "cut-to-nothing", "cut-short", "created"];
        let pair = Pair::new(&scratch, setup, |layers| {
            for name in names {
                let file = File::create(layers.lowers[0].join(name)).unwrap();
                let whole = FallocateFlags::empty();
                rustix::fs::fallocate(&file, whole, 0, 256 * MIB).unwrap();
                file.write_all_at(b"data", 0).unwrap();
            }
        });
        let [root, upper] = [pair.subject(), pair.subject_upper()];
        fs::remove_file(root.join("unlinked")).unwrap();
        fs::write(root.join("new"), "new").unwrap();
        fs::rename(root.join("new"), root.join("replaced")).unwrap();
        cut(&root.join("cut"));
        truncate(&root.join("cut-to-nothing"), 0);
        truncate(&root.join("cut-short"), 4);
        fs::write(root.join("created"), "created").unwrap();
        let content = names.map(|name| fs::read_to_string(root.join(name)).ok());
        let expected = [None, Some("new"), Some(""), Some(""), Some("data"), Some("created")];
        assert_eq!(content.each_ref().map(Option::as_deref), expected);
        let blocks: u64 =
            names.map(|name| fs::symlink_metadata(upper.join(name)).unwrap().blocks()).iter().sum();
        assert!(blocks * 512 < MIB / 8, "{blocks} blocks");
    });
}
