//! How fast the root's disk has been of late.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A commit that takes longer is not worth waiting for on a thread that others need.
const QUICK: Duration = Duration::from_millis(1);
/// One commit counts for one part in so many.
const WEIGHT: u64 = 8;

/// Mean time of the latest commits, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    pub(super) fn note(&self, commit: Duration) {
        let latest = u64::try_from(commit.as_micros()).unwrap_or(u64::MAX) / WEIGHT;
        let mean = self.0.load(Ordering::Relaxed);
        // Two commits at once may lose one of them, which is as good.
        self.0.store((mean - mean / WEIGHT).saturating_add(latest), Ordering::Relaxed);
    }

    pub(super) fn is_quick(&self) -> bool {
        u128::from(self.0.load(Ordering::Relaxed)) < QUICK.as_micros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_commit_is_remembered_until_several_were_quick() {
        let pace = Pace::default();
        assert!(pace.is_quick(), "nothing is known against it");
        pace.note(Duration::from_micros(300));
        assert!(pace.is_quick());
        pace.note(Duration::from_millis(50));
        assert!(!pace.is_quick());
        let quick_ones = (1..).find(|_| {
            pace.note(Duration::from_micros(300));
            pace.is_quick()
        });
        assert!((5..50).contains(&quick_ones.unwrap()));
        pace.note(Duration::MAX);
        assert!(!pace.is_quick());
    }
}
