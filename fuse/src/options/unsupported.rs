//! What can be asked for, but is not there yet. A line goes when the engine learns it.

use super::{MountOptions, RedirectDir, Squash, Whiteouts, XattrPermissions};

/// Refuses what the engine cannot do yet.
///
/// # Errors
/// Names the first such option, and what to do.
pub fn unsupported(options: &MountOptions) -> Result<(), String> {
    let redirects = matches!(options.redirect_dir, RedirectDir::Follow | RedirectDir::On);
    let owners = options.squash != Squash::default();
    let maps = !options.uid_map.is_empty() || !options.gid_map.is_empty();
    let stored = options.xattr_permissions != XattrPermissions::Inode;
    let refused = [
        (options.whiteouts == Whiteouts::Prefixed, "whiteouts named .wh.NAME"),
        (redirects, "redirect_dir=follow and on: give redirect_dir=nofollow"),
        (options.metacopy, "metacopy=on: leave it off"),
        (!options.acl, "noacl: leave it out, and set no access control lists"),
        (!options.xattrs, "noxattrs: leave it out"),
        (options.ino32, "ino32_t: leave it out, if the programs can take 64 bits"),
        (owners, "squash_to_root, squash_to_uid and squash_to_gid"),
        (maps, "uidmapping and gidmapping"),
        (stored, "xattr_permissions=1 and 2: give 0"),
    ];
    match refused.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(format!("not supported yet: {what}")),
        None => Ok(()),
    }
}
