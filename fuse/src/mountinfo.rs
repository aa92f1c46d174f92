//! Reading `/proc/self/mountinfo`: text only, so that no foreign mount is touched by looking.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::{fs, io};

/// Where the kernel shows the mounts of our mount namespace.
pub const TABLE: &str = "/proc/self/mountinfo";

/// One mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Number of the mount.
    pub id: u64,
    /// Number of its file system, as `major:minor`.
    pub device: String,
    /// The directory of the file system that is mounted, from the file system's own root.
    pub root: PathBuf,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Type of its file system.
    pub fs_type: String,
    /// True if the mount or its file system is read-only.
    pub read_only: bool,
}

/// Lists the mounts, in the order in which they were made. Lines of an unknown form are skipped.
///
/// # Errors
/// Those of reading the table.
pub fn read() -> io::Result<Vec<MountPoint>> {
    let text = fs::read(TABLE)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /mount/point rw,opts shared:1 - ext4 /dev/sda rw,super`
fn parse(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let root = unescape(fields.next()?);
    let path = unescape(fields.next()?);
    let options = text(fields.next()?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = text(after.next()?);
    let super_options = text(after.nth(1).unwrap_or_default());
    let read_only =
        [&options, &super_options].iter().any(|list| list.split(',').any(|option| option == "ro"));
    Some(MountPoint { id, device, root, path, fs_type, read_only })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn fields_are_read_and_unescaped() {
        let line = br"36 35 98:0 /mnt\0401 /a\040b\134c\011d rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.fs_type.as_str()), (36, "ext3"));
        assert_eq!((mount.device.as_str(), mount.root.as_path()), ("98:0", Path::new("/mnt 1")));
        assert_eq!(mount.path, Path::new("/a b\\c\td"));
        assert!(mount.read_only);
        let bare = parse(b"1 0 0:1 / / rw - tmpfs none rw").unwrap();
        assert!(!bare.read_only && bare.path == Path::new("/"));
        for odd in [&b""[..], b"x", b"1 2 3", b"1 0 0:1 / /p rw"] {
            assert_eq!(parse(odd), None);
        }
        assert_eq!(unescape(br"\9\400\04"), Path::new(r"\9\400\04"));
    }

    #[test]
    fn this_host_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.path == Path::new("/")));
    }
}
