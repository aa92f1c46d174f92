//! Transactions whose BEGIN, COMMIT and ROLLBACK are prepared once per connection.

use std::ops::Deref;

use rusqlite::Connection;

/// How a transaction begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    /// With the first statement, to read only.
    Read,
    /// At once, as the only one that writes.
    Write,
}

/// A transaction under way; rolled back unless it is committed.
#[derive(Debug)]
pub(super) struct Transaction<'a>(&'a Connection);

impl<'a> Transaction<'a> {
    /// Begins; the exclusive borrow keeps a second one off the connection.
    pub(super) fn begin(connection: &'a mut Connection, mode: Mode) -> rusqlite::Result<Self> {
        let begin = match mode {
            Mode::Read => "BEGIN DEFERRED",
            Mode::Write => "BEGIN IMMEDIATE",
        };
        connection.prepare_cached(begin)?.execute([])?;
        Ok(Self(connection))
    }

    /// Makes durable what was written.
    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // Committed, or rolled back by SQLite because the disk is full or failed.
        if self.0.is_autocommit() {
            return;
        }
        let rolled_back = self.0.prepare_cached("ROLLBACK").and_then(|mut end| end.execute([]));
        if let Err(error) = rolled_back {
            tracing::error!(%error, "cannot roll back a transaction");
        }
    }
}
