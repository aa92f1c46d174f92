//! The merged listing of a directory: every visible name once, as its topmost layer has it.
//!
//! Whiteouts are hidden and hide. Offsets count entries, so they stay what they are as long as the
//! listing does: it is read when the first entry is asked for, and again when a reader rewinds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::errno::{Context, Result};
use crate::format::Format;
use crate::inode::{Ino, Numbers};
use crate::layer::{Kind, LayerDir, Name, RawEntry};
use crate::node::Dir;
use crate::opaque::{Opaque, opaque};
use crate::whiteout::is_whiteout;

/// A name in a directory of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; none of it are `.` and `..`.
    pub name: Name,
    /// Its inode number.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Which directory it is.
    pub(crate) dir: Arc<Dir>,
    entries: Mutex<Option<Arc<[Entry]>>>,
}

impl Listing {
    /// Opens a directory; nothing is read yet.
    pub(crate) fn new(dir: Arc<Dir>) -> Self {
        Self { dir, entries: Mutex::default() }
    }

    /// Returns the entries, which `read` reads if there are none yet or if the reader rewinds.
    pub(crate) fn entries(
        &self,
        rewind: bool,
        read: impl FnOnce() -> Result<Vec<Entry>>,
    ) -> Result<Arc<[Entry]>> {
        // Readers of one open directory take turns in the kernel, so nobody waits here for the layers.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = entries.as_ref().filter(|_| !rewind) {
            return Ok(Arc::clone(entries));
        }
        let new: Arc<[Entry]> = read()?.into();
        *entries = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// Lists all parts of a directory of the view. `in_upper` gives the number of an entry of the upper part, of
/// which the upper alone does not tell it.
pub(crate) fn list(
    dir: &Dir,
    format: Format,
    numbers: &Numbers,
    in_upper: impl Fn(&RawEntry, (u32, u32)) -> Result<Option<Ino>>,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    let mut parts = dir.parts().enumerate().peekable();
    while let Some((layer, part)) = parts.next() {
        let upper = layer == 0 && dir.upper().is_some();
        let fs = part.stat().at("list")?.fs;
        let mut raw = Vec::new();
        part.list(&mut |entry| raw.push(entry)).at("list")?;
        // Asked for only if there is something that may be such a whiteout.
        let mut file_whiteouts = None;
        for entry in raw {
            if seen.contains(&entry.name) {
                continue;
            }
            if parts.peek().is_some() {
                seen.insert(entry.name.clone());
            }
            let Some(kind) = visible(part, format, &entry, &mut file_whiteouts)? else { continue };
            let own = || numbers.number(fs, entry.number);
            let ino = if upper { in_upper(&entry, fs)?.unwrap_or_else(own) } else { own() };
            entries.push(Entry { name: entry.name, ino, kind });
        }
    }
    Ok(entries)
}

/// Tells whether the topmost part of a directory has no entries at all, not even whiteouts.
pub(crate) fn is_bare(dir: &Dir) -> Result<bool> {
    let mut any = false;
    dir.top().and_then(|part| part.list(&mut |_| any = true)).at("list")?;
    Ok(!any)
}

/// Tells whether a listing would have no entries.
pub(crate) fn is_empty(dir: &Dir, format: Format) -> Result<bool> {
    let mut deleted = HashSet::new();
    let mut parts = dir.parts().peekable();
    while let Some(part) = parts.next() {
        let mut raw = Vec::new();
        part.list(&mut |entry| raw.push(entry)).at("list")?;
        let mut file_whiteouts = None;
        for entry in raw {
            if deleted.contains(&entry.name) {
                continue;
            }
            if visible(part, format, &entry, &mut file_whiteouts)?.is_some() {
                return Ok(false);
            }
            if parts.peek().is_some() {
                deleted.insert(entry.name);
            }
        }
    }
    Ok(true)
}

/// Returns the type of an entry, or `None` if it is a whiteout. Only what may be one is looked at.
fn visible(
    dir: &dyn LayerDir,
    format: Format,
    entry: &RawEntry,
    file_whiteouts: &mut Option<bool>,
) -> Result<Option<Kind>> {
    match entry.kind {
        Some(Kind::CharDevice) | None => {}
        Some(Kind::File) if may_hold_file_whiteouts(dir, format, file_whiteouts)? => {}
        Some(kind) => return Ok(Some(kind)),
    }
    match dir.look(&entry.name).at("list")? {
        Some(stat) if !is_whiteout(dir, format, &entry.name, &stat)? => Ok(Some(stat.kind)),
        _ => Ok(None),
    }
}

fn may_hold_file_whiteouts(
    dir: &dyn LayerDir,
    format: Format,
    known: &mut Option<bool>,
) -> Result<bool> {
    if let Some(known) = *known {
        return Ok(known);
    }
    let answer = opaque(dir, format, None)? == Opaque::FileWhiteouts;
    *known = Some(answer);
    Ok(answer)
}
