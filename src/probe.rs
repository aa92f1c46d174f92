//! What the kernel can do, found out by trying rather than by its version.
//!
//! Every trial is a detached mount: nothing is attached to the tree, and closing it undoes it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::locks::PathLocks;

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
    static ONE_AT_A_TIME: LazyLock<PathLocks> = LazyLock::new(PathLocks::default);
    let trial = directory.join(format!(".overstream-probe-{owner}"));
    let remove = || {
        crate::tree::remove(&trial)
            .map_err(|error| format!("cannot delete {}: {error}", trial.display()))
    };
    ONE_AT_A_TIME.hold(&trial, || {
        remove()?;
        let result = match try_upper(&trial, features) {
            Err((error, problem)) if is_full(&error) => {
                tracing::warn!(problem, "no space to find out whether an upper can lie there");
                Ok(())
            }
            other => other.map_err(|(_, problem)| problem),
        };
        let removed = remove();
        result.and(removed)
    })
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn try_upper(trial: &Path, features: &Features) -> Result<(), (io::Error, String)> {
    for name in ["l", "u", "w"] {
        fs::create_dir_all(trial.join(name)).map_err(|error| {
            let problem = format!("cannot create a directory in {}: {error}", trial.display());
            (error, problem)
        })?;
    }
    crate::crash::point("probe: directories made");
    let mut options = vec![
        ("lowerdir", trial.join("l")),
        ("upperdir", trial.join("u")),
        ("workdir", trial.join("w")),
    ];
    if features.userxattr {
        options.push(("userxattr", PathBuf::new()));
    }
    detached_overlay(&options).map(drop).map_err(|error| {
        let problem = format!(
            "kernel overlayfs refuses an upper on this file system ({}): {error}; \
             ext4, xfs with ftype=1 and btrfs work, NFS and overlay do not",
            file_system_type(trial)
        );
        (error.into(), problem)
    })
}

/// Tells whether some overlay mount, in any mount namespace, uses `upper` now.
///
/// The kernel itself is asked: with `index=on` it answers EBUSY for an upper in use, before it looks
/// at the workdir; with a workdir on another mount the trial can never succeed, so it changes nothing.
pub(crate) fn upper_in_use(upper: &Path) -> io::Result<bool> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(tmpfs.as_fd())?;
    let elsewhere = fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    for name in [c"l", c"w"] {
        rustix::fs::mkdirat(&elsewhere, name, Mode::RWXU)?;
    }
    let below =
        |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", elsewhere.as_raw_fd()));
    let options = [
        ("index", PathBuf::from("on")),
        ("lowerdir", below("l")),
        ("upperdir", upper.to_owned()),
        ("workdir", below("w")),
    ];
    match detached_overlay(&options) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(_) => Err(io::Error::other("the kernel mounted an overlay across two file systems")),
    }
}

/// Creates an overlay that is attached nowhere. An empty value stands for a flag.
fn detached_overlay(options: &[(&str, PathBuf)]) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        if value.as_os_str().is_empty() {
            fsconfig_set_flag(context.as_fd(), *name)?;
        } else {
            fsconfig_set_string(context.as_fd(), *name, value.as_path())?;
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
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

/// Total and available bytes of the file system at `path`.
pub(crate) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests;
