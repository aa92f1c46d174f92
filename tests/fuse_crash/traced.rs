//! strace(1) on the thread that serves a mount: what it calls, and what is done to one of its calls.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use overstream_testkit::{Process, Scratch, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// The calls that can change a layer, save openat and openat2.
const CHANGING: [&str; 19] = [
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "renameat",
    "renameat2",
    "unlinkat",
    "fchownat",
    "fchmodat",
    "utimensat",
    "setxattr",
    "lsetxattr",
    "removexattr",
    "lremovexattr",
    "ftruncate",
    "copy_file_range",
    "pwrite64",
    "fallocate",
    "fdatasync",
];

/// Those that ask a layer, or open something in it.
const ASKING: [&str; 15] = [
    "openat",
    "openat2",
    "statx",
    "newfstatat",
    "fstat",
    "getxattr",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "getdents64",
    "pread64",
    "readlinkat",
    "name_to_handle_at",
    "ioctl",
    "lseek",
];

/// A reply to the kernel.
const REPLY: &str = "writev";

/// A call that a daemon made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// How many of that name came before it, and one.
    pub(super) nth: usize,
    /// The whole line.
    pub(super) line: String,
}

impl Call {
    /// Tells whether it can change a layer.
    pub(super) fn changes(&self) -> bool {
        let opens = self.name.starts_with("openat");
        CHANGING.contains(&self.name.as_str())
            || opens && (self.line.contains("O_CREAT") || self.line.contains("O_TMPFILE"))
    }

    /// Tells whether it concerns a layer at all.
    pub(super) fn concerns_layer(&self) -> bool {
        self.name != REPLY
    }

    /// What has strace do something at this call.
    pub(super) fn inject(&self, what: &str) -> String {
        format!("inject={}:{what}:when={}", self.name, self.nth)
    }
}

/// A tracer of a daemon.
pub(super) struct Tracer {
    process: Process,
    log: PathBuf,
}

impl Tracer {
    /// Traces a daemon, with an expression of strace's `-e`.
    #[track_caller]
    pub(super) fn attach(
        scratch: &Scratch,
        name: &str,
        daemon: &Process,
        inject: Option<&str>,
    ) -> Self {
        let log = scratch.join(format!("{name}.calls"));
        let names = [&CHANGING[..], &ASKING, &[REPLY]].concat().join(",");
        let mut command = std::process::Command::new("strace");
        command.args(["-f", "-s", "64", "-p", &daemon.pid().to_string()]).arg("-o").arg(&log);
        command.args(["-e", &format!("trace={names}")]);
        command.args(inject.iter().flat_map(|inject| ["-e", inject]));
        let process = scratch.spawn(&format!("{name}-strace"), &mut command);
        wait_for("strace", SOON, || {
            assert!(process.ended().is_none(), "{}", process.describe());
            process.log().contains("attached")
        });
        Self { process, log }
    }

    /// Ends it, and returns the calls that concern layers, and the last reply.
    pub(super) fn calls(self) -> Vec<Call> {
        self.end();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let text = fs::read_to_string(&self.log).unwrap();
        let mut calls: Vec<_> = text
            .lines()
            .filter_map(|line| {
                let (_, call) = line.split_once(' ')?;
                let (name, _) = call.trim_start().split_once('(')?;
                let known = CHANGING.contains(&name) || ASKING.contains(&name) || name == REPLY;
                let nth = counts.entry(name.to_owned()).or_default();
                *nth += 1;
                known.then(|| Call { name: name.to_owned(), nth: *nth, line: call.to_owned() })
            })
            .collect();
        let last = calls.iter().rposition(|call| call.name == REPLY);
        let mut at = 0..;
        calls.retain(|call| at.next() == last || call.name != REPLY);
        calls
    }

    /// Ends it; the daemon goes on.
    pub(super) fn end(&self) {
        self.process.stop(SOON);
    }
}
