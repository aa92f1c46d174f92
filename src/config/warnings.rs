//! What a valid configuration says that will likely go wrong on this host, as it is now.

use std::path::Path;

use super::{Config, StoreKind};
use crate::metastore::ROOT_STORE;
use crate::probe;

impl Config {
    /// What somebody who checks the file should know, one sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let missing = self.directories().filter_map(|(name, path)| {
            let problem = match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => return None,
                Ok(_) => "is not a directory".to_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    "does not exist".to_owned()
                }
                Err(error) => format!("cannot be looked at: {error}"),
            };
            // The root is made by the start.
            (name != ROOT_STORE || problem != "does not exist").then(|| {
                format!(
                    "store {name:?}: {} {problem}; the start wants a directory there",
                    path.display()
                )
            })
        });
        let in_memory = self.in_memory().into_iter().map(|(name, path)| {
            format!(
                "store {name:?}: {} lies in memory (tmpfs); what is there is lost at a reboot",
                path.display()
            )
        });
        missing.chain(in_memory).collect()
    }

    /// Stores whose files do not survive a reboot.
    fn in_memory(&self) -> Vec<(&str, &Path)> {
        self.directories().filter(|(_, path)| probe::in_memory(path)).collect()
    }

    /// The root, and the stores that are directories.
    fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        let stores = self.stores.iter().filter_map(|(name, store)| match &store.kind {
            StoreKind::Dir(path) => Some((name.as_str(), path.as_path())),
            StoreKind::Volume(_) => None,
        });
        std::iter::once((ROOT_STORE, self.root.as_path())).chain(stores)
    }
}
