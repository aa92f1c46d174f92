//! Uppers that outlive their snapshot, and taking them back.
//!
//! A retained upper is found by namespace and the container's name, and only put on the same chain of
//! layers: the same content, whichever pull it came from.

use super::Snapshotter;
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::{Layer, Retained, Row};
use crate::placement::{Decision, Request, Resume};
use crate::probe;
use crate::snapshot::{KeyHint, Kind};

/// A retained upper that a new snapshot takes back.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) id: u64,
    pub(super) store: String,
    /// What was taken back, and on whose word.
    pub(super) reason: String,
}

impl Snapshotter {
    /// What stands for the layers of a chain across pulls, hosts and databases, top first.
    ///
    /// A layer without a chain id stands for itself only.
    pub(super) fn chain_identity(&self, chain: &[Layer]) -> Vec<String> {
        let identity = |layer: &Layer| match KeyHint::of(&layer.name).chain_id() {
            Some(chain_id) => chain_id.to_owned(),
            None => format!("local:{}:{}", self.stores.root_uuid(), layer.id),
        };
        chain.iter().map(identity).collect()
    }

    /// True if Remove is to keep the upper: a container's that holds something.
    pub(super) fn worth_retaining(&self, row: &Row) -> Result<bool> {
        if row.info.kind != Kind::Active || !row.placement.retain {
            return Ok(false);
        }
        let directory = self.directory(row)?;
        let upper = directory.join(layout::FS);
        let holds = self.stores.enter(&row.placement.store, &directory).and_then(|_inside| {
            let mut entries = std::fs::read_dir(&upper).at("read", &upper)?;
            Ok(entries.next().is_some())
        });
        match holds {
            Ok(holds) => Ok(holds),
            Err(error) => {
                // An upper that cannot be looked at may be full: its disk may come back.
                tracing::warn!(upper = %upper.display(), %error, "cannot read an upper, retained unseen");
                Ok(true)
            }
        }
    }

    /// Finds the retained upper that a new snapshot is to take back.
    pub(super) fn find_resumed(
        &self,
        decision: &Decision,
        request: &Request<'_>,
        chain: &[Layer],
    ) -> Result<Option<Resumed>> {
        let Some(retained) = self.wanted(decision, request)? else { return Ok(None) };
        self.check_resumable(&retained, chain)?;
        let asked = match decision.resume {
            Resume::Required(_) => "as label overstream.resume asks".to_owned(),
            Resume::IfRetained | Resume::Fresh => {
                format!("as `resume` in its rule asks ({})", decision.reason)
            }
        };
        let reason = format!("took back the retained upper {:?}, {asked}", retained.name);
        Ok(Some(Resumed { id: retained.id, store: retained.store, reason }))
    }

    /// Refuses to place an empty upper where a retained one was to be taken back: only Prepare can do
    /// that, because a snapshot has the number of its upper.
    pub(super) fn check_none_wanted(
        &self,
        decision: &Decision,
        request: &Request<'_>,
    ) -> Result<()> {
        let Some(retained) = self.wanted(decision, request)? else { return Ok(()) };
        Err(Error::FailedPrecondition(format!(
            "{} takes back retained upper {}@{}, but it came into question only after Prepare, because a rule for \
             a volume stands above; put a rule with `resume` above that one, or give the upper up with \
             `overstream retained rm {}`",
            decision.reason, retained.name, retained.id, retained.id
        )))
    }

    /// The retained upper that a decision asks for.
    fn wanted(&self, decision: &Decision, request: &Request<'_>) -> Result<Option<Retained>> {
        match &decision.resume {
            Resume::Fresh => Ok(None),
            Resume::IfRetained => self.lookup(request, request.hint.user_key),
            Resume::Required(name) => match self.lookup(request, name)? {
                None => Err(Error::FailedPrecondition(format!(
                    "label overstream.resume={name:?}: there is no retained upper {name:?} in namespace {:?}; the \
                     value is a name that `overstream retained` lists",
                    request.hint.namespace
                ))),
                found => Ok(found),
            },
        }
    }

    /// Finds by `NAME`, or by `NAME@NUMBER` where several have the name.
    fn lookup(&self, request: &Request<'_>, name: &str) -> Result<Option<Retained>> {
        let exact =
            self.meta.find_retained(request.snapshotter, request.hint.namespace, name, None)?;
        if exact.is_some() {
            return Ok(exact);
        }
        match name.rsplit_once('@').and_then(|(name, id)| Some((name, layout::parse_id(id)?))) {
            Some((name, id)) => {
                self.meta.find_retained(request.snapshotter, request.hint.namespace, name, Some(id))
            }
            None => Ok(None),
        }
    }

    fn check_resumable(&self, retained: &Retained, chain: &[Layer]) -> Result<()> {
        let described = format!("retained upper {}@{}", retained.name, retained.id);
        let chain = self.chain_identity(chain);
        if retained.chain != chain {
            return Err(Error::FailedPrecondition(format!(
                "{described} belongs on layer {:?}, not on {:?}: use the image it was made with",
                retained.chain.first().map_or("none", String::as_str),
                chain.first().map_or("none", String::as_str),
            )));
        }
        let base = self.present(&retained.store)?;
        let upper = layout::snapshot(&base, retained.id).join(layout::FS);
        if !upper.is_dir() {
            return Err(Error::DataLoss(format!("{described}: {} is not there", upper.display())));
        }
        if probe::upper_in_use(&upper).at("ask the kernel about", &upper)? {
            return Err(Error::FailedPrecondition(format!("{described} is still mounted")));
        }
        Ok(())
    }
}
