//! Doing something as somebody else.

use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Gid, Mode, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Somebody, with what a shell would have set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Other groups.
    pub(super) groups: &'static [u32],
    /// Permission bits that new files do not get.
    pub(super) umask: u32,
}

impl User {
    /// Somebody with a group of its own only.
    pub(super) const fn new(id: u32) -> Self {
        Self { uid: id, gid: id, groups: &[], umask: 0o022 }
    }

    /// Does something as this user, in a thread that then ends.
    pub(super) fn run<T: Send>(self, act: impl FnOnce() -> T + Send) -> T {
        let Self { uid, gid, groups, umask } = self;
        let become_user = move || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            rustix::process::umask(Mode::from_raw_mode(umask));
            let groups: Vec<_> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
            set_thread_groups(&groups).unwrap();
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
        };
        let body = || {
            become_user();
            act()
        };
        thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    }
}
