//! How many calls may be inside a place at once, so that a disk that hangs holds up only those who need it.
//!
//! Whoever finds a place full waits, as long as calls there come and go or show that they get on. Where none
//! has for a while, the disk hangs: the call is refused, and its thread serves others. The place is a path: a
//! store, a volume, or whatever one call at a time may work on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a full place may show no sign of life before those who wait are refused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The doors of all places of one kind.
#[derive(Debug)]
pub(crate) struct Doors {
    each: usize,
    all: usize,
    crowds: Mutex<Crowds>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Crowds {
    places: HashMap<PathBuf, Crowd>,
    all: Crowd,
}

/// Those inside.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    count: usize,
    /// When one last entered, left or got on.
    alive: Instant,
}

impl Default for Crowd {
    fn default() -> Self {
        Self { count: 0, alive: Instant::now() }
    }
}

impl Crowd {
    fn change(&mut self, count: usize) {
        *self = Self { count, alive: Instant::now() };
    }
}

/// A place is full, and nothing has moved there for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stuck {
    count: usize,
    silent: Duration,
    /// The calls wait there; otherwise they leave no room at all, mostly in other places.
    here: bool,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.here {
            return write!(
                f,
                "{} calls have waited for this and other disks for {} s; is one of those hung?",
                self.count,
                self.silent.as_secs()
            );
        }
        let calls =
            if self.count == 1 { "1 call has" } else { &format!("{} calls have", self.count) };
        write!(f, "{calls} waited for its disk for {} s; is it hung?", self.silent.as_secs())
    }
}

/// Somebody inside a place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a>(Option<(&'a Doors, PathBuf)>);

impl Doors {
    /// Lets `each` into one place, and `all` into all together.
    pub(crate) fn new(each: usize, all: usize) -> Self {
        Self { each, all, crowds: Mutex::default(), left: Condvar::new() }
    }

    /// Enters a place, waiting for room. Whoever is inside must not enter the same place again.
    pub(crate) fn enter(&self, path: &Path) -> Result<Inside<'_>, Stuck> {
        let mut crowds = self.lock();
        while let Some((full, here)) = self.full(&crowds, path) {
            let silent = full.alive.elapsed();
            let Some(left) = PATIENCE.checked_sub(silent) else {
                return Err(Stuck { count: full.count, silent, here });
            };
            let waited = self.left.wait_timeout(crowds, left);
            crowds = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        crowds.change(path, |count| count + 1);
        Ok(Inside(Some((self, path.to_owned()))))
    }

    /// Those who leave no room for another in a place, and whether they are there.
    fn full(&self, crowds: &Crowds, path: &Path) -> Option<(Crowd, bool)> {
        let here = crowds.places.get(path).filter(|crowd| crowd.count >= self.each);
        let all = || Some(&crowds.all).filter(|crowd| crowd.count >= self.all);
        here.map(|crowd| (*crowd, true)).or_else(|| all().map(|crowd| (*crowd, false)))
    }

    fn lock(&self) -> MutexGuard<'_, Crowds> {
        self.crowds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowds {
    fn change(&mut self, path: &Path, change: fn(usize) -> usize) {
        self.all.change(change(self.all.count));
        let place = self.places.entry(path.to_owned()).or_default();
        place.change(change(place.count));
        // Volumes come and go with their pods.
        if place.count == 0 {
            self.places.remove(path);
        }
    }
}

impl Inside<'_> {
    /// Inside nothing that has a door.
    pub(crate) fn nowhere() -> Self {
        Self(None)
    }

    /// Shows that the work gets on, however long it takes.
    pub(crate) fn get_on(&self) {
        if let Some((doors, path)) = &self.0 {
            doors.lock().change(path, |count| count);
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some((doors, path)) = &self.0 {
            doors.lock().change(path, |count| count.saturating_sub(1));
            doors.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_place_is_waited_for_while_it_lives() {
        let doors = Doors::new(2, 3);
        let (busy, other) = (Path::new("/busy"), Path::new("/other"));
        let (first, _second) = (doors.enter(busy).unwrap(), doors.enter(busy).unwrap());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| doors.enter(busy).is_ok());
            for _ in 0..12 {
                std::thread::sleep(PATIENCE / 10);
                first.get_on();
            }
            assert!(!waiting.is_finished(), "not waited for");
            drop(first);
            assert!(waiting.join().unwrap());
        });
        let _elsewhere = doors.enter(other).unwrap();
    }

    #[test]
    fn a_place_where_nothing_moves_is_refused_at_once_and_others_are_not() {
        let doors = Doors::new(1, 2);
        let (hung, healthy) = (Path::new("/hung"), Path::new("/healthy"));
        let stuck = doors.enter(hung).unwrap();
        let refusal = doors.enter(hung).unwrap_err();
        assert!(refusal.silent >= PATIENCE);
        assert_eq!(refusal.to_string(), "1 call has waited for its disk for 5 s; is it hung?");
        for _ in 0..100 {
            doors.enter(hung).unwrap_err();
            drop(doors.enter(healthy).unwrap());
        }
        drop(stuck);
        drop(doors.enter(hung).unwrap());
        assert_eq!(doors.lock().places.len(), 0);
    }

    #[test]
    fn all_places_together_have_a_limit() {
        let doors = Doors::new(2, 2);
        let _inside =
            [doors.enter(Path::new("/a")).unwrap(), doors.enter(Path::new("/b")).unwrap()];
        let refusal = doors.enter(Path::new("/c")).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "2 calls have waited for this and other disks for 5 s; is one of those hung?"
        );
    }
}
