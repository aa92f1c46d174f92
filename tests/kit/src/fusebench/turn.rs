//! One subject's turn in one round: a fresh mount, the steps of a scenario, and what they cost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::material::{GIT, Material};
use super::mounted::{Footprint, Mounted};
use super::names::TOP;
use super::row::Sample;
use crate::wait::holds_within;
use crate::{Scratch, run};

/// A step that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);
/// How long what is attached to a daemon may take to come and to go.
const ATTACH: Duration = Duration::from_millis(500);

/// What a turn found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Samples by the name of their row.
    pub(super) samples: Vec<(&'static str, Sample)>,
    /// What the daemon held in the end.
    pub(super) footprint: Option<Footprint>,
}

impl Found {
    /// Returns the sample of a row.
    pub(super) fn sample(&self, row: &str) -> Option<Sample> {
        self.samples.iter().find(|(id, _)| *id == row).map(|(_, sample)| *sample)
    }
}

/// The turn of one subject.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) mounted: &'a Mounted,
    /// Its upper directory; there is none in a read-only mount.
    pub(super) upper: Option<PathBuf>,
    pub(super) settings: &'a super::Settings,
    pub(super) subject: &'a str,
    pub(super) found: Found,
}

impl Turn<'_> {
    /// Scales a number of operations to the size of the run.
    pub(super) fn count(&self, full: usize) -> usize {
        if self.settings.quick { full / 10 } else { full }
    }

    /// Scales a number of MiB to the size of the run, as [`Material::smaller`] does.
    pub(super) fn mebibytes(&self, full: usize) -> usize {
        if self.settings.quick { full / 8 } else { full }
    }

    /// Runs a workload in the directory in which everything lies, as the row `row`.
    pub(super) fn measure(&mut self, row: &'static str, words: &[&str]) -> Result<Value, String> {
        self.measure_in(&self.mounted.path().join(TOP), row, words)
    }

    /// Runs a workload at the root of the mount, as the row `row`.
    pub(super) fn measure_above(
        &mut self,
        row: &'static str,
        words: &[&str],
    ) -> Result<Value, String> {
        self.measure_in(self.mounted.path(), row, words)
    }

    fn measure_in(
        &mut self,
        directory: &Path,
        row: &'static str,
        words: &[&str],
    ) -> Result<Value, String> {
        let attached = self.attach(row)?;
        let before = self.mounted.cpu();
        let result = self.client(directory, words);
        let after = self.mounted.settled_cpu();
        drop(attached);
        let result = result.map_err(|problem| format!("{row}: {problem}"))?;
        let used = |(pid, cpu): (&i32, &f64)| cpu - before.get(pid).copied().unwrap_or(0.0);
        let figure = |key: &str| result[key].as_f64().ok_or(format!("{row}: no {key}: {result}"));
        let sample = Sample {
            wall: figure("wall")?,
            client: figure("cpu")?,
            daemon: after.iter().map(used).sum(),
            ops: figure("ops")?,
            value: 0.0,
        };
        self.found.samples.push((row, sample));
        Ok(result)
    }

    /// Adds a row that is a value of its own.
    pub(super) fn value(&mut self, row: &'static str, value: f64) {
        self.found.samples.push((row, Sample { value, ..Sample::default() }));
    }

    /// Adds what the daemon holds now as the row `row`; a kernel has no daemon.
    pub(super) fn resident(&mut self, row: &'static str) {
        if let Some(footprint) = self.mounted.footprint() {
            self.value(row, footprint.resident);
        }
    }

    /// Runs a workload that is not measured.
    pub(super) fn prepare(&self, words: &[&str]) -> Result<(), String> {
        let directory = self.mounted.path().join(TOP);
        self.client(&directory, words).map(drop).map_err(|problem| format!("{words:?}: {problem}"))
    }

    /// Has the kernel write back what is dirty, so that the next step does not wait for it.
    pub(super) fn sync(&self) {
        if !self.settings.quick {
            nix::unistd::sync();
        }
    }

    /// Bytes that a file of the upper has on disk.
    pub(super) fn allocated(&self, file: &str) -> Result<f64, String> {
        nix::unistd::sync();
        let path = self.upper.as_ref().ok_or("no upper")?.join(TOP).join(file);
        let found = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(found.blocks() as f64 * 512.0)
    }

    /// Path of an archive of a tree of so many files.
    pub(super) fn archive(&self, full: usize) -> Result<String, String> {
        let archive = self.scratch.join("tree.tar");
        if !archive.exists() {
            let tree = self.scratch.join("tree");
            let filled = Material::Tree(self.count(full)).fill(&tree);
            filled.map_err(|error| format!("make a tree to pack: {error}"))?;
            let mut tar = Command::new("tar");
            tar.arg("-cf").arg(&archive).arg("-C").arg(tree.join(TOP)).arg(".");
            run(&mut tar).ok();
        }
        Ok(archive.display().to_string())
    }

    /// Has another process keep a file open for reading until the result is dropped.
    pub(super) fn hold(&self, file: &str) -> Result<Holder, String> {
        let mut command = Command::new(&self.settings.client);
        command.args(["client", "hold", file]).current_dir(self.mounted.path().join(TOP));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("hold {file}: {error}"))?;
        let output = child.stdout.take().map(BufReader::new);
        let holder = Holder(child);
        let mut line = String::new();
        let read = output.map(|mut output| output.read_line(&mut line));
        match read {
            Some(Ok(length)) if length > 0 => Ok(holder),
            _ => Err(format!("hold {file}: it could not be opened and read")),
        }
    }

    fn client(&self, directory: &Path, words: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(&self.settings.client);
        command.arg("client").args(words).envs(GIT).current_dir(directory);
        let process = self.scratch.spawn("client", &mut command);
        if !holds_within(LIMIT, || process.ended().is_some()) {
            // A client that waits for a daemon cannot be killed before it.
            if let Some(pid) = self.mounted.pid().and_then(|pid| pid.try_into().ok()) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            process.kill();
            return Err(format!("not done within {LIMIT:?}"));
        }
        let log = process.log();
        let last = log.lines().last().unwrap_or_default();
        if process.ended().is_some_and(|status| status.success()) {
            serde_json::from_str(last).map_err(|error| format!("{error}: {last}"))
        } else {
            Err(last.to_owned())
        }
    }

    /// Starts what the settings say to attach to a daemon while it is measured.
    fn attach(&self, row: &str) -> Result<Option<Attached>, String> {
        let (Some(command), Some(pid)) = (&self.settings.attach, self.mounted.pid()) else {
            return Ok(None);
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        shell.env("PID", pid.to_string()).env("ROW", row).env("SUBJECT", self.subject);
        let child = shell.spawn().map_err(|error| format!("attach: {error}"))?;
        std::thread::sleep(ATTACH);
        Ok(Some(Attached(child)))
    }
}

/// A process that holds a file open.
#[derive(Debug)]
pub(super) struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        end(&mut self.0);
    }
}

/// A process that watches a daemon.
#[derive(Debug)]
struct Attached(Child);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Ok(pid) = self.0.id().try_into() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT).ok();
        }
        end(&mut self.0);
    }
}

/// Waits for a child that is about to end; kills it if it does not.
fn end(child: &mut Child) {
    if !holds_within(Duration::from_secs(5), || matches!(child.try_wait(), Ok(Some(_)) | Err(_))) {
        child.kill().ok();
        child.wait().ok();
    }
}
