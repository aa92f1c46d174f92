//! Where the files of a snapshot lie below a store's directory (pure).
//!
//! ```text
//! <store>/
//!   snapshots/       0700
//!     <id>/          0700   decimal, no leading zero
//!       fs/          0755   what the snapshot itself holds: the upper, later a lower
//!       work/        0711   active snapshots: overlay's workdir
//! ```
//! The layer store is the daemon's root directory. A snapshot whose files lie elsewhere has, once it
//! can be a parent, a symlink `<root>/snapshots/<id>`: lowers then share one short directory, which is
//! what keeps the options of a deep chain within the one page the kernel takes.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Name of the directory that holds a snapshot's own files.
pub(crate) const FS: &str = "fs";
/// Name of overlay's working directory.
pub(crate) const WORK: &str = "work";
/// Name of the directory of snapshots in a store.
pub(crate) const SNAPSHOTS: &str = "snapshots";

/// Directory of all snapshots in the store at `base`.
pub(crate) fn snapshots(base: &Path) -> PathBuf {
    base.join(SNAPSHOTS)
}

/// Directory of snapshot `id` in the store at `base`.
pub(crate) fn snapshot(base: &Path, id: u64) -> PathBuf {
    snapshots(base).join(id.to_string())
}

/// Reads the number of a directory below `snapshots`; nothing for a name this layout never makes.
pub(crate) fn parse_id(name: &str) -> Option<u64> {
    let id: u64 = name.parse().ok()?;
    (id > 0 && id.to_string() == name).then_some(id)
}

/// Refuses paths that cannot stand in mount options, which containerd joins with `,` and splits at
/// `:` without any escape.
pub(crate) fn check_mountable(path: &Path) -> Result<()> {
    let text = path.to_str().ok_or_else(|| {
        Error::InvalidArgument(format!("path {} is not valid UTF-8", path.display()))
    })?;
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!("path {text:?} is not absolute")));
    }
    match text.chars().find(|c| matches!(c, ',' | ':' | '\\') || c.is_control()) {
        None => Ok(()),
        Some(c) => Err(Error::InvalidArgument(format!(
            "path {text:?} contains {c:?}, which overlay mount options cannot carry; use another directory"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_only_in_the_form_they_are_written() {
        assert_eq!(parse_id("7"), Some(7));
        for odd in ["", "0", "07", "+7", "-7", "7 ", "new-7", "99999999999999999999999"] {
            assert_eq!(parse_id(odd), None, "{odd}");
        }
    }

    #[test]
    fn paths_that_options_cannot_carry_are_refused() {
        assert!(check_mountable(Path::new("/var/lib/over stream=x")).is_ok());
        for bad in ["/a,b", "/a:b", "/a\\b", "/a\nb", "relative", ""] {
            assert!(check_mountable(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
