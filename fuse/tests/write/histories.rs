//! Long histories of everything that can be done, side by side with the kernel.
//!
//! A history that went wrong is told by its seed; `OVERSTREAM_SEED` repeats that one.

use std::collections::VecDeque;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::stat::{Mode, SFlag, mknod};
use overstream_testkit::{Random, Scratch};

use super::frame::{Data, as_root, full};
use super::pair::{Layers, Pair, Setup};
use super::step::{Known, Open, Step};

/// Steps after which both sides are compared in full.
const COMPARED_AFTER: usize = 20;
/// Last steps that are shown if one goes wrong.
const SHOWN: usize = 12;
const STEPS: usize = 300;

/// Fills layers with some of the names; with hard links only if those are kept.
fn fill(layers: &Layers, random: &mut Random, links: bool) {
    for layer in [&layers.upper, &layers.lowers[0], &layers.lowers[1]] {
        let mut open = Open::default();
        for number in 0..40 {
            let step = Step::roll(random, &Known::look(layer));
            let makes = matches!(
                step,
                Step::Create(..)
                    | Step::Mkdir(..)
                    | Step::Symlink(..)
                    | Step::Fifo(..)
                    | Step::Write(..)
                    | Step::SetAttribute(..)
                    | Step::Chmod(..)
                    | Step::Touch(..)
                    | Step::Open(..)
            );
            if makes || links && matches!(step, Step::Link(..)) {
                step.run(layer, number, &mut open).ok();
            }
        }
        for _ in 0..5 {
            let name = format!(
                "{}/{}",
                random.one_of(&["a", "b", "a/c"]),
                random.one_of(&["a", "b", "d"])
            );
            mknod(&layer.join(name), SFlag::S_IFCHR, Mode::empty(), 0).ok();
        }
        let dir = layer.join(random.one_of(&["a", "b", "c", "a/c"]));
        if dir.is_dir() && !dir.is_symlink() {
            xattr::set(dir, "trusted.overlay.opaque", b"y").unwrap();
        }
    }
}

/// A history on both sides.
struct History {
    seed: u64,
    random: Random,
    known: Known,
    number: usize,
    last: VecDeque<String>,
}

impl History {
    /// Goes on for some steps.
    fn go_on(&mut self, pair: &Pair, steps: usize) {
        let (mut oracle, mut subject) = (Open::default(), Open::default());
        for _ in 0..steps {
            if self.number.is_multiple_of(5) {
                self.known = Known::look(pair.oracle());
            }
            let step = Step::roll(&mut self.random, &self.known);
            self.number += 1;
            let expected = step.run(pair.oracle(), self.number, &mut oracle);
            let found = step.run(pair.subject(), self.number, &mut subject);
            self.last.push_back(format!("{}: {step:?}: {expected:?}", self.number));
            if self.last.len() > SHOWN {
                self.last.pop_front();
            }
            assert_eq!(found, expected, "{step:?}");
            if self.number.is_multiple_of(COMPARED_AFTER) {
                pair.assert_same(&[]);
            }
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        if thread::panicking() {
            let last: Vec<_> = self.last.iter().map(String::as_str).collect();
            eprintln!("OVERSTREAM_SEED={}\n{}", self.seed, last.join("\n"));
        }
    }
}

fn history(seed: u64, setup: Setup) {
    eprintln!("OVERSTREAM_SEED={seed} {setup:?}");
    let scratch = Scratch::new();
    let mut random = Random::new(seed);
    let pair = Pair::new(&scratch, setup, |layers| {
        fill(layers, &mut random, setup.index);
    });
    let mut history =
        History { seed, random, known: Known::default(), number: 0, last: VecDeque::new() };
    history.go_on(&pair, STEPS);
    // Each goes on with what the other has left.
    let pair = pair.exchanged();
    history.go_on(&pair, STEPS);
    pair.assert_interchangeable(&[]);
}

/// Some seeds: those that were asked for, or always the same few; if everything is to be tested, many and a new one.
fn seeds(few: u64) -> Vec<u64> {
    if let Some(seed) = asked_for() {
        return vec![seed];
    }
    if !full() {
        return (0..few).collect();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (0..few * 30).chain([now]).collect()
}

fn asked_for() -> Option<u64> {
    std::env::var("OVERSTREAM_SEED").ok().map(|seed| seed.parse().expect("a number"))
}

fn histories(setup: Setup, few: u64) {
    as_root(move || seeds(few).into_iter().for_each(|seed| history(seed, setup)));
}

/// Whatever is done, the view, the errors and what lies on disk are the kernel's; so they are after each has gone on
/// with the other's upper.
#[test]
fn histories_agree_with_the_kernel() {
    histories(Setup::default(), 4);
}

/// The same where every write is seen at once.
#[test]
fn histories_agree_with_the_kernel_without_passthrough() {
    histories(Setup { data: Data::Through, ..Setup::default() }, 4);
}

/// The same where the kernel keeps writes back.
#[test]
fn histories_agree_with_the_kernel_with_writes_kept_back() {
    histories(Setup { data: Data::WriteBack, ..Setup::default() }, 4);
}

/// The same where numbers of deleted files are given again.
#[test]
fn histories_on_disk_agree_with_the_kernel() {
    histories(Setup { on_disk: true, ..Setup::default() }, 1);
}

/// The same where hard links are kept. Only a few: a name that is deleted before its file was changed costs the kernel a
/// copy, and us none, so that after many deletions the indexes differ (W40).
#[test]
fn histories_with_hard_links_agree_with_the_kernel() {
    as_root(|| {
        let seeds = asked_for().map_or_else(|| (0..4).collect(), |seed| vec![seed]);
        seeds.into_iter().for_each(|seed| history(seed, Setup { index: true, ..Setup::default() }));
    });
}

/// Errors that nothing done to a file system explains.
const WRONG: [i32; 5] = [
    nix::libc::EIO,
    nix::libc::ESTALE,
    nix::libc::ENOTCONN,
    nix::libc::EFAULT,
    nix::libc::EOVERFLOW,
];

fn go_on_alone(root: &Path, seed: u64, steps: usize) {
    let (mut random, mut open) = (Random::new(seed), Open::default());
    let mut known = Known::default();
    for number in 0..steps {
        if number.is_multiple_of(10) {
            known = Known::look(root);
        }
        let step = Step::roll(&mut random, &known);
        // What is cut while it is mapped is not there any more.
        if matches!(step, Step::MapOpen(..)) {
            continue;
        }
        if let Err(error) = step.run(root, number, &mut open) {
            assert!(!WRONG.contains(&error), "OVERSTREAM_SEED={seed} {number}: {step:?}: {error}");
        }
    }
}

fn at_once(seed: u64, data: Data) {
    const THREADS: u64 = 4;
    eprintln!("OVERSTREAM_SEED={seed} {data:?}");
    let scratch = Scratch::new();
    let mut random = Random::new(seed);
    let pair = Pair::new(&scratch, Setup { data, ..Setup::default() }, |layers| {
        fill(layers, &mut random, false);
    });
    let root = pair.subject();
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || go_on_alone(root, seed ^ number << 32, 2 * STEPS));
        }
    });
    pair.assert_seen_by_the_kernel();
}

/// Whatever is done at once, nobody waits for ever, and the kernel sees the same in what it leaves.
#[test]
fn histories_at_once_leave_what_the_kernel_sees_too() {
    as_root(|| {
        for data in Data::ALL {
            seeds(6).into_iter().for_each(|seed| at_once(seed, data));
        }
    });
}
