//! What a hostile or broken client sends: the daemon refuses or stores it, goes on serving, and
//! nothing comes to lie outside its root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod hostile {
    mod disk;
    mod frame;
    mod keys;
    mod paths;
    mod sizes;
    mod wire;
}
