//! Making the data of committed layers durable, a little after Commit.
//!
//! Commit runs inside containerd's own write transaction, so it must not wait for a disk. A committed
//! row carries the boot it was made in until its file system has been synced; `check_chain` refuses
//! what a power failure overtook.

use std::collections::BTreeMap;
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
/// A write to the disk failed.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Wakes the background when there is something to sync.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
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
        let mut by_device: BTreeMap<Result<u64, PathBuf>, Together> = BTreeMap::new();
        for (id, boot) in self.meta.unsynced()? {
            // What an earlier boot left unsynced cannot be saved by syncing now.
            if boot == self.features.boot {
                let together = Together::at(&mut by_device, self.layer(id));
                together.layers.push(id);
            }
        }
        for (id, directory) in std::mem::take(&mut self.sync.lock().seen) {
            Together::at(&mut by_device, directory).uppers.push(id);
        }
        // A disk that is not there, or a layer removed meanwhile, must not keep the others waiting.
        for together in by_device.values() {
            self.sync_together(together)?;
        }
        Ok(())
    }

    /// Syncs layers and uppers of one file system.
    fn sync_together(&self, Together { path, layers, uppers }: &Together) -> Result<()> {
        match sync_file_system(path) {
            Ok(()) => {
                crate::crash::point("sync: synced");
                self.meta.mark_synced(layers, uppers)
            }
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(EIO) => {
                // The kernel tells of a failed write once and then forgets it: the next sync would
                // succeed, although the data is gone.
                tracing::error!(
                    path = %path.display(),
                    layers = layers.len(),
                    error = %source,
                    "committed layers could not be written to disk and are refused from now on; \
                     remove their images and pull them again"
                );
                self.meta.mark_lost(layers)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make a committed layer durable; tried again after the next commit");
                Ok(())
            }
        }
    }

    /// Where the data of a layer is.
    fn layer(&self, id: u64) -> PathBuf {
        layout::snapshot(self.stores.root(), id).join(layout::FS)
    }
}

/// What one sync makes durable.
struct Together {
    /// Some path in the file system.
    path: PathBuf,
    /// Layers, for their data.
    layers: Vec<u64>,
    /// Uppers, for their directories: what was written to them is their container's to sync.
    uppers: Vec<u64>,
}

impl Together {
    /// What is synced with the file system of `path`.
    fn at(all: &mut BTreeMap<Result<u64, PathBuf>, Self>, path: PathBuf) -> &mut Self {
        all.entry(device_of(&path)).or_insert_with(|| Self {
            path,
            layers: Vec::new(),
            uppers: Vec::new(),
        })
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
