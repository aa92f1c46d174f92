//! Files that nobody may change: immutable ones, and those that may only be appended to (`chattr +i`, `+a`).
//!
//! A lower file has the flags it has there. An upper one cannot have them, since then it could not get its name or
//! its marks; it has the mark `protattr` instead, as in the kernel, and they are honoured here. All other flags
//! are those of the file itself. Who has a file open already may go on writing to it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{IFlags, XattrFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::{self, Errno};

use crate::attr::{SetAttr, SetTime};
use crate::caller::Caller;
use crate::change::{Change, What};
use crate::copy_up::Data;
use crate::errno::{Context, Error, Result};
use crate::format::Mark;
use crate::inode::Ino;
use crate::layer::{At, Stat};
use crate::node::{Dir, Node};
use crate::overlay::Overlay;
use crate::sys::{self, ExtendedFlags};

/// `FS_IMMUTABLE_FL` and `FS_APPEND_FL`.
const PLAIN: Bits = Bits { immutable: 0x10, append: 0x20 };
/// `FS_XFLAG_IMMUTABLE` and `FS_XFLAG_APPEND`.
const EXTENDED: Bits = Bits { immutable: 0x08, append: 0x10 };
/// `FS_SYNC_FL` and `FS_NOATIME_FL`: those that a copy takes over.
const COPIED: u32 = 0x08 | 0x80;

/// Which bits say what a file is protected from.
struct Bits {
    immutable: u32,
    append: u32,
}

impl Bits {
    fn mask(&self) -> u32 {
        self.immutable | self.append
    }

    fn protection(&self, flags: u32) -> Protection {
        let (immutable, append) = (flags & self.immutable != 0, flags & self.append != 0);
        Protection { immutable, append }
    }

    fn flags(&self, protection: Protection) -> u32 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(protection.immutable, self.immutable) | flag(protection.append, self.append)
    }
}

/// What a file is protected from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Nothing of it can be changed.
    pub immutable: bool,
    /// It can only be appended to.
    pub append: bool,
}

/// What somebody wants to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Open it for writing: anywhere, or at its end.
    Write { at_end: bool },
    /// Change its length, or punch holes.
    Resize,
    /// Change its attributes, names or place.
    Change,
    /// Set its times to now, or reserve room in it.
    Touch,
    /// Make a name in it.
    Make,
    /// Delete or rename a name in it.
    Remove,
}

impl Protection {
    /// Reads the mark `protattr`: one letter for each.
    pub(crate) fn read(mark: &[u8]) -> Self {
        Self { immutable: mark.contains(&b'i'), append: mark.contains(&b'a') }
    }

    /// Returns the value of the mark.
    pub(crate) fn mark(self) -> Vec<u8> {
        let letters = [(self.append, b'a'), (self.immutable, b'i')];
        letters.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect()
    }

    fn and(self, other: Self) -> Self {
        Self { immutable: self.immutable || other.immutable, append: self.append || other.append }
    }

    /// Tells whether there is any.
    pub(crate) fn is_any(self) -> bool {
        self.immutable || self.append
    }

    /// Tells whether it forbids that.
    pub(crate) fn forbids(self, what: Use) -> bool {
        match what {
            Use::Write { at_end: true } | Use::Touch | Use::Make => self.immutable,
            Use::Write { at_end: false } | Use::Resize | Use::Change | Use::Remove => self.is_any(),
        }
    }
}

/// The protection of a file, once it is known.
#[derive(Debug, Default)]
pub(crate) struct Guard(AtomicU8);

const KNOWN: u8 = 1;

impl Guard {
    fn get(&self) -> Option<Protection> {
        let bits = self.0.load(Ordering::Acquire);
        let protection = Protection { immutable: bits & 2 != 0, append: bits & 4 != 0 };
        Some(protection).filter(|_| bits & KNOWN != 0)
    }

    /// Says what it is from now on.
    pub(crate) fn set(&self, protection: Protection) {
        let Protection { immutable, append } = protection;
        let bits = KNOWN | u8::from(immutable) << 1 | u8::from(append) << 2;
        self.0.store(bits, Ordering::Release);
    }
}

impl SetAttr {
    /// Returns what is done with the file.
    fn uses(&self) -> impl Iterator<Item = Use> {
        let Self { mode, uid, gid, size, accessed, modified } = self;
        let times = [accessed, modified].map(|time| {
            time.map(|time| if time == SetTime::Now { Use::Touch } else { Use::Change })
        });
        let change = mode.is_some() || uid.is_some() || gid.is_some();
        let others = [size.map(|_| Use::Resize), change.then_some(Use::Change)];
        others.into_iter().chain(times).flatten()
    }
}

impl Overlay {
    /// Refuses what a file is protected from. For a file that is not known so far `stat` tells what is not a mark.
    pub(crate) fn allow(&self, node: &Node, what: Use) -> Result<()> {
        if self.protection(node, None)?.forbids(what) { Err(Error::NotPermitted) } else { Ok(()) }
    }

    /// Refuses a change of attributes that a file is protected from.
    pub(crate) fn allow_set(&self, node: &Node, set: &SetAttr) -> Result<()> {
        set.uses().try_for_each(|what| self.allow(node, what))
    }

    /// The same with a directory in which a name is to be made or removed.
    pub(crate) fn allow_in(&self, dir: &Arc<Dir>, what: Use) -> Result<()> {
        self.allow(&Node::Directory(Arc::clone(dir)), what)
    }

    /// Refuses to delete or rename a file, whose attributes are given, and to take its name out of `dir`.
    pub(crate) fn allow_loss(&self, dir: &Arc<Dir>, node: &Node, stat: &Stat) -> Result<()> {
        self.allow_in(dir, Use::Remove)?;
        let protection = self.protection(node, Some(stat))?;
        if protection.forbids(Use::Change) { Err(Error::NotPermitted) } else { Ok(()) }
    }

    fn protection(&self, node: &Node, stat: Option<&Stat>) -> Result<Protection> {
        if let Some(known) = node.guard().get() {
            return Ok(known);
        }
        let own = match stat {
            Some(stat) => stat.protection,
            None => node.stat()?.protection,
        };
        let attribute = self.format.attribute(Mark::Protattr);
        let marked = match node.in_upper(|at| at.xattr(&attribute)) {
            Ok(mark) => Protection::read(&mark),
            // It is a lower file, or one without the mark.
            Err(Errno::ROFS | Errno::STALE | Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {
                Protection::default()
            }
            Err(error) => return Err(error).at("read a mark"),
        };
        let protection = own.and(marked);
        node.guard().set(protection);
        Ok(protection)
    }

    /// Returns the flags of a file (`FS_IOC_GETFLAGS`).
    pub fn flags(&self, ino: Ino) -> Result<u32> {
        let node = self.inodes.get(ino)?;
        let own = read_flags(&node.open_to_ask()?).at("read flags")?;
        Ok(own & !PLAIN.mask() | PLAIN.flags(self.protection(&node, None)?))
    }

    /// Returns the extended flags of a file (`FS_IOC_FSGETXATTR`).
    pub fn extended_flags(&self, ino: Ino) -> Result<[u8; 28]> {
        let node = self.inodes.get(ino)?;
        let mut flags = sys::extended_flags(node.open_to_ask()?).at("read flags")?;
        let protection = self.protection(&node, None)?;
        let others = word(&flags) & !EXTENDED.mask();
        set_word(&mut flags, others | EXTENDED.flags(protection));
        Ok(flags)
    }

    /// Sets the extended flags of a file (`FS_IOC_FSSETXATTR`).
    pub fn set_extended_flags(&self, caller: &Caller, ino: Ino, flags: &[u8; 28]) -> Result<()> {
        let mut others = *flags;
        set_word(&mut others, word(flags) & !EXTENDED.mask());
        let wanted = EXTENDED.protection(word(flags));
        self.set_flags_with(caller, ino, (word(flags), wanted), |file| {
            let now = sys::extended_flags(file)?;
            if now == others { Ok(()) } else { sys::set_extended_flags(file, &others) }
        })
    }

    /// Sets the flags of a file (`FS_IOC_SETFLAGS`).
    pub fn set_flags(&self, caller: &Caller, ino: Ino, flags: u32) -> Result<()> {
        let others = flags & !PLAIN.mask();
        self.set_flags_with(caller, ino, (flags, PLAIN.protection(flags)), |file| {
            if read_flags(file)? == others { Ok(()) } else { write_flags(file, others) }
        })
    }

    fn set_flags_with(
        &self,
        caller: &Caller,
        ino: Ino,
        (flags, wanted): (u32, Protection),
        set_others: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<()> {
        let node = self.inodes.get(ino)?;
        self.upper()?;
        self.copy_up(&node, Data::All, caller)?;
        let _alone = node.lock();
        self.upper()?.change(
            caller,
            || Change::of_node(&node, What::Flags(flags)),
            || {
                set_others(&node.open_to_ask()?).at("set flags")?;
                let attribute = self.format.attribute(Mark::Protattr);
                let marked = node.in_upper(|at| match wanted.is_any() {
                    true => at.set_xattr(&attribute, &wanted.mark(), XattrFlags::empty()),
                    false => match at.remove_xattr(&attribute) {
                        Err(Errno::NODATA) => Ok(()),
                        removed => removed,
                    },
                });
                marked.at("set a mark")
            },
        )?;
        node.guard().set(wanted);
        Ok(())
    }

    /// Gives a copy the protection of its source, and the flags that copies take over.
    pub(crate) fn protect_copy(&self, source: &Stat, copy: At<'_>) -> Result<()> {
        if !source.protection.is_any() {
            return Ok(());
        }
        self.mark(copy, Mark::Protattr, &source.protection.mark())
    }
}

/// Gives a copy the flags that copies take over; a file system that has no such flags has none to give.
pub(crate) fn copy_flags(from: &File, to: impl AsFd) {
    if let Ok(flags) = read_flags(from)
        && flags & COPIED != 0
        && let Ok(now) = read_flags(&to)
    {
        write_flags(to, now & !COPIED | flags & COPIED).ok();
    }
}

/// Returns the flags among the extended ones, which begin with them.
fn word(flags: &ExtendedFlags) -> u32 {
    flags.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
}

fn set_word(flags: &mut ExtendedFlags, word: u32) {
    if let Some(first) = flags.first_chunk_mut() {
        *first = word.to_ne_bytes();
    }
}

fn read_flags(file: impl AsFd) -> io::Result<u32> {
    Ok(ioctl_getflags(file)?.bits())
}

fn write_flags(file: impl AsFd, flags: u32) -> io::Result<()> {
    ioctl_setflags(file, IFlags::from_bits_retain(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Protection = Protection { immutable: false, append: false };
    const IMMUTABLE: Protection = Protection { immutable: true, append: false };
    const APPEND: Protection = Protection { immutable: false, append: true };
    const BOTH: Protection = Protection { immutable: true, append: true };

    /// SEMANTICS W43
    #[test]
    fn the_mark_is_read_as_it_was_written() {
        for (protection, mark) in [(NONE, ""), (IMMUTABLE, "i"), (APPEND, "a"), (BOTH, "ai")] {
            assert_eq!(protection.mark(), mark.as_bytes());
            assert_eq!(Protection::read(mark.as_bytes()), protection);
            for bits in [PLAIN, EXTENDED] {
                assert_eq!(bits.protection(bits.flags(protection) | 0x80), protection);
            }
            let guard = Guard::default();
            assert_eq!(guard.get(), None);
            guard.set(protection);
            assert_eq!(guard.get(), Some(protection));
        }
    }

    /// SEMANTICS W43
    #[test]
    fn what_is_append_only_can_be_appended_to_touched_and_filled() {
        let allowed = [Use::Write { at_end: true }, Use::Touch, Use::Make];
        let refused = [Use::Write { at_end: false }, Use::Resize, Use::Change, Use::Remove];
        for what in allowed.iter().chain(&refused) {
            assert!(!NONE.forbids(*what));
            assert!(IMMUTABLE.forbids(*what) && BOTH.forbids(*what));
            assert_eq!(APPEND.forbids(*what), refused.contains(what), "{what:?}");
        }
    }
}
