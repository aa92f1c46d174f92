//! What ends a merge: a directory whose mark `opaque` is the one byte `y`.
//!
//! The byte `x` hides nothing; it says that whiteouts in the directory may be empty files, so that
//! a listing has to look at those. Any other value means nothing.

use crate::errno::{Error, Result};
use crate::format::{Format, Mark};
use crate::layer::LayerDir;
use crate::name::Name;

/// What the mark of a directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opaque {
    /// Lower directories show through.
    No,
    /// They do, and whiteouts may be empty files.
    FileWhiteouts,
    /// Lower directories are hidden.
    Yes,
}

/// Reads the mark of the directory `name` in `dir`, or of `dir` itself.
pub(crate) fn opaque(dir: &dyn LayerDir, format: Format, name: Option<&Name>) -> Result<Opaque> {
    let value = format.read(dir, name, Mark::Opaque)?;
    Ok(match value.as_deref() {
        Some(b"y") => Opaque::Yes,
        Some(b"x") => Opaque::FileWhiteouts,
        _ => Opaque::No,
    })
}

/// Tells whether the directory `name` in `dir` hides lower ones.
///
/// # Errors
/// `Unsupported` if lower ones would have to be looked for under another name.
pub(crate) fn hides_lower(dir: &dyn LayerDir, format: Format, name: &Name) -> Result<bool> {
    if opaque(dir, format, Some(name))? == Opaque::Yes {
        return Ok(true);
    }
    match format.read(dir, Some(name), Mark::Redirect)? {
        Some(_) => Err(Error::Unsupported("redirect")),
        None => Ok(false),
    }
}
