//! Hard links of lower files, kept across copy-up: which files are indexed, and how many names they have.
//!
//! A lower file with several names is copied up once. The copy gets a name in `work/index` before it gets one in
//! the upper: the value of its mark `origin` in hexadecimal digits. A name that only a lower layer shows leads
//! to that entry, so all names go on showing one file. Its mark `nlink` says by how many the names in the
//! view outnumber the links on disk. A crash may leave it too high, never too low: then a copy is kept
//! that nobody sees, and nothing is lost. Form and rules are the kernel's with `index=on`; only a name that
//! is deleted before its file was copied up is not counted on disk, since that would take a copy.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::RenameFlags;
use rustix::io::{self, Errno};

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::errno::{Context, Result};
use crate::format::{Format, Mark};
use crate::inode::Ino;
use crate::layer::{At, HostDir, Kind, LayerDir, Name, Stat, stat_of};
use crate::node::{Dir, Leaf, RealId};
use crate::overlay::Overlay;
use crate::sys::name_to_handle;
use crate::upper;

/// Names the index in requests, where nobody ever asks for it.
const NOBODY: Ino = Ino(0);

/// The index of an upper.
#[derive(Debug)]
pub(crate) struct Index {
    base: Arc<HostDir>,
    /// The name in `base`.
    name: Name,
    /// A directory that is not in the view, so that an entry is a name of its file like any other.
    dir: Arc<Dir>,
    /// What lies in `dir`.
    entries: Arc<HostDir>,
    /// How many entries were ever added or found; as long as it is zero, nothing need be looked up.
    version: AtomicU64,
}

impl Index {
    /// Opens the index in a work directory, which is made when it is first needed.
    pub(crate) fn open(base: &Arc<HostDir>) -> io::Result<Self> {
        let name = Name::new(OsStr::new("index")).map_err(|_| Errno::INVAL)?;
        let entries = Arc::new(base.below(&name));
        let part = Some((Arc::clone(&entries), None));
        let dir = Arc::new(Dir::new(NOBODY, None, part, (Box::default(), None)));
        let index = Self { base: Arc::clone(base), name, dir, entries, version: AtomicU64::new(0) };
        let found = index.list()?.len() as u64;
        index.version.store(found, Ordering::Release);
        Ok(index)
    }

    fn list(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        if self.base.look(&self.name)?.is_some_and(|stat| stat.kind == Kind::Directory) {
            self.entries.list(&mut |entry| names.push(entry.name))?;
        }
        Ok(names)
    }

    /// Deletes entries of which no name is left, as a crash leaves them. What cannot be read or deleted is
    /// left to the next mount.
    pub(crate) fn clean(&self, format: Format) {
        for name in self.list().unwrap_or_default() {
            let at = At::Name(&self.entries, &name);
            let Ok(stat) = at.stat() else { continue };
            let mark = format.read(self.entries.as_ref(), Some(&name), Mark::Nlink);
            let surplus = mark.ok().flatten().and_then(|mark| read_nlink(&mark)?.surplus(0, None));
            if stat.kind != Kind::Directory
                && surplus.is_some_and(|surplus| i64::from(stat.links) + surplus <= 0)
            {
                self.entries.remove(&name).ok();
            }
        }
    }

    /// Changes whenever an entry is added.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The directory of the entries.
    pub(crate) fn dir(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// Returns what lies under the name of an entry.
    pub(crate) fn look(&self, entry: &Name) -> Result<Option<Stat>> {
        if self.version() == 0 {
            return Ok(None);
        }
        match self.entries.look(entry) {
            Err(Errno::NOENT) => Ok(None),
            found => found.at("look an index entry up"),
        }
    }

    /// Adds an entry; `link` links the file to the name in the directory.
    pub(crate) fn add(&self, link: impl FnOnce(&HostDir) -> io::Result<()>) -> io::Result<()> {
        match self.base.make_dir(&self.name, 0o700) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        link(&self.entries)?;
        self.version.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Links an entry's file to a name in the upper.
    pub(crate) fn link(&self, entry: &Name, above: &HostDir, name: &Name) -> io::Result<()> {
        self.entries.link(entry, above, name)
    }

    /// Moves a file from another directory to the name of an entry.
    pub(crate) fn take(&self, entry: &Name, from: &HostDir, name: &Name) -> io::Result<()> {
        self.add(|entries| from.rename(name, entries, entry, RenameFlags::NOREPLACE))
    }

    /// Deletes an entry. If that fails, the next mount does it.
    pub(crate) fn remove(&self, entry: &Name) {
        self.entries.remove(entry).ok();
    }
}

/// What the mark `nlink` says: how many names there are, given the links of one of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nlink {
    /// So many more than the upper file has links.
    Upper(i64),
    /// So many more than the lower file has links.
    Lower(i64),
}

/// Returns the name of the entry of a file with this `origin`.
pub(crate) fn entry_name(origin: &[u8]) -> Option<Name> {
    let digits = origin.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Name::new(&OsString::from(digits)).ok()
}

/// Returns the value of the mark `nlink` that says by how many names outnumber links.
pub(crate) fn nlink_mark(surplus: i64) -> String {
    format!("U{surplus:+}")
}

/// Reads a value of the mark `nlink`: by how many names outnumber the links of the file on disk; or those
/// of the lower file, as the kernel has it for a moment.
pub(crate) fn read_nlink(mark: &[u8]) -> Option<Nlink> {
    let (from, number) = mark.split_first()?;
    let number = std::str::from_utf8(number).ok()?;
    let more = number.parse::<i32>().ok().filter(|_| number.starts_with(['+', '-']))?.into();
    match from {
        b'U' => Some(Nlink::Upper(more)),
        b'L' => Some(Nlink::Lower(more)),
        _ => None,
    }
}

impl Nlink {
    /// Returns by how many names outnumber the links of the `found` entry; `None` if the lower file, which
    /// has `lower` links, is not known.
    fn surplus(self, found: u32, lower: Option<u32>) -> Option<i64> {
        match self {
            Self::Upper(more) => Some(more),
            Self::Lower(more) => Some(i64::from(lower?) + more - i64::from(found)),
        }
    }
}

impl Overlay {
    /// Returns the index; `None` without an upper, or if links are not kept.
    pub(crate) fn index(&self) -> Option<&Index> {
        self.upper().ok()?.index()
    }

    /// Returns the name that a lower file has in the index, once it is copied up; `None` if it is not to be
    /// indexed.
    pub(crate) fn entry_of(
        &self,
        dir: &dyn LayerDir,
        name: Option<&Name>,
        stat: &Stat,
    ) -> Option<Name> {
        self.index().filter(|_| self.is_linked(stat))?;
        entry_name(&self.origins.mark(dir, name, stat)?)
    }

    /// Tells whether a file has several names, and can have the marks.
    pub(crate) fn is_linked(&self, stat: &Stat) -> bool {
        let markable = self.format == Format::Trusted || stat.kind == Kind::File;
        stat.links > 1 && stat.kind != Kind::Directory && markable
    }

    /// Returns the index entry of a file of the upper that has one.
    pub(crate) fn entry_of_upper(
        &self,
        dir: &Dir,
        name: &Name,
        stat: &Stat,
    ) -> Result<Option<Name>> {
        let Some(index) = self.index().filter(|index| index.version() > 0) else { return Ok(None) };
        if !self.is_linked(stat) {
            return Ok(None);
        }
        let origin = self.origin_mark(dir, name)?;
        let Some(entry) = origin.and_then(|origin| entry_name(&origin)) else { return Ok(None) };
        let found = index.look(&entry)?.map(|found| RealId::of(&found));
        Ok(Some(entry).filter(|_| found == Some(RealId::of(stat))))
    }

    /// Makes a file known as that of an index entry, unless it is. Of the lower file the number of links may
    /// be known.
    pub(crate) fn adopt(
        &self,
        leaf: &Leaf,
        entry: &Name,
        found: &Stat,
        lower: Option<u32>,
    ) -> Result<()> {
        let Some(index) = self.index().filter(|_| leaf.entry().is_none()) else { return Ok(()) };
        let mark = self.format.read(index.entries.as_ref(), Some(entry), Mark::Nlink)?;
        let nlink = mark.and_then(|mark| read_nlink(&mark)).unwrap_or(Nlink::Lower(0));
        // Who counts too few names would delete the entry too early, so who cannot count leaves it alone.
        if let Some(surplus) = nlink.surplus(found.links, lower) {
            leaf.set_indexed(index.dir(), entry, RealId::of(found), surplus);
        }
        Ok(())
    }

    /// Writes down by how many the names of an indexed file outnumber its links.
    pub(crate) fn store_surplus(&self, leaf: &Leaf) -> Result<()> {
        let Some(entry) = leaf.entry() else { return Ok(()) };
        let Some(index) = self.index() else { return Ok(()) };
        let mark = nlink_mark(leaf.surplus());
        self.mark(At::Name(&index.entries, entry), Mark::Nlink, mark.as_bytes())
    }

    /// Gives the copy of a deleted file that has `names` left in lower layers an index entry, so that these lead
    /// to it; returns the name of the entry.
    pub(crate) fn index_deleted(
        &self,
        from: &File,
        copy: &OwnedFd,
        names: u32,
    ) -> Result<Option<Name>> {
        let lower = stat_of(from).at("copy up a deleted file")?;
        let Some(index) = self.index().filter(|_| names > 0 && self.is_linked(&lower)) else {
            return Ok(None);
        };
        let handle = name_to_handle(from, OsStr::new("")).ok();
        let origin = handle.and_then(|handle| self.origins.mark_of(lower.fs, &handle));
        let Some((entry, origin)) = origin.and_then(|mark| Some((entry_name(&mark)?, mark))) else {
            return Ok(None);
        };
        self.mark(At::Handle(copy), Mark::Origin, &origin)?;
        let mark = nlink_mark(i64::from(names) - 1);
        self.mark(At::Handle(copy), Mark::Nlink, mark.as_bytes())?;
        index.add(|entries| entries.link_open(copy, &entry)).at("copy up a deleted file")?;
        Ok(Some(entry))
    }

    /// Gives a file of the upper, that so far has a name only in a lower layer, this name in the upper. The
    /// directory's times stay. The file is locked.
    pub(crate) fn link_up(
        &self,
        leaf: &Leaf,
        (dir, above, name): (&Arc<Dir>, &Arc<HostDir>, &Name),
        caller: &Caller,
    ) -> Result<()> {
        self.mark_impure(dir, caller)?;
        let change =
            || Change { path: upper::leaf_path(leaf), what: What::Link(upper::path(dir, name)) };
        self.upper()?.change(caller, change, || {
            let before = above.stat().at("link")?;
            leaf.in_upper(|at| at.link(above, name)).at("link")?;
            At::Directory(above).set_times(&crate::copy_up::times(&before)).at("link")
        })?;
        leaf.add_to_surplus(-1);
        leaf.add_name(dir, name, None);
        self.store_surplus(leaf)
    }

    /// Says that a file has lost a name, which it had in a lower layer only or in the upper; with the last
    /// one its index entry goes. The file is locked.
    pub(crate) fn lost_name(
        &self,
        leaf: &Leaf,
        in_lower: bool,
        handle: Option<OwnedFd>,
    ) -> Result<()> {
        if in_lower {
            leaf.add_to_surplus(-1);
        }
        let (Some(entry), Some(index), Some(handle)) = (leaf.entry(), self.index(), handle) else {
            return Ok(());
        };
        if leaf.stat()?.links > 0 {
            return if in_lower { self.store_surplus(leaf) } else { Ok(()) };
        }
        index.remove(entry);
        leaf.lose_entry(index.dir(), handle);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_named_after_the_origin() {
        assert_eq!(entry_name(&[0, 0xfb, 33]).unwrap().as_os_str(), "00fb21");
        assert!(entry_name(&[]).is_none());
        assert!(entry_name(&[7; 128]).is_none(), "no name is that long");
    }

    #[test]
    fn numbers_of_links_are_written_as_they_are_read() {
        for (number, mark) in [(0, "U+0"), (12, "U+12"), (-3, "U-3")] {
            assert_eq!(nlink_mark(number), mark);
            assert_eq!(read_nlink(mark.as_bytes()), Some(Nlink::Upper(number)));
        }
        assert_eq!(read_nlink(b"L-1"), Some(Nlink::Lower(-1)));
        for bad in ["", "U", "U1", "U+", "U+1x", "U+99999999999", "u+1"] {
            assert_eq!(read_nlink(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Nlink::Upper(1).surplus(2, None), Some(1));
        assert_eq!(Nlink::Lower(-1).surplus(2, Some(4)), Some(1));
        assert_eq!(Nlink::Lower(0).surplus(2, None), None);
    }
}
