//! The file system: one short method per operation. Files are named by inode number, as in FUSE.
//!
//! All layers are lower ones, so whatever would change something is EROFS; the bridge and the mount's
//! `ro` say so before it gets here.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{SeekFrom, StatVfs};
use rustix::io::Errno;

use crate::errno::{Context, Error, Result};
use crate::file::{Handle, Handles};
use crate::format::{Format, Mark};
use crate::inode::{Ino, Inodes, Node, Numbers};
use crate::layer::{Kind, LayerDir, Name, Stat};
use crate::lookup::{Part, lookup};
use crate::merge::Merged;
use crate::readdir::{Entry, Listing, list};
use crate::xattr;

/// A merged, read-only view of lower layers.
#[derive(Debug)]
pub struct Overlay {
    format: Format,
    numbers: Numbers,
    inodes: Inodes,
    files: Handles<File>,
    listings: Handles<Listing>,
}

/// Attributes of a file of the view: those of its topmost part, under the view's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The number.
    pub ino: Ino,
    /// The rest.
    pub stat: Stat,
}

impl Overlay {
    /// Makes a view of lower layers, given from the topmost down; `None` if there are none.
    pub fn new(lowers: Vec<Arc<dyn LayerDir>>, format: Format) -> Option<Self> {
        let top = lowers.first().map(Arc::clone)?;
        let root = Node::Directory { parent: Ino::ROOT, top, stack: lowers.into() };
        Some(Self {
            format,
            numbers: Numbers::default(),
            inodes: Inodes::new(root),
            files: Handles::default(),
            listings: Handles::default(),
        })
    }

    /// Looks a name up, and remembers what was found until it is forgotten as often as it was found.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = Name::new(name)?;
        let node = self.inodes.get(parent)?;
        let Node::Directory { stack, .. } = node.as_ref() else { return Err(Error::NotDirectory) };
        match lookup(stack, self.format, &name)? {
            Merged::Absent => Err(Error::NoEntry),
            Merged::Leaf(part) => {
                let attr = self.attr_of(part.stat.ok_or(Error::NoEntry)?, 1);
                self.inodes.add(attr.ino, || Node::Leaf { dir: part.dir, name });
                Ok(attr)
            }
            Merged::Directory(top, below) => {
                let attr = self.attr_of(top.stat.ok_or(Error::NoEntry)?, 1 + below.len());
                self.inodes.add(attr.ino, || directory(parent, &name, top, below));
                Ok(attr)
            }
        }
    }

    /// Counts a lookup of a file, if it is remembered.
    pub fn count(&self, ino: Ino) {
        self.inodes.count(ino);
    }

    /// Takes back `count` lookups of a file.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.inodes.forget(ino, count);
    }

    /// Returns how many files are remembered, besides the root.
    pub fn remembered(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the attributes of a file.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        match self.inodes.get(ino)?.as_ref() {
            Node::Directory { top, stack, .. } => {
                Ok(self.attr_of(top.stat().at("stat")?, stack.len()))
            }
            Node::Leaf { dir, name } => {
                Ok(self.attr_of(dir.look(name).at("stat")?.ok_or(Error::Stale)?, 1))
            }
        }
    }

    /// Returns the target of a symlink.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.inodes.get(ino)?.as_ref() {
            Node::Directory { .. } => Err(Error::WrongType),
            Node::Leaf { dir, name } => dir.read_link(name).at("read a symlink"),
        }
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `Unsupported` if the layer has only the file's attributes: its data would read as zeros.
    pub fn open(&self, ino: Ino) -> Result<Handle> {
        let node = self.inodes.get(ino)?;
        let Node::Leaf { dir, name } = node.as_ref() else { return Err(Error::IsDirectory) };
        if self.format.read(dir.as_ref(), Some(name), Mark::Metacopy)?.is_some() {
            return Err(Error::Unsupported("metacopy"));
        }
        Ok(self.files.add(dir.open(name).at("open")?))
    }

    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    pub fn read(&self, handle: Handle, offset: u64, size: usize) -> Result<Vec<u8>> {
        let file = self.files.get(handle)?;
        let mut data = Vec::with_capacity(size.max(1));
        while data.len() < size {
            let at = offset.saturating_add(data.len() as u64);
            match rustix::io::pread(&file, spare_capacity(&mut data), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).at("read"),
            }
        }
        data.truncate(size);
        Ok(data)
    }

    /// Finds data or a hole at or after an offset.
    pub fn seek(&self, handle: Handle, to: SeekFrom) -> Result<u64> {
        rustix::fs::seek(self.files.get(handle)?, to).at("seek")
    }

    /// Closes a file.
    pub fn release(&self, handle: Handle) {
        self.files.remove(handle);
    }

    /// Opens a directory; nothing is read yet.
    pub fn open_dir(&self, ino: Ino) -> Result<Handle> {
        match self.inodes.get(ino)?.as_ref() {
            Node::Directory { .. } => Ok(self.listings.add(Listing::new(ino))),
            Node::Leaf { .. } => Err(Error::NotDirectory),
        }
    }

    /// Gives the entries of a directory from `offset` on to `each`, which breaks when it is full: the
    /// name, number and type, and the offset that the next entry has. `.` and `..` come first.
    pub fn read_dir(
        &self,
        handle: Handle,
        offset: u64,
        mut each: impl FnMut(&OsStr, Ino, Kind, u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let listing = self.listings.get(handle)?;
        let node = self.inodes.get(listing.ino)?;
        let Node::Directory { parent, top, stack } = node.as_ref() else {
            return Err(Error::NotDirectory);
        };
        let entries = listing.entries(offset == 0, || list(stack, self.format, &self.numbers))?;
        let own = top.stat().at("list")?;
        let own = self.numbers.number(own.fs, own.number);
        let above = if *parent == Ino::ROOT { self.attr(Ino::ROOT)?.ino } else { *parent };
        let dots = [(OsStr::new("."), own), (OsStr::new(".."), above)];
        let dots = dots.into_iter().map(|(name, ino)| (name, ino, Kind::Directory));
        let names = entries.iter().map(|Entry { name, ino, kind }| (name.as_os_str(), *ino, *kind));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, ino, kind)) in (1..).zip(dots.chain(names)).skip(skip) {
            if each(name, ino, kind, next).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Returns which directory a handle has open.
    pub fn listed(&self, handle: Handle) -> Result<Ino> {
        Ok(self.listings.get(handle)?.ino)
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: Handle) {
        self.listings.remove(handle);
    }

    /// Returns an extended attribute of a file.
    pub fn xattr(&self, ino: Ino, attribute: &OsStr) -> Result<Vec<u8>> {
        let attribute = xattr::on_disk(self.format, attribute);
        let node = self.inodes.get(ino)?;
        let (dir, name) = where_marked(&node);
        match dir.xattr(name, &attribute) {
            Err(Errno::NODATA) => Err(Error::NoAttribute),
            value => value.at("read an attribute"),
        }
    }

    /// Returns the names of a file's extended attributes, each ended by a zero byte; those that only
    /// root may read only to a `privileged` caller.
    pub fn xattrs(&self, ino: Ino, privileged: bool) -> Result<Vec<u8>> {
        let node = self.inodes.get(ino)?;
        let (dir, name) = where_marked(&node);
        let names = dir.xattrs(name).at("list attributes")?;
        Ok(xattr::listed(self.format, &names, privileged))
    }

    /// Describes the file system of the topmost layer.
    pub fn space(&self) -> Result<StatVfs> {
        match self.inodes.get(Ino::ROOT)?.as_ref() {
            Node::Directory { top, .. } => top.space().at("statfs"),
            Node::Leaf { .. } => Err(Error::NotDirectory),
        }
    }

    /// Gives attributes the view's number. The links of a directory merged of several parts are not
    /// counted: 1 tells programs not to rely on them.
    fn attr_of(&self, mut stat: Stat, parts: usize) -> Attr {
        if parts > 1 {
            stat.links = 1;
        }
        Attr { ino: self.numbers.number(stat.fs, stat.number), stat }
    }
}

fn directory(parent: Ino, name: &Name, top: Part, below: Vec<Part>) -> Node {
    let top = top.dir.enter(name);
    let below = below.into_iter().map(|part| part.dir.enter(name));
    let stack = std::iter::once(Arc::clone(&top)).chain(below).collect();
    Node::Directory { parent, top, stack }
}

fn where_marked(node: &Node) -> (&dyn LayerDir, Option<&Name>) {
    match node {
        Node::Directory { top, .. } => (top.as_ref(), None),
        Node::Leaf { dir, name } => (dir.as_ref(), Some(name)),
    }
}
