//! Finding a container's volume among the host's mounts, and the upper on it.
//!
//! Only the text of mountinfo is matched; nothing of a mount is touched before it matched. On the
//! volume, one directory per container holds the upper and says whose it is:
//!
//! ```text
//! <volume>/overstream/<container>/
//!   overstream.json    which chain of layers the upper belongs on, and which snapshot owns it
//!   fs/  work/         as in any store
//! ```
//! Nothing below the mount point is reached through a symlink or into another mount.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use regex::Regex;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::config::{Field, Rule};
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::mountinfo::MountPoint;

/// Directory on a volume that holds everything of ours.
pub(crate) const DIRECTORY: &str = "overstream";
/// Name of the file that tells whose upper it is.
const IDENTITY: &str = "overstream.json";
/// Version of that file's form.
const FORMAT: u32 = 1;

/// Why a container gets no volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoVolume {
    /// The container's record lacks what the rule asks for.
    Unknown(Field),
    /// No mount matches.
    None(String),
    /// Several mounts match; any choice would be a guess.
    Several(Vec<PathBuf>),
    /// The one that matches cannot be written to.
    ReadOnly(PathBuf),
}

impl std::fmt::Display for NoVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(field) => {
                write!(f, "containerd does not know the container's {}", field.as_str())
            }
            Self::None(wanted) => {
                write!(f, "no mount of this host matches the store's pattern with {wanted}")
            }
            Self::Several(paths) => write!(f, "several mounts match: {paths:?}"),
            Self::ReadOnly(path) => write!(f, "{} is mounted read-only", path.display()),
        }
    }
}

/// A container's volume, and its directory there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where the volume is mounted.
    pub(crate) mount: PathBuf,
    /// Name of the container's directory.
    pub(crate) subdirectory: String,
}

/// Finds the one mount whose path matches, with the captures the rule demands.
pub(crate) fn find(
    pattern: &Regex,
    rule: &Rule,
    identity: &Identity,
    mounts: &[MountPoint],
) -> Result<Found, NoVolume> {
    let mut wanted = Vec::new();
    for (capture, template) in &rule.volume {
        let value = template.fill(|field| identity.get(field)).map_err(NoVolume::Unknown)?;
        wanted.push((capture.as_str(), value));
    }
    let subdirectory =
        rule.subdirectory.fill(|field| identity.get(field)).map_err(NoVolume::Unknown)?;
    let mut paths: Vec<&Path> = mounts
        .iter()
        .map(|mount| mount.path.as_path())
        .filter(|path| path.to_str().is_some_and(|path| matches(pattern, path, &wanted)))
        .collect();
    paths.sort_unstable();
    paths.dedup();
    match paths.as_slice() {
        // Of mounts on top of each other the last is the one in sight.
        [one]
            if mounts
                .iter()
                .rfind(|mount| mount.path == **one)
                .is_some_and(|top| top.read_only) =>
        {
            Err(NoVolume::ReadOnly((*one).to_owned()))
        }
        [one] => Ok(Found { mount: (*one).to_owned(), subdirectory }),
        [] => {
            let wanted: Vec<_> =
                wanted.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            Err(NoVolume::None(wanted.join(", ")))
        }
        several => Err(NoVolume::Several(several.iter().map(|path| (*path).to_owned()).collect())),
    }
}

fn matches(pattern: &Regex, path: &str, wanted: &[(&str, String)]) -> bool {
    pattern.captures(path).is_some_and(|captures| {
        wanted
            .iter()
            .all(|(name, value)| captures.name(name).is_some_and(|found| found.as_str() == value))
    })
}

/// What `overstream.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    format: u32,
    /// Root whose snapshot owns the upper.
    pub(crate) root: String,
    /// Number of that snapshot.
    pub(crate) snapshot: u64,
    /// Identities of the layers the upper belongs on, top first.
    pub(crate) chain: Vec<String>,
    /// Overlay marks are in `user.` attributes.
    pub(crate) userxattr: bool,
}

impl Owner {
    pub(crate) fn new(root: &str, snapshot: u64, chain: Vec<String>, userxattr: bool) -> Self {
        Self { format: FORMAT, root: root.to_owned(), snapshot, chain, userxattr }
    }
}

/// A container's directory on a volume, held open.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    directory: OwnedFd,
    is_new: bool,
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const INSIDE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Splits the directory of an upper on a volume into the volume's mount point and the directory's name.
pub(crate) fn split(id: u64, directory: &Path) -> Result<(&Path, &str)> {
    let mount = directory.parent().and_then(Path::parent);
    let name = directory.file_name().and_then(|name| name.to_str());
    mount
        .zip(name)
        .ok_or_else(|| Error::BadRow { id, problem: format!("volume directory {directory:?}") })
}

impl Home {
    /// Opens the directory `subdirectory` on the volume; nothing if it does not exist.
    pub(crate) fn open(mount: &Path, subdirectory: &str) -> Result<Option<Self>> {
        check_name(subdirectory)?;
        let path = mount.join(DIRECTORY).join(subdirectory);
        layout::check_mountable(&path)?;
        let top = rustix::fs::open(mount, OPEN, Mode::empty()).at("open", mount)?;
        let below = Path::new(DIRECTORY).join(subdirectory);
        match rustix::fs::openat2(&top, &below, OPEN, Mode::empty(), INSIDE) {
            Ok(directory) => Ok(Some(Self { path, directory, is_new: false })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).at("open", &path),
        }
    }

    /// Opens the directory, making it and its `fs` and `work` where they do not exist.
    pub(crate) fn create(mount: &Path, subdirectory: &str, owner: (u32, u32)) -> Result<Self> {
        check_name(subdirectory)?;
        let top = rustix::fs::open(mount, OPEN, Mode::empty()).at("open", mount)?;
        let ours = make(&top, DIRECTORY, 0o700, &mount.join(DIRECTORY))?;
        let path = mount.join(DIRECTORY).join(subdirectory);
        layout::check_mountable(&path)?;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let is_new = rustix::fs::statat(&ours, subdirectory, nofollow).is_err();
        let directory = make(&ours, subdirectory, 0o700, &path)?;
        let home = Self { path, directory, is_new };
        let missing = |name| rustix::fs::statat(&home.directory, name, nofollow).is_err();
        // One that nobody got yet may be what a crash left, before it had its owner.
        let (has_no_fs, is_nobodys) = (missing(layout::FS), missing(IDENTITY));
        let fs = make(&home.directory, layout::FS, 0o755, &home.path)?;
        crate::crash::point("settle: volume upper made");
        if has_no_fs || (is_nobodys && home.is_empty()?) {
            let (uid, gid) =
                (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
            rustix::fs::fchown(&fs, Some(uid), Some(gid)).at("change the owner of", &home.path)?;
        }
        make(&home.directory, layout::WORK, 0o711, &home.path)?;
        Ok(home)
    }

    /// Makes sure that `fs` and `work` are there, and are not symlinks or mounts.
    pub(crate) fn check(&self) -> Result<()> {
        for name in [layout::FS, layout::WORK] {
            rustix::fs::openat2(&self.directory, name, OPEN, Mode::empty(), INSIDE)
                .at("open", &self.path.join(name))?;
        }
        Ok(())
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads whose upper this is; nothing if nobody's yet.
    pub(crate) fn owner(&self) -> Result<Option<Owner>> {
        let path = self.path.join(IDENTITY);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            match rustix::fs::openat2(&self.directory, IDENTITY, flags, Mode::empty(), INSIDE) {
                Err(Errno::NOENT) => return Ok(None),
                file => File::from(file.at("open", &path)?),
            };
        let mut text = String::new();
        file.take(1 << 20).read_to_string(&mut text).at("read", &path)?;
        let owner: Owner = serde_json::from_str(&text).map_err(|error| {
            Error::DataLoss(format!(
                "{} is damaged ({error}); the upper beside it is untouched: restore the file, or move the \
                 directory aside to start with an empty upper",
                path.display()
            ))
        })?;
        if owner.format == FORMAT {
            Ok(Some(owner))
        } else {
            Err(Error::FailedPrecondition(format!(
                "{} has format {}, this Overstream knows {FORMAT}; run the newer Overstream again",
                path.display(),
                owner.format
            )))
        }
    }

    /// Records whose upper this is, durably: the file is whole at every instant.
    pub(crate) fn set_owner(&self, owner: &Owner) -> Result<()> {
        let temporary = format!("{IDENTITY}.new");
        let path = self.path.join(&temporary);
        let text = serde_json::to_string_pretty(owner)
            .map_err(|error| Error::InvalidArgument(format!("{}: {error}", path.display())))?;
        let delete = || match rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other.at("delete", &path),
        };
        // Whatever is there, a crash left it or somebody planted it: a link, or a FIFO that blocks.
        delete()?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat2(&self.directory, &temporary, flags, Mode::from(0o600), INSIDE);
        let mut file = File::from(file.at("create", &path)?);
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        if written.is_err() {
            delete()?;
        }
        written.at("write", &path)?;
        crate::crash::point("settle: identity file written");
        rustix::fs::renameat(&self.directory, &temporary, &self.directory, IDENTITY)
            .at("rename", &path)?;
        rustix::fs::fsync(&self.directory).at("sync", &self.path)
    }

    /// Makes the directory, which is `name` on the volume at `mount`, what it was before it was opened:
    /// `before`'s, or not there.
    pub(crate) fn restore(&self, mount: &Path, name: &str, before: Option<&Owner>) -> Result<()> {
        match before {
            Some(owner) if self.owner()?.as_ref() != before => self.set_owner(owner),
            None if self.is_new && self.is_empty()? => self.remove(mount, name),
            _ => Ok(()),
        }
    }

    /// Removes the directory, in which there is nothing but our own.
    fn remove(&self, mount: &Path, name: &str) -> Result<()> {
        let top = rustix::fs::open(mount, OPEN, Mode::empty()).at("open", mount)?;
        let ours = rustix::fs::openat2(&top, DIRECTORY, OPEN, Mode::empty(), INSIDE)
            .at("open", &self.path)?;
        let entries = [
            (&self.directory, IDENTITY, AtFlags::empty()),
            (&self.directory, layout::WORK, AtFlags::REMOVEDIR),
            (&self.directory, layout::FS, AtFlags::REMOVEDIR),
            (&ours, name, AtFlags::REMOVEDIR),
        ];
        for (parent, name, flags) in entries {
            match rustix::fs::unlinkat(parent, name, flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error).at("delete", &self.path.join(name)),
            }
        }
        // Other containers may have theirs there.
        rustix::fs::unlinkat(&top, DIRECTORY, AtFlags::REMOVEDIR).ok();
        Ok(())
    }

    /// Gives the directory, which is `name` on the volume at `mount`, another name there.
    pub(crate) fn rename(&self, mount: &Path, name: &str, to: &str) -> Result<()> {
        let top = rustix::fs::open(mount, OPEN, Mode::empty()).at("open", mount)?;
        let ours = rustix::fs::openat2(&top, DIRECTORY, OPEN, Mode::empty(), INSIDE)
            .at("open", &self.path)?;
        rustix::fs::renameat(&ours, name, &ours, to).at("rename", &self.path)
    }

    /// True if the upper holds nothing.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let path = self.path.join(layout::FS);
        let mut entries = std::fs::read_dir(&path).at("read", &path)?;
        Ok(entries.next().is_none())
    }
}

fn make(parent: &OwnedFd, name: &str, mode: u32, path: &Path) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).at("create", path),
    }
    rustix::fs::openat2(parent, name, OPEN, Mode::empty(), INSIDE).at("open", path)
}

/// A directory's name comes from a container's: letters, digits, `.`, `_`, `-`, no leading dot.
fn check_name(name: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(valid) {
        Ok(())
    } else {
        Err(Error::InvalidArgument(format!(
            "{name:?} cannot name a directory on a volume: letters, digits, '.', '_' and '-', at most 128, \
             no leading '.'"
        )))
    }
}
