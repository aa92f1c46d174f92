//! Which extended attributes of a layer's file the view shows, and under what names. Pure.
//!
//! The overlay's own marks are hidden. An attribute that a user of another overlay gave such a name lies on
//! disk with one `overlay.` more, and is shown without it, so that overlays can lie in overlays. Those
//! that only root may read are listed to root only.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::format::Format;

const ESCAPE: &[u8] = b"overlay.";

/// Returns under which name an attribute lies on disk that the view calls `shown`.
pub(crate) fn on_disk(format: Format, shown: &OsStr) -> OsString {
    let prefix = format.prefix().as_bytes();
    match shown.as_bytes().strip_prefix(prefix) {
        Some(rest) => OsString::from_vec([prefix, ESCAPE, rest].concat()),
        None => shown.to_owned(),
    }
}

/// Turns the names on disk, each ended by a zero byte, into those that the view lists.
pub(crate) fn listed(format: Format, on_disk: &[u8], privileged: bool) -> Vec<u8> {
    let names = on_disk.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut list = Vec::with_capacity(on_disk.len());
    for name in names {
        if name.starts_with(b"trusted.") && !privileged {
            continue;
        }
        let prefix = format.prefix().as_bytes();
        match name.strip_prefix(prefix) {
            None => list.extend_from_slice(name),
            Some(rest) => match rest.strip_prefix(ESCAPE) {
                None => continue,
                Some(rest) => list.extend([prefix, rest].concat()),
            },
        }
        list.push(0);
    }
    list
}

/// Returns those names on disk that a copy-up copies as they are: all but the overlay's own marks.
pub(crate) fn copied(format: Format, on_disk: &[u8]) -> impl Iterator<Item = &OsStr> {
    let names = on_disk.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let is_mark = move |name: &[u8]| {
        let rest = name.strip_prefix(format.prefix().as_bytes());
        rest.is_some_and(|rest| !rest.starts_with(ESCAPE))
    };
    names.filter(move |name| !is_mark(name)).map(OsStr::from_bytes)
}

/// Tells whether every file can have an attribute of this name, if the layer can have any.
pub(crate) fn is_namespace_known(name: &OsStr) -> bool {
    let known = ["user.", "trusted.", "security.", "system.posix_acl_"];
    known.iter().any(|known| name.as_bytes().starts_with(known.as_bytes()))
}

/// Tells whether an attribute decides who may do what, so that a copy without it would be wrong.
pub(crate) fn is_vital(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEMANTICS O8
    #[test]
    fn marks_are_hidden_and_escaped_names_are_shown_without_the_escape() {
        let disk = b"user.a\0trusted.overlay.opaque\0trusted.overlay.overlay.opaque\0trusted.b\0user.overlay.c\0";
        assert_eq!(
            listed(Format::Trusted, disk, true),
            b"user.a\0trusted.overlay.opaque\0trusted.b\0user.overlay.c\0"
        );
        assert_eq!(listed(Format::Trusted, disk, false), b"user.a\0user.overlay.c\0");
        assert_eq!(listed(Format::User, disk, false), b"user.a\0");
        assert_eq!(
            on_disk(Format::Trusted, OsStr::new("trusted.overlay.opaque")),
            "trusted.overlay.overlay.opaque"
        );
        assert_eq!(
            on_disk(Format::User, OsStr::new("trusted.overlay.opaque")),
            "trusted.overlay.opaque"
        );
        assert_eq!(on_disk(Format::Trusted, OsStr::new("user.a")), "user.a");
    }
}
