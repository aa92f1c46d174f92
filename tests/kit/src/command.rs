//! Runs a command to its end and keeps everything a failure message needs.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::wait::holds_within;

/// Long enough for any single command on a busy host, short enough to end a hanging test.
const LIMIT: Duration = Duration::from_secs(120);

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Returns the output of a command that succeeded; panics with all of it otherwise.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Returns the output of a command that failed; panics if it succeeded.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(!self.status.success(), "succeeded, but should have failed: {self}");
        self
    }

    /// Returns the exit code, or `None` if a signal ended the command.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns standard output as text without the white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Returns standard error as text without the white space at its end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ended with {} after {:?}", self.line, self.status, self.took)?;
        writeln!(f, "--- stdout\n{}", self.text())?;
        write!(f, "--- stderr\n{}", self.errors())
    }
}

/// Runs a command with no input; panics if it cannot be started or does not end in two minutes.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    run_within(LIMIT, command)
}

/// Runs a command with no input; panics if it cannot be started, and kills it and panics if it
/// does not end within `limit`.
#[track_caller]
pub fn run_within(limit: Duration, command: &mut Command) -> Output {
    let line = line(command);
    // Files instead of pipes: a grandchild that keeps them open cannot hold us up.
    let (mut stdout, mut stderr) = (memory_file(), memory_file());
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().expect("duplicate a descriptor"));
    command.stderr(stderr.try_clone().expect("duplicate a descriptor"));
    let begin = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
    let ended = wait(&mut child, limit);
    if !ended {
        child.kill().expect("kill a child");
    }
    let status = child.wait().expect("wait for a child");
    let output = Output {
        line,
        status,
        stdout: contents(&mut stdout),
        stderr: contents(&mut stderr),
        took: begin.elapsed(),
    };
    assert!(ended, "not done within {limit:?}, so killed: {output}");
    output
}

/// Writes a command down as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn wait(child: &mut Child, limit: Duration) -> bool {
    holds_within(limit, || child.try_wait().expect("wait for a child").is_some())
}

fn memory_file() -> File {
    memfd_create("output", MFdFlags::MFD_CLOEXEC).expect("make a file in memory").into()
}

fn contents(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("rewind a file in memory");
    file.read_to_end(&mut bytes).expect("read a file in memory");
    bytes
}
