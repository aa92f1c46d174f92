//! What is compared of a view, and which of two views one is.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use overstream_testkit::facts::{self, Tree, differences};
use rustix::fs::FileType;

/// Longer than the kernel's coarse clock stands still.
const TICK: Duration = Duration::from_millis(20);
/// Any time after the operation began.
const NOW: (i64, i64) = (i64::MAX, 0);

/// Tells times before the operations from those after.
#[derive(Clone, Copy)]
pub(super) struct Eye {
    begin: (i64, i64),
}

/// Which of the two views one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Old,
    New,
}

/// The views before and after an operation.
pub(super) struct Views {
    pub(super) old: Tree,
    pub(super) new: Tree,
}

impl Eye {
    /// Opens it, after everything was made and before anything is changed.
    pub(super) fn new() -> Self {
        sleep(TICK);
        let begin = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        sleep(TICK);
        Self { begin: (begin.as_secs().cast_signed(), begin.subsec_nanos().into()) }
    }

    /// Reads a view. Left out is what copying up changes: numbers, allocated blocks, times of status, and of
    /// directories also links and times.
    pub(super) fn view(self, root: &Path) -> Tree {
        let mut tree = facts::read(root, &[]);
        for facts in tree.values_mut().flatten() {
            (facts.ino, facts.blocks, facts.changed) = (0, 0, NOW);
            if facts.modified >= self.begin {
                facts.modified = NOW;
            }
            if FileType::from_raw_mode(facts.mode) == FileType::Directory {
                (facts.size, facts.links, facts.modified) = (0, 0, NOW);
            }
            let listing = std::mem::take(&mut facts.listing);
            facts.listing = listing.into_iter().map(|(name, _, kind)| (name, 0, kind)).collect();
        }
        tree
    }
}

impl Views {
    /// Tells which view `found` is; how it differs from both if it is neither. A file's time may be that of the
    /// other one, since in the kernel, too, it is set by a step of its own.
    pub(super) fn which(&self, found: &Tree) -> Result<Which, String> {
        let Self { old, new } = self;
        let adjusted = |want: &Tree, other: &Tree| {
            let mut found = found.clone();
            for (path, facts) in &mut found {
                let time = |tree: &Tree| Some(tree.get(path)?.as_ref().ok()?.modified);
                let (Ok(facts), Some(time), Some(also)) = (facts, time(want), time(other)) else {
                    continue;
                };
                if facts.modified == also {
                    facts.modified = time;
                }
            }
            found
        };
        // Where the two differ in nothing else, the time decides.
        if found == new {
            return Ok(Which::New);
        }
        if found == old {
            return Ok(Which::Old);
        }
        let Some(from_new) = differences(new, &adjusted(new, old)) else { return Ok(Which::New) };
        let Some(from_old) = differences(old, &adjusted(old, new)) else { return Ok(Which::Old) };
        Err(format!("a third view; from the old one: {from_old}\nfrom the new one: {from_new}"))
    }
}
