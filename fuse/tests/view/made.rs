//! Things that a layer may have under a name.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use overstream_fuse::Format;

/// Something, or nothing, under one name in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Absent,
    File,
    Directory,
    OpaqueDirectory,
    Whiteout,
    Symlink,
    /// A directory with the opaque mark of the other namespace.
    ForeignOpaque,
    /// A directory whose opaque mark has a value that means nothing.
    OddOpaque,
    /// A directory whose whiteouts may be empty files, with one.
    FileWhiteouts,
    /// An empty file that is a whiteout.
    FileWhiteout,
    /// A whiteout's mark on a file that is not empty.
    FullFileWhiteout,
    EmptyFile,
    Device,
    Fifo,
}

/// What the rules are about.
pub(super) const PLAIN: [Made; 6] = [
    Made::Absent,
    Made::File,
    Made::Directory,
    Made::OpaqueDirectory,
    Made::Whiteout,
    Made::Symlink,
];

/// Everything.
pub(super) const ALL: [Made; 14] = [
    Made::Absent,
    Made::File,
    Made::Directory,
    Made::OpaqueDirectory,
    Made::Whiteout,
    Made::Symlink,
    Made::ForeignOpaque,
    Made::OddOpaque,
    Made::FileWhiteouts,
    Made::FileWhiteout,
    Made::FullFileWhiteout,
    Made::EmptyFile,
    Made::Device,
    Made::Fifo,
];

fn mark(format: Format, name: &str) -> String {
    match format {
        Format::Trusted => format!("trusted.overlay.{name}"),
        Format::User => format!("user.overlay.{name}"),
    }
}

fn other(format: Format) -> Format {
    match format {
        Format::Trusted => Format::User,
        Format::User => Format::Trusted,
    }
}

impl Made {
    /// Makes it at `path`, so that it shows from which layer it is.
    pub(super) fn make(self, path: &Path, layer: usize, format: Format) {
        let content = format!("{} of layer {layer}", path.display());
        match self {
            Self::Absent => return,
            Self::File => fs::write(path, content).unwrap(),
            Self::Directory => directory(path, layer, &[]),
            Self::OpaqueDirectory => directory(path, layer, &[(&mark(format, "opaque"), "y")]),
            Self::ForeignOpaque => directory(path, layer, &[(&mark(other(format), "opaque"), "y")]),
            Self::OddOpaque => directory(path, layer, &[(&mark(format, "opaque"), "yes")]),
            Self::FileWhiteouts => {
                directory(path, layer, &[(&mark(format, "opaque"), "x")]);
                Self::FileWhiteout.make(&path.join("gone"), layer, format);
            }
            Self::FileWhiteout | Self::FullFileWhiteout => {
                fs::write(path, if self == Self::FileWhiteout { "" } else { &content }).unwrap();
                xattr::set(path, mark(format, "whiteout"), b"").unwrap();
            }
            Self::EmptyFile => fs::write(path, "").unwrap(),
            Self::Whiteout => node(path, SFlag::S_IFCHR, 0),
            Self::Device => node(path, SFlag::S_IFCHR, makedev(1, 3)),
            Self::Fifo => node(path, SFlag::S_IFIFO, 0),
            Self::Symlink => symlink(format!("/layer/{layer}"), path).unwrap(),
        }
        metadata(path, layer);
    }
}

fn node(path: &Path, kind: SFlag, device: u64) {
    mknod(path, kind, Mode::from_bits_truncate(0o600), device).unwrap();
}

/// A directory with names that all layers have, and some that only this one has.
fn directory(path: &Path, layer: usize, marks: &[(&str, &str)]) {
    fs::create_dir_all(path.join("deep")).unwrap();
    for file in ["both", "gone", &format!("from-{layer}"), &format!("deep/from-{layer}")] {
        if !(file == "gone" && marks.iter().any(|(_, value)| *value == "x")) {
            fs::write(path.join(file), format!("{file} of layer {layer}")).unwrap();
        }
    }
    for (name, value) in marks {
        xattr::set(path, name, value.as_bytes()).unwrap();
    }
}

/// Owner, mode, attributes and times that tell the layer.
fn metadata(path: &Path, layer: usize) {
    let id = 1000 + u32::try_from(layer).unwrap();
    lchown(path, Some(id), Some(id + 1)).unwrap();
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if !kind.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o6540 + id % 8)).unwrap();
    }
    if kind.is_file() || kind.is_dir() {
        xattr::set(path, "user.layer", layer.to_string().as_bytes()).unwrap();
        xattr::set(path, "trusted.overlay.overlay.opaque", b"n").unwrap();
        xattr::set(path, "user.overlay.overlay.opaque", path.as_os_str().as_bytes()).unwrap();
    }
    // The topmost layer's is before 1970.
    let seconds = i64::try_from(layer).unwrap() * 1_000_000 - 500_000;
    let time = TimeSpec::new(seconds, 123_456_789);
    let here = nix::fcntl::AT_FDCWD;
    utimensat(here, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}
