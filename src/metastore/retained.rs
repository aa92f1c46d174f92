//! Rows of what outlives a snapshot: retained uppers, and garbage waiting to be deleted.

use rusqlite::{OptionalExtension, Row as SqlRow, params};

use super::Metastore;
use super::row::{ROOT_STORE, Row};
use super::transaction::Transaction;
use crate::error::{Error, Result};
use crate::snapshot::{Kind, Time};

/// An upper that outlived its snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retained {
    /// Number of its directory.
    pub id: u64,
    /// Plugin name it belonged to.
    pub snapshotter: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Name it is found by.
    pub name: String,
    /// Name of its store.
    pub store: String,
    /// Identities of the layers it belongs on, top first.
    pub chain: Vec<String>,
    /// When its snapshot was removed.
    pub removed: Time,
}

/// A directory whose snapshot is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Garbage {
    /// Number of the snapshot it belonged to.
    pub id: u64,
    /// Name of its store.
    pub store: String,
    /// Its directory, on a volume.
    pub volume_dir: Option<String>,
}

const RETAINED: &str =
    "SELECT id, snapshotter, namespace, name, store, chain, removed FROM retained";

impl Metastore {
    /// All retained uppers, newest first.
    pub(crate) fn retained(&self) -> Result<Vec<Retained>> {
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached(&format!("{RETAINED} ORDER BY removed DESC, id DESC"))?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(Retained::read(row)?);
            }
            Ok(all)
        })
    }

    /// The retained upper with this name (the newest), or with this number.
    pub(crate) fn find_retained(
        &self,
        snapshotter: &str,
        namespace: &str,
        name: &str,
        id: Option<u64>,
    ) -> Result<Option<Retained>> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(&format!(
                "{RETAINED} WHERE snapshotter = ?1 AND namespace = ?2 AND name = ?3 AND (?4 IS NULL OR id = ?4)
                 ORDER BY removed DESC, id DESC LIMIT 1"
            ))?;
            let mut rows = statement.query(params![snapshotter, namespace, name, id])?;
            rows.next()?.map(Retained::read).transpose()
        })
    }

    /// Gives up a retained upper: its files become garbage.
    pub(crate) fn discard_retained(&self, id: u64) -> Result<()> {
        self.write(|tx| {
            let store: Option<String> = tx
                .query_row("SELECT store FROM retained WHERE id = ?1", params![id], |row| {
                    row.get(0)
                })
                .optional()?;
            let store = store.ok_or_else(|| Error::NotFound(format!("retained upper {id}")))?;
            tx.execute("DELETE FROM retained WHERE id = ?1", params![id])?;
            add_garbage(tx, id, &store, None)
        })
    }

    /// Everything waiting to be deleted.
    pub(crate) fn garbage(&self) -> Result<Vec<Garbage>> {
        self.read(|tx| {
            let mut statement =
                tx.prepare_cached("SELECT id, store, volume_dir FROM garbage ORDER BY id")?;
            let rows = statement.query_map([], |row| {
                Ok(Garbage { id: row.get(0)?, store: row.get(1)?, volume_dir: row.get(2)? })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Notes a directory in a store as garbage.
    pub(crate) fn note_garbage(&self, id: u64, store: &str) -> Result<()> {
        self.write(|tx| add_garbage(tx, id, store, None))
    }

    /// Forgets garbage that has been deleted.
    pub(crate) fn forget_garbage(&self, deleted: &[Garbage]) -> Result<()> {
        if deleted.is_empty() {
            return Ok(());
        }
        self.write(|tx| {
            let mut statement = tx.prepare_cached(
                "DELETE FROM garbage WHERE id = ?1 AND store = ?2 AND volume_dir IS ?3",
            )?;
            for garbage in deleted {
                statement.execute(params![garbage.id, garbage.store, garbage.volume_dir])?;
            }
            Ok(())
        })
    }

    /// Numbers of all directories that a row still needs, in one store.
    ///
    /// The root holds links to all layers. A pending snapshot may have got as far as its directory in
    /// whichever store it was about to be settled in.
    pub(crate) fn live_ids(&self, store: &str) -> Result<std::collections::HashSet<u64>> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT id FROM snapshots
                 WHERE store = ?1 OR placement = 'pending' OR (?1 = ?2 AND kind = 'committed')
                 UNION SELECT id FROM retained WHERE store = ?1",
            )?;
            let ids = statement.query_map(params![store, ROOT_STORE], |row| row.get(0))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// How much of what there is in each store, as of one instant; nothing for what there is none of.
    pub(crate) fn counts(&self) -> Result<Vec<Count>> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT store, kind, count(*) FROM snapshots GROUP BY store, kind
                 UNION ALL SELECT store, 'retained', count(*) FROM retained GROUP BY store
                 UNION ALL SELECT store, 'garbage', count(*) FROM garbage GROUP BY store",
            )?;
            let rows = statement.query_map([], |row| {
                let what: String = row.get(1)?;
                let counted = match (Kind::parse(&what), what.as_str()) {
                    (Some(kind), _) => Counted::Snapshots(kind),
                    (None, "retained") => Counted::Retained,
                    (None, _) => Counted::Garbage,
                };
                Ok((row.get(0)?, counted, row.get(2)?))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Stores that rows refer to, with how many snapshots and retained uppers each has.
    pub(crate) fn stores_in_use(&self) -> Result<Vec<(String, u64)>> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT store, count(*) FROM (SELECT store FROM snapshots UNION ALL SELECT store FROM retained)
                 GROUP BY store ORDER BY store",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// One line of `Metastore::counts`: a store, what is counted, and how many.
pub(crate) type Count = (String, Counted, u64);

/// What is counted in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Snapshots of one kind.
    Snapshots(Kind),
    /// Retained uppers.
    Retained,
    /// Directories waiting to be deleted.
    Garbage,
}

impl Retained {
    fn read(row: &SqlRow<'_>) -> Result<Self> {
        let id = row.get(0)?;
        let chain: String = row.get(5)?;
        Ok(Self {
            id,
            snapshotter: row.get(1)?,
            namespace: row.get(2)?,
            name: row.get(3)?,
            store: row.get(4)?,
            chain: serde_json::from_str(&chain)
                .map_err(|error| Error::BadRow { id, problem: format!("chain: {error}") })?,
            removed: Time(row.get(6)?),
        })
    }
}

pub(super) fn retain(
    tx: &Transaction<'_>,
    row: &Row,
    namespace: &str,
    name: &str,
    chain: &[String],
) -> Result<()> {
    let chain = serde_json::Value::from_iter(chain.iter().map(String::as_str)).to_string();
    tx.execute(
        "INSERT INTO retained (id, snapshotter, namespace, name, store, chain, removed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            row.id,
            row.snapshotter,
            namespace,
            name,
            row.placement.store,
            chain,
            Time::now().0
        ],
    )?;
    Ok(())
}

pub(super) fn add_garbage(
    tx: &Transaction<'_>,
    id: u64,
    store: &str,
    volume_dir: Option<&str>,
) -> Result<()> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO garbage (id, store, volume_dir) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![id, store, volume_dir])?;
    Ok(())
}
