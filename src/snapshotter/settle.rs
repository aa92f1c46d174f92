//! Settling the place of a container's upper on its volume, at the latest when its mounts are needed.
//!
//! Until containerd knows the container, a client gets a read-only view of the layers: CRI looks up
//! users in the image before it stores the container. An upper already there is taken over only if it
//! belongs on the same chain of layers and no mount uses it; the snapshot that had it says `moved`.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Snapshotter;
use super::create::{mend_snapshot, placed, remove_empty};
use super::volatile;
use crate::config::Otherwise;
use crate::doors::Inside;
use crate::error::{Error, IoContext, Result};
use crate::idmap;
use crate::layout;
use crate::metastore::{Layer, Place, Placement, ROOT_STORE, Row};
use crate::mountinfo;
use crate::mounts::{self, View};
use crate::placement::identity::Identity;
use crate::placement::volume::{self, Found, Home, NoVolume, Owner};
use crate::placement::{Decision, Request, Target};
use crate::probe;
use crate::snapshot::{KeyHint, Kind, Labels, Mount};

/// How long mounts that were handed out but never mounted keep others off the upper.
const HANDED_OUT: Duration = Duration::from_secs(60);

/// Uppers on volumes whose mounts were handed out, and what their workdir looked like then.
///
/// The kernel makes `work/work` anew at every mount, so a change since then shows that the mounts were
/// used, and the kernel's word that the upper is free can be trusted.
#[derive(Debug, Default)]
pub(super) struct HandedOut(Mutex<HashMap<PathBuf, Handed>>);

/// Who got the mounts, when, and the workdir as it was then.
type Handed = (u64, Instant, Option<Workdir>);

/// Inode number and change time of `work/work`.
type Workdir = (u64, i64, i64);

impl HandedOut {
    fn note(&self, directory: &Path, id: u64) {
        let entry = (id, Instant::now(), workdir(directory));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.to_owned(), entry);
    }

    /// True if another snapshot's mounts for this upper may be about to be mounted.
    fn is_pending(&self, directory: &Path, id: u64) -> bool {
        // A volume that hangs must not do so to those who ask about others.
        let entry = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(directory).copied();
        entry.is_some_and(|(owner, since, before)| {
            owner != id && since.elapsed() < HANDED_OUT && before == workdir(directory)
        })
    }

    /// A removed snapshot's mounts will not be mounted any more.
    pub(super) fn forget(&self, directory: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(directory);
    }
}

fn workdir(directory: &Path) -> Option<Workdir> {
    let found = fs::symlink_metadata(directory.join(layout::WORK).join("work")).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Refuses files under a snapshot's number that cannot be its own: it never had mounts.
///
/// A store that was away when the number was planned may hold some. What an earlier attempt to settle left
/// is empty.
fn refuse_foreign(row: &Row, store: &str, directory: &Path) -> Result<()> {
    let upper = directory.join(layout::FS);
    for part in [directory, &upper] {
        match fs::symlink_metadata(part) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => {
                if !found.at("read", part)?.is_dir() {
                    return Err(foreign(row, store, directory));
                }
            }
        }
    }
    match fs::read_dir(&upper).at("read", &upper)?.next() {
        None => Ok(()),
        Some(_) => Err(foreign(row, store, directory)),
    }
}

fn foreign(row: &Row, store: &str, directory: &Path) -> Error {
    Error::FailedPrecondition(format!(
        "snapshot {:?} cannot be placed in store {store:?}: {} holds files that are not its own, perhaps because \
         the store's disk was away when the snapshot got that number; move that directory aside, or create the \
         container anew",
        row.info.name,
        directory.display()
    ))
}

impl Snapshotter {
    /// Makes sure that a snapshot has a place; nothing while containerd does not know the container.
    pub(super) fn settled(
        &self,
        row: Row,
        chain: &[Layer],
        namespace: &str,
    ) -> Result<Option<Row>> {
        if row.placement.place != Place::Pending {
            return Ok(Some(row));
        }
        let key = row.info.name.clone();
        let hint = KeyHint::of(&key);
        let namespace = if hint.namespace.is_empty() { namespace } else { hint.namespace };
        let identity = match self.identity_from_labels(&row) {
            Some(identity) => identity,
            None => match self.ask_containerd(&row, namespace, hint.user_key)? {
                Some(identity) => identity,
                None => return Ok(None),
            },
        };
        let labels = row.info.labels.clone();
        let request =
            Request { snapshotter: &row.snapshotter.clone(), namespace, hint, labels: &labels };
        self.settle_once(&row, |row| self.settle(row, chain, &request, &identity)).map(Some)
    }

    /// Whose container a snapshot is by its labels, where those are trusted.
    pub(super) fn identity_from_labels(&self, row: &Row) -> Option<Identity> {
        let container = KeyHint::of(&row.info.name).user_key;
        self.policy
            .trusts_identity_labels()
            .then(|| Identity::from_snapshot(&row.info.labels, container))
            .flatten()
    }

    fn ask_containerd(
        &self,
        row: &Row,
        namespace: &str,
        container: &str,
    ) -> Result<Option<Identity>> {
        if namespace.is_empty() {
            return Err(Error::FailedPrecondition(format!(
                "key {:?} names no containerd namespace, so nobody can be asked whose container it is",
                row.info.name
            )));
        }
        let record = self.containers.find(namespace, container)?;
        let ours = record.filter(|record| {
            record.snapshot_key == container && record.snapshotter == row.snapshotter
        });
        Ok(ours.map(|record| Identity::from_record(&record, container)))
    }

    fn settle(
        &self,
        row: Row,
        chain: &[Layer],
        request: &Request<'_>,
        identity: &Identity,
    ) -> Result<Row> {
        let decision = self.policy.decide(request)?;
        let (decision, why) = match &decision.target {
            Target::Store(_) => (decision, "the configuration changed".to_owned()),
            Target::Volume { store, rule } => {
                match self.find_volume(*rule, store, identity, &row)? {
                    Ok(found) => {
                        return self.settle_on_volume(row, chain, &decision, store, &found);
                    }
                    Err(why) => (self.policy.decide_without_volume(*rule, request)?, why),
                }
            }
        };
        let Target::Store(store) = &decision.target else {
            return Err(Error::FailedPrecondition(format!(
                "rule for {:?} leads to a volume",
                row.info.name
            )));
        };
        self.check_none_wanted(&decision, request)?;
        let mut placement = placed(store, &format!("{}; {why}", decision.reason));
        placement.retain = decision.retains();
        if decision.volatile && !chain.is_empty() {
            placement.volatile_boot = Some(self.features.boot.clone());
        }
        self.check_mounts(&row, chain, &placement)?;
        self.settle_in_store(row, chain, placement)
    }

    /// Finds the container's volume, or tells why the next rule is to decide.
    fn find_volume(
        &self,
        rule: usize,
        store: &str,
        identity: &Identity,
        row: &Row,
    ) -> Result<Result<Found, String>> {
        if identity.sandbox {
            return Ok(Err("a sandbox gets no volume".to_owned()));
        }
        let Some(rule) = self.policy.rules.get(rule) else {
            return Err(Error::FailedPrecondition(format!("rule {rule} is gone")));
        };
        match volume::find(self.stores.pattern(store)?, rule, identity, &mountinfo::read()?) {
            Ok(found) => Ok(Ok(found)),
            Err(problem @ (NoVolume::Unknown(_) | NoVolume::None(_)))
                if rule.otherwise == Otherwise::Next =>
            {
                Ok(Err(problem.to_string()))
            }
            Err(problem) => Err(Error::FailedPrecondition(format!(
                "rule {} gives snapshot {:?} an upper in store {store:?}, but {problem}; the rule's `otherwise` \
                 decides what happens then",
                rule.number, row.info.name
            ))),
        }
    }

    /// Commit needs the files of a snapshot whose place was never settled: it is empty.
    pub(super) fn settled_for_commit(&self, row: Row) -> Result<Row> {
        if row.placement.place != Place::Pending {
            return Ok(row);
        }
        self.settle_once(&row, |row| {
            let parent = row.parent;
            let chain = parent.map_or_else(|| Ok(Vec::new()), |id| self.meta.chain_from(id))?;
            let placement = placed(ROOT_STORE, "committed before it was mounted; empty");
            self.settle_in_store(row, &chain, placement)
        })
    }

    /// Settles a pending snapshot while nobody else settles or removes it; one call's work serves all.
    fn settle_once(&self, row: &Row, settle: impl FnOnce(Row) -> Result<Row>) -> Result<Row> {
        self.alone(row.id, || {
            let now = self.as_it_is_now(row)?;
            if now.placement.place == Place::Pending { settle(now) } else { Ok(now) }
        })
    }

    /// Reads a snapshot's row again; another snapshot of the same key is not it.
    pub(super) fn as_it_is_now(&self, row: &Row) -> Result<Row> {
        let now = self.meta.get(&row.snapshotter, &row.info.name)?;
        if now.id == row.id { Ok(now) } else { Err(Error::no_snapshot(&row.info.name)) }
    }

    /// Keeps other calls from settling or removing a pending snapshot meanwhile.
    pub(super) fn alone<T>(&self, id: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let snapshot = layout::snapshot(self.stores.root(), id);
        let _alone = self.settling.enter(&snapshot).map_err(|stuck| {
            Error::Unavailable(format!("snapshot {id} is being given a place: {stuck}"))
        })?;
        work()
    }

    /// Keeps other calls from changing hands of the uppers on a volume meanwhile.
    pub(super) fn alone_on(&self, volume: &Path) -> Result<Inside<'_>> {
        self.settling
            .enter(volume)
            .map_err(|stuck| Error::Unavailable(format!("volume {}: {stuck}", volume.display())))
    }

    /// Settles a pending snapshot in the store of `placement`.
    fn settle_in_store(&self, mut row: Row, chain: &[Layer], placement: Placement) -> Result<Row> {
        let owner = self.owner_for(&row.info.labels, chain)?;
        let base = self.present(&placement.store)?;
        let directory = layout::snapshot(&base, row.id);
        refuse_foreign(&row, &placement.store, &directory)?;
        let settled = mend_snapshot(&directory, Kind::Active, owner).and_then(|()| {
            crate::crash::point("settle: directories made");
            self.meta.settle(row.id, &placement)
        });
        if settled.is_err()
            && self.is_pending(&row)
            && let Err(error) = remove_empty(&directory)
        {
            tracing::warn!(directory = %directory.display(), %error, "cannot delete, left to the next start");
        }
        settled?;
        row.placement = placement;
        Ok(row)
    }

    /// True if a snapshot that could not be settled certainly is not.
    fn is_pending(&self, row: &Row) -> bool {
        match self.as_it_is_now(row) {
            Ok(now) => now.placement.place == Place::Pending,
            Err(error) => matches!(error, Error::NotFound(_)),
        }
    }

    /// Settles a pending snapshot on its volume.
    fn settle_on_volume(
        &self,
        row: Row,
        chain: &[Layer],
        decision: &Decision,
        store: &str,
        found: &Found,
    ) -> Result<Row> {
        let upper = found.mount.join(volume::DIRECTORY).join(&found.subdirectory);
        let mut placement =
            placed(store, &format!("{}: volume {}", decision.reason, found.mount.display()));
        placement.place = Place::Volume(upper.display().to_string());
        placement.retain = decision.retains();
        // Before the volume is entered: layers may lie on a disk that hangs.
        let owner = self.owner_for(&row.info.labels, chain)?;
        self.check_mounts(&row, chain, &placement)?;
        let _alone = self.alone_on(&found.mount)?;
        let _inside = self.stores.enter(store, &upper)?;
        probe::check_upper(&found.mount, self.stores.root_uuid(), &self.features)
            .map_err(|problem| Error::FailedPrecondition(format!("store {store:?}: {problem}")))?;
        let home = Home::create(&found.mount, &found.subdirectory, owner)?;
        crate::crash::point("settle: volume directory made");
        let before = home.owner()?;
        self.settle_at_home(&row, chain, &home, &placement).inspect_err(|_| {
            if !self.is_pending(&row) {
                return;
            }
            let restored = home.restore(&found.mount, &found.subdirectory, before.as_ref());
            if let Err(error) = restored {
                tracing::warn!(upper = %home.path().display(), %error, "cannot undo a refused take-over");
            }
        })?;
        Ok(Row { placement, ..row })
    }

    /// Makes the upper in a directory on a volume this snapshot's.
    fn settle_at_home(
        &self,
        row: &Row,
        chain: &[Layer],
        home: &Home,
        placement: &Placement,
    ) -> Result<()> {
        let identity = self.chain_identity(chain);
        self.meta.check_no_layer(&home.path().display().to_string())?;
        self.check_take_over(row, home, &identity)?;
        home.set_owner(&Owner::new(
            self.stores.root_uuid(),
            row.id,
            identity,
            self.features.userxattr,
        ))?;
        crate::crash::point("settle: identity written");
        self.meta.settle(row.id, placement)?;
        crate::crash::point("settle: recorded");
        Ok(())
    }

    /// Finds out mounts that cannot be before anything is recorded for them.
    fn check_mounts(&self, row: &Row, chain: &[Layer], placement: &Placement) -> Result<()> {
        let settled = Row { placement: placement.clone(), ..row.clone() };
        self.mounts_of(&settled, chain).map(drop)
    }

    /// Refuses an upper that is another chain's, or that somebody uses or is about to use.
    fn check_take_over(&self, row: &Row, home: &Home, chain: &[String]) -> Result<()> {
        let refuse = |problem: &str| {
            Err(Error::FailedPrecondition(format!("upper in {}: {problem}", home.path().display())))
        };
        match home.owner()? {
            None if home.is_empty()? => return Ok(()),
            None => {
                return refuse("there are files, but nothing says whose they are; move them aside");
            }
            // An empty upper belongs on any layers.
            Some(owner) if owner.chain != chain && !home.is_empty()? => {
                return refuse(&format!(
                    "it belongs on layer {:?}, the container now runs on {:?}; use the former image, or move the \
                     directory aside to start with an empty upper",
                    owner.chain.first().map_or("none", String::as_str),
                    chain.first().map_or("none", String::as_str)
                ));
            }
            Some(owner) if owner.userxattr != self.features.userxattr => {
                return refuse(
                    "its overlay marks are in the other attribute name space (root and rootless)",
                );
            }
            Some(_) => {}
        }
        if self.handed_out.is_pending(home.path(), row.id) {
            return Err(Error::Unavailable(format!(
                "upper in {}: its mounts were just given to another container; try again in a minute",
                home.path().display()
            )));
        }
        let upper = home.path().join(layout::FS);
        if probe::upper_in_use(&upper).at("ask the kernel about", &upper)? {
            return refuse("another container still has it mounted");
        }
        Ok(())
    }

    /// Owner of the root directory of a new upper.
    pub(super) fn owner_for(&self, labels: &Labels, chain: &[Layer]) -> Result<(u32, u32)> {
        match (idmap::root_owner(labels)?, chain.first()) {
            (Some(root), _) => Ok((root.uid, root.gid)),
            (None, Some(parent)) => self.owner_of(parent),
            (None, None) => Ok((0, 0)),
        }
    }

    /// What a client gets while the place is not settled: the layers, read-only.
    pub(super) fn provisional_mounts(&self, chain: &[Layer]) -> Result<Vec<Mount>> {
        if chain.is_empty() {
            return Err(Error::FailedPrecondition(
                "a snapshot without parent cannot wait for its volume: its labels have to tell whose it is".to_owned(),
            ));
        }
        mounts::mounts(&View {
            kind: Kind::View,
            own: self.stores.root(),
            lowers: &self.lowers(chain)?,
            id_maps: &[],
            overlay_options: &self.options.overlay,
            volatile: false,
        })
    }

    /// Makes sure, before mounts are handed out, that the upper is there and is this snapshot's.
    pub(super) fn check_upper(&self, row: &Row) -> Result<()> {
        if row.info.kind != Kind::Active {
            return Ok(());
        }
        let directory = self.directory(row)?;
        let _inside = self.stores.enter(&row.placement.store, &directory)?;
        if let Place::Volume(_) = row.placement.place {
            self.check_volume(row, &directory)?;
            let upper = directory.join(layout::FS);
            if probe::upper_in_use(&upper).at("ask the kernel about", &upper)? {
                self.handed_out.forget(&directory);
            } else {
                self.handed_out.note(&directory, row.id);
            }
        } else if !directory.join(layout::FS).is_dir() {
            return Err(Error::Unavailable(format!(
                "the upper of snapshot {:?} is not in {}; is the disk of store {:?} mounted?",
                row.info.name,
                directory.display(),
                row.placement.store
            )));
        }
        volatile::make_mountable(row, &directory, &self.features.boot)
    }

    /// Another volume may have been mounted in the place of the one the upper lies on.
    fn check_volume(&self, row: &Row, directory: &Path) -> Result<()> {
        let (mount, name) = volume::split(row.id, directory)?;
        let gone = |problem: &str| {
            Error::Unavailable(format!(
                "upper of snapshot {:?} in {}: {problem}",
                row.info.name,
                directory.display()
            ))
        };
        if !mountinfo::read()?.iter().any(|found| found.path == mount) {
            return Err(gone("its volume is not mounted"));
        }
        let home = Home::open(mount, name)?
            .ok_or_else(|| gone("the volume mounted there is another one"))?;
        let owner = home.owner()?.ok_or_else(|| gone("the volume mounted there is another one"))?;
        if owner.root == self.stores.root_uuid() && owner.snapshot == row.id {
            home.check()
        } else {
            Err(gone("it belongs to another snapshot now"))
        }
    }
}
