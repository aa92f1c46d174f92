//! One lock per path, so that a disk that hangs holds up only those who need it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Locks by path, made as needed.
#[derive(Debug, Default)]
pub(crate) struct PathLocks(Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>);

impl PathLocks {
    /// Runs `work` while nobody else works under the same path.
    pub(crate) fn hold<T>(&self, path: &Path, work: impl FnOnce() -> T) -> T {
        let lock = self.of(path);
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn of(&self, path: &Path) -> Arc<Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Volumes come and go with their pods; a lock that nobody holds is not needed.
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(path.to_owned()).or_default())
    }
}
