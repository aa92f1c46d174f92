//! The record of all snapshots, in SQLite: one transaction per call.
//!
//! WAL with `synchronous=FULL`: a call that has answered survives a power failure. One connection
//! writes, a few read; readers never wait for the writer, but use its connection while nobody writes. No
//! call waits for I/O on snapshot directories while it holds a connection. This room checks what must hold
//! at the instant of the write (key free, parent committed, no children); everything else is decided by its callers.

mod open;
mod pace;
mod retained;
mod row;
mod schema;
mod transaction;
mod write;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use self::pace::Pace;
use self::transaction::{Mode, Transaction};

pub(crate) use open::{FILE, OpenError};
pub(crate) use retained::{Counted, Garbage, Retained};
pub(crate) use row::{Layer, Place, Placement, ROOT_STORE, Row};
pub(crate) use write::{Commit, NewSnapshot, Removal};

use crate::error::{Error, Result};

/// How long a change that came in between is waited for by a thread that has better things to do.
const PATIENCE: Duration = Duration::from_millis(10);
/// Most connections kept for reading; more are opened under load and closed again.
const READERS: usize = 4;

/// Whether a change may wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// No longer than one quick change takes: the thread has better things to do.
    Briefly,
    /// It has none.
    AsLongAsItTakes,
}

/// The database below one root.
#[derive(Debug)]
pub(crate) struct Metastore {
    path: PathBuf,
    /// Before the writer, which must be closed last: only it can fold the log into the database.
    readers: Mutex<Vec<Connection>>,
    writer: Mutex<Connection>,
    pace: Pace,
    /// After the connections, see `open::reserve`.
    _index: File,
    /// Last of all: takes the space that the others give back.
    _ballast: open::Ballast,
}

impl Metastore {
    /// Opens the database below `root`, creating it where no snapshots exist yet.
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let path = root.join(FILE);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let (writer, ballast) = open::open(root)?;
        let index = open::reserve(&path).map_err(io)?;
        Ok(Self {
            path,
            readers: Mutex::new(Vec::new()),
            writer: Mutex::new(writer),
            pace: Pace::default(),
            _index: index,
            _ballast: ballast,
        })
    }

    /// True if nobody writes now, and a change takes so little time of late that it is not worth another
    /// thread.
    pub(crate) fn is_quick(&self) -> bool {
        self.pace.is_quick() && !matches!(self.writer.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Finds a snapshot.
    pub(crate) fn get(&self, snapshotter: &str, key: &str) -> Result<Row> {
        self.read_little(|tx| find(tx, snapshotter, key))?.ok_or_else(|| Error::no_snapshot(key))
    }

    /// Finds a snapshot and the layers below it, top first, as of one instant.
    pub(crate) fn get_with_chain(&self, snapshotter: &str, key: &str) -> Result<(Row, Vec<Layer>)> {
        self.read_little(|tx| {
            let row = find(tx, snapshotter, key)?.ok_or_else(|| Error::no_snapshot(key))?;
            let chain = row.parent.map_or(Ok(Vec::new()), |parent| chain(tx, parent))?;
            Ok((row, chain))
        })
    }

    /// Checks that `key` can be created on `parent`, and returns the layers below it, top first.
    ///
    /// The answer may be out of date at once: `create` checks again.
    pub(crate) fn check_new(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Layer>> {
        self.read_little(|tx| {
            let parent = write::committed_parent(tx, snapshotter, parent)?;
            if key_exists(tx, snapshotter, key)? {
                return Err(Error::AlreadyExists(key.to_owned()));
            }
            parent.map_or(Ok(Vec::new()), |parent| chain(tx, parent))
        })
    }

    /// The layers from snapshot `top` down, `top` first.
    pub(crate) fn chain_from(&self, top: u64) -> Result<Vec<Layer>> {
        self.read_little(|tx| chain(tx, top))
    }

    /// Hands every snapshot of one plugin name, or of all, to `each`, in byte order of the keys.
    ///
    /// The rows are those of one instant. `each` must be quick: a reading connection is held.
    pub(crate) fn for_each(
        &self,
        snapshotter: Option<&str>,
        mut each: impl FnMut(Row) -> Result<()>,
    ) -> Result<()> {
        self.read(|tx| {
            let query = format!(
                "SELECT {} FROM {} WHERE ?1 IS NULL OR s.snapshotter = ?1 ORDER BY s.snapshotter, s.key",
                row::COLUMNS,
                row::TABLES
            );
            let mut statement = tx.prepare_cached(&query)?;
            let mut rows = statement.query(params![snapshotter])?;
            while let Some(row) = rows.next()? {
                each(Row::read(row)?)?;
            }
            Ok(())
        })
    }

    /// A fact about this root, set once: returns the stored value, storing `initial` if there is none.
    pub(crate) fn node_fact(&self, key: &str, initial: &str) -> Result<String> {
        self.write(|tx| {
            tx.execute(
                "INSERT OR IGNORE INTO node (key, value) VALUES (?1, ?2)",
                params![key, initial],
            )?;
            Ok(tx.query_row("SELECT value FROM node WHERE key = ?1", params![key], |row| {
                row.get(0)
            })?)
        })
    }

    /// The identity a store had when it was first used, storing `initial` if it never was.
    pub(crate) fn store_uuid(&self, name: &str, initial: Option<&str>) -> Result<Option<String>> {
        let stored = |tx: &Transaction<'_>| {
            let query = "SELECT uuid FROM stores WHERE name = ?1";
            Ok(tx.query_row(query, params![name], |row| row.get(0)).optional()?)
        };
        let Some(uuid) = initial else { return self.read(stored) };
        self.write(|tx| {
            tx.execute(
                "INSERT OR IGNORE INTO stores (name, uuid) VALUES (?1, ?2)",
                params![name, uuid],
            )?;
            stored(tx)
        })
    }

    /// The name under which the store of this identity was used.
    pub(crate) fn store_name(&self, uuid: &str) -> Result<Option<String>> {
        self.read(|tx| {
            let query = "SELECT name FROM stores WHERE uuid = ?1";
            Ok(tx.query_row(query, params![uuid], |row| row.get(0)).optional()?)
        })
    }

    /// Records a store's identity, which a store that is not used any more may have had.
    pub(crate) fn claim_store(&self, name: &str, uuid: &str, former: Option<&str>) -> Result<()> {
        self.write(|tx| {
            tx.execute("DELETE FROM stores WHERE name = ?1", params![former])?;
            tx.execute("INSERT INTO stores (name, uuid) VALUES (?1, ?2)", params![name, uuid])?;
            Ok(())
        })
    }

    /// Reads little, in one transaction.
    ///
    /// The writer, where it is free, has in memory what it wrote, which every other connection has to
    /// read again after each change.
    fn read_little<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        match self.writer.try_lock() {
            Ok(mut connection) => look(&mut connection, work),
            Err(_) => self.read(work),
        }
    }

    /// Runs `work` in a read transaction.
    fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = match lock(&self.readers).pop() {
            Some(connection) => connection,
            None => open::connect(&self.path, true)?,
        };
        let result = look(&mut connection, work);
        let mut readers = lock(&self.readers);
        if readers.len() < READERS {
            readers.push(connection);
        }
        result
    }

    /// Runs `work` in the one write transaction; nothing of it stays if it fails.
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let written = change(&mut lock(&self.writer), work);
        self.pace.note(began.elapsed());
        written
    }

    /// The same, as far as `wait` allows: `Error::WouldWait` while others go on writing.
    fn write_if<T>(
        &self,
        wait: Wait,
        work: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        if wait == Wait::AsLongAsItTakes {
            return self.write(work);
        }
        let began = Instant::now();
        let mut connection = self.writer_within(PATIENCE).ok_or(Error::WouldWait)?;
        connection.busy_timeout(PATIENCE)?;
        let written = change(&mut connection, work);
        connection.busy_timeout(open::BUSY)?;
        self.pace.note(began.elapsed());
        match written {
            // Another program has the database.
            Err(Error::Database(error))
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
            {
                Err(Error::WouldWait)
            }
            other => other,
        }
    }

    fn writer_within(&self, patience: Duration) -> Option<MutexGuard<'_, Connection>> {
        let began = Instant::now();
        loop {
            match self.writer.try_lock() {
                Ok(connection) => return Some(connection),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if began.elapsed() > patience => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(patience / 50),
            }
        }
    }
}

fn look<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let tx = Transaction::begin(connection, Mode::Read)?;
    work(&tx)
}

fn change<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let tx = Transaction::begin(connection, Mode::Write)?;
    let value = work(&tx)?;
    crate::crash::point("metastore: before commit");
    tx.commit()?;
    crate::crash::point("metastore: after commit");
    Ok(value)
}

/// A panic while a connection was held leaves no broken state: its transaction was rolled back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_exists(tx: &Transaction<'_>, snapshotter: &str, key: &str) -> Result<bool> {
    let mut statement = tx.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM snapshots WHERE snapshotter = ?1 AND key = ?2)",
    )?;
    Ok(statement.query_row(params![snapshotter, key], |row| row.get(0))?)
}

fn find(tx: &Transaction<'_>, snapshotter: &str, key: &str) -> Result<Option<Row>> {
    let query = format!(
        "SELECT {} FROM {} WHERE s.snapshotter = ?1 AND s.key = ?2",
        row::COLUMNS,
        row::TABLES
    );
    let mut statement = tx.prepare_cached(&query)?;
    let mut rows = statement.query(params![snapshotter, key])?;
    rows.next()?.map(Row::read).transpose()
}

fn chain(tx: &Transaction<'_>, top: u64) -> Result<Vec<Layer>> {
    let mut statement = tx.prepare_cached(
        "WITH RECURSIVE chain (depth, id) AS (
             VALUES (0, ?1)
             UNION ALL
             SELECT depth + 1, s.parent FROM chain JOIN snapshots s USING (id) WHERE s.parent IS NOT NULL
         )
         SELECT s.id, s.key, s.store, s.unsynced_boot FROM chain JOIN snapshots s USING (id) ORDER BY depth",
    )?;
    let layers = statement.query_map(params![top], |row| {
        Ok(Layer {
            id: row.get(0)?,
            name: row.get(1)?,
            store: row.get(2)?,
            unsynced_boot: row.get(3)?,
        })
    })?;
    Ok(layers.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
