//! A directory of one test, and the end of everything that test started.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use crate::command::line;
use crate::process::{Process, Shared};
use crate::require::test_name;
use crate::sweep;

const DEFAULT_BASE: &str = "/var/tmp/overstream-test";
/// Marks a directory that a later run must not sweep away.
const KEPT: &str = ".kept";

/// A fresh directory on a real file system.
///
/// Dropping it, also in a panic, kills every process started through it with all that descends
/// from it, unmounts everything below it and deletes it. `OVERSTREAM_KEEP=1` keeps the files,
/// `OVERSTREAM_SCRATCH` tells where such directories lie (`/var/tmp/overstream-test`). What a
/// killed test left there is swept away by the next one.
#[derive(Debug)]
pub struct Scratch {
    inner: Arc<Inner>,
}

/// What can be cleaned up from another thread, too.
#[derive(Debug)]
pub(crate) struct Inner {
    path: PathBuf,
    test: String,
    children: Mutex<Vec<Shared>>,
}

impl Scratch {
    /// Makes a directory; panics if the file system there cannot serve as a test's.
    #[expect(clippy::new_without_default, reason = "making a directory is not a default")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = base();
        sweep_once(&base);
        // Short, since a unix socket's path has at most 107 bytes.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{}-{number}", process::id()));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        let inner = Arc::new(Inner { path, test: test_name(), children: Mutex::default() });
        registry().push(Arc::downgrade(&inner));
        Self { inner }
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns the path of `name` in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Makes the directory `name` in it, if there is none yet, and returns its path.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        path
    }

    /// Writes the file `name` in it and returns its path.
    pub fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, contents)
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        path
    }

    /// Starts a process that logs to `NAME.log` in it.
    #[track_caller]
    pub fn spawn(&self, name: &str, command: &mut Command) -> Process {
        self.handle().spawn(name, command)
    }

    /// Returns the ids of all running processes that descend from it.
    pub fn processes(&self) -> Vec<u32> {
        sweep::processes_of(self.path())
    }

    /// Returns what lets others start processes in it.
    pub(crate) fn handle(&self) -> Arc<Inner> {
        Arc::clone(&self.inner)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        registry().retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.inner)));
        self.inner.clean();
        if std::env::var_os("OVERSTREAM_KEEP").is_some_and(|value| value == "1") {
            eprintln!("kept {}", self.path().display());
            File::create(self.join(KEPT)).expect("mark a directory as kept");
        } else if let Err(error) = sweep::delete(self.path()) {
            eprintln!("cannot delete {}: {error}", self.path().display());
        }
    }
}

impl Inner {
    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the cgroup, in every hierarchy, below which its containers must lie.
    pub(crate) fn cgroup(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("/overstream-test-{name}")
    }

    /// Starts a process that logs to `NAME.log`.
    #[track_caller]
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Process {
        let path = self.path.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path).expect("open a log");
        let line = line(command);
        command.env(sweep::OWNER, &self.path).process_group(0);
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicate a descriptor")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let child = Shared::new(child);
        lock(&self.children).push(child.clone());
        Process::new(name, line, path, child)
    }

    fn kill(&self) {
        // Who waits for a frozen file system cannot be killed.
        sweep::thaw_below(&self.path);
        for child in lock(&self.children).drain(..) {
            child.kill();
        }
        sweep::kill_processes_of(&self.path);
    }

    fn clean(&self) {
        self.kill();
        sweep::unmount_below(&self.path);
        sweep::detach_loops_below(&self.path);
        sweep::remove_cgroup(&self.cgroup());
    }
}

/// Kills the processes of all scratch directories made by the test `name`.
pub(crate) fn kill_all_of(name: &str) {
    of_test(name).iter().for_each(|inner| inner.kill());
}

/// Kills the processes and drops the mounts of all scratch directories made by the test `name`.
pub(crate) fn clean_all_of(name: &str) {
    of_test(name).iter().for_each(|inner| inner.clean());
}

fn of_test(name: &str) -> Vec<Arc<Inner>> {
    let all: Vec<_> = registry().iter().filter_map(Weak::upgrade).collect();
    all.into_iter().filter(|inner| inner.test == name).collect()
}

fn registry() -> MutexGuard<'static, Vec<Weak<Inner>>> {
    static ALL: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
    lock(&ALL)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn base() -> PathBuf {
    let base = std::env::var_os("OVERSTREAM_SCRATCH").unwrap_or_else(|| DEFAULT_BASE.into());
    let base = PathBuf::from(base);
    fs::create_dir_all(&base).unwrap_or_else(|e| panic!("cannot make {}: {e}", base.display()));
    // The mount table and /proc show resolved paths.
    let base = base.canonicalize().expect("resolve the scratch directory");
    let kind = statfs(&base).expect("examine the scratch directory").filesystem_type();
    let real = kind != OVERLAYFS_SUPER_MAGIC && kind != TMPFS_MAGIC;
    assert!(real, "{} is on overlay or tmpfs; set OVERSTREAM_SCRATCH", base.display());
    base
}

/// Removes what test processes that no longer run have left.
fn sweep_once(base: &Path) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for path in stale(base).expect("read the scratch directory") {
            let test = String::new();
            let inner = Inner { path: path.clone(), test, children: Mutex::default() };
            inner.clean();
            // Another test process may be sweeping, too.
            sweep::delete(&path).ok();
        }
    });
}

fn stale(base: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let owner = name.split_once('-').and_then(|(pid, _)| pid.parse::<u32>().ok());
        let gone = owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if gone && !path.join(KEPT).exists() {
            paths.push(path);
        }
    }
    Ok(paths)
}
