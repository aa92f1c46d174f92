//! The overlay file system engine: a merged view of layers, served in process through FUSE.
//!
//! This crate is the engine's place and holds nothing yet. It will decide what the kernel's overlayfs
//! decides (lookup through the layers, copy-up, whiteouts, opaque directories, rename) in the kernel's
//! own on-disk format, for the hosts and stores where kernel overlayfs cannot be mounted.
//!
//! Dependencies point one way: the daemon uses this crate, never the reverse.
