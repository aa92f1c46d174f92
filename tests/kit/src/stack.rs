//! The daemon with a containerd on top of it: what most whole-product tests start with.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::proto::types::Mount;
use crate::{Client, Containerd, Daemon, Options, Output, Proxy, Scratch, Version, run, wait_for};

/// Collecting takes well under a second; this leaves room for a busy host.
const COLLECT: Duration = Duration::from_secs(30);
/// containerd waits up to 3 s before it connects again.
const RECONNECT: Duration = Duration::from_secs(20);

/// A daemon, and a containerd that uses it for everything under the plugin name [`Stack::PLUGIN`].
#[derive(Debug)]
pub struct Stack {
    /// The containerd.
    pub containerd: Containerd,
    /// The daemon.
    pub daemon: Daemon,
}

impl Stack {
    /// Plugin name of the daemon.
    pub const PLUGIN: &str = "overstream";

    /// Starts both in `scratch`, the daemon from `binary` with a configuration file of this text.
    ///
    /// The caller has asked [`Version::available`].
    #[track_caller]
    pub fn start(
        scratch: &Scratch,
        version: Version,
        binary: impl AsRef<Path>,
        config: &str,
    ) -> Self {
        Self::start_with(scratch, version, binary, config, |_| {})
    }

    /// The same, with containerd's options changed by `change`.
    #[track_caller]
    pub fn start_with(
        scratch: &Scratch,
        version: Version,
        binary: impl AsRef<Path>,
        config: &str,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let address = scratch.join("ctd/c.sock").display().to_string();
        let mut daemon = Daemon::new(scratch, binary)
            .with_config(config)
            .with_arg("--containerd-address")
            .with_arg(address);
        daemon.start();
        let proxy = Proxy {
            name: Self::PLUGIN.to_owned(),
            socket: daemon.socket().to_owned(),
            exports_root: Some(daemon.root().to_owned()),
            capabilities: Vec::new(),
        };
        let snapshotter = Self::PLUGIN.to_owned();
        let mut options =
            Options { version, proxies: vec![proxy], snapshotter, ..Options::default() };
        change(&mut options);
        Self { containerd: Containerd::start(scratch, options), daemon }
    }

    /// Removes all containers and stops both; panics if anything stays behind.
    #[track_caller]
    pub fn stop(mut self) {
        self.containerd.stop();
        let status = self.daemon.stop();
        assert!(status.success(), "stopped with {status}: {}", self.daemon.describe());
    }

    /// Stops and starts the daemon, and waits until containerd has found it again.
    #[track_caller]
    pub fn restart_daemon(&mut self) {
        self.daemon.restart();
        self.wait_connected();
    }

    /// Waits until containerd reaches the daemon, which it tries after up to 3 s.
    #[track_caller]
    pub fn wait_connected(&self) {
        // Listing asks the daemon about each snapshot.
        let reached = |namespace: &str| {
            let output = run(&mut self.containerd.ctr_command(namespace, &["snapshots", "ls"]));
            output.status.success()
        };
        wait_for("containerd to reach the daemon", RECONNECT, || {
            ["default", "k8s.io"].into_iter().all(reached)
        });
    }

    /// Runs the daemon's command line against it.
    #[track_caller]
    pub fn overstream(&self, arguments: &[&str]) -> Output {
        run(self.daemon.tool(arguments).env("OVERSTREAM_SOCKET", self.daemon.socket()))
    }

    /// Runs the daemon's command line against it and reads the JSON it prints.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.overstream(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("not JSON: {error}: {output}"))
    }

    /// Returns what `overstream mounts` tells about a container's snapshot.
    #[track_caller]
    pub fn explain(&self, key: &str) -> Value {
        self.ask(&["mounts", key])
    }

    /// Returns a client of the daemon's snapshots service.
    pub fn client(&self) -> Client {
        Client::new(self.daemon.socket(), Self::PLUGIN)
    }

    /// Returns the mounts of a container's snapshot.
    #[track_caller]
    pub fn mounts(&self, key: &str) -> Vec<Mount> {
        let key = text(&self.explain(key)["snapshot"]["key"]);
        self.client().mounts(&key).expect("ask for mounts")
    }

    /// Returns the directory that holds what a container wrote.
    #[track_caller]
    pub fn upper(&self, key: &str) -> PathBuf {
        text(&self.explain(key)["snapshot"]["upper"]).into()
    }

    /// Returns the keys of all snapshots as containerd's clients named them, and where each stands:
    /// `placed`, `pending` or `moved`.
    #[track_caller]
    pub fn placements(&self) -> Vec<(String, String)> {
        let all = self.ask(&["ls"]);
        let all = all.as_array().expect("a list of snapshots");
        let key = |key: &str| key.splitn(3, '/').last().unwrap_or_default().to_owned();
        all.iter().map(|one| (key(&text(&one["key"])), text(&one["placement"]))).collect()
    }

    /// Returns the names of the directories and links in `snapshots` of a store.
    #[track_caller]
    pub fn directories(&self, store: &Path) -> BTreeSet<String> {
        crate::snapshots_in(store).into_iter().map(|id| id.to_string()).collect()
    }

    /// Has containerd collect its garbage, and waits until `gone` holds.
    #[track_caller]
    pub fn collect_until(&self, what: &str, mut gone: impl FnMut() -> bool) {
        wait_for(what, COLLECT, || {
            self.containerd.collect_garbage();
            gone()
        });
    }

    /// Removes a container, and waits until its snapshot is gone too.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        self.containerd.remove(id);
        self.collect_until("the snapshot's removal", || {
            self.placements().iter().all(|(key, _)| key != id)
        });
    }
}

/// Returns a string of a JSON answer.
#[track_caller]
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}
