//! Reads the logs of processes under test.

use std::path::Path;

/// Lines of a log shown in a failure message.
const TAIL: usize = 60;

/// Returns all of a log, or nothing if there is none.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Returns the end of a log under a heading, for a failure message.
pub(crate) fn tail(path: &Path) -> String {
    let text = read(path);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    format!("--- end of {}\n{}", path.display(), lines[from..].join("\n"))
}
