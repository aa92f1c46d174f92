//! Whether a mount of the kernel's overlayfs uses a directory as its upper or work directory.
//!
//! The kernel itself is asked, since such a mount may be in a mount namespace that we do not see, or in
//! none. With `index=on` it answers EBUSY for an upper that it has marked, before it looks at the work
//! directory; with a work directory on another mount the trial can never succeed, so it changes nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Tells whether some mount of the kernel's overlayfs, in any mount namespace, has `directory` as its upper
/// or work directory.
///
/// # Errors
/// It cannot be told: the right to mount is missing, or the kernel refuses such an upper for another
/// reason.
pub fn in_use(directory: BorrowedFd<'_>) -> io::Result<bool> {
    let elsewhere = tmpfs()?;
    mkdirat(&elsewhere, "l", Mode::RWXU)?;
    mkdirat(&elsewhere, "w", Mode::RWXU)?;
    let top = path(elsewhere.as_fd());
    let (lower, work) = (format!("{top}/l"), format!("{top}/w"));
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // By way of /proc every name fits in the 255 bytes of an option.
    let upper = path(directory);
    for (name, value) in
        [("index", "on"), ("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)]
    {
        fsconfig_set_string(context.as_fd(), name, value)?;
    }
    // Only this step tells: an option that cannot be set says nothing about the upper.
    match fsconfig_create(context.as_fd()) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(()) => Err(io::Error::other("the kernel mounted an overlay across two file systems")),
    }
}

/// An empty file system that is attached nowhere, and goes when it is closed.
fn tmpfs() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn path(directory: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}
