//! FUSE on one side, [`Overlay`] on the other: decode, call, one reply.
//!
//! The kernel may keep everything it was told for ever: names (also absent ones), attributes, file content,
//! directory listings and symlinks. Nobody else changes the layers, and what it changes itself it knows.

mod convert;
mod flags;
mod kernel;
mod modes;
mod session;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, XattrFlags};

use self::convert::{caller, creator, permissions};
use self::modes::{Modes, Way};
use crate::{Attr, Error, Handle, Ino, MountOptions, Overlay, Result, SetAttr};

pub use session::{Mounted, Unmounted, Unmounter, mount};

/// Longer than any kernel runs.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);

/// What is asked of the kernel, where it knows it. Not id-mapped mounts: with them the kernel no longer
/// tells who lists attributes.
const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_POSIX_ACL,
    // The umask is applied here, since it is not where there is a default ACL.
    InitFlags::FUSE_DONT_MASK,
    // A file that is cut is copied up without its data.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // Without it every write asks for an attribute. What it leaves to this process is done in `attr`.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

/// Requests that the kernel may have under way in the background, such as reading ahead.
const BACKGROUND: u16 = 64;

/// A smaller file that is only read is read faster through this process.
const PASSTHROUGH_FROM: u64 = 128 << 10;

/// lseek(2): the next data.
const SEEK_DATA: i32 = 3;
/// lseek(2): the next hole.
const SEEK_HOLE: i32 = 4;

/// An overlay as fuser sees it.
#[derive(Debug)]
struct Bridge {
    overlay: Arc<Overlay>,
    modes: Modes,
    /// The kernel reads and writes files of the upper directly.
    passthrough: bool,
    /// The kernel keeps writes back, which excludes passthrough.
    writeback: bool,
    /// How long the kernel may keep what it was told.
    ttl: Duration,
}

impl Bridge {
    fn new(overlay: Arc<Overlay>, root: bool, options: &MountOptions) -> Self {
        let writeback = options.writeback == Some(true);
        Self {
            overlay,
            modes: Modes::default(),
            passthrough: root && options.passthrough && !writeback,
            writeback,
            ttl: options.timeout.unwrap_or(FOR_EVER),
        }
    }

    /// Counts an open, and says how the data go. `register` makes the kernel know a file.
    fn way(
        &self,
        ino: Ino,
        handle: Handle,
        flags: OFlags,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Way {
        let both = flags.contains(OFlags::RDWR);
        let backing = self.backing(handle, flags);
        // Where it is not possible, data go through the page cache.
        let way = self.modes.open(ino, both, || backing.and_then(|file| register(&file).ok()));
        if both && matches!(way, Way::Passthrough(_)) {
            // What the kernel knows of the file now will not be right for long.
            self.overlay.changed(ino);
        }
        way
    }

    /// Returns the file that data would go to directly, if that pays.
    fn backing(&self, handle: Handle, flags: OFlags) -> Option<Arc<File>> {
        if !self.passthrough {
            return None;
        }
        let file = self.overlay.backing(handle).ok()??;
        let writes = flags.intersects(OFlags::RDWR | OFlags::WRONLY);
        let pays = writes || file.metadata().ok()?.len() >= PASSTHROUGH_FROM;
        pays.then_some(file)
    }

    /// How long the kernel may keep a file's attributes.
    fn attr_ttl(&self, ino: Ino) -> &Duration {
        if self.modes.may_be_mapped(ino) { &Duration::ZERO } else { &self.ttl }
    }

    fn entry(&self, reply: ReplyEntry, found: Result<Attr>) {
        match found {
            Ok(found) => {
                let (attr, attr_ttl) = (convert::attr(&found), self.attr_ttl(found.ino));
                reply.entry_with_ttls(attr_ttl, &self.ttl, &attr, Generation(0));
            }
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn attributes(&self, ino: INodeNo, reply: ReplyAttr, attr: Result<Attr>) {
        match attr {
            Ok(attr) => reply.attr(self.attr_ttl(Ino(ino.0)), &convert::attr(&attr)),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        for capability in CAPABILITIES {
            config
                .add_capabilities(capability & offered)
                .map_err(|_| io::ErrorKind::Unsupported)?;
        }
        if self.writeback {
            self.writeback = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE).is_ok();
        }
        self.passthrough = self.passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        config.set_max_background(BACKGROUND).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.overlay.lookup(Ino(parent.0), name) {
            // An entry without a number is remembered as absent.
            Err(Error::NoEntry) => reply.entry(&self.ttl, &convert::nothing(), Generation(0)),
            found => self.entry(reply, found),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        let ino = Ino(ino.0);
        self.overlay.forget(ino, lookups);
        // It may have forgotten one lookup of several.
        if !self.overlay.knows(ino) {
            self.modes.forget(ino);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.attributes(ino, reply, self.overlay.attr(Ino(ino.0)));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            accessed: accessed.map(convert::set_time),
            modified: modified.map(convert::set_time),
        };
        let caller = caller(request, set.operation());
        self.attributes(ino, reply, self.overlay.set_attr(&caller, Ino(ino.0), &set));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        answer(reply, self.overlay.read_link(Ino(ino.0)));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::kind_of(mode) else { return reply.error(Errno::EINVAL) };
        let caller = creator(request, umask, "mknod");
        let (mode, device) = (permissions(mode), convert::device(device));
        self.entry(reply, self.overlay.mknod(&caller, Ino(parent.0), name, kind, mode, device));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let caller = creator(request, umask, "mkdir");
        self.entry(reply, self.overlay.mkdir(&caller, Ino(parent.0), name, permissions(mode)));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.overlay.unlink(&caller(request, "unlink"), Ino(parent.0), name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.overlay.rmdir(&caller(request, "rmdir"), Ino(parent.0), name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let caller = creator(request, 0, "symlink");
        self.entry(reply, self.overlay.symlink(&caller, Ino(parent.0), name, target));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to_parent: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((Ino(parent.0), name), (Ino(to_parent.0), to_name));
        let onto = convert::onto(flags).ok_or(Error::BadFlags);
        let caller = caller(request, "rename");
        done(reply, onto.and_then(|onto| self.overlay.rename(&caller, from, to, onto)));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let caller = caller(request, "link");
        self.entry(reply, self.overlay.link(&caller, Ino(ino.0), Ino(parent.0), name));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, flags) = (creator(request, umask, "create"), convert::open_flags(flags));
        let made = self.overlay.create(&caller, Ino(parent.0), name, permissions(mode), flags);
        let (attr, handle) = match made {
            Ok(made) => made,
            Err(error) => return reply.error(convert::errno(&error)),
        };
        let way = self.way(attr.ino, handle, flags, |file| reply.open_backing(file));
        let (attr, fh, ttl) = (convert::attr(&attr), FileHandle(handle.0), self.attr_ttl(attr.ino));
        let (flags, generation) = (FopenFlags::FOPEN_NOFLUSH, Generation(0));
        match way {
            Way::Passthrough(backing) => {
                reply.created_passthrough(ttl, &attr, generation, fh, flags, &backing);
            }
            Way::Keep | Way::Drop => reply.created(ttl, &attr, generation, fh, flags),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, flags) = (Ino(ino.0), convert::open_flags(flags.0));
        let handle = match self.overlay.open(&caller(request, "open"), ino, flags) {
            Ok(handle) => handle,
            Err(error) => return reply.error(convert::errno(&error)),
        };
        let fh = FileHandle(handle.0);
        match self.way(ino, handle, flags, |file| reply.open_backing(file)) {
            Way::Passthrough(backing) => {
                reply.opened_passthrough(fh, FopenFlags::FOPEN_NOFLUSH, &backing);
            }
            Way::Keep => {
                reply.opened(fh, FopenFlags::FOPEN_NOFLUSH | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Way::Drop => reply.opened(fh, FopenFlags::FOPEN_NOFLUSH),
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let handle = Handle(fh.0);
        let dropped = if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            self.overlay.drop_privileges_of(&caller(request, "write"), handle)
        } else {
            Ok(())
        };
        written(reply, dropped.and_then(|()| self.overlay.write(handle, offset, data)));
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
        answer(reply, self.overlay.read(Handle(fh.0), offset, size as usize));
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
        if self.writeback {
            // What the kernel keeps back would be taken for a hole. It answers this itself from now on.
            return reply.error(Errno::ENOSYS);
        }
        let to = match (whence, u64::try_from(offset)) {
            (SEEK_DATA, Ok(offset)) => SeekFrom::Data(offset),
            (SEEK_HOLE, Ok(offset)) => SeekFrom::Hole(offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match self.overlay.seek(Handle(fh.0), to) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        done(reply, self.overlay.sync(Handle(fh.0), data_only));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        done(reply, self.overlay.sync_dir(Handle(fh.0)));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.overlay.release(Handle(fh.0));
        let ino = Ino(ino.0);
        self.modes.release(ino);
        // The kernel may have forgotten it before.
        if !self.overlay.knows(ino) {
            self.modes.forget(ino);
        }
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        opened(reply, self.overlay.open_dir(Ino(ino.0)), flags);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.overlay.read_dir(Handle(fh.0), offset, |name, ino, kind, next| {
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
        let listed = self.overlay.read_dir(Handle(fh.0), offset, |name, ino, kind, next| {
            // The kernel neither counts nor uses what it is told about these two.
            let dot = name == "." || name == "..";
            let found = if dot { None } else { Some(self.overlay.lookup(parent, name)) };
            let (attr, ttl) = match found {
                None => (convert::only(ino, kind), self.ttl),
                Some(Ok(found)) => (convert::attr(&found), *self.attr_ttl(found.ino)),
                Some(Err(Error::NoEntry)) => return control(false),
                // It is listed nevertheless; whoever looks at it asks again, and gets the error.
                // The kernel takes what it is told of a number for true, so it is told of one that no file has.
                Some(Err(_)) => (convert::only(ino.unknown(), kind), Duration::ZERO),
            };
            let full = reply.add(attr.ino, next, name, &ttl, &attr, Generation(0));
            if full && !dot {
                // Of one that is not known there is nothing to forget.
                self.overlay.forget(Ino(attr.ino.0), 1);
            }
            control(full)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.overlay.release_dir(Handle(fh.0));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.overlay.space() {
            Ok(space) => convert::space(reply, &space),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        convert::attribute(reply, self.overlay.xattr(Ino(ino.0), name), size);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        convert::attribute(reply, self.overlay.xattrs(Ino(ino.0), request.uid() == 0), size);
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        input: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let caller = caller(request, "chattr");
        match flags::answer(&self.overlay, &caller, Ino(ino.0), command, input) {
            Some(Ok(answer)) => reply.ioctl(0, &answer),
            Some(Err(error)) => reply.error(convert::errno(&error)),
            None => reply.error(Errno::ENOTTY),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_truncate(flags.cast_unsigned());
        let caller = caller(request, "setxattr");
        done(reply, self.overlay.set_xattr(&caller, Ino(ino.0), name, value, flags));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = caller(request, "removexattr");
        done(reply, self.overlay.remove_xattr(&caller, Ino(ino.0), name));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        done(reply, self.overlay.allocate(Handle(fh.0), mode, offset, length));
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        from_at: u64,
        _: INodeNo,
        to: FileHandle,
        to_at: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the length.
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let (from, to) = ((Handle(from.0), from_at), (Handle(to.0), to_at));
        written(reply, self.overlay.copy_range(from, to, length));
    }
}

fn done(reply: ReplyEmpty, done: Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(convert::errno(&error)),
    }
}

fn written(reply: ReplyWrite, written: Result<usize>) {
    match written {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        Err(error) => reply.error(convert::errno(&error)),
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
