//! What the view shows is what the kernel's overlayfs shows, in process and through a FUSE mount.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "common/entries.rs"]
mod entries;
#[path = "common/served.rs"]
mod served;

mod view {
    mod facts;
    mod frame;
    mod hostile;
    mod listing;
    mod made;
    mod others;
    mod refused;
    mod stacks;
}
