//! Directories made in advance, while many snapshots are wanted at once.
//!
//! containerd holds the lock of its own database while it waits for Prepare, so what Prepare does on disk
//! holds up every other container of the node. In a burst, a thread makes the directories ahead. A spare
//! has its number and its place from the beginning: nothing is renamed when it is taken, so it is as
//! durable as one made on demand. Until then its sticky bit marks it, for the next start and for people.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Snapshotter;
use super::create::{fill_snapshot, remove_empty};
use crate::error::{IoContext, Result};
use crate::layout;
use crate::snapshot::Kind;

/// How many snapshots within a second make a burst.
const BURST: u32 = 32;
const SECOND: Duration = Duration::from_secs(1);
/// Spares made at a time, when fewer than half as many are left.
const BATCH: usize = 32;
/// How long spares are kept when none is wanted.
const IDLE: Duration = Duration::from_secs(10);
/// Mode of a spare's directory: that of a snapshot's, and the mark.
const MARKED: u32 = 0o1700;
const STICKY: u32 = 0o1000;

/// The spares of the layer store.
#[derive(Debug)]
pub(super) struct Spares {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<u64>,
    /// When the second began in which snapshots are counted, and how many there were.
    since: Instant,
    asked: u32,
    wanted: bool,
    stopped: bool,
}

/// What the thread is to do next.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Make,
    Delete,
    Stop,
}

impl Default for Spares {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            since: Instant::now(),
            asked: 0,
            wanted: false,
            stopped: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Spares {
    /// Takes a spare if there is one, and has more made if this is a burst.
    fn take(&self) -> Option<u64> {
        let mut state = self.lock();
        let now = Instant::now();
        if now.duration_since(state.since) > SECOND {
            (state.since, state.asked) = (now, 0);
        }
        state.asked += 1;
        let spare = state.ready.pop_front();
        if state.asked >= BURST && state.ready.len() < BATCH / 2 && !state.wanted {
            state.wanted = true;
            self.changed.notify_all();
        }
        spare
    }

    fn add(&self, id: u64) {
        self.lock().ready.push_back(id);
    }

    /// Waits for something to do: at the latest when the spares were not wanted for as long as `idle`.
    fn next(&self, idle: Duration) -> Task {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Task::Stop;
            }
            if std::mem::take(&mut state.wanted) {
                return Task::Make;
            }
            let unused = state.since.elapsed();
            if state.ready.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if unused < idle {
                let waited = self.changed.wait_timeout(state, idle - unused);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                return Task::Delete;
            }
        }
    }

    fn take_all(&self) -> VecDeque<u64> {
        std::mem::take(&mut self.lock().ready)
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshotter {
    /// Number of a spare whose directories now belong to the caller.
    pub(super) fn take_spare(&self) -> Option<u64> {
        let id = self.spares.take()?;
        let directory = layout::snapshot(self.stores.root(), id);
        // One that somebody deleted is no loss.
        fs::set_permissions(&directory, Permissions::from_mode(MARKED & !STICKY)).ok()?;
        crate::crash::point("prepare: spare taken");
        Some(id)
    }

    /// Makes spares as they are wanted, until `stop_spares`; runs on a thread of its own.
    pub(crate) fn run_spares(&self) {
        loop {
            match self.spares.next(IDLE) {
                Task::Make => self.make_spares(),
                Task::Delete => self.delete_spares(),
                Task::Stop => return self.delete_spares(),
            }
        }
    }

    /// Ends `run_spares`.
    pub(crate) fn stop_spares(&self) {
        self.spares.stop();
    }

    fn make_spares(&self) {
        for _ in 0..BATCH {
            if let Err(error) = self.make_spare() {
                // Prepare makes its own, and tells its client if that fails as well.
                tracing::debug!(%error, "cannot make directories in advance");
                return;
            }
        }
    }

    fn make_spare(&self) -> Result<()> {
        let id = self.new_id();
        let directory = layout::snapshot(self.stores.root(), id);
        DirBuilder::new().mode(MARKED).create(&directory).at("create", &directory)?;
        crate::crash::point("spare: directory made");
        fill_snapshot(&directory, Kind::Active, (0, 0))
            .inspect_err(|_| drop(remove_empty(&directory)))?;
        crate::crash::point("spare: made");
        self.spares.add(id);
        Ok(())
    }

    fn delete_spares(&self) {
        for id in self.spares.take_all() {
            let directory = layout::snapshot(self.stores.root(), id);
            if let Err(error) = remove_empty(&directory) {
                tracing::debug!(directory = %directory.display(), %error, "a spare is left to the next start");
            }
        }
    }
}

/// True if this was a spare that an earlier daemon left, and is no more.
pub(super) fn delete_left(directory: &Path) -> bool {
    is_marked(directory) && remove_empty(directory).is_ok()
}

/// Takes the mark off a snapshot: that it was taken off before need not have reached the disk.
pub(super) fn clear_mark(directory: &Path) {
    if is_marked(directory)
        && let Err(error) = fs::set_permissions(directory, Permissions::from_mode(MARKED & !STICKY))
    {
        tracing::warn!(directory = %directory.display(), %error, "a snapshot looks like a spare");
    }
}

fn is_marked(directory: &Path) -> bool {
    let found = fs::symlink_metadata(directory);
    found.is_ok_and(|found| found.is_dir() && found.mode() & STICKY != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_are_made_in_a_burst_only_and_deleted_after_it() {
        let spares = Spares::default();
        for _ in 1..BURST {
            assert_eq!(spares.take(), None);
        }
        assert!(!spares.lock().wanted, "not a burst yet");
        spares.take();
        assert_eq!(spares.next(IDLE), Task::Make);
        spares.add(7);
        spares.add(8);
        assert_eq!((spares.take(), spares.take(), spares.take()), (Some(7), Some(8), None));
        assert_eq!(spares.next(IDLE), Task::Make, "few are left, and the burst goes on");
        spares.add(9);
        assert_eq!(spares.next(Duration::ZERO), Task::Delete);
        assert_eq!(spares.take_all(), [9]);
        spares.stop();
        assert_eq!(spares.next(IDLE), Task::Stop);
    }
}
