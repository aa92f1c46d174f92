//! A daemon that trusts every label it can be told to trust, and the check that it came to no harm.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overstream_testkit::{Client, Daemon, Scratch, Tree, limit, require_root};

/// The daemon's program.
pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_overstream");

/// Everything a label may decide, it decides; and every container's upper is retained.
const CONFIG: &str = "\
[labels]
allow = [\"store\", \"mode\", \"retain\", \"resume\", \"volatile\", \"identity\"]
[[rules]]
namespace = \"kept\"
retain = true
resume = true
";

/// A running daemon, a client of it, and a directory that it must not touch.
pub(super) struct Bed {
    pub(super) client: Client,
    pub(super) daemon: Daemon,
    pub(super) victim: PathBuf,
    outside: BTreeMap<String, Tree>,
    pub(super) scratch: Scratch,
}

/// Runs a test; afterwards the daemon still serves, and nothing lies outside its root.
pub(super) fn attack(body: impl FnOnce(&mut Bed) + Send + 'static) {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), move || {
        let scratch = Scratch::new();
        let victim = scratch.dir("victim");
        fs::create_dir(victim.join("dir")).unwrap();
        fs::write(victim.join("dir/precious"), "precious").unwrap();
        let mut daemon = Daemon::new(&scratch, BINARY).with_config(CONFIG);
        daemon.start();
        let client = daemon.client("over");
        let outside = outside(&scratch, daemon.root());
        let mut bed = Bed { client, daemon, victim, outside, scratch };
        body(&mut bed);
        bed.is_unharmed();
        bed.daemon.restart();
        bed.is_unharmed();
    });
}

impl Bed {
    /// Checks that the daemon serves, and that it wrote only where it may.
    #[track_caller]
    pub(super) fn is_unharmed(&self) {
        assert!(self.daemon.is_running(), "{}", self.daemon.describe());
        let client = &self.client;
        client.prepare("still serving", "", &[]).unwrap();
        assert_eq!(client.stat("still serving").unwrap().name, "still serving");
        client.remove("still serving").unwrap();
        client.cleanup().unwrap();
        let found = outside(&self.scratch, self.daemon.root());
        for (name, tree) in &found {
            let expected = self.outside.get(name).unwrap_or_else(|| panic!("{name} appeared"));
            expected.assert_same(tree, name);
        }
        assert_eq!(found.len(), self.outside.len());
        self.root_is_tidy();
    }

    /// The root holds the daemon's own files, and directories whose names are numbers.
    #[track_caller]
    fn root_is_tidy(&self) {
        const OURS: [&str; 5] =
            ["lock", "metadata.db", "metadata.db-shm", "metadata.db-wal", "snapshots"];
        let root = self.daemon.root();
        for name in names(root) {
            assert!(OURS.contains(&name.as_str()), "{name:?} appeared in the root");
        }
        for id in names(&root.join("snapshots")) {
            assert!(id.parse::<u64>().is_ok(), "{id:?} appeared among the snapshots");
            for name in names(&root.join("snapshots").join(&id)) {
                assert!(["fs", "work"].contains(&name.as_str()), "{name:?} appeared in {id}");
            }
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Everything in the scratch directory but the daemon's root.
fn outside(scratch: &Scratch, root: &Path) -> BTreeMap<String, Tree> {
    let mut outside = BTreeMap::new();
    for name in names(scratch.path()) {
        let path = scratch.join(&name);
        if path.is_dir() && path != root {
            outside.insert(name, Tree::read(path));
        } else if !path.is_dir() {
            // The socket and the log are the daemon's; that there are no others is what counts.
            outside.insert(name, Tree::default());
        }
    }
    outside
}
