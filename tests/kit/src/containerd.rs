//! A containerd of its own for a test.

mod config;
mod newer;
mod version;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use version::Version;

use crate::command::{Output, run, run_within};
use crate::image::Image;
use crate::mountinfo::mounts_below;
use crate::process::Process;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::scratch::{Inner, Scratch};
use crate::wait::{holds_within, wait_for};
use crate::{Cri, block_on, rpc};

/// Name of the image of a pod's own container.
pub const PAUSE: &str = "localhost/pause:1";

/// A boot takes 0.1 s; this leaves room for a busy host.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);
/// For one step of emptying, which may meet a dead snapshotter.
const EMPTY: Duration = Duration::from_secs(20);

/// What a containerd shall be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its version.
    pub version: Version,
    /// Snapshotter plugins outside of it.
    pub proxies: Vec<Proxy>,
    /// Snapshotter of CRI and, unless told otherwise, of `ctr`; the built-in overlayfs if empty.
    pub snapshotter: String,
    /// Text added to its configuration file.
    pub extra_config: String,
}

/// A proxy plugin of type "snapshot".
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// Plugin name.
    pub name: String,
    /// Socket it listens on.
    pub socket: PathBuf,
    /// Its root directory, told to kubelet by versions that know `exports`.
    pub exports_root: Option<PathBuf>,
    /// Capabilities, told to versions that know them.
    pub capabilities: Vec<String>,
}

impl Options {
    /// Asks for a version that uses one proxy plugin for everything.
    pub fn with_proxy(version: Version, name: &str, socket: &Path) -> Self {
        let proxy = Proxy { name: name.to_owned(), socket: socket.to_owned(), ..Proxy::default() };
        let snapshotter = name.to_owned();
        Self { version, proxies: vec![proxy], snapshotter, ..Self::default() }
    }
}

/// A running containerd with root, state and sockets of its own in a scratch directory.
///
/// Dropping it stops it like [`Containerd::stop`], except in a panic: then the scratch directory
/// kills whatever runs.
#[derive(Debug)]
pub struct Containerd {
    directory: PathBuf,
    options: Options,
    programs: Option<PathBuf>,
    scratch: Arc<Inner>,
    process: Process,
    stopped: bool,
}

impl Containerd {
    /// Starts a containerd in `ctd` of `scratch`; panics with its log if it does not come up.
    ///
    /// The caller has asked [`Version::available`].
    #[track_caller]
    pub fn start(scratch: &Scratch, options: Options) -> Self {
        Self::start_named(scratch, "ctd", options)
    }

    /// Starts a containerd in `NAME` of `scratch`, so that several can run there.
    #[track_caller]
    pub fn start_named(scratch: &Scratch, name: &str, options: Options) -> Self {
        let directory = scratch.dir(name);
        let programs = options.version.programs().unwrap_or_else(|why| panic!("{why}"));
        let text = config::text(&options, &directory);
        std::fs::write(directory.join("config.toml"), text).expect("write a configuration file");
        let process = spawn(&scratch.handle(), &directory, programs.as_deref());
        let scratch = scratch.handle();
        Self { directory, options, programs, scratch, process, stopped: false }
    }

    /// Returns its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns everything it wrote since it was first started.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns its directory, which holds `root` and `state`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns what it was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs `ctr` in the namespace `default`.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        self.ctr_in("default", arguments)
    }

    /// Runs `ctr` in a namespace.
    #[track_caller]
    pub fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Output {
        run(&mut self.ctr_command(namespace, arguments))
    }

    /// Returns the command that runs `ctr` in a namespace.
    pub fn ctr_command(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = program(self.programs.as_deref(), "ctr");
        command.arg("-a").arg(self.socket()).args(["-n", namespace]);
        if let ["run", rest @ ..] = arguments {
            command.arg("run").args(self.separation()).args(rest);
        } else {
            command.args(arguments);
        }
        if !self.options.snapshotter.is_empty() {
            command.env("CONTAINERD_SNAPSHOTTER", &self.options.snapshotter);
        }
        command
    }

    /// Keeps containers of equal names in different instances apart: by default all share runc's
    /// records and the cgroup `/NAMESPACE/ID`.
    fn separation(&self) -> [String; 4] {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let records = self.directory.join("runc").display().to_string();
        let cgroup = format!("{}/{number}", self.scratch.cgroup());
        ["--runc-root".into(), records, "--cgroup".into(), cgroup]
    }

    /// Imports an image under the full name `name` and unpacks it; panics if that fails.
    #[track_caller]
    pub fn import(&self, namespace: &str, image: &Image, name: &str) {
        let archive = self.directory.join("import.tar");
        image.write_oci_archive(&archive, name);
        let path = archive.to_str().expect("a UTF-8 path");
        self.ctr_in(namespace, &["images", "import", path]).ok();
        std::fs::remove_file(archive).expect("delete an archive");
    }

    /// Runs a command in a container `id` that is removed when it ends.
    #[track_caller]
    pub fn run(&self, image: &str, id: &str, command: &[&str]) -> Output {
        self.ctr(&[&["run", "--rm", image, id], command].concat())
    }

    /// Starts a container `id` that goes on running a command; panics if it cannot.
    #[track_caller]
    pub fn run_detached(&self, image: &str, id: &str, command: &[&str]) {
        self.ctr(&[&["run", "-d", image, id], command].concat()).ok();
    }

    /// Runs a command in a running container.
    #[track_caller]
    pub fn exec(&self, id: &str, command: &[&str]) -> Output {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let exec_id = format!("exec-{number}");
        self.ctr(&[&["tasks", "exec", "--exec-id", &exec_id, id], command].concat())
    }

    /// Kills a container's processes and removes it with its snapshot; panics if it cannot.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.remove_in("default", id, STOP).ok();
    }

    /// Returns the process id of a container's first process.
    #[track_caller]
    pub fn task_pid(&self, id: &str) -> u32 {
        let list = self.ctr(&["tasks", "ls"]).ok().text();
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        let pid = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        pid.unwrap_or_else(|| panic!("no task {id} in: {list}"))
    }

    /// Returns the root directory of a running container, as its processes see it.
    #[track_caller]
    pub fn rootfs(&self, id: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.task_pid(id)));
        // Closed even to root until runc has handed over to the container's own program.
        wait_for("the container's program", START, || root.read_dir().is_ok());
        root
    }

    /// Returns a client of its CRI services, once they serve.
    pub async fn cri(&self) -> Cri {
        Cri::connect(&self.socket(), &format!("{}/pods", self.scratch.cgroup())).await
    }

    /// Returns a client of its own snapshots service, which wants the header
    /// `containerd-namespace`.
    pub async fn snapshots(&self) -> SnapshotsClient<tonic::transport::Channel> {
        SnapshotsClient::new(rpc::channel(&self.socket()).await)
    }

    /// Collects garbage now instead of seconds after the next change.
    pub fn collect_garbage(&self) {
        // Creating and synchronously deleting a lease is the one way from outside.
        self.ctr(&["leases", "create", "--id", "collect"]).ok();
        self.ctr(&["leases", "rm", "--sync", "collect"]).ok();
    }

    /// Restarts it; containers go on running.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.stop(STOP);
        self.process = spawn(&self.scratch, &self.directory, self.programs.as_deref());
    }

    /// Kills it with SIGKILL and starts it again; containers go on running.
    #[track_caller]
    pub fn crash(&mut self) {
        self.process.kill();
        self.process = spawn(&self.scratch, &self.directory, self.programs.as_deref());
    }

    /// Removes all containers and stops it; panics if a shim or a mount of its stays behind.
    #[track_caller]
    pub fn stop(mut self) {
        self.stopped = true;
        self.empty();
        self.process.stop(STOP);
        let shims = || self.shims();
        let gone = holds_within(STOP, || shims().is_empty());
        assert!(gone, "shims {:?} stay behind: {}", shims(), self.process.describe());
        let mounts = mounts_below(&self.directory);
        assert!(mounts.is_empty(), "mounts stay behind: {mounts:?}");
    }

    /// Removes all pods and containers, as far as that is possible.
    fn empty(&self) {
        self.remove_pods();
        let namespaces = self.try_ctr("default", &["namespaces", "ls", "-q"]);
        for namespace in namespaces.text().lines() {
            let containers = self.try_ctr(namespace, &["containers", "ls", "-q"]).text();
            for id in containers.lines() {
                self.remove_in(namespace, id, EMPTY);
            }
        }
    }

    fn remove_pods(&self) {
        let remove = async || {
            let mut cri = Cri::new(&self.socket(), "").await;
            // Without CRI there are no pods; what fails else is removed as containers.
            tokio::time::timeout(EMPTY, cri.remove_all_pods()).await.ok();
        };
        // The caller may be inside a runtime, which would not let another one start.
        std::thread::scope(|scope| {
            scope.spawn(|| block_on(remove()));
        });
    }

    fn remove_in(&self, namespace: &str, id: &str, limit: Duration) -> Output {
        // There may be no task, and CRI, which removes the tasks of its own, may be faster.
        self.try_ctr(namespace, &["tasks", "kill", "-a", "-s", "KILL", id]);
        holds_within(limit, || {
            self.try_ctr(namespace, &["tasks", "rm", "-f", id]);
            !self.try_ctr(namespace, &["tasks", "ls", "-q"]).text().lines().any(|task| task == id)
        });
        self.try_ctr(namespace, &["containers", "rm", id])
    }

    fn try_ctr(&self, namespace: &str, arguments: &[&str]) -> Output {
        run_within(EMPTY, &mut self.ctr_command(namespace, arguments))
    }

    fn shims(&self) -> Vec<u32> {
        let socket = self.socket();
        let is_shim = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("containerd-shim") && line.contains(&*socket.to_string_lossy())
        };
        crate::sweep::processes_of(self.scratch.path()).into_iter().filter(is_shim).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let usable = !self.stopped && !std::thread::panicking() && self.process.ended().is_none();
        if usable && rpc::answers(&self.socket()) {
            self.empty();
            self.process.stop(STOP);
        }
    }
}

#[track_caller]
fn spawn(scratch: &Arc<Inner>, directory: &Path, programs: Option<&Path>) -> Process {
    let name = directory.file_name().expect("a directory's name").to_string_lossy();
    let mut command = program(programs, "containerd");
    command.arg("-c").arg(directory.join("config.toml"));
    let process = scratch.spawn(&name, &mut command);
    let socket = directory.join("c.sock");
    let settled = holds_within(START, || process.ended().is_some() || rpc::answers(&socket));
    if !settled || process.ended().is_some() {
        panic!("containerd does not come up: {}", process.describe());
    }
    process
}

/// Returns the command for one of containerd's programs. Its directory comes first in PATH, since
/// containerd looks its shim up there.
fn program(directory: Option<&Path>, name: &str) -> Command {
    let Some(directory) = directory else { return Command::new(name) };
    let mut command = Command::new(directory.join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(places).expect("a search path"));
    command
}
