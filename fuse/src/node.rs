//! A file of the view, and where the layers have it.
//!
//! Locks, in the order in which they are taken: rank 1, the names of directories (two of them in the order of
//! their addresses); rank 2, the copy-up of one file; rank 3, where one file lies, held while its name
//! is used. Rank 1 and 2 may be held across system calls, so that one directory or file waits, never all.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use rustix::fs::OFlags;
use rustix::io::{self, Errno};

use crate::errno::{Context, Error, Result};
use crate::format::{Format, Mark};
use crate::inode::Ino;
use crate::known::Known;
use crate::layer::{At, HostDir, LayerDir, Name, Stat};
use crate::protattr::{Guard, Protection};
use crate::xattr;

/// As many names of one file are remembered; others are found again when they are looked up.
const KNOWN_NAMES: usize = 4;

/// What a file is on its file system, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RealId {
    fs: (u32, u32),
    number: u64,
}

impl RealId {
    /// Returns that of a file with these attributes.
    pub(crate) fn of(stat: &Stat) -> Self {
        Self::new(stat.fs, stat.number)
    }

    /// Returns that of the file that has `number` on the file system `fs`.
    pub(crate) fn new(fs: (u32, u32), number: u64) -> Self {
        Self { fs, number }
    }
}

/// A file of the view.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// A directory.
    Directory(Arc<Dir>),
    /// Anything else.
    Leaf(Arc<Leaf>),
}

/// A directory of the view.
#[derive(Debug)]
pub(crate) struct Dir {
    /// Its number.
    pub(crate) ino: Ino,
    /// The lower directories that show through it, from the topmost down.
    pub(crate) lowers: Box<[Arc<dyn LayerDir>]>,
    ids: Ids,
    /// `None` for the root. Rank 3.
    place: RwLock<Option<(Arc<Dir>, Name)>>,
    upper: OnceLock<Arc<HostDir>>,
    /// Rank 1: for reading while names are looked up, for writing while they change.
    names: RwLock<()>,
    /// A name that was looked up and is not visible; no longer than the names are as they were.
    absent: Mutex<Option<Name>>,
    /// Rank 2.
    copying: Mutex<()>,
    gone: AtomicBool,
    guard: Guard,
    impure: Known,
}

/// A file of any type save directory.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Its number.
    pub(crate) ino: Ino,
    ids: Ids,
    /// Rank 3.
    place: RwLock<Place>,
    /// Rank 2.
    copying: Mutex<()>,
    attributes: Known,
    partial: Known,
    guard: Guard,
    /// By how many its names in the view outnumber its links in the layer that has it.
    surplus: AtomicI64,
    /// The name of its index entry, if it has one.
    entry: OnceLock<Name>,
    /// It was made here, and nobody has given it a file capability since.
    incapable: AtomicBool,
}

/// Where a leaf lies.
#[derive(Debug)]
pub(crate) enum Place {
    /// In a lower layer of `parent`.
    Lower {
        /// The directory of the view.
        parent: Arc<Dir>,
        /// Which of its lower directories.
        layer: usize,
        /// The name.
        name: Name,
    },
    /// In the upper, under one or more names.
    Upper(Vec<(Arc<Dir>, Name)>),
    /// Nowhere under a known name.
    Gone {
        /// What keeps it.
        handle: OwnedFd,
        /// False if it is a lower layer's.
        upper: bool,
    },
}

/// What a file of the view is in the layers.
#[derive(Debug, Default)]
struct Ids {
    lower: Option<RealId>,
    upper: OnceLock<RealId>,
}

impl Ids {
    fn new(lower: Option<RealId>, upper: Option<RealId>) -> Self {
        Self { lower, upper: upper.map_or_else(OnceLock::new, OnceLock::from) }
    }
}

impl Node {
    /// Returns the number.
    pub(crate) fn ino(&self) -> Ino {
        match self {
            Self::Directory(dir) => dir.ino,
            Self::Leaf(leaf) => leaf.ino,
        }
    }

    /// Tells whether this is the file that a lookup found as `lower` or `upper`. One that is just being copied up
    /// is known by what it is copied to (`copy_of`): a mark in a layer can name any number.
    pub(crate) fn is(
        &self,
        lower: Option<RealId>,
        upper: Option<RealId>,
        copy_of: Option<Ino>,
    ) -> bool {
        let ids = match self {
            Self::Directory(dir) => &dir.ids,
            Self::Leaf(leaf) => &leaf.ids,
        };
        let same_lower = lower.is_some() && lower == ids.lower;
        match (self, upper, ids.upper.get()) {
            (_, Some(found), Some(known)) => found == *known,
            (Self::Leaf(leaf), Some(_), None) => same_lower || copy_of == Some(leaf.ino),
            (Self::Directory(_), Some(_), None) | (_, None, _) => same_lower,
        }
    }

    /// Returns it if it is no directory.
    pub(crate) fn leaf(&self) -> Option<&Arc<Leaf>> {
        match self {
            Self::Leaf(leaf) => Some(leaf),
            Self::Directory(_) => None,
        }
    }

    /// Returns what it was copied up as in this mount; nothing for a directory, whose number its lower part tells.
    pub(crate) fn copied_as(&self) -> Option<RealId> {
        match self {
            Self::Leaf(leaf) if leaf.ids.lower.is_some() => leaf.ids.upper.get().copied(),
            _ => None,
        }
    }

    /// Tells whether nobody else has a share of it.
    pub(crate) fn is_sole(&self) -> bool {
        match self {
            Self::Directory(dir) => Arc::strong_count(dir) == 1,
            Self::Leaf(leaf) => Arc::strong_count(leaf) == 1,
        }
    }

    /// Returns the numbers of the directories that it is known to lie in.
    pub(crate) fn parents(&self) -> Vec<Ino> {
        match self {
            Self::Directory(dir) => dir.parent().iter().map(|parent| parent.ino).collect(),
            Self::Leaf(leaf) => match &*leaf.place() {
                Place::Lower { parent, .. } => vec![parent.ino],
                Place::Upper(names) => names.iter().map(|(parent, _)| parent.ino).collect(),
                Place::Gone { .. } => Vec::new(),
            },
        }
    }

    /// Keeps everybody from copying it up, removing or renaming it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        let copying = match self {
            Self::Directory(dir) => &dir.copying,
            Self::Leaf(leaf) => &leaf.copying,
        };
        copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of its protection.
    pub(crate) fn guard(&self) -> &Guard {
        match self {
            Self::Directory(dir) => &dir.guard,
            Self::Leaf(leaf) => &leaf.guard,
        }
    }

    /// Opens it in the layer that has it, to ask for what can be asked of open files only.
    pub(crate) fn open_to_ask(&self) -> Result<File> {
        match self {
            Self::Directory(dir) => {
                dir.top().and_then(LayerDir::open_self).map(File::from).at("open")
            }
            Self::Leaf(leaf) => leaf.open(OFlags::RDONLY).map(|(file, _)| file),
        }
    }

    /// Returns its attributes in the layer that has it.
    pub(crate) fn stat(&self) -> Result<Stat> {
        match self {
            Self::Directory(dir) => dir.stat(),
            Self::Leaf(leaf) => leaf.stat(),
        }
    }

    /// Returns an extended attribute, by its name on disk.
    pub(crate) fn xattr(&self, format: Format, attribute: &OsStr) -> io::Result<Vec<u8>> {
        match self {
            Self::Directory(dir) => dir.top()?.xattr(None, attribute),
            Self::Leaf(leaf) => leaf.xattr(format, attribute),
        }
    }

    /// Returns the names of all extended attributes on disk.
    pub(crate) fn xattrs(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Directory(dir) => dir.top()?.xattrs(None),
            Self::Leaf(leaf) => leaf.on(|dir, name| dir.xattrs(Some(name)), |at| at.xattrs()),
        }
    }

    /// Does something to the file in the upper, where it has to be.
    pub(crate) fn in_upper<T>(&self, act: impl FnOnce(At<'_>) -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Directory(dir) => act(At::Directory(dir.upper().ok_or(Errno::STALE)?)),
            Self::Leaf(leaf) => leaf.in_upper(act),
        }
    }
}

impl Dir {
    /// The root of the view.
    pub(crate) fn root(upper: Option<Arc<HostDir>>, lowers: Vec<Arc<dyn LayerDir>>) -> Self {
        Self::new(Ino::ROOT, None, upper.map(|upper| (upper, None)), (lowers.into(), None))
    }

    /// The directory at `place`, made of an upper directory, lower ones, or both, each with its identity.
    pub(crate) fn new(
        ino: Ino,
        place: Option<(Arc<Dir>, Name)>,
        upper: Option<(Arc<HostDir>, Option<RealId>)>,
        (lowers, lower_id): (Box<[Arc<dyn LayerDir>]>, Option<RealId>),
    ) -> Self {
        let (upper, upper_id) = upper.map_or((None, None), |(upper, id)| (Some(upper), id));
        Self {
            ino,
            lowers,
            ids: Ids::new(lower_id, upper_id),
            place: RwLock::new(place),
            upper: upper.map_or_else(OnceLock::new, OnceLock::from),
            names: RwLock::default(),
            absent: Mutex::default(),
            copying: Mutex::default(),
            gone: AtomicBool::new(false),
            guard: Guard::default(),
            impure: Known::default(),
        }
    }

    /// Returns its part in the upper, if it has one.
    pub(crate) fn upper(&self) -> Option<&Arc<HostDir>> {
        self.upper.get()
    }

    /// Says that it has been copied up.
    pub(crate) fn set_upper(&self, upper: Arc<HostDir>, id: RealId) {
        self.ids.upper.get_or_init(|| id);
        self.upper.get_or_init(|| upper);
    }

    /// Returns its topmost part.
    pub(crate) fn top(&self) -> io::Result<&dyn LayerDir> {
        let lower = || self.lowers.first().map(|dir| dir.as_ref());
        self.upper().map(|dir| dir.as_ref() as &dyn LayerDir).or_else(lower).ok_or(Errno::STALE)
    }

    /// Returns all its parts, from the topmost down.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &dyn LayerDir> {
        let upper = self.upper().map(|dir| dir.as_ref() as &dyn LayerDir);
        upper.into_iter().chain(self.lowers.iter().map(|dir| dir.as_ref()))
    }

    /// Returns its attributes. The links of a directory of several parts are not counted: 1 tells programs
    /// not to rely on them.
    pub(crate) fn stat(&self) -> Result<Stat> {
        let mut stat = self.top().and_then(LayerDir::stat).at("stat")?;
        if self.is_gone() {
            stat.links = 0;
        } else if self.parts().nth(1).is_some() {
            stat.links = 1;
        }
        Ok(stat)
    }

    /// Returns the directory that it lies in; `None` for the root and for one that is deleted.
    pub(crate) fn parent(&self) -> Option<Arc<Self>> {
        self.place().as_ref().map(|(parent, _)| Arc::clone(parent))
    }

    /// Returns where it lies.
    pub(crate) fn place(&self) -> RwLockReadGuard<'_, Option<(Arc<Self>, Name)>> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where it lies now.
    pub(crate) fn set_place(&self, parent: &Arc<Self>, name: &Name) {
        let place = Some((Arc::clone(parent), name.clone()));
        let old = std::mem::replace(
            &mut *self.place.write().unwrap_or_else(PoisonError::into_inner),
            place,
        );
        drop(old);
    }

    /// Says that it is deleted. It can still be asked what it is.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        if let Some(upper) = self.upper() {
            upper.set_gone();
        }
    }

    /// Tells whether it is deleted.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Keeps its names as they are.
    pub(crate) fn read_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody else from its names.
    pub(crate) fn write_names(self: &Arc<Self>) -> Writing<'_> {
        let guard = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner).take();
        Writing { dir: self, absent, _guard: guard }
    }

    /// Takes note that a name is not visible; the names must be kept as they are meanwhile.
    pub(crate) fn set_absent(&self, name: Name) {
        *self.absent.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
    }

    /// Tells whether files in its upper part may have the mark `origin`; `read` reads that once.
    pub(crate) fn is_impure(&self, read: impl FnOnce() -> Result<bool>) -> Result<bool> {
        self.impure.get(read)
    }

    /// Says that it is impure.
    pub(crate) fn set_impure(&self) {
        self.impure.set();
    }
}

/// The right to change the names of a directory.
pub(crate) struct Writing<'a> {
    dir: &'a Arc<Dir>,
    absent: Option<Name>,
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Writing<'_> {
    /// Tells whether the last lookup in this directory found that `name` is not visible, and nothing has
    /// changed since; the kernel looks a name up before it makes it.
    pub(crate) fn knows_absent(&self, dir: &Arc<Dir>, name: &Name) -> bool {
        Arc::ptr_eq(self.dir, dir) && self.absent.as_ref() == Some(name)
    }
}

impl Drop for Dir {
    /// Lets go of the directories above one by one, since there may be more than fit on a stack.
    fn drop(&mut self) {
        let mut place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        while let Some((parent, _)) = place {
            let Some(mut parent) = Arc::into_inner(parent) else { return };
            place = parent.place.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

impl Leaf {
    /// The file at `place`, with its identities.
    pub(crate) fn new(
        ino: Ino,
        place: Place,
        lower: Option<RealId>,
        upper: Option<RealId>,
    ) -> Self {
        Self {
            ino,
            ids: Ids::new(lower, upper),
            place: RwLock::new(place),
            copying: Mutex::default(),
            attributes: Known::default(),
            partial: Known::default(),
            guard: Guard::default(),
            surplus: AtomicI64::new(0),
            entry: OnceLock::new(),
            incapable: AtomicBool::new(false),
        }
    }

    /// Returns where it lies.
    pub(crate) fn place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps everybody from using its name.
    pub(crate) fn write_place(&self) -> RwLockWriteGuard<'_, Place> {
        self.place.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that it has been copied up, and by how many its names outnumber its links now.
    pub(crate) fn set_upper(&self, place: Place, id: RealId, surplus: i64) {
        let mut now = self.write_place();
        self.surplus.store(surplus, Ordering::Release);
        let old = std::mem::replace(&mut *now, place);
        // Who sees this sees the place, too.
        self.ids.upper.get_or_init(|| id);
        drop(now);
        drop(old);
    }

    /// Returns the name of its index entry.
    pub(crate) fn entry(&self) -> Option<&Name> {
        self.entry.get()
    }

    /// Says that it has an index entry, unless that is known.
    pub(crate) fn set_indexed(&self, index: &Arc<Dir>, entry: &Name, id: RealId, surplus: i64) {
        let mut place = self.write_place();
        if self.entry.set(entry.clone()).is_err() {
            return;
        }
        self.surplus.store(surplus, Ordering::Release);
        self.ids.upper.get_or_init(|| id);
        let named = (Arc::clone(index), entry.clone());
        match &mut *place {
            Place::Upper(names) => names.push(named),
            lower => *lower = Place::Upper(vec![named]),
        }
    }

    /// Says that its index entry is gone, as the last of its names; `handle` keeps it.
    pub(crate) fn lose_entry(&self, index: &Arc<Dir>, handle: OwnedFd) {
        if let Some(entry) = self.entry() {
            self.surplus.store(0, Ordering::Release);
            self.write_place().lose_name(index, entry, handle);
        }
    }

    /// Returns by how many its names in the view outnumber its links.
    pub(crate) fn surplus(&self) -> i64 {
        self.surplus.load(Ordering::Acquire)
    }

    /// Says that it has so many more names, or less.
    pub(crate) fn add_to_surplus(&self, more: i64) {
        self.surplus.fetch_add(more, Ordering::AcqRel);
    }

    /// Returns how many names it has, of which its layer knows so many.
    pub(crate) fn links(&self, known: u32) -> u32 {
        u32::try_from((i64::from(known) + self.surplus()).max(0)).unwrap_or(u32::MAX)
    }

    /// Tells whether it is known to have a name in the upper.
    pub(crate) fn has_name(&self, parent: &Arc<Dir>, name: &Name) -> bool {
        matches!(&*self.place(), Place::Upper(names) if knows(names, parent, name))
    }

    /// Returns a handle that keeps it.
    pub(crate) fn pin(&self) -> io::Result<OwnedFd> {
        self.on(|dir, name| dir.pin(name), |at| at.pin())
    }

    /// Tells whether it lies in the upper.
    pub(crate) fn is_upper(&self) -> bool {
        self.ids.upper.get().is_some()
    }

    /// Takes note of a name under which a lookup found it.
    pub(crate) fn add_name(&self, parent: &Arc<Dir>, name: &Name, lower: Option<usize>) {
        let news = match (&*self.place(), lower) {
            (Place::Upper(names), None) => !knows(names, parent, name) && names.len() < KNOWN_NAMES,
            (Place::Gone { upper, .. }, lower) => *upper == lower.is_none(),
            _ => false,
        };
        if !news {
            return;
        }
        let (parent, name) = (Arc::clone(parent), name.clone());
        let mut place = self.write_place();
        match (&mut *place, lower) {
            // Before its index entry, which tells people nothing.
            (Place::Upper(names), None) => names.insert(0, (parent, name)),
            (Place::Gone { upper: true, .. }, None) => *place = Place::Upper(vec![(parent, name)]),
            (Place::Gone { upper: false, .. }, Some(layer)) => {
                *place = Place::Lower { parent, layer, name };
            }
            _ => {}
        }
    }

    /// Asks the layer that has it: `lower` by directory and name, or `upper`.
    pub(crate) fn on<T>(
        &self,
        lower: impl FnOnce(&dyn LayerDir, &Name) -> io::Result<T>,
        upper: impl FnOnce(At<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match &*self.place() {
            Place::Lower { parent, layer, name } => {
                lower(parent.lowers.get(*layer).ok_or(Errno::STALE)?.as_ref(), name)
            }
            Place::Upper(names) => upper(named(names)?),
            Place::Gone { handle, .. } => upper(At::Handle(handle)),
        }
    }

    /// Does something to it in the upper, where it has to be.
    pub(crate) fn in_upper<T>(&self, act: impl FnOnce(At<'_>) -> io::Result<T>) -> io::Result<T> {
        match &*self.place() {
            Place::Upper(names) => act(named(names)?),
            Place::Gone { handle, upper: true } => act(At::Handle(handle)),
            Place::Lower { .. } | Place::Gone { .. } => Err(Errno::ROFS),
        }
    }

    /// Returns its attributes, with as many links as it has names in the view.
    pub(crate) fn stat(&self) -> Result<Stat> {
        let mut stat =
            self.on(|dir, name| dir.look(name)?.ok_or(Errno::STALE), |at| at.stat()).at("stat")?;
        stat.links = self.links(stat.links);
        Ok(stat)
    }

    /// Returns the target of a symlink.
    pub(crate) fn read_link(&self) -> Result<Vec<u8>> {
        self.on(|dir, name| dir.read_link(name), |at| at.read_link()).at("read a symlink")
    }

    /// Returns an extended attribute; with no system call if it is known that there are none.
    pub(crate) fn xattr(&self, format: Format, attribute: &OsStr) -> io::Result<Vec<u8>> {
        // The kernel asks that at the first write to every file.
        if attribute == "security.capability" && self.incapable.load(Ordering::Acquire) {
            return Err(Errno::NODATA);
        }
        let any = self.attributes.get(|| {
            let names = self.on(|dir, name| dir.xattrs(Some(name)), |at| at.xattrs())?;
            Ok::<_, Errno>(xattr::copied(format, &names).next().is_some())
        })?;
        if !any && xattr::is_namespace_known(attribute) {
            return Err(Errno::NODATA);
        }
        self.on(|dir, name| dir.xattr(Some(name), attribute), |at| at.xattr(attribute))
    }

    /// Says that it is new, so that it has no file capability.
    pub(crate) fn set_new(&self) {
        self.incapable.store(true, Ordering::Release);
        self.guard.set(Protection::default());
    }

    /// Says that it may have attributes now.
    pub(crate) fn set_attributes(&self) {
        self.incapable.store(false, Ordering::Release);
        self.attributes.set();
    }

    /// Tells whether its layer has only its attributes.
    pub(crate) fn is_partial(&self, format: Format) -> Result<bool> {
        self.partial.get(|| {
            let read = |dir: &dyn LayerDir, name| {
                Ok(format.read(dir, Some(name), Mark::Metacopy)?.is_some())
            };
            match &*self.place() {
                Place::Lower { parent, layer, name } => {
                    read(parent.lowers.get(*layer).ok_or(Error::Stale)?.as_ref(), name)
                }
                Place::Upper(names) => {
                    let (parent, name) = names.first().ok_or(Error::Stale)?;
                    read(parent.upper().ok_or(Error::Stale)?.as_ref(), name)
                }
                Place::Gone { .. } => Ok(false),
            }
        })
    }

    /// Opens it, in the layer that has it; tells whether that is a lower one, which must not be written to.
    pub(crate) fn open(&self, flags: OFlags) -> Result<(File, bool)> {
        // Should it be a pipe by now, opening it must not wait for a writer.
        let flags = flags | OFlags::NONBLOCK;
        let place = self.place();
        let lower = matches!(&*place, Place::Lower { .. } | Place::Gone { upper: false, .. });
        let file = match &*place {
            Place::Lower { parent, layer, name } => {
                let dir = parent.lowers.get(*layer).ok_or(Error::Stale)?;
                dir.open(name)
            }
            Place::Upper(names) => named(names).and_then(|at| at.open(flags)),
            Place::Gone { handle, .. } => At::Handle(handle).open(flags),
        };
        Ok((file.at("open")?, lower))
    }
}

impl Place {
    /// Says that a name is lost; `handle` keeps the file, in case this was the last one that is known, and is
    /// given back otherwise.
    pub(crate) fn lose_name(
        &mut self,
        parent: &Arc<Dir>,
        name: &Name,
        handle: OwnedFd,
    ) -> Option<OwnedFd> {
        let is_it = |(dir, known): &(Arc<Dir>, Name)| Arc::ptr_eq(dir, parent) && known == name;
        let upper = match self {
            Self::Upper(names) => {
                names.retain(|known| !is_it(known));
                if !names.is_empty() {
                    return Some(handle);
                }
                true
            }
            Self::Lower { parent: dir, name: known, .. }
                if Arc::ptr_eq(dir, parent) && known == name =>
            {
                false
            }
            Self::Lower { .. } | Self::Gone { .. } => return Some(handle),
        };
        *self = Self::Gone { handle, upper };
        None
    }
}

fn knows(names: &[(Arc<Dir>, Name)], parent: &Arc<Dir>, name: &Name) -> bool {
    names.iter().any(|(dir, known)| Arc::ptr_eq(dir, parent) && known == name)
}

fn named(names: &[(Arc<Dir>, Name)]) -> io::Result<At<'_>> {
    let (parent, name) = names.first().ok_or(Errno::STALE)?;
    Ok(At::Name(parent.upper().ok_or(Errno::STALE)?, name))
}
