//! The database's tables, and the migrations that lead to them.
//!
//! `user_version` counts the migrations applied; `application_id` marks the file as ours. A migration
//! is one transaction and is never edited once released: a change is a further entry.

use rusqlite::{Connection, TransactionBehavior};

/// "OVST", so that `file` and we know the database for ours.
pub(crate) const APPLICATION_ID: i32 = 0x4f56_5354;

/// All migrations, oldest first.
const MIGRATIONS: &[&str] = &[V1];

/// Version a database has after all migrations.
pub(crate) const VERSION: usize = MIGRATIONS.len();

const V1: &str = r"
-- One row per snapshot that containerd may ask for. `id` names its directory and is never used again.
CREATE TABLE snapshots (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    snapshotter    TEXT NOT NULL,
    key            TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    parent         INTEGER REFERENCES snapshots (id),
    created        INTEGER NOT NULL,          -- nanoseconds since 1970
    updated        INTEGER NOT NULL,
    labels         TEXT NOT NULL,             -- JSON object of strings
    bytes          INTEGER NOT NULL DEFAULT 0,-- usage as of Commit
    inodes         INTEGER NOT NULL DEFAULT 0,
    store          TEXT NOT NULL,             -- 'root' or a store of the configuration
    placement      TEXT NOT NULL CHECK (placement IN ('placed', 'pending', 'moved')),
    volume_dir     TEXT,                      -- volume stores: the upper's directory
    reason         TEXT NOT NULL,             -- what decided the placement, for people
    retain         INTEGER NOT NULL,          -- Remove keeps the upper
    volatile_boot  TEXT,                      -- volatile upper: the boot it is valid in
    unsynced_boot  TEXT,                      -- committed in this boot, not yet known to be on disk
    fresh          INTEGER NOT NULL,          -- 1: its directories are not yet known to be on disk
    UNIQUE (snapshotter, key)
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshots_volume ON snapshots (volume_dir) WHERE volume_dir IS NOT NULL;
CREATE INDEX snapshots_unsynced ON snapshots (unsynced_boot) WHERE unsynced_boot IS NOT NULL;

-- Uppers that outlived their snapshots: invisible to containerd, whose garbage collector removes
-- what it does not know.
CREATE TABLE retained (
    id             INTEGER PRIMARY KEY,
    snapshotter    TEXT NOT NULL,
    namespace      TEXT NOT NULL,
    name           TEXT NOT NULL,             -- the container, as its client named it
    store          TEXT NOT NULL,
    chain          TEXT NOT NULL,             -- JSON array: identities of the layers, top first
    removed        INTEGER NOT NULL
) STRICT;
CREATE INDEX retained_name ON retained (snapshotter, namespace, name);

-- Directories whose snapshot is gone; deleted outside any transaction, then forgotten.
CREATE TABLE garbage (
    id             INTEGER PRIMARY KEY,
    store          TEXT NOT NULL,
    volume_dir     TEXT
) STRICT;

-- Stores seen so far, so that an unmounted disk is not taken for an empty one.
CREATE TABLE stores (
    name           TEXT PRIMARY KEY,
    uuid           TEXT NOT NULL UNIQUE
) STRICT;

-- Facts about this root: 'uuid'.
CREATE TABLE node (
    key            TEXT PRIMARY KEY,
    value          TEXT NOT NULL
) STRICT;
";

/// Applies the migrations a database of `version` lacks.
pub(crate) fn migrate(connection: &mut Connection, version: usize) -> rusqlite::Result<()> {
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", number + 1)?;
        crate::crash::point("start: before migration");
        transaction.commit()?;
        crate::crash::point("start: migrated");
    }
    Ok(())
}
