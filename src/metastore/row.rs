//! A snapshot's row: what is stored about it, and how it is read back.

use rusqlite::Row as SqlRow;

use crate::error::{Error, Result};
use crate::snapshot::{Info, Kind, Labels, Time, Usage};

/// Name by which rows refer to the layer store, the daemon's root directory.
pub(crate) const ROOT_STORE: &str = "root";

/// Where a snapshot's files lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the layer store or a store of type `dir`, in the directory of the snapshot's number.
    Store,
    /// On a volume, in this directory.
    Volume(String),
    /// On a volume not known yet: containerd has not told whose container this is.
    Pending,
    /// Nowhere any more: another snapshot took over the upper in this directory.
    Moved(String),
}

/// What decided a snapshot's placement and how its upper is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Name of the store.
    pub store: String,
    /// Where in it.
    pub place: Place,
    /// What decided, for people.
    pub reason: String,
    /// Remove keeps the upper.
    pub retain: bool,
    /// The boot a volatile upper is valid in; nothing for one that is synced as usual.
    pub volatile_boot: Option<String>,
}

/// One snapshot as stored.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Number of its directory.
    pub id: u64,
    /// Plugin name it belongs to.
    pub snapshotter: String,
    /// What its owner sees.
    pub info: Info,
    /// Number of its parent.
    pub parent: Option<u64>,
    /// Usage as of Commit; zero before.
    pub usage: Usage,
    /// Where its files lie.
    pub placement: Placement,
    /// Its directories are not known to be on disk yet: a power failure may take them.
    pub fresh: bool,
}

/// A parent as the mounts and the checks on it need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Number of its directory.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Name of its store.
    pub store: String,
    /// The boot in which it was committed, as long as its data is not known to be on disk.
    pub unsynced_boot: Option<String>,
}

/// Columns `Row::read` expects; `p` is the parent.
pub(super) const COLUMNS: &str = "s.id, s.snapshotter, s.key, s.kind, s.parent, p.key, s.created, s.updated, \
     s.labels, s.bytes, s.inodes, s.store, s.placement, s.volume_dir, s.reason, s.retain, s.volatile_boot, s.fresh";

/// Tables `Row::read` reads from.
pub(super) const TABLES: &str = "snapshots s LEFT JOIN snapshots p ON p.id = s.parent";

impl Row {
    pub(super) fn read(row: &SqlRow<'_>) -> Result<Self> {
        let id = row.get::<_, u64>(0)?;
        let bad = |problem: String| Error::BadRow { id, problem };
        let kind: String = row.get(3)?;
        let kind = Kind::parse(&kind).ok_or_else(|| bad(format!("kind {kind:?}")))?;
        let labels: String = row.get(8)?;
        let labels: Labels =
            serde_json::from_str(&labels).map_err(|error| bad(format!("labels: {error}")))?;
        Ok(Self {
            id,
            snapshotter: row.get(1)?,
            info: Info {
                name: row.get(2)?,
                parent: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
                kind,
                created: Time(row.get(6)?),
                updated: Time(row.get(7)?),
                labels,
            },
            parent: row.get(4)?,
            usage: Usage { bytes: row.get(9)?, inodes: row.get(10)? },
            placement: Placement {
                store: row.get(11)?,
                place: read_place(row).map_err(|problem| match problem {
                    PlaceError::Sql(error) => Error::Database(error),
                    PlaceError::Odd(text) => bad(text),
                })?,
                reason: row.get(14)?,
                retain: row.get(15)?,
                volatile_boot: row.get(16)?,
            },
            fresh: row.get(17)?,
        })
    }
}

enum PlaceError {
    Sql(rusqlite::Error),
    Odd(String),
}

fn read_place(row: &SqlRow<'_>) -> Result<Place, PlaceError> {
    let word: String = row.get(12).map_err(PlaceError::Sql)?;
    let directory: Option<String> = row.get(13).map_err(PlaceError::Sql)?;
    match (word.as_str(), directory) {
        ("placed", None) => Ok(Place::Store),
        ("placed", Some(directory)) => Ok(Place::Volume(directory)),
        ("pending", None) => Ok(Place::Pending),
        ("moved", Some(directory)) => Ok(Place::Moved(directory)),
        (word, directory) => {
            Err(PlaceError::Odd(format!("placement {word:?} with directory {directory:?}")))
        }
    }
}

impl Place {
    /// The stored form: a word, and the directory where it is not derived from the number.
    pub(super) fn columns(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Store => ("placed", None),
            Self::Volume(directory) => ("placed", Some(directory)),
            Self::Pending => ("pending", None),
            Self::Moved(directory) => ("moved", Some(directory)),
        }
    }
}
