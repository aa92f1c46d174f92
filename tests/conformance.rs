//! containerd's conformance checks for snapshotters, on a real socket with real mounts.
//!
//! Each test is named after the check it stands for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod conformance {
    mod frame;
    mod layers;
    mod states;
    mod updates;
    mod views;
}
