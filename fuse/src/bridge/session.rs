//! Mounts a view, serves it with several threads, and unmounts it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::UnmountFlags;
use rustix::process::geteuid;

use super::Bridge;
use super::kernel::Kernel;
use crate::{Access, Flag, Keeper, MountOptions, Overlay, Writing};

/// Some, so that those that copy big files or wait for a disk hold nobody up; not many, since each has a
/// buffer of 16 MiB, of which it uses a page as long as nobody writes.
const THREADS: (usize, usize) = (8, 16);

/// A mounted view that is not served yet: who looks at it waits.
#[derive(Debug)]
pub struct Mounted {
    session: Session<Bridge>,
    target: PathBuf,
    overlay: Arc<Overlay>,
}

/// Ends a mount from another thread.
#[derive(Debug)]
pub struct Unmounter {
    session: SessionUnmounter,
    target: PathBuf,
}

/// How a mount has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone.
    Gone,
    /// Its name is gone; who uses it goes on until done.
    InUse,
}

/// Mounts `overlay` on the directory `target`.
///
/// # Errors
/// Those of mount(2), or of fusermount3 where mount(2) is not allowed.
pub fn mount(mut overlay: Overlay, target: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let target = target.canonicalize()?;
    let read_only = overlay.is_read_only() || options.writing == Writing::No;
    let mut config = Config::default();
    config.mount_options = vec![
        if read_only { MountOption::RO } else { MountOption::RW },
        MountOption::DefaultPermissions,
        MountOption::FSName(options.source.clone()),
        // Not as `Subtype`, which mount(2) is not told of.
        MountOption::CUSTOM(format!("subtype={}", options.subtype)),
    ];
    let context = options.context.iter().map(|context| format!("context=\"{context}\""));
    config.mount_options.extend(context.map(MountOption::CUSTOM));
    config.mount_options.extend(options.flags.iter().map(|flag| match flag {
        Flag::NoDev => MountOption::NoDev,
        Flag::NoSuid => MountOption::NoSuid,
        Flag::NoExec => MountOption::NoExec,
        Flag::NoAtime => MountOption::NoAtime,
        Flag::Sync => MountOption::Sync,
    }));
    let root = geteuid().is_root();
    // What fuser forbids unless told otherwise, and what only root may allow.
    let allowed = [(Flag::NoDev, MountOption::Dev), (Flag::NoSuid, MountOption::Suid)];
    let allowed = allowed.into_iter().filter(|(flag, _)| root && !options.flags.contains(flag));
    config.mount_options.extend(allowed.map(|(_, option)| option));
    config.acl = match options.access {
        Access::Mounter if !root => SessionACL::Owner,
        Access::Mounter | Access::Everybody => SessionACL::All,
        Access::MounterAndRoot => SessionACL::RootAndOwner,
    };
    let (least, most) = THREADS;
    let threads = || available_parallelism().map_or(least, usize::from).clamp(least, most);
    config.n_threads = Some(options.threads.unwrap_or_else(threads));
    let kernel = Arc::new(Kernel::default());
    overlay.set_keeper(Arc::clone(&kernel) as Arc<dyn Keeper>);
    let overlay = Arc::new(overlay);
    let bridge = Bridge::new(Arc::clone(&overlay), root, options);
    let session = Session::new(bridge, &target, &config)?;
    kernel.connect(session.notifier());
    Ok(Mounted { session, target, overlay })
}

impl Mounted {
    /// Returns what ends the mount while it is served.
    pub fn unmounter(&mut self) -> Unmounter {
        let session = self.session.unmount_callable();
        Unmounter { session, target: self.target.clone() }
    }

    /// Returns what is served.
    pub fn overlay(&self) -> Arc<Overlay> {
        Arc::clone(&self.overlay)
    }

    /// Serves the view until it is unmounted, by whomever.
    pub fn serve(self) -> io::Result<()> {
        match self.session.run() {
            // It ended while a thread took a request from the kernel.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            ended => ended,
        }
    }
}

impl Unmounter {
    /// Unmounts the view. If somebody uses it, takes away its name only; then the view is served on
    /// until the last user is done.
    pub fn unmount(&mut self) -> io::Result<Unmounted> {
        match self.session.unmount() {
            Ok(()) => Ok(Unmounted::Gone),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                rustix::mount::unmount(&self.target, UnmountFlags::DETACH)?;
                Ok(Unmounted::InUse)
            }
            Err(error) => Err(error),
        }
    }
}
