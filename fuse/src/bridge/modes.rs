//! How the data of an open file go: through this process and the kernel's page cache, or directly to the upper's
//! file (passthrough).
//!
//! The kernel allows one way at a time for a file, so the first open decides for all until the last one is
//! closed. Lower files go through the page cache, so that one that is copied up meanwhile needs no other way.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::BackingId;

use crate::Ino;

/// So that opens of different files seldom meet.
const SHARDS: usize = 16;

/// The ways of all files that are open.
#[derive(Debug, Default)]
pub(super) struct Modes {
    shards: [Mutex<Shard>; SHARDS],
    /// Most mounts have no such files, which is then quickly said.
    any_mapped: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    open: HashMap<u64, Mode>,
    /// Files that were changed behind the back of the page cache.
    bypassed: HashSet<u64>,
    /// Files that may be mapped, directly and for writing, so that nobody is told when they change.
    mapped: HashSet<u64>,
}

/// The way of one file, and how often it is open.
#[derive(Debug)]
enum Mode {
    Cached(usize),
    Passthrough(Arc<BackingId>, usize),
}

/// What the kernel is told of an open.
pub(super) enum Way {
    /// Data go through the page cache, which may keep what it has.
    Keep,
    /// They go through the page cache, which has to drop what it has.
    Drop,
    /// They go to this file.
    Passthrough(Arc<BackingId>),
}

impl Modes {
    /// Counts an open. If it is the first one, `choose` decides. Who opens a file for reading and writing (`both`)
    /// may map it.
    pub(super) fn open(
        &self,
        ino: Ino,
        both: bool,
        choose: impl FnOnce() -> Option<BackingId>,
    ) -> Way {
        let mut shard = self.shard(ino);
        let way = shard.open(ino, choose);
        if both && matches!(way, Way::Passthrough(_)) {
            shard.mapped.insert(ino.0);
            self.any_mapped.store(true, Ordering::Release);
        }
        way
    }

    /// Tells whether a file may change without anybody being told.
    pub(super) fn may_be_mapped(&self, ino: Ino) -> bool {
        self.any_mapped.load(Ordering::Acquire) && self.shard(ino).mapped.contains(&ino.0)
    }

    /// Counts a release.
    pub(super) fn release(&self, ino: Ino) {
        let mut shard = self.shard(ino);
        let Entry::Occupied(mut open) = shard.open.entry(ino.0) else { return };
        let (Mode::Cached(count) | Mode::Passthrough(_, count)) = open.get_mut();
        *count = count.saturating_sub(1);
        let last = if *count == 0 { Some(open.remove()) } else { None };
        drop(shard);
        drop(last);
    }

    /// Says that the kernel does not know a file any more.
    pub(super) fn forget(&self, ino: Ino) {
        let mut shard = self.shard(ino);
        shard.bypassed.remove(&ino.0);
        shard.mapped.remove(&ino.0);
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        let [first, others @ ..] = &self.shards;
        let index = usize::try_from(ino.0 % SHARDS as u64).unwrap_or(0);
        let shard = index.checked_sub(1).and_then(|index| others.get(index)).unwrap_or(first);
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn open(&mut self, ino: Ino, choose: impl FnOnce() -> Option<BackingId>) -> Way {
        let Self { open, bypassed, .. } = self;
        match open.entry(ino.0) {
            Entry::Vacant(first) => {
                if let Some(backing) = choose() {
                    let backing = Arc::new(backing);
                    first.insert(Mode::Passthrough(Arc::clone(&backing), 1));
                    bypassed.insert(ino.0);
                    return Way::Passthrough(backing);
                }
                first.insert(Mode::Cached(1));
            }
            Entry::Occupied(mut open) => match open.get_mut() {
                Mode::Passthrough(backing, count) => {
                    *count += 1;
                    return Way::Passthrough(Arc::clone(backing));
                }
                Mode::Cached(count) => *count += 1,
            },
        }
        if bypassed.remove(&ino.0) { Way::Drop } else { Way::Keep }
    }
}
