//! A daemon with stores, a client, and what must hold of its state whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use overstream_testkit::proto::control::control_client::ControlClient;
use overstream_testkit::proto::control::{
    ListRequest, ListRetainedRequest, RemoveRetainedRequest, Retained, Snapshot,
};
use overstream_testkit::proto::snapshots::snapshots_client::SnapshotsClient;
use overstream_testkit::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, UpdateSnapshotRequest, ViewSnapshotRequest,
};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Daemon, Scratch, run, snapshots_in};
use tonic::Status;
use tonic::transport::Channel;

/// Plugin name of all snapshots.
pub(crate) const NAME: &str = "overstream";
/// Longest a call may take.
const CALL: Duration = Duration::from_secs(20);
/// File in every upper of a test.
const DATA: &str = "data";

pub(crate) type Labels = BTreeMap<String, String>;

/// A call that changes something.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Prepare { key: String, parent: String, labels: Labels },
    View { key: String, parent: String },
    Mounts { key: String },
    Commit { key: String, name: String },
    Remove { key: String },
    Update { key: String, labels: Labels },
    Cleanup,
    RemoveRetained { id: u64 },
}

impl Op {
    pub(crate) fn prepare(key: &str, parent: &str) -> Self {
        Self::Prepare { key: key.to_owned(), parent: parent.to_owned(), labels: Labels::new() }
    }

    pub(crate) fn commit(key: &str, name: &str) -> Self {
        Self::Commit { key: key.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn remove(key: &str) -> Self {
        Self::Remove { key: key.to_owned() }
    }
}

/// Our label `overstream.WORD`.
pub(crate) fn label(word: &str, value: &str) -> (String, String) {
    (format!("containerd.io/snapshot/overstream.{word}"), value.to_owned())
}

/// Calls a daemon; can be used from several threads.
#[derive(Clone)]
pub(crate) struct Client {
    runtime: Arc<tokio::runtime::Runtime>,
    channel: Channel,
}

impl Client {
    pub(crate) fn new(daemon: &Daemon) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let channel = runtime.block_on(daemon.channel());
        Self { runtime: Arc::new(runtime), channel }
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.runtime.block_on(async {
            tokio::time::timeout(CALL, call).await.expect("an answer, or an error, in time")
        })
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    pub(crate) fn call(&self, op: &Op) -> Result<Vec<Mount>, Status> {
        let (snapshotter, none) = (NAME.to_owned(), Vec::new());
        let mut client = self.snapshots();
        match op.clone() {
            Op::Prepare { key, parent, labels } => {
                let labels = labels.into_iter().collect();
                let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
                self.wait(client.prepare(request)).map(|answer| answer.into_inner().mounts)
            }
            Op::View { key, parent } => {
                let labels = HashMap::new();
                let request = ViewSnapshotRequest { snapshotter, key, parent, labels };
                self.wait(client.view(request)).map(|answer| answer.into_inner().mounts)
            }
            Op::Mounts { key } => {
                let request = MountsRequest { snapshotter, key };
                self.wait(client.mounts(request)).map(|answer| answer.into_inner().mounts)
            }
            Op::Commit { key, name } => {
                let request =
                    CommitSnapshotRequest { snapshotter, name, key, ..Default::default() };
                self.wait(client.commit(request)).map(|_| none)
            }
            Op::Remove { key } => {
                let request = RemoveSnapshotRequest { snapshotter, key };
                self.wait(client.remove(request)).map(|_| none)
            }
            Op::Update { key, labels } => {
                let labels = labels.into_iter().collect();
                let info = Some(Info { name: key, labels, ..Default::default() });
                let request = UpdateSnapshotRequest { snapshotter, info, update_mask: None };
                self.wait(client.update(request)).map(|_| none)
            }
            Op::Cleanup => self.wait(client.cleanup(CleanupRequest { snapshotter })).map(|_| none),
            Op::RemoveRetained { id } => self
                .wait(self.control().remove_retained(RemoveRetainedRequest { id }))
                .map(|_| none),
        }
    }

    /// Calls and expects success.
    #[track_caller]
    pub(crate) fn ok(&self, op: &Op) -> Vec<Mount> {
        self.call(op).unwrap_or_else(|error| panic!("{op:?}: {error:?}"))
    }

    /// Everything the daemon tells about its snapshots.
    pub(crate) fn state(&self) -> State {
        let read = async {
            let mut state = State::default();
            let request =
                ListSnapshotsRequest { snapshotter: NAME.to_owned(), ..Default::default() };
            let mut infos = self.snapshots().list(request).await?.into_inner();
            while let Some(batch) = infos.message().await? {
                state.infos.extend(batch.info.into_iter().map(|info| (info.name.clone(), info)));
            }
            let mut places = self.control().list(ListRequest::default()).await?.into_inner();
            while let Some(batch) = places.message().await? {
                let places = batch.snapshots.into_iter();
                state.places.extend(places.map(|place| (place.key.clone(), place)));
            }
            let retained = self.control().list_retained(ListRetainedRequest::default()).await?;
            let retained = retained.into_inner().retained.into_iter().filter(|one| one.id > 0);
            state.retained = retained.map(|one| (one.id, one)).collect();
            Ok(state)
        };
        self.wait(read).unwrap()
    }
}

/// What the daemon told at one instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) infos: BTreeMap<String, Info>,
    pub(crate) places: BTreeMap<String, Snapshot>,
    pub(crate) retained: BTreeMap<u64, Retained>,
}

impl State {
    /// Keys of snapshots that are not in both states, or not the same.
    pub(crate) fn changed(&self, other: &Self) -> BTreeSet<String> {
        let keys: BTreeSet<&String> = self.places.keys().chain(other.places.keys()).collect();
        let same = |key: &String| {
            self.infos.get(key) == other.infos.get(key)
                && self.places.get(key) == other.places.get(key)
        };
        keys.into_iter().filter(|key| !same(key)).cloned().collect()
    }

    /// Numbers of all directories that exist on behalf of this state.
    pub(crate) fn ids(&self) -> BTreeSet<u64> {
        let ids = self.places.values().map(|place| place.id).chain(self.retained.keys().copied());
        ids.collect()
    }
}

/// A daemon with a root, a second store and a volume.
pub(crate) struct World {
    pub(crate) scratch: Arc<Scratch>,
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    pub(crate) root: PathBuf,
    pub(crate) fast: PathBuf,
    /// File that tells the daemon where to die.
    pub(crate) trigger: PathBuf,
    /// Content of the uppers that tests wrote to, by number.
    pub(crate) written: BTreeMap<u64, String>,
    /// True while what a killed call left on the volume may be there: it goes at the next one.
    pub(crate) call_may_have_died: bool,
    next: u64,
}

/// Lines of the configuration that tests change.
pub(crate) const DEFAULTS: &str = "layer_sync = \"off\"\n";

impl World {
    /// Starts a daemon `name` with root `NAME`, store `NAME-fast` and a volume in `scratch`.
    pub(crate) fn new(scratch: &Arc<Scratch>, name: &str) -> Self {
        Self::at(scratch, name, &scratch.join(name), &scratch.join(format!("{name}-fast")))
    }

    /// Starts a daemon whose root and second store are elsewhere.
    pub(crate) fn at(scratch: &Arc<Scratch>, name: &str, root: &Path, fast: &Path) -> Self {
        let mut world = Self::unstarted(scratch, name, root, fast);
        world.daemon.start();
        world
    }

    pub(crate) fn unstarted(scratch: &Arc<Scratch>, name: &str, root: &Path, fast: &Path) -> Self {
        let volume = scratch.dir(format!("{name}-pods/p1/vol"));
        if overstream_testkit::mounts_below(&volume).is_empty() {
            run(Command::new("mount").arg("--bind").arg(&volume).arg(&volume)).ok();
        }
        fs::create_dir_all(fast).unwrap();
        let trigger = scratch.join(format!("{name}.trigger"));
        let daemon = Daemon::named(scratch, name, env!("CARGO_BIN_EXE_overstream"))
            .with_root(root)
            .with_env("OVERSTREAM_CRASH_AT", &format!("@{}", trigger.display()));
        let client = Client::new(&daemon);
        let mut world = Self {
            scratch: Arc::clone(scratch),
            daemon,
            client,
            root: root.to_owned(),
            fast: fast.to_owned(),
            trigger,
            written: BTreeMap::new(),
            call_may_have_died: false,
            next: 0,
        };
        world.configure(DEFAULTS);
        world
    }

    /// Sets the configuration, from the next start on.
    pub(crate) fn configure(&mut self, lines: &str) {
        let name = self.root.file_name().unwrap().to_string_lossy().into_owned();
        let pods = self.scratch.join(format!("{name}-pods"));
        let text = format!(
            r#"{lines}
labels.allow = ["identity", "store", "retain", "resume", "volatile"]
[stores.fast]
type = "dir"
path = "{}"
[stores.vol]
type = "volume"
match = '^{}/(?P<pod>[^/]+)/vol$'
[[rules]]
key = "^vol-"
store = "vol"
volume = {{ pod = "{{pod.uid}}" }}
retain = false
otherwise = "next"
[[rules]]
key = "^keep-"
retain = true
resume = true
[[rules]]
key = "^volatile-"
volatile = true
[[rules]]
key = "^(vol|fast)-"
store = "fast"
"#,
            self.fast.display(),
            pods.display()
        );
        self.daemon.set_config(&text);
    }

    /// A number for names that were never used.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Makes a snapshot with content and returns its key.
    pub(crate) fn prepared(&mut self, kind: &str, parent: &str) -> String {
        let n = self.fresh();
        self.prepared_as(&format!("default/{n}/{kind}-{n}"), parent)
    }

    /// Makes a snapshot of this key with content.
    pub(crate) fn prepared_as(&mut self, key: &str, parent: &str) -> String {
        let container = key.rsplit('/').next().unwrap();
        let labels = identity(container, "p1");
        let labels = if container.starts_with("vol-") { labels } else { Labels::new() };
        self.client.ok(&Op::Prepare { key: key.to_owned(), parent: parent.to_owned(), labels });
        self.write(key);
        key.to_owned()
    }

    /// Makes a committed layer with content and returns its name.
    pub(crate) fn layer(&mut self, kind: &str, parent: &str) -> String {
        let key = self.prepared(kind, parent);
        let name = format!("{key}-layer");
        self.client.ok(&Op::commit(&key, &name));
        name
    }

    /// Writes to a snapshot's upper.
    pub(crate) fn write(&mut self, key: &str) {
        let place = self.client.state().places[key].clone();
        let upper = Path::new(&place.upper);
        for file in [DATA, "more", "directory/deep"] {
            fs::create_dir_all(upper.join(file).parent().unwrap()).unwrap();
            fs::write(upper.join(file), key).unwrap();
        }
        self.written.insert(place.id, key.to_owned());
    }

    /// Has the daemon die at `point` from now on, or nowhere.
    pub(crate) fn arm(&self, point: Option<&str>) {
        match point {
            Some(point) => fs::write(&self.trigger, point).unwrap(),
            None => fs::remove_file(&self.trigger).unwrap(),
        }
    }

    /// Kills the daemon and starts it again.
    pub(crate) fn kill_and_start(&mut self) {
        self.daemon.kill();
        self.daemon.start();
    }

    /// Checks that database, disk and what was written agree; returns the state.
    #[track_caller]
    pub(crate) fn check(&mut self) -> State {
        self.client.ok(&Op::Cleanup);
        let state = self.client.state();
        Self::check_ids(&state);
        self.check_database();
        self.check_store("root", &self.root, &state);
        self.check_store("fast", &self.fast, &state);
        self.check_volume(&state);
        self.check_content(&state);
        state
    }

    fn check_ids(state: &State) {
        let count = state.places.len() + state.retained.len();
        assert_eq!(state.ids().len(), count, "a number belongs to two: {state:#?}");
        let keys: Vec<_> = state.infos.keys().collect();
        assert_eq!(keys, state.places.keys().collect::<Vec<_>>());
    }

    fn check_database(&self) {
        let path = self.root.join("metadata.db");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let database = rusqlite::Connection::open_with_flags(path, flags).unwrap();
        let word =
            |query: &str| -> String { database.query_row(query, [], |row| row.get(0)).unwrap() };
        assert_eq!(word("PRAGMA integrity_check"), "ok");
        assert_eq!(word("SELECT CAST(count(*) AS TEXT) FROM garbage"), "0");
        let orphans = "SELECT CAST(count(*) AS TEXT) FROM pragma_foreign_key_check";
        assert_eq!(word(orphans), "0");
    }

    fn check_store(&self, store: &str, base: &Path, state: &State) {
        let mut needed: BTreeSet<u64> =
            state.retained.values().filter(|one| one.store == store).map(|one| one.id).collect();
        let mut possible = BTreeSet::new();
        for place in state.places.values() {
            let layer = store == "root" && place.kind == "committed";
            if layer || (place.store == store && place.placement == "placed") {
                needed.insert(place.id);
            } else if place.placement == "pending" {
                possible.insert(place.id);
            }
        }
        let found = snapshots_in(base);
        assert!(needed.is_subset(&found), "{store}: rows without directory: {needed:?} {found:?}");
        let extra: Vec<_> = found.iter().filter(|id| !needed.contains(id)).collect();
        let pending = extra.iter().all(|id| possible.contains(id));
        assert!(pending, "{store}: directories without row: {extra:?} in {state:#?}");
        let ours: &[&str] = match store {
            "root" => &["lock", "metadata.db", "metadata.db-shm", "metadata.db-wal", "snapshots"],
            _ => &[".overstream-store", "snapshots"],
        };
        let others = |name: &String| !ours.contains(&name.as_str()) && name != "lost+found";
        let left: Vec<_> = names(base).into_iter().filter(others).collect();
        assert!(left.is_empty(), "{store}: left over: {left:?}");
        self.check_directories(store, base, state);
    }

    fn check_directories(&self, store: &str, base: &Path, state: &State) {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for place in state.places.values().filter(|place| place.store == store) {
            let directory = base.join("snapshots").join(place.id.to_string());
            if place.placement != "placed" {
                continue;
            }
            assert_eq!(mode(&directory), 0o700, "{}", directory.display());
            assert_eq!(mode(&directory.join("fs")), 0o755, "{}", directory.display());
            if place.kind == "active" {
                assert_eq!(mode(&directory.join("work")), 0o711, "{}", directory.display());
            }
            let link = self.root.join("snapshots").join(place.id.to_string());
            if store != "root" && place.kind == "committed" {
                assert_eq!(fs::read_link(link).unwrap(), directory);
            }
        }
    }

    fn check_volume(&self, state: &State) {
        let ours = self.volume().join("overstream");
        let known = |name: &String| {
            name == "overstream"
                || (self.call_may_have_died && name.starts_with(".overstream-probe"))
        };
        let left: Vec<_> = names(&self.volume()).into_iter().filter(|name| !known(name)).collect();
        assert!(left.is_empty(), "left on the volume: {left:?}");
        if !ours.exists() {
            return;
        }
        for name in names(&ours) {
            let home = ours.join(&name);
            let used =
                state.places.values().any(|place| Path::new(&place.upper).starts_with(&home));
            let empty = home.join("fs").exists() && names(&home.join("fs")).is_empty();
            assert!(used || empty || !home.join("fs").exists(), "{} is nobody's", home.display());
            let odd = |name: &String| match name.as_str() {
                "fs" | "work" | "overstream.json" => false,
                "overstream.json.new" => !self.call_may_have_died,
                _ => true,
            };
            let left: Vec<_> = names(&home).into_iter().filter(odd).collect();
            assert!(!used || left.is_empty(), "{}: left over: {left:?}", home.display());
        }
    }

    /// Where the volume of pod `p1` is mounted.
    pub(crate) fn volume(&self) -> PathBuf {
        let name = self.root.file_name().unwrap().to_string_lossy().into_owned();
        self.scratch.join(format!("{name}-pods/p1/vol"))
    }

    fn check_content(&self, state: &State) {
        let uppers = state.places.values().map(|place| (place.id, place.upper.clone()));
        let retained = state.retained.values().map(|one| (one.id, one.upper.clone()));
        for (id, upper) in uppers.chain(retained) {
            let Some(content) = self.written.get(&id) else { continue };
            for file in [DATA, "more", "directory/deep"] {
                let found = fs::read_to_string(Path::new(&upper).join(file));
                assert_eq!(found.ok().as_ref(), Some(content), "{id}: {upper}/{file}");
            }
        }
    }
}

/// Labels that tell whose container a snapshot is.
pub(crate) fn identity(container: &str, pod: &str) -> Labels {
    [label("pod-uid", pod), label("container-name", container)].into()
}

/// Names in a directory.
pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
