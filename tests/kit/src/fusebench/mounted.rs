//! A mount under test, and what its daemon has used up to now.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use super::subject::{Layout, Means, Subject};
use crate::Scratch;
use crate::mountinfo::mounts_below;
use crate::process::Process;
use crate::sweep::processes_with;
use crate::wait::holds_within;

/// How long a mount may take to appear, and to go.
const PATIENCE: Duration = Duration::from_secs(10);
/// A daemon is done with what is left to do when it used no CPU for so long.
const SETTLED: Duration = Duration::from_millis(15);
/// Marks a daemon and its descendants in their environment.
const MARK: &str = "OVERSTREAM_BENCH_DAEMON";

/// A mounted subject; dropping it unmounts it and ends its daemon.
#[derive(Debug)]
pub(super) struct Mounted {
    target: PathBuf,
    daemon: Option<Process>,
}

/// What a daemon holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Footprint {
    /// Resident bytes.
    pub(super) resident: f64,
    /// Open descriptors.
    pub(super) descriptors: usize,
}

impl Mounted {
    /// Mounts a subject.
    ///
    /// # Errors
    /// Says why that failed, with what the daemon said.
    pub(super) fn new(
        scratch: &Scratch,
        subject: &Subject,
        layout: &Layout,
        volatile: bool,
    ) -> Result<Self, String> {
        let target = layout.target.clone();
        match subject.means(layout, volatile)? {
            Means::Kernel(data) => {
                let kind = Some("overlay");
                nix::mount::mount(kind, &target, kind, MsFlags::empty(), Some(data.as_str()))
                    .map_err(|errno| format!("mount with {data}: {errno}"))?;
                Ok(Self { target, daemon: None })
            }
            Means::Program(command) => Self::start(scratch, &subject.name, command, target),
        }
    }

    fn start(
        scratch: &Scratch,
        name: &str,
        mut command: Command,
        target: PathBuf,
    ) -> Result<Self, String> {
        command.env(MARK, &target).current_dir("/");
        let process = scratch.spawn(name, &mut command);
        let appeared = holds_within(PATIENCE, || {
            process.ended().is_some() || !mounts_below(&target).is_empty()
        });
        if !appeared || process.ended().is_some() {
            return Err(format!("cannot mount: {}", process.describe()));
        }
        Ok(Self { target, daemon: Some(process) })
    }

    /// Returns where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.target
    }

    /// Returns the process id of the daemon, if there is one.
    pub(super) fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// Returns the seconds of CPU that each process of the daemon has used, all its threads, those
    /// that have ended included.
    pub(super) fn cpu(&self) -> BTreeMap<i32, f64> {
        self.pids().into_iter().filter_map(|pid| Some((pid.as_raw(), cpu_of(pid)?))).collect()
    }

    /// As [`Self::cpu`], once the daemon has done what it puts off until its caller is gone.
    pub(super) fn settled_cpu(&self) -> BTreeMap<i32, f64> {
        let end = Instant::now() + Duration::from_secs(1);
        let mut before = self.cpu();
        while self.daemon.is_some() {
            sleep(SETTLED);
            let after = self.cpu();
            if after == before || Instant::now() > end {
                return after;
            }
            before = after;
        }
        before
    }

    /// Returns what the daemon holds.
    pub(super) fn footprint(&self) -> Option<Footprint> {
        self.daemon.as_ref()?;
        let mut sum = Footprint::default();
        for pid in self.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let words = line.unwrap_or_default().split_whitespace().next();
            let kilobytes: f64 = words.and_then(|word| word.parse().ok()).unwrap_or(0.0);
            sum.resident += kilobytes * 1024.0;
            sum.descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        }
        Some(sum)
    }

    fn pids(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.target.display());
        let found = self.daemon.as_ref().map(|_| processes_with(mark.as_bytes()));
        let ids = found.unwrap_or_default().into_iter();
        ids.filter_map(|pid| Some(Pid::from_raw(pid.try_into().ok()?))).collect()
    }
}

fn cpu_of(pid: Pid) -> Option<f64> {
    let time = clock_gettime(clock_getcpuclockid(pid).ok()?).ok()?;
    Some(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Who was killed with the daemon leaves the mount a little later.
        let mut result = Ok(());
        holds_within(PATIENCE, || {
            result = umount2(&self.target, MntFlags::empty());
            result != Err(Errno::EBUSY)
        });
        if result.is_err() {
            umount2(&self.target, MntFlags::MNT_DETACH).ok();
        }
        if let Some(daemon) = &self.daemon {
            holds_within(PATIENCE, || daemon.ended().is_some());
            daemon.kill();
        }
    }
}
