//! One step of a history: any operation on any of a few names, or on what is open.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use overstream_testkit::{Mapping, Random};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags};

/// Files that may be open at once.
const SLOTS: usize = 4;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const LONGEST: usize = 20_000;

/// What is done.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Create(String, bool),
    Mkdir(String),
    Symlink(String),
    Fifo(String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameFlags),
    Chmod(String, u32),
    Chown(String, u32),
    Touch(String, i64),
    SetAttribute(String, u8),
    RemoveAttribute(String),
    Truncate(String, u64),
    Write(String, u64, usize),
    Append(String, usize),
    Read(String),
    List(String),
    Open(usize, String, OFlags),
    Close(usize),
    ReadOpen(usize, u64),
    WriteOpen(usize, u64, usize),
    AppendOpen(usize, usize),
    TruncateOpen(usize, u64),
    MapOpen(usize, usize),
    PunchOpen(usize, u64, u64),
    CopyOpen(usize, usize, u64),
    SyncOpen(usize),
}

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Open([Option<File>; SLOTS]);

/// What there is, as far as is known: most steps are of that, so that most succeed.
#[derive(Debug, Default)]
pub(super) struct Known {
    files: Vec<String>,
    dirs: Vec<String>,
}

impl Known {
    /// Looks at a tree that others may be changing.
    pub(super) fn look(root: &Path) -> Self {
        let mut known = Self::default();
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            let entries = fs::read_dir(root.join(&dir)).into_iter().flatten().flatten();
            for entry in entries {
                let path = format!("{dir}{}", entry.file_name().to_string_lossy());
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => {
                        todo.push(format!("{path}/"));
                        known.dirs.push(path);
                    }
                    _ => known.files.push(path),
                }
            }
        }
        known.files.sort();
        known.dirs.sort();
        known
    }

    fn path(random: &mut Random) -> String {
        let depth = 1 + random.below(3);
        let names: Vec<_> = (0..depth).map(|_| random.one_of(&NAMES)).collect();
        names.join("/")
    }

    /// Mostly one of some; else any.
    fn mostly(paths: &[String], random: &mut Random) -> String {
        match random.below(6) {
            1.. if !paths.is_empty() => paths[random.below(paths.len())].clone(),
            _ => Self::path(random),
        }
    }

    /// Mostly a file that is not a directory.
    fn file(&self, random: &mut Random) -> String {
        Self::mostly(&self.files, random)
    }

    /// Mostly something that is there.
    fn any(&self, random: &mut Random) -> String {
        let paths = if random.below(2) == 0 { &self.dirs } else { &self.files };
        Self::mostly(paths, random)
    }

    /// Mostly a name in a directory, and not too deep.
    fn place(&self, random: &mut Random) -> String {
        let dir = Self::mostly(&self.dirs, random);
        if dir.matches('/').count() > 2 || random.below(4) == 0 {
            return Self::path(random);
        }
        format!("{dir}/{}", random.one_of(&NAMES))
    }
}

impl Step {
    /// Rolls a step.
    pub(super) fn roll(random: &mut Random, known: &Known) -> Self {
        if random.below(3) == 0 {
            Self::roll_open(random, known)
        } else {
            Self::roll_named(random, known)
        }
    }

    fn roll_named(random: &mut Random, known: &Known) -> Self {
        let flags = [
            RenameFlags::empty(),
            RenameFlags::empty(),
            RenameFlags::NOREPLACE,
            RenameFlags::EXCHANGE,
        ];
        let (place, file) = (known.place(random), known.file(random));
        let any = known.any(random);
        match random.below(24) {
            0 => Self::Create(place, true),
            1 | 2 => Self::Create(place, false),
            3 | 4 => Self::Mkdir(place),
            5 => Self::Symlink(place),
            6 => Self::Fifo(place),
            7 => Self::Link(file, place),
            8 | 9 => Self::Unlink(file),
            10 => Self::Rmdir(any),
            11 | 12 => Self::Rename(any, place, random.one_of(&flags)),
            13 => Self::Rename(any, known.any(random), random.one_of(&flags)),
            14 => Self::Chmod(any, random.one_of(&[0o600, 0o4755, 0o2777, 0o1777])),
            15 => Self::Chown(any, random.one_of(&[0, 1000])),
            16 => Self::Touch(any, random.one_of(&[-1_000_000, 0, 1_000_000])),
            17 => Self::SetAttribute(any, random.one_of(b"xy")),
            18 => Self::RemoveAttribute(any),
            19 => Self::Truncate(file, random.below(LONGEST) as u64),
            20 => Self::Write(file, random.below(LONGEST) as u64, 1 + random.below(9000)),
            21 => Self::Append(file, 1 + random.below(5000)),
            22 => Self::Read(file),
            _ => Self::List(any),
        }
    }

    fn roll_open(random: &mut Random, known: &Known) -> Self {
        let ways = [
            OFlags::RDONLY,
            OFlags::RDWR,
            OFlags::WRONLY,
            OFlags::RDWR.union(OFlags::APPEND),
            OFlags::RDWR.union(OFlags::CREATE),
            OFlags::RDWR.union(OFlags::TRUNC),
        ];
        let (slot, at) = (random.below(SLOTS), random.below(LONGEST) as u64);
        match random.below(16) {
            0..=3 => Self::Open(slot, known.file(random), random.one_of(&ways)),
            4 => Self::Close(slot),
            5 | 6 => Self::ReadOpen(slot, at),
            7 | 8 => Self::WriteOpen(slot, at, 1 + random.below(9000)),
            9 => Self::AppendOpen(slot, 1 + random.below(3000)),
            10 => Self::TruncateOpen(slot, at),
            11 | 12 => Self::MapOpen(slot, random.below(LONGEST)),
            13 => Self::PunchOpen(slot, at, 1 + random.below(9000) as u64),
            14 => Self::SyncOpen(slot),
            _ => Self::CopyOpen(slot, random.below(SLOTS), at),
        }
    }

    /// Takes the step, as the one with this number; returns what is to be the same everywhere.
    pub(super) fn run(&self, root: &Path, number: usize, open: &mut Open) -> Result<String, i32> {
        let done = match self.on_names(root, number) {
            None => self.on_open(root, number, open),
            Some(done) => done,
        };
        done.map_err(|error| error.raw_os_error().unwrap_or(0))
    }

    fn on_names(&self, root: &Path, number: usize) -> Option<io::Result<String>> {
        let done = match self {
            Self::Create(name, new) => {
                let exclusive = if *new { OFlags::EXCL } else { OFlags::empty() };
                open_with(&root.join(name), OFlags::WRONLY | OFlags::CREATE | exclusive).map(drop)
            }
            Self::Mkdir(name) => fs::create_dir(root.join(name)),
            Self::Symlink(name) => symlink(format!("to/{number}"), root.join(name)),
            Self::Fifo(name) => {
                let mode = Mode::from_raw_mode(0o644);
                let made = rustix::fs::mknodat(CWD, root.join(name), FileType::Fifo, mode, 0);
                made.map_err(io::Error::from)
            }
            Self::Link(name, to) => fs::hard_link(root.join(name), root.join(to)),
            Self::Unlink(name) => fs::remove_file(root.join(name)),
            Self::Rmdir(name) => fs::remove_dir(root.join(name)),
            Self::Rename(name, to, flags) => {
                let (name, to) = (root.join(name), root.join(to));
                rustix::fs::renameat_with(CWD, name, CWD, to, *flags).map_err(io::Error::from)
            }
            Self::Chmod(name, mode) => not_link(&root.join(name))
                .and_then(|path| fs::set_permissions(path, Permissions::from_mode(*mode))),
            Self::Chown(name, uid) => lchown(root.join(name), Some(*uid), None),
            Self::Touch(name, seconds) => {
                let time = TimeSpec::new(*seconds, 987_654_321);
                let (here, flags) = (nix::fcntl::AT_FDCWD, UtimensatFlags::NoFollowSymlink);
                nix::sys::stat::utimensat(here, &root.join(name), &time, &time, flags)
                    .map_err(io::Error::from)
            }
            Self::SetAttribute(name, value) => {
                xattr::set(root.join(name), "user.a", &vec![*value; number % 300])
            }
            Self::RemoveAttribute(name) => xattr::remove(root.join(name), "user.a"),
            Self::Truncate(name, length) => truncate(&root.join(name), *length),
            Self::Write(name, at, length) => with_open(&root.join(name), OFlags::WRONLY, |file| {
                file.write_all_at(&data(number, *length), *at)
            }),
            Self::Append(name, length) => {
                let flags = OFlags::WRONLY | OFlags::APPEND;
                with_open(&root.join(name), flags, |mut file| {
                    file.write_all(&data(number, *length))
                })
            }
            Self::Read(name) => return Some(read(&root.join(name))),
            Self::List(name) => return Some(list(&root.join(name))),
            _ => return None,
        };
        Some(done.map(|()| String::new()))
    }

    fn on_open(&self, root: &Path, number: usize, open: &mut Open) -> io::Result<String> {
        if let Self::Open(slot, name, flags) = self {
            open.0[*slot] = Some(open_with(&root.join(name), *flags)?);
            return Ok(String::new());
        }
        let of = |slot: &usize| open.0[*slot].as_ref().ok_or(io::Error::from_raw_os_error(1000));
        match self {
            Self::Close(slot) => open.0[*slot] = None,
            Self::ReadOpen(slot, at) => {
                let mut bytes = vec![0; 5000];
                let read = of(slot)?.read_at(&mut bytes, *at)?;
                return Ok(format!("{read} {:x}", sum(&bytes[..read])));
            }
            Self::WriteOpen(slot, at, length) => {
                of(slot)?.write_all_at(&data(number, *length), *at)?;
            }
            Self::AppendOpen(slot, length) => {
                let mut file = of(slot)?;
                file.seek(SeekFrom::End(0))?;
                file.write_all(&data(number, *length))?;
            }
            Self::TruncateOpen(slot, length) => of(slot)?.set_len(*length)?,
            Self::MapOpen(slot, at) => {
                let file = of(slot)?;
                let length: usize = file.metadata()?.len().try_into().unwrap();
                if length == 0 {
                    return Ok("empty".to_owned());
                }
                let mapping = Mapping::new(file, length, true)?;
                let at = at % length;
                mapping.write(at, &data(number, 100.min(length - at)));
                mapping.sync()?;
                return Ok(format!("{:x}", sum(&mapping.read())));
            }
            Self::PunchOpen(slot, at, length) => {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(of(slot)?, mode, *at, *length)?;
            }
            Self::CopyOpen(from, to, at) => {
                let (mut from_at, mut to_at) = (0, *at);
                let (from, to) = (of(from)?, of(to)?);
                let copied = rustix::fs::copy_file_range(
                    from,
                    Some(&mut from_at),
                    to,
                    Some(&mut to_at),
                    3000,
                )?;
                return Ok(copied.to_string());
            }
            Self::SyncOpen(slot) => of(slot)?.sync_all()?,
            _ => unreachable!("a step on names"),
        }
        Ok(String::new())
    }
}

/// Bytes that tell which step wrote them.
fn data(number: usize, length: usize) -> Vec<u8> {
    format!("{number} ").into_bytes().into_iter().cycle().take(length).collect()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte))
}

/// What is not done to what a symlink leads to.
fn not_link(path: &Path) -> io::Result<&Path> {
    if path.is_symlink() { Err(io::Error::from_raw_os_error(1001)) } else { Ok(path) }
}

/// Opens a file, but no pipe, which would wait for the other end.
fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o640))?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::from_raw_os_error(1002)) }
}

fn with_open(
    path: &Path,
    flags: OFlags,
    act: impl FnOnce(File) -> io::Result<()>,
) -> io::Result<()> {
    act(open_with(path, flags)?)
}

fn truncate(path: &Path, length: u64) -> io::Result<()> {
    with_open(path, OFlags::WRONLY, |file| file.set_len(length))
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open_with(path, OFlags::RDONLY)?.read_to_end(&mut bytes)?;
    Ok(format!("{} {:x}", bytes.len(), sum(&bytes)))
}

/// Lists what is found: the kernel lists whiteouts in a directory that is not merged, but does not find them.
fn list(path: &Path) -> io::Result<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if fs::symlink_metadata(entry.path()).is_ok() {
            names.insert(entry.file_name());
        }
    }
    Ok(format!("{names:?}"))
}
