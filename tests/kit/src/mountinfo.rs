//! Finds the mounts below a directory.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Returns the mount points at or below `directory`, in the order in which they were made.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").expect("read the mount table");
    let points = table.split(|byte| *byte == b'\n').filter_map(mount_point);
    points.filter(|point| point.starts_with(directory)).collect()
}

fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescaped(field))))
}

/// Undoes the kernel's `\ooo` for white space and backslashes.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let number = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_white_space_is_read_back() {
        let line = b"36 35 98:0 / /a\\040b\\134c rw - ext4 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/a b\\c")));
    }
}
