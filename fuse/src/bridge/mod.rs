//! FUSE on one side, [`Overlay`] on the other: decode, call, one reply.
//!
//! The kernel may keep everything it was told for ever, since nobody changes the layers: names (also
//! absent ones), attributes, file content, directory listings and symlinks.

mod convert;
mod session;

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::SeekFrom;

use crate::{Error, Handle, Ino, Overlay, Result};

pub use session::{Mounted, Unmounted, Unmounter, mount};

/// Longer than any kernel runs.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);

/// What is asked of the kernel, where it knows it. Not id-mapped mounts: with them the kernel no longer
/// tells who lists attributes.
const CAPABILITIES: [InitFlags; 5] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_POSIX_ACL,
];

/// Requests that the kernel may have under way in the background, such as reading ahead.
const BACKGROUND: u16 = 64;

/// lseek(2): the next data.
const SEEK_DATA: i32 = 3;
/// lseek(2): the next hole.
const SEEK_HOLE: i32 = 4;

/// An overlay as fuser sees it.
#[derive(Debug)]
struct Bridge(Overlay);

/// Operations that would change something.
macro_rules! refused {
    ($($name:ident($($argument:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::EROFS);
        })*
    };
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        for capability in CAPABILITIES {
            config
                .add_capabilities(capability & offered)
                .map_err(|_| io::ErrorKind::Unsupported)?;
        }
        config.set_max_background(BACKGROUND).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lookup(Ino(parent.0), name) {
            Ok(attr) => reply.entry(&FOR_EVER, &convert::attr(&attr), Generation(0)),
            // An entry without a number is remembered as absent.
            Err(Error::NoEntry) => reply.entry(&FOR_EVER, &convert::nothing(), Generation(0)),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.0.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attr(Ino(ino.0)) {
            Ok(attr) => reply.attr(&FOR_EVER, &convert::attr(&attr)),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        answer(reply, self.0.read_link(Ino(ino.0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        opened(reply, self.0.open(Ino(ino.0)), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer(reply, self.0.read(Handle(fh.0), offset, size as usize));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match (whence, u64::try_from(offset)) {
            (SEEK_DATA, Ok(offset)) => SeekFrom::Data(offset),
            (SEEK_HOLE, Ok(offset)) => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match self.0.seek(Handle(fh.0), to) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(Handle(fh.0));
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        opened(reply, self.0.open_dir(Ino(ino.0)), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.0.read_dir(Handle(fh.0), offset, |name, ino, kind, next| {
            control(reply.add(INodeNo(ino.0), next, convert::kind(kind), name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let parent = Ino(ino.0);
        let listed = self.0.read_dir(Handle(fh.0), offset, |name, ino, kind, next| {
            // The kernel neither counts nor uses what it is told about these two.
            let dot = name == "." || name == "..";
            let found = if dot { None } else { Some(self.0.lookup(parent, name)) };
            let (attr, ttl) = match found {
                None => (convert::only(ino, kind), FOR_EVER),
                Some(Ok(found)) => (convert::attr(&found), FOR_EVER),
                Some(Err(Error::NoEntry)) => return control(false),
                // It is listed nevertheless; whoever looks at it asks again, and gets the error.
                Some(Err(_)) => {
                    self.0.count(ino);
                    (convert::only(ino, kind), Duration::ZERO)
                }
            };
            let full = reply.add(attr.ino, next, name, &ttl, &attr, Generation(0));
            if full && !dot {
                self.0.forget(Ino(attr.ino.0), 1);
            }
            control(full)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.release_dir(Handle(fh.0));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.0.space() {
            Ok(space) => convert::space(reply, &space),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        convert::attribute(reply, self.0.xattr(Ino(ino.0), name), size);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        convert::attribute(reply, self.0.xattrs(Ino(ino.0), request.uid() == 0), size);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    refused! {
        setattr(INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>) -> ReplyAttr;
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>) -> ReplyWrite;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags)
            -> ReplyWrite;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
    }
}

fn answer(reply: ReplyData, data: Result<Vec<u8>>) {
    match data {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(convert::errno(&error)),
    }
}

fn opened(reply: ReplyOpen, handle: Result<Handle>, flags: FopenFlags) {
    match handle {
        Ok(Handle(handle)) => reply.opened(FileHandle(handle), flags),
        Err(error) => reply.error(convert::errno(&error)),
    }
}

fn control(full: bool) -> ControlFlow<()> {
    if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
