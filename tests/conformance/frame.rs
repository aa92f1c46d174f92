//! A fresh server per check, and what the checks do with it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use overstream_testkit::proto::snapshots::{Info, Kind};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Client, Daemon, Mounted, Scratch, Tree, limit, mount, require_root};

/// What every Prepare, View and Commit carries.
pub(super) const ROOT_LABEL: (&str, &str) = ("containerd.io/gc.root", "2026-01-02T03:04:05Z");

/// One step of a chain of layers: what is done to a tree.
pub(super) type Step<'a> = &'a dyn Fn(&Path);

/// A daemon with a client of its own.
pub(super) struct Suite {
    pub(super) client: Client,
    number: AtomicU32,
    _daemon: Daemon,
    pub(super) scratch: Scratch,
}

/// Runs a check on a fresh daemon, if the test has the rights to mount: first with everything below
/// the root, then with the files of every snapshot in a store of their own.
pub(super) fn check(body: impl Fn(&Suite) + Send + 'static) {
    static UMASK: Once = Once::new();
    if !require_root() {
        return;
    }
    UMASK.call_once(|| {
        umask(Mode::empty());
    });
    limit(Duration::from_secs(120), move || {
        for split in [false, true] {
            let scratch = Scratch::new();
            let mut daemon = Daemon::new(&scratch, env!("CARGO_BIN_EXE_overstream"));
            if split {
                let path = scratch.dir("uppers");
                daemon.set_config(&format!(
                    "[stores.uppers]\ntype = \"dir\"\npath = {path:?}\n[[rules]]\nstore = \"uppers\"\n"
                ));
            }
            daemon.start();
            let client = daemon.client("conformance");
            body(&Suite { client, number: AtomicU32::new(0), _daemon: daemon, scratch });
        }
    });
}

impl Suite {
    /// Returns a path of the scratch directory that nothing has used: upstream's keys are such.
    pub(super) fn path(&self, what: &str) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.scratch.join(format!("{what}-{number}")).display().to_string()
    }

    pub(super) fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        let mounts = self.client.prepare(key, parent, &[ROOT_LABEL]).unwrap();
        assert!(!mounts.is_empty(), "{key} has no mounts");
        mounts
    }

    pub(super) fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.client.view(key, parent, &[ROOT_LABEL]).unwrap()
    }

    pub(super) fn commit(&self, name: &str, key: &str) {
        self.client.commit(name, key, &[ROOT_LABEL]).unwrap();
    }

    pub(super) fn remove(&self, key: &str) {
        self.client.remove(key).unwrap();
    }

    pub(super) fn mount(&self, mounts: &[Mount]) -> Mounted {
        mount(mounts, self.path("mnt"))
    }

    /// Makes a committed snapshot that nobody ever mounted.
    pub(super) fn empty_layer(&self, name: &str, parent: &str) {
        let key = self.path("empty");
        self.prepare(&key, parent);
        self.commit(name, &key);
    }

    /// Checks that a mounted snapshot shows `expected`.
    #[track_caller]
    pub(super) fn shows(&self, mounts: &[Mount], expected: &Path, what: &str) {
        let mounted = self.mount(mounts);
        Tree::read(expected).assert_same(&Tree::read(mounted.path()), what);
        mounted.unmount();
    }

    /// Makes a layer of each step on top of the one before, and compares every commit with a plain
    /// directory to which the same steps were done. Returns the name of the last commit.
    pub(super) fn chain(&self, steps: &[Step<'_>]) -> String {
        let flat = self.scratch.dir(self.path("flat"));
        let mut top = String::new();
        for (number, step) in steps.iter().enumerate() {
            let (key, name) = (self.path("active"), self.path("layer"));
            let mounted = self.mount(&self.prepare(&key, &top));
            step(mounted.path());
            mounted.unmount();
            self.commit(&name, &key);
            step(&flat);
            top = name;
            let view = self.path("view");
            self.shows(&self.view(&view, &top), &flat, &format!("layer {}", number + 1));
            self.remove(&view);
        }
        top
    }

    #[track_caller]
    pub(super) fn is(&self, key: &str, kind: Kind, parent: &str) -> Info {
        let info = self.client.stat(key).unwrap();
        assert_eq!(
            (info.name.as_str(), info.kind(), info.parent.as_str()),
            (key, kind, parent),
            "{key}"
        );
        info
    }
}

/// Creates or truncates a file, and gives it exactly this mode.
pub(super) fn file(root: &Path, name: &str, content: &str, mode: u32) {
    let path = root.join(name);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).open(&path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.sync_all().unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

/// Makes a directory and those above it, and gives it exactly this mode.
pub(super) fn dir(root: &Path, name: &str, mode: u32) {
    let path = root.join(name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

/// Removes a file, or a directory with all below it.
pub(super) fn remove(root: &Path, name: &str) {
    let path = root.join(name);
    match fs::symlink_metadata(&path).unwrap().is_dir() {
        true => fs::remove_dir_all(&path).unwrap(),
        false => fs::remove_file(&path).unwrap(),
    }
}

/// Gives things to a user and a group of the same number.
pub(super) fn give(root: &Path, names: &[&str], id: u32) {
    for name in names {
        chown(root.join(name), Some(id), Some(id)).unwrap();
    }
}

/// Tells that a file exists, as upstream does: by opening it.
pub(super) fn exists(path: &Path) -> bool {
    File::open(path).is_ok()
}
