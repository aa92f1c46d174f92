//! A layer that is a directory of the host.
//!
//! Everything is reached relative to a handle of its directory, one name at a time, without following a
//! symlink and without entering another file system. Handles of directories other than the root are
//! closed when too many are open, and opened again when they are needed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatVfs, Statx, StatxFlags, StatxTimestamp,
};
use rustix::io::{self, Errno};

use super::{Kind, LayerDir, Name, RawEntry, Stat, Time};

/// Few, since a process may have 1024 descriptors in all; many enough for what is in use at once.
const OPEN_DIRECTORIES: usize = 512;

/// What most attributes fit in, and what all do.
const ATTRIBUTE_SIZES: [usize; 2] = [256, 64 << 10];

/// Nothing leads out of the directory that a name is looked up in.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory of the host, the root of a layer or one below it.
#[derive(Debug)]
pub(super) enum HostDir {
    /// The root; always open.
    Root { fd: Arc<OwnedFd>, pool: Arc<Pool> },
    /// One below it.
    Below { parent: Arc<HostDir>, name: Name, slot: Arc<Slot> },
}

/// Where an open handle is kept.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Arc<OwnedFd>>>);

/// The open handles, the longest open first.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<VecDeque<Weak<Slot>>>);

impl Slot {
    fn get(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Keeps a handle, and closes another if there are too many. Who still works with that one has a
    /// share of it.
    fn keep(&self, slot: &Arc<Slot>, fd: &Arc<OwnedFd>) {
        if slot.get().replace(Arc::clone(fd)).is_some() {
            return;
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(slot));
        let oldest = if open.len() > OPEN_DIRECTORIES { open.pop_front() } else { None };
        drop(open);
        if let Some(oldest) = oldest.and_then(|slot| slot.upgrade()) {
            oldest.get().take();
        }
    }
}

impl HostDir {
    fn pool(&self) -> &Arc<Pool> {
        let mut at = self;
        loop {
            match at {
                Self::Root { pool, .. } => return pool,
                Self::Below { parent, .. } => at = parent,
            }
        }
    }

    /// Returns a handle of the directory, opening what is not open from the nearest open one down.
    fn fd(&self) -> io::Result<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut at = self;
        let mut fd = loop {
            match at {
                Self::Root { fd, .. } => break Arc::clone(fd),
                Self::Below { parent, name, slot } => {
                    if let Some(fd) = slot.get().as_ref() {
                        break Arc::clone(fd);
                    }
                    closed.push((name, slot));
                    at = parent;
                }
            }
        };
        while let Some((name, slot)) = closed.pop() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat2(&fd, name.as_os_str(), flags, Mode::empty(), BENEATH)?;
            fd = Arc::new(opened);
            self.pool().keep(slot, &fd);
        }
        Ok(fd)
    }

    /// Returns the path by which xattr calls reach a file that cannot be opened; its last component is
    /// not followed, and what is before it is a handle.
    pub(super) fn path(&self, name: Option<&Name>) -> io::Result<ByHandle> {
        let fd = self.fd()?;
        let mut path = OsString::from(format!("/proc/self/fd/{}/", fd.as_raw_fd()));
        path.push(name.map_or(OsStr::new("."), Name::as_os_str));
        Ok(ByHandle { path, _fd: fd })
    }
}

/// A path that is valid as long as this lives.
pub(super) struct ByHandle {
    pub(super) path: OsString,
    _fd: Arc<OwnedFd>,
}

impl ByHandle {
    /// Asks `question` of the path, with a bigger buffer if the first one is too small.
    fn ask(
        &self,
        mut question: impl FnMut(&OsStr, &mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<Vec<u8>> {
        let mut result = Err(Errno::RANGE);
        for size in ATTRIBUTE_SIZES {
            let mut value = Vec::with_capacity(size);
            result = question(&self.path, &mut value).map(|_| value);
            if !matches!(result, Err(Errno::RANGE)) {
                break;
            }
        }
        result
    }
}

impl LayerDir for HostDir {
    fn stat(&self) -> io::Result<Stat> {
        stat(self.fd()?.as_ref(), OsStr::new(""))
    }

    fn look(&self, name: &Name) -> io::Result<Option<Stat>> {
        match stat(self.fd()?.as_ref(), name.as_os_str()) {
            Ok(stat) => Ok(Some(stat)),
            // A file system with shorter names does not have this one.
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn enter(self: Arc<Self>, name: &Name) -> Arc<dyn LayerDir> {
        Arc::new(Self::Below { parent: self, name: name.clone(), slot: Arc::default() })
    }

    fn list(&self, each: &mut dyn FnMut(RawEntry)) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(self.fd()?, ".", flags, Mode::empty(), BENEATH)?;
        let mut dir = Dir::new(fd)?;
        while let Some(entry) = dir.read() {
            let entry = entry?;
            // Only `.` and `..` are no names.
            if let Ok(name) = Name::new(OsStr::from_bytes(entry.file_name().to_bytes())) {
                each(RawEntry { name, kind: kind(entry.file_type()), number: entry.ino() });
            }
        }
        Ok(())
    }

    fn read_link(&self, name: &Name) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(self.fd()?, name.as_os_str(), Vec::new())?;
        Ok(target.into_bytes())
    }

    fn open(&self, name: &Name) -> io::Result<File> {
        let fd = self.fd()?;
        // Should it be a pipe by now, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let open =
            |flags| rustix::fs::openat2(&fd, name.as_os_str(), flags, Mode::empty(), BENEATH);
        match open(flags | OFlags::NOATIME) {
            // Only the owner and root may leave the time of access alone.
            Err(Errno::PERM) => open(flags),
            opened => opened,
        }
        .map(File::from)
    }

    fn xattr(&self, name: Option<&Name>, attribute: &OsStr) -> io::Result<Vec<u8>> {
        self.path(name)?
            .ask(|path, value| rustix::fs::lgetxattr(path, attribute, spare_capacity(value)))
    }

    fn xattrs(&self, name: Option<&Name>) -> io::Result<Vec<u8>> {
        self.path(name)?.ask(|path, list| rustix::fs::llistxattr(path, spare_capacity(list)))
    }

    fn space(&self) -> io::Result<StatVfs> {
        rustix::fs::fstatvfs(self.fd()?)
    }
}

/// Returns the attributes of `name` in the directory, or of the directory if the name is empty.
fn stat(fd: &OwnedFd, name: &OsStr) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let statx = rustix::fs::statx(fd, name, flags, StatxFlags::BASIC_STATS)?;
    let kind = kind(FileType::from_raw_mode(statx.stx_mode.into())).ok_or(Errno::IO)?;
    Ok(converted(&statx, kind))
}

fn converted(statx: &Statx, kind: Kind) -> Stat {
    Stat {
        kind,
        fs: (statx.stx_dev_major, statx.stx_dev_minor),
        number: statx.stx_ino,
        mode: statx.stx_mode & 0o7777,
        links: statx.stx_nlink,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        device: (statx.stx_rdev_major, statx.stx_rdev_minor),
        size: statx.stx_size,
        blocks: statx.stx_blocks,
        block_size: statx.stx_blksize,
        accessed: time(&statx.stx_atime),
        modified: time(&statx.stx_mtime),
        changed: time(&statx.stx_ctime),
    }
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time { seconds: stamp.tv_sec, nanoseconds: stamp.tv_nsec }
}

fn kind(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::Unknown => None,
    }
}
