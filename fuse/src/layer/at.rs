//! A file of a layer by whatever reaches it: its name in a directory, the directory's handle, or a handle of
//! its own, for want of a name. What can be asked of it, and done to it, in one system call or two.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::{self, Errno};

use super::dir::{HostDir, stat};
use super::{Kind, LayerDir, Name, Stat};

/// What most attributes fit in, and what all do.
const ATTRIBUTE_SIZES: [usize; 2] = [256, 64 << 10];

/// A file of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At<'a> {
    /// A name in a directory; never followed.
    Name(&'a HostDir, &'a Name),
    /// A directory itself.
    Directory(&'a HostDir),
    /// An open file, or a handle (`O_PATH`) of any file.
    Handle(&'a OwnedFd),
}

impl<'a> At<'a> {
    pub(crate) fn of(dir: &'a HostDir, name: Option<&'a Name>) -> Self {
        name.map_or(Self::Directory(dir), |name| Self::Name(dir, name))
    }

    /// Returns the attributes.
    pub(crate) fn stat(self) -> io::Result<Stat> {
        match self {
            Self::Name(dir, name) => dir.look(name)?.ok_or(Errno::NOENT),
            Self::Directory(dir) => dir.stat(),
            Self::Handle(fd) => stat(fd, OsStr::new("")),
        }
    }

    /// Opens the file with any flags, save those that create.
    pub(crate) fn open(self, flags: OFlags) -> io::Result<File> {
        match self {
            Self::Name(dir, name) => dir.open_with(name, flags).map(File::from),
            Self::Directory(dir) => dir.open_self().map(File::from),
            Self::Handle(fd) => {
                let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
                rustix::fs::openat(CWD, by_handle(fd), flags, Mode::empty()).map(File::from)
            }
        }
    }

    /// Returns the target of a symlink.
    pub(crate) fn read_link(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Name(dir, name) => dir.read_link(name),
            Self::Directory(_) => Err(Errno::INVAL),
            Self::Handle(fd) => Ok(rustix::fs::readlinkat(fd, "", Vec::new())?.into_bytes()),
        }
    }

    /// Gives the file one more name.
    pub(crate) fn link(self, to: &HostDir, to_name: &Name) -> io::Result<()> {
        match self {
            Self::Name(dir, name) => dir.link(name, to, to_name),
            Self::Directory(_) => Err(Errno::PERM),
            Self::Handle(fd) => to.link_open(fd, to_name),
        }
    }

    /// Returns a handle that reads nothing but keeps the file.
    pub(crate) fn pin(self) -> io::Result<OwnedFd> {
        match self {
            Self::Name(dir, name) => LayerDir::pin(dir, name),
            Self::Directory(dir) => dir.open_self(),
            Self::Handle(fd) => fd.try_clone().map_err(|_| Errno::MFILE),
        }
    }

    /// Changes owner and group, where given.
    pub(crate) fn set_owner(self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::Name(dir, name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(dir.fd()?, name.as_os_str(), uid, gid, flags)
            }
            Self::Directory(dir) => {
                rustix::fs::chownat(dir.fd()?, "", uid, gid, AtFlags::EMPTY_PATH)
            }
            Self::Handle(fd) => rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Changes the permission bits. A symlink has none, and is not followed.
    pub(crate) fn set_mode(self, mode: u16) -> io::Result<()> {
        let bits = Mode::from_raw_mode(mode.into());
        let Self::Name(dir, name) = self else {
            return self.by_path(|path, _| rustix::fs::chmodat(CWD, path, bits, AtFlags::empty()));
        };
        let file = dir.open_with(name, OFlags::PATH)?;
        match At::Handle(&file).stat()?.kind {
            Kind::Symlink => Err(Errno::OPNOTSUPP),
            _ => At::Handle(&file).set_mode(mode),
        }
    }

    /// Changes times of access and modification.
    pub(crate) fn set_times(self, times: &Timestamps) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match self {
            Self::Name(dir, name) => {
                rustix::fs::utimensat(dir.fd()?, name.as_os_str(), times, flags)
            }
            _ => self.by_path(|path, _| rustix::fs::utimensat(CWD, path, times, AtFlags::empty())),
        }
    }

    /// Returns an extended attribute.
    pub(crate) fn xattr(self, attribute: &OsStr) -> io::Result<Vec<u8>> {
        self.ask(|path, follow, value| match follow {
            true => rustix::fs::getxattr(path, attribute, spare_capacity(value)),
            false => rustix::fs::lgetxattr(path, attribute, spare_capacity(value)),
        })
    }

    /// Returns the names of all extended attributes, each ended by a zero byte.
    pub(crate) fn xattrs(self) -> io::Result<Vec<u8>> {
        self.ask(|path, follow, list| match follow {
            true => rustix::fs::listxattr(path, spare_capacity(list)),
            false => rustix::fs::llistxattr(path, spare_capacity(list)),
        })
    }

    /// Sets an extended attribute.
    pub(crate) fn set_xattr(
        self,
        attribute: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> io::Result<()> {
        self.by_path(|path, follow| match follow {
            true => rustix::fs::setxattr(path, attribute, value, flags),
            false => rustix::fs::lsetxattr(path, attribute, value, flags),
        })
    }

    /// Removes an extended attribute.
    pub(crate) fn remove_xattr(self, attribute: &OsStr) -> io::Result<()> {
        self.by_path(|path, follow| match follow {
            true => rustix::fs::removexattr(path, attribute),
            false => rustix::fs::lremovexattr(path, attribute),
        })
    }

    /// Asks with a bigger buffer if the first one is too small.
    fn ask(
        self,
        question: impl Fn(&Path, bool, &mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<Vec<u8>> {
        self.by_path(|path, follow| {
            let mut result = Err(Errno::RANGE);
            for size in ATTRIBUTE_SIZES {
                let mut value = Vec::with_capacity(size);
                result = question(path, follow, &mut value).map(|_| value);
                if !matches!(result, Err(Errno::RANGE)) {
                    break;
                }
            }
            result
        })
    }

    /// Gives a path of the file, and whether its last component is to be followed: that of a handle is a
    /// link to the file itself.
    fn by_path<T>(self, act: impl FnOnce(&Path, bool) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Name(dir, name) => act(Path::new(&dir.path(Some(name))?.path), false),
            Self::Directory(dir) => act(Path::new(&dir.path(None)?.path), true),
            Self::Handle(fd) => act(Path::new(&by_handle(fd)), true),
        }
    }
}

/// Returns the path by which calls reach a file that has a handle.
pub(super) fn by_handle(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
