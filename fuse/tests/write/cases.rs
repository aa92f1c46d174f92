//! One operation on a name or two, done on both sides.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use overstream_fuse::Format;
use overstream_testkit::Scratch;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::pair::{Layers, Pair, Setup};
use super::states::{Spot, parents};

/// Cases that went wrong of which all is said.
const SHOWN: usize = 10;

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Opens what must not exist yet, and writes.
    CreateNew,
    /// Opens what may exist, and writes.
    Create,
    /// The same, truncating it.
    CreateTruncated,
    Mkdir,
    Symlink,
    Fifo,
    /// A character device 0:0, which is not for users.
    Whiteout,
    Device,
    Unlink,
    Rmdir,
    /// Links what is there to the other name.
    Link,
    /// Renames it to the other name.
    Rename(RenameFlags),
}

/// One operation on names of its own.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) op: Op,
    pub(super) spot: Spot,
    /// The other name, if the operation takes two.
    pub(super) to: Option<Spot>,
    /// Whether all names were looked up before.
    pub(super) warm: bool,
}

impl Case {
    /// Returns its names.
    fn paths(&self, number: usize) -> Vec<String> {
        let to = self.to.iter().map(|spot| spot.path(number, "b"));
        [self.spot.path(number, "a")].into_iter().chain(to).collect()
    }

    fn make(&self, layers: &Layers, number: usize) {
        for (spot, path) in
            [Some(&self.spot), self.to.as_ref()].iter().flatten().zip(self.paths(number))
        {
            spot.make(layers, &path);
        }
    }

    /// Does it in a mounted tree; returns the error number.
    fn run(&self, root: &Path, number: usize) -> Result<(), i32> {
        let paths: Vec<_> = self.paths(number).iter().map(|path| root.join(path)).collect();
        if self.warm {
            paths.iter().for_each(|path| drop(fs::symlink_metadata(path)));
        }
        self.op.run(&paths).map_err(|error| error.raw_os_error().unwrap())
    }
}

impl Op {
    fn run(self, paths: &[impl AsRef<Path>]) -> io::Result<()> {
        let path = paths[0].as_ref();
        let other = || paths[1].as_ref();
        let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, mode(), device);
        match self {
            Self::CreateNew => write(path, OFlags::EXCL)?,
            Self::Create => write(path, OFlags::empty())?,
            Self::CreateTruncated => write(path, OFlags::TRUNC)?,
            Self::Mkdir => rustix::fs::mkdirat(CWD, path, mode())?,
            Self::Symlink => rustix::fs::symlinkat("new", CWD, path)?,
            Self::Fifo => node(FileType::Fifo, 0)?,
            Self::Whiteout => node(FileType::CharacterDevice, 0)?,
            Self::Device => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3))?,
            Self::Unlink => rustix::fs::unlinkat(CWD, path, AtFlags::empty())?,
            Self::Rmdir => rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?,
            Self::Link => rustix::fs::linkat(CWD, path, CWD, other(), AtFlags::empty())?,
            Self::Rename(flags) => rustix::fs::renameat_with(CWD, path, CWD, other(), flags)?,
        }
        Ok(())
    }
}

/// The umask of the tests takes the group's right to write away.
fn mode() -> Mode {
    Mode::from_bits_truncate(0o664)
}

fn write(path: &Path, flags: OFlags) -> io::Result<()> {
    let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, mode())?;
    File::from(file).write_all(b"new")
}

/// Does all cases in one pair of mounts, each side by side, and compares the errors, what both show afterwards
/// and what lies on disk; then everybody mounts everybody's upper. Returns the errors that occurred.
#[track_caller]
pub(super) fn agree(format: Format, cases: &[Case]) -> BTreeSet<Option<i32>> {
    let scratch = Scratch::new();
    let setup = Setup { format, ..Setup::default() };
    let pair = Pair::new(&scratch, setup, |layers| {
        parents(layers);
        cases.iter().enumerate().for_each(|(number, case)| case.make(layers, number));
    });
    let mut errors = BTreeSet::new();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let expected = case.run(pair.oracle(), number);
        let found = case.run(pair.subject(), number);
        if expected != found {
            wrong.push(format!("{number}: {case:?}: expected {expected:?}, found {found:?}"));
        }
        errors.insert(expected.err());
    }
    let shown = wrong.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} cases:\n{shown}", wrong.len(), cases.len());
    let paths = |(number, case): (usize, &Case)| case.paths(number);
    let also: Vec<_> = cases.iter().enumerate().flat_map(paths).collect();
    pair.assert_same(&also);
    pair.assert_interchangeable(&also);
    errors
}
