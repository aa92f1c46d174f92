//! Runs a scenario: rounds, turns, fresh directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::Settings;
use super::material::Material;
use super::mounted::{Footprint, Mounted};
use super::row::{Row, Sample};
use super::scenario::Scenario;
use super::subject::{Layout, Subject};
use super::turn::{Found, Turn};
use crate::Scratch;
use crate::bench::quiet_within;
use crate::random::Random;

/// Rounds of a scenario: at least and at most.
const LEAST: usize = 3;
const MOST: usize = 9;
/// After this time no scenario starts another round.
const ENOUGH: Duration = Duration::from_secs(20);
/// Rounds of a quick run.
const QUICK: usize = 2;
/// Longest wait before each turn for other processes to leave the CPUs alone.
const QUIET: Duration = Duration::from_millis(300);

/// What came of one row.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) scenario: &'static str,
    pub(super) row: Row,
    pub(super) fsync: &'static str,
    pub(super) results: Vec<Measured>,
}

/// What came of one row for one subject.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) subject: String,
    /// One sample per round, in step with those of the other subjects.
    pub(super) samples: Vec<Sample>,
    /// What its daemon held at the end of its last turn.
    pub(super) footprint: Option<Footprint>,
    /// Why it was not measured, or no longer.
    pub(super) problem: Option<String>,
    /// Whether it is not there at all.
    pub(super) missing: bool,
}

/// The place where everything happens.
#[derive(Debug)]
pub(super) struct World<'a> {
    scratch: &'a Scratch,
    settings: &'a Settings,
}

/// All turns of a subject so far.
struct Series {
    subject: Subject,
    turns: Vec<Found>,
    problem: Option<String>,
}

impl<'a> World<'a> {
    pub(super) fn new(scratch: &'a Scratch, settings: &'a Settings) -> Self {
        spread(scratch.path());
        Self { scratch, settings }
    }

    /// Runs all rounds of a scenario and returns what came of each row.
    pub(super) fn run(&self, scenario: &Scenario, subjects: &[Subject]) -> Vec<Outcome> {
        let mut all: Vec<Series> = subjects
            .iter()
            .flat_map(|subject| {
                let plain = subject.plain().filter(|_| scenario.plain_too);
                [Some(subject.clone()), plain.filter(|p| subjects.iter().all(|s| s.name != p.name))]
            })
            .flatten()
            .map(|subject| {
                let problem = subject.missing().map(str::to_owned);
                Series { subject, turns: Vec::new(), problem }
            })
            .collect();
        let began = Instant::now();
        let mut random = Random::new(11);
        let mut rounds = 0;
        while self.goes_on(rounds, began) {
            let mut order: Vec<usize> = (0..all.len()).collect();
            shuffle(&mut order, &mut random);
            for index in order {
                self.turn(scenario, &mut all[index], rounds);
            }
            rounds += 1;
        }
        let seconds = began.elapsed().as_secs_f64();
        eprintln!("{}: {rounds} rounds in {seconds:.0} s", scenario.name);
        scenario.rows.iter().map(|row| outcome(scenario, *row, &all)).collect()
    }

    fn goes_on(&self, rounds: usize, began: Instant) -> bool {
        match self.settings.rounds {
            Some(asked) => rounds < asked,
            None if self.settings.quick => rounds < QUICK,
            None => rounds < LEAST || rounds < MOST && began.elapsed() < ENOUGH,
        }
    }

    /// Gives a subject its turn, unless it has failed before.
    fn turn(&self, scenario: &Scenario, series: &mut Series, round: usize) {
        if series.problem.is_some() {
            return;
        }
        match self.try_turn(scenario, &series.subject, round) {
            Ok(found) => series.turns.push(found),
            Err(problem) => {
                eprintln!("{}: {} FAILED: {problem}", scenario.name, series.subject.name);
                series.problem = Some(problem);
            }
        }
    }

    fn try_turn(
        &self,
        scenario: &Scenario,
        subject: &Subject,
        round: usize,
    ) -> Result<Found, String> {
        let place = format!("{}-{}-{round}", scenario.name, subject.name);
        let place = self.scratch.dir(place);
        let lower = self.lower(scenario, &place)?;
        let layout = self.layout(scenario, &place, lower)?;
        if !self.settings.quick {
            quiet_within(QUIET);
        }
        if scenario.cold {
            drop_caches()?;
        } else {
            look_at(layout.lowers.last().map_or(&place, |lower| lower));
        }
        let mounted = Mounted::new(self.scratch, subject, &layout, scenario.volatile)?;
        let mut turn = Turn {
            scratch: self.scratch,
            mounted: &mounted,
            upper: layout.upper.map(|(upper, _)| upper),
            settings: self.settings,
            subject: &subject.name,
            found: Found::default(),
        };
        (scenario.run)(&mut turn)?;
        let mut found = turn.found;
        found.footprint = mounted.footprint();
        drop(mounted);
        if scenario.is_big() {
            // Many small files stay until everything is over: see `scenario`.
            fs::remove_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
        }
        Ok(found)
    }

    /// The lowest layer: one for all turns, or one for this.
    fn lower(&self, scenario: &Scenario, place: &Path) -> Result<PathBuf, String> {
        let material = self.sized(scenario.lower);
        let lower = if scenario.own_lower {
            place.join("lower")
        } else {
            let words = format!("{material:?}").to_lowercase();
            self.scratch.join(words.replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
        };
        if !lower.exists() {
            let filled = material.fill(&lower);
            filled.map_err(|error| format!("fill {}: {error}", lower.display()))?;
        }
        Ok(lower)
    }

    /// Makes the other directories of a turn.
    fn layout(&self, scenario: &Scenario, place: &Path, lower: PathBuf) -> Result<Layout, String> {
        let problem = |error| format!("{}: {error}", place.display());
        let make = |name: &str| {
            let path = place.join(name);
            fs::create_dir_all(&path).map_err(problem)?;
            Ok::<PathBuf, String>(path)
        };
        let mut lowers = Vec::new();
        for number in 1..self.settings.layers {
            let layer = make(&format!("layer-{number}"))?;
            fs::write(layer.join(format!("file-of-layer-{number}")), "x").map_err(problem)?;
            lowers.push(layer);
        }
        lowers.push(lower);
        let upper = if self.settings.read_only {
            None
        } else {
            let upper = make("upper")?;
            if scenario.upper != Material::Nothing {
                self.sized(scenario.upper).fill(&upper).map_err(problem)?;
            }
            Some((upper, make("work")?))
        };
        Ok(Layout { lowers, upper, target: make("mnt")? })
    }

    fn sized(&self, material: Material) -> Material {
        if self.settings.quick { material.smaller() } else { material }
    }
}

fn shuffle(order: &mut [usize], random: &mut Random) {
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index + 1));
    }
}

fn outcome(scenario: &Scenario, row: Row, all: &[Series]) -> Outcome {
    let measured = |series: &Series| {
        let of_row = |found: &Found| found.sample(row.id);
        Measured {
            subject: series.subject.name.clone(),
            samples: series.turns.iter().filter_map(of_row).collect(),
            footprint: series.turns.last().and_then(|found| found.footprint),
            problem: series.problem.clone(),
            missing: series.subject.missing().is_some(),
        }
    };
    Outcome {
        scenario: scenario.name,
        row,
        fsync: scenario.fsync,
        results: all.iter().map(measured).collect(),
    }
}

/// Has ext4 put each directory of a turn into a part of the disk of its own.
///
/// Without a journal it passes over inodes that were freed in the last minutes, one by one, so that
/// creating files near others that somebody has just deleted is ten times as slow.
fn spread(directory: &Path) {
    let changed = Command::new("chattr").arg("+T").arg(directory).output();
    if !changed.is_ok_and(|output| output.status.success()) {
        eprintln!("no `chattr +T` here; what is deleted may slow down what is created later");
    }
}

/// Drops the page cache and all unused names and inodes of all file systems.
fn drop_caches() -> Result<(), String> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
        .map_err(|error| format!("the kernel's caches cannot be dropped: {error}"))
}

/// Has the kernel know all names and inodes below a directory.
fn look_at(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|found| found.is_dir()) {
            look_at(&entry.path());
        }
    }
}
