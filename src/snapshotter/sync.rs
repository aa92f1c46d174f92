//! Making the data of committed layers durable, a little after Commit.
//!
//! Commit runs inside containerd's own write transaction, so it must not wait for a disk. A committed
//! row carries the boot it was made in until its file system has been synced; `check_chain` refuses
//! what a power failure overtook.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::Snapshotter;
use crate::error::{IoContext, Result};
use crate::layout;

/// How long the background waits for further commits before it syncs.
const QUIET: Duration = Duration::from_secs(5);
/// Longest time it waits in all, however busy things are.
const ROUNDS: u32 = 6;

/// Wakes the background when there is something to sync.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: bool,
    stopped: bool,
}

impl Queue {
    /// Tells the background that a layer was committed.
    pub(super) fn wake(&self) {
        self.lock().waiting = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work, then for a quiet moment; false once stopped.
    fn next(&self) -> bool {
        let idle = |state: &mut State| !state.waiting && !state.stopped;
        let mut state =
            self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
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

impl Snapshotter {
    /// Syncs committed layers until `stop_sync`; runs on a thread of its own.
    pub(crate) fn run_sync(&self) {
        while self.sync.next() {
            if let Err(error) = self.sync_layers() {
                tracing::warn!(%error, "cannot make committed layers durable; tried again after the next commit");
            }
        }
    }

    /// Ends `run_sync`, and makes durable what is left.
    pub(crate) fn stop_sync(&self) {
        self.sync.stop();
        if let Err(error) = self.sync_layers() {
            tracing::warn!(%error, "cannot make committed layers durable");
        }
    }

    fn sync_layers(&self) -> Result<()> {
        let mut by_store: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for (id, store, boot) in self.meta.unsynced()? {
            // What an earlier boot left unsynced cannot be saved by syncing now.
            if boot == self.features.boot {
                by_store.entry(store).or_default().insert(id);
            }
        }
        for ids in by_store.values() {
            let mut synced = BTreeSet::new();
            for id in ids {
                let fs = layout::snapshot(self.stores.root(), *id).join(layout::FS);
                if synced.insert(device_of(&fs)) {
                    sync_file_system(&fs)?;
                }
            }
            self.meta.mark_synced(&ids.iter().copied().collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Device that holds `path`; the path itself where that cannot be told.
fn device_of(path: &Path) -> Result<u64, PathBuf> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|found| found.dev()).map_err(|_| path.to_owned())
}

/// Writes everything in the file system of `path` to disk.
pub(super) fn sync_file_system(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    rustix::fs::syncfs(&directory).at("sync", path)
}
