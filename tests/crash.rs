//! Kills the daemon at every step of every call, at random, while it starts and on a full disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod crash {
    mod full;
    mod random;
    mod refusals;
    mod spares;
    mod starts;
    mod steps;
    mod world;
}
