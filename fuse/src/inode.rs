//! Inode numbers, and the files that the kernel knows by them.
//!
//! A file's number is that of the real file, so it is the same in every mount of the same layers; one that
//! was copied up keeps that of the lower file. Numbers of a second file system carry its index in their
//! upper bits, as the kernel's `xino` does. A directory has the number of its topmost lower part, else
//! that of its upper one. No two files ever have the same number at the same time, whatever marks in
//! the layers say: the second one gets one made up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::errno::{Error, Result};
use crate::node::{Node, RealId};

/// Room for the index of the file system; what is left suffices for any real inode number.
const FS_BITS: u32 = 7;
const NUMBER_BITS: u32 = 63 - FS_BITS;
/// Says that a number is made up, since the real one has no place in it.
const HASHED: u64 = 1 << 63;
/// So that requests for different files seldom meet.
const SHARDS: usize = 16;

/// An inode number of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// Names the root directory in every request; no other file has this number.
    pub const ROOT: Self = Self(1);

    /// Returns a number that no file has, for one of which nothing is known.
    pub fn unknown(self) -> Self {
        self.another().another()
    }

    /// Returns a number made up, for a file whose own one another file has.
    fn another(self) -> Self {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        Self(HASHED | hasher.finish())
    }
}

/// Gives numbers.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// The file systems, in the order in which they were first met.
    systems: RwLock<Vec<(u32, u32)>>,
}

impl Numbers {
    /// Returns the view's number of the file that has `number` on the file system `fs`.
    pub(crate) fn number(&self, fs: (u32, u32), number: u64) -> Ino {
        let index = self.index(fs) as u64;
        let reserved = number <= Ino::ROOT.0;
        if reserved || index >> FS_BITS != 0 || number >> NUMBER_BITS != 0 {
            let mut hasher = DefaultHasher::new();
            (fs, number).hash(&mut hasher);
            return Ino(HASHED | hasher.finish());
        }
        Ino(index << NUMBER_BITS | number)
    }

    fn index(&self, fs: (u32, u32)) -> usize {
        let position = |systems: &[_]| systems.iter().position(|other| *other == fs);
        let systems = self.systems.read().unwrap_or_else(PoisonError::into_inner);
        let known = position(&systems);
        drop(systems);
        known.unwrap_or_else(|| {
            let mut systems = self.systems.write().unwrap_or_else(PoisonError::into_inner);
            position(&systems).unwrap_or_else(|| {
                systems.push(fs);
                systems.len() - 1
            })
        })
    }
}

/// The files that the kernel knows, each with the number of lookups it has not forgotten; and the
/// directories above them.
#[derive(Debug)]
pub(crate) struct Inodes {
    root: Node,
    /// Leaf locks: nothing else is done while one is held.
    shards: [Mutex<Shard>; SHARDS],
    /// Numbers of files that were copied up in this mount, so that another lookup finds the same file where no
    /// mark tells its number. Another leaf lock.
    copies: RwLock<HashMap<RealId, Ino>>,
}

type Shard = HashMap<u64, (Node, u64)>;

impl Inodes {
    /// Makes a table that knows the root, which is never forgotten.
    pub(crate) fn new(root: Node) -> Self {
        Self { root, shards: Default::default(), copies: RwLock::default() }
    }

    /// Returns the root.
    pub(crate) fn root(&self) -> Node {
        self.root.clone()
    }

    /// Counts a lookup that found a file, and returns what is known of it: what is there under the number
    /// already, if `is_same` says that this is the same file, else what `new` makes.
    pub(crate) fn add(
        &self,
        preferred: Ino,
        is_same: impl Fn(&Node) -> bool,
        new: impl FnOnce(Ino) -> Node,
    ) -> Node {
        let mut ino = preferred;
        loop {
            let mut shard = self.shard(ino);
            match shard.entry(ino.0) {
                Entry::Vacant(vacant) => {
                    let node = new(ino);
                    vacant.insert((node.clone(), 1));
                    return node;
                }
                Entry::Occupied(mut known) if is_same(&known.get().0) => {
                    let (node, lookups) = known.get_mut();
                    *lookups += 1;
                    return node.clone();
                }
                Entry::Occupied(_) => ino = ino.another(),
            }
        }
    }

    /// Returns the file with a number.
    ///
    /// # Errors
    /// `Stale` if it is not known.
    pub(crate) fn get(&self, ino: Ino) -> Result<Node> {
        if ino == Ino::ROOT {
            return Ok(self.root.clone());
        }
        self.shard(ino).get(&ino.0).map(|(node, _)| node.clone()).ok_or(Error::Stale)
    }

    /// Takes back `count` lookups. At zero the file is not known any more, once nothing known lies in it.
    pub(crate) fn forget(&self, ino: Ino, count: u64) {
        let mut unused: Vec<_> = self.take_unused(ino, count).into_iter().collect();
        while let Some(node) = unused.pop() {
            let parents = node.parents();
            drop(node);
            unused.extend(parents.into_iter().filter_map(|parent| self.take_unused(parent, 0)));
        }
    }

    fn take_unused(&self, ino: Ino, count: u64) -> Option<Node> {
        let mut shard = self.shard(ino);
        let (node, lookups) = shard.get_mut(&ino.0)?;
        *lookups = lookups.saturating_sub(count);
        let unused = *lookups == 0 && node.is_sole();
        // What it holds is closed without the lock.
        let node = if unused { shard.remove(&ino.0).map(|(node, _)| node) } else { None };
        drop(shard);
        node.as_ref().and_then(Node::copied_as).into_iter().for_each(|copy| self.drop_copy(copy));
        node
    }

    /// Takes note that a file is copied up.
    pub(crate) fn add_copy(&self, copy: RealId, ino: Ino) {
        self.copies.write().unwrap_or_else(PoisonError::into_inner).insert(copy, ino);
    }

    /// Forgets that.
    pub(crate) fn drop_copy(&self, copy: RealId) {
        self.copies.write().unwrap_or_else(PoisonError::into_inner).remove(&copy);
    }

    /// Returns the number of the file that was copied up as this one in the upper.
    pub(crate) fn copy(&self, copy: RealId) -> Option<Ino> {
        self.copies.read().unwrap_or_else(PoisonError::into_inner).get(&copy).copied()
    }

    /// Returns how many files are known, besides the root.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, ino: Ino) -> MutexGuard<'_, Shard> {
        let [first, others @ ..] = &self.shards;
        let index = usize::try_from(ino.0 % SHARDS as u64).unwrap_or(0);
        lock(index.checked_sub(1).and_then(|index| others.get(index)).unwrap_or(first))
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEMANTICS O6
    #[test]
    fn numbers_of_several_file_systems_never_meet() {
        let numbers = Numbers::default();
        assert_eq!(numbers.number((8, 1), 42), Ino(42));
        let other = numbers.number((8, 2), 42);
        assert_ne!(other, Ino(42));
        assert_eq!(other.0 & ((1 << NUMBER_BITS) - 1), 42);
        assert_eq!(numbers.number((8, 1), 42), Ino(42));
        // Those that mean something else, or have no place, get one made up, always the same.
        for number in [0, 1, u64::MAX, 1 << NUMBER_BITS] {
            let made_up = numbers.number((8, 1), number);
            assert!(made_up.0 & HASHED != 0);
            assert_eq!(made_up, numbers.number((8, 1), number));
            assert_ne!(made_up, numbers.number((8, 2), number));
        }
    }
}
