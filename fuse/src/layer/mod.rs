//! What a layer is to the rules: its root directory, and what can be asked of a directory.

mod at;
mod claim;
mod dir;
mod in_use;
mod open;
mod place;
mod stat;
mod write;

use std::ffi::OsStr;
use std::fmt::{self, Debug};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::StatVfs;
use rustix::io;

pub(crate) use at::At;
pub(crate) use dir::{HostDir, Pool};
pub(crate) use write::{Moved, move_dirs};

pub use crate::name::Name;
pub use crate::protattr::Protection;
pub use crate::sys::FileHandle;
pub use claim::{Claim, Holder, Role, Unclaimable, claim};
pub use in_use::in_use;
pub use open::{Layers, Refused, open_layers};

/// Returns the attributes of an open file.
pub(crate) fn stat_of(file: impl AsFd) -> io::Result<Stat> {
    dir::stat(file, OsStr::new(""))
}

/// A directory of a layer. Names are single components, so nothing outside the layer can be reached.
pub trait LayerDir: Debug + Send + Sync {
    /// Returns the attributes of the directory itself.
    fn stat(&self) -> io::Result<Stat>;
    /// Returns the attributes of `name`, or `None` if there is no such name. Symlinks are not followed.
    fn look(&self, name: &Name) -> io::Result<Option<Stat>>;
    /// Returns the directory `name`, which is opened when it is first asked something.
    fn enter(self: Arc<Self>, name: &Name) -> Arc<dyn LayerDir>;
    /// Calls `each` for every name, save `.` and `..`.
    fn list(&self, each: &mut dyn FnMut(RawEntry)) -> io::Result<()>;
    /// Returns the target of the symlink `name`.
    fn read_link(&self, name: &Name) -> io::Result<Vec<u8>>;
    /// Opens the directory itself for listing.
    fn open_self(&self) -> io::Result<OwnedFd>;
    /// Opens the file `name` for reading.
    fn open(&self, name: &Name) -> io::Result<File>;
    /// Returns a handle of the file `name`, which reads nothing but keeps the file itself.
    fn pin(&self, name: &Name) -> io::Result<OwnedFd>;
    /// Returns what the file system knows `name` by, or the directory itself.
    fn handle(&self, name: Option<&Name>) -> io::Result<FileHandle>;
    /// Returns an extended attribute of `name`, or of the directory itself.
    fn xattr(&self, name: Option<&Name>, attribute: &OsStr) -> io::Result<Vec<u8>>;
    /// Returns the names of all extended attributes, each ended by a zero byte.
    fn xattrs(&self, name: Option<&Name>) -> io::Result<Vec<u8>>;
    /// Describes the file system that the directory lies on.
    fn space(&self) -> io::Result<StatVfs>;
}

/// Type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
        })
    }
}

/// A name as a directory's listing has it.
#[derive(Debug)]
pub struct RawEntry {
    /// The name.
    pub name: Name,
    /// Its type, unless the file system does not tell.
    pub kind: Option<Kind>,
    /// Its inode number.
    pub number: u64,
}

/// Attributes of a file in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Type.
    pub kind: Kind,
    /// File system: major and minor number.
    pub fs: (u32, u32),
    /// Inode number there.
    pub number: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device file stands for: major and minor number.
    pub device: (u32, u32),
    /// Length in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O in bytes.
    pub block_size: u32,
    /// Time of the last access.
    pub accessed: Time,
    /// Time of the last change of content.
    pub modified: Time,
    /// Time of the last change of anything.
    pub changed: Time,
    /// What it is protected from, as far as its file system knows.
    pub protection: Protection,
}

/// Seconds since 1970, which may be negative, and nanoseconds after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}
