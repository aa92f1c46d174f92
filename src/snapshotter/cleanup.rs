//! Deleting what removed snapshots left on disk, outside any transaction.
//!
//! What lies outside the root is deleted by one thread per store or volume. Whoever wants it gone waits for
//! that thread while it gets on; a disk that hangs keeps its own garbage, and holds up nobody.
//!
//! A failure to delete is logged and tried again by the next Cleanup; it is never the client's problem,
//! because an error would make containerd give up its whole garbage collection.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Snapshotter;
use crate::doors::{Inside, PATIENCE};
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{Garbage, Layer, ROOT_STORE, Row};
use crate::placement::volume::{self, Home};
use crate::tree;

/// How much lower the priority of threads that delete garbage is.
const NICE: i32 = 10;

/// A disk that garbage lies on: a store, and the volume in it.
type Disk = (String, Option<PathBuf>);

/// Who deletes where.
#[derive(Debug, Default)]
pub(super) struct Cleaners {
    /// Held while the root's garbage is deleted, so that two Cleanups do not get in each other's way.
    root: Mutex<()>,
    elsewhere: Mutex<HashMap<Disk, Cleaner>>,
    changed: Condvar,
}

/// The thread that deletes on one disk; without it there is no entry.
#[derive(Debug)]
struct Cleaner {
    /// How often somebody asked, and how many of those it has served.
    asked: u64,
    served: u64,
    alive: Instant,
}

impl Cleaners {
    /// Asks for a disk to be cleaned; true if the caller has to start the thread. The number is to be waited for.
    fn ask(&self, disk: &Disk) -> (u64, bool) {
        let mut all = self.lock();
        let is_new = !all.contains_key(disk);
        let cleaner = all.entry(disk.clone()).or_insert(Cleaner {
            asked: 0,
            served: 0,
            alive: Instant::now(),
        });
        cleaner.asked += 1;
        (cleaner.asked, is_new)
    }

    /// Notes how far the thread of a disk has got; what it is to serve next, or nothing if it may end.
    fn next(&self, disk: &Disk, served: u64) -> Option<u64> {
        let mut all = self.lock();
        let cleaner = all.get_mut(disk)?;
        (cleaner.served, cleaner.alive) = (served, Instant::now());
        let more = Some(cleaner.asked).filter(|asked| *asked > served);
        if more.is_none() {
            all.remove(disk);
        }
        self.changed.notify_all();
        more
    }

    /// Notes that nobody cleans a disk any more, whoever waits for it.
    fn give_up(&self, disk: &Disk) {
        self.lock().remove(disk);
        self.changed.notify_all();
    }

    fn gets_on(&self, disk: &Disk) {
        if let Some(cleaner) = self.lock().get_mut(disk) {
            cleaner.alive = Instant::now();
        }
    }

    /// Waits until a disk is clean as of `asked`; false if nothing moves there.
    fn wait(&self, disk: &Disk, asked: u64) -> bool {
        let mut all = self.lock();
        while let Some(cleaner) = all.get(disk).filter(|cleaner| cleaner.served < asked) {
            let Some(left) = PATIENCE.checked_sub(cleaner.alive.elapsed()) else { return false };
            all = self.changed.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Disk, Cleaner>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a disk have another thread even if this one panics.
struct Ended<'a>(&'a Cleaners, &'a Disk);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up(self.1);
        }
    }
}

/// Runs `work` on a thread that lets others go first: containers that start matter more than those that
/// are gone. What others wait for, such as the database, is not to be touched there.
fn behind_others<T: Send>(work: impl Fn() -> T + Sync) -> T {
    let span = tracing::Span::current();
    let behind = || {
        let _entered = span.enter();
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "garbage is deleted at ordinary priority");
        }
        work()
    };
    std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, behind) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        // There are too many threads already.
        Err(_) => work(),
    })
}

impl Snapshotter {
    /// Deletes all garbage it can, except where the disk hangs.
    pub(crate) fn cleanup(self: &Arc<Self>) {
        if let Err(error) = self.clean_disks() {
            tracing::warn!(%error, "cleanup could not read or write the database");
        }
    }

    fn clean_disks(self: &Arc<Self>) -> Result<()> {
        let mut disks: Vec<_> = self.meta.garbage()?.iter().map(disk_of).collect();
        disks.sort_unstable();
        disks.dedup();
        disks.retain(|disk| disk.0 != ROOT_STORE);
        let asked: Vec<_> =
            disks.into_iter().map(|disk| (self.ask_to_clean(&disk), disk)).collect();
        let root = {
            let _alone = self.cleaners.root.lock().unwrap_or_else(PoisonError::into_inner);
            self.delete_garbage(&(ROOT_STORE.to_owned(), None))
        };
        for (number, disk) in asked {
            if !self.cleaners.wait(&disk, number) {
                tracing::warn!(
                    store = disk.0,
                    volume = ?disk.1,
                    "nothing gets deleted there, is the disk hung? It goes on when the disk does"
                );
            }
        }
        root
    }

    /// Has a disk cleaned by its own thread.
    fn ask_to_clean(self: &Arc<Self>, disk: &Disk) -> u64 {
        let (number, is_new) = self.cleaners.ask(disk);
        if is_new {
            let (cleaner, own) = (Arc::clone(self), disk.clone());
            let span = tracing::Span::current();
            let thread = std::thread::Builder::new().name("cleanup".to_owned());
            let work = move || span.in_scope(|| cleaner.clean(&own, number));
            if let Err(error) = thread.spawn(work) {
                tracing::warn!(store = disk.0, %error, "cannot start a thread to delete garbage, kept for later");
                self.cleaners.give_up(disk);
            }
        }
        number
    }

    fn clean(&self, disk: &Disk, asked: u64) {
        let _ended = Ended(&self.cleaners, disk);
        let mut next = Some(asked);
        while let Some(number) = next {
            if let Err(error) = self.delete_garbage(disk) {
                tracing::warn!(%error, "cleanup could not read or write the database");
            }
            next = self.cleaners.next(disk, number);
        }
    }

    /// Deletes the garbage on one disk.
    fn delete_garbage(&self, disk: &Disk) -> Result<()> {
        let mut garbage = self.meta.garbage()?;
        garbage.retain(|garbage| disk_of(garbage) == *disk);
        let deleted = if self.options.sync_remove || garbage.is_empty() {
            self.delete_files(disk, &garbage)
        } else {
            behind_others(|| self.delete_files(disk, &garbage))
        };
        crate::crash::point("cleanup: deleted");
        self.meta.forget_garbage(&deleted)
    }

    /// Deletes what it can, and returns it.
    fn delete_files(&self, disk: &Disk, garbage: &[Garbage]) -> Vec<Garbage> {
        let mut deleted = Vec::new();
        for garbage in garbage {
            crate::crash::point("cleanup: before delete");
            match self.delete(garbage, &|| self.cleaners.gets_on(disk)) {
                Ok(()) => {
                    deleted.push(garbage.clone());
                    crate::crash::point("cleanup: one deleted");
                }
                Err(error) => {
                    tracing::warn!(id = garbage.id, store = garbage.store, %error, "cannot delete, kept for later");
                }
            }
        }
        deleted
    }

    fn delete(&self, garbage: &Garbage, gets_on: &dyn Fn()) -> Result<()> {
        if garbage.store != ROOT_STORE {
            self.unlink_garbage(garbage)?;
            crate::crash::point("cleanup: link deleted");
        }
        match &garbage.volume_dir {
            Some(directory) => self.delete_on_volume(garbage.id, Path::new(directory), gets_on),
            None => {
                let base = self.present(&garbage.store)?.to_owned();
                let directory = layout::snapshot(&base, garbage.id);
                tree::remove_slowly(&directory, gets_on).at("delete", &directory)?;
                // A disk unmounted just now looks like one on which nothing is left to delete.
                let snapshots = layout::snapshots(&base);
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
    fn delete_on_volume(&self, id: u64, directory: &Path, gets_on: &dyn Fn()) -> Result<()> {
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
        tree::remove_slowly(&aside, gets_on).at("delete", &aside)
    }

    /// Moves an upper out of the way in one step: nobody may take over one that is half deleted.
    fn set_aside(&self, id: u64, mount: &Path, name: &str, aside: &str) -> Result<()> {
        let _alone = self.alone_on(mount)?;
        let Some(home) = Home::open(mount, name)? else { return Ok(()) };
        match home.owner()? {
            Some(owner) if owner.root == self.stores.root_uuid() && owner.snapshot == id => {
                home.rename(mount, name, aside)
            }
            _ => Ok(()),
        }
    }

    /// Makes a committed snapshot of another store reachable below the root, among all layers.
    pub(super) fn link_into_root(&self, row: &Row, own: &Path) -> Result<()> {
        if row.placement.store == ROOT_STORE { Ok(()) } else { self.link(row.id, own) }
    }

    /// Links a layer whose store came back after the start; true if it can be reached now.
    pub(super) fn relink(&self, layer: &Layer) -> bool {
        let base = self.ready(&layer.store);
        base.is_ok_and(|base| {
            let own = layout::snapshot(&base, layer.id);
            own.join(layout::FS).is_dir() && self.link(layer.id, &own).is_ok()
        })
    }

    /// True if the directory of a layer, at `path` below the root, is there.
    pub(super) fn can_reach(&self, layer: &Layer, path: &Path) -> Result<bool> {
        let _inside = self.enter_layer(layer)?;
        Ok(path.is_dir())
    }

    /// Enters the disk on which a layer lies.
    pub(super) fn enter_layer(&self, layer: &Layer) -> Result<Inside<'_>> {
        if layer.store == ROOT_STORE {
            return Ok(Inside::nowhere());
        }
        let link = layout::snapshot(self.stores.root(), layer.id);
        let target = fs::read_link(&link).unwrap_or(link);
        self.stores.enter(&layer.store, &target)
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

/// Where garbage lies.
fn disk_of(garbage: &Garbage) -> Disk {
    let directory = garbage.volume_dir.as_ref().map(Path::new);
    let volume = directory.and_then(Path::parent).and_then(Path::parent);
    (garbage.store.clone(), volume.map(Path::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_no_thread_cleans_is_not_waited_for_and_gets_another() {
        let (cleaners, disk) = (Cleaners::default(), ("store".to_owned(), None));
        assert_eq!(cleaners.ask(&disk), (1, true));
        assert_eq!(cleaners.ask(&disk), (2, false));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cleaners.wait(&disk, 2));
            cleaners.give_up(&disk);
            assert!(waiting.join().unwrap());
        });
        assert_eq!(cleaners.ask(&disk), (1, true));
    }
}
