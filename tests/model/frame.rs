//! A daemon, and what must hold of it whenever no call is under way.

use std::collections::{BTreeSet, HashSet};

use overstream_testkit::proto::control::{ListRequest, Snapshot};
use overstream_testkit::proto::snapshots::Info;
use overstream_testkit::{Daemon, Scratch, block_on, snapshots_in};

/// The plugin name all clients use.
pub(super) const NAME: &str = "over";

/// A running daemon.
pub(super) struct Bed {
    pub(super) daemon: Daemon,
    _scratch: Scratch,
}

impl Bed {
    pub(super) fn new() -> Self {
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, env!("CARGO_BIN_EXE_overstream"));
        daemon.start();
        Self { daemon, _scratch: scratch }
    }

    /// Every snapshot with its number.
    fn places(&self) -> Vec<Snapshot> {
        block_on(async {
            let request = ListRequest { filters: Vec::new() };
            let mut stream = self.daemon.control().await.list(request).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                all.extend(message.snapshots);
            }
            all
        })
    }

    /// Checks rows against rows, and rows against directories.
    #[track_caller]
    pub(super) fn is_consistent(&self) {
        let client = self.daemon.client(NAME);
        client.cleanup().unwrap();
        is_whole(&client.list(&[]).unwrap());
        let places = self.places();
        let ids: BTreeSet<u64> = places.iter().map(|place| place.id).collect();
        assert_eq!(ids.len(), places.len(), "two snapshots have the same number");
        let snapshots = self.daemon.root().join("snapshots");
        assert_eq!(snapshots_in(self.daemon.root()), ids, "directories, and numbers of rows");
        for place in places {
            let own = snapshots.join(place.id.to_string());
            assert!(own.join("fs").is_dir(), "{} has no files", place.key);
            assert!(place.kind != "active" || own.join("work").is_dir(), "{}", place.key);
        }
    }

    /// Checks that a restart changes nothing a client sees.
    pub(super) fn survives_a_restart(&mut self) {
        let client = self.daemon.client(NAME);
        let before = client.list(&[]).unwrap();
        self.daemon.restart();
        assert_eq!(client.list(&[]).unwrap(), before);
        self.is_consistent();
    }

    /// Removes everything, as containerd's garbage collector does: children first.
    pub(super) fn can_be_emptied(&self) {
        let client = self.daemon.client(NAME);
        loop {
            let all = client.list(&[]).unwrap();
            let parents: HashSet<&str> = all.iter().map(|info| info.parent.as_str()).collect();
            let mut leaves =
                all.iter().filter(|info| !parents.contains(info.name.as_str())).peekable();
            if leaves.peek().is_none() {
                assert!(all.is_empty(), "a circle of parents");
                break;
            }
            leaves.for_each(|leaf| client.remove(&leaf.name).unwrap());
        }
        self.is_consistent();
        assert!(snapshots_in(self.daemon.root()).is_empty());
    }
}

/// A list as of one instant: no name twice, and every parent listed and committed.
#[track_caller]
pub(super) fn is_whole(all: &[Info]) {
    let names: HashSet<&str> = all.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "a name is listed twice");
    let committed: HashSet<&str> =
        all.iter().filter(|info| info.kind == 3).map(|info| info.name.as_str()).collect();
    for info in all.iter().filter(|info| !info.parent.is_empty()) {
        let parent = info.parent.as_str();
        assert!(committed.contains(parent), "{}: its parent {parent} is not listed", info.name);
    }
}

/// Numbers that look random; the same for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) >> 1).unwrap() % limit
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
