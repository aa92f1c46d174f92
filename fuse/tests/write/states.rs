//! What the layers may hold under a name, and in what kind of directory the name may be.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use overstream_fuse::Format;

use super::pair::Layers;

/// What the upper layer has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upper {
    Absent,
    File,
    /// An empty directory.
    Empty,
    /// A directory with a file.
    Full,
    /// A directory that hides all that a full lower one has.
    Whiteouts,
    /// An empty opaque directory.
    Opaque,
    /// An opaque directory with a file.
    OpaqueFull,
    Whiteout,
    Symlink,
}

/// What the two lower layers have under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lower {
    Absent,
    File,
    /// An empty directory.
    Empty,
    /// A directory with a file and a directory.
    Full,
    /// A file in the bottommost, and a whiteout above it.
    DeletedFile,
    /// A directory in the bottommost, and a whiteout above it.
    DeletedFull,
    Symlink,
}

/// The directory in which a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// The root, which is always merged.
    Root,
    Merged,
    /// Only in the upper layer.
    Pure,
    /// Opaque in the upper layer, with things below that it hides.
    Opaque,
    /// Only in the lower layers, and one for each case.
    Lower,
}

/// A name, by what is there before anything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) parent: Parent,
    pub(super) upper: Upper,
    pub(super) lower: Lower,
}

pub(super) const UPPERS: [Upper; 9] = [
    Upper::Absent,
    Upper::File,
    Upper::Empty,
    Upper::Full,
    Upper::Whiteouts,
    Upper::Opaque,
    Upper::OpaqueFull,
    Upper::Whiteout,
    Upper::Symlink,
];

pub(super) const LOWERS: [Lower; 7] = [
    Lower::Absent,
    Lower::File,
    Lower::Empty,
    Lower::Full,
    Lower::DeletedFile,
    Lower::DeletedFull,
    Lower::Symlink,
];

pub(super) const PARENTS: [Parent; 5] =
    [Parent::Root, Parent::Merged, Parent::Pure, Parent::Opaque, Parent::Lower];

impl Parent {
    /// Returns every name that can be in such a directory, out of these states.
    pub(super) fn spots(self, uppers: &[Upper], lowers: &[Lower]) -> Vec<Spot> {
        let mut spots = Vec::new();
        for upper in uppers {
            for lower in lowers {
                let possible = match self {
                    Self::Pure => *lower == Lower::Absent,
                    Self::Lower => *upper == Upper::Absent,
                    Self::Root | Self::Merged | Self::Opaque => true,
                };
                if possible {
                    spots.push(Spot { parent: self, upper: *upper, lower: *lower });
                }
            }
        }
        spots
    }

    /// Returns the path of the directory, for the case of this number.
    fn path(self, number: usize) -> String {
        match self {
            Self::Root => String::new(),
            Self::Merged => "merged/".to_owned(),
            Self::Pure => "pure/".to_owned(),
            Self::Opaque => "opaque/".to_owned(),
            Self::Lower => format!("lower/{number}/"),
        }
    }
}

impl Spot {
    /// Returns the path of what is called `name` in the case of this number.
    pub(super) fn path(&self, number: usize, name: &str) -> String {
        format!("{}{number}{name}", self.parent.path(number))
    }

    /// Makes all that is to be there under a path.
    pub(super) fn make(&self, layers: &Layers, path: &str) {
        let [top, bottom] = &layers.lowers;
        for lower in [top, bottom] {
            if self.parent == Parent::Lower {
                fs::create_dir_all(lower.join(path).parent().unwrap()).unwrap();
            }
        }
        self.upper.make(&layers.upper.join(path), layers.format);
        match self.lower {
            Lower::Absent => {}
            Lower::File => file(&top.join(path), 1),
            Lower::Empty => directory(&top.join(path), 1, |_| ()),
            Lower::Full => full(&top.join(path)),
            Lower::DeletedFile => file(&bottom.join(path), 2),
            Lower::DeletedFull => full(&bottom.join(path)),
            Lower::Symlink => link(&top.join(path), 1),
        }
        if matches!(self.lower, Lower::DeletedFile | Lower::DeletedFull) {
            whiteout(&top.join(path));
        }
    }
}

impl Upper {
    fn make(self, path: &Path, format: Format) {
        let own = |path: &Path| file(&path.join("own"), 0);
        match self {
            Self::Absent => {}
            Self::File => file(path, 0),
            Self::Empty => directory(path, 0, |_| ()),
            Self::Full => directory(path, 0, own),
            Self::Whiteouts => directory(path, 0, |path| {
                whiteout(&path.join("file"));
                whiteout(&path.join("dir"));
            }),
            Self::Opaque => directory(path, 0, |path| opaque(path, format)),
            Self::OpaqueFull => directory(path, 0, |path| {
                own(path);
                opaque(path, format);
            }),
            Self::Whiteout => whiteout(path),
            Self::Symlink => link(path, 0),
        }
    }
}

/// Makes all directories but those of `Parent::Lower`, which each case makes itself.
pub(super) fn parents(layers: &Layers) {
    for name in ["merged", "pure", "opaque"] {
        fs::create_dir(layers.upper.join(name)).unwrap();
        if name != "pure" {
            layers.lowers.iter().for_each(|lower| fs::create_dir(lower.join(name)).unwrap());
        }
    }
    opaque(&layers.upper.join("opaque"), layers.format);
}

fn file(path: &Path, layer: u32) {
    fs::write(path, format!("of layer {layer}")).unwrap();
    metadata(path, layer);
}

fn directory(path: &Path, layer: u32, fill: impl FnOnce(&Path)) {
    fs::create_dir(path).unwrap();
    fill(path);
    metadata(path, layer);
}

fn full(path: &Path) {
    directory(path, 1, |path| {
        file(&path.join("file"), 1);
        directory(&path.join("dir"), 1, |path| file(&path.join("deep"), 1));
    });
}

fn link(path: &Path, layer: u32) {
    symlink(format!("nowhere/{layer}"), path).unwrap();
    metadata(path, layer);
}

fn whiteout(path: &Path) {
    mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

fn opaque(path: &Path, format: Format) {
    let space = if format == Format::User { "user" } else { "trusted" };
    xattr::set(path, format!("{space}.overlay.opaque"), b"y").unwrap();
}

/// Owner, mode, attribute and time that tell the layer.
fn metadata(path: &Path, layer: u32) {
    lchown(path, Some(1000 + layer), Some(2000 + layer)).unwrap();
    if !path.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o6750 + layer)).unwrap();
        xattr::set(path, "user.layer", layer.to_string().as_bytes()).unwrap();
    }
    // The upper layer's is before 1970.
    let time = TimeSpec::new(i64::from(layer) * 1_000_000 - 500_000, 123_456_789);
    let here = nix::fcntl::AT_FDCWD;
    utimensat(here, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}
