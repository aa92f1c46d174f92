//! A directory of the host, as part of a layer.
//!
//! Everything is reached relative to a handle of its directory, one name at a time, without following a
//! symlink and without entering another file system. Handles of directories other than the root are
//! closed when too many are open, and opened again when they are needed: by name, from the nearest open
//! one down, while no rename can change the names.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, StatVfs, StatxFlags};
use rustix::io::{self, Errno};

use super::at::At;
use super::stat::{converted, kind};
use super::{LayerDir, Name, RawEntry, Stat};

/// Few, since a process may have 1024 descriptors in all; many enough for what is in use at once.
const OPEN_DIRECTORIES: usize = 512;

/// So many handles on the way to a directory are kept, evenly spread.
const MILESTONES: usize = 64;
/// So many next to it are kept, too.
const NEIGHBOURS: usize = 16;

/// Nothing leads out of the directory that a name is looked up in.
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory of the host, the root of a layer or one below it.
#[derive(Debug)]
pub(crate) struct HostDir {
    /// Rank 3; held while the name is used, so that it stays right.
    place: RwLock<Place>,
    slot: Arc<Slot>,
    pool: Arc<Pool>,
}

/// Where a directory lies.
#[derive(Debug)]
pub(super) enum Place {
    /// It is the root of a layer, and always open.
    Root,
    /// In another one, under a name.
    Below { parent: Arc<HostDir>, name: Name },
    /// It is deleted, and stays open as long as it is known.
    Gone,
}

/// Where an open handle is kept.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    fd: Option<Arc<OwnedFd>>,
    for_good: bool,
}

/// The open handles, the longest open first.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<VecDeque<Weak<Slot>>>);

impl Slot {
    fn get(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Keeps a handle, and closes another if there are too many. Who still works with that one has a
    /// share of it.
    fn keep(&self, slot: &Arc<Slot>, fd: &Arc<OwnedFd>) {
        if slot.get().fd.replace(Arc::clone(fd)).is_some() {
            return;
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(slot));
        let oldest = if open.len() > OPEN_DIRECTORIES { open.pop_front() } else { None };
        drop(open);
        if let Some(oldest) = oldest.and_then(|slot| slot.upgrade()) {
            let mut kept = oldest.get();
            let closed = if kept.for_good { None } else { kept.fd.take() };
            drop(kept);
            drop(closed);
        }
    }
}

impl HostDir {
    /// The root of a layer, of which `fd` is a handle.
    pub(crate) fn root(fd: OwnedFd, pool: &Arc<Pool>) -> Self {
        let slot = Slot(Mutex::new(Kept { fd: Some(Arc::new(fd)), for_good: true }));
        let place = RwLock::new(Place::Root);
        Self { place, slot: Arc::new(slot), pool: Arc::clone(pool) }
    }

    /// The directory `name` in this one; opened when it is first asked something.
    pub(crate) fn below(self: &Arc<Self>, name: &Name) -> Self {
        let place = Place::Below { parent: Arc::clone(self), name: name.clone() };
        Self { place: RwLock::new(place), slot: Arc::default(), pool: Arc::clone(&self.pool) }
    }

    /// Returns a handle of the directory, opening what is not open from the nearest open one down.
    pub(crate) fn fd(&self) -> io::Result<Arc<OwnedFd>> {
        loop {
            if let Some(fd) = &self.slot.get().fd {
                return Ok(Arc::clone(fd));
            }
            // A rename on the way makes it start again.
            if let Some(fd) = self.open_from_above()? {
                return Ok(fd);
            }
        }
    }

    fn open_from_above(&self) -> io::Result<Option<Arc<OwnedFd>>> {
        let mut above = Vec::new();
        let mut next = self.parent()?;
        let mut fd = loop {
            if let Some(fd) = &next.slot.get().fd {
                break Arc::clone(fd);
            }
            let parent = next.parent()?;
            above.push(std::mem::replace(&mut next, parent));
        };
        let mut parent = next;
        let distance = above.len() / MILESTONES + 1;
        while let Some(dir) = above.pop() {
            let Some(opened) = dir.open_in(&parent, &fd)? else { return Ok(None) };
            fd = opened;
            // On a way longer than the pool those next to be asked for would only drive each other out.
            if above.len() < NEIGHBOURS || above.len().is_multiple_of(distance) {
                dir.pool.keep(&dir.slot, &fd);
            }
            parent = dir;
        }
        let opened = self.open_in(&parent, &fd)?;
        opened.iter().for_each(|fd| self.pool.keep(&self.slot, fd));
        Ok(opened)
    }

    /// Opens the directory if it still lies in `parent`.
    fn open_in(&self, parent: &Arc<Self>, fd: &OwnedFd) -> io::Result<Option<Arc<OwnedFd>>> {
        let place = self.read_place();
        let Place::Below { parent: found, name } = &*place else { return Ok(None) };
        if !Arc::ptr_eq(found, parent) {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(fd, name.as_os_str(), flags, Mode::empty(), BENEATH)?;
        Ok(Some(Arc::new(opened)))
    }

    fn parent(&self) -> io::Result<Arc<Self>> {
        match &*self.read_place() {
            Place::Below { parent, .. } => Ok(Arc::clone(parent)),
            // Those two are always open, unless a handle was lost.
            Place::Root | Place::Gone => Err(Errno::STALE),
        }
    }

    fn read_place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody from using the directory's name until it is told where it lies now.
    pub(super) fn lock_place(&self) -> RwLockWriteGuard<'_, Place> {
        self.place.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the handle for good, since the directory is about to lose its name.
    pub(crate) fn pin(&self) -> io::Result<()> {
        let fd = self.fd()?;
        let mut kept = self.slot.get();
        kept.fd = Some(fd);
        kept.for_good = true;
        Ok(())
    }

    /// Lets go of the handle, since another directory has the name.
    pub(crate) fn reopen(&self) {
        let old = std::mem::take(&mut *self.slot.get());
        drop(old);
    }

    /// Says that the directory has lost its name.
    pub(crate) fn set_gone(&self) {
        *self.lock_place() = Place::Gone;
    }

    /// Returns the path by which calls reach a file that need one; what is before the last component is
    /// a handle.
    pub(super) fn path(&self, name: Option<&Name>) -> io::Result<ByHandle> {
        let fd = self.fd()?;
        let mut path = OsString::from(format!("/proc/self/fd/{}/", fd.as_raw_fd()));
        path.push(name.map_or(OsStr::new("."), Name::as_os_str));
        Ok(ByHandle { path, _fd: fd })
    }

    /// Opens a file with any flags, save those that create.
    pub(crate) fn open_with(&self, name: &Name, flags: OFlags) -> io::Result<OwnedFd> {
        let no_terminal =
            if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | no_terminal;
        rustix::fs::openat2(self.fd()?, name.as_os_str(), flags, Mode::empty(), BENEATH)
    }
}

impl Drop for HostDir {
    /// Lets go of the directories above one by one, since there may be more than fit on a stack.
    fn drop(&mut self) {
        let mut place = std::mem::replace(
            self.place.get_mut().unwrap_or_else(PoisonError::into_inner),
            Place::Gone,
        );
        while let Place::Below { parent, .. } = place {
            let Some(mut parent) = Arc::into_inner(parent) else { return };
            let above = parent.place.get_mut().unwrap_or_else(PoisonError::into_inner);
            place = std::mem::replace(above, Place::Gone);
        }
    }
}

/// A path that is valid as long as this lives.
pub(super) struct ByHandle {
    pub(super) path: OsString,
    _fd: Arc<OwnedFd>,
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
        Arc::new(self.below(name))
    }

    fn list(&self, each: &mut dyn FnMut(RawEntry)) -> io::Result<()> {
        let mut dir = Dir::new(self.open_self()?)?;
        while let Some(entry) = dir.read() {
            let entry = entry?;
            // Only `.` and `..` are no names.
            if let Ok(name) = Name::new(OsStr::from_bytes(entry.file_name().to_bytes())) {
                each(RawEntry { name, kind: kind(entry.file_type()), number: entry.ino() });
            }
        }
        Ok(())
    }

    fn open_self(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(self.fd()?, ".", flags, Mode::empty(), BENEATH)
    }

    fn read_link(&self, name: &Name) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(self.fd()?, name.as_os_str(), Vec::new())?;
        Ok(target.into_bytes())
    }

    fn open(&self, name: &Name) -> io::Result<File> {
        // Should it be a pipe by now, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        match self.open_with(name, flags | OFlags::NOATIME) {
            // Only the owner and root may leave the time of access alone.
            Err(Errno::PERM) => self.open_with(name, flags),
            opened => opened,
        }
        .map(File::from)
    }

    fn pin(&self, name: &Name) -> io::Result<OwnedFd> {
        self.open_with(name, OFlags::PATH)
    }

    fn xattr(&self, name: Option<&Name>, attribute: &OsStr) -> io::Result<Vec<u8>> {
        At::of(self, name).xattr(attribute)
    }

    fn xattrs(&self, name: Option<&Name>) -> io::Result<Vec<u8>> {
        At::of(self, name).xattrs()
    }

    fn handle(&self, name: Option<&Name>) -> io::Result<crate::sys::FileHandle> {
        let fd = self.fd()?;
        crate::sys::name_to_handle(fd.as_ref(), name.map_or(OsStr::new(""), Name::as_os_str))
    }

    fn space(&self) -> io::Result<StatVfs> {
        rustix::fs::fstatvfs(self.fd()?)
    }
}

/// Returns the attributes of `name` in the directory, or of the directory if the name is empty.
pub(super) fn stat(fd: impl AsFd, name: &OsStr) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let statx = rustix::fs::statx(fd, name, flags, StatxFlags::BASIC_STATS)?;
    converted(&statx)
}
