//! Three ways to look at the same layers: the kernel's overlayfs, a FUSE mount, and the engine itself.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use overstream_fuse::layer::open_layers;
use overstream_fuse::{Format, MountOptions, Overlay};
use overstream_testkit::{Scratch, limit, require_fuse, require_root};

pub(super) use crate::served::Served;

/// Runs a test as root, in a directory of its own, for at most a minute.
pub(super) fn with_scratch(body: impl FnOnce(&Scratch) + Send + 'static) {
    if require_root() && require_fuse() {
        limit(Duration::from_secs(60), move || body(&Scratch::new()));
    }
}

/// Layers below one directory, from the topmost down.
pub(super) struct Layers {
    base: PathBuf,
    names: Vec<String>,
}

/// A mount of the kernel's overlayfs; dropping it unmounts it.
pub(super) struct Kernel(PathBuf);

impl Layers {
    /// Makes `count` empty layers.
    pub(super) fn new(scratch: &Scratch, name: &str, count: usize) -> Self {
        let base = scratch.dir(name);
        let names: Vec<_> = (0..count).map(|layer| layer.to_string()).collect();
        names.iter().for_each(|layer| std::fs::create_dir(base.join(layer)).unwrap());
        Self { base, names }
    }

    /// Returns the directory of a layer; 0 is the topmost.
    pub(super) fn dir(&self, layer: usize) -> PathBuf {
        self.base.join(&self.names[layer])
    }

    fn dirs(&self) -> Vec<PathBuf> {
        (0..self.names.len()).map(|layer| self.dir(layer)).collect()
    }

    fn target(&self, name: &str) -> PathBuf {
        let target = self.base.with_extension(name);
        std::fs::create_dir(&target).unwrap();
        target
    }

    /// Has the kernel mount the layers. It wants two at least, so a single one is put on an empty one.
    pub(super) fn kernel(&self, format: Format) -> Kernel {
        let mut names = self.names.clone();
        if names.len() == 1 {
            std::fs::create_dir(self.base.join("empty")).unwrap();
            names.push("empty".to_owned());
        }
        let more = if format == Format::User { ",userxattr" } else { "" };
        let data = format!("lowerdir={}{more}", names.join(":"));
        let (base, target) = (self.base.clone(), self.target("kernel"));
        // The kernel takes one page of options, so names are short, in a directory of the thread's own.
        let mount = || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            nix::unistd::chdir(&base).unwrap();
            let kind = Some("overlay");
            nix::mount::mount(kind, &target, kind, MsFlags::MS_RDONLY, Some(data.as_str()))
        };
        thread::scope(|scope| scope.spawn(mount).join().unwrap()).unwrap();
        Kernel(target)
    }

    /// Makes a view of the layers in this process.
    pub(super) fn overlay(&self, format: Format) -> Overlay {
        let layers = open_layers(&self.dirs(), None, Path::new("/nowhere")).unwrap();
        Overlay::new(layers, format)
    }

    /// Serves a view of the layers through FUSE.
    pub(super) fn served(&self, format: Format) -> Served {
        let path = self.target("fuse");
        Served::new(self.overlay(format), path, &MountOptions::default())
    }
}

impl Kernel {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}
