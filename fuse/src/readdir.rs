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
    pub(crate) ino: Ino,
    entries: Mutex<Option<Arc<[Entry]>>>,
}

impl Listing {
    /// Opens a directory; nothing is read yet.
    pub(crate) fn new(ino: Ino) -> Self {
        Self { ino, entries: Mutex::default() }
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

/// Lists the directories that one directory of the view consists of.
pub(crate) fn list(
    stack: &[Arc<dyn LayerDir>],
    format: Format,
    numbers: &Numbers,
) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    let last = stack.len().saturating_sub(1);
    for (layer, dir) in stack.iter().enumerate() {
        let fs = dir.stat().at("list")?.fs;
        let file_whiteouts = opaque(dir.as_ref(), format, None)? == Opaque::FileWhiteouts;
        let mut raw = Vec::new();
        dir.list(&mut |entry| raw.push(entry)).at("list")?;
        for entry in raw {
            if seen.contains(&entry.name) {
                continue;
            }
            if layer != last {
                seen.insert(entry.name.clone());
            }
            if let Some(kind) = visible(dir.as_ref(), format, &entry, file_whiteouts)? {
                let ino = numbers.number(fs, entry.number);
                entries.push(Entry { name: entry.name, ino, kind });
            }
        }
    }
    Ok(entries)
}

/// Returns the type of an entry, or `None` if it is a whiteout. Only what may be one is looked at.
fn visible(
    dir: &dyn LayerDir,
    format: Format,
    entry: &RawEntry,
    file_whiteouts: bool,
) -> Result<Option<Kind>> {
    match entry.kind {
        Some(Kind::CharDevice) | None => {}
        Some(Kind::File) if file_whiteouts => {}
        Some(kind) => return Ok(Some(kind)),
    }
    match dir.look(&entry.name).at("list")? {
        Some(stat) if !is_whiteout(dir, format, &entry.name, &stat)? => Ok(Some(stat.kind)),
        _ => Ok(None),
    }
}
