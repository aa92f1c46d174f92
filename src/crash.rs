//! Named places at which a test can have the daemon killed.
//!
//! With the cargo feature `crash-points`, the daemon sends itself SIGKILL at the point named by the
//! environment variable `OVERSTREAM_CRASH_AT`, the n-th time it gets there for `NAME#n`. `@FILE` has it
//! read the same from a file, which a test writes when the daemon is where the test wants it; passes are
//! counted from then on. As long as the variable is set, every point reached is told on standard error.
//! Without the feature a point is nothing at all.

/// Every point there is; tests go through this list, so that none is forgotten.
pub const POINTS: &[&str] = &[
    "start: root made",
    "start: database file made",
    "start: write-ahead log on",
    "start: before migration",
    "start: migrated",
    "start: snapshots directory made",
    "start: stray link deleted",
    "start: socket bound",
    "probe: directories made",
    "store: marker written",
    "store: marker in place",
    "store: adopted",
    "metastore: before commit",
    "metastore: after commit",
    "prepare: before directories",
    "prepare: snapshot directory made",
    "prepare: upper made",
    "prepare: directories made",
    "prepare: spare taken",
    "prepare: recorded",
    "prepare: undone",
    "commit: measured",
    "commit: linked",
    "commit: recorded",
    "link: old one deleted",
    "remove: recorded",
    "cleanup: before delete",
    "cleanup: link deleted",
    "cleanup: set aside",
    "cleanup: one deleted",
    "cleanup: deleted",
    "delete: file deleted",
    "settle: directories made",
    "settle: volume upper made",
    "settle: volume directory made",
    "settle: identity file written",
    "settle: identity written",
    "settle: recorded",
    "spare: directory made",
    "spare: made",
    "sync: synced",
    "volatile: marker removed",
];

/// Dies here if a test asked for it.
#[cfg(feature = "crash-points")]
pub(crate) fn point(name: &str) {
    use std::sync::{Mutex, PoisonError};
    static PASSED: Mutex<(String, u64)> = Mutex::new((String::new(), 0));

    debug_assert!(POINTS.contains(&name), "crash point {name:?} is not in POINTS");
    let Some(wanted) = wanted() else { return };
    eprintln!("crash point {name:?} reached");
    let (point, nth) = wanted.split_once('#').unwrap_or((&wanted, "1"));
    if point != name {
        return;
    }
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.0 != wanted {
        *passed = (wanted.clone(), 0);
    }
    passed.1 += 1;
    if passed.1.to_string() == nth {
        eprintln!("crash point {name:?}: killed");
        let sent = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        eprintln!("crash point {name:?}: still alive: {sent:?}");
    }
}

/// What the environment asks for; nothing yet while the file it names is not there.
#[cfg(feature = "crash-points")]
fn wanted() -> Option<String> {
    let value = std::env::var("OVERSTREAM_CRASH_AT").ok()?;
    match value.strip_prefix('@') {
        Some(file) => Some(std::fs::read_to_string(file).unwrap_or_default()),
        None => Some(value),
    }
}

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_name: &str) {}
