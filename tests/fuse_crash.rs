//! Kills the daemon of `overstream mount` at every system call that changes something, and makes every one of
//! its calls fail once: the view is the one before the operation or the one after it, never a third.
//!
//! strace(1) does both to the real daemon. What the two views are, kernel overlayfs says. By default part of
//! the calls take turns; `OVERSTREAM_FULL=1` takes them all, and every errno.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "../fuse/tests/common/served.rs"]
mod served;

mod fuse_crash {
    mod faults;
    mod full_disk;
    mod kills;
    mod layers;
    mod ops;
    mod seen;
    mod traced;
    mod world;
}
