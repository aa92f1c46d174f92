//! Where a directory lies: by name, and inside its file system.
//!
//! Two directories overlap if they are one, or one lies in the other. Names alone do not tell: a bind mount
//! shows a directory under a second name, with other parents. So the way from the root of the file system
//! is compared, too, as the kernel's overlayfs does.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::mountinfo::MountPoint;

/// Where a directory lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its name, without symlinks.
    pub(super) path: PathBuf,
    /// The file system or btrfs subvolume, major and minor number.
    device: (u32, u32),
    /// The mount that the directory was reached through; 0 before Linux 5.8.
    mount: u64,
    /// The file system and the way from its root, if the mount is in our mount table.
    inside: Option<(String, PathBuf)>,
}

impl Place {
    /// Finds out where an open directory lies, among the `mounts` of this mount namespace.
    pub(super) fn of(directory: BorrowedFd<'_>, mounts: &[MountPoint]) -> io::Result<Self> {
        let wanted = StatxFlags::TYPE | StatxFlags::MNT_ID;
        let found = statx(directory, "", AtFlags::EMPTY_PATH, wanted)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        let mount = mounts.iter().find(|mount| mount.id == found.stx_mnt_id);
        Ok(Self {
            device: (found.stx_dev_major, found.stx_dev_minor),
            mount: found.stx_mnt_id,
            inside: mount.and_then(|mount| inside(mount, &path)),
            path,
        })
    }

    /// Tells whether one of two directories is the other, or lies in it.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let inside = match (&self.inside, &other.inside) {
            (Some((device, path)), Some((others, other))) => {
                device == others && nested(path, other)
            }
            _ => false,
        };
        inside || nested(&self.path, &other.path)
    }

    /// Tells whether files can be moved from one directory to the other.
    pub(super) fn reaches(&self, other: &Self) -> bool {
        (self.mount, self.device) == (other.mount, other.device)
    }
}

/// The file system of a mount, and the way in it to what is named `path` there.
fn inside(mount: &MountPoint, path: &Path) -> Option<(String, PathBuf)> {
    let below = path.strip_prefix(&mount.path).ok()?;
    Some((mount.device.clone(), mount.root.join(below)))
}

fn nested(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(mount: (&str, &str, &str), path: &str) -> Place {
        let (device, root, at) = mount;
        let mount = MountPoint {
            id: 1,
            device: device.to_owned(),
            root: root.into(),
            path: at.into(),
            fs_type: "ext4".to_owned(),
            read_only: false,
        };
        let inside = inside(&mount, Path::new(path));
        Place { path: path.into(), device: (8, 1), mount: 1, inside }
    }

    #[test]
    fn a_bind_mount_hides_no_overlap() {
        let disk = ("8:1", "/", "/");
        let alias = ("8:1", "/a/b", "/alias");
        for (one, other, overlaps) in [
            (place(disk, "/a"), place(disk, "/a"), true),
            (place(disk, "/a"), place(disk, "/a/b"), true),
            (place(disk, "/a"), place(disk, "/ab"), false),
            (place(disk, "/a"), place(alias, "/alias"), true),
            (place(disk, "/a"), place(alias, "/alias/c"), true),
            (place(disk, "/a/b/c/d"), place(alias, "/alias/c"), true),
            (place(disk, "/a/c"), place(alias, "/alias/c"), false),
            // The same way in two file systems.
            (place(disk, "/a/b"), place(("8:2", "/a/b", "/alias"), "/alias"), false),
            // A mount in another one's directory: nested by name only.
            (place(disk, "/a"), place(("8:2", "/", "/a/m"), "/a/m"), true),
        ] {
            assert_eq!(one.overlaps(&other), overlaps, "{one:?} {other:?}");
            assert_eq!(other.overlaps(&one), overlaps, "{other:?} {one:?}");
        }
    }

    #[test]
    fn files_are_moved_within_one_mount_of_one_file_system() {
        let one = place(("8:1", "/", "/"), "/a");
        assert!(one.reaches(&Place { path: "/b".into(), ..one.clone() }));
        assert!(!one.reaches(&Place { mount: 2, ..one.clone() }));
        assert!(!one.reaches(&Place { device: (8, 2), ..one.clone() }));
    }
}
