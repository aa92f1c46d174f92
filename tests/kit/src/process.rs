//! A long-running child process with a log.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::log;
use crate::wait::holds_within;

/// A child process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    line: String,
    log: PathBuf,
    child: Shared,
}

/// A child that its [`Process`] and its scratch directory both can end.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Child>>);

impl Process {
    pub(crate) fn new(name: &str, line: String, log: PathBuf, child: Shared) -> Self {
        Self { name: name.to_owned(), line, log, child }
    }

    /// Returns its process id, which is also its process group.
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// Returns everything it wrote, and its namesakes before it in the same scratch directory.
    pub fn log(&self) -> String {
        log::read(&self.log)
    }

    /// Returns the file it writes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Tells how it ended, or `None` while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.ended()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            kill(self.child.pid(), signal).expect("signal a child");
        }
    }

    /// Waits for its end; panics with its log if it does not come within `timeout`.
    #[track_caller]
    pub fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        if !holds_within(timeout, || self.ended().is_some()) {
            panic!("still running after {timeout:?}: {}", self.describe());
        }
        self.ended().expect("an ended child")
    }

    /// Asks it to end with SIGTERM and waits; panics with its log if it does not.
    #[track_caller]
    pub fn stop(&self, timeout: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit(timeout)
    }

    /// Ends it and its process group with SIGKILL and waits.
    pub fn kill(&self) -> ExitStatus {
        self.child.kill()
    }

    /// Describes it with its command line, its state and the end of its log.
    pub fn describe(&self) -> String {
        let state = match self.ended() {
            Some(status) => status.to_string(),
            None => format!("running as process {}", self.pid()),
        };
        format!("{} ({}): {state}\n{}", self.name, self.line, log::tail(&self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    pub(crate) fn new(child: Child) -> Self {
        Self(Arc::new(Mutex::new(child)))
    }

    pub(crate) fn kill(&self) -> ExitStatus {
        if self.ended().is_none() {
            // The group may hold only the dying child, so there is nothing to do about an error.
            killpg(self.pid(), Signal::SIGKILL).ok();
        }
        self.lock().wait().unwrap_or(ExitStatus::from_raw(0))
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.lock().try_wait().expect("wait for a child")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.lock().id().try_into().expect("a process id"))
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
