//! Ends processes, drops mounts and deletes files that belong to a scratch directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mountinfo::mounts_below;
use crate::wait::holds_within;

/// Environment variable that marks what descends from a scratch directory: it reaches shims, too,
/// which leave their parents and process groups behind.
pub(crate) const OWNER: &str = "OVERSTREAM_TEST_OWNER";

/// More rounds than mounts ever lie on top of each other.
const ROUNDS: u32 = 200;

/// Returns the ids of the processes that carry the mark of `scratch`, and of their descendants.
pub(crate) fn processes_of(scratch: &Path) -> Vec<u32> {
    let mark = [OWNER.as_bytes(), b"=", scratch.as_os_str().as_bytes()].concat();
    let parents: BTreeMap<u32, u32> = running().filter_map(|p| Some((p, parent(p)?))).collect();
    let mut found: BTreeSet<u32> =
        parents.keys().copied().filter(|pid| carries(*pid, &mark)).collect();
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found.into_iter().collect();
        }
        found.extend(more);
    }
}

/// Returns the ids of the running processes whose environment holds `variable`, `NAME=VALUE`.
pub(crate) fn processes_with(variable: &[u8]) -> Vec<u32> {
    running().filter(|pid| parent(*pid).is_some() && carries(*pid, variable)).collect()
}

/// Kills the processes of `scratch` until there are none.
pub(crate) fn kill_processes_of(scratch: &Path) {
    let gone = holds_within(Duration::from_secs(10), || {
        let left = processes_of(scratch);
        for pid in &left {
            let pid = Pid::from_raw((*pid).try_into().expect("a process id"));
            // It may have ended by itself meanwhile.
            kill(pid, Signal::SIGKILL).ok();
        }
        left.is_empty()
    });
    if !gone {
        eprintln!("cannot kill processes {:?} of {}", processes_of(scratch), scratch.display());
    }
}

/// Thaws the file systems mounted below `directory` that a test froze.
pub(crate) fn thaw_below(directory: &Path) {
    for point in mounts_below(directory) {
        // What is not frozen says so.
        Command::new("fsfreeze").arg("-u").arg(point).output().ok();
    }
}

/// Unmounts everything at or below `directory`, the innermost first.
pub(crate) fn unmount_below(directory: &Path) {
    for _ in 0..ROUNDS {
        let mounts = mounts_below(directory);
        let mut progress = false;
        for point in mounts.iter().rev() {
            progress |= umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok();
        }
        if !progress {
            break;
        }
    }
    let left = mounts_below(directory);
    if !left.is_empty() {
        eprintln!("cannot unmount {left:?}");
    }
}

/// Detaches the loop devices whose files lie below `directory`.
pub(crate) fn detach_loops_below(directory: &Path) {
    for device in loops_below(directory) {
        // An unmount just now may detach it by itself at any moment.
        Command::new("losetup").arg("-d").arg(device).output().ok();
    }
}

/// Loop devices on files below a directory, or on that file.
pub(crate) fn loops_below(directory: &Path) -> Vec<PathBuf> {
    let is_below = |entry: &fs::DirEntry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()).starts_with(directory)
    };
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter(is_below).map(|entry| Path::new("/dev").join(entry.file_name())).collect()
}

/// Removes a cgroup and those below it from every hierarchy; those with processes stay.
pub(crate) fn remove_cgroup(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        remove_directories(&hierarchy.join(name.trim_start_matches('/')));
    }
}

fn remove_directories(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directories(&entry.path());
        }
    }
    // A cgroup's files go with it.
    fs::remove_dir(directory).ok();
}

/// Deletes a directory with everything in it, whatever its modes.
pub(crate) fn delete(directory: &Path) -> io::Result<()> {
    let first = fs::remove_dir_all(directory);
    if first.is_ok() || !directory.exists() {
        return Ok(());
    }
    open_up(directory);
    fs::remove_dir_all(directory)
}

/// Gives the owner all rights on every directory; only without root's rights it makes a difference.
fn open_up(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).ok();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

fn running() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("list the processes").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Returns the parent of a living process; a zombie counts as gone.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| state != "Z")
}

fn carries(pid: u32, mark: &[u8]) -> bool {
    let environment: PathBuf = format!("/proc/{pid}/environ").into();
    let environment = fs::read(environment).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == mark)
}
