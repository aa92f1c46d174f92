//! New names: files, directories, symlinks, devices, and more names for a file.
//!
//! 1. A name that is visible is refused.
//! 2. Where the upper has a whiteout, what is new is made unseen in work, and takes the whiteout's place in
//!    one step; a directory is made opaque first, since there is something below to be hidden.
//! 3. Elsewhere it is made where it belongs, in one system call.
//!
//! What is made is the caller's from the first moment.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::{self, Errno};

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::copy_up::Data;
use crate::errno::{Context, Error, Result};
use crate::file::{Handle, OpenFile};
use crate::format::Mark;
use crate::inode::Ino;
use crate::layer::{At, HostDir, Kind, LayerDir, Name, Stat};
use crate::lookup::{InUpper, look_in_upper, lookup};
use crate::merge::Merged;
use crate::node::{Dir, Leaf, Node, Place, RealId};
use crate::overlay::{Attr, Overlay};
use crate::protattr::Use;
use crate::upper;

/// What a new name takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Free {
    /// Nothing in the upper.
    Empty,
    /// A whiteout in the upper.
    Whiteout,
}

const SETGID: u16 = 0o2000;
const DEFAULT_ACL: &str = "system.posix_acl_default";

impl Overlay {
    /// Creates a file and opens it; one that is there already is opened, unless the flags forbid it.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u16,
        flags: OFlags,
    ) -> Result<(Attr, Handle)> {
        let made = self.make(caller, parent, name, Kind::File, |dir, name| {
            dir.create_file(name, mode).map(Some)
        });
        match made {
            Err(Error::Exists) if !flags.contains(OFlags::EXCL) => {
                let attr = self.lookup(parent, name)?;
                let opened = self.open(caller, attr.ino, flags);
                Ok((attr, opened.inspect_err(|_| self.forget(attr.ino, 1))?))
            }
            Err(error) => Err(error),
            Ok((Node::Leaf(leaf), stat, Some(file))) => {
                let attr = Attr { ino: leaf.ino, stat };
                Ok((attr, self.files.add(OpenFile::new(leaf, (file, false), flags))))
            }
            Ok(_) => Err(Error::Stale),
        }
    }

    /// Makes a directory.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &OsStr, mode: u16) -> Result<Attr> {
        let made = self.make(caller, parent, name, Kind::Directory, |dir, name| {
            dir.make_dir(name, mode).map(|()| None)
        });
        made.map(|(node, stat, _)| Attr { ino: node.ino(), stat })
    }

    /// Makes a symlink.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        target: &[u8],
    ) -> Result<Attr> {
        let made = self.make(caller, parent, name, Kind::Symlink, |dir, name| {
            dir.make_symlink(name, target).map(|()| None)
        });
        made.map(|(node, stat, _)| Attr { ino: node.ino(), stat })
    }

    /// Makes a device file, named pipe, socket or empty file.
    ///
    /// # Errors
    /// `NotPermitted` for what would be a whiteout.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        mode: u16,
        device: (u32, u32),
    ) -> Result<Attr> {
        if kind == Kind::CharDevice && device == (0, 0) {
            return Err(Error::NotPermitted);
        }
        let made = self.make(caller, parent, name, kind, |dir, name| {
            dir.make_node(name, kind, mode, device).map(|()| None)
        });
        made.map(|(node, stat, _)| Attr { ino: node.ino(), stat })
    }

    /// Gives a file one more name.
    pub fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        let name = Name::new(name)?;
        let node = self.inodes.get(ino)?;
        let Node::Leaf(leaf) = &node else { return Err(Error::NotPermitted) };
        let dir = self.dir(parent)?;
        self.upper()?;
        let _names = dir.write_names();
        self.refuse_visible(&dir, &name)?;
        let free = self.free(&dir, &name)?;
        self.allow_in(&dir, Use::Make)?;
        self.allow(&node, Use::Change)?;
        let above = self.copy_up_dir(&dir, caller)?;
        self.copy_up(&node, Data::All, caller)?;
        let _alone = node.lock();
        // Nobody puts anything else under the name by which it is reached.
        let place = leaf.place();
        let Some((from, from_name)) = (match &*place {
            Place::Upper(names) => names.first().cloned(),
            _ => None,
        }) else {
            return Err(Error::NoEntry);
        };
        let from_above = from.upper().ok_or(Error::Stale)?;
        if leaf.entry().is_some() || self.origin(&from, &from_name)?.is_some() {
            self.mark_impure(&dir, caller)?;
        }
        let upper = self.upper()?;
        let what = || What::Link(upper::path(&dir, &name));
        upper.change(
            caller,
            || Change::of(&from, &from_name, what()),
            || {
                match free {
                    Free::Empty => from_above.link(&from_name, &above, &name),
                    Free::Whiteout => {
                        let work = upper.work();
                        let new = work.new_name().at("link")?;
                        from_above.link(&from_name, work.dir(), &new).at("link")?;
                        work.publish(&new, || {
                            work.dir().rename(&new, &above, &name, RenameFlags::empty())
                        })
                    }
                }
                .at("link")
            },
        )?;
        drop(place);
        leaf.add_name(&dir, &name, None);
        let stat = leaf.stat()?;
        // It is known, so that this only counts a lookup.
        self.inodes.add(ino, |known| known.ino() == ino, |_| node.clone());
        Ok(Attr { ino, stat })
    }

    /// Refuses a name that is visible.
    fn refuse_visible(&self, dir: &Dir, name: &Name) -> Result<()> {
        match lookup(dir, self.format, name)? {
            Merged::Absent => Ok(()),
            Merged::Leaf(_) | Merged::Directory(..) => Err(Error::Exists),
        }
    }

    /// Tells what a new name takes the place of that is not visible.
    ///
    /// # Errors
    /// `Exists` if it is visible in the upper, `NoEntry` if the directory is deleted.
    fn free(&self, dir: &Dir, name: &Name) -> Result<Free> {
        if dir.is_gone() {
            return Err(Error::NoEntry);
        }
        match look_in_upper(dir, self.format, name)? {
            InUpper::Something => Err(Error::Exists),
            InUpper::Whiteout => Ok(Free::Whiteout),
            InUpper::Nothing => Ok(Free::Empty),
        }
    }

    /// Makes something new, and remembers it.
    fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        kind: Kind,
        make: impl Fn(&HostDir, &Name) -> io::Result<Option<File>>,
    ) -> Result<(Node, Stat, Option<File>)> {
        let name = Name::new(name)?;
        let dir = self.dir(parent)?;
        self.upper()?;
        let names = dir.write_names();
        if dir.is_gone() {
            return Err(Error::NoEntry);
        }
        if !names.knows_absent(&dir, &name) {
            self.refuse_visible(&dir, &name)?;
        }
        self.allow_in(&dir, Use::Make)?;
        let above = self.copy_up_dir(&dir, caller)?;
        let change = || Change::of(&dir, &name, What::Create(kind));
        let file = self.upper()?.change(caller, change, || {
            let assumed = caller.assume()?;
            match make(&above, &name) {
                Err(Errno::EXIST) => {}
                made => return made.at("create"),
            }
            drop(assumed);
            match self.free(&dir, &name)? {
                Free::Whiteout => self.make_over_whiteout(caller, (&above, &name), kind, make),
                // Somebody changed the upper behind our back.
                Free::Empty => Err(Error::Stale),
            }
        })?;
        let stat = match &file {
            Some(file) => crate::layer::stat_of(file),
            None => At::Name(&above, &name).stat(),
        };
        let stat = stat.at("create")?;
        Ok((self.remember_new(&dir, &name, stat), stat, file))
    }

    /// Remembers what was just made, and counts a lookup of it.
    fn remember_new(&self, dir: &Arc<Dir>, name: &Name, stat: Stat) -> Node {
        let id = Some(RealId::of(&stat));
        let same = |node: &Node| node.is(None, id, None);
        self.inodes.add(self.numbers.number(stat.fs, stat.number), same, |ino| {
            let place = (Arc::clone(dir), name.clone());
            match (stat.kind, dir.upper()) {
                (Kind::Directory, Some(above)) => {
                    let part = Some((Arc::new(above.below(name)), id));
                    Node::Directory(Arc::new(Dir::new(
                        ino,
                        Some(place),
                        part,
                        (Box::default(), None),
                    )))
                }
                _ => {
                    let leaf = Leaf::new(ino, Place::Upper(vec![place]), None, id);
                    leaf.set_new();
                    Node::Leaf(Arc::new(leaf))
                }
            }
        })
    }

    fn make_over_whiteout(
        &self,
        caller: &Caller,
        (above, name): (&Arc<HostDir>, &Name),
        kind: Kind,
        make: impl FnOnce(&HostDir, &Name) -> io::Result<Option<File>>,
    ) -> Result<Option<File>> {
        let work = self.upper()?.work();
        let new = work.new_name().at("create")?;
        let nursery = self.nursery(above)?;
        let at = nursery.as_ref().map_or(work.dir(), |(dir, _)| dir);
        let made = (|| {
            let assumed = caller.assume()?;
            let file = make(at, &new).at("create")?;
            drop(assumed);
            if kind == Kind::Directory {
                self.mark(At::Name(at, &new), Mark::Opaque, b"y")?;
                at.rename(&new, above, name, RenameFlags::EXCHANGE).at("create")?;
                // The whiteout is here now; the directory is there, whether it can be deleted or not.
                at.remove(&new).ok();
            } else {
                at.rename(&new, above, name, RenameFlags::empty()).at("create")?;
            }
            Ok(file)
        })();
        match nursery {
            Some((_, nursery)) => work.discard(&nursery),
            None if made.is_err() => work.discard(&new),
            None => {}
        }
        made
    }

    /// Makes a directory in work in which what is made inherits what it would inherit in `above`; none if
    /// there is nothing to inherit.
    fn nursery(&self, above: &HostDir) -> Result<Option<(Arc<HostDir>, Name)>> {
        let work = self.upper()?.work();
        let stat = above.stat().at("create")?;
        let acl = match At::Directory(above).xattr(OsStr::new(DEFAULT_ACL)) {
            Ok(acl) => Some(acl),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(error) => return Err(error).at("create"),
        };
        if stat.mode & SETGID == 0 && acl.is_none() {
            return Ok(None);
        }
        let name = work.new_name().at("create")?;
        let made = (|| {
            work.dir().make_dir(&name, 0o700)?;
            let at = At::Name(work.dir(), &name);
            at.set_owner(Some(stat.uid), Some(stat.gid))?;
            at.set_mode(0o777 | stat.mode & SETGID)?;
            acl.map_or(Ok(()), |acl| {
                at.set_xattr(OsStr::new(DEFAULT_ACL), &acl, XattrFlags::empty())
            })
        })();
        made.inspect_err(|_| work.discard(&name)).at("create")?;
        Ok(Some((Arc::new(work.dir().below(&name)), name)))
    }
}
