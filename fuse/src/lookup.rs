//! Asks the layers about one name, lazily: each at most once, and none below the one that ends it.

use crate::errno::{Context, Result};
use crate::format::Format;
use crate::layer::{Kind, LayerDir, Name, Stat};
use crate::merge::{Found, Merged, merge};
use crate::node::Dir;
use crate::opaque::hides_lower;
use crate::whiteout::is_whiteout;

/// Which part of a directory a name was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// The upper one.
    Upper,
    /// A lower one, by its index.
    Lower(usize),
}

/// What a layer has under a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The layer.
    pub(crate) layer: Layer,
    /// The attributes.
    pub(crate) stat: Stat,
}

/// What the upper has under a name, by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InUpper {
    /// Nothing, or it has no such directory.
    Nothing,
    /// A whiteout.
    Whiteout,
    /// Something else.
    Something,
}

/// Looks `name` up in all parts of a directory of the view.
pub(crate) fn lookup(dir: &Dir, format: Format, name: &Name) -> Result<Merged<Part>> {
    let none_below = dir.lowers.is_empty();
    let upper =
        dir.upper().map(|upper| ask(upper.as_ref(), Layer::Upper, format, name, none_below));
    Ok(merge(upper.into_iter().chain(lowers(dir, format, name)))?.known())
}

/// Looks `name` up as if there were no upper.
pub(crate) fn lookup_lowers(dir: &Dir, format: Format, name: &Name) -> Result<Merged<Part>> {
    Ok(merge(lowers(dir, format, name))?.known())
}

/// Looks `name` up in the upper alone.
pub(crate) fn look_in_upper(dir: &Dir, format: Format, name: &Name) -> Result<InUpper> {
    let Some(upper) = dir.upper() else { return Ok(InUpper::Nothing) };
    Ok(match upper.look(name).at("look up")? {
        None => InUpper::Nothing,
        Some(stat) if is_whiteout(upper.as_ref(), format, name, &stat)? => InUpper::Whiteout,
        Some(_) => InUpper::Something,
    })
}

fn lowers(
    dir: &Dir,
    format: Format,
    name: &Name,
) -> impl Iterator<Item = Result<(Found, Option<Part>)>> {
    let last = dir.lowers.len().saturating_sub(1);
    dir.lowers.iter().enumerate().map(move |(index, lower)| {
        ask(lower.as_ref(), Layer::Lower(index), format, name, index == last)
    })
}

/// Asks one layer. Nothing can show through a directory of the last one, so its marks are not read.
fn ask(
    dir: &dyn LayerDir,
    layer: Layer,
    format: Format,
    name: &Name,
    last: bool,
) -> Result<(Found, Option<Part>)> {
    let stat = dir.look(name).at("look up")?;
    let found = match &stat {
        None => Found::Absent,
        Some(stat) if is_whiteout(dir, format, name, stat)? => Found::Whiteout,
        Some(Stat { kind: Kind::Directory, .. }) => {
            if !last && hides_lower(dir, format, name)? {
                Found::OpaqueDirectory
            } else {
                Found::Directory
            }
        }
        Some(_) => Found::Leaf,
    };
    Ok((found, stat.map(|stat| Part { layer, stat })))
}
