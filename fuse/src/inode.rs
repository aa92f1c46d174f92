//! Inode numbers, and the files that the kernel knows by them.
//!
//! A file's number is that of the real file, so it is the same in every mount of the same layers. Numbers of
//! a second file system carry its index in their upper bits, as the kernel's `xino` does. A directory has
//! the number of its topmost part.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::errno::{Error, Result};
use crate::layer::{LayerDir, Name};

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

/// A file of the view: where its layers have it.
#[derive(Debug)]
pub(crate) enum Node {
    /// A directory.
    Directory {
        /// The directory it lies in; the root lies in itself.
        parent: Ino,
        /// Its topmost part.
        top: Arc<dyn LayerDir>,
        /// All its parts, from the topmost down.
        stack: Box<[Arc<dyn LayerDir>]>,
    },
    /// Anything else.
    Leaf {
        /// The layer's directory that it lies in.
        dir: Arc<dyn LayerDir>,
        /// Its name there; one of them, if there are hard links.
        name: Name,
    },
}

/// The files that the kernel knows, each with the number of lookups it has not forgotten.
#[derive(Debug)]
pub(crate) struct Inodes {
    root: Arc<Node>,
    /// Leaf locks: nothing else is done while one is held.
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<u64, (Arc<Node>, u64)>;

impl Inodes {
    /// Makes a table that knows the root, which is never forgotten.
    pub(crate) fn new(root: Node) -> Self {
        Self { root: Arc::new(root), shards: Default::default() }
    }

    /// Counts a lookup that found `node`. If its number is known already, the node there stays.
    pub(crate) fn add(&self, ino: Ino, node: impl FnOnce() -> Node) {
        let Some(mut shard) = self.shard(ino) else { return };
        let (_, lookups) = shard.entry(ino.0).or_insert_with(|| (Arc::new(node()), 0));
        *lookups += 1;
    }

    /// Counts a lookup of a file, if it is known.
    pub(crate) fn count(&self, ino: Ino) {
        let Some(mut shard) = self.shard(ino) else { return };
        if let Some((_, lookups)) = shard.get_mut(&ino.0) {
            *lookups += 1;
        }
    }

    /// Returns the file with a number.
    ///
    /// # Errors
    /// `Stale` if it is not known.
    pub(crate) fn get(&self, ino: Ino) -> Result<Arc<Node>> {
        if ino == Ino::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let shard = self.shard(ino).ok_or(Error::Stale)?;
        shard.get(&ino.0).map(|(node, _)| Arc::clone(node)).ok_or(Error::Stale)
    }

    /// Takes back `count` lookups; at zero the file is not known any more.
    pub(crate) fn forget(&self, ino: Ino, count: u64) {
        let Some(mut shard) = self.shard(ino) else { return };
        let gone = shard.get_mut(&ino.0).and_then(|(_, lookups)| {
            *lookups = lookups.saturating_sub(count);
            (*lookups == 0).then_some(())
        });
        let node = gone.and_then(|()| shard.remove(&ino.0));
        // Closing its handle, if this was its last owner, needs no lock.
        drop(shard);
        drop(node);
    }

    /// Returns how many files are known, besides the root.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, ino: Ino) -> Option<MutexGuard<'_, Shard>> {
        let index = usize::try_from(ino.0 % SHARDS as u64).ok()?;
        self.shards.get(index).map(lock)
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
