//! Prepare and View: checks, a place, directories, the row; in this order.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::{Snapshotter, without_empty};
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{Layer, NewSnapshot, Place, Placement, ROOT_STORE, Removal, Row, Wait};
use crate::placement::{Decision, Request, Resume, Target};
use crate::snapshot::{Info, KeyHint, Kind, Labels, Mount, Time, Usage};

/// A snapshot that a client asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New<'a> {
    /// Plugin name.
    pub snapshotter: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Name of a committed snapshot, or empty.
    pub parent: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// containerd's namespace from the request's header; empty if there was none.
    pub namespace: &'a str,
}

/// What creating a snapshot has to do on disk.
struct Plan {
    id: u64,
    placement: Placement,
    resumes: bool,
}

/// What is to be created, as far as the database and the rules tell.
struct Draft {
    chain: Vec<Layer>,
    /// None for views and image layers, which use the layer store.
    decision: Option<Decision>,
}

impl Draft {
    /// True if no other disk than the root's is needed, now or to look for something to resume.
    fn stays_in_root(&self) -> bool {
        let in_root = |decision: &Decision| {
            matches!(&decision.target, Target::Store(store) if store == ROOT_STORE)
                && matches!(decision.resume, Resume::Fresh)
        };
        self.decision.as_ref().is_none_or(in_root)
            && self.chain.iter().all(|layer| layer.store == ROOT_STORE)
    }
}

/// What the rules look at.
fn request<'a>(new: &New<'a>) -> Request<'a> {
    let hint = KeyHint::of(new.key);
    let namespace = if hint.namespace.is_empty() { new.namespace } else { hint.namespace };
    Request { snapshotter: new.snapshotter, namespace, hint, labels: new.labels }
}

impl Snapshotter {
    pub(super) fn create(&self, kind: Kind, new: &New<'_>) -> Result<Vec<Mount>> {
        let labels = without_empty(new.labels);
        let new = New { labels: &labels, ..*new };
        let draft = self.draft(kind, &new)?;
        self.carry_out(kind, &new, draft, Wait::AsLongAsItTakes)
    }

    /// Makes a writable snapshot of which all lies in the root, while its disk is quick; nothing for
    /// others.
    pub(crate) fn prepare_in_root(&self, new: &New<'_>) -> Result<Option<Vec<Mount>>> {
        if !self.meta.is_quick() {
            return Ok(None);
        }
        let labels = without_empty(new.labels);
        let new = New { labels: &labels, ..*new };
        let draft = self.draft(Kind::Active, &new)?;
        if !draft.stays_in_root() {
            return Ok(None);
        }
        match self.carry_out(Kind::Active, &new, draft, Wait::Briefly) {
            Err(Error::WouldWait) => Ok(None),
            mounts => mounts.map(Some),
        }
    }

    /// Checks what is asked for and decides on its place, from the database alone.
    fn draft(&self, kind: Kind, new: &New<'_>) -> Result<Draft> {
        let chain = self.meta.check_new(new.snapshotter, new.key, new.parent)?;
        if new.key.is_empty() {
            return Err(Error::InvalidArgument("the key of the snapshot is empty".to_owned()));
        }
        self.check_chain(&chain)?;
        if kind == Kind::View || KeyHint::of(new.key).is_extraction() {
            return Ok(Draft { chain, decision: None });
        }
        let decision = self.policy.decide(&request(new))?;
        Ok(Draft { chain, decision: Some(decision) })
    }

    fn carry_out(&self, kind: Kind, new: &New<'_>, draft: Draft, wait: Wait) -> Result<Vec<Mount>> {
        let Draft { chain, decision } = draft;
        let owner = self.owner_for(new.labels, &chain)?;
        let mut plan = self.plan(kind, new, &chain, decision)?;
        crate::crash::point("prepare: before directories");
        let made = self.make_directories(kind, &mut plan, owner)?;
        match self.record(kind, new, &plan, &chain, wait) {
            Ok(mounts) => Ok(mounts),
            Err(error) => {
                if let Some(directory) = made {
                    self.discard(plan.id, &plan.placement.store, &directory);
                    crate::crash::point("prepare: undone");
                }
                Err(error)
            }
        }
    }

    /// Says where the files go; nothing has changed on disk yet.
    fn plan(
        &self,
        kind: Kind,
        new: &New<'_>,
        chain: &[Layer],
        decision: Option<Decision>,
    ) -> Result<Plan> {
        let Some(decision) = decision else {
            let reason = if kind == Kind::View {
                "views use the layer store"
            } else {
                "image layers use the layer store"
            };
            return Ok(self.fresh(placed(ROOT_STORE, reason)));
        };
        if let Some(resumed) = self.find_resumed(&decision, &request(new), chain)? {
            return Ok(resumed.into_plan(decision));
        }
        let mut placement = placed("", &decision.reason);
        placement.retain = decision.retains();
        // Overlay needs a lower: without a parent there is a bind mount, which is never volatile.
        if decision.volatile && !chain.is_empty() {
            placement.volatile_boot = Some(self.features.boot.clone());
        }
        match decision.target {
            Target::Store(store) => placement.store = store,
            Target::Volume { store, .. } => {
                placement.store = store;
                placement.place = Place::Pending;
            }
        }
        Ok(self.fresh(placement))
    }

    fn fresh(&self, placement: Placement) -> Plan {
        Plan { id: self.new_id(), placement, resumes: false }
    }

    /// A number that no snapshot ever had.
    pub(super) fn new_id(&self) -> u64 {
        self.stores.new_id()
    }

    /// Makes a new snapshot's directories; returns what to delete should recording it fail.
    fn make_directories(
        &self,
        kind: Kind,
        plan: &mut Plan,
        owner: (u32, u32),
    ) -> Result<Option<PathBuf>> {
        if plan.resumes || plan.placement.place != Place::Store {
            return Ok(None);
        }
        let store = &plan.placement.store;
        let base = self.ready(store)?;
        // A spare may have reached the disk long before, and a new owner need not be there after a power
        // failure.
        if kind == Kind::Active
            && store == ROOT_STORE
            && owner == (0, 0)
            && let Some(spare) = self.take_spare()
        {
            plan.id = spare;
            let directory = layout::snapshot(&base, spare);
            return Ok(Some(directory));
        }
        // A number whose directory exists is a stray of a store that was away when we started.
        let directory = loop {
            let directory = layout::snapshot(&base, plan.id);
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => break directory,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => plan.id = self.new_id(),
                Err(error) => return Err(self.explain_failure(store, error, &directory)),
            }
        };
        crate::crash::point("prepare: snapshot directory made");
        let filled = fill_snapshot(&directory, kind, owner);
        drop(base);
        filled.inspect_err(|_| self.discard(plan.id, store, &directory))?;
        crate::crash::point("prepare: directories made");
        Ok(Some(directory))
    }

    /// A store whose disk went away says so; everything else is an I/O error.
    fn explain_failure(&self, store: &str, error: std::io::Error, path: &Path) -> Error {
        let gone = (error.kind() == ErrorKind::NotFound)
            .then(|| self.stores.recheck(store, &self.meta, &self.features).err())
            .flatten();
        gone.unwrap_or_else(|| Error::io("create", path, error))
    }

    /// Writes the row and returns the mounts; mounts that cannot be are found out before the row.
    fn record(
        &self,
        kind: Kind,
        new: &New<'_>,
        plan: &Plan,
        chain: &[Layer],
        wait: Wait,
    ) -> Result<Vec<Mount>> {
        let row = provisional_row(kind, new, plan);
        let mounts = match plan.placement.place {
            Place::Pending => self.provisional_mounts(chain)?,
            _ => self.mounts_of(&row, chain)?,
        };
        self.meta.create(&NewSnapshot {
            id: plan.id,
            snapshotter: new.snapshotter,
            key: new.key,
            parent: new.parent,
            parent_id: chain.first().map(|layer| layer.id),
            kind,
            labels: new.labels,
            placement: &plan.placement,
            resumes: plan.resumes,
            wait,
        })?;
        crate::crash::point("prepare: recorded");
        if plan.placement.place != Place::Pending || self.identity_from_labels(&row).is_none() {
            return Ok(mounts);
        }
        // Its labels tell whose it is, so its place can be settled now; a failure must leave nothing.
        self.mounts(new.snapshotter, new.key, new.namespace).inspect_err(|_| {
            if let Err(error) = self.undo(&row) {
                tracing::error!(key = new.key, %error, "cannot remove a snapshot that was refused");
            }
        })
    }

    /// Removes a snapshot that was just recorded, whatever place it got meanwhile.
    fn undo(&self, row: &Row) -> Result<()> {
        self.alone(row.id, || {
            let now = self.as_it_is_now(row)?;
            let removal = match &now.placement.place {
                Place::Store => Removal::Discard,
                // An upper on a volume may have been there before, with somebody's files in it.
                Place::Volume(_) | Place::Pending | Place::Moved(_) => Removal::Leave,
            };
            self.meta.remove(&now, &removal)?;
            if let Place::Volume(directory) = &now.placement.place {
                self.handed_out.forget(directory.as_ref());
            }
            Ok(())
        })
    }

    /// Gives up directories whose snapshot was not recorded.
    pub(super) fn discard(&self, id: u64, store: &str, directory: &Path) {
        let removed = self
            .stores
            .enter(store, directory)
            .and_then(|_inside| crate::tree::remove(directory).at("delete", directory));
        let Err(error) = removed else { return };
        tracing::warn!(directory = %directory.display(), %error, "cannot delete, left to Cleanup");
        if let Err(error) = self.meta.note_garbage(id, store) {
            tracing::warn!(id, %error, "cannot note garbage, left to the next start");
        }
    }

    /// Owner of a layer's root, which a new snapshot's root inherits.
    pub(super) fn owner_of(&self, layer: &Layer) -> Result<(u32, u32)> {
        let path = layout::snapshot(self.stores.root(), layer.id).join(layout::FS);
        if layer.store != ROOT_STORE && !self.can_reach(layer, &path)? {
            self.relink(layer);
        }
        let _inside = self.enter_layer(layer)?;
        match fs::metadata(&path) {
            Ok(found) => Ok((found.uid(), found.gid())),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(missing_layer(layer, &path)),
            Err(error) => Err(error).at("read", &path),
        }
    }

    /// Refuses layers whose data may have been lost in a power failure.
    pub(super) fn check_chain(&self, chain: &[Layer]) -> Result<()> {
        let lost = |layer: &&Layer| {
            layer.unsynced_boot.as_ref().is_some_and(|boot| *boot != self.features.boot)
        };
        chain.iter().find(lost).map_or(Ok(()), |layer| {
            Err(Error::FailedPrecondition(format!(
                "layer {:?} was unpacked just before the host went down and its files may be incomplete: remove \
                 the image and pull it again",
                layer.name
            )))
        })
    }
}

/// The files of a layer are not there: lost, or on a disk that is away.
pub(super) fn missing_layer(layer: &Layer, path: &Path) -> Error {
    if layer.store == ROOT_STORE {
        return Error::DataLoss(format!(
            "the files of layer {:?} are not in {}; remove the image and pull it again",
            layer.name,
            path.display()
        ));
    }
    Error::Unavailable(format!(
        "layer {:?} lies in store {:?}, but {} is not there; is its disk mounted?",
        layer.name,
        layer.store,
        path.display()
    ))
}

/// A place in a store of type `dir`, with nothing special about it.
pub(super) fn placed(store: &str, reason: &str) -> Placement {
    Placement {
        store: store.to_owned(),
        place: Place::Store,
        reason: reason.to_owned(),
        retain: false,
        volatile_boot: None,
    }
}

impl super::retain::Resumed {
    fn into_plan(self, decision: Decision) -> Plan {
        let mut placement = placed(&self.store, &self.reason);
        placement.retain = decision.retains_resumed();
        Plan { id: self.id, placement, resumes: true }
    }
}

/// The row as it will be, for mounts that are wanted before it is written.
fn provisional_row(kind: Kind, new: &New<'_>, plan: &Plan) -> Row {
    let placement = plan.placement.clone();
    let now = Time::now();
    let info = Info {
        name: new.key.to_owned(),
        parent: new.parent.to_owned(),
        kind,
        created: now,
        updated: now,
        labels: new.labels.clone(),
    };
    let snapshotter = new.snapshotter.to_owned();
    let (parent, usage, fresh) = (None, Usage::default(), !plan.resumes);
    Row { id: plan.id, snapshotter, info, parent, usage, placement, fresh }
}

/// Makes a snapshot's directories where they do not exist.
pub(super) fn mend_snapshot(directory: &Path, kind: Kind, owner: (u32, u32)) -> Result<()> {
    make_unless_there(directory, 0o700)?;
    fill_snapshot(directory, kind, owner)
}

/// Makes `<directory>/fs`, owned by `owner`, and `work` for an active snapshot.
///
/// Modes are exact because the daemon runs with umask 022.
pub(super) fn fill_snapshot(directory: &Path, kind: Kind, owner: (u32, u32)) -> Result<()> {
    let fs = directory.join(layout::FS);
    make_unless_there(&fs, 0o755)?;
    crate::crash::point("prepare: upper made");
    if owner != (0, 0) {
        chown(&fs, Some(owner.0), Some(owner.1)).at("change the owner of", &fs)?;
    }
    if kind == Kind::Active {
        make_unless_there(&directory.join(layout::WORK), 0o711)?;
    }
    Ok(())
}

/// Deletes what `fill_snapshot` made, and the directory; an upper that holds anything stays, with all.
pub(super) fn remove_empty(directory: &Path) -> std::io::Result<()> {
    for part in [directory.join(layout::FS), directory.join(layout::WORK), directory.to_owned()] {
        match fs::remove_dir(&part) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn make_unless_there(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.at("create", path),
    }
}
