//! Deleting names.
//!
//! What only the upper has goes. What a lower layer shows gets a whiteout, whether the upper has something
//! there or not, and whatever its type. A directory goes if its merged listing is empty; what its upper
//! part still holds are whiteouts, which go out of sight together with it. Nothing is copied up but the
//! directory that the name is in.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::errno::{Context, Error, Result};
use crate::inode::Ino;
use crate::layer::{Kind, Name};
use crate::lookup::{Layer, Part, lookup, lookup_lowers};
use crate::merge::Merged;
use crate::node::{Dir, Node, Writing};
use crate::overlay::Overlay;
use crate::readdir::{is_bare, is_empty};

/// What deletes a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The upper's entry goes.
    Remove,
    /// A whiteout takes the place of the upper's entry.
    Replace,
    /// A whiteout appears, since the upper has nothing.
    Cover,
}

/// Decides what deletes a name that is visible.
pub(crate) fn plan(in_upper: bool, lower_shows: bool) -> Plan {
    match (in_upper, lower_shows) {
        (true, false) => Plan::Remove,
        (true, true) => Plan::Replace,
        (false, _) => Plan::Cover,
    }
}

/// A file that is known as long as this lives.
pub(crate) struct Found<'a> {
    overlay: &'a Overlay,
    /// What the layers say.
    pub(crate) merged: Merged<Part>,
    /// The file.
    pub(crate) node: Node,
}

impl Found<'_> {
    /// Tells whether it is no directory, and only a lower layer has it under this name.
    pub(crate) fn is_lower_leaf(&self) -> bool {
        matches!(self.node, Node::Leaf(_)) && !self.is_in_upper()
    }

    /// Returns it if it is a directory.
    pub(crate) fn dir(&self) -> Option<&Arc<Dir>> {
        match &self.node {
            Node::Directory(dir) => Some(dir),
            Node::Leaf(_) => None,
        }
    }

    /// Tells whether the upper has it.
    pub(crate) fn is_in_upper(&self) -> bool {
        match &self.merged {
            Merged::Leaf(part) | Merged::Directory(part, _) => part.layer == Layer::Upper,
            Merged::Absent => false,
        }
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        let ino = self.node.ino();
        // A file that nobody else has a share of is forgotten.
        self.node = self.overlay.inodes.root();
        self.overlay.inodes.forget(ino, 1);
    }
}

impl Overlay {
    /// Deletes a name that is no directory's.
    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let dir = self.dir(parent)?;
        self.upper()?;
        let _names = dir.write_names();
        let found = self.found(&dir, &name)?;
        let (Merged::Leaf(part), Node::Leaf(leaf)) = (&found.merged, &found.node) else {
            return Err(Error::IsDirectory);
        };
        self.allow_loss(&dir, &found.node, &part.stat)?;
        let above = self.copy_up_dir(&dir, caller)?;
        let _alone = found.node.lock();
        let in_upper = part.layer == Layer::Upper;
        let lower_shows = !in_upper || self.lower_shows(&dir, &name)?;
        let handle = leaf.pin().at("delete")?;
        let work = self.upper()?.work();
        let plan = plan(in_upper, lower_shows);
        // Nobody uses the name while it goes.
        let mut place = leaf.write_place();
        self.upper()?.change(
            caller,
            || Change::of(&dir, &name, plan.what(part.stat.kind)),
            || {
                match plan {
                    Plan::Remove => above.remove(&name),
                    Plan::Replace => work.whiteout_over(&above, &name),
                    Plan::Cover => work.whiteout(&above, &name),
                }
                .at("delete")
            },
        )?;
        let left = place.lose_name(&dir, &name, handle);
        drop(place);
        self.lost_name(leaf, !in_upper, left)
    }

    /// Deletes a directory that shows no entries.
    pub fn rmdir(&self, caller: &Caller, parent: Ino, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let dir = self.dir(parent)?;
        self.upper()?;
        loop {
            let before = self.found(&dir, &name)?;
            let Node::Directory(child) = &before.node else { return Err(Error::NotDirectory) };
            // Nobody makes anything in it meanwhile.
            let _names = lock_names(&[&dir, child]);
            let found = self.found(&dir, &name)?;
            if let (Node::Directory(now), Merged::Directory(top, _)) = (&found.node, &found.merged)
                && Arc::ptr_eq(now, child)
            {
                self.allow_loss(&dir, &found.node, &top.stat)?;
                let _alone = found.node.lock();
                return self.remove_dir(caller, (&dir, &name), child, top);
            }
        }
    }

    fn remove_dir(
        &self,
        caller: &Caller,
        (dir, name): (&Arc<Dir>, &Name),
        child: &Dir,
        top: &Part,
    ) -> Result<()> {
        let in_upper = top.layer == Layer::Upper;
        let lower_shows = !in_upper || self.lower_shows(dir, name)?;
        // Where it hides nothing it should hold no whiteouts; the kernel refuses it if it does.
        let empty = if lower_shows { is_empty(child, self.format)? } else { is_bare(child)? };
        if !empty {
            return Err(Error::NotEmpty);
        }
        let above = self.copy_up_dir(dir, caller)?;
        if let Some(part) = child.upper() {
            part.pin().at("delete a directory")?;
        }
        let plan = plan(in_upper, lower_shows);
        let work = self.upper()?.work();
        self.upper()?.change(
            caller,
            || Change::of(dir, name, plan.what(Kind::Directory)),
            || match plan {
                Plan::Cover => work.whiteout(&above, name).at("delete a directory"),
                Plan::Remove => above.remove_dir(name).at("delete a directory"),
                Plan::Replace => {
                    let new = work.new_name().at("delete a directory")?;
                    work.whiteout(work.dir(), &new).at("delete a directory")?;
                    let swap = || work.dir().rename(&new, &above, name, RenameFlags::EXCHANGE);
                    work.publish(&new, swap).at("delete a directory")?;
                    work.discard(&new);
                    Ok(())
                }
            },
        )?;
        child.set_gone();
        Ok(())
    }

    /// Returns what a name is.
    pub(crate) fn found(&self, dir: &Arc<Dir>, name: &Name) -> Result<Found<'_>> {
        if dir.is_gone() {
            return Err(Error::NoEntry);
        }
        let merged = lookup(dir, self.format, name)?;
        let (node, _) = self.remember(dir, name, merged.clone())?.ok_or(Error::NoEntry)?;
        Ok(Found { overlay: self, merged, node })
    }

    /// Tells whether a lower layer shows the name.
    pub(crate) fn lower_shows(&self, dir: &Dir, name: &Name) -> Result<bool> {
        Ok(!matches!(lookup_lowers(dir, self.format, name)?, Merged::Absent))
    }
}

impl Plan {
    fn what(self, kind: Kind) -> What {
        match self {
            Self::Remove => What::Remove(kind),
            Self::Replace | Self::Cover => What::Whiteout,
        }
    }
}

/// Keeps everybody else from the names of several directories, each locked once, in the order of rank 1.
pub(crate) fn lock_names<'a>(dirs: &[&'a Arc<Dir>]) -> Vec<Writing<'a>> {
    let mut dirs = dirs.to_vec();
    dirs.sort_by_key(|dir| Arc::as_ptr(dir));
    dirs.dedup_by_key(|dir| Arc::as_ptr(dir));
    dirs.into_iter().map(|dir| dir.write_names()).collect()
}
