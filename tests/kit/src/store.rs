//! What lies in a store's directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Mark of a directory made in advance, see docs/FORMAT.md.
const STICKY: u32 = 0o1000;

/// Numbers of the directories and links of snapshots in a store; spares are not among them.
#[track_caller]
pub fn snapshots_in(store: &Path) -> BTreeSet<u64> {
    numbers(store, |mode| mode & STICKY == 0)
}

/// Numbers of the spares in a store.
#[track_caller]
pub fn spares_in(store: &Path) -> BTreeSet<u64> {
    numbers(store, |mode| mode & STICKY != 0)
}

#[track_caller]
fn numbers(store: &Path, wanted: impl Fn(u32) -> bool) -> BTreeSet<u64> {
    let snapshots = store.join("snapshots");
    let entries = fs::read_dir(&snapshots)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", snapshots.display()));
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry.expect("read a store's snapshots");
        // A spare may be deleted at any time.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if wanted(metadata.mode()) || metadata.is_symlink() && wanted(0) {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            found.insert(number.unwrap_or_else(|| panic!("odd name {name:?}")));
        }
    }
    found
}
