//! Renames: the kernel's table as one pure [`plan`], and what carries a plan out.
//!
//! The steps before the last one change nothing that shows: a lower file is copied up, a directory that hides
//! nothing is made opaque, a directory without visible entries loses its whiteouts. The last one is one
//! system call, which leaves the whiteout too.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::copy_up::Data;
use crate::errno::{Context, Error, Result};
use crate::format::Mark;
use crate::inode::Ino;
use crate::layer::{At, HostDir, Moved, Name, move_dirs};
use crate::lookup::{InUpper, Layer, look_in_upper};
use crate::merge::Merged;
use crate::node::{Dir, Node, Place};
use crate::overlay::Overlay;
use crate::protattr::Use;
use crate::readdir::{is_bare, is_empty};
use crate::remove::{Found, lock_names};
use crate::upper;

/// What a rename does with what is under the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It goes.
    Replace,
    /// It must not be there.
    Nothing,
    /// It gets the old name.
    Exchange,
}

/// What is visible under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    Leaf,
    /// A directory: with any part in a lower layer, and with entries that show.
    Directory {
        lower_part: bool,
        empty: bool,
    },
}

/// One end of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) shown: Shown,
    /// The upper has a whiteout there.
    pub(crate) whiteout: bool,
    /// A lower layer shows the name, whatever the upper has. Of the new name that does not matter.
    pub(crate) lower_shows: bool,
    /// The directory that the name is in shows lower ones.
    pub(crate) parent_merged: bool,
}

/// What a rename takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What moves from the old name is made opaque first.
    pub(crate) opaque_from: bool,
    /// The same for what moves to the old name.
    pub(crate) opaque_to: bool,
    /// The last step.
    pub(crate) last: Last,
}

/// The system call that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Last {
    /// Moves, and leaves a whiteout or nothing.
    Move {
        whiteout: bool,
    },
    /// Exchanges with the whiteout that is there, which is needed at the old name, or deleted there.
    TakeWhiteout {
        keep: bool,
    },
    Exchange,
}

/// Decides a rename: the first rule that matches.
pub(crate) fn plan(from: &End, to: &End, onto: Onto) -> Result<Plan> {
    use Shown::{Directory, Leaf, Nothing};
    let exchange = onto == Onto::Exchange;
    match (from.shown, to.shown) {
        (Nothing, _) => return Err(Error::NoEntry),
        (_, Leaf | Directory { .. }) if onto == Onto::Nothing => return Err(Error::Exists),
        (_, Nothing) if exchange => return Err(Error::NoEntry),
        (Directory { .. }, Leaf) if !exchange => return Err(Error::NotDirectory),
        (Leaf, Directory { .. }) if !exchange => return Err(Error::IsDirectory),
        (Directory { lower_part: true, .. }, _) => return Err(Error::LowerDirectory),
        (_, Directory { lower_part: true, .. }) if exchange => return Err(Error::LowerDirectory),
        (_, Directory { empty: false, .. }) if !exchange => return Err(Error::NotEmpty),
        _ => {}
    }
    let is_dir = |end: &End| matches!(end.shown, Directory { .. });
    Ok(Plan {
        opaque_from: is_dir(from) && to.parent_merged,
        opaque_to: exchange && is_dir(to) && from.parent_merged,
        last: match (exchange, to.whiteout) {
            (true, _) => Last::Exchange,
            // Only a directory cannot take the place of a whiteout by itself.
            (false, true) if is_dir(from) || from.lower_shows => {
                Last::TakeWhiteout { keep: from.lower_shows }
            }
            (false, _) => Last::Move { whiteout: from.lower_shows },
        },
    })
}

/// What becomes of a leaf's name.
enum Fate<'a> {
    /// It becomes another one.
    Moves(&'a Spot<'a>, &'a Spot<'a>),
    /// It goes; the handle keeps the file.
    Goes(OwnedFd),
}

/// A name, and where its directory lies in the upper.
struct Spot<'a> {
    dir: &'a Arc<Dir>,
    above: &'a Arc<HostDir>,
    name: &'a Name,
}

impl Overlay {
    /// Renames a file.
    pub fn rename(
        &self,
        caller: &Caller,
        (parent, name): (Ino, &OsStr),
        (to_parent, to_name): (Ino, &OsStr),
        onto: Onto,
    ) -> Result<()> {
        let (name, to_name) = (Name::new(name)?, Name::new(to_name)?);
        let (dir, to_dir) = (self.dir(parent)?, self.dir(to_parent)?);
        self.upper()?;
        let mut target: Option<Arc<Dir>> = None;
        loop {
            let replaced = target.take();
            let mut dirs = vec![&dir, &to_dir];
            // Nobody makes anything in a directory that is about to be replaced.
            dirs.extend(&replaced);
            let names = lock_names(&dirs);
            let source = self.found(&dir, &name)?;
            let absent = names.iter().any(|names| names.knows_absent(&to_dir, &to_name));
            let found = if absent { None } else { self.found_or_nothing(&to_dir, &to_name)? };
            let now = found.as_ref().and_then(Found::dir);
            if now.map(Arc::as_ptr) == replaced.as_ref().map(Arc::as_ptr) {
                let (from, to) = ((&dir, &name, &source), (&to_dir, &to_name, found.as_ref()));
                return self.rename_found(caller, from, to, onto);
            }
            target = now.cloned();
        }
    }

    fn found_or_nothing(&self, dir: &Arc<Dir>, name: &Name) -> Result<Option<Found<'_>>> {
        match self.found(dir, name) {
            Err(Error::NoEntry) if !dir.is_gone() => Ok(None),
            found => found.map(Some),
        }
    }

    fn rename_found(
        &self,
        caller: &Caller,
        (dir, name, source): (&Arc<Dir>, &Name, &Found<'_>),
        (to_dir, to_name, target): (&Arc<Dir>, &Name, Option<&Found<'_>>),
        onto: Onto,
    ) -> Result<()> {
        let lower_shows = !source.is_in_upper() || self.lower_shows(dir, name)?;
        let from = End { lower_shows, ..self.end(dir, name, Some(source))? };
        let ends = (from, self.end(to_dir, to_name, target)?);
        let one = target.is_some_and(|target| target.node.ino() == source.node.ino());
        if !one {
            self.allow_rename((dir, source), (to_dir, target))?;
        }
        let plan = plan(&ends.0, &ends.1, onto)?;
        if one {
            // Two names of one file: nothing is to be done, as everywhere.
            return Ok(());
        }
        let from = &Spot { dir, above: &self.copy_up_dir(dir, caller)?, name };
        let to = &Spot { dir: to_dir, above: &self.copy_up_dir(to_dir, caller)?, name: to_name };
        self.bring_up(from, source, caller)?;
        if let Some(target) = target.filter(|_| onto == Onto::Exchange) {
            self.bring_up(to, target, caller)?;
        }
        self.prepare(caller, &plan, (from, source), (to, target))?;
        let upper = self.upper()?;
        let what = || What::Rename {
            to: upper::path(to.dir, to.name),
            exchange: onto == Onto::Exchange,
            whiteout: ends.0.lower_shows && onto != Onto::Exchange,
        };
        let replaced = target.filter(|_| onto != Onto::Exchange);
        // Nobody copies up what is about to be replaced.
        let _alone = replaced.map(|target| target.node.lock());
        let handle = replaced.map(|target| self.pin_target(to, target)).transpose()?;
        let left = upper.change(
            caller,
            || Change::of(from.dir, from.name, what()),
            || self.carry_out(plan.last, (from, &source.node), (to, target), handle),
        )?;
        match replaced.map(|target| &target.node) {
            Some(Node::Leaf(leaf)) => {
                self.lost_name(leaf, replaced.is_some_and(Found::is_lower_leaf), left)
            }
            Some(Node::Directory(dir)) => {
                dir.set_gone();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Refuses to move or replace what is protected from it.
    fn allow_rename(
        &self,
        (dir, source): (&Arc<Dir>, &Found<'_>),
        (to_dir, target): (&Arc<Dir>, Option<&Found<'_>>),
    ) -> Result<()> {
        for (dir, found) in [(dir, Some(source)), (to_dir, target)] {
            if let Some(Merged::Leaf(part) | Merged::Directory(part, _)) =
                found.map(|found| &found.merged)
                && let Some(found) = found
            {
                self.allow_loss(dir, &found.node, &part.stat)?;
            }
        }
        self.allow_in(to_dir, Use::Make)
    }

    /// Makes sure that the upper has what is to be moved, under the name that it is found under.
    fn bring_up(&self, spot: &Spot<'_>, found: &Found<'_>, caller: &Caller) -> Result<()> {
        self.copy_up(&found.node, Data::All, caller)?;
        let Node::Leaf(leaf) = &found.node else { return Ok(()) };
        let _alone = found.node.lock();
        if !found.is_lower_leaf() || leaf.has_name(spot.dir, spot.name) {
            return Ok(());
        }
        self.link_up(leaf, (spot.dir, spot.above, spot.name), caller)
    }

    fn end(&self, parent: &Dir, name: &Name, found: Option<&Found<'_>>) -> Result<End> {
        let shown = match found.map(|found| (&found.merged, &found.node)) {
            None | Some((Merged::Absent, _)) => Shown::Nothing,
            Some((Merged::Leaf(_), _)) => Shown::Leaf,
            Some((Merged::Directory(..), Node::Directory(dir))) => Shown::Directory {
                lower_part: !dir.lowers.is_empty(),
                // Of one that lies in the upper alone, its file system knows.
                empty: dir.lowers.is_empty() || is_empty(dir, self.format)?,
            },
            Some((Merged::Directory(..), Node::Leaf(_))) => return Err(Error::Stale),
        };
        let whiteout = match shown {
            Shown::Nothing => {
                matches!(look_in_upper(parent, self.format, name)?, InUpper::Whiteout)
            }
            Shown::Leaf | Shown::Directory { .. } => false,
        };
        Ok(End { shown, whiteout, lower_shows: false, parent_merged: !parent.lowers.is_empty() })
    }

    /// Takes the steps before the last.
    fn prepare(
        &self,
        caller: &Caller,
        plan: &Plan,
        (from, source): (&Spot<'_>, &Found<'_>),
        (to, target): (&Spot<'_>, Option<&Found<'_>>),
    ) -> Result<()> {
        if plan.opaque_from {
            self.make_opaque(caller, from)?;
        }
        if plan.opaque_to {
            self.make_opaque(caller, to)?;
        }
        if self.has_origin(from, source)? {
            self.mark_impure(to.dir, caller)?;
        }
        let Some(target) = target else { return Ok(()) };
        if plan.last == Last::Exchange {
            if self.has_origin(to, target)? {
                self.mark_impure(from.dir, caller)?;
            }
        } else if let Node::Directory(dir) = &target.node {
            self.clear(caller, to, dir)?;
        }
        Ok(())
    }

    fn make_opaque(&self, caller: &Caller, spot: &Spot<'_>) -> Result<()> {
        let change = || Change::of(spot.dir, spot.name, What::Opaque);
        let at = At::Name(spot.above, spot.name);
        self.upper()?.change(caller, change, || self.mark(at, Mark::Opaque, b"y"))
    }

    /// Tells whether a file was copied up, or is a directory that holds such files' marks itself.
    fn has_origin(&self, spot: &Spot<'_>, found: &Found<'_>) -> Result<bool> {
        match &found.node {
            Node::Leaf(leaf) => {
                Ok(leaf.entry().is_some() || self.origin(spot.dir, spot.name)?.is_some())
            }
            Node::Directory(_) => {
                let at = spot.above.as_ref();
                Ok(self.format.read(at, Some(spot.name), Mark::Origin)?.is_some())
            }
        }
    }

    /// Takes the whiteouts out of a directory that shows no entries, by putting one without any in its place.
    /// Where it hides nothing it should hold none; the last step fails if it does, as in the kernel.
    fn clear(&self, caller: &Caller, spot: &Spot<'_>, dir: &Dir) -> Result<()> {
        let Some(part) = dir.upper().filter(|_| !dir.lowers.is_empty()) else { return Ok(()) };
        if is_bare(dir)? {
            return Ok(());
        }
        let upper = self.upper()?;
        let work = upper.work();
        let staged = self.stage_emptied(part)?;
        let change = || Change::of(spot.dir, spot.name, What::Clear);
        upper.change(caller, change, || {
            let swap = || work.dir().rename(&staged, spot.above, spot.name, RenameFlags::EXCHANGE);
            work.publish(&staged, swap).at("clear a directory")
        })?;
        // Another directory has its name now.
        part.reopen();
        work.discard(&staged);
        Ok(())
    }

    /// Keeps what is about to be replaced for those who still use it.
    fn pin_target(&self, to: &Spot<'_>, target: &Found<'_>) -> Result<OwnedFd> {
        if let Node::Directory(dir) = &target.node
            && let Some(part) = dir.upper()
        {
            part.pin().at("rename")?;
        }
        let part = match (&target.node, &target.merged) {
            (Node::Leaf(leaf), _) => return leaf.pin().at("rename"),
            (_, Merged::Directory(part, _)) => part,
            _ => return Err(Error::Stale),
        };
        match part.layer {
            Layer::Upper => to.above.open_with(to.name, rustix::fs::OFlags::PATH),
            Layer::Lower(layer) => to.dir.lowers.get(layer).ok_or(Error::Stale)?.pin(to.name),
        }
        .at("rename")
    }

    /// Takes the last step, while nobody uses the names of what moves, or of what is replaced, which `handle` keeps;
    /// returns that if it is not needed.
    fn carry_out(
        &self,
        last: Last,
        (from, source): (&Spot<'_>, &Node),
        (to, target): (&Spot<'_>, Option<&Found<'_>>),
        handle: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>> {
        let exchanged = target.filter(|_| last == Last::Exchange).map(|target| &target.node);
        let movers = [Some((source, from, to)), exchanged.map(|node| (node, to, from))];
        let movers: Vec<_> = movers.into_iter().flatten().collect();
        let dirs: Vec<_> = movers
            .iter()
            .filter_map(|(node, _, to)| match node {
                Node::Directory(dir) => {
                    Some(Moved { dir: dir.upper()?, to: to.above, name: to.name })
                }
                Node::Leaf(_) => None,
            })
            .collect();
        let mut leaves: Vec<_> = movers
            .iter()
            .filter_map(|(node, from, to)| Some((node.leaf()?, Fate::Moves(from, to))))
            .collect();
        let replaced = target.and_then(|target| target.node.leaf());
        leaves.extend(replaced.zip(handle).map(|(leaf, handle)| (leaf, Fate::Goes(handle))));
        leaves.sort_by_key(|(leaf, _)| Arc::as_ptr(leaf));
        let places: Vec<_> =
            leaves.iter().map(|(leaf, _)| Arc::as_ref(*leaf).write_place()).collect();
        move_dirs(&dirs, || last.call(from, to)).at("rename")?;
        let mut left = None;
        for (mut place, (_, fate)) in places.into_iter().zip(leaves) {
            match fate {
                Fate::Moves(from, to) => place.rename((from.dir, from.name), (to.dir, to.name)),
                Fate::Goes(handle) => left = place.lose_name(to.dir, to.name, handle),
            }
        }
        for (node, _, to) in movers {
            if let Node::Directory(dir) = node {
                dir.set_place(to.dir, to.name);
            }
        }
        if let Last::TakeWhiteout { keep: false } = last {
            // It is renamed, whether this works or not; the whiteout hides nothing.
            from.above.remove(from.name).ok();
        }
        Ok(left)
    }
}

impl Last {
    fn call(self, from: &Spot<'_>, to: &Spot<'_>) -> Result<(), Errno> {
        let flags = match self {
            Self::Move { whiteout: false } => RenameFlags::empty(),
            Self::Move { whiteout: true } => RenameFlags::WHITEOUT,
            Self::TakeWhiteout { .. } | Self::Exchange => RenameFlags::EXCHANGE,
        };
        from.above.rename(from.name, to.above, to.name, flags)
    }
}

impl Place {
    /// Says that one of its names is another one now.
    fn rename(&mut self, (dir, name): (&Arc<Dir>, &Name), (to, to_name): (&Arc<Dir>, &Name)) {
        if let Self::Upper(names) = self {
            for (known, known_name) in names {
                if Arc::ptr_eq(known, dir) && known_name == name {
                    *known = Arc::clone(to);
                    *known_name = to_name.clone();
                }
            }
        }
    }
}
