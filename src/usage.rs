//! How much space a snapshot takes: allocated bytes and inodes of its `fs`, without its parents.
//!
//! A hard-linked file counts once. Files that vanish during the walk are skipped. containerd asks for
//! every running container every ten seconds, so a walk that was slow is not repeated before nine times
//! its duration has passed: walks take at most a tenth of one core, and a quick one is always fresh.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, Stat};

use crate::doors::Inside;
use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::snapshot::Usage;
use crate::tree::{self, Visitor};

/// Walks quicker than this are repeated on every call.
const QUICK: Duration = Duration::from_millis(50);
/// How much longer than the walk itself its result is used.
const REST: u32 = 9;

/// Tells a long operation that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the operation to stop.
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Walks the `fs` of the snapshot directory `own` now, for somebody inside its store.
pub(crate) fn measure(own: &Path, cancel: &Cancel, inside: &Inside<'_>) -> Result<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(own, flags, Mode::empty()).at("open", own)?;
    let mut counter = Counter { usage: Usage::default(), linked: HashSet::new(), cancel, inside };
    let name = std::ffi::CString::new(layout::FS).unwrap_or_default();
    match tree::walk(parent.as_fd(), &name, &mut counter) {
        Err(_) if cancel.is_cancelled() => Err(Error::Cancelled),
        result => result.at("walk", own).map(|()| counter.usage),
    }
}

struct Counter<'a> {
    usage: Usage,
    /// Files with several links that were counted.
    linked: HashSet<(u64, u64)>,
    cancel: &'a Cancel,
    inside: &'a Inside<'a>,
}

impl Counter<'_> {
    fn go_on(&self) -> io::Result<()> {
        self.inside.get_on();
        if self.cancel.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn count(&mut self, stat: &Stat) {
        self.usage.inodes += 1;
        // st_blocks counts units of 512 bytes, whatever the file system's block size.
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }
}

impl Visitor for Counter<'_> {
    fn file(&mut self, _: BorrowedFd<'_>, _: &CStr, stat: &Stat) -> io::Result<()> {
        self.go_on()?;
        if stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.count(stat);
        }
        Ok(())
    }

    fn enter(&mut self, stat: &Stat) -> io::Result<()> {
        self.count(stat);
        self.go_on()
    }

    fn get_on(&mut self) {
        self.inside.get_on();
    }

    fn leave(&mut self, _: BorrowedFd<'_>, _: &CStr) -> io::Result<()> {
        Ok(())
    }
}

/// Results of slow walks, by snapshot number.
#[derive(Debug, Default)]
pub(crate) struct UsageCache(Mutex<HashMap<u64, Arc<Mutex<Option<Measured>>>>>);

#[derive(Clone, Copy, Debug)]
struct Measured {
    usage: Usage,
    finished: Instant,
    took: Duration,
}

impl UsageCache {
    /// Usage of an active snapshot; calls for the same one share a walk.
    pub(crate) fn active(
        &self,
        id: u64,
        own: &Path,
        cancel: &Cancel,
        inside: &Inside<'_>,
    ) -> Result<Usage> {
        let entry = Arc::clone(lock(&self.0).entry(id).or_default());
        let mut measured = lock(&entry);
        if let Some(known) = *measured
            && known.finished.elapsed() < known.took * REST
        {
            return Ok(known.usage);
        }
        let started = Instant::now();
        let usage = measure(own, cancel, inside)?;
        let took = started.elapsed();
        *measured = (took > QUICK).then(|| Measured { usage, finished: Instant::now(), took });
        if measured.is_none() {
            lock(&self.0).remove(&id);
        }
        Ok(usage)
    }

    /// Forgets a snapshot that is not active any more.
    pub(crate) fn forget(&self, id: u64) {
        lock(&self.0).remove(&id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_count_once_and_the_root_counts() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let fs = scratch.path().join("fs");
        std::fs::create_dir_all(fs.join("d")).unwrap();
        let empty = measure(scratch.path(), &Cancel::default(), &Inside::nowhere()).unwrap();
        assert_eq!(empty.inodes, 2);
        std::fs::write(fs.join("a"), vec![1; 8192]).unwrap();
        std::fs::hard_link(fs.join("a"), fs.join("d/b")).unwrap();
        let linked = measure(scratch.path(), &Cancel::default(), &Inside::nowhere()).unwrap();
        assert_eq!((linked.inodes, linked.bytes), (3, empty.bytes + 8192));
    }

    /// SEMANTICS U3
    #[test]
    fn a_slow_walk_is_not_repeated_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("fs")).unwrap();
        let cache = UsageCache::default();
        let known = Usage { bytes: 7, inodes: 7 };
        let walked = |ago: Duration, took: Duration| {
            let finished = Instant::now().checked_sub(ago).unwrap();
            *lock(lock(&cache.0).entry(1).or_default()) =
                Some(Measured { usage: known, finished, took });
            cache.active(1, scratch.path(), &Cancel::default(), &Inside::nowhere()).unwrap()
        };
        let second = Duration::from_secs(1);
        assert_eq!(walked(8 * second, second), known);
        assert_eq!(walked(10 * second, second).inodes, 1);
        assert!(lock(&cache.0).is_empty(), "a quick walk is not remembered");
    }

    #[test]
    fn a_cancelled_walk_does_not_count_on() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "x").unwrap();
        let stat = rustix::fs::stat(scratch.path().join("file")).unwrap();
        let top = std::fs::File::open(scratch.path()).unwrap();
        let cancel = Cancel::default();
        let (usage, linked) = (Usage::default(), HashSet::new());
        let inside = &Inside::nowhere();
        let mut counter = Counter { usage, linked, cancel: &cancel, inside };
        counter.file(top.as_fd(), c"file", &stat).unwrap();
        cancel.cancel();
        counter.file(top.as_fd(), c"file", &stat).unwrap_err();
    }

    #[test]
    fn a_cancelled_walk_says_so() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("fs")).unwrap();
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(matches!(
            measure(scratch.path(), &cancel, &Inside::nowhere()),
            Err(Error::Cancelled)
        ));
    }
}
