//! The overlay file system engine: a merged view of layers, served in process through FUSE.
//!
//! It decides what the kernel's overlayfs decides, and agrees with it in its own on-disk format. So far
//! the view is read-only: all layers are lower ones, which nobody changes while they are mounted.
//!
//! Read from the rules outwards: `name` and `merge` (pure: how the layers' answers about one name become
//! the overlay's), `format`, `whiteout`, `opaque` and `xattr` (what marks mean on disk), `lookup` and
//! `readdir` (asking the layers), `inode` and `file` (what is known and what is open), [`Overlay`] (one short
//! method per operation), and `bridge`, the only room that knows FUSE. Layers are reached through
//! [`layer::LayerDir`] alone, never by an absolute path.
//!
//! Dependencies point one way: the daemon uses this crate, never the reverse.

#[cfg(feature = "bridge")]
pub mod bridge;
mod errno;
mod file;
mod format;
mod inode;
pub mod layer;
mod lookup;
mod merge;
pub mod mountinfo;
mod name;
mod opaque;
mod options;
mod overlay;
mod readdir;
mod whiteout;
mod xattr;

pub use errno::{Error, Result};
pub use file::Handle;
pub use format::Format;
pub use inode::Ino;
pub use options::{
    Access, Flag, IdRange, MountOptions, RedirectDir, Squash, Whiteouts, Writing, XattrPermissions,
    split_lowers, unsupported,
};
pub use overlay::{Attr, Overlay};
pub use readdir::Entry;
