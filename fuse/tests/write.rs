//! What changes on a mounted overlay is what changes on the kernel's overlayfs, in the view and on disk.
//!
//! Each test does the same on both, over the same lower layers, and compares all that can be seen. What
//! takes long is done in full with `OVERSTREAM_FULL=1`.
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

mod write {
    mod both;
    mod cases;
    mod copy_up;
    mod flags;
    mod frame;
    mod histories;
    mod hostile;
    mod limits;
    mod links;
    mod listing;
    mod open_files;
    mod pair;
    mod peer;
    mod peers;
    mod permissions;
    mod rules;
    mod sample;
    mod seen;
    mod states;
    mod step;
    mod user;
}
