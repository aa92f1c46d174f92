//! The kernel, which keeps attributes that it was told until it is told that they are not right any more.

use std::fmt;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

use crate::{Ino, Keeper};

/// Says that no data have changed.
const ONLY_ATTRIBUTES: i64 = -1;

/// The kernel's side of a connection, once there is one.
#[derive(Default)]
pub(super) struct Kernel(OnceLock<Notifier>);

impl Kernel {
    /// Says how the kernel is reached.
    pub(super) fn connect(&self, notifier: Notifier) {
        self.0.get_or_init(|| notifier);
    }
}

impl Keeper for Kernel {
    fn changed(&self, ino: Ino) {
        // It waits for nothing, so it may be called while the kernel waits for an answer. What the kernel does
        // not know it does not keep.
        if let Some(notifier) = self.0.get() {
            notifier.inval_inode(INodeNo(ino.0), ONLY_ATTRIBUTES, 0).ok();
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel")
    }
}
