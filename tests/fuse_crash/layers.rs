//! Layers to fill before anything is mounted. The first part of a path is the layer: `u` the upper, `0` and `1`
//! the lower ones from the topmost down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, mknod};
use overstream_testkit::run;

/// A default ACL: version 2, then entries of tag, permission and id; the group may read and execute.
const DEFAULT_ACL: [u8; 28] = [
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255,
    255, 255, 255,
];

/// A directory with layers in it.
pub(super) struct Layers {
    base: PathBuf,
}

impl Layers {
    /// Makes empty layers, save a directory `d` in both lower ones.
    pub(super) fn new(base: PathBuf) -> Self {
        for name in ["u", "0/d", "1/d"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        Self { base }
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn lowers(&self) -> [PathBuf; 2] {
        ["0", "1"].map(|name| self.base.join(name))
    }

    /// Makes a file that tells its path, with an attribute, and the directories above it.
    pub(super) fn file(&self, path: &str) {
        let at = self.parent(path);
        fs::write(&at, path).unwrap();
        xattr::set(&at, "user.layer", path.as_bytes()).unwrap();
    }

    /// Makes a file of 1 MiB.
    pub(super) fn big(&self, path: &str) {
        fs::write(self.parent(path), vec![b'b'; 1 << 20]).unwrap();
    }

    pub(super) fn dir(&self, path: &str) {
        fs::create_dir_all(self.base.join(path)).unwrap();
    }

    pub(super) fn symlink(&self, path: &str) {
        std::os::unix::fs::symlink(path, self.parent(path)).unwrap();
    }

    pub(super) fn whiteout(&self, path: &str) {
        mknod(&self.parent(path), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    }

    /// Gives a directory an ACL for what is made in it.
    pub(super) fn default_acl(&self, path: &str) {
        self.dir(path);
        xattr::set(self.base.join(path), "system.posix_acl_default", &DEFAULT_ACL).unwrap();
    }

    /// Makes a copy of the upper.
    pub(super) fn copy_upper(&self, name: &str) -> PathBuf {
        let copy = self.base.join(name);
        run(Command::new("cp").arg("-a").arg(self.base.join("u")).arg(&copy)).ok();
        copy
    }

    fn parent(&self, path: &str) -> PathBuf {
        let path = self.base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}
