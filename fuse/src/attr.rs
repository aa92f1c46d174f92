//! Changing a file's attributes: mode, owner, times, length, and extended attributes.
//!
//! The file is copied up first; of its data, no more than a new length leaves. Cutting a file or writing to it takes
//! setuid and setgid away unless root does it.

use std::ffi::OsStr;

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::copy_up::Data;
use crate::errno::{Context, Error, Result};
use crate::inode::Ino;
use crate::layer::{Kind, Time};
use crate::node::Node;
use crate::overlay::{Attr, Overlay};
use crate::protattr::Use;
use crate::xattr;

const SETUID: u16 = 0o4000;
const SETGID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
const ACL: &str = "system.posix_acl_access";

/// What is to be changed of a file; nothing at all means that somebody writes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Time of the last access.
    pub accessed: Option<SetTime>,
    /// Time of the last change of content.
    pub modified: Option<SetTime>,
}

/// What a time becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time at which it is set.
    Now,
    /// This one.
    To(Time),
}

impl Overlay {
    /// Changes attributes; returns all of them.
    pub fn set_attr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let node = self.inodes.get(ino)?;
        self.allow_set(&node, set)?;
        let data = set.size.map_or(Data::All, Data::First);
        self.copy_up(&node, data, caller)?;
        let upper = self.upper()?;
        if let Some(size) = set.size {
            let change = || Change::of_node(&node, What::Truncate(size));
            upper.change(caller, change, || {
                let Node::Leaf(leaf) = &node else { return Err(Error::IsDirectory) };
                let cut = leaf.in_upper(|at| {
                    rustix::fs::ftruncate(at.open(OFlags::WRONLY | OFlags::NONBLOCK)?, size)
                });
                cut.at("truncate")
            })?;
        }
        if caller.uid != 0 && set.drops_privileges() {
            self.drop_privileges(caller, &node)?;
        }
        if set.changes_any_attribute() {
            let change = || Change::of_node(&node, What::Attributes);
            upper.change(caller, change, || set.apply(&node))?;
        }
        Ok(Attr { ino, stat: node.stat()? })
    }

    /// Takes setuid and setgid away, as writing does.
    pub(crate) fn drop_privileges(&self, caller: &Caller, node: &Node) -> Result<()> {
        let stat = node.stat()?;
        let mut mode = stat.mode & !SETUID;
        if stat.kind != Kind::File || stat.mode & (SETUID | SETGID) == 0 {
            return Ok(());
        }
        // Without the right to execute, setgid once meant something else, which is for the group to say.
        if mode & GROUP_EXECUTE != 0 || !caller.is_in_group(stat.gid) {
            mode &= !SETGID;
        }
        let change = || Change::of_node(node, What::Attributes);
        self.upper()?
            .change(caller, change, || node.in_upper(|at| at.set_mode(mode)).at("drop privileges"))
    }

    /// Sets an extended attribute.
    pub fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        attribute: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let node = self.inodes.get(ino)?;
        self.allow(&node, Use::Change)?;
        self.copy_up(&node, Data::All, caller)?;
        let on_disk = xattr::on_disk(self.format, attribute);
        let what = || What::SetXattr(attribute.to_string_lossy().into_owned());
        self.upper()?.change(
            caller,
            || Change::of_node(&node, what()),
            || {
                let set = node.in_upper(|at| at.set_xattr(&on_disk, value, flags));
                set.at("set an attribute")
            },
        )?;
        if let Node::Leaf(leaf) = &node {
            leaf.set_attributes();
        }
        if attribute == ACL { self.drop_setgid(caller, &node) } else { Ok(()) }
    }

    /// Takes setgid away from a file or directory whose access control list was set by one who is not in its group,
    /// since the list may give rights to those who are.
    fn drop_setgid(&self, caller: &Caller, node: &Node) -> Result<()> {
        let stat = node.stat()?;
        if caller.uid == 0 || stat.mode & SETGID == 0 || caller.is_in_group(stat.gid) {
            return Ok(());
        }
        let change = || Change::of_node(node, What::Attributes);
        self.upper()?.change(caller, change, || {
            node.in_upper(|at| at.set_mode(stat.mode & !SETGID)).at("drop privileges")
        })
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, caller: &Caller, ino: Ino, attribute: &OsStr) -> Result<()> {
        self.upper()?;
        let node = self.inodes.get(ino)?;
        self.allow(&node, Use::Change)?;
        let on_disk = xattr::on_disk(self.format, attribute);
        // What is not there needs no copy-up.
        match node.xattr(self.format, &on_disk) {
            Err(Errno::NODATA) => return Err(Error::NoAttribute),
            found => found.at("remove an attribute")?,
        };
        self.copy_up(&node, Data::All, caller)?;
        let what = || What::RemoveXattr(attribute.to_string_lossy().into_owned());
        self.upper()?.change(
            caller,
            || Change::of_node(&node, what()),
            || node.in_upper(|at| at.remove_xattr(&on_disk)).at("remove an attribute"),
        )
    }
}

impl SetAttr {
    /// Names what is being done, as a verb.
    pub fn operation(&self) -> &'static str {
        match self {
            Self { size: Some(_), .. } => "truncate",
            Self { mode: Some(_), .. } => "chmod",
            Self { uid: Some(_), .. } | Self { gid: Some(_), .. } => "chown",
            Self { accessed: Some(_), .. } | Self { modified: Some(_), .. } => "utime",
            _ => "write",
        }
    }

    /// Tells whether setuid and setgid do not outlive it, unless root does it. Capabilities are the kernel's affair.
    fn drops_privileges(&self) -> bool {
        let Self { uid, gid, size, .. } = self;
        *self == Self::default() || size.is_some() || uid.is_some() || gid.is_some()
    }

    fn changes_any_attribute(&self) -> bool {
        let Self { mode, uid, gid, accessed, modified, .. } = self;
        mode.is_some() || uid.is_some() || gid.is_some() || accessed.is_some() || modified.is_some()
    }

    /// Owner first, since changing it takes setuid away; times last.
    fn apply(&self, node: &Node) -> Result<()> {
        let Self { mode, uid, gid, accessed, modified, .. } = *self;
        let applied = node.in_upper(|at| {
            if uid.is_some() || gid.is_some() {
                at.set_owner(uid, gid)?;
            }
            if let Some(mode) = mode {
                at.set_mode(mode)?;
            }
            if accessed.is_some() || modified.is_some() {
                let (last_access, last_modification) = (time(accessed), time(modified));
                at.set_times(&Timestamps { last_access, last_modification })?;
            }
            Ok(())
        });
        applied.at("change attributes")
    }
}

fn time(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(Time { seconds, nanoseconds })) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    }
}
