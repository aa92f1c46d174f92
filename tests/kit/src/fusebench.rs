//! Measures file systems that stack directories side by side: the kernel's overlayfs, both
//! fuse-overlayfs, and Overstream.
//!
//! A scenario runs in rounds. In each round every subject has one turn, in an order drawn anew: a
//! fresh mount of fresh directories on one disk, then the same steps by the same client. A ratio
//! compares a subject with the kernel in the same rounds.

mod client;
mod material;
mod mounted;
mod names;
mod report;
mod row;
mod scenario;
mod subject;
mod turn;
mod world;

use std::path::PathBuf;

pub use client::run as client;
pub use report::Report;

use crate::Scratch;
use subject::Subject;
use world::World;

/// Who is measured if nobody is named.
pub const SUBJECTS: &str = "kernel,c,rust,overstream";

/// What to measure, and with what.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The program that runs the workloads: `CLIENT client WORKLOAD`.
    pub client: PathBuf,
    /// Overstream, a release build.
    pub overstream: PathBuf,
    /// fuse-overlayfs in Rust.
    pub rust_peer: PathBuf,
    /// Names of those to measure.
    pub subjects: Vec<String>,
    /// Further ones: a name, and a command with `{lowers}`, `{upper}`, `{work}`, `{target}` and
    /// `{options}`, which stays in the foreground.
    pub added: Vec<(String, String)>,
    /// Mount options for Overstream.
    pub options: String,
    /// Only these rows; all if empty.
    pub only: Vec<String>,
    /// Rounds per scenario, instead of as many as fit.
    pub rounds: Option<usize>,
    /// Small sizes and two rounds: a look, not a result.
    pub quick: bool,
    /// Mounts without an upper, and only the rows that can do without.
    pub read_only: bool,
    /// Lower directories; all but the lowest are nearly empty.
    pub layers: usize,
    /// A shell command to run beside every measured step, with `$PID` of the daemon, `$SUBJECT` and
    /// `$ROW`; it is interrupted after the step.
    pub attach: Option<String>,
}

/// Lists the scenarios with their rows, for people.
pub fn list() -> String {
    let line = |one: &scenario::Scenario| {
        let rows = one.rows.iter().map(|row| format!("  {row}\n")).collect::<String>();
        format!("{} (fsync: {})\n{rows}", one.name, one.fsync)
    };
    scenario::all().iter().map(line).collect()
}

/// Measures everything, and says on standard error what it is at.
///
/// # Errors
/// Says which of the settings makes no sense.
pub fn measure(settings: &Settings) -> Result<Report, String> {
    let scenarios = scenario::chosen(&settings.only)?;
    let subjects = settings.subjects.iter().map(|name| Subject::named(name, settings));
    let subjects: Vec<Subject> = subjects.collect::<Result<_, _>>()?;
    let scratch = Scratch::new();
    let mut report = Report::new(&scratch, &subjects, settings);
    let world = World::new(&scratch, settings);
    for scenario in scenarios {
        if settings.read_only && !scenario.reads_only {
            continue;
        }
        for outcome in world.run(&scenario, &subjects) {
            report.add(outcome);
        }
    }
    Ok(report)
}
