//! Walking a directory tree that others may be changing, or that a container made to be hard to walk.
//!
//! The walk holds one open directory, whatever the depth; it never follows a symlink and never enters
//! another mount. Names that vanish meanwhile are skipped. Paths may be longer than PATH_MAX.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What to do with what the walk finds.
pub(crate) trait Visitor {
    /// Anything but a directory.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()>;
    /// A directory, before its content.
    fn enter(&mut self, stat: &Stat) -> io::Result<()>;
    /// A directory, after its content.
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()>;
    /// A directory that cannot be opened for lack of permission; true to try once more.
    fn denied(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> io::Result<bool> {
        Ok(false)
    }
}

/// A directory on the way from the top to where the walk is.
struct Level {
    name: CString,
    identity: (u64, u64),
    subdirectories: Vec<CString>,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Walks the directory `name` below `parent`, itself included.
pub(crate) fn walk(
    parent: BorrowedFd<'_>,
    name: &CStr,
    visitor: &mut dyn Visitor,
) -> io::Result<()> {
    let mut above = parent.try_clone_to_owned()?;
    let Some((mut here, level)) = descend(above.as_fd(), name, visitor)? else { return Ok(()) };
    let mut levels = vec![level];
    while let Some(level) = levels.last_mut() {
        if let Some(next) = level.subdirectories.pop() {
            if let Some((directory, level)) = descend(here.as_fd(), &next, visitor)? {
                above = here;
                here = directory;
                levels.push(level);
            }
            continue;
        }
        let Some(done) = levels.pop() else { break };
        visitor.leave(above.as_fd(), &done.name)?;
        here = above;
        above = match levels.as_slice() {
            [.., grandparent, _] => up(here.as_fd(), grandparent)?,
            _ => parent.try_clone_to_owned()?,
        };
    }
    Ok(())
}

/// Opens a directory's parent, making sure that it is the one the walk came through.
fn up(directory: BorrowedFd<'_>, expected: &Level) -> io::Result<OwnedFd> {
    let parent = fs::openat(directory, c"..", DIRECTORY, Mode::empty())?;
    if identity(&fs::fstat(&parent)?) == expected.identity {
        Ok(parent)
    } else {
        Err(io::Error::other("a directory was moved while its tree was walked"))
    }
}

/// Opens a directory, reports it and its files, and notes its subdirectories.
///
/// Nothing if it vanished, was replaced, or is another mount's.
fn descend(
    parent: BorrowedFd<'_>,
    name: &CStr,
    visitor: &mut dyn Visitor,
) -> io::Result<Option<(OwnedFd, Level)>> {
    let directory = match open(parent, name) {
        Err(Errno::ACCESS) if visitor.denied(parent, name)? => open(parent, name),
        other => other,
    };
    let directory = match directory {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
        other => other?,
    };
    let stat = fs::fstat(&directory)?;
    visitor.enter(&stat)?;
    let mut level =
        Level { name: name.to_owned(), identity: identity(&stat), subdirectories: Vec::new() };
    // Names first: a visitor that unlinks must not disturb the listing it is read from.
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        match fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                level.subdirectories.push(name);
            }
            stat => visitor.file(directory.as_fd(), &name, &stat?)?,
        }
    }
    Ok(Some((directory, level)))
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    fs::openat2(parent, name, DIRECTORY, Mode::empty(), inside)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Deletes a directory and everything below it; nothing to do if it does not exist.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a directory below another"));
    };
    let name = CString::new(name.as_encoded_bytes())?;
    match fs::open(parent, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        parent => walk(parent?.as_fd(), &name, &mut Remover),
    }
}

/// Deletes the directory `name` of `parent` and everything below it; leaves alone what is none.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    walk(parent, &CString::new(name)?, &mut Remover)
}

struct Remover;

impl Visitor for Remover {
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, _: &Stat) -> io::Result<()> {
        vanished_is_fine(fs::unlinkat(parent, name, AtFlags::empty()))?;
        crate::crash::point("delete: file deleted");
        Ok(())
    }

    fn enter(&mut self, _: &Stat) -> io::Result<()> {
        Ok(())
    }

    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        vanished_is_fine(fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
    }

    /// The kernel leaves `work/work` with mode 000, which stops any user but root.
    fn denied(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
        fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
        Ok(true)
    }
}

fn vanished_is_fine(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;
