//! Turns what a lookup found into a file of the view: its number, and what is remembered of it until the kernel
//! forgets it.

use std::sync::Arc;

use crate::errno::Result;
use crate::format::Mark;
use crate::inode::Ino;
use crate::layer::{Kind, Name, RawEntry, Stat};
use crate::lookup::{Layer, Part, lookup};
use crate::merge::Merged;
use crate::node::{Dir, Leaf, Node, Place, RealId};
use crate::overlay::Overlay;

/// What a lookup found, with what tells it from other files.
struct Identity {
    preferred: Ino,
    lower: Option<RealId>,
    upper: Option<RealId>,
}

impl Overlay {
    /// Remembers what a lookup of `name` in `dir` found, and counts it; returns it with its attributes.
    pub(crate) fn remember(
        &self,
        dir: &Arc<Dir>,
        name: &Name,
        found: Merged<Part>,
    ) -> Result<Option<(Node, Stat)>> {
        let Some(identity) = self.identify(dir, name, &found)? else { return Ok(None) };
        let Identity { preferred, lower, upper } = identity;
        let copy_of = upper.and_then(|id| self.inodes.copy(id));
        let same = |node: &Node| node.is(lower, upper, copy_of);
        Ok(match found {
            Merged::Absent => None,
            Merged::Leaf(Part { layer, stat }) => {
                let node = self.inodes.add(preferred, same, |ino| {
                    let place = place(dir, name, layer);
                    Node::Leaf(Arc::new(Leaf::new(ino, place, lower, upper)))
                });
                let stat = match &node {
                    // It is another name of a file that was copied up under the first one.
                    Node::Leaf(leaf) if upper.is_none() && leaf.is_upper() => leaf.stat()?,
                    Node::Leaf(leaf) => {
                        leaf.add_name(dir, name, layer.index());
                        stat
                    }
                    Node::Directory(_) => stat,
                };
                Some((node, stat))
            }
            Merged::Directory(top, below) => {
                let parts = 1 + below.len();
                let stat = Stat { links: if parts > 1 { 1 } else { top.stat.links }, ..top.stat };
                let lowers = std::iter::once(top).chain(below).filter_map(|part| {
                    let lower = dir.lowers.get(part.layer.index()?)?;
                    Some(Arc::clone(lower).enter(name))
                });
                let node = self.inodes.add(preferred, same, |ino| {
                    let above = dir.upper().filter(|_| upper.is_some());
                    let above = above.map(|above| (Arc::new(above.below(name)), upper));
                    let place = Some((Arc::clone(dir), name.clone()));
                    Node::Directory(Arc::new(Dir::new(
                        ino,
                        place,
                        above,
                        (lowers.collect(), lower),
                    )))
                });
                Some((node, stat))
            }
        })
    }

    fn identify(&self, dir: &Dir, name: &Name, found: &Merged<Part>) -> Result<Option<Identity>> {
        let number = |stat: &Stat| self.numbers.number(stat.fs, stat.number);
        let id = |part: &Part| Some(RealId::of(&part.stat));
        Ok(match found {
            Merged::Absent => None,
            Merged::Leaf(part) if part.layer == Layer::Upper => Some(Identity {
                preferred: self
                    .upper_number(dir, name, RealId::of(&part.stat))?
                    .unwrap_or_else(|| number(&part.stat)),
                lower: None,
                upper: id(part),
            }),
            Merged::Leaf(part) => {
                Some(Identity { preferred: number(&part.stat), lower: id(part), upper: None })
            }
            Merged::Directory(top, below) => {
                let lower = if top.layer == Layer::Upper { below.first() } else { Some(top) };
                let upper = if top.layer == Layer::Upper { id(top) } else { None };
                let preferred = number(&lower.unwrap_or(top).stat);
                Some(Identity { preferred, lower: lower.and_then(id), upper })
            }
        })
    }

    /// Returns the number of the lower file from which `name` in the upper part of `dir` was copied up.
    pub(crate) fn origin(&self, dir: &Dir, name: &Name) -> Result<Option<Ino>> {
        let Some(upper) = dir.upper() else { return Ok(None) };
        let impure = || Ok(self.format.read(upper.as_ref(), None, Mark::Impure)?.is_some());
        if !dir.is_impure(impure)? {
            return Ok(None);
        }
        let mark = self.format.read(upper.as_ref(), Some(name), Mark::Origin)?;
        Ok(mark
            .and_then(|value| self.origins.number(&value))
            .map(|(fs, number)| self.numbers.number(fs, number)))
    }

    /// Returns the number of `name` in the upper part of `dir`, no directory, if it is not that of the upper's file.
    fn upper_number(&self, dir: &Dir, name: &Name, id: RealId) -> Result<Option<Ino>> {
        Ok(self.origin(dir, name)?.or_else(|| self.inodes.copy(id)))
    }

    /// Returns the number of an entry of the upper part of a directory, which lies on the file system `fs`, if it is
    /// not that of the upper's file.
    pub(crate) fn listed_number(
        &self,
        dir: &Dir,
        entry: &RawEntry,
        fs: (u32, u32),
    ) -> Result<Option<Ino>> {
        if entry.kind != Some(Kind::Directory) && entry.kind.is_some() {
            return self.upper_number(dir, &entry.name, RealId::new(fs, entry.number));
        }
        if dir.lowers.is_empty() {
            return Ok(None);
        }
        let found = lookup(dir, self.format, &entry.name)?;
        Ok(self.identify(dir, &entry.name, &found)?.map(|identity| identity.preferred))
    }
}

impl Layer {
    fn index(self) -> Option<usize> {
        match self {
            Self::Upper => None,
            Self::Lower(index) => Some(index),
        }
    }
}

fn place(dir: &Arc<Dir>, name: &Name, layer: Layer) -> Place {
    let (parent, name) = (Arc::clone(dir), name.clone());
    match layer {
        Layer::Upper => Place::Upper(vec![(parent, name)]),
        Layer::Lower(layer) => Place::Lower { parent, layer, name },
    }
}
