//! All that can be seen of a directory tree, from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

/// Differing files that are shown before the rest is only counted.
const SHOWN: usize = 5;

/// What there is to know of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Inode number.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links.
    pub links: u64,
    /// User and group.
    pub owner: (u32, u32),
    /// Number of a device.
    pub device: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Time of the last change of its content: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Time of the last change of anything.
    pub changed: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Content of a file, target of a symlink.
    pub content: Vec<u8>,
    /// Names, numbers and types in a directory, `..` left out.
    pub listing: BTreeSet<(OsString, u64, u32)>,
}

/// Every file by path, or the error that looking it up gave.
pub type Tree = BTreeMap<PathBuf, Result<Facts, i32>>;

/// Reads a tree; looks for the names in `also` at its top, listed or not.
pub fn read(root: &Path, also: &[String]) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    todo.extend(also.iter().map(PathBuf::from));
    while let Some(path) = todo.pop() {
        if tree.contains_key(&path) {
            continue;
        }
        let facts = of(&root.join(&path)).map(|mut facts| {
            // The kernel lists a whiteout in a directory that is not merged, but does not find it.
            let there = |name: &OsStr| fs::symlink_metadata(root.join(&path).join(name)).is_ok();
            facts.listing.retain(|(name, ..)| there(name));
            todo.extend(facts.names().map(|name| path.join(name)));
            facts
        });
        tree.insert(path, facts.map_err(|error| error.raw_os_error().expect("a system error")));
    }
    tree
}

/// Panics with the first differences, if there are any.
#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree) {
    if let Some(differences) = differences(expected, found) {
        panic!("{differences}");
    }
}

/// Describes how `found` differs from `expected`: the first few files, and how many there are.
pub fn differences(expected: &Tree, found: &Tree) -> Option<String> {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != found.get(*path));
    let differ: Vec<_> = differ.collect();
    let shown = differ.iter().take(SHOWN).map(|path| {
        let (expected, found) = (describe(expected.get(*path)), describe(found.get(*path)));
        let only = |sign, one: &[String], other: &[String]| {
            let lines = one.iter().filter(|line| !other.contains(line));
            lines.map(|line| format!("\n{sign} {line}")).collect::<String>()
        };
        let changes = only('-', &expected, &found) + &only('+', &found, &expected);
        format!("{}:{changes}", path.display())
    });
    let shown = shown.collect::<Vec<_>>().join("\n");
    (!differ.is_empty()).then(|| format!("{} differences\n{shown}", differ.len()))
}

/// Describes a file line by line.
fn describe(file: Option<&Result<Facts, i32>>) -> Vec<String> {
    let facts = match file {
        None => return vec!["not listed".to_owned()],
        Some(Err(error)) => return vec![io::Error::from_raw_os_error(*error).to_string()],
        Some(Ok(facts)) => facts,
    };
    let mut lines = vec![
        format!("ino {}", facts.ino),
        format!("mode {:o}", facts.mode),
        format!("links {}", facts.links),
        format!("owner {:?}", facts.owner),
        format!("device {}", facts.device),
        format!("size {}", facts.size),
        format!("blocks {}", facts.blocks),
        format!("modified {:?}", facts.modified),
        format!("changed {:?}", facts.changed),
        format!("content {:?}", facts.content.escape_ascii().to_string()),
    ];
    let xattrs = facts.xattrs.iter();
    lines.extend(xattrs.map(|(name, value)| format!("{name:?} {}", value.escape_ascii())));
    lines.extend(facts.listing.iter().map(|entry| format!("lists {entry:?}")));
    lines
}

impl Facts {
    /// Returns the names in a directory.
    pub fn names(&self) -> impl Iterator<Item = &OsStr> {
        let names = self.listing.iter().map(|(name, ..)| name.as_os_str());
        names.filter(|name| *name != ".")
    }
}

/// Reads the facts of one file; a symlink is not followed.
pub fn of(path: &Path) -> io::Result<Facts> {
    let meta = fs::symlink_metadata(path)?;
    let content = match meta.file_type() {
        kind if kind.is_file() => fs::read(path)?,
        kind if kind.is_symlink() => fs::read_link(path)?.into_os_string().into_vec(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.expect("the value of a listed attribute");
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
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).expect("open a directory");
    let mut dir = rustix::fs::Dir::new(fd).expect("list a directory");
    let mut names = BTreeSet::new();
    while let Some(entry) = dir.read() {
        let entry = entry.expect("list a directory");
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        let kind = entry.file_type().as_raw_mode();
        assert!(names.insert((name, entry.ino(), kind)), "twice in {path:?}: {entry:?}");
    }
    // In some merged directories the kernel gives the number that `..` has in a layer, not in the view.
    names.retain(|(name, ..)| name != "..");
    names
}
