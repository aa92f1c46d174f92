//! What a client of the daemon may rely on: codes, mounts, labels, usage, removal, its life and tools.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod rpc {
    mod codes;
    mod frame;
    mod idmaps;
    mod labels;
    mod life;
    mod listing;
    mod mounts;
    mod observing;
    mod refused;
    mod removal;
    mod service;
    mod tools;
    mod usage;
    mod waiting;
}
