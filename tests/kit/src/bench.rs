//! Measures Overstream beside the overlayfs snapshotter of the same containerd.
//!
//! Every comparison is a series of pairs: both sides do the same thing one after the other, in an
//! order drawn anew for each pair. Before each measured part everything dirty is written to disk, so
//! that nobody pays for the other's writes, and removing what it made is not measured.

mod calls;
mod import;
mod inspect;
pub(crate) mod machine;
mod memory;
pub(crate) mod report;
mod start;
pub(crate) mod stats;
mod syscalls;
mod world;

use std::path::PathBuf;

pub use report::Report;

use crate::Scratch;
use world::World;
pub(crate) use world::quiet_within;

/// What to measure with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon, a release build.
    pub binary: PathBuf,
    /// Few pairs: a look, not a result.
    pub quick: bool,
    /// Only the parts whose name contains this.
    pub only: String,
}

impl Settings {
    fn pairs(&self, full: usize) -> usize {
        if self.quick { (full / 8).max(3) } else { full }
    }

    fn wants(&self, part: &str) -> bool {
        part.contains(&self.only)
    }
}

/// Measures everything, and says on standard error what it is at.
pub fn measure(settings: &Settings) -> Report {
    let scratch = Scratch::new();
    let mut report = Report::new(machine::describe(&scratch, settings));
    if settings.wants("memory") {
        memory::measure(settings, &scratch, &mut report);
    }
    // Tracing slows everything down, so it is not part of a whole run.
    if settings.only == "syscalls" {
        syscalls::measure(settings, &scratch, &mut report);
        return report;
    }
    let world = World::start(&scratch, settings);
    if settings.wants("import") {
        import::measure(settings, &world, &mut report);
    }
    world.import_demo();
    if settings.wants("calls") {
        calls::measure(settings, &world, &mut report);
    }
    if settings.wants("start") {
        start::measure(settings, &world, &mut report);
    }
    if settings.wants("inspect") {
        inspect::measure(settings, &world, &mut report);
    }
    world.stop();
    report
}
