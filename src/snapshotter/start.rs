//! Starting on a root: alone, on a sound database, with disk and database made to agree.
//!
//! Directories are made before their row and deleted after it. So what a crash leaves is a directory
//! without a row (becomes garbage) or, where a power failure took a directory that was never synced, a
//! row without a directory (an upper is made again, empty as it was; a lost layer is reported). An upper
//! that was seen by a start, and synced since, is not made again: whoever deleted it must hear of it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use super::cleanup::Cleaners;
use super::create::mend_snapshot;
use super::settle::HandedOut;
use super::spare::Spares;
use super::{Options, Snapshotter, spare, sync};
use crate::config::Config;
use crate::doors::{Doors, PATIENCE};
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{FILE, Metastore, OpenError, Place, ROOT_STORE, Row};
use crate::placement::Policy;
use crate::placement::identity::Containerd;
use crate::placement::stores::{Stores, directories, make_directory};
use crate::probe::{self, Features};
use crate::snapshot::Kind;
use crate::usage::UsageCache;

/// Name of the file in the root that the daemon locks.
const LOCK: &str = "lock";

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Another daemon has the root.
    #[error("{}: another Overstream (pid {pid}) serves this root; stop it, or choose another root", root.display())]
    Locked {
        /// The root.
        root: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The root cannot hold uppers.
    #[error("root {}: {problem}", root.display())]
    Root {
        /// The root.
        root: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel does not take the configured options.
    #[error(
        "`mount_options` in the configuration, {options:?}: {problem}; take out what it does not know"
    )]
    MountOptions {
        /// The options.
        options: Vec<String>,
        /// What the kernel says.
        problem: String,
    },
    /// Snapshots lie in a store that the configuration does not have.
    #[error(
        "the configuration has no store {store:?}, but {count} snapshots lie there; add it again, or remove them \
         with the former configuration"
    )]
    StoreGone {
        /// Its name.
        store: String,
        /// How many.
        count: u64,
    },
    /// The disk has snapshots that the database never heard of.
    #[error(
        "{}: the metadata database is older than the disk: it knows snapshots up to number {last}, but {} holds \
         files. Nothing was deleted. Way out: stop Overstream and restore the latest database, without an old \
         metadata.db-wal or metadata.db-shm beside it; to give up what was made since, move this directory and \
         those with greater numbers aside",
        database.display(), directory.display()
    )]
    Older {
        /// The database.
        database: PathBuf,
        /// Largest number in it.
        last: u64,
        /// Upper or layer with a larger one.
        directory: PathBuf,
    },
    /// A store that was never used cannot be.
    #[error("{0}")]
    Store(Error),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

impl Snapshotter {
    /// Opens the root of a configuration. `runtime` carries the calls to containerd.
    pub(crate) fn open(
        config: &Config,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Arc<Self>, StartError> {
        let root = &config.root;
        let made = create_root(root)?;
        crate::crash::point("start: root made");
        let lock = lock_root(root)?;
        let features =
            Features::detect().at("read", Path::new("/proc/sys/kernel/random/boot_id"))?;
        if let Err(error) = try_root(config, &features, made) {
            if made {
                forget_root(root);
            }
            return Err(error);
        }
        let meta = Metastore::open(root)?;
        make_directory(&layout::snapshots(root))?;
        crate::crash::point("start: snapshots directory made");
        let root_uuid = meta.node_fact("uuid", &uuid::Uuid::new_v4().to_string())?;
        let stores = Stores::new(root, &root_uuid, &config.stores);
        let last = meta.last_id()?;
        stores.use_up(last);
        let snapshotter = Arc::new(Self {
            options: Options::new(config, &features),
            policy: Policy::new(config),
            containers: Box::new(Containerd::new(&config.containerd, runtime.clone())),
            usage: UsageCache::default(),
            cleaners: Cleaners::default(),
            settling: Doors::new(1, usize::MAX),
            handed_out: HandedOut::default(),
            sync: sync::Queue::default(),
            spares: Spares::default(),
            _lock: lock,
            meta,
            stores,
            features,
            last_id: last,
        });
        snapshotter.check_stores()?;
        snapshotter.reconcile()?;
        snapshotter.sync.wake();
        Ok(snapshotter)
    }

    /// A store that was never used must be usable; one that was may come back later.
    fn check_stores(self: &Arc<Self>) -> Result<(), StartError> {
        drop_foreign_garbage(&self.stores, &self.meta)?;
        for (store, count) in self.meta.stores_in_use()? {
            if !self.stores.knows(&store) {
                return Err(StartError::StoreGone { store, count });
            }
        }
        self.look(ROOT_STORE)?;
        let (mut known, mut others) = (Vec::new(), Vec::new());
        for store in self.stores.directories().filter(|store| *store != ROOT_STORE) {
            let is_known = self.meta.store_uuid(store, None)?.is_some();
            if is_known { &mut known } else { &mut others }.push(store);
        }
        self.look_at_known(&known)?;
        self.stores.look(&others).map_err(StartError::Store)?;
        others.into_iter().try_for_each(|store| self.look(store))
    }

    /// Looks at stores that were used before, without waiting long for those whose disk hangs.
    fn look_at_known(self: &Arc<Self>, known: &[&str]) -> Result<(), StartError> {
        let looks: Vec<_> =
            known.iter().map(|store| (*store, self.look_aside((*store).to_owned()))).collect();
        let deadline = Instant::now() + PATIENCE;
        for (store, look) in looks {
            match look.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(())) => {}
                Ok(Err(StartError::Store(error))) => {
                    tracing::error!(store, %error, "a store cannot be used; its snapshots are refused until it can");
                }
                Ok(Err(error)) => return Err(error),
                Err(RecvTimeoutError::Timeout) => {
                    self.stores.give_up_first_look(store);
                    tracing::error!(
                        store,
                        "a store does not answer, is its disk hung? Its snapshots are refused until it does"
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    tracing::error!(
                        store,
                        "a store could not be looked at; its snapshots may be refused"
                    );
                }
            }
        }
        Ok(())
    }

    /// Looks at a store by a thread of its own.
    fn look_aside(self: &Arc<Self>, store: String) -> Receiver<Result<(), StartError>> {
        let (sender, receiver) = mpsc::channel();
        self.stores.begin_first_look(&store);
        let first = FirstLook { snapshots: Arc::clone(self), store };
        let work = move || {
            let looked = first.snapshots.look(&first.store);
            if let Err(unheard) = sender.send(looked)
                && let Err(error) = unheard.0
            {
                tracing::error!(store = first.store, %error, "a store answers at last, but cannot be used as it is");
            }
        };
        if let Err(error) = start_thread("first look", work) {
            tracing::error!(%error, "cannot start a thread to look at a store");
        }
        receiver
    }

    /// Finds out whether a store can be used, and whether the database knows what is in it.
    fn look(&self, store: &str) -> Result<(), StartError> {
        let base = self.stores.ready(store, &self.meta, &self.features);
        let base = base.map_err(StartError::Store)?;
        if probe::in_memory(&base) {
            tracing::warn!(
                store,
                directory = %base.display(),
                "a store lies in memory (tmpfs); what is there is lost at a reboot"
            );
        }
        refuse_older_database(self.stores.root(), &base, self.last_id)
    }

    /// Makes disk and database agree.
    fn reconcile(self: &Arc<Self>) -> Result<()> {
        let present = directories(&layout::snapshots(self.stores.root()))?;
        self.stores.use_up(present.iter().copied().max().unwrap_or(0));
        self.collect_strays(ROOT_STORE, &present)?;
        let came = self.stores.take_came().into_iter();
        let came: Vec<_> =
            came.map(|(store, present)| (store.clone(), self.look_after(store, present))).collect();
        let elsewhere =
            |row: &Row| row.placement.place == Place::Store && row.placement.store != ROOT_STORE;
        self.rows()?.iter().filter(|row| !elsewhere(row)).for_each(|row| self.mend(row));
        let deadline = Instant::now() + PATIENCE;
        for (store, done) in came {
            let left = deadline.saturating_duration_since(Instant::now());
            if done.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                tracing::error!(
                    store,
                    "a store takes long to be made to agree with the database; not waited for"
                );
            }
        }
        Ok(())
    }

    /// The same for stores that came after the start, while calls are served.
    pub(super) fn reconcile_late(self: &Arc<Self>) {
        for (store, present) in self.stores.take_came() {
            tracing::info!(store, "a store that was away at the start is there");
            drop(self.look_after(store, present));
        }
    }

    /// Has a store that came looked after by a thread of its own, because its disk may hang. The channel
    /// closes when that is over.
    fn look_after(self: &Arc<Self>, store: String, present: Arc<HashSet<u64>>) -> Receiver<()> {
        let (open, over) = mpsc::channel();
        let came = Came { snapshots: Arc::clone(self), store, done: false };
        let work = move || {
            let _open = open;
            let mut came = came;
            let Came { snapshots, store, done } = &mut came;
            match snapshots.reconcile_store(store, &present) {
                Ok(()) => *done = true,
                Err(error) => {
                    tracing::error!(store, %error, "cannot make a store agree with the database; tried again later");
                }
            }
        };
        if let Err(error) = start_thread("reconcile", work) {
            tracing::error!(%error, "cannot start a thread to look after a store; tried again later");
        }
        over
    }

    fn reconcile_store(&self, store: &str, present: &HashSet<u64>) -> Result<()> {
        let base = self.ready(store)?;
        // Those may be newer than a database from a backup; the next start tells.
        let newer = |id: u64| {
            id > self.last_id && holds_files(&layout::snapshot(&base, id)).unwrap_or(true)
        };
        let present = present.iter().copied().filter(|id| !newer(*id)).collect();
        drop(base);
        self.collect_strays(store, &present)?;
        for row in self.rows()?.iter().filter(|row| row.placement.store == store) {
            let Ok(row) = self.as_it_is_now(row) else { continue };
            self.mend(&row);
            if let Err(Error::NotFound(_)) = self.as_it_is_now(&row) {
                // It was removed meanwhile, and its directory may have been made after that.
                self.meta.note_garbage(row.id, store)?;
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        self.meta.for_each(None, |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    /// Directories that no row needs become garbage; links below the root just go.
    fn collect_strays(&self, store: &str, present: &HashSet<u64>) -> Result<()> {
        let mut known = self.meta.live_ids(store)?;
        known.extend(self.meta.garbage()?.into_iter().map(|garbage| garbage.id));
        for id in present.difference(&known) {
            if store == ROOT_STORE && self.unlink_from_root(*id)? {
                crate::crash::point("start: stray link deleted");
                continue;
            }
            if store == ROOT_STORE && spare::delete_left(&layout::snapshot(self.stores.root(), *id))
            {
                continue;
            }
            tracing::info!(id, store, "found a directory without a snapshot, left by a crash");
            self.meta.note_garbage(*id, store)?;
        }
        Ok(())
    }

    /// Makes the directories a row needs; what cannot be made is reported, and refused when asked for.
    fn mend(&self, row: &Row) {
        let Ok(directory) = self.directory(row) else { return };
        let committed = row.info.kind == Kind::Committed;
        if row.placement.place != Place::Store {
            // A volume is not touched: it may never answer, or come back with everything in it.
            if committed {
                self.mend_link(row, &directory);
            }
            return;
        }
        if self.ready(&row.placement.store).is_err() {
            return;
        }
        let whole = directory.join(layout::FS).is_dir()
            && (row.info.kind != Kind::Active || directory.join(layout::WORK).is_dir());
        if row.placement.store == ROOT_STORE {
            spare::clear_mark(&directory);
        }
        match (committed, whole) {
            (true, true) => self.mend_link(row, &directory),
            (true, false) => tracing::error!(
                name = row.info.name,
                directory = %directory.display(),
                "the files of a committed layer are missing; remove the image and pull it again"
            ),
            (false, true) if row.fresh => self.sync.note_seen(row.id, directory),
            (false, true) => {}
            (false, false) => self.mend_upper(row, &directory),
        }
    }

    fn mend_link(&self, row: &Row, directory: &Path) {
        if let Err(error) = self.link_into_root(row, directory) {
            tracing::error!(name = row.info.name, %error, "a layer cannot be reached below the root");
        }
    }

    /// Makes an upper again, unless its directories were on disk once: no power failure takes those.
    fn mend_upper(&self, row: &Row, directory: &Path) {
        let key = &row.info.name;
        if !row.fresh && !directory.join(layout::FS).is_dir() {
            tracing::error!(
                key,
                directory = %directory.display(),
                "the upper of a snapshot is missing; restore it, or remove the container and create it anew"
            );
            return;
        }
        tracing::warn!(key, "an upper that never reached the disk is made again");
        let parent = row.parent.map(|parent| self.meta.chain_from(parent)).transpose();
        let made = parent
            .and_then(|chain| self.owner_for(&row.info.labels, &chain.unwrap_or_default()))
            .and_then(|owner| mend_snapshot(directory, row.info.kind, owner));
        if let Err(error) = made {
            tracing::error!(key, %error, "an upper is missing and cannot be made again");
        }
    }
}

/// A store that came; looked after again later, unless it is done when this is dropped.
struct Came {
    snapshots: Arc<Snapshotter>,
    store: String,
    done: bool,
}

impl Drop for Came {
    fn drop(&mut self) {
        self.snapshots.stores.looked_after(&self.store, self.done);
    }
}

/// The start's look at a store, until this is dropped; then the store is looked after if it came.
struct FirstLook {
    snapshots: Arc<Snapshotter>,
    store: String,
}

impl Drop for FirstLook {
    fn drop(&mut self) {
        self.snapshots.stores.end_first_look(&self.store);
        self.snapshots.look_after_stores();
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Makes the root where it does not exist; true if it was made.
fn create_root(root: &Path) -> Result<bool> {
    layout::check_mountable(root)?;
    if let Some(above) = root.parent() {
        match fs::metadata(above) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(above).at("create", above)?;
            }
            // Making it would only tell that it exists, also where its disk failed.
            found => found.map(drop).at("read", above)?,
        }
    }
    let made = fs::symlink_metadata(root).is_err();
    make_directory(root).map(|()| made)
}

/// Finds out what can be found out before anything is written: whether uppers can lie in the root, with
/// the configured options, and in a new root whether all stores are there.
fn try_root(config: &Config, features: &Features, new: bool) -> Result<(), StartError> {
    // The lock keeps others out, so that the trials need no name of their own.
    const OWNER: &str = "root";
    let root = &config.root;
    probe::check_upper(root, OWNER, features)
        .map_err(|problem| StartError::Root { root: root.clone(), problem })?;
    if !config.mount_options.is_empty() {
        let options = config.mount_options.clone();
        probe::check_options(root, OWNER, features, &options)
            .map_err(|problem| StartError::MountOptions { options, problem })?;
    }
    if new {
        let stores = Stores::new(root, "", &config.stores);
        stores.look(&stores.directories().collect::<Vec<_>>()).map_err(StartError::Store)?;
    }
    Ok(())
}

/// Deletes a root that was made a moment ago, and in which there is only its lock.
fn forget_root(root: &Path) {
    let deleted = fs::remove_file(root.join(LOCK)).and_then(|()| fs::remove_dir(root));
    if let Err(error) = deleted {
        tracing::warn!(root = %root.display(), %error, "cannot delete the root that was made for nothing");
    }
}

/// Takes the root for this process, for as long as the file is open.
fn lock_root(root: &Path) -> Result<File, StartError> {
    let path = root.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).at("open", &path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).at("read", &path)?;
            return Err(StartError::Locked { root: root.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(TryLockError::Error(error)) => {
            return Err(Error::io("lock", &path, error).into());
        }
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        // The lock holds all the same, and a full disk must not keep the daemon from making room.
        tracing::warn!(path = %path.display(), %error, "cannot write down who serves this root");
    }
    Ok(file)
}

/// Forgets garbage in stores that the configuration does not have any more: a dead disk's will never
/// be deleted.
fn drop_foreign_garbage(stores: &Stores, meta: &Metastore) -> Result<()> {
    let mut foreign = meta.garbage()?;
    foreign.retain(|garbage| !stores.knows(&garbage.store));
    for garbage in &foreign {
        tracing::warn!(
            id = garbage.id,
            store = garbage.store,
            directory = garbage.volume_dir,
            "the configuration has no such store any more; what was to be deleted there is left alone"
        );
    }
    meta.forget_garbage(&foreign)
}

/// Refuses a database restored from a backup, to which newer uppers look like strays.
///
/// A crashed Prepare leaves an empty upper: nobody got its mounts.
fn refuse_older_database(root: &Path, store: &Path, last: u64) -> Result<(), StartError> {
    let newer = directories(&layout::snapshots(store))?.into_iter().filter(|id| *id > last);
    let mut newer: Vec<_> = newer.collect();
    newer.sort_unstable();
    for id in newer {
        let directory = layout::snapshot(store, id);
        if holds_files(&directory)? {
            return Err(StartError::Older { database: root.join(FILE), last, directory });
        }
    }
    Ok(())
}

/// True if the upper in a directory (not in one it links to) holds anything.
fn holds_files(directory: &Path) -> Result<bool> {
    let fs = directory.join(layout::FS);
    let is_link = directory.symlink_metadata().is_ok_and(|found| found.file_type().is_symlink());
    if is_link || !fs.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(false);
    }
    let mut entries = fs::read_dir(&fs).at("read", &fs)?;
    Ok(entries.next().is_some())
}
