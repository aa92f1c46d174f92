//! What the kernel can do, found out by trying rather than by its version.
//!
//! Every trial is a detached mount: nothing is attached to the tree, and closing it undoes it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::doors::Doors;

/// What holds for the whole host, as found at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// Overlay marks must live in `user.` attributes: we are in a user namespace.
    pub userxattr: bool,
    /// The kernel knows the option `index`, so it has to be switched off by name.
    pub index: bool,
    /// Overlay layers can be id-mapped mounts (5.19 and later).
    pub id_mapped_layers: bool,
    /// Identity of this boot.
    pub boot: String,
}

impl Features {
    /// Looks at the running kernel.
    pub(crate) fn detect() -> io::Result<Self> {
        Ok(Self {
            userxattr: in_user_namespace(),
            index: Path::new("/sys/module/overlay/parameters/index").exists(),
            id_mapped_layers: kernel_version() >= (5, 19),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        })
    }

    /// Options for every overlay mount: `configured`, then what this kernel needs besides.
    pub(crate) fn overlay_options(&self, configured: &[String]) -> Vec<String> {
        let has =
            |name: &str| configured.iter().any(|option| option.split('=').next() == Some(name));
        let mut options = configured.to_vec();
        for (needed, name, option) in
            [(self.userxattr, "userxattr", "userxattr"), (self.index, "index", "index=off")]
        {
            if needed && !has(name) {
                options.push(option.to_owned());
            }
        }
        options
    }
}

/// In the initial user namespace every id is mapped to itself.
fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        map.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
    })
}

fn kernel_version() -> (u32, u32) {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Tells whether kernel overlayfs takes an upper in `directory`, by mounting one there.
///
/// `owner` tells one root's trials in a shared directory from another's, so that each can delete what
/// a crash left of its own. Returns what is wrong, in words for an operator. A full file system cannot
/// be tried and is let pass: whoever needs space will find out, whoever removes something must be able to.
pub(crate) fn check_upper(
    directory: &Path,
    owner: &str,
    features: &Features,
) -> Result<(), String> {
    try_in(directory, owner, &features.overlay_options(&[]), |refusal| {
        format!(
            "kernel overlayfs refuses an upper on this file system ({}): {refusal}; \
             ext4, xfs with ftype=1 and btrfs work, NFS and overlay do not",
            file_system_type(directory)
        )
    })
}

/// Tells whether the kernel takes the configured options of overlay mounts, in a `directory` that can
/// hold uppers; otherwise as `check_upper`.
pub(crate) fn check_options(
    directory: &Path,
    owner: &str,
    features: &Features,
    configured: &[String],
) -> Result<(), String> {
    let mut options = features.overlay_options(configured);
    options.retain(|option| !MOUNT_FLAGS.contains(&option.as_str()));
    try_in(directory, owner, &options, |refusal| {
        format!("the kernel refuses overlay mounts with them: {refusal}")
    })
}

/// Words that containerd makes flags of mount(2), and overlayfs never sees.
const MOUNT_FLAGS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "rbind",
    "relatime",
    "remount",
    "strictatime",
    "suid",
    "sync",
];

/// Mounts an overlay with these options in `directory`; `explain` puts into words that it is refused.
fn try_in(
    directory: &Path,
    owner: &str,
    options: &[String],
    explain: impl Fn(&Refusal) -> String,
) -> Result<(), String> {
    static ONE_AT_A_TIME: LazyLock<Doors> = LazyLock::new(|| Doors::new(1, usize::MAX));
    let top = open_directory(directory)
        .map_err(|error| format!("cannot open {}: {error}", directory.display()))?;
    let name = format!(".overstream-probe-{owner}");
    let trial = directory.join(&name);
    let remove = || {
        crate::tree::remove_at(top.as_fd(), &name)
            .map_err(|error| format!("cannot delete {}: {error}", trial.display()))
    };
    let _alone = ONE_AT_A_TIME.enter(&trial).map_err(|stuck| stuck.to_string())?;
    remove()?;
    let result = match try_upper(&top, &name, options) {
        Ok(()) => Ok(()),
        Err(failure) => {
            let (error, problem) = match failure {
                Failure::Directory(error) => {
                    (error, format!("cannot create a directory in {}: {error}", trial.display()))
                }
                Failure::Mount(refusal) => (refusal.error, explain(&refusal)),
            };
            if is_full(error) {
                tracing::warn!(problem, "no space to find out whether an upper can lie there");
                Ok(())
            } else {
                Err(problem)
            }
        }
    };
    let removed = remove();
    result.and(removed)
}

fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

/// Why a trial failed.
enum Failure {
    /// Its directories cannot be made.
    Directory(Errno),
    /// It cannot be mounted.
    Mount(Refusal),
}

/// Mounts an overlay whose layers lie in a new directory `name` of `top`.
fn try_upper(top: &OwnedFd, name: &str, options: &[String]) -> Result<(), Failure> {
    let make =
        |parent: &OwnedFd, name: &str| make_directory(parent, name).map_err(Failure::Directory);
    let own = make(top, name)?;
    let [lower, upper, work] =
        [make(&own, "l")?, make(&own, "u")?, make(&own, "w")?].map(Handle::new);
    crate::crash::point("probe: directories made");
    let mut all =
        vec![("lowerdir", lower.path()), ("upperdir", upper.path()), ("workdir", work.path())];
    all.extend(options.iter().map(|option| option.split_once('=').unwrap_or((option, ""))));
    detached_overlay(&all).map(drop).map_err(Failure::Mount)
}

/// The kernel's no to a mount.
#[derive(Debug)]
struct Refusal {
    error: Errno,
    /// What it says besides, where it does: since Linux 6.5 the name of the option.
    words: String,
}

impl Refusal {
    fn new(context: &OwnedFd, error: Errno) -> Self {
        let mut words = Vec::new();
        let mut buffer = [0; 1024];
        // One message per read, after a letter for its severity; an error when there are no more.
        while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
            let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            words.push(message.trim().trim_start_matches("e ").to_owned());
        }
        Self { error, words: words.join("; ") }
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self { error, words: String::new() }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        refusal.error.into()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.words.is_empty() {
            write!(f, "{} (`dmesg` may tell more)", self.error)
        } else {
            write!(f, "{} ({})", self.words, self.error)
        }
    }
}

/// An open directory, and a path that leads to it: any path fits so in the 255 bytes of an option.
struct Handle {
    path: String,
    _directory: OwnedFd,
}

impl Handle {
    fn new(directory: OwnedFd) -> Self {
        Self { path: format!("/proc/self/fd/{}", directory.as_raw_fd()), _directory: directory }
    }

    fn path(&self) -> &str {
        &self.path
    }
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

/// Makes a directory that must be new: whoever can write there may have put a link in its place.
fn make_directory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), inside)
}

/// Tells whether some overlay mount, in any mount namespace, uses `upper` now.
pub(crate) fn upper_in_use(upper: &Path) -> io::Result<bool> {
    overstream_fuse::layer::in_use(open_directory(upper)?.as_fd())
}

/// Creates an overlay that is attached nowhere.
fn detached_overlay(options: &[(&str, &str)]) -> Result<OwnedFd, Refusal> {
    let context = overlay_context(options)?;
    fsconfig_create(context.as_fd()).map_err(|error| Refusal::new(&context, error))?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Sets the options of an overlay to be created. An empty value stands for a flag.
fn overlay_context(options: &[(&str, &str)]) -> Result<OwnedFd, Refusal> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        let set = if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *name)
        } else {
            fsconfig_set_string(context.as_fd(), *name, *value)
        };
        set.map_err(|error| Refusal::new(&context, error))?;
    }
    Ok(context)
}

/// Name of the file system at `path`, for messages.
fn file_system_type(path: &Path) -> String {
    let longest = crate::mountinfo::read().ok().and_then(|mounts| {
        mounts
            .into_iter()
            .filter(|mount| path.starts_with(&mount.path))
            .max_by_key(|mount| (mount.path.as_os_str().len(), mount.id))
    });
    longest.map_or_else(|| "unknown".to_owned(), |mount| mount.fs_type)
}

/// True if a path lies in memory, or would: the nearest directory above that exists is looked at.
pub(crate) fn in_memory(path: &Path) -> bool {
    let found = path.ancestors().find_map(|above| rustix::fs::statfs(above).ok());
    found.is_some_and(|found| [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&found.f_type))
}

const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// Total and available bytes of the file system at `path`.
pub(crate) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests;
