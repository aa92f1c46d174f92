//! What changes a directory of the host: one system call each.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, RenameFlags, makedev};
use rustix::io::{self, Errno};

use super::at::by_handle;
use super::dir::{BENEATH, HostDir, Place};
use super::{Kind, Name};

impl HostDir {
    /// Creates a file that is not there yet, and opens it for reading and writing.
    pub(crate) fn create_file(&self, name: &Name, mode: u16) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode.into());
        rustix::fs::openat2(self.fd()?, name.as_os_str(), flags, mode, BENEATH).map(File::from)
    }

    /// Creates a file without a name, open for reading and writing.
    pub(crate) fn create_unnamed(&self, mode: u16) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode.into());
        rustix::fs::openat(self.fd()?, ".", flags, mode).map(File::from)
    }

    /// Gives an open file a name, also if it never had one.
    pub(crate) fn link_open(&self, file: &OwnedFd, name: &Name) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, by_handle(file), self.fd()?, name.as_os_str(), flags)
    }

    /// Makes a directory.
    pub(crate) fn make_dir(&self, name: &Name, mode: u16) -> io::Result<()> {
        rustix::fs::mkdirat(self.fd()?, name.as_os_str(), Mode::from_raw_mode(mode.into()))
    }

    /// Makes a symlink.
    pub(crate) fn make_symlink(&self, name: &Name, target: &[u8]) -> io::Result<()> {
        rustix::fs::symlinkat(target, self.fd()?, name.as_os_str())
    }

    /// Makes a device file, named pipe, socket or empty regular file.
    pub(crate) fn make_node(
        &self,
        name: &Name,
        kind: Kind,
        mode: u16,
        device: (u32, u32),
    ) -> io::Result<()> {
        let file_type = match kind {
            Kind::File => FileType::RegularFile,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Directory | Kind::Symlink => return Err(Errno::INVAL),
        };
        let device: Dev = makedev(device.0, device.1);
        let mode = Mode::from_raw_mode(mode.into());
        rustix::fs::mknodat(self.fd()?, name.as_os_str(), file_type, mode, device)
    }

    /// Gives a file one more name.
    pub(crate) fn link(&self, name: &Name, to: &Self, to_name: &Name) -> io::Result<()> {
        let (from, to) = (self.fd()?, to.fd()?);
        rustix::fs::linkat(from, name.as_os_str(), to, to_name.as_os_str(), AtFlags::empty())
    }

    /// Moves a name. For a directory, use `move_dir`.
    pub(crate) fn rename(
        &self,
        name: &Name,
        to: &Self,
        to_name: &Name,
        flags: RenameFlags,
    ) -> io::Result<()> {
        let (from, to) = (self.fd()?, to.fd()?);
        rustix::fs::renameat_with(from, name.as_os_str(), to, to_name.as_os_str(), flags)
    }

    /// Deletes a name that is no directory's.
    pub(crate) fn remove(&self, name: &Name) -> io::Result<()> {
        rustix::fs::unlinkat(self.fd()?, name.as_os_str(), AtFlags::empty())
    }

    /// Deletes an empty directory.
    pub(crate) fn remove_dir(&self, name: &Name) -> io::Result<()> {
        rustix::fs::unlinkat(self.fd()?, name.as_os_str(), AtFlags::REMOVEDIR)
    }
}

/// A directory whose name is about to change.
pub(crate) struct Moved<'a> {
    pub(crate) dir: &'a HostDir,
    pub(crate) to: &'a Arc<HostDir>,
    pub(crate) name: &'a Name,
}

/// Carries out a rename that moves up to two known directories, so that nobody reaches one by its old name.
pub(crate) fn move_dirs(
    moved: &[Moved<'_>],
    rename: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    // What the rename needs is open, so that it need not look for it by the names locked here.
    for Moved { dir, to, .. } in moved {
        dir.fd()?;
        to.fd()?;
    }
    let mut places: Vec<_> = moved.iter().map(|moved| moved.dir.lock_place()).collect();
    rename()?;
    for (place, Moved { to, name, .. }) in places.iter_mut().zip(moved) {
        **place = Place::Below { parent: Arc::clone(to), name: (*name).clone() };
    }
    Ok(())
}
