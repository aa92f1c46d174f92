//! The stores as they are on this host now: reachable or not, and the one they were before.
//!
//! A store of type `dir` carries a marker with its identity and that of the root it serves. A disk
//! that is not mounted is then recognised by the marker's absence, instead of filling the disk below.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Write};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::config::{Store, StoreKind};
use crate::doors::{Doors, Inside};
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{Metastore, ROOT_STORE};
use crate::probe::{self, Features};

/// Name of the marker in a store's directory.
const MARKER: &str = ".overstream-store";

/// Most calls in one store or volume, and in all but the root: calls for the root find a thread, whatever
/// else hangs.
const CALLS: (usize, usize) = (8, 16);
/// The same for walks, which take long on a sound disk, too.
const WALKS: (usize, usize) = (4, 8);

/// All places where files of snapshots can lie.
#[derive(Debug)]
pub(crate) struct Stores {
    root: PathBuf,
    root_uuid: String,
    dirs: BTreeMap<String, DirStore>,
    volumes: BTreeMap<String, Regex>,
    calls: Doors,
    walks: Doors,
    came: AtomicBool,
    next_id: AtomicU64,
}

/// The directory of a store, for somebody inside.
#[derive(Debug)]
pub(crate) struct Base<'a> {
    path: &'a Path,
    _inside: Inside<'a>,
}

impl Deref for Base<'_> {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.path
    }
}

#[derive(Debug)]
struct DirStore {
    path: PathBuf,
    ready: AtomicBool,
    /// Device and inode when it was last looked at.
    identity: Mutex<Option<(u64, u64)>>,
    first_look: Mutex<FirstLook>,
    found: Mutex<Found>,
}

/// How far the start's look at a store has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstLook {
    /// Nobody looks.
    None,
    /// The start waits for it.
    Awaited,
    /// The start went on without it.
    Silent,
}

/// What lay in a store before this daemon used it.
#[derive(Debug)]
enum Found {
    /// It has not been there yet.
    Unseen,
    /// Directories of these numbers, which nobody has looked after yet.
    Before(Arc<HashSet<u64>>),
    /// The same, and somebody is looking after them.
    Taken(Arc<HashSet<u64>>),
    /// That has been looked after.
    Done,
}

impl DirStore {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            ready: AtomicBool::new(false),
            identity: Mutex::default(),
            first_look: Mutex::new(FirstLook::None),
            found: Mutex::new(Found::Unseen),
        }
    }

    fn identity(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first_look(&self) -> MutexGuard<'_, FirstLook> {
        self.first_look.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Serialize, Deserialize)]
struct Marker {
    /// Identity of the store.
    store: String,
    /// Identity of the root it serves.
    root: String,
}

impl Stores {
    pub(crate) fn new(root: &Path, root_uuid: &str, configured: &BTreeMap<String, Store>) -> Self {
        let (mut dirs, mut volumes) = (BTreeMap::new(), BTreeMap::new());
        for (name, store) in configured {
            match &store.kind {
                StoreKind::Dir(path) => {
                    dirs.insert(name.clone(), DirStore::new(path));
                }
                StoreKind::Volume(pattern) => {
                    volumes.insert(name.clone(), pattern.clone());
                }
            }
        }
        let [calls, walks] = [CALLS, WALKS].map(|(each, all)| Doors::new(each, all));
        let (came, next_id) = (AtomicBool::new(false), AtomicU64::new(1));
        let (root, root_uuid) = (root.to_owned(), root_uuid.to_owned());
        Self { root, root_uuid, dirs, volumes, calls, walks, came, next_id }
    }

    /// The layer store.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Identity of the root.
    pub(crate) fn root_uuid(&self) -> &str {
        &self.root_uuid
    }

    /// True if the configuration has a store of this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        name == ROOT_STORE || self.dirs.contains_key(name) || self.volumes.contains_key(name)
    }

    /// Names of the stores that are directories, the root first.
    pub(crate) fn directories(&self) -> impl Iterator<Item = &str> {
        std::iter::once(ROOT_STORE).chain(self.dirs.keys().map(String::as_str))
    }

    /// Names and patterns of the volume stores.
    pub(crate) fn volumes(&self) -> impl Iterator<Item = (&str, &Regex)> {
        self.volumes.iter().map(|(name, pattern)| (name.as_str(), pattern))
    }

    /// The pattern of a volume store.
    pub(crate) fn pattern(&self, name: &str) -> Result<&Regex> {
        self.volumes.get(name).ok_or_else(|| not_configured(name))
    }

    /// The directory of a store, whether or not it can be used now.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        if name == ROOT_STORE {
            return Ok(&self.root);
        }
        self.dirs.get(name).map(|store| store.path.as_path()).ok_or_else(|| not_configured(name))
    }

    /// Enters the disk of `directory`, a snapshot's in a store; refused if calls there do not come back.
    pub(crate) fn enter(&self, name: &str, directory: &Path) -> Result<Inside<'_>> {
        self.enter_by(&self.calls, name, directory)
    }

    /// The same for a walk, which does not keep others out.
    pub(crate) fn enter_to_walk(&self, name: &str, directory: &Path) -> Result<Inside<'_>> {
        self.enter_by(&self.walks, name, directory)
    }

    /// The root is let pass: nothing works without it.
    fn enter_by<'a>(
        &'a self,
        doors: &'a Doors,
        name: &str,
        directory: &Path,
    ) -> Result<Inside<'a>> {
        if name == ROOT_STORE {
            return Ok(Inside::nowhere());
        }
        let store = self.dirs.get(name);
        if let Some(store) = store
            && *store.first_look() == FirstLook::Silent
        {
            return Err(unusable(name, store, "no answer since the start; is it hung?"));
        }
        let volume = || directory.parent().and_then(Path::parent).unwrap_or(directory);
        let disk = store.map_or_else(volume, |store| &store.path);
        doors.enter(disk).map_err(|stuck| {
            Error::Unavailable(format!("store {name:?} at {}: {stuck}", disk.display()))
        })
    }

    /// Notes that the start looks at a store for the first time.
    pub(crate) fn begin_first_look(&self, name: &str) {
        if let Some(store) = self.dirs.get(name) {
            *store.first_look() = FirstLook::Awaited;
        }
    }

    /// Notes that the start goes on without it: nobody else enters until it is over.
    pub(crate) fn give_up_first_look(&self, name: &str) {
        if let Some(store) = self.dirs.get(name) {
            let mut look = store.first_look();
            if *look == FirstLook::Awaited {
                *look = FirstLook::Silent;
            }
        }
    }

    /// Notes that it is over.
    pub(crate) fn end_first_look(&self, name: &str) {
        if let Some(store) = self.dirs.get(name) {
            *store.first_look() = FirstLook::None;
        }
    }

    /// The directory of a store, after making sure that it is the one it should be.
    ///
    /// A store that failed before is tried again: its disk may have been mounted since.
    pub(crate) fn ready(
        &self,
        name: &str,
        meta: &Metastore,
        features: &Features,
    ) -> Result<Base<'_>> {
        let _inside = self.enter(name, self.path(name)?)?;
        let path = self.check(name, meta, features)?;
        Ok(Base { path, _inside })
    }

    fn check(&self, name: &str, meta: &Metastore, features: &Features) -> Result<&Path> {
        if name == ROOT_STORE {
            return Ok(&self.root);
        }
        let store = self.dirs.get(name).ok_or_else(|| not_configured(name))?;
        if !store.ready.load(Ordering::Acquire) {
            self.open(name, store, meta, features)?;
            self.note_found(store)?;
            store.ready.store(true, Ordering::Release);
        }
        Ok(&store.path)
    }

    /// Notes what is in a store before anybody adds to it, and never uses those numbers again.
    ///
    /// Nobody adds before one of those who list at the same time has noted it, and the first note counts.
    fn note_found(&self, store: &DirStore) -> Result<()> {
        if !matches!(*store.found(), Found::Unseen) {
            return Ok(());
        }
        let before = directories(&layout::snapshots(&store.path))?;
        self.use_up(before.iter().copied().max().unwrap_or(0));
        let mut found = store.found();
        if matches!(*found, Found::Unseen) {
            *found = Found::Before(Arc::new(before));
            self.came.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// True if a store came that nobody has looked after yet.
    pub(crate) fn any_came(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }

    /// The stores that came, for one caller each, with the numbers of what was in them.
    pub(crate) fn take_came(&self) -> Vec<(String, Arc<HashSet<u64>>)> {
        self.came.store(false, Ordering::Release);
        let take = |(name, store): (&String, &DirStore)| {
            let mut found = store.found();
            let Found::Before(before) = &*found else { return None };
            let before = Arc::clone(before);
            *found = Found::Taken(Arc::clone(&before));
            Some((name.clone(), before))
        };
        self.dirs.iter().filter_map(take).collect()
    }

    /// Notes that a store that was taken has been looked after, or that it is to be taken again.
    pub(crate) fn looked_after(&self, name: &str, done: bool) {
        let Some(store) = self.dirs.get(name) else { return };
        let mut found = store.found();
        if let Found::Taken(before) = &*found {
            *found = if done { Found::Done } else { Found::Before(Arc::clone(before)) };
        }
    }

    /// True while a store that came has not been looked after.
    pub(crate) fn any_left(&self) -> bool {
        let left = |store: &DirStore| matches!(*store.found(), Found::Before(_) | Found::Taken(_));
        self.dirs.values().any(left)
    }

    /// A number that no snapshot ever had.
    pub(crate) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Never gives out this number, or a smaller one.
    pub(crate) fn use_up(&self, id: u64) {
        self.next_id.fetch_max(id + 1, Ordering::Relaxed);
    }

    /// The directory of a store whose disk is mounted at this moment: where a missing file must not
    /// be taken for a deleted one.
    pub(crate) fn present(
        &self,
        name: &str,
        meta: &Metastore,
        features: &Features,
    ) -> Result<Base<'_>> {
        let base = self.ready(name, meta, features)?;
        if name != ROOT_STORE {
            let known = meta.store_uuid(name, None)?;
            let marker = self.read_marker(&base)?;
            if marker.is_none_or(|marker| Some(marker.store) != known) {
                self.recheck(name, meta, features)?;
            }
        }
        Ok(base)
    }

    /// Finds out what became of a store in which a directory is suddenly missing, for somebody inside.
    pub(crate) fn recheck(&self, name: &str, meta: &Metastore, features: &Features) -> Result<()> {
        if let Some(store) = self.dirs.get(name) {
            store.ready.store(false, Ordering::Release);
        }
        self.check(name, meta, features).map(drop)
    }

    /// Checks a store's directory, and makes it ours if it never was anybody's.
    fn open(
        &self,
        name: &str,
        store: &DirStore,
        meta: &Metastore,
        features: &Features,
    ) -> Result<()> {
        self.look_at(name, store)?;
        let unusable = |problem: String| unusable(name, store, &problem);
        let known = meta.store_uuid(name, None)?;
        match (self.read_marker(&store.path)?, known) {
            (Some(marker), _) if marker.root != self.root_uuid => {
                return Err(unusable(format!(
                    "its marker {MARKER} says that it belongs to another Overstream root; give each root its own \
                     directory"
                )));
            }
            (Some(marker), Some(known)) if marker.store != known => {
                return Err(unusable(
                    "this is another store of this root; check its path".to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(unusable(format!(
                    "its marker {MARKER} is missing, so this is not the directory it was; is its disk mounted?"
                )));
            }
            (Some(marker), None) => match meta.store_name(&marker.store)? {
                Some(other) if self.knows(&other) => {
                    return Err(unusable(format!("this is the directory of store {other:?}")));
                }
                former => meta.claim_store(name, &marker.store, former.as_deref())?,
            },
            (Some(_), Some(_)) => {}
            (None, None) => {
                if holds_entries(&layout::snapshots(&store.path))? {
                    return Err(unusable(format!(
                        "its directory {} holds files, but no marker {MARKER} says that they are this root's; \
                         choose a directory that no other program uses",
                        layout::SNAPSHOTS
                    )));
                }
                probe::check_upper(&store.path, &self.root_uuid, features).map_err(&unusable)?;
                return self.adopt(name, &store.path, meta);
            }
        }
        make_directory(&layout::snapshots(&store.path))?;
        probe::check_upper(&store.path, &self.root_uuid, features).map_err(unusable)
    }

    /// Checks that these stores have a directory of their own; nothing is changed.
    pub(crate) fn look(&self, names: &[&str]) -> Result<()> {
        let mut stores = self.dirs.iter().filter(|(name, _)| names.contains(&name.as_str()));
        stores.try_for_each(|(name, store)| self.look_at(name, store))
    }

    fn look_at(&self, name: &str, store: &DirStore) -> Result<()> {
        let problem = match fs::metadata(&store.path) {
            Ok(found) if found.is_dir() => match self.refuse_alias(name, store, identity(&found)) {
                Ok(()) => return Ok(()),
                Err(problem) => problem,
            },
            Ok(_) => "not a directory".to_owned(),
            Err(error) => format!("{error}; mount its disk, or create the directory"),
        };
        Err(unusable(name, store, &problem))
    }

    /// Refuses a directory that is another store's as well: each would take the other's for strays.
    ///
    /// Other stores are not touched, unless this directory was one of them: their disks may hang.
    fn refuse_alias(&self, name: &str, store: &DirStore, own: (u64, u64)) -> Result<(), String> {
        *store.identity() = Some(own);
        let is_own = |path: &Path| fs::metadata(path).is_ok_and(|there| identity(&there) == own);
        let others = self
            .dirs
            .iter()
            .filter(|(other, store)| *other != name && *store.identity() == Some(own));
        let others = others.map(|(other, store)| (other.as_str(), store.path.as_path()));
        let mut all = std::iter::once((ROOT_STORE, self.root.as_path())).chain(others);
        all.find(|(_, path)| is_own(path)).map_or(Ok(()), |(other, path)| {
            Err(format!(
                "this is the same directory as that of store {other:?}, {}; give each its own",
                path.display()
            ))
        })
    }

    fn adopt(&self, name: &str, path: &Path, meta: &Metastore) -> Result<()> {
        let uuid = uuid::Uuid::new_v4().to_string();
        let marker = Marker { store: uuid.clone(), root: self.root_uuid.clone() };
        let file = path.join(MARKER);
        let temporary = path.join(format!("{MARKER}.new"));
        let text = serde_json::to_string(&marker)
            .map_err(|error| Error::InvalidArgument(format!("{}: {error}", file.display())))?;
        let mut writer = fs::File::create(&temporary).at("create", &temporary)?;
        let written = writer.write_all(text.as_bytes()).and_then(|()| writer.sync_all());
        if written.is_err() {
            fs::remove_file(&temporary).at("delete", &temporary)?;
        }
        written.at("write", &temporary)?;
        crate::crash::point("store: marker written");
        fs::rename(&temporary, &file).at("rename", &temporary)?;
        crate::crash::point("store: marker in place");
        make_directory(&layout::snapshots(path))?;
        fs::File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)?;
        crate::crash::point("store: adopted");
        meta.store_uuid(name, Some(&uuid)).map(drop)
    }

    fn read_marker(&self, path: &Path) -> Result<Option<Marker>> {
        let file = path.join(MARKER);
        match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            text => serde_json::from_str(&text.at("read", &file)?).map(Some).map_err(|error| {
                Error::Unavailable(format!("{} is damaged: {error}; restore it", file.display()))
            }),
        }
    }
}

/// True if there is such a directory and something in it.
fn holds_entries(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        entries => Ok(entries.at("read", directory)?.next().is_some()),
    }
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn unusable(name: &str, store: &DirStore, problem: &str) -> Error {
    Error::Unavailable(format!("store {name:?} at {}: {problem}", store.path.display()))
}

fn not_configured(name: &str) -> Error {
    Error::Unavailable(format!(
        "the configuration has no store {name:?} any more, but snapshots lie there; add it again"
    ))
}

/// Makes a directory with mode 0700 unless it exists.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.at("create", path),
    }
}

/// Numbers of the directories (and links) in a store.
pub(crate) fn directories(snapshots: &Path) -> Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    for entry in fs::read_dir(snapshots).at("read", snapshots)? {
        let name = entry.at("read", snapshots)?.file_name();
        match name.to_str().and_then(layout::parse_id) {
            Some(id) => {
                ids.insert(id);
            }
            None => tracing::warn!(
                directory = %snapshots.display(),
                name = %name.to_string_lossy(),
                "found something that Overstream did not put there; left alone"
            ),
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_one(path: &Path) -> Stores {
        let mut stores = Stores::new(Path::new("/root"), "", &BTreeMap::new());
        stores.dirs.insert("one".to_owned(), DirStore::new(path));
        stores
    }

    #[test]
    fn a_store_that_came_is_taken_again_only_if_it_was_not_looked_after() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("snapshots/7")).unwrap();
        let stores = with_one(scratch.path());
        stores.note_found(stores.dirs.get("one").unwrap()).unwrap();
        assert!(stores.any_came() && stores.new_id() == 8);
        for done in [false, true] {
            let [(name, before)] = stores.take_came().try_into().unwrap();
            assert_eq!((name.as_str(), before.contains(&7)), ("one", true));
            assert!(stores.take_came().is_empty() && stores.any_left());
            stores.looked_after("one", done);
        }
        assert!(stores.take_came().is_empty() && !stores.any_left());
    }

    #[test]
    fn a_store_that_is_silent_at_the_start_is_refused_until_it_answers() {
        let stores = with_one(Path::new("/one"));
        let enters = || stores.enter("one", Path::new("/one/snapshots/1")).is_ok();
        stores.begin_first_look("one");
        assert!(enters());
        stores.give_up_first_look("one");
        assert!(!enters());
        stores.end_first_look("one");
        assert!(enters());
        stores.give_up_first_look("one");
        assert!(enters(), "given up after it had answered");
    }
}
