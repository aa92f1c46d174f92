//! A daemon for one test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use overstream_testkit::proto::snapshots::Info;
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Client, Daemon, Scratch, limit, require_root, snapshots_in, wait_for};
use tonic::{Code, Status};

/// The daemon's program.
pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_overstream");

/// A running daemon, and a client of it.
pub(super) struct Bed {
    pub(super) client: Client,
    pub(super) daemon: Daemon,
    pub(super) scratch: Scratch,
}

/// Runs a test with a daemon that was told nothing special.
pub(super) fn serve(body: impl FnOnce(&mut Bed) + Send + 'static) {
    serve_as(|daemon| daemon, body);
}

/// Runs a test with a daemon that was told something.
pub(super) fn serve_as(
    configure: impl FnOnce(Daemon) -> Daemon + Send + 'static,
    body: impl FnOnce(&mut Bed) + Send + 'static,
) {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), move || {
        let scratch = Scratch::new();
        let mut daemon = configure(Daemon::new(&scratch, BINARY));
        daemon.start();
        let client = daemon.client("over");
        body(&mut Bed { client, daemon, scratch });
    });
}

impl Bed {
    /// Makes an active snapshot.
    pub(super) fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.client.prepare(key, parent, &[]).unwrap()
    }

    /// Makes a view.
    pub(super) fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.client.view(key, parent, &[]).unwrap()
    }

    /// Makes an empty committed snapshot; takes one number.
    pub(super) fn layer(&self, name: &str, parent: &str) {
        let key = format!("making {name}");
        self.prepare(&key, parent);
        self.client.commit(name, &key, &[]).unwrap();
    }

    /// Returns the directory of snapshot `id`.
    pub(super) fn own(&self, id: u64) -> PathBuf {
        self.daemon.root().join("snapshots").join(id.to_string())
    }

    /// Returns what snapshot `id` itself holds.
    pub(super) fn fs(&self, id: u64) -> PathBuf {
        self.own(id).join("fs")
    }

    /// Waits until a call that is about to be recorded has made its directories.
    #[track_caller]
    pub(super) fn wait_for_directories(&self, count: usize) {
        wait_for("the call to begin", Duration::from_secs(10), || {
            snapshots_in(self.daemon.root()).len() == count
        });
    }

    /// Returns all snapshots, sorted by name.
    pub(super) fn all(&self) -> Vec<Info> {
        let mut all = self.client.list(&[]).unwrap();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// The code of a refusal; panics if there was none.
#[track_caller]
pub(super) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// Names in a directory, sorted.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A description with these labels and containerd's odd other fields: committed, and Go's zero times.
pub(super) fn update_of(name: &str, labels: &[(&str, &str)]) -> Info {
    let zero = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Info {
        name: name.to_owned(),
        parent: String::new(),
        kind: 3,
        created_at: Some(zero),
        updated_at: Some(zero),
        labels,
    }
}
