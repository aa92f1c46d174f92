//! The work directory: where files are made unseen, before one step publishes them in the upper.
//!
//! Its layout is the kernel's: all lies in `work/work`, which is emptied at every mount, so a crash leaves
//! nothing. Whiteouts are links of one, so that a deletion costs no inode.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::RenameFlags;
use rustix::io::{self, Errno};
use rustix::process::{getegid, geteuid};

use crate::errno::Result;
use crate::layer::{At, HostDir, Kind, LayerDir, Name};

/// A work directory of a mount.
#[derive(Debug)]
pub(crate) struct Work {
    dir: Arc<HostDir>,
    next: AtomicU64,
    /// The name of the shared whiteout, once there is one.
    whiteout: Mutex<Option<Name>>,
}

impl Work {
    /// Opens the work directory in `base`, and empties it.
    pub(crate) fn open(base: &Arc<HostDir>) -> io::Result<Self> {
        let name = name("work").ok_or(Errno::INVAL)?;
        remove_tree(base, &name)?;
        base.make_dir(&name, 0o700)?;
        let at = At::Name(base, &name);
        // What is made in it must not inherit what the directory above it has to pass on.
        for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
            match at.remove_xattr(OsStr::new(acl)) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        at.set_owner(Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
        at.set_mode(0o700)?;
        let dir = Arc::new(base.below(&name));
        dir.pin()?;
        Ok(Self { dir, next: AtomicU64::new(0), whiteout: Mutex::default() })
    }

    /// The directory in which things are made.
    pub(crate) fn dir(&self) -> &Arc<HostDir> {
        &self.dir
    }

    /// Returns a name that nothing in the directory has.
    pub(crate) fn new_name(&self) -> io::Result<Name> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        name(&format!("#{number:x}")).ok_or(Errno::INVAL)
    }

    /// Puts a whiteout under a name that is not there.
    pub(crate) fn whiteout(&self, dir: &HostDir, name: &Name) -> io::Result<()> {
        let shared = self.shared_whiteout()?;
        let linked = self.dir.link(&shared, dir, name);
        let usable = match linked {
            // It has as many links as the file system allows.
            Err(Errno::MLINK) => false,
            // Either of the two may be gone.
            Err(Errno::NOENT) => self.dir.look(&shared)?.is_some(),
            _ => true,
        };
        if usable {
            return linked;
        }
        self.drop_whiteout(&shared);
        self.dir.link(&self.shared_whiteout()?, dir, name)
    }

    /// Puts a whiteout in the place of what is under a name, which is no directory.
    pub(crate) fn whiteout_over(&self, dir: &HostDir, name: &Name) -> io::Result<()> {
        let new = self.new_name()?;
        self.whiteout(&self.dir, &new)?;
        self.publish(&new, || self.dir.rename(&new, dir, name, RenameFlags::empty()))
    }

    /// Does what publishes `name`; if that fails, deletes it.
    pub(crate) fn publish<T>(
        &self,
        name: &Name,
        publish: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        publish().inspect_err(|_| self.discard(name))
    }

    /// Deletes what is not needed any more. What cannot be deleted is left to the next mount.
    pub(crate) fn discard(&self, name: &Name) {
        remove_tree(&self.dir, name).ok();
    }

    /// Deletes what is left when a mount ends.
    pub(crate) fn close(&self) {
        if let Some(shared) = self.lock_whiteout().take() {
            self.discard(&shared);
        }
    }

    fn shared_whiteout(&self) -> io::Result<Name> {
        let mut shared = self.lock_whiteout();
        if let Some(name) = shared.as_ref() {
            return Ok(name.clone());
        }
        let name = self.new_name()?;
        self.dir.make_node(&name, Kind::CharDevice, 0, (0, 0))?;
        *shared = Some(name.clone());
        Ok(name)
    }

    fn drop_whiteout(&self, full: &Name) {
        let mut shared = self.lock_whiteout();
        if shared.as_ref() == Some(full) {
            *shared = None;
            self.discard(full);
        }
    }

    fn lock_whiteout(&self) -> MutexGuard<'_, Option<Name>> {
        self.whiteout.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(text: &str) -> Option<Name> {
    let name: Result<Name> = Name::new(&OsString::from(text));
    name.ok()
}

/// Deletes whatever is under a name, and everything in it, if it is there.
pub(crate) fn remove_tree(dir: &Arc<HostDir>, name: &Name) -> io::Result<()> {
    let mut left = vec![(Arc::clone(dir), name.clone())];
    while let Some((dir, name)) = left.last() {
        let removed = match dir.remove(name) {
            Err(Errno::ISDIR | Errno::PERM) => dir.remove_dir(name),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => drop(left.pop()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let child = Arc::new(dir.below(name));
                // The kernel leaves directories without any permission there.
                At::Directory(&child).set_mode(0o700)?;
                let mut names = Vec::new();
                child.list(&mut |entry| names.push(entry.name))?;
                left.extend(names.into_iter().map(|name| (Arc::clone(&child), name)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
