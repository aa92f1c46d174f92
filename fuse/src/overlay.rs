//! The file system: one short method per operation. Files are named by inode number, as in FUSE.
//!
//! What changes something is in the rooms `create`, `remove`, `rename` and `attr`; what deals with open files
//! is in `file`. Without an upper all that is EROFS.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use crate::errno::{Context, Error, Result};
use crate::file::{Handle, Handles, OpenFile};
use crate::format::Format;
use crate::inode::{Ino, Inodes, Numbers};
use crate::layer::{Kind, LayerDir, Layers, Name, Stat};
use crate::lookup::lookup;
use crate::node::{Dir, Leaf, Node};
use crate::origin::Origins;
use crate::readdir::{Entry, Listing, list};
use crate::upper::Upper;
use crate::xattr;

/// The entries that every directory has: itself, and the one above.
const DOTS: usize = 2;

/// Who keeps attributes that it was told, and has to be told when they change although it asked for no such thing.
pub trait Keeper: Debug + Send + Sync {
    /// Is told that the attributes of a file have changed.
    fn changed(&self, ino: Ino);
}

/// A merged view of lower layers and, unless it is read-only, an upper.
#[derive(Debug)]
pub struct Overlay {
    pub(crate) format: Format,
    pub(crate) numbers: Numbers,
    pub(crate) origins: Origins,
    pub(crate) inodes: Inodes,
    pub(crate) files: Handles<OpenFile>,
    listings: Handles<Listing>,
    upper: Option<Upper>,
    keeper: Option<Arc<dyn Keeper>>,
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
    /// Makes a view of layers.
    pub fn new(layers: Layers, format: Format) -> Self {
        let Layers { lowers, upper, systems } = layers;
        upper.as_ref().and_then(Upper::index).into_iter().for_each(|index| index.clean(format));
        let root = Dir::root(upper.as_ref().map(|upper| Arc::clone(upper.root())), lowers);
        Self {
            format,
            numbers: Numbers::default(),
            origins: Origins::new(systems),
            inodes: Inodes::new(Node::Directory(Arc::new(root))),
            files: Handles::default(),
            listings: Handles::default(),
            upper,
            keeper: None,
        }
    }

    /// Tells whether nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Has `keeper` told of attributes that change.
    pub fn set_keeper(&mut self, keeper: Arc<dyn Keeper>) {
        self.keeper = Some(keeper);
    }

    /// Says that the attributes of a file have changed although nobody asked for it: a copy has its own time of
    /// change, blocks and links.
    pub(crate) fn changed(&self, ino: Ino) {
        if let Some(keeper) = &self.keeper {
            keeper.changed(ino);
        }
    }

    /// Returns what changes go through.
    pub(crate) fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::ReadOnly)
    }

    /// Returns a directory.
    pub(crate) fn dir(&self, ino: Ino) -> Result<Arc<Dir>> {
        match self.inodes.get(ino)? {
            Node::Directory(dir) => Ok(dir),
            Node::Leaf(_) => Err(Error::NotDirectory),
        }
    }

    /// Looks a name up, and remembers what was found until it is forgotten as often as it was found.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = Name::new(name)?;
        let dir = self.dir(parent)?;
        let _names = dir.read_names();
        if dir.is_gone() {
            return Err(Error::NoEntry);
        }
        let found = lookup(&dir, self.format, &name)?;
        match self.remember(&dir, &name, found)? {
            Some((node, stat)) => Ok(Attr { ino: node.ino(), stat }),
            None => {
                dir.set_absent(name);
                Err(Error::NoEntry)
            }
        }
    }

    /// Takes back `count` lookups of a file.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.inodes.forget(ino, count);
    }

    /// Tells whether a file is remembered.
    pub fn knows(&self, ino: Ino) -> bool {
        self.inodes.get(ino).is_ok()
    }

    /// Returns how many files are remembered, besides the root.
    pub fn remembered(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the attributes of a file.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        let node = self.inodes.get(ino)?;
        let stat = node.stat()?;
        let ino = if ino == Ino::ROOT { self.root_number()? } else { ino };
        Ok(Attr { ino, stat })
    }

    /// The number of the root as people see it; in requests it has another one.
    fn root_number(&self) -> Result<Ino> {
        let Node::Directory(root) = self.inodes.root() else { return Err(Error::Stale) };
        self.dir_number(&root)
    }

    fn dir_number(&self, dir: &Dir) -> Result<Ino> {
        if dir.ino != Ino::ROOT {
            return Ok(dir.ino);
        }
        // Unlike other directories it has that of its topmost part, as in the kernel.
        let stat = dir.top().and_then(LayerDir::stat).at("stat")?;
        Ok(self.numbers.number(stat.fs, stat.number))
    }

    /// Returns the target of a symlink.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.inodes.get(ino)? {
            Node::Directory(_) => Err(Error::WrongType),
            Node::Leaf(leaf) => leaf.read_link(),
        }
    }

    /// Refuses a file of which a layer has only the attributes: its data would read as zeros.
    pub(crate) fn refuse_partial(&self, leaf: &Leaf) -> Result<()> {
        if leaf.is_partial(self.format)? { Err(Error::Unsupported("metacopy")) } else { Ok(()) }
    }

    /// Opens a directory; nothing is read yet.
    pub fn open_dir(&self, ino: Ino) -> Result<Handle> {
        Ok(self.listings.add(Listing::new(self.dir(ino)?)))
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
        let dir = &listing.dir;
        let entries = listing.entries(offset == 0, || {
            let _names = dir.read_names();
            if dir.is_gone() {
                return Ok(Vec::new());
            }
            list(dir, self.format, &self.numbers, |entry, fs| self.listed_number(dir, entry, fs))
        })?;
        let own = self.dir_number(dir)?;
        let above = dir.parent().map_or(Ok(own), |above| self.dir_number(&above))?;
        let dots = [(OsStr::new("."), own), (OsStr::new(".."), above)];
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let dots = dots.get(skip..).unwrap_or_default().iter();
        let dots = dots.map(|(name, ino)| (*name, *ino, Kind::Directory));
        let names = entries.get(skip.saturating_sub(DOTS)..).unwrap_or_default().iter();
        let names = names.map(|Entry { name, ino, kind }| (name.as_os_str(), *ino, *kind));
        for (next, (name, ino, kind)) in (offset.saturating_add(1)..).zip(dots.chain(names)) {
            if each(name, ino, kind, next).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Makes the names in an open directory durable.
    pub fn sync_dir(&self, handle: Handle) -> Result<()> {
        let listing = self.listings.get(handle)?;
        match (listing.dir.upper(), &self.upper) {
            (Some(part), Some(upper)) if !upper.is_volatile() => {
                rustix::fs::fsync(part.open_self().at("sync")?).at("sync")
            }
            _ => Ok(()),
        }
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: Handle) {
        let closed = self.listings.remove(handle);
        let ino = closed.map(|closed| closed.dir.ino);
        ino.into_iter().for_each(|ino| self.inodes.forget(ino, 0));
    }

    /// Returns an extended attribute of a file.
    pub fn xattr(&self, ino: Ino, attribute: &OsStr) -> Result<Vec<u8>> {
        let attribute = xattr::on_disk(self.format, attribute);
        match self.inodes.get(ino)?.xattr(self.format, &attribute) {
            Err(Errno::NODATA) => Err(Error::NoAttribute),
            value => value.at("read an attribute"),
        }
    }

    /// Returns the names of a file's extended attributes, each ended by a zero byte; those that only
    /// root may read only to a `privileged` caller.
    pub fn xattrs(&self, ino: Ino, privileged: bool) -> Result<Vec<u8>> {
        let names = self.inodes.get(ino)?.xattrs().at("list attributes")?;
        Ok(xattr::listed(self.format, &names, privileged))
    }

    /// Describes the file system of the topmost layer.
    pub fn space(&self) -> Result<StatVfs> {
        let Node::Directory(root) = self.inodes.root() else { return Err(Error::Stale) };
        root.top().and_then(LayerDir::space).at("statfs")
    }
}
