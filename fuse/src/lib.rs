//! The overlay file system engine: a merged view of layers, served in process through FUSE.
//!
//! It decides what the kernel's overlayfs decides, and agrees with it in its own on-disk format.
//!
//! Read from the rules outwards: `name` and `merge` (pure: how the layers' answers about one name become
//! the overlay's), `format`, `whiteout`, `opaque`, `origin` and `xattr` (what marks mean on disk), `lookup` and
//! `readdir` (asking the layers), `node`, `inode` and `remember` (what is known), `create`, `remove`, `rename`,
//! `attr`, `protattr`, `copy_up` and `index` (what changes the view), `upper`, `change` and `work` (the one door
//! to the disk), `file` (what is open), [`Overlay`] (one short method per operation), and `bridge`, the only room
//! that knows FUSE. Layers are reached through directories beneath a handle, never by an absolute path.
//!
//! Dependencies point one way: the daemon uses this crate, never the reverse.

mod attr;
#[cfg(feature = "bridge")]
pub mod bridge;
mod caller;
mod change;
mod copy_up;
mod create;
mod errno;
mod file;
mod format;
mod index;
mod inode;
mod known;
pub mod layer;
mod lookup;
mod merge;
pub mod mountinfo;
mod name;
mod node;
mod opaque;
mod options;
mod origin;
mod overlay;
mod protattr;
mod readdir;
mod remember;
mod remove;
mod rename;
mod sys;
mod upper;
mod whiteout;
mod work;
mod xattr;

pub use attr::{SetAttr, SetTime};
pub use caller::Caller;
pub use change::{Change, ChangeSink, What};
pub use errno::{Error, Result};
pub use file::Handle;
pub use format::Format;
pub use inode::Ino;
pub use options::{
    Access, Flag, IdRange, MountOptions, RedirectDir, Squash, Whiteouts, Writing, XattrPermissions,
    split_lowers, unsupported,
};
pub use overlay::{Attr, Keeper, Overlay};
pub use protattr::Protection;
pub use readdir::Entry;
pub use rename::Onto;
pub use upper::Upper;
