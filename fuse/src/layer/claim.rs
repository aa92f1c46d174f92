//! Who may write to an upper: one mount at a time, and only where nothing else is shown or hidden by it.
//!
//! An upper and its work directory must be two directories, neither in the other, that files can be moved
//! between; neither may overlap a lower directory or the mount point. Both are claimed against
//! other mounts of ours by locks that end with the claim, also when its process is killed; and against
//! the kernel's overlayfs by asking it. Nothing in them is changed, save a lock file in a work directory
//! that other hosts may reach.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FlockOperation, Mode, OFlags, accessat, flock, fstatfs, openat,
};
use rustix::io::Errno;

use super::in_use::in_use;
use super::place::Place;
use crate::mountinfo;

/// An upper and its work directory, which no other mount uses as long as this exists.
#[derive(Debug)]
pub struct Claim {
    /// The upper, as a path only. It is not on a mount of its own, since files are moved into it.
    pub upper: OwnedFd,
    /// The work directory, as a path only, on the same mount.
    pub work: OwnedFd,
    /// What locks both. The locks end when all duplicates of these are closed.
    pub locks: Vec<OwnedFd>,
}

/// What a directory is to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A lower directory.
    Lower,
    /// The upper directory.
    Upper,
    /// The work directory.
    Work,
    /// The mount point.
    Target,
}

/// Whose mount uses a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Overstream's.
    Ours,
    /// One of the kernel's overlayfs.
    Kernel,
}

/// Why an upper and a work directory cannot be those of a mount.
#[derive(Debug, thiserror::Error)]
pub enum Unclaimable {
    /// A directory cannot be opened, examined or locked.
    #[error("{role} {}: {source}", path.display())]
    Directory {
        /// What it is to the mount.
        role: Role,
        /// Its name.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two directories are one, or one lies in the other, by name or through a bind mount.
    #[error("{} {} and {} {} are one, or one lies in the other", .0.0, .0.1.display(), .1.0, .1.1.display())]
    Overlap((Role, PathBuf), (Role, PathBuf)),
    /// Files cannot be moved between the two directories.
    #[error(
        "work directory {} and upper directory {} are not on one mount of one file system; make the work \
         directory beside the upper", .work.display(), .upper.display()
    )]
    Apart {
        /// The upper.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// Another mount uses a directory as its upper or work directory.
    #[error("{role} {} is in use by {holder}; unmount that, or take another directory", path.display())]
    InUse {
        /// What it should have been to the mount.
        role: Role,
        /// Its name.
        path: PathBuf,
        /// Whose mount uses it.
        holder: Holder,
    },
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lower => "lower directory",
            Self::Upper => "upper directory",
            Self::Work => "work directory",
            Self::Target => "mount point",
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "another mount of Overstream",
            Self::Kernel => "a mount of the kernel's overlayfs",
        })
    }
}

/// Claims an upper and its work directory for a mount of `lowers` on `target`.
///
/// Where we may not ask the kernel, mounts of its overlayfs are not noticed.
///
/// # Errors
/// Says which directory cannot be used, and why. A directory that may not be written to, or lies on what is
/// mounted read-only, is a [`Unclaimable::Directory`].
pub fn claim(
    upper: &Path,
    work: &Path,
    lowers: &[PathBuf],
    target: &Path,
) -> Result<Claim, Unclaimable> {
    let mounts = mountinfo::read().map_err(|error| Role::Upper.refused(upper, error))?;
    let place = |role: Role, path: &Path| {
        let directory = open(role, path)?;
        let place = Place::of(directory.as_fd(), &mounts).map_err(|e| role.refused(path, e))?;
        Ok((directory, place))
    };
    let (upper_fd, upper_place) = place(Role::Upper, upper)?;
    let (work_fd, work_place) = place(Role::Work, work)?;
    let mut others = vec![(Role::Target, place(Role::Target, target)?.1)];
    for lower in lowers {
        others.push((Role::Lower, place(Role::Lower, lower)?.1));
    }
    check(&upper_place, &work_place, &others)?;
    let mut locks = Vec::new();
    for (role, path, directory) in [(Role::Upper, upper, &upper_fd), (Role::Work, work, &work_fd)] {
        accessat(directory, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| role.refused(path, errno))?;
        locks.push(lock(directory, ".", DIRECTORY).map_err(|errno| role.locked(path, errno))?);
    }
    if is_shared(&work_fd).map_err(|errno| Role::Work.refused(work, errno))? {
        let file =
            lock(&work_fd, LOCK_FILE, FILE).map_err(|errno| Role::Work.locked(work, errno))?;
        locks.push(file);
    }
    // After the locks, so that two of us do not take each other's question for a mount.
    for (role, path, directory) in [(Role::Upper, upper, &upper_fd), (Role::Work, work, &work_fd)] {
        if in_use(directory.as_fd()).unwrap_or(false) {
            return Err(Unclaimable::InUse { role, path: path.into(), holder: Holder::Kernel });
        }
    }
    Ok(Claim { upper: upper_fd, work: work_fd, locks })
}

/// Refuses directories that do not fit together.
fn check(upper: &Place, work: &Place, others: &[(Role, Place)]) -> Result<(), Unclaimable> {
    let apart = |one: (Role, &Place), other: (Role, &Place)| {
        let named = |(role, place): (Role, &Place)| (role, place.path.clone());
        if one.1.overlaps(other.1) {
            return Err(Unclaimable::Overlap(named(one), named(other)));
        }
        Ok(())
    };
    let (upper_role, work_role) = ((Role::Upper, upper), (Role::Work, work));
    apart(upper_role, work_role)?;
    if !upper.reaches(work) {
        let (upper, work) = (upper.path.clone(), work.path.clone());
        return Err(Unclaimable::Apart { upper, work });
    }
    for (role, place) in others {
        apart(upper_role, (*role, place))?;
        apart(work_role, (*role, place))?;
    }
    Ok(())
}

impl Role {
    fn refused(self, path: &Path, source: impl Into<io::Error>) -> Unclaimable {
        Unclaimable::Directory { role: self, path: path.into(), source: source.into() }
    }

    fn locked(self, path: &Path, errno: Errno) -> Unclaimable {
        if errno == Errno::WOULDBLOCK {
            return Unclaimable::InUse { role: self, path: path.into(), holder: Holder::Ours };
        }
        self.refused(path, errno)
    }
}

fn open(role: Role, path: &Path) -> Result<OwnedFd, Unclaimable> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| role.refused(path, errno))
}

const DIRECTORY: OFlags = OFlags::DIRECTORY;
/// Network file systems lock files that are open for writing.
const FILE: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::NOFOLLOW);

/// In the work directory, where the kernel's overlayfs leaves strange names alone.
const LOCK_FILE: &str = "overstream.lock";

/// Opens and locks `name`, without waiting for whoever has locked it.
fn lock(directory: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let file = openat(directory, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Tells whether other hosts may reach the file system: then a lock on a directory holds on this one only.
fn is_shared(directory: &OwnedFd) -> Result<bool, Errno> {
    let kind = fstatfs(directory)?.f_type;
    Ok(SHARED.iter().any(|shared| i64::from(*shared) == kind))
}

/// `f_type` of file systems whose files may lie elsewhere.
const SHARED: [u32; 8] = [
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x00c3_6400, // Ceph
    0x6573_5546, // FUSE
    0x0102_1997, // 9p
    0x0bd0_0bd0, // Lustre
];

#[cfg(test)]
mod tests;
