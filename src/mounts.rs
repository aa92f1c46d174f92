//! Which mounts show a snapshot (pure): containerd 2.x's overlayfs snapshotter, option for option.
//!
//! | snapshot | mount |
//! |---|---|
//! | active without parent | `bind` of its own `fs`, `rw,rbind` (overlay needs a lower) |
//! | view without parent | `bind` of its own empty `fs`, `ro,rbind` |
//! | view of one parent | `bind` of the parent's `fs`, `ro,rbind` |
//! | view of more | `overlay`, lowers only |
//! | active on parents | `overlay` with `workdir`, `upperdir`, `lowerdir` |
//!
//! Lowers are listed top first. Id mappings stand first, configured options last; an `overlay`
//! without `upperdir` is read-only by itself.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::snapshot::{Kind, Mount};

/// Everything the mounts depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Active or view; a committed snapshot has no mounts.
    pub kind: Kind,
    /// Directory of the snapshot's own files: `<dir>/fs`, `<dir>/work`.
    pub own: &'a Path,
    /// `fs` directories of the parents, top first.
    pub lowers: &'a [PathBuf],
    /// `uidmap=` and `gidmap=` options, where the kernel is to map the layers' ids.
    pub id_maps: &'a [String],
    /// Options for every overlay mount: configured ones, `userxattr`, `index=off`.
    pub overlay_options: &'a [String],
    /// Adds `volatile`, for uppers that nobody wants synced.
    pub volatile: bool,
}

/// Bytes below a page from which on containerd shortens `lowerdir` by the directory all lowers share.
const SHORTEN_MARGIN: usize = 512;
/// Most lowers kernel overlayfs accepts.
const MAX_LOWERS: usize = 500;

/// Lists the mounts; always exactly one.
pub(crate) fn mounts(view: &View<'_>) -> Result<Vec<Mount>> {
    let mount = match (view.kind, view.lowers) {
        (Kind::Active, []) => bind(view, &view.own.join(crate::layout::FS), "rw"),
        (_, []) => bind(view, &view.own.join(crate::layout::FS), "ro"),
        (Kind::Active, _) => overlay(view, true),
        (_, [parent]) => bind(view, parent, "ro"),
        (_, _) => overlay(view, false),
    };
    check_size(view, &mount)?;
    Ok(vec![mount])
}

fn bind(view: &View<'_>, source: &Path, access: &str) -> Mount {
    let mut options = view.id_maps.to_vec();
    options.extend([access.to_owned(), "rbind".to_owned()]);
    Mount { fs_type: "bind", source: source.display().to_string(), options }
}

fn overlay(view: &View<'_>, writable: bool) -> Mount {
    let mut options = view.id_maps.to_vec();
    if writable {
        options.push(format!("workdir={}", view.own.join(crate::layout::WORK).display()));
        options.push(format!("upperdir={}", view.own.join(crate::layout::FS).display()));
    }
    let lowers: Vec<_> = view.lowers.iter().map(|lower| lower.display().to_string()).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    options.extend_from_slice(view.overlay_options);
    if writable && view.volatile {
        options.push("volatile".to_owned());
    }
    Mount { fs_type: "overlay", source: "overlay".to_owned(), options }
}

/// Refuses what mount(2) would refuse later with a message nobody can read.
fn check_size(view: &View<'_>, mount: &Mount) -> Result<()> {
    if mount.fs_type != "overlay" {
        return Ok(());
    }
    let layers = view.lowers.len();
    if layers > MAX_LOWERS {
        return Err(Error::FailedPrecondition(format!(
            "the chain has {layers} layers; kernel overlayfs takes {MAX_LOWERS}: squash the image"
        )));
    }
    let size = mount.options.iter().map(|option| option.len() + 1).sum::<usize>();
    // The kernel takes one page of options, with its terminating zero.
    let page = rustix::param::page_size();
    if size < page - SHORTEN_MARGIN {
        return Ok(());
    }
    let size = size.saturating_sub(layers.saturating_mul(shared_prefix(view.lowers)));
    if size > page {
        return Err(Error::FailedPrecondition(format!(
            "the mount options of {layers} layers take {size} bytes; the kernel takes {page}: \
             squash the image, or use a shorter root directory"
        )));
    }
    Ok(())
}

/// Bytes containerd cuts from each lower: their common directory and its slash.
fn shared_prefix(lowers: &[PathBuf]) -> usize {
    let Some(parent) = lowers.first().and_then(|first| first.parent()).and_then(Path::parent)
    else {
        return 0;
    };
    let shared = parent.parent().is_some() && lowers.iter().all(|lower| lower.starts_with(parent));
    if shared { parent.as_os_str().len() + 1 } else { 0 }
}

#[cfg(test)]
mod tests;
