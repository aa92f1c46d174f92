//! Real containerds, images and clients for Overstream's tests, demo and benchmarks.
//!
//! Everything here panics when it fails, with the command line, the exit code, what was printed
//! and the end of the log, since a test can do nothing better with an error.

pub mod bench;
mod client;
mod command;
mod containerd;
mod cri;
mod daemon;
pub mod facts;
pub mod fusebench;
pub mod image;
mod limit;
mod listing;
mod log;
mod loopfs;
mod mapping;
mod mount;
mod mountinfo;
mod process;
pub mod proto;
mod random;
mod registry;
mod require;
mod rpc;
mod scratch;
mod stack;
mod store;
mod sweep;
mod tree;
mod wait;

pub use client::{Client, LabelSlice};
pub use command::{Output, run, run_within};
pub use containerd::{Containerd, Options, PAUSE, Proxy, Version};
pub use cri::{Cri, ExecOutput, Pod};
pub use daemon::Daemon;
pub use limit::limit;
pub use listing::LISTING;
pub use loopfs::{Frozen, FsKind, LoopFs};
pub use mapping::Mapping;
pub use mount::{Mounted, mount, try_mount};
pub use mountinfo::mounts_below;
pub use process::Process;
pub use random::Random;
pub use registry::Registry;
pub use require::{not_run, require_command, require_fuse, require_root};
pub use rpc::{block_on, channel};
pub use scratch::Scratch;
pub use stack::Stack;
pub use store::{snapshots_in, spares_in};
pub use tree::{Entry, Kind, Tree};
pub use wait::wait_for;
