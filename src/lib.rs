//! Overstream, a containerd snapshotter whose writable layers can live anywhere.
//!
//! Read from the outside in: `cli` and `serve` start things, `grpc` and `control` are what a client
//! sees, `snapshotter` holds the ten methods, and the rest decides one thing each: `placement` (which
//! store), `mounts` and `layout` (what to mount, where files lie), `metastore` (what is remembered),
//! `usage` (what is counted), `probe` (what the kernel can do).

pub mod cli;
mod config;
mod control;
pub mod crash;
mod doors;
mod error;
mod filter;
mod grpc;
mod heap;
mod idmap;
mod layout;
mod metastore;
mod metrics;
mod mountinfo;
mod mounts;
mod placement;
mod probe;
mod proto;
mod serve;
mod snapshot;
mod snapshotter;
mod tree;
mod usage;

#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    //! Entries for the fuzz targets; each takes what the fuzzer made and must not panic.

    /// Reads the input as one List filter and asks it about a few snapshots.
    pub fn filter(data: &[u8]) {
        if let Ok(text) = std::str::from_utf8(data) {
            crate::filter::fuzz(text);
        }
    }
}
