//! Under which names the overlay's own marks lie on disk.

use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::errno::{Context, Result};
use crate::layer::LayerDir;
use crate::name::Name;

/// The namespace of the marks: exactly one per mount, since whoever may set attributes of the other
/// could forge marks there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `trusted.overlay.*`, which only root may set.
    #[default]
    Trusted,
    /// `user.overlay.*`, as the kernel's `userxattr`.
    User,
}

/// A mark on a file or directory of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// On a directory: `y` hides lower ones, `x` says that whiteouts may be empty files.
    Opaque,
    /// On an empty file: it is a whiteout.
    Whiteout,
    /// On a directory: lower ones are found elsewhere.
    Redirect,
    /// On a file: its data are found elsewhere.
    Metacopy,
    /// On a copied-up file: where it came from.
    Origin,
    /// On a directory: it holds files with the mark `origin`.
    Impure,
    /// On a file with an index entry: how many names it has.
    Nlink,
    /// On a file of the upper: nobody may change it.
    Protattr,
}

impl Format {
    /// Returns what the names of all marks begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.",
            Self::User => "user.overlay.",
        }
    }

    /// Returns the full name of a mark.
    pub(crate) fn attribute(self, mark: Mark) -> OsString {
        let name = match mark {
            Mark::Opaque => "opaque",
            Mark::Whiteout => "whiteout",
            Mark::Redirect => "redirect",
            Mark::Metacopy => "metacopy",
            Mark::Origin => "origin",
            Mark::Impure => "impure",
            Mark::Nlink => "nlink",
            Mark::Protattr => "protattr",
        };
        [self.prefix(), name].map(OsStr::new).into_iter().collect()
    }

    /// Reads a mark of `name` in `dir`, or of `dir` itself.
    pub(crate) fn read(
        self,
        dir: &dyn LayerDir,
        name: Option<&Name>,
        mark: Mark,
    ) -> Result<Option<Vec<u8>>> {
        match dir.xattr(name, &self.attribute(mark)) {
            Ok(value) => Ok(Some(value)),
            // A file system without such attributes has no marks, and neither has a type of file.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
            Err(error) => Err(error).at("read a mark"),
        }
    }
}
