//! Files of every type, each with all that a file can have.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::UtimensatFlags;
use nix::sys::time::TimeSpec;
use rustix::fs::{CWD, FileType, Mode, makedev};

/// A type of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    CharDevice,
    BlockDevice,
    Socket,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::Fifo,
        Self::CharDevice,
        Self::BlockDevice,
        Self::Socket,
    ];
}

pub(super) const CONTENT: &str = "what a lower file has\n";
pub(super) const OWNER: (u32, u32) = (1234, 2345);
pub(super) const CAPABILITY: &str = "security.capability";
pub(super) const ACL: &str = "system.posix_acl_access";
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Before 1970, and no whole second.
const TIME: (i64, i64) = (-1_234_567, 123_456_789);

/// Makes a file with an owner, setuid and setgid, attributes of every kind and an old time.
pub(super) fn make(kind: Kind, path: &Path) {
    let node = |kind, device| {
        rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device).unwrap();
    };
    match kind {
        Kind::File => fs::write(path, CONTENT).unwrap(),
        Kind::Directory => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("child"), "").unwrap();
        }
        Kind::Symlink => symlink("to/nowhere", path).unwrap(),
        Kind::Fifo => node(FileType::Fifo, 0),
        Kind::CharDevice => node(FileType::CharacterDevice, makedev(1, 3)),
        Kind::BlockDevice => node(FileType::BlockDevice, makedev(7, 300)),
        Kind::Socket => drop(UnixListener::bind(path).unwrap()),
    }
    lchown(path, Some(OWNER.0), Some(OWNER.1)).unwrap();
    if kind != Kind::Symlink {
        xattr::set(path, ACL, &acl(&[(4321, 6)])).unwrap();
        let mode = if kind == Kind::Directory { 0o3775 } else { 0o6755 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    if kind == Kind::Directory {
        xattr::set(path, DEFAULT_ACL, &acl(&[(999, 5), (1000, 7)])).unwrap();
    }
    if matches!(kind, Kind::File | Kind::Directory) {
        xattr::set(path, "user.kept", b"by the user").unwrap();
        xattr::set(path, "user.empty", b"").unwrap();
    }
    xattr::set(path, "trusted.kept", &[0, 255, 10]).unwrap();
    if kind == Kind::File {
        xattr::set(path, CAPABILITY, &capability()).unwrap();
    }
    set_times(path, TIME);
}

/// Gives a file a time of access and of modification.
pub(super) fn set_times(path: &Path, (seconds, nanoseconds): (i64, i64)) {
    let time = TimeSpec::new(seconds, nanoseconds);
    let flags = UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

/// Returns what gives a file `cap_net_raw` (`struct vfs_cap_data`, revision 2).
pub(super) fn capability() -> Vec<u8> {
    let words: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Returns an access control list with some users besides the owner (`rwx`), the group (`r-x`) and others (`--x`), as
/// the attribute has it.
pub(super) fn acl(users: &[(u32, u16)]) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let user_entries = users.iter().map(|(user, access)| (2, *access, *user));
    let entries = [(1, 7, NOBODY)].into_iter().chain(user_entries);
    let entries = entries.chain([(4, 5, NOBODY), (16, 7, NOBODY), (32, 1, NOBODY)]);
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, access, id) in entries {
        bytes.extend(u16::to_le_bytes(tag));
        bytes.extend(access.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
