//! The engine's types in fuser's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileType, INodeNo, RenameFlags, ReplyStatfs, ReplyXattr, Request, TimeOrNow,
};
use rustix::fs::{OFlags, StatVfs};

use crate::file::EXECUTES;
use crate::layer::{Kind, Stat, Time};
use crate::{Attr, Caller, Error, Ino, Onto, Result, SetTime};

/// Returns what the caller sees of an error.
pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

/// Returns who asks for an operation.
pub(super) fn caller(request: &Request, operation: &'static str) -> Caller {
    let (uid, gid, pid) = (request.uid(), request.gid(), request.pid());
    Caller { uid, gid, pid, umask: 0, operation }
}

/// Returns who asks for something new.
pub(super) fn creator(request: &Request, umask: u32, operation: &'static str) -> Caller {
    Caller { umask: permissions(umask), ..caller(request, operation) }
}

/// Returns the permission bits of a mode.
pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// Returns the type in a mode.
pub(super) fn kind_of(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Kind::File,
        libc::S_IFCHR => Kind::CharDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        _ => return None,
    })
}

/// Returns major and minor number, as the kernel's `new_decode_dev()`.
pub(super) fn device(device: u32) -> (u32, u32) {
    ((device & 0xfff00) >> 8, (device & 0xff) | ((device >> 12) & 0xfff00))
}

/// Returns what of open(2)'s flags matters.
pub(super) fn open_flags(flags: i32) -> OFlags {
    let access = OFlags::RDWR | OFlags::WRONLY | OFlags::APPEND;
    let known = access | OFlags::TRUNC | OFlags::EXCL | EXECUTES;
    OFlags::from_bits_retain(flags.cast_unsigned()) & known
}

/// Returns what becomes of what is under the new name; `None` if the flags make no sense.
pub(super) fn onto(flags: RenameFlags) -> Option<Onto> {
    match flags {
        flags if flags.is_empty() => Some(Onto::Replace),
        RenameFlags::RENAME_NOREPLACE => Some(Onto::Nothing),
        RenameFlags::RENAME_EXCHANGE => Some(Onto::Exchange),
        _ => None,
    }
}

/// Returns what a time becomes. fuser gives a time before 1970 as that much earlier as its nanoseconds should
/// make it later.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else { return SetTime::Now };
    let (seconds, nanoseconds) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            (0_i64.saturating_sub_unsigned(before.as_secs()), before.subsec_nanos())
        }
    };
    SetTime::To(Time { seconds, nanoseconds })
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
