//! The daemon under test as a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::transport::Channel;

use crate::client::Client;
use crate::process::Process;
use crate::proto::control::control_client::ControlClient;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::scratch::{Inner, Scratch};
use crate::wait::holds_within;
use crate::{log, rpc};

/// A start takes well under a second; this leaves room for a busy host.
const START: Duration = Duration::from_secs(20);
/// Time to finish calls in progress and to leave.
const STOP: Duration = Duration::from_secs(20);

/// The daemon under test: `BINARY serve --root ROOT --socket SOCKET ...`.
///
/// It is described once, and can then be started, stopped and killed any number of times; its log
/// goes on across that. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    scratch: Arc<Inner>,
    binary: PathBuf,
    name: String,
    root: PathBuf,
    socket: PathBuf,
    config: Option<PathBuf>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    process: Option<Process>,
}

impl Daemon {
    /// Describes a daemon called `over`, with root `over` and socket `over.sock` in `scratch`.
    pub fn new(scratch: &Scratch, binary: impl AsRef<Path>) -> Self {
        Self::named(scratch, "over", binary)
    }

    /// Describes a daemon with root `NAME`, socket `NAME.sock` and log `NAME.log` in `scratch`.
    pub fn named(scratch: &Scratch, name: &str, binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            name: name.to_owned(),
            root: scratch.join(name),
            socket: scratch.join(format!("{name}.sock")),
            config: None,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            process: None,
            scratch: scratch.handle(),
        }
    }

    /// Puts its root elsewhere.
    pub fn with_root(mut self, root: impl AsRef<Path>) -> Self {
        self.root = root.as_ref().to_owned();
        self
    }

    /// Puts its socket elsewhere.
    pub fn with_socket(mut self, socket: impl AsRef<Path>) -> Self {
        self.socket = socket.as_ref().to_owned();
        self
    }

    /// Gives it a configuration file with this text.
    pub fn with_config(mut self, text: &str) -> Self {
        self.set_config(text);
        self
    }

    /// Adds an argument to its command line.
    pub fn with_arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets a variable of its environment.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.set_env(name, value);
        self
    }

    /// Replaces the text of its configuration file, from the next start on.
    pub fn set_config(&mut self, text: &str) {
        let path = self.scratch.path().join(format!("{}.toml", self.name));
        std::fs::write(&path, text).expect("write a configuration file");
        self.config = Some(path);
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Removes a variable of its environment, from the next start on.
    pub fn unset_env(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// Starts it and waits until it answers; panics with its log if it ends or hangs instead.
    #[track_caller]
    pub fn start(&mut self) -> &mut Self {
        if let Err(status) = self.try_start() {
            panic!("not ready but ended with {status}: {}", self.describe());
        }
        self
    }

    /// Starts it and waits until it answers, or ends: then returns its exit status. Panics with
    /// its log if it hangs instead.
    #[track_caller]
    pub fn try_start(&mut self) -> Result<(), ExitStatus> {
        self.launch();
        let process = self.process();
        let mut ended = None;
        let settled = holds_within(START, || {
            ended = process.ended();
            ended.is_some() || rpc::answers(&self.socket)
        });
        if !settled {
            panic!("not ready after {START:?}: {}", self.describe());
        }
        ended.map_or(Ok(()), Err)
    }

    /// Starts it and does not wait.
    #[track_caller]
    pub fn launch(&mut self) {
        let running = self.process.as_ref().is_some_and(|process| process.ended().is_none());
        assert!(!running, "started twice: {}", self.describe());
        self.process = Some(self.scratch.spawn(&self.name, &mut self.command()));
    }

    /// Asks it to end with SIGTERM, waits and returns its exit status.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process().stop(STOP)
    }

    /// Kills it with SIGKILL.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Stops it if it runs, checking that it leaves with 0, and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.process().ended().is_none() {
            let status = self.stop();
            assert!(status.success(), "stopped with {status}: {}", self.describe());
        }
        self.start();
    }

    /// Waits for it to end by itself, at a crash point say, and returns its exit status; panics
    /// with its log if it does not within `timeout`.
    #[track_caller]
    pub fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        self.process().wait_exit(timeout)
    }

    /// Tells whether it runs.
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Returns its process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Returns its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns everything it wrote since it was first started.
    pub fn log(&self) -> String {
        log::read(&self.scratch.path().join(format!("{}.log", self.name)))
    }

    /// Describes it with its command line, its state and the end of its log.
    pub fn describe(&self) -> String {
        self.process.as_ref().map_or("never started".to_owned(), Process::describe)
    }

    /// Returns a connection to its socket.
    pub async fn channel(&self) -> Channel {
        rpc::channel(&self.socket).await
    }

    /// Returns a client of its snapshots service that waits for each answer.
    pub fn client(&self, snapshotter: &str) -> Client {
        Client::new(&self.socket, snapshotter)
    }

    /// Returns a client of its snapshots service.
    pub async fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel().await)
    }

    /// Returns a client of its control service.
    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await)
    }

    /// Returns a command that runs the same binary with other arguments.
    pub fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments);
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--root").arg(&self.root).arg("--socket").arg(&self.socket);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if !self.arguments.iter().any(|argument| argument.starts_with("--log-format")) {
            command.args(["--log-format", "text"]);
        }
        command.args(&self.arguments).envs(&self.environment);
        command
    }

    #[track_caller]
    fn process(&self) -> &Process {
        self.process.as_ref().expect("a daemon that was started")
    }
}
