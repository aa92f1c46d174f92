//! Open handles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::errno::{Error, Result};

/// Names something open; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// What is open, by handle.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    next: AtomicU64,
    /// A leaf lock: nothing else is done while it is held.
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }
}

impl<T> Handles<T> {
    /// Keeps `what` and names it.
    pub(crate) fn add(&self, what: T) -> Handle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, Arc::new(what));
        Handle(handle)
    }

    /// Returns what a handle names.
    ///
    /// # Errors
    /// `BadHandle` if it names nothing.
    pub(crate) fn get(&self, handle: Handle) -> Result<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).map(Arc::clone).ok_or(Error::BadHandle)
    }

    /// Forgets a handle. What it named is closed when the last operation on it ends.
    pub(crate) fn remove(&self, handle: Handle) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let removed = open.remove(&handle.0);
        drop(open);
        drop(removed);
    }
}
