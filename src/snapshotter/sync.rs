//! Making the data of committed layers durable, a little after Commit.
//!
//! Commit runs inside containerd's own write transaction, so it must not wait for a disk. A committed
//! row carries the boot it was made in until its file system has been synced; `check_chain` refuses
//! what a power failure overtook. Each disk is synced by a thread of its own, so that one that hangs keeps
//! only its own layers unsynced.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::Snapshotter;
use crate::error::{Error, IoContext, Result};
use crate::layout;

/// How long the background waits for further commits before it syncs.
const QUIET: Duration = Duration::from_secs(5);
/// Longest time it waits in all, however busy things are.
const ROUNDS: u32 = 6;
/// How long it waits for the slowest disk before it sees to the next commits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits, without further commits, before it tries again what could not be synced.
const RETRY: Duration = Duration::from_secs(60);
/// The disk failed.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Wakes the background when there is something to sync.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    disks: Arc<Busy<PathBuf>>,
    /// By device: one thread learns of a failed write, and another must not take the silence after that for
    /// success.
    devices: Arc<Busy<u64>>,
}

/// What one thread at a time may sync, and since when it does.
#[derive(Debug)]
struct Busy<K: Eq + Hash> {
    since: Mutex<HashMap<K, Instant>>,
    ended: Condvar,
}

impl<K: Eq + Hash> Default for Busy<K> {
    fn default() -> Self {
        Self { since: Mutex::default(), ended: Condvar::new() }
    }
}

/// A key that is taken, until this is dropped, also by a panic.
struct Taken<K: Eq + Hash>(Arc<Busy<K>>, K);

impl<K: Eq + Hash> Drop for Taken<K> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
        self.0.ended.notify_all();
    }
}

impl<K: Clone + Eq + Hash> Busy<K> {
    /// Takes `key`, waiting until `deadline`; not for one that has been taken for very long.
    fn begin(self: &Arc<Self>, key: &K, deadline: Instant) -> Option<Taken<K>> {
        let mut busy = self.lock();
        while let Some(since) = busy.get(key) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || since.elapsed() >= RETRY {
                return None;
            }
            busy = self.ended.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.insert(key.clone(), Instant::now());
        Some(Taken(Arc::clone(self), key.clone()))
    }
}

impl<K: Eq + Hash> Busy<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be synced on one disk: numbers, and the directories of uppers.
#[derive(Clone, Debug, Default)]
struct Part {
    layers: Vec<u64>,
    uppers: Vec<(u64, PathBuf)>,
}

#[derive(Debug, Default)]
struct State {
    /// Uppers that the start saw, and that are on disk once it has been synced.
    seen: Vec<(u64, PathBuf)>,
    waiting: bool,
    stopped: bool,
}

impl Queue {
    /// Tells the background that a layer was committed.
    pub(super) fn wake(&self) {
        self.lock().waiting = true;
        self.changed.notify_all();
    }

    /// Notes that an upper whose directories may not be on disk is there.
    pub(super) fn note_seen(&self, id: u64, directory: PathBuf) {
        self.lock().seen.push((id, directory));
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work, or until `retry` has passed, then for a quiet moment; false once stopped.
    fn next(&self, retry: Option<Duration>) -> bool {
        let idle = |state: &mut State| !state.waiting && !state.stopped;
        let state = self.lock();
        let state = match retry {
            None => self.changed.wait_while(state, idle),
            Some(retry) => self
                .changed
                .wait_timeout_while(state, retry, idle)
                .map(|(state, _)| state)
                .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0)),
        };
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            if state.stopped || !state.waiting {
                break;
            }
            state.waiting = false;
            (state, _) = self
                .changed
                .wait_timeout_while(state, QUIET, |state| idle(state))
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting = false;
        !state.stopped
    }
}

/// What one sync makes durable.
struct Group {
    /// A directory in the file system. It is not kept open: a disk can be unmounted at any time.
    path: PathBuf,
    /// Layers, for their data.
    layers: Vec<u64>,
    /// Uppers, for their directories: what was written to them is their container's to sync.
    uppers: Vec<u64>,
}

/// What is to be synced, by file system.
#[derive(Default)]
struct Groups(BTreeMap<u64, Group>);

impl Groups {
    /// The group of the file system that holds `path`.
    fn at(&mut self, path: PathBuf) -> Result<&mut Group> {
        let (device, _) = open(&path)?;
        let (layers, uppers) = (Vec::new(), Vec::new());
        Ok(self.0.entry(device).or_insert(Group { path, layers, uppers }))
    }
}

impl Snapshotter {
    /// Syncs committed layers until `stop_sync`; runs on a thread of its own.
    pub(crate) fn run_sync(self: &Arc<Self>) {
        let mut retry = None;
        while self.sync.next(retry) {
            self.reconcile_late();
            let complete = self.sync_layers(PATIENCE) && !self.stores.any_left();
            retry = (!complete).then_some(RETRY);
        }
    }

    /// Ends `run_sync`, and makes durable what is left.
    pub(crate) fn stop_sync(self: &Arc<Self>) {
        self.sync.stop();
        self.sync_layers(RETRY);
    }

    /// Syncs what it can, waiting so long for slow disks; false if something has to be tried again.
    fn sync_layers(self: &Arc<Self>, patience: Duration) -> bool {
        let parts = match self.parts() {
            Ok(parts) => parts,
            Err(error) => return later(&error),
        };
        let deadline = Instant::now() + patience;
        let (done, results) = mpsc::channel();
        let all = parts.len();
        let busy: Vec<_> = parts
            .into_iter()
            .filter(|(disk, part)| !self.start_part(disk, part, Instant::now(), &done))
            .collect();
        for (disk, part) in busy {
            if !self.start_part(&disk, &part, deadline, &done) {
                tracing::warn!(disk = %disk.display(), "not synced now; what was committed there waits");
                self.sync.lock().seen.extend(part.uppers);
            }
        }
        drop(done);
        let mut complete = 0;
        loop {
            match results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(part) => complete += usize::from(part),
                // A thread that panicked said nothing.
                Err(mpsc::RecvTimeoutError::Disconnected) => return complete == all,
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// Has a part synced on a thread of its own; false if its disk is being synced, or there is no thread.
    fn start_part(
        self: &Arc<Self>,
        disk: &PathBuf,
        part: &Part,
        deadline: Instant,
        done: &mpsc::Sender<bool>,
    ) -> bool {
        let Some(taken) = self.sync.disks.begin(disk, deadline) else { return false };
        let (syncer, part, done) = (Arc::clone(self), part.clone(), done.clone());
        let thread = std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
            let complete = syncer.sync_part(part);
            drop(taken);
            // Nobody waits any more where the disk took too long.
            done.send(complete).ok();
        });
        if let Err(error) = &thread {
            tracing::warn!(disk = %disk.display(), %error, "cannot start a thread to sync a disk");
        }
        thread.is_ok()
    }

    /// What is to be synced, by disk, found without touching any but the root's.
    fn parts(&self) -> Result<HashMap<PathBuf, Part>> {
        let disk = |directory: &Path| {
            directory.parent().and_then(Path::parent).unwrap_or(directory).to_owned()
        };
        let mut parts: HashMap<_, Part> = HashMap::new();
        for (id, boot) in self.meta.unsynced()? {
            // What an earlier boot left unsynced cannot be saved by syncing now.
            if boot == self.features.boot {
                let own = layout::snapshot(self.stores.root(), id);
                let own = std::fs::read_link(&own).unwrap_or(own);
                parts.entry(disk(&own)).or_default().layers.push(id);
            }
        }
        for (id, directory) in std::mem::take(&mut self.sync.lock().seen) {
            parts.entry(disk(&directory)).or_default().uppers.push((id, directory));
        }
        Ok(parts)
    }

    fn sync_part(&self, part: Part) -> bool {
        let (Groups(groups), mut complete) = self.groups(part);
        for (device, group) in groups {
            let Some(_taken) = self.sync.devices.begin(&device, Instant::now() + RETRY) else {
                complete = false;
                continue;
            };
            complete &= self.sync_group(&group).map_or_else(|error| later(&error), |()| true);
        }
        complete
    }

    /// What is to be synced, by file system; false if that is not all.
    fn groups(&self, part: Part) -> (Groups, bool) {
        let mut groups = Groups::default();
        let mut unreachable = Vec::new();
        for id in part.layers {
            let path = self.layer(id);
            match groups.at(path.clone()) {
                Ok(group) => group.layers.push(id),
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(EIO) => {
                    unreachable.extend(self.lost(&path, &[id], &source).err());
                }
                Err(error) => unreachable.push(error),
            }
        }
        if let Some(error) = unreachable.first() {
            tracing::warn!(%error, layers = unreachable.len(), "cannot make committed layers durable; tried again later");
        }
        for (id, directory) in part.uppers {
            // One that has gone meanwhile was removed, or stays to be seen by the next start.
            if let Ok(group) = groups.at(directory) {
                group.uppers.push(id);
            }
        }
        (groups, unreachable.is_empty())
    }

    fn sync_group(&self, group: &Group) -> Result<()> {
        let (_, directory) = open(&group.path)?;
        match rustix::fs::syncfs(&directory) {
            Ok(()) => {
                crate::crash::point("sync: synced");
                self.meta.mark_synced(&group.layers, &group.uppers, &self.features.boot)
            }
            // The kernel tells of a failed write once, as EIO, or ENOSPC where space is only taken at
            // the write, and then forgets it: the next sync would succeed, although the data is gone.
            Err(error) => self.lost(&group.path, &group.layers, &error.into()),
        }
    }

    fn lost(&self, layer: &Path, ids: &[u64], error: &std::io::Error) -> Result<()> {
        tracing::error!(
            layer = %layer.display(),
            layers = ids.len(),
            %error,
            "committed layers could not be written to disk and are refused from now on; \
             remove their images and pull them again"
        );
        self.meta.mark_lost(ids)
    }

    /// Where the data of a layer is.
    fn layer(&self, id: u64) -> PathBuf {
        layout::snapshot(self.stores.root(), id).join(layout::FS)
    }
}

fn later(error: &Error) -> bool {
    tracing::warn!(%error, "cannot make committed layers durable; tried again later");
    false
}

/// Opens a directory, and tells its device.
fn open(path: &Path) -> Result<(u64, OwnedFd)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    let device = rustix::fs::fstat(&directory).at("read", path)?.st_dev;
    Ok((device, directory))
}

/// Writes everything in the file system of `path` to disk.
pub(super) fn sync_file_system(path: &Path) -> Result<()> {
    let (_, directory) = open(path)?;
    rustix::fs::syncfs(&directory).at("sync", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_syncs_a_disk() {
        let disks = Arc::new(Busy::default());
        let soon = || Instant::now() + Duration::from_millis(50);
        let (first, _second) = (disks.begin(&1, soon()).unwrap(), disks.begin(&2, soon()).unwrap());
        assert!(disks.begin(&1, Instant::now()).is_none() && disks.begin(&1, soon()).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| disks.begin(&1, Instant::now() + RETRY));
            drop(first);
            let _taken = waiting.join().unwrap().unwrap();
            assert!(disks.begin(&1, soon()).is_none(), "taken twice");
        });
    }

    #[test]
    fn a_disk_can_be_synced_again_after_a_panic() {
        let disks = Arc::new(Busy::default());
        let taken = disks.begin(&1, Instant::now()).unwrap();
        let panicked = std::thread::spawn(move || {
            let _taken = taken;
            std::panic::resume_unwind(Box::new("as any thread may"));
        });
        panicked.join().unwrap_err();
        assert!(disks.begin(&1, Instant::now()).is_some());
    }

    #[test]
    fn what_could_not_be_synced_is_tried_again_without_a_commit() {
        let queue = Queue::default();
        assert!(queue.next(Some(Duration::from_millis(10))));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next(None));
            queue.stop();
            assert!(!waiting.join().unwrap());
        });
    }
}
