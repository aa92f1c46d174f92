//! Making the data of committed layers durable, a little after Commit.
//!
//! Commit runs inside containerd's own write transaction, so it must not wait for a disk. A committed
//! row carries the boot it was made in until its file system has been synced; `check_chain` refuses
//! what a power failure overtook.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::Snapshotter;
use crate::error::{Error, IoContext, Result};
use crate::layout;

/// How long the background waits for further commits before it syncs.
const QUIET: Duration = Duration::from_secs(5);
/// Longest time it waits in all, however busy things are.
const ROUNDS: u32 = 6;
/// How long it waits, without further commits, before it tries again what could not be synced.
const RETRY: Duration = Duration::from_secs(60);
/// The disk failed.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Wakes the background when there is something to sync.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while layers are synced: one thread learns of a failed write, and another must not take the
    /// silence after that for success.
    syncing: Mutex<()>,
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
    pub(crate) fn run_sync(&self) {
        let mut retry = None;
        while self.sync.next(retry) {
            self.reconcile_late();
            retry = (!self.sync_layers()).then_some(RETRY);
        }
    }

    /// Ends `run_sync`, and makes durable what is left.
    pub(crate) fn stop_sync(&self) {
        self.sync.stop();
        self.sync_layers();
    }

    /// Syncs what it can; false if something has to be tried again.
    fn sync_layers(&self) -> bool {
        let _one_at_a_time = self.sync.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let warn = |error: Error| {
            tracing::warn!(%error, "cannot make committed layers durable; tried again later");
            false
        };
        let (Groups(groups), mut complete) = match self.groups() {
            Ok(groups) => groups,
            Err(error) => return warn(error),
        };
        // What keeps one disk from being synced does not keep the others.
        for group in groups.values() {
            complete &= self.sync_group(group).map_or_else(warn, |()| true);
        }
        complete
    }

    /// What is to be synced, by file system; false if that is not all.
    fn groups(&self) -> Result<(Groups, bool)> {
        let mut groups = Groups::default();
        let mut unreachable = Vec::new();
        for (id, boot) in self.meta.unsynced()? {
            // What an earlier boot left unsynced cannot be saved by syncing now.
            if boot != self.features.boot {
                continue;
            }
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
        for (id, directory) in std::mem::take(&mut self.sync.lock().seen) {
            // One that has gone meanwhile was removed, or stays to be seen by the next start.
            if let Ok(group) = groups.at(directory) {
                group.uppers.push(id);
            }
        }
        Ok((groups, unreachable.is_empty()))
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
