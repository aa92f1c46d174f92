//! One layer of an image: the entries of its tar archive, in order.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Time stamp of entries that do not set one, so that equal layers have equal digests.
const TIME: u64 = 1_700_000_000;

/// A layer under construction. What changes an entry changes the last one added.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    pub(super) entries: Vec<Entry>,
}

/// An entry of a layer's archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) content: Content,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u64,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// What an entry makes, or unmakes.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Directory,
    File(Vec<u8>),
    Symlink(OsString),
    HardLink(PathBuf),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// Deletes the path from the layers below.
    Whiteout,
    /// Deletes what is in the directory from the layers below.
    Opaque,
}

impl Layer {
    /// Adds a directory, mode 0755.
    pub fn dir(self, path: impl AsRef<Path>) -> Self {
        self.add(path, Content::Directory).mode(0o755)
    }

    /// Adds several directories, mode 0755.
    pub fn dirs(self, paths: &[&str]) -> Self {
        paths.iter().fold(self, |layer, path| layer.dir(path))
    }

    /// Adds a regular file, mode 0644.
    pub fn file(self, path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Self {
        self.add(path, Content::File(content.into()))
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: impl AsRef<Path>, target: impl AsRef<OsStr>) -> Self {
        self.add(path, Content::Symlink(target.as_ref().to_owned())).mode(0o777)
    }

    /// Adds another name for a file of the same layer.
    pub fn hardlink(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.add(path, Content::HardLink(target.as_ref().to_owned()))
    }

    /// Adds a character device.
    pub fn device(self, path: impl AsRef<Path>, major: u32, minor: u32) -> Self {
        self.add(path, Content::CharDevice(major, minor))
    }

    /// Adds a block device.
    pub fn block_device(self, path: impl AsRef<Path>, major: u32, minor: u32) -> Self {
        self.add(path, Content::BlockDevice(major, minor))
    }

    /// Adds a named pipe.
    pub fn fifo(self, path: impl AsRef<Path>) -> Self {
        self.add(path, Content::Fifo)
    }

    /// Deletes what the layers below have at a path.
    pub fn whiteout(self, path: impl AsRef<Path>) -> Self {
        self.add(path, Content::Whiteout)
    }

    /// Adds a directory, mode 0755, that hides what the layers below have in it.
    pub fn opaque(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        self.add(path, Content::Opaque).dir(path)
    }

    /// Sets the permission bits of the last entry.
    pub fn mode(mut self, mode: u32) -> Self {
        self.last().mode = mode;
        self
    }

    /// Sets the owner and group of the last entry.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.last().uid, self.last().gid) = (uid, gid);
        self
    }

    /// Sets the time stamp of the last entry, in seconds since 1970.
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.last().mtime = seconds;
        self
    }

    /// Sets an extended attribute of the last entry.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.last().xattrs.push((name.to_owned(), value.into()));
        self
    }

    fn add(mut self, path: impl AsRef<Path>, content: Content) -> Self {
        self.entries.push(Entry {
            path: path.as_ref().to_owned(),
            content,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: TIME,
            xattrs: Vec::new(),
        });
        self
    }

    fn last(&mut self) -> &mut Entry {
        self.entries.last_mut().expect("an entry to change")
    }
}
