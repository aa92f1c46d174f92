//! What must be the same on both sides, out of all that can be seen.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use overstream_testkit::facts::{self, Facts, Tree, assert_same};
use rustix::fs::FileType;

use super::frame::{Place, Served};

/// Longer than the kernel's coarse clock stands still.
const TICK: Duration = Duration::from_millis(20);

/// A file's own number, which nobody else need have.
const OWN: u64 = 0;
/// A time after the changes began.
const NOW: (i64, i64) = (i64::MAX, 0);
/// A time before that.
const BEFORE: (i64, i64) = (0, 0);

/// Tells what was there before from what is new.
pub(super) struct Eye {
    /// Numbers of all files in lower layers.
    numbers: BTreeSet<u64>,
    /// When the changes began.
    begin: (i64, i64),
    /// Whether hard links are kept. Which directories are copied up then differs, and so do their links.
    index: bool,
}

impl Eye {
    /// Remembers what there is now.
    pub(super) fn new(lowers: &[Tree], index: bool) -> Self {
        let numbers =
            lowers.iter().flat_map(Tree::values).flatten().map(|facts| facts.ino).collect();
        sleep(TICK);
        let begin = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        sleep(TICK);
        let begin = (begin.as_secs().cast_signed(), begin.subsec_nanos().into());
        Self { numbers, begin, index }
    }

    /// Reads a mounted overlay; looks for the paths in `also`, listed or not.
    #[track_caller]
    pub(super) fn merged(&self, served: &dyn Served, also: &[String]) -> Tree {
        let mut tree = facts::read(served.path(), also);
        if !served.is_kernel() {
            assert_numbered(&tree);
        }
        tree.values_mut().flatten().for_each(|facts| self.compare(facts));
        tree
    }

    /// Reads an upper directory as it lies on disk.
    pub(super) fn raw(&self, upper: &Path) -> Tree {
        let mut tree = facts::read(upper, &[]);
        for facts in tree.values_mut().flatten() {
            self.compare(facts);
            facts.ino = OWN;
            if is_whiteout(facts.mode, facts.device) {
                // One may have many names, so it tells nothing else.
                (facts.links, facts.owner, facts.mode) = (0, (0, 0), facts.mode & FORMAT);
                (facts.modified, facts.changed) = (NOW, NOW);
            }
            facts.xattrs.retain(|name, _| !is_mark(name, b"uuid"));
            for (name, value) in &mut facts.xattrs {
                // It tells an inode number and a file system.
                if is_mark(name, b"origin") {
                    value.clear();
                }
            }
        }
        drop_impure(&mut tree);
        tree
    }

    /// Panics unless two uppers are the same; if hard links are kept, unless as many files have an index entry.
    #[track_caller]
    pub(super) fn assert_same_on_disk(&self, oracle: &Place, subject: &Place) {
        if oracle.index {
            assert_eq!(indexed(&oracle.work), indexed(&subject.work), "files in the index");
        } else {
            assert_same(&self.raw(&oracle.upper), &self.raw(&subject.upper));
        }
    }

    /// Leaves in the facts what is to be the same on both sides.
    fn compare(&self, facts: &mut Facts) {
        if !self.numbers.contains(&facts.ino) {
            facts.ino = OWN;
        }
        if facts.modified >= self.begin {
            facts.modified = NOW;
        }
        // This time cannot be set, so even equal layers differ in it.
        facts.changed = if facts.changed >= self.begin { NOW } else { BEFORE };
        // Which blocks a file system has already allocated is its own affair.
        facts.blocks = 0;
        if FileType::from_raw_mode(facts.mode) == FileType::Directory {
            facts.size = 0;
            facts.links *= u64::from(!self.index);
            // So is what was prepared for something that then failed.
            facts.changed = BEFORE;
        }
        let listing = std::mem::take(&mut facts.listing);
        facts.listing = listing.into_iter().map(|(name, _, kind)| (name, OWN, kind)).collect();
    }
}

/// Tells whether an attribute is this mark of the overlay.
fn is_mark(attribute: &OsStr, mark: &[u8]) -> bool {
    let attribute = attribute.as_bytes();
    let bare = attribute.strip_prefix(b"trusted.overlay.");
    bare.or_else(|| attribute.strip_prefix(b"user.overlay.")) == Some(mark)
}

/// Drops the mark from directories that need none, as the kernel does when it happens to list one.
fn drop_impure(tree: &mut Tree) {
    let has_origin =
        |facts: &&Facts| facts.xattrs.keys().any(|attribute| is_mark(attribute, b"origin"));
    let needed: BTreeSet<_> = tree
        .iter()
        .filter(|(_, facts)| facts.as_ref().ok().is_some_and(|facts| has_origin(&facts)))
        .filter_map(|(path, _)| Some(path.parent()?.to_owned()))
        .collect();
    for (path, facts) in tree.iter_mut().filter(|(path, _)| !needed.contains(*path)) {
        let Ok(facts) = facts else { panic!("{} cannot be read", path.display()) };
        facts.xattrs.retain(|attribute, _| !is_mark(attribute, b"impure"));
    }
}

/// The bits of a mode that tell the type.
const FORMAT: u32 = 0o170_000;

/// Tells whether that is how the overlay marks a deleted name.
pub(super) fn is_whiteout(mode: u32, device: u64) -> bool {
    FileType::from_raw_mode(mode) == FileType::CharacterDevice && device == 0
}

/// Panics if a listing gives another number than the file has.
#[track_caller]
fn assert_numbered(tree: &Tree) {
    for (path, facts) in tree {
        for (name, number, _) in facts.iter().flat_map(|facts| &facts.listing) {
            let of = if name == "." { path.clone() } else { path.join(name) };
            if let Some(Ok(facts)) = tree.get(&of) {
                assert_eq!(*number, facts.ino, "listed and looked up: {}", of.display());
            }
        }
    }
}

/// Panics if there is anything in a work directory but what belongs there: empty directories, and a whiteout
/// if it may stay; and files in the index, if hard links are kept.
#[track_caller]
pub(super) fn assert_clean(place: &Place, whiteout_may_stay: bool) {
    for entry in std::fs::read_dir(&place.work).unwrap() {
        let entry = entry.unwrap();
        let is_directory = entry.metadata().unwrap().is_dir();
        let known = entry.file_name() == "work" || entry.file_name() == "index";
        assert!(is_directory && known, "left in work: {}", entry.path().display());
        for entry in std::fs::read_dir(entry.path()).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let is_whiteout = is_whiteout(meta.mode(), meta.rdev());
            let in_index =
                place.index && !is_whiteout && entry.path().starts_with(place.work.join("index"));
            let may_stay = whiteout_may_stay && is_whiteout || in_index;
            assert!(may_stay, "left in work: {}", entry.path().display());
        }
    }
}

/// Returns how many files are in the index of a work directory.
pub(super) fn indexed(work: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(work.join("index")) else { return 0 };
    let metas = entries.map(|entry| entry.unwrap().metadata().unwrap());
    metas.filter(|meta| !is_whiteout(meta.mode(), meta.rdev())).count()
}
