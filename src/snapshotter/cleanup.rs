//! Deleting what removed snapshots left on disk, outside any transaction.
//!
//! A failure to delete is logged and tried again by the next Cleanup; it is never the client's problem,
//! because an error would make containerd give up its whole garbage collection.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use super::Snapshotter;
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{Garbage, Layer, ROOT_STORE, Row};
use crate::placement::volume::{self, Home};
use crate::tree;

impl Snapshotter {
    /// Deletes all garbage it can.
    pub(crate) fn cleanup(&self) {
        let _one_at_a_time = self.cleaning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.delete_garbage() {
            tracing::warn!(%error, "cleanup could not read or write the database");
        }
    }

    fn delete_garbage(&self) -> Result<()> {
        let mut deleted = Vec::new();
        for garbage in self.meta.garbage()? {
            crate::crash::point("cleanup: before delete");
            match self.delete(&garbage) {
                Ok(()) => {
                    deleted.push(garbage);
                    crate::crash::point("cleanup: one deleted");
                }
                Err(error) => {
                    tracing::warn!(id = garbage.id, store = garbage.store, %error, "cannot delete, kept for later");
                }
            }
        }
        crate::crash::point("cleanup: deleted");
        self.meta.forget_garbage(&deleted)
    }

    fn delete(&self, garbage: &Garbage) -> Result<()> {
        if garbage.store != ROOT_STORE {
            self.unlink_garbage(garbage)?;
            crate::crash::point("cleanup: link deleted");
        }
        match &garbage.volume_dir {
            Some(directory) => self.delete_on_volume(garbage.id, Path::new(directory)),
            None => {
                let base = self.stores.present(&garbage.store, &self.meta, &self.features)?;
                let directory = layout::snapshot(base, garbage.id);
                tree::remove(&directory).at("delete", &directory)?;
                // A disk unmounted just now looks like one on which nothing is left to delete.
                let snapshots = layout::snapshots(base);
                fs::metadata(&snapshots).at("read", &snapshots).map(drop)
            }
        }
    }

    /// Deletes the link to what is about to be deleted; a link elsewhere leads to a layer in use.
    fn unlink_garbage(&self, garbage: &Garbage) -> Result<()> {
        let directory = match &garbage.volume_dir {
            Some(directory) => PathBuf::from(directory),
            None => layout::snapshot(self.stores.path(&garbage.store)?, garbage.id),
        };
        let link = layout::snapshot(self.stores.root(), garbage.id);
        if fs::read_link(&link).is_ok_and(|target| target == directory) {
            self.unlink_from_root(garbage.id)?;
        }
        Ok(())
    }

    /// Deletes an upper on a volume, if the volume is there and the upper is still that snapshot's.
    fn delete_on_volume(&self, id: u64, directory: &Path) -> Result<()> {
        let (mount, name) = volume::split(id, directory)?;
        if !crate::mountinfo::read()?.iter().any(|found| found.path == mount) {
            // A volume that is away may come back; one that went with its pod took the upper along.
            return match fs::symlink_metadata(mount) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                _ => {
                    Err(Error::Unavailable(format!("no volume is mounted at {}", mount.display())))
                }
            };
        }
        let aside = format!(".removed-{}-{id}", self.stores.root_uuid());
        self.set_aside(id, mount, name, &aside)?;
        crate::crash::point("cleanup: set aside");
        let aside = directory.with_file_name(aside);
        tree::remove(&aside).at("delete", &aside)
    }

    /// Moves an upper out of the way in one step: nobody may take over one that is half deleted.
    fn set_aside(&self, id: u64, mount: &Path, name: &str, aside: &str) -> Result<()> {
        self.settling.hold(mount, || {
            let Some(home) = Home::open(mount, name)? else { return Ok(()) };
            match home.owner()? {
                Some(owner) if owner.root == self.stores.root_uuid() && owner.snapshot == id => {
                    home.rename(mount, name, aside)
                }
                _ => Ok(()),
            }
        })
    }

    /// Makes a committed snapshot of another store reachable below the root, among all layers.
    pub(super) fn link_into_root(&self, row: &Row, own: &Path) -> Result<()> {
        if row.placement.store == ROOT_STORE { Ok(()) } else { self.link(row.id, own) }
    }

    /// Links a layer whose store came back after the start; true if it can be reached now.
    pub(super) fn relink(&self, layer: &Layer) -> bool {
        let base = self.stores.ready(&layer.store, &self.meta, &self.features);
        let own = base.map(|base| layout::snapshot(base, layer.id));
        own.is_ok_and(|own| own.join(layout::FS).is_dir() && self.link(layer.id, &own).is_ok())
    }

    fn link(&self, id: u64, own: &Path) -> Result<()> {
        let link = layout::snapshot(self.stores.root(), id);
        match symlink(own, &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if fs::read_link(&link).is_ok_and(|target| target == own) {
                    return Ok(());
                }
                self.unlink_from_root(id)?;
                crate::crash::point("link: old one deleted");
                symlink(own, &link).at("create", &link)
            }
            other => other.at("create", &link),
        }
    }

    /// Deletes the link to a snapshot of another store; true if there was one.
    pub(super) fn unlink_from_root(&self, id: u64) -> Result<bool> {
        let link = layout::snapshot(self.stores.root(), id);
        match fs::symlink_metadata(&link) {
            Ok(found) if found.file_type().is_symlink() => {
                fs::remove_file(&link).at("delete", &link).map(|()| true)
            }
            _ => Ok(false),
        }
    }
}
