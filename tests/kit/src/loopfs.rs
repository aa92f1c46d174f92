//! File systems on files, to lose power on and to fill up.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::command::{Output, run};
use crate::require::{not_run, require_command, require_root};
use crate::scratch::Scratch;
use crate::sweep;
use crate::wait::holds_within;

/// Name of the file that takes up the space.
const FILLER: &str = ".filler";
/// How long a daemon may look at a file system that is being unmounted.
const BUSY: Duration = Duration::from_secs(5);
/// How long another mount namespace may keep a copy of a mount.
const COPIED: Duration = Duration::from_secs(20);
/// xfs does not make smaller file systems.
const XFS_MINIMUM_MB: u64 = 300;
/// btrfs does not make smaller ones that hold anything.
const BTRFS_MINIMUM_MB: u64 = 128;

/// Type of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// ext4.
    Ext4,
    /// xfs with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT, which cannot hold an upper.
    Vfat,
}

/// A file system that hangs: whoever writes to it waits, until this is dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a LoopFs);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0.path)).ok();
    }
}

/// A mounted file system on a file of its own; its scratch directory unmounts it.
#[derive(Debug)]
pub struct LoopFs {
    kind: FsKind,
    image: PathBuf,
    path: PathBuf,
}

impl FsKind {
    /// Tells whether such file systems can be made, mounted and crashed (capabilities `root`,
    /// `loop`, `ext4`, `xfs`, `btrfs`, `vfat`); says so if not.
    pub fn available(self) -> bool {
        if !require_root() {
            return false;
        }
        if !Path::new("/dev/loop-control").exists() {
            not_run("loop", "there is no /dev/loop-control");
            return false;
        }
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let module = Command::new("modprobe").args(["-q", self.name()]).output();
        let loadable = || module.is_ok_and(|output| output.status.success());
        if !known.split_whitespace().any(|name| name == self.name()) && !loadable() {
            not_run(self.name(), "the kernel does not know it");
            return false;
        }
        let programs = [format!("mkfs.{}", self.name()), "xfs_io".to_owned()];
        let crashes = matches!(self, Self::Ext4 | Self::Xfs);
        let needed = if crashes { &programs[..] } else { &programs[..1] };
        needed.iter().all(|program| require_command(self.name(), program))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }

    fn minimum_mb(self) -> u64 {
        match self {
            Self::Ext4 | Self::Vfat => 0,
            Self::Xfs => XFS_MINIMUM_MB,
            Self::Btrfs => BTRFS_MINIMUM_MB,
        }
    }
}

impl LoopFs {
    /// Makes a file system of at least `size_mb` MiB and mounts it on `NAME` in `scratch`.
    #[track_caller]
    pub fn new(scratch: &Scratch, name: &str, kind: FsKind, size_mb: u64) -> Self {
        let image = scratch.join(format!("{name}.img"));
        let file = File::create_new(&image).expect("make an image file");
        file.set_len(size_mb.max(kind.minimum_mb()) << 20).expect("size an image file");
        let mut command = Command::new(format!("mkfs.{}", kind.name()));
        command.args(match kind {
            FsKind::Ext4 => &["-q", "-F"][..],
            FsKind::Xfs | FsKind::Btrfs => &["-q"],
            FsKind::Vfat => &[],
        });
        run(command.arg(&image)).ok();
        let fs = Self { kind, image, path: scratch.dir(name) };
        fs.mount(&[]).ok();
        fs
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `name` in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Stops it at once, as a power loss does: what is not on its disk will never be, and every
    /// call fails with EIO, until [`LoopFs::remount`]. Not for btrfs and FAT, which cannot do that.
    #[track_caller]
    pub fn shutdown(&self) {
        let able = matches!(self.kind, FsKind::Ext4 | FsKind::Xfs);
        assert!(able, "{:?} cannot be shut down; use power_loss", self.kind);
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.path)).ok();
    }

    /// Loses power and comes back: what was not written to the disk is gone. Nothing may have a
    /// file open in it.
    ///
    /// On btrfs the disk as it is at this moment is copied, and the copy comes back. The copy is
    /// in ascending order while the file system is alive, so a commit in the middle of it may be
    /// seen in part, which a real disk's reordering may do as well.
    #[track_caller]
    pub fn power_loss(&self) {
        if self.kind == FsKind::Btrfs {
            let copy = self.image.with_extension("copy");
            run(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy)).ok();
            self.unmount();
            fs::rename(copy, &self.image).expect("replace an image file");
            self.mount(&[]).ok();
        } else {
            self.shutdown();
            self.remount();
        }
    }

    /// Unmounts it with everything mounted in it, and mounts it again. Nothing may have a file open
    /// in it.
    #[track_caller]
    pub fn remount(&self) {
        self.unmount();
        // A container that starts elsewhere has a copy of every mount for a moment. As long as one is left,
        // mounting gives the same file system again, be it shut down.
        holds_within(COPIED, || sweep::loops_below(&self.image).is_empty());
        self.mount(&[]).ok();
        if let Err(error) = self.path.read_dir() {
            panic!("{} was not mounted anew, somebody keeps it: {error}", self.path.display());
        }
    }

    /// Makes it read-only, as an error on its disk does.
    #[track_caller]
    pub fn remount_readonly(&self) {
        self.change("remount,ro");
    }

    /// Makes it writable again.
    #[track_caller]
    pub fn remount_writable(&self) {
        self.change("remount,rw");
    }

    /// Unmounts it with everything mounted in it. Nothing may keep a file open in it; a daemon that looks
    /// at it just now is waited for.
    #[track_caller]
    pub fn unmount(&self) {
        let mounts = crate::mounts_below(&self.path);
        for point in mounts.iter().rev() {
            let mut result = Ok(());
            holds_within(BUSY, || {
                result = umount2(point, MntFlags::UMOUNT_NOFOLLOW);
                result != Err(Errno::EBUSY)
            });
            result.unwrap_or_else(|e| panic!("cannot unmount {}: {e}", point.display()));
        }
        // The next mount must not get a device that still holds the old image.
        sweep::detach_loops_below(&self.image);
    }

    /// Makes it hang: whoever writes waits, and cannot be killed. Its scratch directory thaws it, too.
    #[track_caller]
    pub fn freeze(&self) -> Frozen<'_> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.path)).ok();
        Frozen(self)
    }

    /// Takes up all space, so that further writes fail with ENOSPC.
    #[track_caller]
    pub fn fill(&self) {
        let mut file = File::create(self.join(FILLER)).expect("make a filler");
        // The smaller the block, the less is left.
        for size in [1 << 20, 64 << 10, 4 << 10, 512] {
            let block = vec![b'f'; size];
            let error = loop {
                // Only what is on the disk is sure to have taken its space.
                if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        }
    }

    /// Gives the space taken by [`LoopFs::fill`] back.
    #[track_caller]
    pub fn drain(&self) {
        let path = self.join(FILLER);
        File::options().write(true).open(&path).and_then(|f| f.set_len(0)).expect("empty a filler");
        fs::remove_file(path).expect("delete a filler");
        run(Command::new("sync").arg("-f").arg(&self.path)).ok();
    }

    #[track_caller]
    fn change(&self, options: &str) {
        run(Command::new("mount").args(["-o", options]).arg(&self.path)).ok();
    }

    #[track_caller]
    fn mount(&self, options: &[&str]) -> Output {
        let options = [&["loop"], options].concat().join(",");
        let mut command = Command::new("mount");
        command.args(["-t", self.kind.name(), "-o", &options]);
        run(command.arg(&self.image).arg(&self.path))
    }
}
