//! What can go wrong, in the words of the snapshots API.
//!
//! Each variant is one answer a client can act on; `grpc::status` maps them to codes in one match.
//! Messages say what was wrong, where, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a snapshot operation.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is malformed.
    #[error("{0}")]
    InvalidArgument(String),
    /// There is no such snapshot (or retained upper).
    #[error("{0}: not found")]
    NotFound(String),
    /// The key or name is taken.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The snapshot is in a state that forbids the operation.
    #[error("{0}")]
    FailedPrecondition(String),
    /// A store, or containerd, cannot be reached now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// A disk is full or a quota is exhausted.
    #[error("{0}")]
    ResourceExhausted(String),
    /// Files that were committed are not there any more.
    #[error("{0}")]
    DataLoss(String),
    /// The client went away; the work was given up.
    #[error("cancelled by the client")]
    Cancelled,
    /// Others are writing to the metadata database, and this call was not to wait for them.
    #[error("the metadata database is in use; try again")]
    WouldWait,
    /// A system call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: "create".
        what: &'static str,
        /// To which path.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// The metadata database failed.
    #[error("metadata database: {0}")]
    Database(#[from] rusqlite::Error),
    /// A row in the database does not make sense.
    #[error("metadata database: snapshot {id}: {problem}")]
    BadRow {
        /// Number of the snapshot.
        id: u64,
        /// What is wrong with its row.
        problem: String,
    },
}

impl Error {
    /// Reports a failed system call; a full or read-only disk is something a client can wait for.
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let message = || format!("{what} {}: {source}", path.display());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::ResourceExhausted(message())
            }
            io::ErrorKind::ReadOnlyFilesystem => Self::Unavailable(message()),
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }

    /// Reports a key that is not there.
    pub fn no_snapshot(key: &str) -> Self {
        Self::NotFound(format!("snapshot {key:?}"))
    }
}

/// Attaches the action and the path to an I/O error.
pub(crate) trait IoContext<T> {
    /// Names what was being done, as a verb, and to which path.
    fn at(self, what: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn at(self, what: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(what, path, error.into()))
    }
}
