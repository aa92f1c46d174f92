//! What can go wrong, and the one place that knows errno.

use rustix::io::Errno;

/// Result of a file system operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No layer shows the name.
    #[error("no such name")]
    NoEntry,
    /// The name is longer than a directory entry can be.
    #[error("the name is too long")]
    NameTooLong,
    /// The name is empty, `.`, `..`, or contains a slash or a zero byte.
    #[error("not a name")]
    BadName,
    /// The operation needs a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The operation needs something else than a directory.
    #[error("is a directory")]
    IsDirectory,
    /// The operation does not apply to this type of file.
    #[error("not possible with this type of file")]
    WrongType,
    /// The name is there already.
    #[error("the name is there already")]
    Exists,
    /// The directory is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The directory lies in a lower layer, and can only be moved by copying.
    #[error("a directory of a lower layer cannot be moved")]
    LowerDirectory,
    /// The operation is not allowed: to anybody, or to this process for the caller.
    #[error("not permitted")]
    NotPermitted,
    /// The flags of the operation make no sense, or not here.
    #[error("not possible with these flags")]
    BadFlags,
    /// The operation would change a read-only view.
    #[error("the view is read-only")]
    ReadOnly,
    /// The file has no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The number names no file that is known, or one that a layer has lost.
    #[error("the file is not known any more")]
    Stale,
    /// The handle names no open file.
    #[error("not an open file")]
    BadHandle,
    /// The file is a program that runs.
    #[error("the program runs")]
    Running,
    /// A layer carries a mark that is understood but not supported, so that showing the file as it
    /// lies there would be wrong.
    #[error("a layer has the mark {0:?} here, which is not supported")]
    Unsupported(&'static str),
    /// A system call on a layer failed.
    #[error("{what}: {source}")]
    Layer {
        /// What was being done, as a verb: "read".
        what: &'static str,
        /// How it failed.
        source: Errno,
    },
}

impl Error {
    /// Returns the number that the caller of the system call sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NoEntry => Errno::NOENT,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::BadName | Self::WrongType | Self::BadFlags => Errno::INVAL,
            Self::NotDirectory => Errno::NOTDIR,
            Self::IsDirectory => Errno::ISDIR,
            Self::Exists => Errno::EXIST,
            Self::NotEmpty => Errno::NOTEMPTY,
            Self::LowerDirectory => Errno::XDEV,
            Self::NotPermitted => Errno::PERM,
            Self::ReadOnly => Errno::ROFS,
            Self::NoAttribute => Errno::NODATA,
            Self::Stale => Errno::STALE,
            Self::BadHandle => Errno::BADF,
            Self::Running => Errno::TXTBSY,
            // The kernel says so of a redirect or metacopy mark that it may not follow.
            Self::Unsupported(_) => Errno::PERM,
            Self::Layer { source, .. } => *source,
        }
    }
}

/// Attaches what was being done to a failed system call.
pub(crate) trait Context<T> {
    /// Names it, as a verb.
    fn at(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Layer { what, source })
    }
}
