//! The snapshotter: containerd's ten methods, in containerd's order.
//!
//! Methods block; callers run them on threads that may, save those named `_in_root`, which are quick. None
//! holds a lock while it touches a snapshot's directory, except to settle its place. Directories are made
//! before their row and deleted after it, so a crash leaves at worst a directory without a row, which the
//! next start finds.

mod cleanup;
mod create;
mod inspect;
mod retain;
mod settle;
mod spare;
mod start;
mod sync;
mod volatile;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::spare::Spares;

pub(crate) use create::New;
pub(crate) use inspect::{Explanation, RetainedUpper, StoreCount, StoreReport};
pub(crate) use start::StartError;

use crate::config::{Config, LayerSync, RemapIds};
use crate::doors::Doors;
use crate::error::{Error, Result};
use crate::filter::{Filter, SnapshotFields};
use crate::idmap;
use crate::layout;
use crate::metastore::{Commit, Layer, Metastore, Place, ROOT_STORE, Removal, Row, Wait};
use crate::mounts::{self, View};
use crate::placement::Policy;
use crate::placement::identity::Containers;
use crate::placement::stores::{Base, Stores};
use crate::probe::Features;
use crate::snapshot::{Info, Kind, LABEL_UPPERDIR, Labels, Mount, Usage};
use crate::usage::{self, Cancel, UsageCache};

/// Serves snapshots of one root directory.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    meta: Metastore,
    stores: Stores,
    policy: Policy,
    features: Features,
    containers: Box<dyn Containers>,
    options: Options,
    /// The largest number in the database when it was opened.
    last_id: u64,
    usage: UsageCache,
    cleaners: cleanup::Cleaners,
    /// Held while a pending snapshot is settled or removed, one per snapshot, and while an upper on a
    /// volume changes hands, one per volume.
    settling: Doors,
    handed_out: settle::HandedOut,
    sync: sync::Queue,
    spares: Spares,
    /// Keeps a second daemon off the same root for as long as this one lives.
    _lock: std::fs::File,
}

/// The part of the configuration that the methods need.
#[derive(Debug)]
struct Options {
    sync_remove: bool,
    upperdir_label: bool,
    /// For every overlay mount: configured, and what this kernel needs.
    overlay: Vec<String>,
    remap_ids: bool,
    layer_sync: LayerSync,
}

impl Options {
    fn new(config: &Config, features: &Features) -> Self {
        Self {
            sync_remove: config.sync_remove,
            upperdir_label: config.upperdir_label,
            overlay: features.overlay_options(&config.mount_options),
            remap_ids: match config.remap_ids {
                RemapIds::Auto => features.id_mapped_layers,
                RemapIds::On => true,
                RemapIds::Off => false,
            },
            layer_sync: config.layer_sync,
        }
    }
}

/// Which labels Update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelMask {
    /// All: the given labels replace the old ones.
    All,
    /// These keys: set where given, deleted where not.
    Keys(Vec<String>),
}

impl LabelMask {
    /// Reads the paths of a field mask; none means all.
    pub(crate) fn parse(paths: &[String]) -> Result<Self> {
        let mut keys = Vec::new();
        for path in paths {
            match path.strip_prefix("labels") {
                Some("") => return Self::parse_rest(paths).map(|()| Self::All),
                Some(rest) if rest.starts_with('.') => {
                    keys.extend(rest.strip_prefix('.').map(str::to_owned))
                }
                _ => return Err(bad_path(path)),
            }
        }
        Ok(if keys.is_empty() { Self::All } else { Self::Keys(keys) })
    }

    /// One bad path spoils a mask, wherever it stands.
    fn parse_rest(paths: &[String]) -> Result<()> {
        let bad = paths.iter().find(|path| *path != "labels" && !path.starts_with("labels."));
        bad.map_or(Ok(()), |path| Err(bad_path(path)))
    }

    fn apply(&self, labels: &mut Labels, given: &Labels) {
        match self {
            Self::All => labels.clone_from(given),
            Self::Keys(keys) => {
                for key in keys {
                    match given.get(key) {
                        Some(value) => labels.insert(key.clone(), value.clone()),
                        None => labels.remove(key),
                    };
                }
            }
        }
    }
}

fn bad_path(path: &str) -> Error {
    Error::InvalidArgument(format!(
        "cannot update {path:?}: only labels, or labels.KEY, can be changed"
    ))
}

impl Snapshotter {
    /// Describes a snapshot.
    pub(crate) fn stat(&self, snapshotter: &str, key: &str) -> Result<Info> {
        self.meta.get(snapshotter, key).map(|row| self.shown(row))
    }

    /// Changes labels, and returns the new description.
    pub(crate) fn update(
        &self,
        snapshotter: &str,
        key: &str,
        labels: &Labels,
        mask: &LabelMask,
    ) -> Result<Info> {
        let row =
            self.meta.update_labels(snapshotter, key, |current| mask.apply(current, labels))?;
        Ok(self.shown(row))
    }

    /// Tells the space a snapshot takes: walked for an active one, as of Commit for a committed one.
    pub(crate) fn usage(&self, snapshotter: &str, key: &str, cancel: &Cancel) -> Result<Usage> {
        let row = self.meta.get(snapshotter, key)?;
        match (row.info.kind, &row.placement.place) {
            (Kind::Active, Place::Store | Place::Volume(_)) => {
                let own = self.directory(&row)?;
                let inside = self.stores.enter_to_walk(&row.placement.store, &own)?;
                self.usage.active(row.id, &own, cancel, &inside)
            }
            (Kind::Active | Kind::View, _) => Ok(Usage::default()),
            (Kind::Committed, _) => Ok(row.usage),
        }
    }

    /// Makes a writable snapshot.
    pub(crate) fn prepare(&self, new: &New<'_>) -> Result<Vec<Mount>> {
        self.create(Kind::Active, new)
    }

    /// Makes a read-only snapshot.
    pub(crate) fn view(&self, new: &New<'_>) -> Result<Vec<Mount>> {
        self.create(Kind::View, new)
    }

    /// Returns the mounts of an active snapshot or a view, settling its place if need be.
    pub(crate) fn mounts(
        &self,
        snapshotter: &str,
        key: &str,
        namespace: &str,
    ) -> Result<Vec<Mount>> {
        let (row, chain) = self.mountable(snapshotter, key)?;
        let Some(row) = self.settled(row, &chain, namespace)? else {
            return self.provisional_mounts(&chain);
        };
        self.check_upper(&row)?;
        self.mounts_of(&row, &chain)
    }

    /// The same for a snapshot of which all lies in the root; nothing for others, whose disks may hang.
    pub(crate) fn mounts_in_root(
        &self,
        snapshotter: &str,
        key: &str,
    ) -> Result<Option<Vec<Mount>>> {
        let (row, chain) = self.mountable(snapshotter, key)?;
        let placement = &row.placement;
        let in_root = placement.place == Place::Store
            && placement.store == ROOT_STORE
            && placement.volatile_boot.is_none()
            && chain.iter().all(|layer| layer.store == ROOT_STORE);
        if !in_root {
            return Ok(None);
        }
        self.check_upper(&row)?;
        self.mounts_of(&row, &chain).map(Some)
    }

    /// Finds a snapshot that can have mounts, and its layers.
    fn mountable(&self, snapshotter: &str, key: &str) -> Result<(Row, Vec<Layer>)> {
        let (row, chain) = self.meta.get_with_chain(snapshotter, key)?;
        if row.info.kind == Kind::Committed {
            return Err(Error::FailedPrecondition(format!(
                "snapshot {key:?} is committed; it has no mounts, prepare or view a snapshot on it"
            )));
        }
        self.check_chain(&chain)?;
        Ok((row, chain))
    }

    /// Makes an active snapshot immutable under the name `name`.
    pub(crate) fn commit(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
        labels: &Labels,
        parent: &str,
        cancel: &Cancel,
    ) -> Result<()> {
        let row = self.meta.check_commit(snapshotter, key, name, parent)?;
        let row = self.settled_for_commit(row)?;
        let own = self.directory(&row)?;
        volatile::check_boot(&row, &self.features.boot)?;
        let usage = self.measure_layer(&row, &own, cancel).or_else(|error| {
            // Files vanish where the snapshot is removed meanwhile.
            self.meta.check_commit(snapshotter, key, name, parent)?;
            Err(error)
        })?;
        crate::crash::point("commit: measured");
        self.link_into_root(&row, &own)?;
        crate::crash::point("commit: linked");
        let labels = without_empty(labels);
        let boot = self.features.boot.as_str();
        let unsynced_boot = (self.options.layer_sync == LayerSync::Background).then_some(boot);
        let commit = Commit {
            id: row.id,
            snapshotter,
            key,
            name,
            labels: &labels,
            parent,
            usage,
            unsynced_boot,
        };
        self.meta.commit(&commit)?;
        crate::crash::point("commit: recorded");
        self.usage.forget(row.id);
        if unsynced_boot.is_some() {
            self.sync.wake();
        }
        Ok(())
    }

    /// Adds up what a layer takes, and makes its files durable if Commit is to do that.
    fn measure_layer(&self, row: &Row, own: &Path, cancel: &Cancel) -> Result<Usage> {
        let inside = self.stores.enter_to_walk(&row.placement.store, own)?;
        let usage = usage::measure(own, cancel, &inside)?;
        if self.options.layer_sync == LayerSync::Commit {
            sync::sync_file_system(own)?;
        }
        Ok(usage)
    }

    /// Forgets a snapshot; its files are deleted by Cleanup, at once in synchronous mode, or retained.
    pub(crate) fn remove(self: &Arc<Self>, snapshotter: &str, key: &str) -> Result<()> {
        let row = self.meta.get(snapshotter, key)?;
        self.remove_row(&row)
    }

    /// The same for a snapshot of the root that is left to Cleanup, while its disk is quick; nothing for
    /// others.
    pub(crate) fn remove_in_root(
        self: &Arc<Self>,
        snapshotter: &str,
        key: &str,
    ) -> Result<Option<()>> {
        if self.options.sync_remove || !self.meta.is_quick() {
            return Ok(None);
        }
        let only_row = |row: &Row| {
            let placement = &row.placement;
            placement.place == Place::Store && placement.store == ROOT_STORE && !placement.retain
        };
        let id = match self.meta.discard(snapshotter, key, Wait::Briefly, only_row) {
            Err(Error::WouldWait) => return Ok(None),
            discarded => discarded?,
        };
        let Some(id) = id else { return Ok(None) };
        crate::crash::point("remove: recorded");
        self.usage.forget(id);
        Ok(Some(()))
    }

    fn remove_row(self: &Arc<Self>, row: &Row) -> Result<()> {
        let hint = crate::snapshot::KeyHint::of(&row.info.name);
        let identity;
        let removal = match &row.placement.place {
            Place::Pending | Place::Moved(_) => Removal::Leave,
            Place::Volume(_) if row.placement.retain => Removal::Leave,
            Place::Store if self.worth_retaining(row)? => {
                let chain = row.parent.map(|parent| self.meta.chain_from(parent)).transpose()?;
                identity = self.chain_identity(&chain.unwrap_or_default());
                Removal::Retain { namespace: hint.namespace, name: hint.user_key, chain: &identity }
            }
            Place::Store | Place::Volume(_) => Removal::Discard,
        };
        // Whoever settles it must be done: it may be about to take an upper from another snapshot.
        match row.placement.place {
            Place::Pending => self.alone(row.id, || self.meta.remove(row, &removal)),
            _ => self.meta.remove(row, &removal),
        }?;
        crate::crash::point("remove: recorded");
        self.usage.forget(row.id);
        if let Place::Volume(directory) = &row.placement.place {
            self.handed_out.forget(directory.as_ref());
        }
        if self.options.sync_remove && matches!(removal, Removal::Discard) {
            self.cleanup();
        }
        Ok(())
    }

    /// Hands out the snapshots that match any filter, or all without one, as of one instant.
    pub(crate) fn list(&self, snapshotter: &str, filters: &[String]) -> Result<Vec<Info>> {
        let filter =
            Filter::parse(filters).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let mut found = Vec::new();
        self.meta.for_each(Some(snapshotter), |row| {
            if filter.matches(&SnapshotFields::of(&row.info)) {
                found.push(self.shown(row));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// What its owner sees of a snapshot.
    fn shown(&self, row: Row) -> Info {
        let upperdir = self.options.upperdir_label.then(|| self.directory(&row).ok()).flatten();
        let mut info = row.info;
        if let Some(own) = upperdir {
            info.labels
                .insert(LABEL_UPPERDIR.to_owned(), own.join(layout::FS).display().to_string());
        }
        info
    }

    /// The directory of a store that can be used, see `Stores::ready`.
    fn ready(&self, store: &str) -> Result<Base<'_>> {
        let base = self.stores.ready(store, &self.meta, &self.features)?;
        self.look_after_stores();
        Ok(base)
    }

    /// The directory of a store that is certainly there, see `Stores::present`.
    fn present(&self, store: &str) -> Result<Base<'_>> {
        let base = self.stores.present(store, &self.meta, &self.features)?;
        self.look_after_stores();
        Ok(base)
    }

    /// Has the background look after a store that has just come.
    fn look_after_stores(&self) {
        if self.stores.any_came() {
            self.sync.wake();
        }
    }

    /// Directory of a snapshot's own files.
    fn directory(&self, row: &Row) -> Result<PathBuf> {
        match &row.placement.place {
            Place::Store => Ok(layout::snapshot(self.stores.path(&row.placement.store)?, row.id)),
            Place::Volume(directory) => Ok(PathBuf::from(directory)),
            Place::Pending => Err(Error::FailedPrecondition(format!(
                "snapshot {:?} has no upper yet: containerd has not told whose container it is",
                row.info.name
            ))),
            Place::Moved(directory) => Err(Error::FailedPrecondition(format!(
                "the upper of snapshot {:?} in {directory} was taken over by a newer container",
                row.info.name
            ))),
        }
    }

    /// The mounts of a snapshot whose place is settled.
    fn mounts_of(&self, row: &Row, chain: &[Layer]) -> Result<Vec<Mount>> {
        let id_maps = self.id_maps(&row.info.labels, chain)?;
        mounts::mounts(&View {
            kind: row.info.kind,
            own: &self.directory(row)?,
            lowers: &self.lowers(chain)?,
            id_maps: &id_maps,
            overlay_options: &self.options.overlay,
            volatile: row.placement.volatile_boot.is_some(),
        })
    }

    /// `fs` directories of the layers; those of other stores are reached through the root's symlinks.
    fn lowers(&self, chain: &[Layer]) -> Result<Vec<PathBuf>> {
        let lower = |layer: &Layer| {
            let path = layout::snapshot(self.stores.root(), layer.id).join(layout::FS);
            if layer.store != ROOT_STORE && !self.can_reach(layer, &path)? && !self.relink(layer) {
                return Err(create::missing_layer(layer, &path));
            }
            Ok(path)
        };
        chain.iter().map(lower).collect()
    }

    /// Options that have the kernel map ids; containerd maps the one directory all lowers share.
    fn id_maps(&self, labels: &Labels, chain: &[Layer]) -> Result<Vec<String>> {
        if !self.options.remap_ids {
            return Ok(Vec::new());
        }
        let options = idmap::mount_options(labels);
        let foreign = chain.iter().find(|layer| layer.store != ROOT_STORE);
        match foreign {
            Some(layer) if !options.is_empty() => Err(Error::FailedPrecondition(format!(
                "ids cannot be mapped for layer {:?}: it lies in store {:?}, outside the directory that is mapped",
                layer.name, layer.store
            ))),
            _ => Ok(options),
        }
    }
}

/// Labels with an empty value are not stored.
fn without_empty(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}
