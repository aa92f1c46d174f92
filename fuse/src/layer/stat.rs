//! The system's attributes in the engine's words.

use rustix::fs::{FileType, Statx, StatxAttributes, StatxTimestamp};
use rustix::io::{self, Errno};

use super::{Kind, Protection, Stat, Time};

pub(super) fn converted(statx: &Statx) -> io::Result<Stat> {
    let kind = kind(FileType::from_raw_mode(statx.stx_mode.into())).ok_or(Errno::IO)?;
    let protection = Protection {
        immutable: statx.stx_attributes.contains(StatxAttributes::IMMUTABLE),
        append: statx.stx_attributes.contains(StatxAttributes::APPEND),
    };
    Ok(Stat {
        kind,
        fs: (statx.stx_dev_major, statx.stx_dev_minor),
        number: statx.stx_ino,
        mode: statx.stx_mode & 0o7777,
        links: statx.stx_nlink,
        uid: statx.stx_uid,
        gid: statx.stx_gid,
        device: (statx.stx_rdev_major, statx.stx_rdev_minor),
        size: statx.stx_size,
        blocks: statx.stx_blocks,
        block_size: statx.stx_blksize,
        accessed: time(&statx.stx_atime),
        modified: time(&statx.stx_mtime),
        changed: time(&statx.stx_ctime),
        protection,
    })
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time { seconds: stamp.tv_sec, nanoseconds: stamp.tv_nsec }
}

pub(super) fn kind(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::Unknown => None,
    }
}
