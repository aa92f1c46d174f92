//! Many clients at once: each against a model of its own snapshots, all on a few shared keys.
//!
//! The seed is printed. `OVERSTREAM_SEED` repeats the clients' choices (not how they interleave), and
//! `OVERSTREAM_SOAK_SECONDS` makes it last longer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod model {
    mod clients;
    mod frame;
    mod races;
    mod reference;
}
