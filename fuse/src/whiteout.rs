//! What marks a deleted name: a character device 0:0, or an empty regular file with the mark
//! `whiteout`. `.wh.NAME` is an ordinary name.

use crate::errno::Result;
use crate::format::{Format, Mark};
use crate::layer::{Kind, LayerDir, Stat};
use crate::name::Name;

/// Tells whether what a layer holds under `name` deletes it.
pub(crate) fn is_whiteout(
    dir: &dyn LayerDir,
    format: Format,
    name: &Name,
    stat: &Stat,
) -> Result<bool> {
    match stat.kind {
        Kind::CharDevice => Ok(stat.device == (0, 0)),
        Kind::File if stat.size == 0 => Ok(format.read(dir, Some(name), Mark::Whiteout)?.is_some()),
        _ => Ok(false),
    }
}
