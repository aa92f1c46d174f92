//! Mounts what a snapshotter returns, exactly as containerd does.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::proto::types::Mount;
use crate::wait::holds_within;

/// containerd shortens the options from this size on: the kernel takes one page of them.
const SHORTEN_FROM: usize = 4096 - 512;

/// How long a mount may be busy before that is a mistake.
const BUSY: Duration = Duration::from_secs(2);

const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("atime", MsFlags::MS_NOATIME, false),
    ("bind", MsFlags::MS_BIND, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("nodev", MsFlags::MS_NODEV, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("remount", MsFlags::MS_REMOUNT, true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
];

/// A mounted snapshot; dropping it unmounts it.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    count: usize,
}

impl Mounted {
    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Returns the path of `name` in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.target.join(name)
    }

    /// Unmounts it; panics if it stays busy.
    #[track_caller]
    pub fn unmount(mut self) {
        while self.count > 0 {
            let mut result = Ok(());
            // A process that another thread is just starting has our files open until its exec.
            holds_within(BUSY, || {
                result = umount2(&self.target, MntFlags::empty());
                result != Err(Errno::EBUSY)
            });
            if let Err(error) = result {
                panic!("cannot unmount {}: {error}", self.target.display());
            }
            self.count -= 1;
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..self.count {
            // The scratch directory gets rid of what cannot be unmounted here.
            umount2(&self.target, MntFlags::MNT_DETACH).ok();
        }
    }
}

/// Mounts a snapshot's mounts in order on the directory `target`, which is made if missing; panics
/// with the mounts if that fails.
#[track_caller]
pub fn mount(mounts: &[Mount], target: impl AsRef<Path>) -> Mounted {
    let target = target.as_ref();
    try_mount(mounts, target).unwrap_or_else(|error| {
        panic!("cannot mount on {}: {error}: {mounts:#?}", target.display())
    })
}

/// Mounts a snapshot's mounts in order on the directory `target`, which is made if missing.
pub fn try_mount(mounts: &[Mount], target: &Path) -> io::Result<Mounted> {
    std::fs::create_dir_all(target)?;
    let mut mounted = Mounted { target: target.to_owned(), count: 0 };
    for mount in mounts {
        mount_one(mount, target)?;
        mounted.count += 1;
    }
    Ok(mounted)
}

fn mount_one(mount: &Mount, target: &Path) -> io::Result<()> {
    let (flags, mut data) = parse(&mount.options);
    let mut directory = None;
    if data.len() >= SHORTEN_FROM
        && let Some((common, shorter)) = shortened(&data)
    {
        (directory, data) = (Some(common), shorter);
    }
    mount_from(directory, mount, target, flags, &data)?;
    if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        // The kernel ignores all other flags when it makes a bind mount.
        let none: Option<&str> = None;
        nix::mount::mount(none, target, none, flags | MsFlags::MS_REMOUNT, none)?;
    }
    Ok(())
}

/// Splits options into the flags and the data of mount(2).
fn parse(options: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, true)) => flags.insert(*flag),
            Some((_, flag, false)) => flags.remove(*flag),
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// Takes the directory common to all lower directories out of the data, and returns both.
fn shortened(data: &str) -> Option<(PathBuf, String)> {
    let lowers = data.split(',').find_map(|option| option.strip_prefix("lowerdir="))?;
    let mut parents = lowers.split(':').map(|lower| Path::new(lower).parent());
    let mut common = parents.next()??;
    let count = lowers.split(':').count();
    for parent in parents {
        while !parent?.starts_with(common) {
            common = common.parent()?;
        }
    }
    if count < 2 || common == Path::new("/") {
        return None;
    }
    let prefix = format!("{}/", common.display());
    let short: Vec<&str> =
        lowers.split(':').map(|l| l.strip_prefix(&prefix).unwrap_or(l)).collect();
    Some((common.to_owned(), data.replace(lowers, &short.join(":"))))
}

/// Calls mount(2), with relative paths starting from `directory`.
fn mount_from(
    directory: Option<PathBuf>,
    mount: &Mount,
    target: &Path,
    flags: MsFlags,
    data: &str,
) -> io::Result<()> {
    let call = || {
        nix::mount::mount(
            Some(mount.source.as_str()),
            target,
            Some(mount.r#type.as_str()),
            flags,
            Some(data),
        )
        .map_err(io::Error::from)
    };
    let Some(directory) = directory else { return call() };
    // A thread with a working directory of its own; containerd uses a process.
    let in_directory = || {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(&directory)?;
        call()
    };
    thread::scope(|scope| scope.spawn(in_directory).join().expect("a mounting thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_lose_what_they_have_in_common() {
        let data = "workdir=/r/9/w,upperdir=/r/9/fs,lowerdir=/r/s/2/fs:/r/s/1/fs";
        let (directory, data) = shortened(data).unwrap();
        assert_eq!(directory, Path::new("/r/s"));
        assert_eq!(data, "workdir=/r/9/w,upperdir=/r/9/fs,lowerdir=2/fs:1/fs");
    }

    #[test]
    fn a_single_lower_directory_stays_as_it_is() {
        assert_eq!(shortened("lowerdir=/r/s/1/fs"), None);
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = ["rbind", "ro", "index=off"].map(str::to_owned);
        let (flags, data) = parse(&options);
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(data, "index=off");
    }
}
