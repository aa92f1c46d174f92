//! What happens to an upper: every change of names and metadata, one by one, as those are told who want to know.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::caller::Caller;
use crate::layer::Kind;

/// A change of an upper. Each is one atomic system call there, whatever was prepared unseen before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The file in the view, relative to its root.
    pub path: PathBuf,
    /// What happens to it.
    pub what: What,
}

/// What happens to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A copy takes the place of a lower layer's file.
    CopyUp {
        /// Its type.
        kind: Kind,
        /// How much data was copied, holes not counted.
        bytes: u64,
        /// How long it took to prepare.
        took: Duration,
    },
    /// It is made.
    Create(Kind),
    /// It gets one more name.
    Link(PathBuf),
    /// It is deleted, from the upper only.
    Remove(Kind),
    /// A whiteout hides what the lower layers have, and replaces what the upper has.
    Whiteout,
    /// It moves.
    Rename {
        /// To where.
        to: PathBuf,
        /// What was there comes here.
        exchange: bool,
        /// A whiteout stays behind.
        whiteout: bool,
    },
    /// The directory hides lower ones from now on.
    Opaque,
    /// The directory is said to hold copied-up files.
    Impure,
    /// A directory that shows no files loses the whiteouts in it.
    Clear,
    /// Mode, owner or times change.
    Attributes,
    /// Its flags become these.
    Flags(u32),
    /// It is cut off, or lengthened by a hole.
    Truncate(u64),
    /// An extended attribute is set.
    SetXattr(String),
    /// An extended attribute is removed.
    RemoveXattr(String),
}

/// Is told of every change, in the order in which they happen to each file.
pub trait ChangeSink: fmt::Debug + Send + Sync {
    /// Is asked before a change; an error refuses it.
    fn before(&self, change: &Change, caller: &Caller) -> io::Result<()>;
    /// Is told after a change whether it happened.
    fn after(&self, change: &Change, caller: &Caller, happened: bool);
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            What::CopyUp { kind: Kind::File, bytes, took } => {
                write!(f, "copy-up /{path}: {bytes} bytes in {:.1} ms", took.as_secs_f64() * 1e3)
            }
            What::CopyUp { kind, .. } => write!(f, "copy-up /{path}: {kind}"),
            What::Create(kind) => write!(f, "create /{path}: {kind}"),
            What::Link(to) => write!(f, "link /{path}: also /{}", to.display()),
            What::Remove(kind) => write!(f, "remove /{path}: {kind}"),
            What::Whiteout => write!(f, "whiteout /{path}"),
            What::Rename { to, exchange: true, .. } => {
                write!(f, "exchange /{path}: with /{}", to.display())
            }
            What::Rename { to, whiteout, .. } => {
                let left = if *whiteout { ", whiteout left" } else { "" };
                write!(f, "rename /{path}: to /{}{left}", to.display())
            }
            What::Opaque => write!(f, "opaque /{path}"),
            What::Impure => write!(f, "impure /{path}"),
            What::Clear => write!(f, "clear /{path}"),
            What::Attributes => write!(f, "attributes /{path}"),
            What::Flags(flags) => write!(f, "flags /{path}: {flags:#x}"),
            What::Truncate(size) => write!(f, "truncate /{path}: to {size} bytes"),
            What::SetXattr(name) => write!(f, "set-xattr /{path}: {name}"),
            What::RemoveXattr(name) => write!(f, "remove-xattr /{path}: {name}"),
        }
    }
}
