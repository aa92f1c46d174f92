//! Waits for a condition instead of sleeping a fixed time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Waits until `condition` holds; panics with `what` when `timeout` is over.
pub fn wait_for(what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(timeout, condition), "after {timeout:?} still waiting for {what}");
}

/// Waits until `condition` holds and tells whether it did within `timeout`.
pub(crate) fn holds_within(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}
