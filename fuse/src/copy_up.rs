//! Copies a lower file to the upper before it is changed.
//!
//! Parents first. The copy is made unseen and complete (data, owner, mode, attributes, times), its data are
//! made durable, and one system call publishes it. Only users of that file wait meanwhile. The times of
//! the directory that it appears in stay. What nobody needs of the data is not copied.

use std::cmp::min;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::{self, Errno};

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::errno::{Context, Error, Result};
use crate::format::{Format, Mark};
use crate::index::{self, Index};
use crate::layer::{At, HostDir, Kind, LayerDir, Name, Stat};
use crate::node::{Dir, Leaf, Node, Place, RealId};
use crate::overlay::Overlay;
use crate::protattr;
use crate::upper::Upper;
use crate::xattr;

/// How much of a file's data is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// All.
    All,
    /// As many bytes from the start.
    First(u64),
}

/// What is to be copied, and how it is reached.
struct Source<'a> {
    dir: &'a dyn LayerDir,
    /// `None` for the directory itself.
    name: Option<&'a Name>,
    stat: Stat,
    /// The name that the copy gets in the index, if it does.
    entry: Option<Name>,
}

/// A copy that nobody sees yet.
enum Staged {
    /// A file without a name.
    Unnamed(OwnedFd),
    /// Under a name in work.
    Named(Name),
}

/// What a copy has cost so far.
struct Cost {
    began: Instant,
    bytes: u64,
}

impl Overlay {
    /// Makes sure that a file lies in the upper.
    pub(crate) fn copy_up(&self, node: &Node, data: Data, caller: &Caller) -> Result<()> {
        match node {
            Node::Directory(dir) => self.copy_up_dir(dir, caller).map(drop),
            Node::Leaf(leaf) => self.copy_up_leaf(leaf, data, caller),
        }
    }

    /// Makes sure that a directory and all above it have a part in the upper; returns that.
    pub(crate) fn copy_up_dir(&self, dir: &Arc<Dir>, caller: &Caller) -> Result<Arc<HostDir>> {
        self.upper()?;
        let mut missing = Vec::new();
        let mut next = Arc::clone(dir);
        let mut above = loop {
            // One that is deleted is still somebody's, who has it open.
            if let Some(found) = next.upper() {
                break Arc::clone(found);
            }
            if next.is_gone() {
                return Err(Error::NoEntry);
            }
            let parent = next.parent().ok_or(Error::ReadOnly)?;
            missing.push(std::mem::replace(&mut next, parent));
        };
        while let Some(dir) = missing.pop() {
            above = self.copy_up_one_dir(&dir, &above, caller)?;
        }
        Ok(above)
    }

    fn copy_up_one_dir(
        &self,
        dir: &Arc<Dir>,
        above: &Arc<HostDir>,
        caller: &Caller,
    ) -> Result<Arc<HostDir>> {
        let (upper, cost) = (self.upper()?, Cost::new());
        let node = Node::Directory(Arc::clone(dir));
        let _alone = node.lock();
        if dir.is_gone() {
            return Err(Error::NoEntry);
        }
        if let Some(found) = dir.upper() {
            return Ok(Arc::clone(found));
        }
        let Some((parent, name)) = dir.place().clone() else { return Err(Error::ReadOnly) };
        let lower = dir.top().at("copy up")?;
        let source = Source { dir: lower, name: None, stat: dir.stat()?, entry: None };
        let staged = self.stage_dir(upper, &source)?;
        let work = upper.work();
        let id = work.publish(&staged, || At::Name(work.dir(), &staged).stat());
        let id = RealId::of(&id.at("copy up a directory")?);
        let published =
            self.publish(&parent, &name, above, Staged::Named(staged), (&source, cost), caller);
        published?;
        let new = Arc::new(above.below(&name));
        dir.set_upper(Arc::clone(&new), id);
        self.changed(dir.ino);
        Ok(new)
    }

    /// Makes a directory in work that is like another one, and empty.
    fn stage_dir(&self, upper: &Upper, source: &Source<'_>) -> Result<Name> {
        let work = upper.work();
        let name = work.new_name().at("copy up a directory")?;
        work.dir().make_dir(&name, 0o700).at("copy up a directory")?;
        let dressed = self.dress(source, At::Name(work.dir(), &name));
        dressed.inspect_err(|_| work.discard(&name))?;
        Ok(name)
    }

    /// Makes an opaque directory in work that is like `dir`, and has nothing in it.
    pub(crate) fn stage_emptied(&self, dir: &HostDir) -> Result<Name> {
        let upper = self.upper()?;
        let stat = dir.stat().at("clear a directory")?;
        let name = self.stage_dir(upper, &Source { dir, name: None, stat, entry: None })?;
        let at = At::Name(upper.work().dir(), &name);
        let marked = self.mark(at, Mark::Opaque, b"y");
        marked.inspect_err(|_| upper.work().discard(&name))?;
        Ok(name)
    }

    fn copy_up_leaf(&self, leaf: &Arc<Leaf>, data: Data, caller: &Caller) -> Result<()> {
        let upper = self.upper()?;
        self.refuse_partial(leaf)?;
        let node = Node::Leaf(Arc::clone(leaf));
        while !leaf.is_upper() {
            let parent = match &*leaf.place() {
                Place::Lower { parent, .. } => Some(Arc::clone(parent)),
                _ => None,
            };
            let above = parent.as_ref().map(|dir| self.copy_up_dir(dir, caller)).transpose()?;
            let _alone = node.lock();
            if leaf.is_upper() {
                break;
            }
            let now = match &*leaf.place() {
                Place::Lower { parent, layer, name } => {
                    Some((Arc::clone(parent), *layer, name.clone()))
                }
                _ => None,
            };
            match (parent, above, now) {
                (Some(dir), Some(above), Some((parent, layer, name)))
                    if Arc::ptr_eq(&dir, &parent) =>
                {
                    let lower = parent.lowers.get(layer).ok_or(Error::Stale)?;
                    let stat = lower.look(&name).at("copy up")?.ok_or(Error::Stale)?;
                    let entry = self.entry_of(lower.as_ref(), Some(&name), &stat);
                    let dir = lower.as_ref();
                    let source = Source { dir, name: Some(&name), stat, entry };
                    return self.copy_up_named(leaf, (&parent, &above), &source, data, caller);
                }
                (None, None, None) => return self.copy_up_gone(upper, leaf, data),
                // It has been renamed or removed meanwhile.
                _ => {}
            }
        }
        Ok(())
    }

    fn copy_up_named(
        &self,
        leaf: &Leaf,
        (parent, above): (&Arc<Dir>, &Arc<HostDir>),
        source: &Source<'_>,
        data: Data,
        caller: &Caller,
    ) -> Result<()> {
        let (upper, mut cost) = (self.upper()?, Cost::new());
        let name = source.name.ok_or(Error::Stale)?;
        if let (Some(entry), Some(index)) = (&source.entry, upper.index())
            && let Some(found) = index.look(entry)?
        {
            return self.adopt(leaf, entry, &found, Some(source.stat.links));
        }
        let names = i64::from(source.stat.links) + leaf.surplus();
        let work = upper.work();
        let (staged, stat) = if source.stat.kind == Kind::File {
            let from = source.dir.open(name).at("copy up")?;
            self.stage_file(upper, &from, source, data, &mut cost)?
        } else {
            let new = work.new_name().at("copy up")?;
            let staged = self.stage_special(upper, source, name, &new);
            let stat = staged.inspect_err(|_| work.discard(&new))?;
            (Staged::Named(new), stat)
        };
        if source.entry.is_some() {
            // As long as the index entry is its only link.
            let mark = index::nlink_mark(names - 1);
            let marked = self.mark(staged.at(work.dir()), Mark::Nlink, mark.as_bytes());
            marked.inspect_err(|_| staged.discard(upper))?;
        }
        let id = RealId::of(&stat);
        // Before anybody can find it.
        self.inodes.add_copy(id, leaf.ino);
        let published = self.publish(parent, name, above, staged, (source, cost), caller);
        published.inspect_err(|_| self.inodes.drop_copy(id))?;
        let named = Place::Upper(vec![(Arc::clone(parent), name.clone())]);
        let stored = match source.entry.as_ref().zip(upper.index()) {
            Some((entry, index)) => {
                leaf.set_upper(named, id, names - 2);
                leaf.set_indexed(index.dir(), entry, id, names - 2);
                self.store_surplus(leaf)
            }
            None => {
                leaf.set_upper(named, id, names - 1);
                Ok(())
            }
        };
        self.changed(leaf.ino);
        stored
    }

    /// Copies a file that has no name any more, for those who have it open.
    fn copy_up_gone(&self, upper: &Upper, leaf: &Leaf, data: Data) -> Result<()> {
        let stat = leaf.stat()?;
        if stat.kind != Kind::File {
            return Err(Error::NoEntry);
        }
        let (from, _) = leaf.open(rustix::fs::OFlags::RDONLY)?;
        let mut cost = Cost::new();
        let (to, work) = (self.new_file(upper)?, upper.work());
        let (file, name) = to;
        let copied = (|| {
            cost.bytes = copy_data(&from, &file, &stat, data).at("copy up a deleted file")?;
            let handle = OwnedFd::from(from.try_clone().map_err(|_| Errno::MFILE).at("copy up")?);
            dress_basics(&stat, At::Handle(&file))?;
            copy_xattrs(
                self.format,
                At::Handle(&handle).xattrs().at("copy up")?,
                At::Handle(&file),
                |name| At::Handle(&handle).xattr(name),
            )?;
            At::Handle(&file).set_times(&times(&stat)).at("copy up a deleted file")?;
            let entry = self.index_deleted(&from, &file, stat.links)?;
            Ok((entry, At::Handle(&file).stat().at("copy up a deleted file")?))
        })();
        if let Some(name) = name {
            work.discard(&name);
        }
        let surplus = stat.links.into();
        let (entry, copy) = copied?;
        let id = RealId::of(&copy);
        leaf.set_upper(Place::Gone { handle: file, upper: true }, id, surplus);
        if let (Some(entry), Some(index)) = (entry, upper.index()) {
            leaf.set_indexed(index.dir(), &entry, id, surplus - 1);
        }
        Ok(())
    }

    /// Makes a file for the upper, without a name where the file system can.
    fn new_file(&self, upper: &Upper) -> Result<(OwnedFd, Option<Name>)> {
        let work = upper.work();
        match work.dir().create_unnamed(0o600) {
            Ok(file) => Ok((file.into(), None)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let name = work.new_name().at("copy up")?;
                let file = work.dir().create_file(&name, 0o600).at("copy up")?;
                Ok((file.into(), Some(name)))
            }
            Err(error) => Err(error).at("copy up"),
        }
    }

    fn stage_file(
        &self,
        upper: &Upper,
        from: &File,
        source: &Source<'_>,
        data: Data,
        cost: &mut Cost,
    ) -> Result<(Staged, Stat)> {
        let (file, name) = self.new_file(upper)?;
        let staged = (|| {
            cost.bytes = copy_data(from, &file, &source.stat, data).at("copy up")?;
            protattr::copy_flags(from, &file);
            self.dress(source, At::Handle(&file))?;
            if cost.bytes > 0 && !upper.is_volatile() {
                rustix::fs::fdatasync(&file).at("copy up")?;
            }
            At::Handle(&file).stat().at("copy up")
        })();
        match (staged, name) {
            (Ok(stat), None) => Ok((Staged::Unnamed(file), stat)),
            (Ok(stat), Some(name)) => Ok((Staged::Named(name), stat)),
            (Err(error), name) => {
                name.iter().for_each(|name| upper.work().discard(name));
                Err(error)
            }
        }
    }

    fn stage_special(
        &self,
        upper: &Upper,
        source: &Source<'_>,
        name: &Name,
        new: &Name,
    ) -> Result<Stat> {
        let (work, Source { stat, .. }) = (upper.work().dir(), source);
        match stat.kind {
            Kind::Symlink => {
                let target = source.dir.read_link(name).at("copy up")?;
                work.make_symlink(new, &target).at("copy up")?;
            }
            kind => work.make_node(new, kind, 0o600, stat.device).at("copy up")?,
        }
        let at = At::Name(work, new);
        self.dress(source, at)?;
        at.stat().at("copy up")
    }

    /// Gives a copy everything but data that its source has.
    fn dress(&self, source: &Source<'_>, copy: At<'_>) -> Result<()> {
        let Source { dir, name, stat, entry } = source;
        dress_basics(stat, copy)?;
        let names = match dir.xattrs(*name) {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            names => names.at("copy up")?,
        };
        copy_xattrs(self.format, names, copy, |attribute| dir.xattr(*name, attribute))?;
        // Without the index a file with several names would have one number for different files once they part.
        if (stat.kind == Kind::Directory || stat.links == 1 || entry.is_some())
            && let Some(origin) = self.origins.mark(*dir, *name, stat)
        {
            match self.mark(copy, Mark::Origin, &origin) {
                // Neither has the kernel it where it has no place.
                Err(Error::Layer { source: Errno::OPNOTSUPP | Errno::PERM, .. }) => {}
                marked => marked?,
            }
        }
        self.protect_copy(stat, copy)?;
        copy.set_times(&times(stat)).at("copy up")
    }

    /// Gives a staged copy its name in the upper. The directory's times stay.
    fn publish(
        &self,
        parent: &Arc<Dir>,
        name: &Name,
        above: &HostDir,
        staged: Staged,
        (source, cost): (&Source<'_>, Cost),
        caller: &Caller,
    ) -> Result<()> {
        let upper = self.upper()?;
        let Cost { began, bytes } = cost;
        let change = || {
            let what = What::CopyUp { kind: source.stat.kind, bytes, took: began.elapsed() };
            Change::of(parent, name, what)
        };
        let work = upper.work();
        let published = self.mark_impure(parent, caller).and_then(|()| {
            upper.change(caller, change, || {
                let before = above.stat().at("copy up")?;
                match source.entry.as_ref().zip(upper.index()) {
                    Some((entry, index)) => {
                        staged.publish_indexed(work.dir(), index, entry, (above, name))
                    }
                    None => staged.publish(work.dir(), above, name),
                }
                .at("copy up")?;
                // The copy is there: this cannot undo it, nor does it in the kernel.
                At::Directory(above).set_times(&times(&before)).ok();
                Ok(())
            })
        });
        published.inspect_err(|_| staged.discard(upper))
    }

    /// Says on the upper part of a directory that it holds copied-up files.
    pub(crate) fn mark_impure(&self, dir: &Dir, caller: &Caller) -> Result<()> {
        let Some(part) = dir.upper() else { return Ok(()) };
        let is_marked = || Ok(self.format.read(part.as_ref(), None, Mark::Impure)?.is_some());
        if dir.is_impure(is_marked)? {
            return Ok(());
        }
        let change = || match &*dir.place() {
            Some((parent, name)) => Change::of(parent, name, What::Impure),
            None => Change { path: std::path::PathBuf::new(), what: What::Impure },
        };
        self.upper()?
            .change(caller, change, || self.mark(At::Directory(part), Mark::Impure, b"y"))?;
        dir.set_impure();
        Ok(())
    }

    /// Sets a mark.
    pub(crate) fn mark(&self, at: At<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        at.set_xattr(&self.format.attribute(mark), value, XattrFlags::empty()).at("set a mark")
    }
}

impl Staged {
    /// Reaches the copy; named ones lie in `work`.
    fn at<'a>(&'a self, work: &'a HostDir) -> At<'a> {
        match self {
            Self::Unnamed(file) => At::Handle(file),
            Self::Named(new) => At::Name(work, new),
        }
    }

    fn publish(&self, work: &HostDir, above: &HostDir, name: &Name) -> io::Result<()> {
        match self {
            Self::Unnamed(file) => above.link_open(file, name),
            Self::Named(new) => work.rename(new, above, name, RenameFlags::NOREPLACE),
        }
    }

    /// Publishes it in the index first, so that no other name ever leads to the lower file again.
    fn publish_indexed(
        &self,
        work: &HostDir,
        index: &Index,
        entry: &Name,
        (above, name): (&HostDir, &Name),
    ) -> io::Result<()> {
        match self {
            Self::Unnamed(file) => index.add(|entries| entries.link_open(file, entry))?,
            Self::Named(new) => index.take(entry, work, new)?,
        }
        index.link(entry, above, name).inspect_err(|_| index.remove(entry))
    }

    fn discard(&self, upper: &Upper) {
        if let Self::Named(new) = self {
            upper.work().discard(new);
        }
    }
}

impl Cost {
    fn new() -> Self {
        Self { began: Instant::now(), bytes: 0 }
    }
}

/// Owner first: changing it takes away setuid.
fn dress_basics(stat: &Stat, copy: At<'_>) -> Result<()> {
    copy.set_owner(Some(stat.uid), Some(stat.gid)).at("copy up")?;
    match stat.kind {
        Kind::Symlink => Ok(()),
        _ => copy.set_mode(stat.mode).at("copy up"),
    }
}

/// Copies extended attributes, save the overlay's own marks. What the upper cannot hold is left out, unless
/// it decides who may do what.
fn copy_xattrs(
    format: Format,
    names: Vec<u8>,
    copy: At<'_>,
    read: impl Fn(&std::ffi::OsStr) -> io::Result<Vec<u8>>,
) -> Result<()> {
    for name in xattr::copied(format, &names) {
        let value = match read(name) {
            Err(Errno::NODATA) => continue,
            value => value.at("copy up an attribute")?,
        };
        match copy.set_xattr(name, &value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) if !xattr::is_vital(name) => {}
            set => set.at("copy up an attribute")?,
        }
    }
    Ok(())
}

/// Returns what sets both times to those of `stat`.
pub(crate) fn times(stat: &Stat) -> Timestamps {
    let time = |time: crate::layer::Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    };
    Timestamps { last_access: time(stat.accessed), last_modification: time(stat.modified) }
}

/// Copies data, and holes as holes; returns how many bytes were copied.
fn copy_data(from: &File, to: &OwnedFd, stat: &Stat, data: Data) -> io::Result<u64> {
    let length = match data {
        Data::All => stat.size,
        Data::First(most) => min(most, stat.size),
    };
    if length == 0 {
        return Ok(0);
    }
    if length == stat.size && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(length);
    }
    let sparse = stat.blocks.saturating_mul(512) < stat.size;
    let mut copied = 0;
    let mut at = 0;
    while at < length {
        let (start, end) = if sparse { next_data(from, at, length)? } else { (at, length) };
        copy_range(from, to, start, end)?;
        copied += end - start;
        at = end;
    }
    rustix::fs::ftruncate(to, length)?;
    Ok(copied)
}

/// Returns where the next data begin and end, at `length` at the latest.
fn next_data(from: &File, at: u64, length: u64) -> io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => length,
        // A file system that does not know holes has none.
        Err(Errno::INVAL) => return Ok((at, length)),
        start => min(start?, length),
    };
    if start == length {
        return Ok((length, length));
    }
    Ok((start, min(rustix::fs::seek(from, SeekFrom::Hole(start))?, length)))
}

/// Copies within the kernel, where the file systems can; else by way of this process.
fn copy_range(from: &File, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let left = usize::try_from(min(end - read_at, 1 << 30)).map_err(|_| Errno::OVERFLOW)?;
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left) {
            // Somebody cut the lower file, which nobody may change.
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                return pump(from, to, read_at, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn pump(from: &File, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = start;
    while at < end {
        let room =
            usize::try_from(min(end - at, buffer.len() as u64)).map_err(|_| Errno::OVERFLOW)?;
        let part = buffer.get_mut(..room).ok_or(Errno::OVERFLOW)?;
        let read = match rustix::io::pread(from, &mut *part, at) {
            Ok(0) => return Err(Errno::IO),
            Err(Errno::INTR) => continue,
            read => read?,
        };
        let mut left = part.get(..read).ok_or(Errno::OVERFLOW)?;
        while !left.is_empty() {
            match rustix::io::pwrite(to, left, at) {
                Ok(0) => return Err(Errno::IO),
                Err(Errno::INTR) => {}
                written => {
                    let written = written?;
                    left = left.get(written..).ok_or(Errno::OVERFLOW)?;
                    at += written as u64;
                }
            }
        }
    }
    Ok(())
}
