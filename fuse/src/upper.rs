//! The upper, and the one door to it: whatever changes names or metadata there goes through [`Upper::change`].

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io;

use crate::caller::Caller;
use crate::change::{Change, ChangeSink, What};
use crate::errno::{Error, Result};
use crate::index::Index;
use crate::layer::{Claim, HostDir, Name, Pool};
use crate::node::{Dir, Leaf, Node, Place};
use crate::work::Work;

/// The upper of a mount, with its work directory.
#[derive(Debug)]
pub struct Upper {
    root: Arc<HostDir>,
    work: Work,
    /// `None` if hard links are not kept.
    index: Option<Index>,
    /// What keeps others from it.
    _locks: Vec<OwnedFd>,
    /// Nothing is synced.
    volatile: bool,
    sink: Option<Arc<dyn ChangeSink>>,
}

impl Upper {
    /// Opens an upper that was claimed, and empties its work directory.
    pub(crate) fn open(claim: Claim, pool: &Arc<Pool>) -> io::Result<Self> {
        let Claim { upper, work, locks } = claim;
        let base = Arc::new(HostDir::root(work, pool));
        let (work, index) = (Work::open(&base)?, Some(Index::open(&base)?));
        let root = Arc::new(HostDir::root(upper, pool));
        Ok(Self { root, work, index, _locks: locks, volatile: false, sink: None })
    }

    /// Never syncs anything, so that a crash loses the upper.
    pub fn set_volatile(&mut self) {
        self.volatile = true;
    }

    /// Lets hard links of lower files part when one is copied up.
    pub fn set_no_index(&mut self) {
        self.index = None;
    }

    /// Has every change told to `sink`.
    pub fn set_sink(&mut self, sink: Arc<dyn ChangeSink>) {
        self.sink = Some(sink);
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> &Arc<HostDir> {
        &self.root
    }

    /// Where files are made unseen.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// What keeps hard links of lower files together.
    pub(crate) fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// Tells whether nothing is to be synced.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Carries out a change, and tells who wants to know.
    pub(crate) fn change<T>(
        &self,
        caller: &Caller,
        change: impl FnOnce() -> Change,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(sink) = &self.sink else { return act() };
        let change = change();
        sink.before(&change, caller).map_err(|error| refused(&error))?;
        let result = act();
        sink.after(&change, caller, result.is_ok());
        result
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        self.work.close();
    }
}

fn refused(error: &std::io::Error) -> Error {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    Error::Layer { what: "tell of a change", source: io::Errno::from_raw_os_error(number) }
}

impl Change {
    /// A change of `name` in a directory of the view.
    pub(crate) fn of(dir: &Dir, name: &Name, what: What) -> Self {
        Self { path: path(dir, name), what }
    }

    /// A change of a file of the view.
    pub(crate) fn of_node(node: &Node, what: What) -> Self {
        let path = match node {
            Node::Directory(dir) => dir_path(dir),
            Node::Leaf(leaf) => leaf_path(leaf),
        };
        Self { path, what }
    }
}

/// Returns the path of `name` in a directory of the view.
pub(crate) fn path(dir: &Dir, name: &Name) -> PathBuf {
    dir_path(dir).join(name.as_os_str())
}

/// Returns a path of a file of the view.
pub(crate) fn leaf_path(leaf: &Leaf) -> PathBuf {
    match &*leaf.place() {
        Place::Lower { parent, name, .. } => path(parent, name),
        Place::Upper(names) => {
            names.first().map(|(parent, name)| path(parent, name)).unwrap_or_default()
        }
        Place::Gone { .. } => PathBuf::from(format!("(deleted, inode {})", leaf.ino.0)),
    }
}

fn dir_path(dir: &Dir) -> PathBuf {
    let mut names = Vec::new();
    let mut above = dir.place().clone();
    while let Some((parent, name)) = above {
        names.push(name);
        above = parent.place().clone();
    }
    names
        .iter()
        .rev()
        .fold(PathBuf::new(), |path: PathBuf, name| path.join(Path::new(name.as_os_str())))
}
