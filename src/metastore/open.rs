//! Opening the database: never overwrite what might be somebody's only record.
//!
//! A database that is damaged, newer, foreign, or missing beside existing snapshots is refused with
//! the way out. Only a root without snapshots gets a new one.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FallocateFlags, IFlags};

use super::schema;
use crate::layout;

/// Name of the database below the root.
pub(crate) const FILE: &str = "metadata.db";

/// Twice what the log holds before it is folded into the database.
const LOG_RESERVE: u64 = 8 << 20;
/// The first part of the log's index, which is enough for that.
const INDEX: u64 = 32 << 10;

/// How long a call waits for another process, such as `sqlite3`, that holds the database.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its content is not a sound database.
    #[error(
        "{}: the metadata database is damaged: {problem}. Nothing was changed. Way out: stop Overstream, then \
         restore the file from a backup, or try `sqlite3 metadata.db .recover`; if neither helps, move the whole \
         root directory aside and pull the images again", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        problem: String,
    },
    /// A later version of Overstream wrote it.
    #[error(
        "{}: the metadata database has version {found}, this Overstream knows versions up to {known}. Nothing was \
         changed. Way out: run the newer Overstream again", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// It belongs to another program.
    #[error("{}: this is a database of another program. Way out: choose another root directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There are snapshots, but no database that knows them.
    #[error(
        "{}: the metadata database is missing or empty, but {} holds snapshots. Nothing was changed. Way out: \
         restore the database from a backup, or move the snapshots directory aside to start anew",
        path.display(), snapshots.display()
    )]
    Missing {
        /// Where the file should be.
        path: PathBuf,
        /// The directory that is not empty.
        snapshots: PathBuf,
    },
    /// The file or directory cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// SQLite failed for another reason.
    #[error("{}: {source}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// How it failed.
        source: rusqlite::Error,
    },
}

/// Keeps the space of the log and its index while nobody serves the root, and so has no log.
///
/// Whoever opens the database can then do so on a disk that was filled meanwhile, to make room.
#[derive(Debug)]
pub(super) struct Ballast(PathBuf);

impl Ballast {
    /// Gives the space back; it is kept again when this is dropped, which must be after the connections.
    pub(super) fn lift(database: &Path) -> std::io::Result<Self> {
        let path = database.with_extension("db-ballast");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0);
        let kept = made.and_then(|file| {
            Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, LOG_RESERVE + 4 * INDEX)?)
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot keep space for the next start");
        }
    }
}

/// Opens the database below `root`, creating or migrating it where that is safe.
pub(super) fn open(root: &Path) -> Result<(Connection, Ballast), OpenError> {
    let path = root.join(FILE);
    let lift =
        || Ballast::lift(&path).map_err(|source| OpenError::Io { path: path.clone(), source });
    match open_once(root) {
        // What is refused is left as it is; this may be for lack of space.
        Err(OpenError::Sqlite { .. }) => {
            let ballast = lift()?;
            drop_stub(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
            sync(root).map_err(|source| OpenError::Io { path: root.to_owned(), source })?;
            Ok((open_once(root)?, ballast))
        }
        opened => Ok((opened?, lift()?)),
    }
}

/// Empties an index that SQLite cut to a stub and then found no space to make anew.
///
/// On btrfs the stub keeps the space of the whole. Of an index that somebody uses more is left.
fn drop_stub(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).open(path.with_extension("db-shm")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        index => {
            let index = index?;
            if index.metadata()?.len() < INDEX { index.set_len(0) } else { Ok(()) }
        }
    }
}

/// Makes space usable that was freed just now: on btrfs nobody gets it before.
fn sync(root: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?)?)
}

fn open_once(root: &Path) -> Result<Connection, OpenError> {
    let path = root.join(FILE);
    create_if_unused(root, &path)?;
    let (version, _look) = look(&path)?;
    if version == 0 {
        // A copy made without its write-ahead log looks like this, too.
        refuse_if_used(root, &path)?;
    }
    make_log_files(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
    let write_error = |error| explain(&path, error);
    let mut connection = connect(&path, false).map_err(write_error)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(write_error)?;
    crate::crash::point("start: write-ahead log on");
    schema::migrate(&mut connection, version).map_err(write_error)?;
    // The first access makes the log and its index.
    connection.query_row("SELECT count(*) FROM node", [], |_| Ok(())).map_err(write_error)?;
    Ok(connection)
}

/// Makes the log and its index as files that are overwritten in place, where they do not exist yet.
///
/// btrfs otherwise wants new space for every write, reserved or not.
fn make_log_files(path: &Path) -> std::io::Result<()> {
    for extension in ["db-shm", "db-wal"] {
        let mut options = OpenOptions::new();
        let made =
            options.write(true).create_new(true).mode(0o600).open(path.with_extension(extension));
        match made {
            Ok(file) => {
                if let Err(error) = rustix::fs::ioctl_setflags(&file, IFlags::NOCOW) {
                    tracing::debug!(%error, extension, "cannot be overwritten in place");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives the log and its index their space in advance, so that a full disk cannot keep anyone from
/// removing snapshots.
///
/// SQLite maps the index. Where the file system's blocks are smaller than a page it leaves holes in it,
/// and filling one on a full disk kills the process. The returned file must outlive all connections:
/// closing it gives up the locks that SQLite holds on the index.
pub(super) fn reserve(path: &Path) -> std::io::Result<File> {
    let open = |extension| OpenOptions::new().write(true).open(path.with_extension(extension));
    let log = open("db-wal")?;
    let index = open("db-shm")?;
    let reserve = || -> std::io::Result<()> {
        rustix::fs::fallocate(&index, FallocateFlags::empty(), 0, INDEX)?;
        Ok(rustix::fs::fallocate(&log, FallocateFlags::KEEP_SIZE, 0, LOG_RESERVE)?)
    };
    let root = path.parent().unwrap_or(path);
    if let Err(error) = reserve().or_else(|_| sync(root).and_then(|()| reserve())) {
        tracing::warn!(%error, "cannot reserve space for the database's log: on a full disk, removing may fail");
    }
    Ok(index)
}

/// Opens one more connection to a database that is open already.
pub(super) fn connect(path: &Path, read_only: bool) -> rusqlite::Result<Connection> {
    let access = if read_only {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE
    };
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // 512 KiB per connection: the rows of ten thousand snapshots stay in the page cache anyway.
    connection.pragma_update(None, "cache_size", -512)?;
    // With STAT4, which the bundled SQLite has, a statement is otherwise prepared anew for every value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(48);
    Ok(connection)
}

fn create_if_unused(root: &Path, path: &Path) -> Result<(), OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    refuse_if_used(root, path)?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io(path))?;
    crate::crash::point("start: database file made");
    File::open(root).and_then(|directory| directory.sync_all()).map_err(io(root))
}

/// Refuses a root that holds snapshots: a new database would make garbage of them.
fn refuse_if_used(root: &Path, path: &Path) -> Result<(), OpenError> {
    let snapshots = layout::snapshots(root);
    match fs::read_dir(&snapshots).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Missing { path: path.to_owned(), snapshots }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(OpenError::Io { path: snapshots, source }),
    }
}

/// Returns the database's version, or refuses it without having written to it.
///
/// Also what keeps the log's index as it is now: the first to open it makes it anew, with new space.
fn look(path: &Path) -> Result<(usize, Option<Connection>), OpenError> {
    // A connection that may write would fold a dead daemon's log into a database that is refused; one
    // that may not leaves files behind where there is no log.
    let log = path.with_extension("db-wal");
    let read_only = fs::metadata(log).is_ok_and(|log| log.len() > 0);
    let connection = connect(path, read_only).map_err(|error| explain(path, error))?;
    let version = check(path, &connection)?;
    Ok((version, read_only.then_some(connection)))
}

fn check(path: &Path, connection: &Connection) -> Result<usize, OpenError> {
    let explain = |error| explain(path, error);
    let pragma = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(explain)
    };
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(explain)?;
    if tables == 0 && version == 0 {
        return Ok(0);
    }
    if application != i64::from(schema::APPLICATION_ID) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > schema::VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: version,
            known: schema::VERSION,
        });
    }
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(explain)?;
    if verdict != "ok" {
        return Err(OpenError::Damaged { path: path.to_owned(), problem: verdict });
    }
    Ok(version)
}

fn explain(path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            OpenError::Damaged { path, problem: error.to_string() }
        }
        _ => OpenError::Sqlite { path, source: error },
    }
}
