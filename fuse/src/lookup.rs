//! Asks the layers about one name, lazily: each at most once, and none below the one that ends it.

use std::sync::Arc;

use crate::errno::{Context, Result};
use crate::format::Format;
use crate::layer::{Kind, LayerDir, Name, Stat};
use crate::merge::{Found, Merged, merge};
use crate::opaque::hides_lower;
use crate::whiteout::is_whiteout;

/// What a layer has under a name: in which directory, and its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// The layer's directory that was asked.
    pub(crate) dir: Arc<dyn LayerDir>,
    /// The attributes, unless there is nothing.
    pub(crate) stat: Option<Stat>,
}

/// Looks `name` up in the directories that one directory of the view consists of.
pub(crate) fn lookup(
    stack: &[Arc<dyn LayerDir>],
    format: Format,
    name: &Name,
) -> Result<Merged<Part>> {
    let last = stack.len().saturating_sub(1);
    merge(stack.iter().enumerate().map(|(layer, dir)| ask(dir, format, name, layer == last)))
}

/// Asks one layer. Nothing can show through a directory of the last one, so its marks are not read.
fn ask(dir: &Arc<dyn LayerDir>, format: Format, name: &Name, last: bool) -> Result<(Found, Part)> {
    let stat = dir.look(name).at("look up")?;
    let found = match &stat {
        None => Found::Absent,
        Some(stat) if is_whiteout(dir.as_ref(), format, name, stat)? => Found::Whiteout,
        Some(Stat { kind: Kind::Directory, .. }) => {
            if !last && hides_lower(dir.as_ref(), format, name)? {
                Found::OpaqueDirectory
            } else {
                Found::Directory
            }
        }
        Some(_) => Found::Leaf,
    };
    Ok((found, Part { dir: Arc::clone(dir), stat }))
}
