//! Who asks, and making files that are the caller's from the first moment.
//!
//! Owner, group, the group of a setgid directory, default ACLs and the umask are thus decided by the
//! upper's file system, as they are in the kernel's overlayfs. Rights are not lost on the way: whether the
//! caller may do it has been decided before, by the kernel, by what the view shows.

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::{
    CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits,
};

use crate::errno::{Error, Result};

/// Who asks for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, or thread; 0 if it is not known.
    pub pid: u32,
    /// Permission bits that new files do not get.
    pub umask: u16,
    /// What is being asked for, as a verb: "open".
    pub operation: &'static str,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by process {}, user {}", self.operation, self.pid, self.uid)
    }
}

/// This process's own ids, which it does not change.
static OWN: OnceLock<(Uid, Gid)> = OnceLock::new();

thread_local! {
    /// The umask of this thread, once it has one of its own.
    static UMASK: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Makes what this thread creates the caller's, as long as it lives.
#[derive(Debug)]
pub(crate) struct Assumed {
    uid: Option<Uid>,
    gid: Option<Gid>,
}

impl Caller {
    /// Tells whether the caller is in a group. A request says only the group that new files get, so the others are
    /// asked for where it matters; somebody who is gone is in none of them.
    pub(crate) fn is_in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        groups.is_some_and(|groups| groups.split_whitespace().any(|one| one.parse() == Ok(gid)))
    }

    /// Makes what this thread creates the caller's, until the result is dropped.
    ///
    /// # Errors
    /// `NotPermitted` if the process may not act for this user.
    pub(crate) fn assume(&self) -> Result<Assumed> {
        prepare_thread()?;
        if UMASK.get() != Some(self.umask) {
            umask(Mode::from_raw_mode(self.umask.into()));
            UMASK.set(Some(self.umask));
        }
        let mut assumed = Assumed { uid: None, gid: None };
        let (own_uid, own_gid) = *OWN.get_or_init(|| (geteuid(), getegid()));
        let gid = Gid::from_raw(self.gid);
        if gid != own_gid {
            setfsgid(gid);
            assumed.gid = Some(own_gid);
            // It tells only the group before, so it is asked twice.
            if setfsgid(gid) != gid {
                return Err(Error::NotPermitted);
            }
        }
        let uid = Uid::from_raw(self.uid);
        if uid != own_uid {
            setfsuid(uid);
            assumed.uid = Some(own_uid);
            if setfsuid(uid) != uid {
                return Err(Error::NotPermitted);
            }
        }
        Ok(assumed)
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if let Some(uid) = self.uid {
            setfsuid(uid);
        }
        if let Some(gid) = self.gid {
            setfsgid(gid);
        }
    }
}

/// Gives the thread a umask of its own, and lets it keep its rights while it creates for others.
fn prepare_thread() -> Result<()> {
    if UMASK.get().is_some() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_FS).map_err(|_| Error::NotPermitted)?;
    let mask = umask(Mode::empty());
    umask(mask);
    UMASK.set(u16::try_from(mask.as_raw_mode()).ok());
    // Who may not do this has no rights to keep.
    if let Ok(bits) = capabilities_secure_bits() {
        let bits = bits | CapabilitiesSecureBits::NO_SETUID_FIXUP;
        set_capabilities_secure_bits(bits).ok();
    }
    Ok(())
}
