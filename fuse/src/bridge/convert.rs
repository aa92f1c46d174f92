//! The engine's types in fuser's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyStatfs, ReplyXattr};
use rustix::fs::StatVfs;

use crate::layer::{Kind, Stat, Time};
use crate::{Attr, Error, Ino, Result};

/// Returns what the caller sees of an error.
pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

/// Returns attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    let Stat { device: (major, minor), .. } = attr.stat;
    FileAttr {
        size: attr.stat.size,
        blocks: attr.stat.blocks,
        atime: time(attr.stat.accessed),
        mtime: time(attr.stat.modified),
        ctime: time(attr.stat.changed),
        perm: attr.stat.mode,
        nlink: attr.stat.links,
        uid: attr.stat.uid,
        gid: attr.stat.gid,
        // As the kernel's new_encode_dev().
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: attr.stat.block_size,
        ..only(attr.ino, attr.stat.kind)
    }
}

/// Returns attributes of which only the number and type are known.
pub(super) fn only(ino: Ino, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: self::kind(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Returns what stands for a name that is absent.
pub(super) fn nothing() -> FileAttr {
    only(Ino(0), Kind::File)
}

/// Returns a type.
pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Replies with an attribute or a list of them, or with its size if the caller only asks for that.
pub(super) fn attribute(reply: ReplyXattr, value: Result<Vec<u8>>, room: u32) {
    match value {
        Ok(value) if room == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Replies with a file system's size and room.
pub(super) fn space(reply: ReplyStatfs, space: &StatVfs) {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    reply.statfs(
        space.f_blocks,
        space.f_bfree,
        space.f_bavail,
        space.f_files,
        space.f_ffree,
        small(space.f_bsize),
        small(space.f_namemax),
        small(space.f_frsize),
    );
}

fn time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    // A time that has no place in the system's type is shown as 1970.
    let whole = whole.unwrap_or(UNIX_EPOCH);
    whole.checked_add(Duration::from_nanos(time.nanoseconds.into())).unwrap_or(whole)
}
