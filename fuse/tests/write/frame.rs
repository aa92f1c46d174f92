//! Mounting: the kernel's overlayfs, which is right by definition, and what is tested.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;
use overstream_fuse::layer::{Refused, Unclaimable, open_layers};
use overstream_fuse::{Format, MountOptions, Overlay};
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{Mounted, limit, require_fuse, require_root, wait_for};

use crate::served::Served as Fuse;

/// How the data of open files go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Data {
    /// The kernel reads and writes files of the upper itself, where it can.
    #[default]
    Passthrough,
    /// Every write is seen at once.
    Through,
    /// The kernel keeps writes back.
    WriteBack,
}

impl Data {
    pub(super) const ALL: [Self; 3] = [Self::Passthrough, Self::Through, Self::WriteBack];

    fn options(self) -> MountOptions {
        MountOptions {
            passthrough: self == Self::Passthrough,
            writeback: Some(self == Self::WriteBack),
            ..MountOptions::default()
        }
    }
}

/// Layers, from the topmost lower one down, how they are marked, and how they are served.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) lowers: Vec<PathBuf>,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) format: Format,
    pub(super) data: Data,
    /// Whether hard links are kept.
    pub(super) index: bool,
}

/// A mounted overlay; dropping it gets rid of it in any case.
pub(super) trait Served {
    fn path(&self) -> &Path;

    /// Unmounts it; panics if it stays busy.
    fn unmount(self: Box<Self>);

    /// Whether it is the kernel's, of which less is asked.
    ///
    /// It leaves a shared whiteout in its work directory. In a directory into which it has copied nothing up, it
    /// lists a merged directory with the number of its upper part, and stat tells that of its lower part.
    fn is_kernel(&self) -> bool;
}

/// Tells whether everything is to be tested, not only what is quick.
pub(super) fn full() -> bool {
    std::env::var_os("OVERSTREAM_FULL").is_some()
}

/// Runs a test as root, for so long as a busy host may need, or much longer if everything is to be tested.
pub(super) fn as_root(body: impl FnOnce() + Send + 'static) {
    if require_root() && require_fuse() {
        limit(Duration::from_secs(if full() { 1800 } else { 180 }), body);
    }
}

/// Mounts a file system in memory, which goes with the scratch directory that it is in.
pub(super) fn mount_memory(path: &Path) {
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, path, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
}

/// Mounts what is tested on `target`, which is made if missing.
pub(super) fn subject(place: &Place, target: &Path) -> Box<dyn Served> {
    std::fs::create_dir_all(target).unwrap();
    let mut layers = None;
    // A process that another thread is just starting has the locks of the mount before until its exec.
    wait_for("the locks of the mount before", Duration::from_secs(2), || {
        let opened = open_layers(&place.lowers, Some((&place.upper, &place.work)), target);
        let busy = matches!(opened, Err(Refused::Upper(Unclaimable::InUse { .. })));
        layers = (!busy).then(|| opened.unwrap());
        !busy
    });
    let mut layers = layers.unwrap();
    if !place.index {
        layers.upper().unwrap().set_no_index();
    }
    let overlay = Overlay::new(layers, place.format);
    Box::new(Fuse::new(overlay, target.to_owned(), &place.data.options()))
}

impl Served for Fuse {
    fn path(&self) -> &Path {
        self.path()
    }

    fn unmount(self: Box<Self>) {}

    fn is_kernel(&self) -> bool {
        false
    }
}

/// Mounts the kernel's overlayfs on `target`, which is made if missing.
pub(super) fn kernel(place: &Place, target: &Path) -> Box<dyn Served> {
    let lowers: Vec<_> = place.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
    let mut options = vec![
        format!("lowerdir={}", lowers.join(":")),
        format!("upperdir={}", place.upper.display()),
        format!("workdir={}", place.work.display()),
    ];
    // The host may have other defaults, with which the kernel marks more.
    let index = if place.index { "index=on" } else { "index=off" };
    options.extend([index, "xino=off"].map(str::to_owned));
    match place.format {
        Format::Trusted => options.extend(["redirect_dir=off", "metacopy=off"].map(str::to_owned)),
        // This excludes the two.
        Format::User => options.push("userxattr".to_owned()),
    }
    let overlay = "overlay".to_owned();
    let mount = Mount { r#type: overlay.clone(), source: overlay, target: String::new(), options };
    Box::new(overstream_testkit::mount(&[mount], target))
}

impl Served for Mounted {
    fn path(&self) -> &Path {
        self.path()
    }

    fn unmount(self: Box<Self>) {
        (*self).unmount();
    }

    fn is_kernel(&self) -> bool {
        true
    }
}
