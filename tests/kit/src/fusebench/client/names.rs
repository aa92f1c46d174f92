//! Workloads of names and small files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use serde_json::Value;

use super::super::names::{flat, in_tree};
use super::{Problem, measured};

/// Bytes in a file that is created.
const CREATED: usize = 4096;

/// Calls `work` for the file names `names`, and blames the one at which it fails.
fn all(names: &[String], work: impl Fn(&str) -> std::io::Result<()>) -> Result<(), Problem> {
    names.iter().try_for_each(|name| work(name).map_err(|error| format!("{name}: {error}")))
}

fn flats(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| flat(prefix, number)).collect()
}

/// Lists the working directory and all below it, and asks for the attributes of every entry.
pub(super) fn walk(expected: usize) -> Result<Value, Problem> {
    let mut found = 0;
    let result = measured(expected, || {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = Dir::open(".", flags, Mode::empty());
        walk_in(root.map_err(|errno| format!("open .: {errno}"))?, &mut found)
    })?;
    if found == expected { Ok(result) } else { Err(format!("saw {found} of {expected} entries")) }
}

fn walk_in(mut directory: Dir, found: &mut usize) -> Result<(), Problem> {
    let entries: Vec<_> = directory.iter().collect();
    for entry in entries {
        let entry = entry.map_err(|errno| format!("list: {errno}"))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let problem = |what: &str, errno| format!("{what} {}: {errno}", name.to_string_lossy());
        fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| problem("lstat", errno))?;
        *found += 1;
        if entry.file_type() == Some(Type::Directory) {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let below = Dir::openat(&directory, name, flags, Mode::empty());
            walk_in(below.map_err(|errno| problem("open", errno))?, found)?;
        }
    }
    Ok(())
}

/// Opens, reads and closes every file of a tree.
pub(super) fn read(count: usize) -> Result<Value, Problem> {
    let names: Vec<String> = (0..count).map(in_tree).collect();
    measured(count, || {
        all(&names, |name| {
            let read = File::open(name)?.read(&mut [0; 16 << 10])?;
            if read > 0 { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
        })
    })
}

/// Asks for the attributes of every file of a directory.
pub(super) fn stat(prefix: &str, count: usize) -> Result<Value, Problem> {
    let names = flats(prefix, count);
    measured(count, || all(&names, |name| fs::symlink_metadata(name).map(drop)))
}

/// Creates files of one page.
pub(super) fn create(count: usize) -> Result<Value, Problem> {
    let names = flats("new-", count);
    measured(count, || all(&names, |name| File::create_new(name)?.write_all(&[7; CREATED])))
}

/// Gives files names that are free.
pub(super) fn rename(count: usize) -> Result<Value, Problem> {
    let pairs: Vec<_> = flats("file-", count).into_iter().zip(flats("renamed-", count)).collect();
    measured(count, || {
        pairs.iter().try_for_each(|(old, new)| {
            fs::rename(old, new).map_err(|error| format!("{old} to {new}: {error}"))
        })
    })
}

/// Unlinks files.
pub(super) fn unlink(count: usize) -> Result<Value, Problem> {
    let names = flats("file-", count);
    measured(count, || all(&names, |name| fs::remove_file(name)))
}

/// Adds a byte to files.
pub(super) fn append(count: usize) -> Result<Value, Problem> {
    let names = flats("file-", count);
    measured(count, || {
        all(&names, |name| OpenOptions::new().append(true).open(name)?.write_all(b"+"))
    })
}

/// Creates and unlinks files, each before the next one.
pub(super) fn create_unlink(prefix: &str, count: usize) -> Result<Value, Problem> {
    let names = flats(prefix, count);
    measured(count, || {
        all(&names, |name| {
            drop(File::create_new(name)?);
            fs::remove_file(name)
        })
    })
}

/// Unlinks one file.
pub(super) fn remove(file: &str) -> Result<Value, Problem> {
    measured(1, || fs::remove_file(file).map_err(|error| format!("unlink {file}: {error}")))
}

/// Opens one file with O_TRUNC, and closes it.
pub(super) fn truncate(file: &str) -> Result<Value, Problem> {
    measured(1, || {
        let opened = OpenOptions::new().write(true).truncate(true).open(file);
        opened.map(drop).map_err(|error| format!("truncate {file}: {error}"))
    })
}
