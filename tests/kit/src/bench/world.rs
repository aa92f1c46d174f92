//! One containerd with both snapshotters, on one disk.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Settings;
use crate::command::line;
use crate::proto::snapshots::{Kind, ListSnapshotsRequest};
use crate::random::Random;
use crate::wait::{holds_within, wait_for};
use crate::{Containerd, Daemon, Options, Scratch, Version, block_on, image, snapshots_in};

pub(super) const NAMESPACE: &str = "bench";
pub(super) const DEMO: &str = "localhost/demo:1";
const SETTLE: Duration = Duration::from_secs(60);
/// Longest wait for other processes to leave the CPUs alone.
const QUIET: Duration = Duration::from_secs(2);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    Theirs,
}

impl Side {
    /// Name of the snapshotter in containerd.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "overstream",
            Self::Theirs => "overlayfs",
        }
    }
}

/// Measurements of both sides, pair by pair.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) ours: Vec<f64>,
    pub(super) theirs: Vec<f64>,
}

impl Series {
    pub(super) fn add(&mut self, side: Side, seconds: f64) {
        match side {
            Side::Ours => self.ours.push(seconds),
            Side::Theirs => self.theirs.push(seconds),
        }
    }
}

/// Calls `once` for both sides `pairs` times, each time in an order of its own.
pub(super) fn pairs(what: &str, pairs: usize, mut once: impl FnMut(Side, usize)) {
    let mut random = Random::new(7);
    let began = Instant::now();
    for pair in 0..pairs {
        let order = if random.number().is_multiple_of(2) {
            [Side::Ours, Side::Theirs]
        } else {
            [Side::Theirs, Side::Ours]
        };
        order.into_iter().for_each(|side| once(side, pair));
    }
    eprintln!("{what}: {pairs} pairs in {:.0} s", began.elapsed().as_secs_f64());
}

/// Writes back what is dirty, then waits a little for the CPUs to be idle.
pub(super) fn quiet() {
    quiet_within(QUIET);
}

/// As [`quiet`], and waits at most `limit` for the CPUs.
pub(crate) fn quiet_within(limit: Duration) {
    nix::unistd::sync();
    holds_within(limit, || {
        let before = busy();
        std::thread::sleep(Duration::from_millis(50));
        busy() - before <= 3
    });
}

/// Ticks in which a CPU was not idle since boot.
fn busy() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    // user, nice and system; the rest is idle time or interrupts.
    ticks.iter().take(3).sum()
}

/// Runs a command and returns the seconds it took; panics if it fails.
pub(super) fn timed(command: &mut Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status().expect("run a command");
    let seconds = begin.elapsed().as_secs_f64();
    assert!(status.success(), "{} ended with {status}", line(command));
    seconds
}

/// The parties, and what both need.
#[derive(Debug)]
pub(super) struct World {
    pub(super) daemon: Daemon,
    pub(super) containerd: Containerd,
    scratch: PathBuf,
}

impl World {
    pub(super) fn start(scratch: &Scratch, settings: &Settings) -> Self {
        let mut daemon = Daemon::new(scratch, &settings.binary);
        daemon.start();
        let mut options = Options::with_proxy(Version::System, Side::Ours.name(), daemon.socket());
        options.snapshotter = String::new();
        let containerd = Containerd::start(scratch, options);
        Self { daemon, containerd, scratch: scratch.path().to_owned() }
    }

    /// Removes everything and ends both.
    pub(super) fn stop(mut self) {
        self.containerd.stop();
        self.daemon.stop();
    }

    /// Unpacks the demo image for both sides.
    pub(super) fn import_demo(&self) {
        let archive = self.scratch.join("demo.tar");
        image::demo().write_oci_archive(&archive, DEMO);
        for side in [Side::Ours, Side::Theirs] {
            self.ctr(&[
                "images",
                "import",
                "--snapshotter",
                side.name(),
                &archive.to_string_lossy(),
            ]);
        }
    }

    /// Runs `ctr` in the namespace of the measurements.
    pub(super) fn ctr(&self, arguments: &[&str]) {
        self.containerd.ctr_in(NAMESPACE, arguments).ok();
    }

    /// Directories of snapshots on disk, of both sides.
    pub(super) fn directories(&self) -> [usize; 2] {
        let theirs =
            self.containerd.directory().join("root/io.containerd.snapshotter.v1.overlayfs");
        let theirs = std::fs::read_dir(theirs.join("snapshots"));
        [snapshots_in(self.daemon.root()).len(), theirs.map_or(0, |entries| entries.count())]
    }

    /// Has containerd collect its garbage until only `directories` are left.
    pub(super) fn settle(&self, directories: [usize; 2]) {
        self.containerd.collect_garbage();
        wait_for("the garbage to be collected", SETTLE, || {
            let settled = self.directories() == directories;
            if !settled {
                self.containerd.collect_garbage();
            }
            settled
        });
    }

    /// Name of the top layer of the demo image, as containerd's clients see it.
    pub(super) fn top_layer(&self, side: Side) -> String {
        let infos = block_on(async {
            let mut client = self.containerd.snapshots().await;
            let request =
                ListSnapshotsRequest { snapshotter: side.name().to_owned(), filters: Vec::new() };
            let mut stream = client.list(request_in(request)).await.expect("list").into_inner();
            let mut all = Vec::new();
            while let Some(batch) = stream.message().await.expect("list") {
                all.extend(batch.info);
            }
            all
        });
        let is_top = |name: &str| infos.iter().all(|info| info.parent != name);
        let top = infos.iter().find(|info| info.kind() == Kind::Committed && is_top(&info.name));
        top.expect("a top layer").name.clone()
    }
}

/// A request in the namespace of the measurements.
pub(super) fn request_in<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("ASCII"));
    request
}

/// Labels that keep containerd's garbage collector off a snapshot that no container refers to.
pub(super) fn rooted() -> HashMap<String, String> {
    HashMap::from([("containerd.io/gc.root".to_owned(), "2000-01-01T00:00:00Z".to_owned())])
}
