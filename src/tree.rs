//! Walking a directory tree that others may be changing, or that a container made to be hard to walk.
//!
//! However deep the tree is, the walk has at most five directories open: where it began, where it is, the
//! one above, the one it enters, and that one's listing. Of names it keeps those of the subdirectories it
//! has yet to enter, not those of files. It never follows a symlink and never enters another mount. Names
//! that vanish meanwhile are skipped. Paths may be longer than PATH_MAX.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// What to do with what the walk finds.
pub(crate) trait Visitor {
    /// Anything but a directory. Called while the directory is listed; it may delete the file.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()>;
    /// A directory, before its content.
    fn enter(&mut self, stat: &Stat) -> io::Result<()>;
    /// A directory, after its content.
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()>;
    /// The walk got on by finding a directory; nothing is to be done about that one yet.
    fn get_on(&mut self) {}
    /// Whether `file` deletes, so that a listing may have missed names.
    fn deletes(&self) -> bool {
        false
    }
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

/// Most times one directory is listed; somebody may be adding to it as fast as it is emptied.
const LISTINGS: usize = 10;
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
    visitor.get_on();
    // Uppers that nobody wrote to, and overlay's working directories, are empty.
    if visitor.deletes() && fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(None);
    }
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
    level.subdirectories = list(directory.as_fd(), visitor)?;
    Ok(Some((directory, level)))
}

/// Reports the files of a directory, and returns its subdirectories.
fn list(directory: BorrowedFd<'_>, visitor: &mut dyn Visitor) -> io::Result<Vec<CString>> {
    let mut listing = Dir::read_from(directory)?;
    let mut subdirectories = Vec::new();
    for _ in 0..LISTINGS {
        let mut files = false;
        while let Some(entry) = listing.next().transpose()? {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    visitor.get_on();
                    subdirectories.push(name.to_owned());
                }
                stat => {
                    files = true;
                    visitor.file(directory, name, &stat?)?;
                }
            }
        }
        if !(files && visitor.deletes()) {
            break;
        }
        // Not every file system goes on listing where it was when names before that are deleted.
        subdirectories.clear();
        listing.rewind();
    }
    Ok(subdirectories)
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
    remove_slowly(directory, &|| ())
}

/// The same for a tree that may be large; tells whenever it has got on.
pub(crate) fn remove_slowly(directory: &Path, gets_on: &dyn Fn()) -> io::Result<()> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a directory below another"));
    };
    let name = CString::new(name.as_encoded_bytes())?;
    match fs::open(parent, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        parent => walk(parent?.as_fd(), &name, &mut Remover { gets_on }),
    }
}

/// Deletes the directory `name` of `parent` and everything below it; leaves alone what is none.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    walk(parent, &CString::new(name)?, &mut Remover { gets_on: &|| () })
}

struct Remover<'a> {
    gets_on: &'a dyn Fn(),
}

impl Visitor for Remover<'_> {
    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, _: &Stat) -> io::Result<()> {
        (self.gets_on)();
        vanished_is_fine(fs::unlinkat(parent, name, AtFlags::empty()))?;
        crate::crash::point("delete: file deleted");
        Ok(())
    }

    fn enter(&mut self, _: &Stat) -> io::Result<()> {
        Ok(())
    }

    fn get_on(&mut self) {
        (self.gets_on)();
    }

    fn deletes(&self) -> bool {
        true
    }

    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        (self.gets_on)();
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
