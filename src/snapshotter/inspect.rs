//! What people ask: where does a snapshot lie, why, how much space is used, what was retained.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Snapshotter;
use crate::error::{Error, Result};
use crate::filter::{Filter, SnapshotFields};
use crate::layout;
use crate::metastore::{Counted, Layer, Place, ROOT_STORE, Row};
use crate::mountinfo;
use crate::placement::volume::{DIRECTORY, Home};
use crate::probe;
use crate::snapshot::{KeyHint, Kind, Mount, Time, Usage};
use crate::usage::{self, Cancel};

/// Where one snapshot lies, and why.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// The snapshot.
    pub row: Row,
    /// Its upper's directory; empty while not settled.
    pub upper: String,
    /// What containerd is told to mount; empty for a committed snapshot.
    pub mounts: Vec<Mount>,
    /// Layer directories, top first.
    pub layers: Vec<String>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Space in one store.
#[derive(Debug, Default)]
pub(crate) struct StoreReport {
    /// Its name.
    pub name: String,
    /// "root", "dir" or "volume".
    pub kind: &'static str,
    /// Its directory, or its pattern.
    pub path: String,
    /// What is wrong: "cannot be used now: ..."; empty if nothing is.
    pub problem: String,
    /// Committed snapshots, as of their Commit.
    pub committed: (u64, Usage),
    /// Active snapshots, walked now.
    pub active: (u64, Usage),
    /// Views.
    pub views: u64,
    /// Retained uppers, walked now.
    pub retained: (u64, Usage),
    /// Removed snapshots whose files are still there.
    pub garbage: u64,
    /// Total and available bytes of its file system.
    pub space: (u64, u64),
}

/// An upper without a snapshot.
#[derive(Debug)]
pub(crate) struct RetainedUpper {
    /// Number of its directory; zero on a volume.
    pub id: u64,
    /// Plugin name.
    pub snapshotter: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Name it is found by.
    pub name: String,
    /// Name of its store.
    pub store: String,
    /// Its directory.
    pub upper: String,
    /// When its snapshot was removed; unknown on a volume.
    pub removed: Option<Time>,
    /// Identities of its layers, top first.
    pub chain: Vec<String>,
    /// Its size, where that was asked for and can be found out.
    pub size: Option<Usage>,
}

/// What lies in one store, without its size.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreCount {
    /// Its name.
    pub store: String,
    /// Active snapshots.
    pub active: u64,
    /// Committed snapshots.
    pub committed: u64,
    /// Views.
    pub views: u64,
    /// Retained uppers; nobody keeps count of those on volumes.
    pub retained: Option<u64>,
    /// Removed snapshots whose files are still there.
    pub garbage: u64,
}

impl StoreReport {
    /// Counts a snapshot, and what is known of its size without a walk.
    fn add(&mut self, row: &Row) {
        match row.info.kind {
            Kind::View => self.views += 1,
            Kind::Active => self.active.0 += 1,
            Kind::Committed => {
                self.committed.0 += 1;
                self.committed.1.add(row.usage);
            }
        }
    }

    /// Takes the size of an upper, or notes why it is not known.
    fn walked(&mut self, walked: Result<Usage>) -> Result<Usage> {
        match walked {
            Ok(usage) => return Ok(usage),
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            // It was removed meanwhile, or went with its volume.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) if self.problem.is_empty() => {
                self.problem = format!("is not counted in full: {error}");
            }
            Err(_) => {}
        }
        Ok(Usage::default())
    }
}

impl Snapshotter {
    /// Lists snapshots of all plugin names with their places and uppers.
    pub(crate) fn list_places(&self, filters: &[String]) -> Result<Vec<(Row, String)>> {
        let filter =
            Filter::parse(filters).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let mut found = Vec::new();
        self.meta.for_each(None, |row| {
            if filter.matches(&SnapshotFields::of(&row.info)) {
                let upper = self.upper_of(&row);
                found.push((row, upper));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Explains the snapshot whose key is `key`, or ends in it where that is unambiguous.
    pub(crate) fn explain(&self, snapshotter: Option<&str>, key: &str) -> Result<Explanation> {
        let (snapshotter, key) = self.resolve(snapshotter, key)?;
        let (row, chain) = self.meta.get_with_chain(&snapshotter, &key)?;
        let (mut mounts, mut notes) = (Vec::new(), Vec::new());
        if row.info.kind == Kind::Committed {
            notes.push(
                "a committed snapshot has no mounts of its own; it is a layer of others".to_owned(),
            );
        } else {
            match self.mounts_of(&row, &chain) {
                Ok(list) => mounts = list,
                Err(error) => notes.push(error.to_string()),
            }
        }
        notes.extend(self.check_chain(&chain).err().map(|error| error.to_string()));
        let upper = self.upper_of(&row);
        let layers = chain.iter().map(|layer| self.layer_path(layer)).collect();
        Ok(Explanation { upper, mounts, layers, notes, row })
    }

    fn upper_of(&self, row: &Row) -> String {
        self.directory(row)
            .map_or_else(|_| String::new(), |own| own.join(layout::FS).display().to_string())
    }

    /// A layer's directory; its real place, where that is another store.
    fn layer_path(&self, layer: &Layer) -> String {
        let path = layout::snapshot(self.stores.root(), layer.id);
        let real = if layer.store == ROOT_STORE {
            path
        } else {
            std::fs::read_link(&path).unwrap_or(path)
        };
        real.join(layout::FS).display().to_string()
    }

    /// Finds the snapshot a person means.
    fn resolve(&self, snapshotter: Option<&str>, key: &str) -> Result<(String, String)> {
        let (mut exact, mut similar) = (Vec::new(), Vec::new());
        self.meta.for_each(snapshotter, |row| {
            let full = (row.snapshotter, row.info.name);
            if full.1 == key {
                exact.push(full);
            } else if KeyHint::of(&full.1).user_key == key {
                similar.push(full);
            }
            Ok(())
        })?;
        let mut found = if exact.is_empty() { similar } else { exact };
        match (found.pop(), found.len()) {
            (None, _) => {
                let whose = snapshotter
                    .map_or_else(String::new, |name| format!(" of snapshotter {name:?}"));
                Err(Error::NotFound(format!("snapshot {key:?}{whose} (`overstream ls` lists all)")))
            }
            (Some(one), 0) => Ok(one),
            (Some(last), _) => {
                found.push(last);
                let all: Vec<_> =
                    found.iter().map(|(name, key)| format!("{name:?} {key:?}")).collect();
                Err(Error::InvalidArgument(format!(
                    "{key:?} could be any of these snapshots; give the whole key, and --snapshotter:\n  {}",
                    all.join("\n  ")
                )))
            }
        }
    }

    /// Reports the space used in every store.
    pub(crate) fn report(&self, cancel: &Cancel) -> Result<Vec<StoreReport>> {
        let mut reports: Vec<StoreReport> = self
            .stores
            .directories()
            .map(|name| self.directory_report(name))
            .chain(self.stores.volumes().map(|(name, pattern)| StoreReport {
                name: name.to_owned(),
                kind: "volume",
                path: pattern.as_str().to_owned(),
                ..StoreReport::default()
            }))
            .collect();
        let mut uppers = Vec::new();
        self.meta.for_each(None, |row| {
            let store = &row.placement.store;
            if let Some(number) = reports.iter().position(|report| report.name == *store)
                && let Some(report) = reports.get_mut(number)
            {
                report.add(&row);
                let walked = row.info.kind == Kind::Active;
                uppers
                    .extend(self.directory(&row).ok().filter(|_| walked).map(|own| (number, own)));
            }
            Ok(())
        })?;
        // Walks take their time, and the record of the snapshots must not be held open meanwhile.
        for (number, own) in uppers {
            if let Some(report) = reports.get_mut(number) {
                let usage = report.walked(self.walk(&report.name, &own, cancel))?;
                report.active.1.add(usage);
            }
        }
        for retained in self.meta.retained()? {
            let report = reports.iter_mut().find(|report| report.name == retained.store);
            let (Some(report), Ok(base)) = (report, self.stores.path(&retained.store)) else {
                continue;
            };
            let own = layout::snapshot(base, retained.id);
            let usage = report.walked(self.walk(&retained.store, &own, cancel))?;
            report.retained.0 += 1;
            report.retained.1.add(usage);
        }
        for garbage in self.meta.garbage()? {
            let report = reports.iter_mut().find(|report| report.name == garbage.store);
            report.into_iter().for_each(|report| report.garbage += 1);
        }
        Ok(reports)
    }

    fn directory_report(&self, name: &str) -> StoreReport {
        let mut report = StoreReport {
            name: name.to_owned(),
            kind: if name == ROOT_STORE { "root" } else { "dir" },
            path: self
                .stores
                .path(name)
                .map_or_else(|_| String::new(), |path| path.display().to_string()),
            ..StoreReport::default()
        };
        match self.store_space(name) {
            Ok(space) => report.space = space,
            Err(error) => report.problem = format!("cannot be used now: {error}"),
        }
        report
    }

    /// Adds up what a snapshot's own directory in a store takes.
    fn walk(&self, store: &str, own: &Path, cancel: &Cancel) -> Result<Usage> {
        let inside = self.stores.enter_to_walk(store, own)?;
        usage::measure(own, cancel, &inside)
    }

    /// Names of the stores that are directories, the root first.
    pub(crate) fn directory_stores(&self) -> impl Iterator<Item = &str> {
        self.stores.directories()
    }

    /// Total and available bytes of the file system of a store, if the store can be used now.
    pub(crate) fn store_space(&self, name: &str) -> Result<(u64, u64)> {
        let base = self.stores.present(name, &self.meta, &self.features)?;
        probe::space(&base).map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// The same, or nothing if the store's disk hangs so far that no further call gets in.
    pub(crate) fn store_space_unless_full(&self, name: &str) -> Option<Result<(u64, u64)>> {
        let path = self.stores.path(name).ok()?;
        drop(self.stores.enter(name, path).ok()?);
        Some(self.store_space(name))
    }

    /// Counts what lies in every store.
    pub(crate) fn store_counts(&self) -> Result<Vec<StoreCount>> {
        let count = |name: &str, retained| StoreCount {
            store: name.to_owned(),
            retained,
            ..StoreCount::default()
        };
        let directories = self.stores.directories().map(|name| count(name, Some(0)));
        let volumes = self.stores.volumes().map(|(name, _)| count(name, None));
        let mut counts: Vec<StoreCount> = directories.chain(volumes).collect();
        for (store, what, number) in self.meta.counts()? {
            let Some(count) = counts.iter_mut().find(|count| count.store == store) else {
                continue;
            };
            match what {
                Counted::Snapshots(Kind::Active) => count.active = number,
                Counted::Snapshots(Kind::Committed) => count.committed = number,
                Counted::Snapshots(Kind::View) => count.views = number,
                Counted::Retained => count.retained = Some(number),
                Counted::Garbage => count.garbage = number,
            }
        }
        Ok(counts)
    }

    /// Lists uppers that outlived their snapshots: those noted in stores, and those found on volumes.
    pub(crate) fn retained(&self) -> Result<Vec<RetainedUpper>> {
        let mut all = Vec::new();
        for retained in self.meta.retained()? {
            let base = self.stores.path(&retained.store)?;
            all.push(RetainedUpper {
                upper: layout::snapshot(base, retained.id).join(layout::FS).display().to_string(),
                id: retained.id,
                snapshotter: retained.snapshotter,
                namespace: retained.namespace,
                name: retained.name,
                store: retained.store,
                removed: Some(retained.removed),
                chain: retained.chain,
                size: None,
            });
        }
        all.extend(self.retained_on_volumes()?);
        Ok(all)
    }

    /// Lists them with their sizes: one walk after the other, until nobody waits any more.
    pub(crate) fn retained_with_sizes(&self, cancel: &Cancel) -> Result<Vec<RetainedUpper>> {
        let mut all = self.retained()?;
        for upper in &mut all {
            let own = Path::new(&upper.upper).parent().unwrap_or(Path::new(&upper.upper));
            upper.size = match self.walk(&upper.store, own, cancel) {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => {
                    tracing::info!(upper = upper.upper, %error, "its size is not known");
                    None
                }
                Ok(usage) => Some(usage),
            };
        }
        Ok(all)
    }

    fn retained_on_volumes(&self) -> Result<Vec<RetainedUpper>> {
        let mut owned = std::collections::HashSet::new();
        self.meta.for_each(None, |row| {
            if let Place::Volume(directory) = row.placement.place {
                owned.insert(directory);
            }
            Ok(())
        })?;
        let mounts = mountinfo::read()?;
        let mut found = Vec::new();
        for (store, pattern) in self.stores.volumes() {
            let matching = mounts
                .iter()
                .filter(|mount| mount.path.to_str().is_some_and(|path| pattern.is_match(path)));
            for mount in matching {
                let inside = self.stores.enter(store, &mount.path.join(DIRECTORY).join("any"));
                let Ok(_inside) =
                    inside.inspect_err(|error| tracing::warn!(%error, "not looked at"))
                else {
                    continue;
                };
                found.extend(uppers_on(store, &mount.path).into_iter().filter(|upper| {
                    !Path::new(&upper.upper)
                        .parent()
                        .is_some_and(|own| owned.contains(&*own.to_string_lossy()))
                }));
            }
        }
        Ok(found)
    }

    /// Deletes a retained upper.
    pub(crate) fn remove_retained(self: &Arc<Self>, id: u64) -> Result<()> {
        match self.meta.discard_retained(id) {
            Err(error @ Error::NotFound(_)) => Err(self.owner_of_number(id)?.unwrap_or(error)),
            other => other,
        }?;
        self.cleanup();
        Ok(())
    }

    /// Says whose number it is that was taken for a retained upper's.
    fn owner_of_number(&self, id: u64) -> Result<Option<Error>> {
        let mut owner = None;
        self.meta.for_each(None, |row| {
            if row.id == id {
                owner = Some(Error::FailedPrecondition(format!(
                    "{id} is the number of the {} snapshot {:?}, not of a retained upper; \
                     `overstream retained` lists those",
                    row.info.kind.as_str(),
                    row.info.name
                )));
            }
            Ok(())
        })?;
        Ok(owner)
    }
}

/// Uppers on one volume. A volume without any, or one that cannot be read, has none to show.
fn uppers_on(store: &str, mount: &Path) -> Vec<RetainedUpper> {
    let Ok(entries) = std::fs::read_dir(mount.join(DIRECTORY)) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let home = Home::open(mount, &name).ok()??;
            let owner = home.owner().ok()??;
            Some(RetainedUpper {
                id: 0,
                snapshotter: String::new(),
                namespace: String::new(),
                upper: home.path().join(layout::FS).display().to_string(),
                name,
                store: store.to_owned(),
                removed: None,
                chain: owner.chain,
                size: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: io::ErrorKind) -> Result<Usage> {
        Err(Error::io("walk", Path::new("/upper"), kind.into()))
    }

    #[test]
    fn a_walk_that_fails_is_reported() {
        let mut report = StoreReport::default();
        let usage = Usage { bytes: 5, inodes: 2 };
        assert_eq!(report.walked(Ok(usage)).unwrap(), usage);
        let none = Usage::default();
        assert_eq!(report.walked(failed(io::ErrorKind::NotFound)).unwrap(), none);
        assert_eq!(report.problem, "");
        assert_eq!(report.walked(failed(io::ErrorKind::InvalidData)).unwrap(), none);
        assert_eq!(report.walked(failed(io::ErrorKind::NotADirectory)).unwrap(), none);
        assert!(report.problem.contains("invalid data"), "{}", report.problem);
        report.walked(Err(Error::Cancelled)).unwrap_err();
    }
}
