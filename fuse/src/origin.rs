//! Where a copied-up file came from, in the kernel's form (`overlay.origin`), so that its inode number stays
//! the same after the copy-up and the next mount. Pure.
//!
//! The value is version 0, a magic byte, its length, flags, the kind of the handle, the file system's UUID,
//! and the handle (`struct ovl_fb` of the kernel).

use rustix::fs::FsWord;

use crate::layer::{FileHandle, LayerDir, Name, Stat};

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
/// Says in which order the bytes of the handle's numbers are: this machine's.
const ENDIAN: u8 = if cfg!(target_endian = "big") { 1 } else { 0 };
const HEADER: usize = 5 + 16;

/// Handles of one file system whose form is known.
const EXT4: FsWord = 0xef53;
const XFS: FsWord = 0x5846_5342;
const BTRFS: FsWord = 0x9123_683e;
const TMPFS: FsWord = 0x0102_1994;

/// A file system that layers lie on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSystem {
    /// Major and minor number.
    pub(crate) id: (u32, u32),
    /// Its type, as statfs(2) has it.
    pub(crate) kind: FsWord,
    /// Its UUID, if the kernel tells.
    pub(crate) uuid: Option<[u8; 16]>,
}

/// The file systems that lower layers lie on.
#[derive(Debug)]
pub(crate) struct Origins(Vec<FileSystem>);

impl Origins {
    pub(crate) fn new(systems: Vec<FileSystem>) -> Self {
        Self(systems)
    }

    /// Returns the mark's value for a lower file; `None` if its file system cannot name it.
    pub(crate) fn mark(
        &self,
        dir: &dyn LayerDir,
        name: Option<&Name>,
        stat: &Stat,
    ) -> Option<Vec<u8>> {
        self.mark_of(stat.fs, &dir.handle(name).ok()?)
    }

    /// Returns the mark's value for a file of a file system that has this handle there.
    pub(crate) fn mark_of(&self, fs: (u32, u32), handle: &FileHandle) -> Option<Vec<u8>> {
        let system = self.0.iter().find(|system| system.id == fs)?;
        encode(&system.uuid?, handle)
    }

    /// Returns on which file system, and under what number there, the file lies that a mark names.
    pub(crate) fn number(&self, mark: &[u8]) -> Option<((u32, u32), u64)> {
        let (uuid, handle) = decode(mark)?;
        let system = self.0.iter().find(|system| system.uuid == Some(uuid))?;
        Some((system.id, number(system.kind, &handle)?))
    }
}

/// Returns the mark's value for a file of a file system with this UUID; `None` if the handle is too long.
pub(crate) fn encode(uuid: &[u8; 16], handle: &FileHandle) -> Option<Vec<u8>> {
    let length = u8::try_from(HEADER + handle.bytes.len()).ok()?;
    let mut value = vec![VERSION, MAGIC, length, ENDIAN, handle.kind];
    value.extend_from_slice(uuid);
    value.extend_from_slice(&handle.bytes);
    Some(value)
}

/// Returns the handle in a mark's value, and the UUID; `None` if this version does not know its form.
pub(crate) fn decode(value: &[u8]) -> Option<([u8; 16], FileHandle)> {
    let (header, bytes) = value.split_at_checked(HEADER)?;
    let (start, uuid) = header.split_first_chunk::<5>()?;
    let [version, magic, length, flags, kind] = *start;
    let known = version == VERSION
        && magic == MAGIC
        && usize::from(length) == value.len()
        && flags == ENDIAN;
    let handle = FileHandle { kind, bytes: bytes.to_vec() };
    Some((uuid.try_into().ok()?, handle)).filter(|_| known)
}

/// Returns the inode number in a handle of a file system of this type, if the form is known.
pub(crate) fn number(file_system: FsWord, handle: &FileHandle) -> Option<u64> {
    let small = |at: usize| {
        let bytes = handle.bytes.get(at..at + 4)?;
        Some(u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    let big = || Some(u64::from_ne_bytes(handle.bytes.get(..8)?.try_into().ok()?));
    match (file_system, handle.kind, handle.bytes.len()) {
        (EXT4, 1, 8) => small(0),
        (XFS, 1, 8) => small(0),
        (XFS, 0x81, 12) => big(),
        (BTRFS, 0x4d, _) => big(),
        (TMPFS, 1, 12) => Some(small(1 << 2)? | small(2 << 2)? << 32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_nothing_else_is() {
        let handle = FileHandle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] };
        let value = encode(&[7; 16], &handle).unwrap();
        assert_eq!(value.len(), 29);
        assert_eq!(decode(&value), Some(([7; 16], handle)));
        for cut in 0..value.len() {
            assert_eq!(decode(&value[..cut]), None);
        }
        for at in 0..4 {
            let mut other = value.clone();
            other[at] ^= 0x80;
            assert_eq!(decode(&other), None, "{at}");
        }
        let long = FileHandle { kind: 1, bytes: vec![0; 250] };
        assert_eq!(encode(&[0; 16], &long), None);
    }

    #[test]
    fn numbers_are_found_in_known_handles_only() {
        let handle = |kind, bytes: &[u8]| FileHandle { kind, bytes: bytes.to_vec() };
        assert_eq!(number(EXT4, &handle(1, &[5, 0, 0, 0, 9, 9, 9, 9])), Some(5));
        assert_eq!(
            number(TMPFS, &handle(1, &[9, 9, 9, 9, 5, 0, 0, 0, 1, 0, 0, 0])),
            Some(1 << 32 | 5)
        );
        assert_eq!(number(XFS, &handle(0x81, &[5, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9])), Some(5));
        assert_eq!(number(EXT4, &handle(0x81, &[5; 12])), None);
        assert_eq!(number(0x6969, &handle(1, &[5; 8])), None);
    }
}
