//! A directory's entries, with their offsets.

use std::fs::File;
use std::mem::MaybeUninit;

use rustix::fs::RawDir;

/// Reads on from where `dir` stands, with a small buffer: names, each with the offset after it.
pub(crate) fn read(dir: &File, most: usize) -> Vec<(String, u64)> {
    let mut buffer = [MaybeUninit::uninit(); 512];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while names.len() < most
        && let Some(entry) = raw.next()
    {
        let entry = entry.unwrap();
        names.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    names
}
