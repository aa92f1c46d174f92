//! Reads a tree as a process inside a container sees it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::tree::{Entry, Kind, Tree};

/// Shell script that lists the tree below `/` with busybox, one file system only.
///
/// Its output is for [`Tree::from_listing`]. Names must not hold line breaks.
pub const LISTING: &str = r#"cd / || exit 1
find . -xdev -exec stat -c '%f %u %g %s %i %h %t %T %n' {} +
echo ==
find . -xdev -type l -exec stat -c '%N' {} +
echo ==
find . -xdev -type f -exec sha256sum {} +
"#;

const TYPE: u32 = 0o170_000;

impl Tree {
    /// Makes a tree of what [`LISTING`] printed; panics if that cannot be.
    #[track_caller]
    pub fn from_listing(output: &[u8]) -> Self {
        let mut sections =
            output.split(|byte| *byte == b'\n').fold(vec![Vec::new()], |mut all, line| {
                if line == b"==" {
                    all.push(Vec::new());
                } else if !line.is_empty() {
                    all.last_mut().expect("a section").push(line);
                }
                all
            });
        assert_eq!(sections.len(), 3, "not a listing: {}", String::from_utf8_lossy(output));
        let contents: BTreeMap<PathBuf, String> =
            sections.remove(2).into_iter().map(content).collect();
        let targets: BTreeMap<PathBuf, &OsStr> =
            sections.remove(1).into_iter().map(target).collect();
        let stats = sections.remove(0).into_iter().map(|line| stat(line, &targets, &contents));
        Self::from_numbered(stats.filter(|(path, _)| !path.as_os_str().is_empty()).collect())
    }

    /// Returns the tree without `paths`, what is below them included.
    pub fn without(&self, paths: &[&str]) -> Self {
        let keep = |path: &PathBuf| !paths.iter().any(|other| path.starts_with(other));
        self.filtered(keep)
    }
}

/// Reads `HASH  ./PATH`.
fn content(line: &[u8]) -> (PathBuf, String) {
    let (hash, path) = line.split_at(64);
    (relative(&path[2..]), String::from_utf8(hash.to_vec()).expect("a hash"))
}

/// Reads `'./PATH' -> 'TARGET'`.
fn target(line: &[u8]) -> (PathBuf, &OsStr) {
    const ARROW: &[u8] = b"' -> '";
    let at = line.windows(ARROW.len()).position(|part| part == ARROW).expect("a symbolic link");
    let target = &line[at + ARROW.len()..line.len() - 1];
    (relative(&line[1..at]), OsStr::from_bytes(target))
}

/// Reads the line of `stat` and joins it with the rest; the number is the inode's.
fn stat(
    line: &[u8],
    targets: &BTreeMap<PathBuf, &OsStr>,
    contents: &BTreeMap<PathBuf, String>,
) -> (PathBuf, (Entry, Option<u64>)) {
    let fields: Vec<&[u8]> = line.splitn(9, |byte| *byte == b' ').collect();
    let number = |at: usize, radix: u32| -> u64 {
        let field = std::str::from_utf8(fields[at]).expect("a number");
        u64::from_str_radix(field, radix).expect("a number")
    };
    let small = |at: usize, radix: u32| u32::try_from(number(at, radix)).expect("a small number");
    let path = relative(fields[8]);
    let mode = small(0, 16);
    let device = (number(6, 16), number(7, 16));
    let kind = match mode & TYPE {
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Symlink(targets[&path].to_owned()),
        0o020_000 => Kind::CharDevice(device.0, device.1),
        0o060_000 => Kind::BlockDevice(device.0, device.1),
        0o010_000 => Kind::Fifo,
        0o140_000 => Kind::Socket,
        _ => {
            let content = contents[&path].clone();
            Kind::File { size: number(3, 10), content, links: Vec::new() }
        }
    };
    let entry = Entry { kind, mode: mode & 0o7777, uid: small(1, 10), gid: small(2, 10) };
    let several_names = number(5, 10) > 1;
    (path, (entry, several_names.then(|| number(4, 10))))
}

fn relative(path: &[u8]) -> PathBuf {
    let path = Path::new(OsStr::from_bytes(path));
    path.strip_prefix(".").unwrap_or(path).to_owned()
}
