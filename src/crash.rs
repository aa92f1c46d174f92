//! Named places at which a test can have the daemon killed.
//!
//! With the cargo feature `crash-points`, the daemon sends itself SIGKILL at the point named by the
//! environment variable `OVERSTREAM_CRASH_AT`, the n-th time it gets there for `NAME#n`. Without the
//! feature a point is nothing at all.

/// Every point there is; tests go through this list, so that none is forgotten.
pub const POINTS: &[&str] = &[
    "metastore: before commit",
    "metastore: after commit",
    "prepare: before directories",
    "prepare: snapshot directory made",
    "prepare: directories made",
    "prepare: recorded",
    "commit: measured",
    "commit: linked",
    "commit: recorded",
    "remove: recorded",
    "cleanup: before delete",
    "cleanup: deleted",
    "settle: volume directory made",
    "settle: identity written",
    "settle: recorded",
    "volatile: marker removed",
];

/// Dies here if a test asked for it.
#[cfg(feature = "crash-points")]
pub(crate) fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);

    debug_assert!(POINTS.contains(&name), "crash point {name:?} is not in POINTS");
    let Ok(wanted) = std::env::var("OVERSTREAM_CRASH_AT") else { return };
    let (wanted, nth) = wanted.split_once('#').unwrap_or((&wanted, "1"));
    if wanted == name && (PASSED.fetch_add(1, Ordering::SeqCst) + 1).to_string() == nth {
        eprintln!("crash point {name:?}: killed");
        let sent = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        eprintln!("crash point {name:?}: still alive: {sent:?}");
    }
}

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_name: &str) {}
