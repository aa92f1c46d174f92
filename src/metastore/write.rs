//! The calls that change rows: create, settle, commit, remove, labels.

use rusqlite::{ErrorCode, OptionalExtension, params};

use super::row::{Place, Placement, Row};
use super::transaction::Transaction;
use super::{Metastore, Wait, find, key_exists};
use crate::error::{Error, Result};
use crate::snapshot::{Kind, Labels, Time, Usage};

/// A snapshot to be recorded.
#[derive(Debug)]
pub(crate) struct NewSnapshot<'a> {
    /// Number of its directory, allocated before.
    pub id: u64,
    /// Plugin name.
    pub snapshotter: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Name of a committed snapshot, or empty.
    pub parent: &'a str,
    /// Number of the parent that was looked at.
    pub parent_id: Option<u64>,
    /// Active or view.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'a Labels,
    /// Where its files lie.
    pub placement: &'a Placement,
    /// True if its upper is a retained one of the same number, which this takes back.
    pub resumes: bool,
    /// Whether others may be waited for.
    pub wait: Wait,
}

/// An active snapshot to be made immutable.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// Number of the active snapshot whose files were looked at.
    pub(crate) id: u64,
    /// Plugin name.
    pub snapshotter: &'a str,
    /// Key of the active snapshot.
    pub key: &'a str,
    /// Name it gets.
    pub name: &'a str,
    /// Labels that replace its own.
    pub labels: &'a Labels,
    /// Parent for a parentless one, or its own; empty for no request.
    pub parent: &'a str,
    /// Space it takes.
    pub usage: Usage,
    /// The current boot, if its data is yet to be made durable.
    pub unsynced_boot: Option<&'a str>,
}

/// Bytes of labels a snapshot can have: containerd takes messages of 16 MiB.
const LABELS_MAX: usize = (16 << 20) - (64 << 10);

/// What Remove does with the files.
#[derive(Debug)]
pub(crate) enum Removal<'a> {
    /// Leaves them to be deleted.
    Discard,
    /// Keeps them for a later snapshot on the same chain.
    Retain {
        /// containerd's namespace.
        namespace: &'a str,
        /// Name they can be found by.
        name: &'a str,
        /// Identities of the layers below, top first.
        chain: &'a [String],
    },
    /// Has none to care for: they belong to a volume or to another snapshot.
    Leave,
}

impl Metastore {
    /// The largest number ever given to a snapshot.
    pub(crate) fn last_id(&self) -> Result<u64> {
        self.read(|tx| {
            let query = "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'), 0),
                                    coalesce((SELECT max(id) FROM snapshots), 0),
                                    coalesce((SELECT max(id) FROM retained), 0),
                                    coalesce((SELECT max(id) FROM garbage), 0))";
            Ok(tx.query_row(query, [], |row| row.get(0))?)
        })
    }

    /// Records a new snapshot.
    pub(crate) fn create(&self, new: &NewSnapshot<'_>) -> Result<()> {
        let now = Time::now();
        self.write_if(new.wait, |tx| {
            if new.resumes && tx.execute("DELETE FROM retained WHERE id = ?1", params![new.id])? == 0 {
                return Err(Error::FailedPrecondition(format!(
                    "retained upper {} has been taken by another snapshot",
                    new.id
                )));
            }
            let (placement, volume_dir) = new.placement.place.columns();
            let mut insert = tx.prepare_cached(
                "INSERT INTO snapshots (id, snapshotter, key, kind, parent, created, updated, labels,
                                        store, placement, volume_dir, reason, retain, volatile_boot, fresh)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14
                 WHERE ?15 = '' AND ?5 IS NULL
                    OR ?5 = (SELECT id FROM snapshots WHERE snapshotter = ?2 AND key = ?15 AND kind = 'committed')",
            )?;
            let inserted = insert.execute(params![
                new.id,
                new.snapshotter,
                new.key,
                new.kind.as_str(),
                new.parent_id,
                now.0,
                to_json(new.labels),
                new.placement.store,
                placement,
                volume_dir,
                new.placement.reason,
                new.placement.retain,
                new.placement.volatile_boot,
                !new.resumes,
                new.parent,
            ]);
            match inserted {
                Ok(0) => Err(refusal(tx, new)?.unwrap_or_else(|| replaced(new.parent))),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    Err(refusal(tx, new)?.unwrap_or(Error::Database(error)))
                }
                other => Ok(other.map(drop)?),
            }
        })
    }

    /// Fixes the place of a pending snapshot; on a volume, any other snapshot there becomes `moved`.
    pub(crate) fn settle(&self, id: u64, placement: &Placement) -> Result<()> {
        self.write(|tx| {
            let (word, volume_dir) = placement.place.columns();
            if let Some(directory) = volume_dir {
                refuse_layer(tx, directory)?;
                tx.execute(
                    "UPDATE snapshots SET placement = 'moved' WHERE volume_dir = ?1 AND id <> ?2",
                    params![directory, id],
                )?;
            }
            let changed = tx.execute(
                "UPDATE snapshots SET store = ?2, placement = ?3, volume_dir = ?4, reason = ?5, retain = ?6,
                     volatile_boot = ?7
                 WHERE id = ?1 AND kind = 'active' AND placement = 'pending'",
                params![
                    id,
                    placement.store,
                    word,
                    volume_dir,
                    placement.reason,
                    placement.retain,
                    placement.volatile_boot
                ],
            )?;
            if changed == 0 {
                return Err(Error::FailedPrecondition(format!("snapshot {id} was settled or removed meanwhile")));
            }
            Ok(())
        })
    }

    /// Makes an active snapshot immutable under its new name.
    pub(crate) fn commit(&self, commit: &Commit<'_>) -> Result<()> {
        let now = Time::now();
        self.write(|tx| {
            let row = self::committable(tx, commit.snapshotter, commit.key, commit.name, commit.parent)?;
            if row.id != commit.id {
                return Err(replaced(commit.key));
            }
            let parent = match row.parent {
                Some(parent) => Some(parent),
                None => adopted_parent(tx, commit.snapshotter, commit.parent)?,
            };
            tx.prepare_cached(
                "UPDATE snapshots SET key = ?2, kind = 'committed', parent = ?3, created = ?4, updated = ?4,
                     labels = ?5, bytes = ?6, inodes = ?7, unsynced_boot = ?8, retain = 0, volatile_boot = NULL,
                     fresh = 0
                 WHERE id = ?1",
            )?
            .execute(params![
                row.id,
                commit.name,
                parent,
                now.0,
                to_json(commit.labels),
                commit.usage.bytes,
                commit.usage.inodes,
                commit.unsynced_boot,
            ])?;
            Ok(())
        })
    }

    /// Checks what Commit checks, without changing anything; the answer may be out of date at once.
    pub(crate) fn check_commit(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
        parent: &str,
    ) -> Result<Row> {
        self.read(|tx| committable(tx, snapshotter, key, name, parent))
    }

    /// Refuses a directory on a volume that holds a committed layer, as settling there would.
    pub(crate) fn check_no_layer(&self, directory: &str) -> Result<()> {
        self.read(|tx| refuse_layer(tx, directory))
    }

    /// Forgets a snapshot, provided that it is still the one numbered `id`.
    pub(crate) fn remove(&self, row: &Row, removal: &Removal<'_>) -> Result<()> {
        self.write(|tx| {
            let current =
                find(tx, &row.snapshotter, &row.info.name)?.filter(|found| found.id == row.id);
            let current = current.ok_or_else(|| Error::no_snapshot(&row.info.name))?;
            refuse_children(tx, &current)?;
            if current.placement.place != row.placement.place {
                // What is to become of its files was decided for another place.
                return Err(Error::FailedPrecondition(format!(
                    "snapshot {:?} was given a place meanwhile; try again",
                    row.info.name
                )));
            }
            forget(tx, &current, removal)
        })
    }

    /// Forgets a snapshot and leaves its files to be deleted, if `agrees` to that; returns its number.
    pub(crate) fn discard(
        &self,
        snapshotter: &str,
        key: &str,
        wait: Wait,
        agrees: impl FnOnce(&Row) -> bool,
    ) -> Result<Option<u64>> {
        self.write_if(wait, |tx| {
            let row = find(tx, snapshotter, key)?.ok_or_else(|| Error::no_snapshot(key))?;
            if !agrees(&row) {
                return Ok(None);
            }
            refuse_children(tx, &row)?;
            forget(tx, &row, &Removal::Discard)?;
            Ok(Some(row.id))
        })
    }

    /// Replaces or edits labels; `edit` gets the current ones.
    pub(crate) fn update_labels(
        &self,
        snapshotter: &str,
        key: &str,
        edit: impl FnOnce(&mut Labels),
    ) -> Result<Row> {
        self.write(|tx| {
            let mut row = find(tx, snapshotter, key)?.ok_or_else(|| Error::no_snapshot(key))?;
            edit(&mut row.info.labels);
            let size: usize = row.info.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
            if size > LABELS_MAX {
                return Err(Error::InvalidArgument(format!(
                    "the labels of snapshot {key:?} would take {size} bytes; {LABELS_MAX} fit in an answer"
                )));
            }
            row.info.labels.retain(|_, value| !value.is_empty());
            row.info.updated = Time::now();
            tx.prepare_cached("UPDATE snapshots SET labels = ?2, updated = ?3 WHERE id = ?1")?
                .execute(params![row.id, to_json(&row.info.labels), row.info.updated.0])?;
            Ok(row)
        })
    }

    /// Committed snapshots whose data is not known to be on disk: number, boot of their Commit.
    pub(crate) fn unsynced(&self) -> Result<Vec<(u64, String)>> {
        self.read(|tx| {
            let mut statement = tx.prepare_cached(
                "SELECT id, unsynced_boot FROM snapshots WHERE unsynced_boot IS NOT NULL",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Records that the data of these snapshots will never be on disk.
    pub(crate) fn mark_lost(&self, ids: &[u64]) -> Result<()> {
        self.write(|tx| {
            let mut statement =
                tx.prepare_cached("UPDATE snapshots SET unsynced_boot = 'lost' WHERE id = ?1")?;
            for id in ids {
                statement.execute(params![id])?;
            }
            Ok(())
        })
    }

    /// Records that the data of these layers, committed in this boot, and the directories of these
    /// uppers are on disk.
    pub(crate) fn mark_synced(&self, layers: &[u64], uppers: &[u64], boot: &str) -> Result<()> {
        self.write(|tx| {
            let mut layer = tx.prepare_cached(
                "UPDATE snapshots SET unsynced_boot = NULL WHERE id = ?1 AND unsynced_boot = ?2",
            )?;
            for id in layers {
                layer.execute(params![id, boot])?;
            }
            let mut upper = tx.prepare_cached("UPDATE snapshots SET fresh = 0 WHERE id = ?1")?;
            for id in uppers {
                upper.execute(params![id])?;
            }
            Ok(())
        })
    }
}

/// Why a new row was not taken.
fn refusal(tx: &Transaction<'_>, new: &NewSnapshot<'_>) -> Result<Option<Error>> {
    let parent = committed_parent(tx, new.snapshotter, new.parent)?;
    if parent != new.parent_id {
        return Ok(Some(replaced(new.parent)));
    }
    let exists = key_exists(tx, new.snapshotter, new.key)?;
    Ok(exists.then(|| Error::AlreadyExists(new.key.to_owned())))
}

/// Finds the parent a new snapshot asks for.
pub(super) fn committed_parent(
    tx: &Transaction<'_>,
    snapshotter: &str,
    name: &str,
) -> Result<Option<u64>> {
    find_parent(tx, snapshotter, name, Error::InvalidArgument)
}

/// Finds the parent that Commit asks for.
fn adopted_parent(tx: &Transaction<'_>, snapshotter: &str, name: &str) -> Result<Option<u64>> {
    find_parent(tx, snapshotter, name, Error::FailedPrecondition)
}

/// Finds a parent; `refuse` is what one that is not committed is answered with.
fn find_parent(
    tx: &Transaction<'_>,
    snapshotter: &str,
    name: &str,
    refuse: fn(String) -> Error,
) -> Result<Option<u64>> {
    match parent_kind(tx, snapshotter, name)? {
        None => Ok(None),
        Some((id, Kind::Committed)) => Ok(Some(id)),
        Some((_, kind)) => Err(refuse(format!(
            "parent {name:?} is not a committed snapshot but {}",
            with_article(kind)
        ))),
    }
}

fn parent_kind(tx: &Transaction<'_>, snapshotter: &str, name: &str) -> Result<Option<(u64, Kind)>> {
    if name.is_empty() {
        return Ok(None);
    }
    let mut statement =
        tx.prepare_cached("SELECT id, kind FROM snapshots WHERE snapshotter = ?1 AND key = ?2")?;
    let found = statement
        .query_row(params![snapshotter, name], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    let (id, kind) = found.ok_or_else(|| Error::NotFound(format!("parent snapshot {name:?}")))?;
    let kind = Kind::parse(&kind)
        .ok_or_else(|| Error::BadRow { id, problem: format!("kind {kind:?}") })?;
    Ok(Some((id, kind)))
}

/// The checks of Commit, in containerd's order.
fn committable(
    tx: &Transaction<'_>,
    snapshotter: &str,
    key: &str,
    name: &str,
    parent: &str,
) -> Result<Row> {
    let row = find(tx, snapshotter, key)?.ok_or_else(|| Error::no_snapshot(key))?;
    if key_exists(tx, snapshotter, name)? {
        return Err(Error::AlreadyExists(name.to_owned()));
    }
    if name.is_empty() {
        return Err(Error::InvalidArgument("the name to commit under is empty".to_owned()));
    }
    if row.info.kind != Kind::Active {
        return Err(Error::FailedPrecondition(format!(
            "snapshot {key:?} is {}; only an active one can be committed",
            with_article(row.info.kind)
        )));
    }
    if let Place::Moved(directory) = &row.placement.place {
        return Err(Error::FailedPrecondition(format!(
            "the upper of snapshot {key:?} in {directory} was taken over by a newer container"
        )));
    }
    if row.parent.is_none() {
        adopted_parent(tx, snapshotter, parent)?;
    } else if !parent.is_empty() && parent != row.info.parent {
        return Err(Error::InvalidArgument(format!(
            "snapshot {key:?} has parent {:?}; it cannot be committed on {parent:?}",
            row.info.parent
        )));
    }
    Ok(row)
}

fn refuse_children(tx: &Transaction<'_>, row: &Row) -> Result<()> {
    let mut statement = tx.prepare_cached("SELECT key FROM snapshots WHERE parent = ?1 LIMIT 1")?;
    let child: Option<String> =
        statement.query_row(params![row.id], |row| row.get(0)).optional()?;
    child.map_or(Ok(()), |child| {
        Err(Error::FailedPrecondition(format!(
            "cannot remove snapshot with child: {:?} is the parent of {child:?}",
            row.info.name
        )))
    })
}

/// Deletes a row that nothing depends on, and notes what becomes of its files.
fn forget(tx: &Transaction<'_>, row: &Row, removal: &Removal<'_>) -> Result<()> {
    tx.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute(params![row.id])?;
    match removal {
        Removal::Leave => Ok(()),
        Removal::Discard => {
            let directory = match &row.placement.place {
                Place::Volume(directory) => Some(directory.as_str()),
                _ => None,
            };
            super::retained::add_garbage(tx, row.id, &row.placement.store, directory)
        }
        Removal::Retain { namespace, name, chain } => {
            super::retained::retain(tx, row, namespace, name, chain)
        }
    }
}

/// What was looked at outside the transaction is another snapshot of the same name by now.
fn replaced(key: &str) -> Error {
    Error::FailedPrecondition(format!("snapshot {key:?} was replaced meanwhile; try again"))
}

/// A committed layer on a volume is nobody's upper any more.
fn refuse_layer(tx: &Transaction<'_>, directory: &str) -> Result<()> {
    let layer: Option<String> = tx
        .query_row(
            "SELECT key FROM snapshots WHERE volume_dir = ?1 AND kind = 'committed'",
            params![directory],
            |row| row.get(0),
        )
        .optional()?;
    layer.map_or(Ok(()), |layer| {
        Err(Error::FailedPrecondition(format!(
            "{directory} holds the committed layer {layer:?}; it cannot be written to any more"
        )))
    })
}

fn with_article(kind: Kind) -> &'static str {
    match kind {
        Kind::View => "a view",
        Kind::Active => "an active one",
        Kind::Committed => "a committed one",
    }
}

fn to_json(labels: &Labels) -> String {
    serde_json::Value::from_iter(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())))
        .to_string()
}
