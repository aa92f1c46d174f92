//! Turns what a lookup found into a file of the view: its number, and what is remembered of it until the kernel
//! forgets it.

use std::sync::Arc;

use crate::errno::{Error, Result};
use crate::format::Mark;
use crate::index::Index;
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
        if let Merged::Leaf(part) = found {
            return self.remember_leaf(dir, name, &part).map(Some);
        }
        let Some(identity) = self.identify(dir, name, &found)? else { return Ok(None) };
        let Identity { preferred, lower, upper } = identity;
        let same = |node: &Node| node.is(lower, upper, None);
        Ok(match found {
            Merged::Absent | Merged::Leaf(_) => None,
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

    /// Does so with a file that is no directory.
    fn remember_leaf(&self, dir: &Arc<Dir>, name: &Name, part: &Part) -> Result<(Node, Stat)> {
        loop {
            let version = self.index().map(Index::version);
            let linked = part.layer != Layer::Upper && self.is_linked(&part.stat);
            let indexed = self.indexed(dir, name, part)?;
            let Identity { preferred, lower, upper } = self.identify_leaf(dir, name, part)?;
            let upper = upper.or(indexed.as_ref().map(|(_, found)| RealId::of(found)));
            let copy_of = upper.and_then(|id| self.inodes.copy(id));
            let node = self.inodes.add(
                preferred,
                |node| node.is(lower, upper, copy_of),
                |ino| {
                    let place = place(dir, name, part.layer);
                    Node::Leaf(Arc::new(Leaf::new(ino, place, lower, upper)))
                },
            );
            let stat = match &node {
                // It was copied up under another name meanwhile, and might have been forgotten.
                _ if linked && version != self.index().map(Index::version) => None,
                Node::Leaf(leaf) => {
                    let known = self.known_leaf(leaf, (dir, name), part, indexed);
                    Some(known.inspect_err(|_| self.inodes.forget(node.ino(), 1))?)
                }
                Node::Directory(_) => Some(part.stat),
            };
            match stat {
                Some(stat) => return Ok((node, stat)),
                None => self.inodes.forget(node.ino(), 1),
            }
        }
    }

    /// Returns the index entry of a file found in a lower layer, if it has been copied up under any name.
    fn indexed(&self, dir: &Dir, name: &Name, part: &Part) -> Result<Option<(Name, Stat)>> {
        let index = self.index().filter(|index| index.version() > 0);
        let (Some(index), Layer::Lower(layer)) = (index, part.layer) else {
            return Ok(None);
        };
        let lower = dir.lowers.get(layer).ok_or(Error::Stale)?;
        let Some(entry) = self.entry_of(lower.as_ref(), Some(name), &part.stat) else {
            return Ok(None);
        };
        let found = index.look(&entry)?.filter(|found| found.kind == part.stat.kind);
        Ok(found.map(|found| (entry, found)))
    }

    /// Takes note of a name and an index entry of a file; returns its attributes.
    fn known_leaf(
        &self,
        leaf: &Leaf,
        (dir, name): (&Arc<Dir>, &Name),
        part: &Part,
        indexed: Option<(Name, Stat)>,
    ) -> Result<Stat> {
        match (part.layer, indexed) {
            (Layer::Lower(_), Some((entry, found))) => {
                self.adopt(leaf, &entry, &found, Some(part.stat.links))?;
            }
            (Layer::Upper, _) if leaf.entry().is_none() => {
                if let Some(entry) = self.entry_of_upper(dir, name, &part.stat)? {
                    self.adopt(leaf, &entry, &part.stat, None)?;
                }
            }
            _ => {}
        }
        // It may be another name of a file that was copied up under the first one.
        if part.layer != Layer::Upper && leaf.is_upper() {
            return leaf.stat();
        }
        leaf.add_name(dir, name, part.layer.index());
        Ok(Stat { links: leaf.links(part.stat.links), ..part.stat })
    }

    fn identify_leaf(&self, dir: &Dir, name: &Name, part: &Part) -> Result<Identity> {
        let number = self.numbers.number(part.stat.fs, part.stat.number);
        let id = Some(RealId::of(&part.stat));
        Ok(match part.layer {
            Layer::Upper => Identity {
                preferred: self.upper_number(dir, name, RealId::of(&part.stat))?.unwrap_or(number),
                lower: None,
                upper: id,
            },
            Layer::Lower(_) => Identity { preferred: number, lower: id, upper: None },
        })
    }

    fn identify(&self, dir: &Dir, name: &Name, found: &Merged<Part>) -> Result<Option<Identity>> {
        let number = |stat: &Stat| self.numbers.number(stat.fs, stat.number);
        let id = |part: &Part| Some(RealId::of(&part.stat));
        Ok(match found {
            Merged::Absent => None,
            Merged::Leaf(part) => Some(self.identify_leaf(dir, name, part)?),
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
        let mark = self.origin_mark(dir, name)?;
        let number = mark.and_then(|value| self.origins.number(&value));
        Ok(number.map(|(fs, number)| self.numbers.number(fs, number)))
    }

    /// Returns the mark that says from which lower file `name` in the upper part of `dir` was copied up.
    pub(crate) fn origin_mark(&self, dir: &Dir, name: &Name) -> Result<Option<Vec<u8>>> {
        let Some(upper) = dir.upper() else { return Ok(None) };
        let impure = || Ok(self.format.read(upper.as_ref(), None, Mark::Impure)?.is_some());
        if !dir.is_impure(impure)? {
            return Ok(None);
        }
        self.format.read(upper.as_ref(), Some(name), Mark::Origin)
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
