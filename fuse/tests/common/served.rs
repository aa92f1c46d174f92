//! A view served in this process.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use overstream_fuse::bridge::{self, Unmounter};
use overstream_fuse::{MountOptions, Overlay};

/// A served view; dropping it unmounts it.
pub(crate) struct Served {
    path: PathBuf,
    unmounter: Unmounter,
    server: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves a view on a directory.
    pub(crate) fn new(overlay: Overlay, path: PathBuf, options: &MountOptions) -> Self {
        let mut mounted = bridge::mount(overlay, &path, options).unwrap();
        let unmounter = mounted.unmounter();
        let server = thread::spawn(move || mounted.serve().unwrap());
        Self { path, unmounter, server: Some(server) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.unmounter.unmount().expect("unmount a view");
        let ended = self.server.take().expect("a server").join();
        assert!(ended.is_ok() || thread::panicking());
    }
}
