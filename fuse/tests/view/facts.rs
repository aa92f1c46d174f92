//! All that can be seen of a tree, from outside and from the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use overstream_fuse::layer::{Kind, Stat};
use overstream_fuse::{Attr, Error, Ino, Overlay};
use rustix::fs::{CWD, FileType, Mode, OFlags};

/// What there is to know of one file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    ino: u64,
    mode: u32,
    links: u64,
    owner: (u32, u32),
    device: u64,
    size: u64,
    blocks: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Content of a file, target of a symlink.
    content: Vec<u8>,
    /// Names, numbers and types in a directory.
    listing: BTreeSet<(OsString, u64, u32)>,
}

/// Every file by path, or the error that looking it up gave.
pub(super) type Tree = BTreeMap<PathBuf, Result<Facts, i32>>;

impl Facts {
    /// Makes it what a merged directory shows, whose links are not counted.
    pub(super) fn merged(&mut self) {
        self.links = 1;
    }
}

/// Panics with the first differences, if there are any.
#[track_caller]
pub(super) fn assert_same(expected: &Tree, found: &Tree) {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != found.get(*path));
    let differ: Vec<_> = differ.collect();
    let shown = differ.iter().take(5).map(|path| {
        let lines = |tree: &Tree| format!("{:#?}", tree.get(*path));
        let (expected, found) = (lines(expected), lines(found));
        let only = |sign, one: &str, other: &str| {
            let other: BTreeSet<_> = other.lines().collect();
            let lines = one.lines().filter(|line| !other.contains(line));
            lines.map(|line| format!("\n{sign}{line}")).collect::<String>()
        };
        let changes = only('-', &expected, &found) + &only('+', &found, &expected);
        format!("{}:{changes}", path.display())
    });
    let shown: Vec<_> = shown.collect();
    assert!(differ.is_empty(), "{} differences\n{}", differ.len(), shown.join("\n"));
}

/// Reads a mounted tree; looks for the names in `also` at its top, listed or not.
pub(super) fn mounted(root: &Path, also: &[String]) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    todo.extend(also.iter().map(PathBuf::from));
    while let Some(path) = todo.pop() {
        if tree.contains_key(&path) {
            continue;
        }
        let facts = facts(&root.join(&path)).map(|mut facts| {
            // The kernel lists a whiteout in a directory that is not merged, but does not find it.
            let there =
                |name: &OsStr| std::fs::symlink_metadata(root.join(&path).join(name)).is_ok();
            facts.listing.retain(|(name, ..)| there(name));
            facts.listing.retain(not_above);
            todo.extend(below(&path, &facts));
            facts
        });
        tree.insert(path, facts.map_err(|error| error.raw_os_error().unwrap()));
    }
    tree
}

/// Reads the engine's tree likewise.
pub(super) fn of_engine(overlay: &Overlay, also: &[String]) -> Tree {
    let mut tree = Tree::new();
    let root = overlay.attr(Ino::ROOT).map(|attr| (Ino::ROOT, attr));
    let mut todo = vec![(PathBuf::new(), root)];
    let at_top =
        |name: &String| (PathBuf::from(name), looked_up(overlay, Ino::ROOT, name.as_ref()));
    todo.extend(also.iter().map(at_top));
    while let Some((path, found)) = todo.pop() {
        if tree.contains_key(&path) {
            continue;
        }
        let facts = found.and_then(|(ino, attr)| {
            let mut facts = engine_facts(overlay, ino, &attr)?;
            facts.listing.retain(not_above);
            for path in below(&path, &facts) {
                let found = looked_up(overlay, ino, path.file_name().unwrap());
                todo.push((path, found));
            }
            Ok(facts)
        });
        tree.insert(path, facts.map_err(|error| error.errno().raw_os_error()));
    }
    tree
}

/// In some merged directories the kernel gives the number that `..` has in a layer, not in the view.
fn not_above((name, ..): &(OsString, u64, u32)) -> bool {
    name != ".."
}

fn looked_up(overlay: &Overlay, parent: Ino, name: &OsStr) -> Result<(Ino, Attr), Error> {
    overlay.lookup(parent, name).map(|attr| (attr.ino, attr))
}

fn below(path: &Path, facts: &Facts) -> Vec<PathBuf> {
    let names = facts.listing.iter().map(|(name, ..)| name);
    names.filter(|name| *name != "." && *name != "..").map(|name| path.join(name)).collect()
}

fn facts(path: &Path) -> std::io::Result<Facts> {
    let meta = std::fs::symlink_metadata(path)?;
    let content = match meta.file_type() {
        kind if kind.is_file() => std::fs::read(path)?,
        kind if kind.is_symlink() => std::fs::read_link(path)?.into_os_string().into_vec(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap();
        xattrs.insert(name, value);
    }
    Ok(Facts {
        ino: meta.ino(),
        mode: meta.mode(),
        links: meta.nlink(),
        owner: (meta.uid(), meta.gid()),
        device: meta.rdev(),
        size: meta.size(),
        blocks: meta.blocks(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
        xattrs,
        content,
        listing: if meta.is_dir() { listing(path) } else { BTreeSet::new() },
    })
}

fn listing(path: &Path) -> BTreeSet<(OsString, u64, u32)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).unwrap();
    let mut dir = rustix::fs::Dir::new(fd).unwrap();
    let mut names = BTreeSet::new();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        let kind = entry.file_type().as_raw_mode();
        assert!(names.insert((name, entry.ino(), kind)), "twice in {path:?}: {entry:?}");
    }
    names
}

fn engine_facts(overlay: &Overlay, ino: Ino, attr: &Attr) -> Result<Facts, Error> {
    let Stat { kind, mode, links, uid, gid, device, size, blocks, modified, changed, .. } =
        attr.stat;
    let content = match kind {
        Kind::File => {
            let handle = overlay.open(ino)?;
            let content = overlay.read(handle, 0, 1 << 20)?;
            overlay.release(handle);
            content
        }
        Kind::Symlink => overlay.read_link(ino)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    let names = overlay.xattrs(ino, true)?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        xattrs.insert(name.to_owned(), overlay.xattr(ino, name)?);
    }
    let mut listing = BTreeSet::new();
    if kind == Kind::Directory {
        let handle = overlay.open_dir(ino)?;
        overlay.read_dir(handle, 0, |name, ino, kind, _| {
            listing.insert((name.to_owned(), ino.0, type_bits(kind)));
            ControlFlow::Continue(())
        })?;
        overlay.release_dir(handle);
    }
    Ok(Facts {
        ino: attr.ino.0,
        mode: type_bits(kind) | u32::from(mode),
        links: links.into(),
        owner: (uid, gid),
        device: rustix::fs::makedev(device.0, device.1),
        size,
        blocks,
        modified: (modified.seconds, modified.nanoseconds.into()),
        changed: (changed.seconds, changed.nanoseconds.into()),
        xattrs,
        content,
        listing,
    })
}

fn type_bits(kind: Kind) -> u32 {
    let file_type = match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    file_type.as_raw_mode()
}
