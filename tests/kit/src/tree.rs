//! Compares directory trees as containerd's conformance tests do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use sha2::{Digest, Sha256};

/// Differences shown before the rest is only counted.
const SHOWN: usize = 20;

/// Everything below a directory, by path relative to it; the directory itself does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

/// What the comparison looks at; times and extended attributes are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type, with what only this type has.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Type of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// SHA-256 of the content, in hex.
        content: String,
        /// All paths in the tree that name the same file, if there are several.
        links: Vec<PathBuf>,
    },
    /// A symbolic link and its target.
    Symlink(OsString),
    /// A character device: major and minor number.
    CharDevice(u64, u64),
    /// A block device: major and minor number.
    BlockDevice(u64, u64),
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl Tree {
    /// Reads the tree below `directory`, without what is mounted in it; panics if it cannot.
    #[track_caller]
    pub fn read(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        Self::try_read(directory)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", directory.display()))
    }

    /// Reads the tree below `directory`, without what is mounted in it.
    pub fn try_read(directory: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        let mut names = BTreeMap::new();
        tree.add(directory, Path::new(""), &mut names)?;
        tree.link(names);
        Ok(tree)
    }

    /// Makes a tree of entries in which regular files with the same number are the same file.
    pub(crate) fn from_numbered(entries: BTreeMap<PathBuf, (Entry, Option<u64>)>) -> Self {
        let mut names: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        let mut tree = Self::default();
        for (path, (entry, number)) in entries {
            if let Some(number) = number {
                names.entry(number).or_default().push(path.clone());
            }
            tree.entries.insert(path, entry);
        }
        tree.link(names);
        tree
    }

    /// Returns the tree with only the entries to `keep`.
    pub(crate) fn filtered(&self, keep: impl Fn(&PathBuf) -> bool) -> Self {
        let entries = self.entries.iter().filter(|(path, _)| keep(path));
        Self { entries: entries.map(|(path, entry)| (path.clone(), entry.clone())).collect() }
    }

    /// Returns the entries by path.
    pub fn entries(&self) -> &BTreeMap<PathBuf, Entry> {
        &self.entries
    }

    /// Describes how `other` differs from this tree; `None` if it does not.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let paths: std::collections::BTreeSet<_> =
            self.entries.keys().chain(other.entries.keys()).collect();
        let lines: Vec<String> = paths
            .into_iter()
            .filter_map(|path| difference(path, self.entries.get(path), other.entries.get(path)))
            .collect();
        let mut text = lines.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
        if lines.len() > SHOWN {
            write!(text, "\nand {} more", lines.len() - SHOWN).expect("write to a string");
        }
        Some(text).filter(|_| !lines.is_empty())
    }

    /// Panics with the differences if there are any.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        if let Some(difference) = self.difference(other) {
            panic!("{what}: trees differ (- expected, + found)\n{difference}");
        }
    }

    fn add(
        &mut self,
        root: &Path,
        below: &Path,
        names: &mut BTreeMap<(u64, u64), Vec<PathBuf>>,
    ) -> io::Result<()> {
        let device = fs::metadata(root.join(below))?.dev();
        for entry in fs::read_dir(root.join(below))? {
            let path = below.join(entry?.file_name());
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full)?;
            let kind = kind(&full, &meta)?;
            if meta.is_dir() {
                // On overlay only directories are sure to tell the mount's own device number.
                if meta.dev() == device {
                    self.add(root, &path, names)?;
                }
            } else if meta.is_file() && meta.nlink() > 1 {
                names.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
            }
            let (uid, gid) = (meta.uid(), meta.gid());
            self.entries.insert(path, Entry { kind, mode: meta.mode() & 0o7777, uid, gid });
        }
        Ok(())
    }

    fn link<T>(&mut self, names: BTreeMap<T, Vec<PathBuf>>) {
        for mut paths in names.into_values().filter(|paths| paths.len() > 1) {
            paths.sort();
            for path in &paths {
                if let Some(Entry { kind: Kind::File { links, .. }, .. }) =
                    self.entries.get_mut(path)
                {
                    links.clone_from(&paths);
                }
            }
        }
    }
}

fn kind(path: &Path, meta: &fs::Metadata) -> io::Result<Kind> {
    let device = (major(meta.rdev()), minor(meta.rdev()));
    let kind = meta.file_type();
    Ok(if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path)?.into_os_string())
    } else if kind.is_char_device() {
        Kind::CharDevice(device.0, device.1)
    } else if kind.is_block_device() {
        Kind::BlockDevice(device.0, device.1)
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File { size: meta.len(), content: sha256(&fs::read(path)?), links: Vec::new() }
    })
}

/// Returns the SHA-256 of some bytes in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("write to a string");
        hex
    })
}

fn difference(path: &Path, expected: Option<&Entry>, found: Option<&Entry>) -> Option<String> {
    let line = |sign, entry: &Entry| format!("{sign} {}: {}", path.display(), describe(entry));
    match (expected, found) {
        (Some(expected), Some(found)) if expected == found => None,
        (Some(expected), Some(found)) => Some(line('-', expected) + "\n" + &line('+', found)),
        (Some(expected), None) => Some(line('-', expected)),
        (None, Some(found)) => Some(line('+', found)),
        (None, None) => None,
    }
}

fn describe(entry: &Entry) -> String {
    let kind = match &entry.kind {
        Kind::File { size, content, links } => {
            let links = if links.is_empty() { String::new() } else { format!(", links {links:?}") };
            format!("file of {size} bytes, sha256 {}{links}", &content[..12])
        }
        other => format!("{other:?}"),
    };
    format!("{kind}, mode {:04o}, owner {}:{}", entry.mode, entry.uid, entry.gid)
}
