//! The results, for people and for programs.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use super::Settings;
use super::mounted::Footprint;
use super::row::{Metric, Row, Sample};
use super::subject::{KERNEL, OVERSTREAM, Subject};
use super::world::{Measured, Outcome};
use crate::Scratch;
use crate::bench::machine::hardware;
use crate::bench::report::write_table;
use crate::bench::stats::{Ratio, median};

/// Those that Overstream is to be ahead of.
const PEERS: [&str; 2] = ["c", "rust"];

/// All results of one run.
#[derive(Debug)]
pub struct Report {
    machine: String,
    conditions: String,
    /// Each subject and its version.
    subjects: Vec<(String, String)>,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(scratch: &Scratch, subjects: &[Subject], settings: &Settings) -> Self {
        let version = |subject: &Subject| (subject.name.clone(), subject.version());
        let size =
            if settings.quick { "; quick: small sizes, a look and not a result" } else { "" };
        let kind = if settings.read_only { "no upper" } else { "an upper" };
        Self {
            machine: hardware(scratch),
            conditions: format!("{} lower directories, {kind}{size}", settings.layers),
            subjects: subjects.iter().map(version).collect(),
            outcomes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// Tells whether Overstream meets every bar that could be looked at.
    pub fn holds(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.met() != Some(false))
    }

    /// Returns everything, down to the single measurement.
    pub fn json(&self) -> Value {
        let versions = self.subjects.iter().map(|(name, version)| json!([name, version]));
        json!({
            "machine": self.machine,
            "conditions": self.conditions,
            "subjects": versions.collect::<Vec<_>>(),
            "rows": self.outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
            "holds": self.holds(),
        })
    }

    /// Names of all columns: subjects that some row has, in their order.
    fn columns(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for measured in self.outcomes.iter().flat_map(|outcome| &outcome.results) {
            if !names.contains(&measured.subject) {
                names.push(measured.subject.clone());
            }
        }
        names
    }
}

impl Outcome {
    fn of(&self, subject: &str) -> Option<&Measured> {
        self.results.iter().find(|measured| measured.subject == subject)
    }

    fn kernels(&self, metric: Metric) -> Vec<f64> {
        self.of(KERNEL).map(|kernel| kernel.figures(metric)).unwrap_or_default()
    }

    /// How a subject compares with the kernel.
    fn ratio(&self, measured: &Measured, metric: Metric) -> Option<Ratio> {
        let compared = metric.ratio(&measured.figures(metric), &self.kernels(metric));
        compared.filter(|_| measured.subject != KERNEL)
    }

    /// Tells whether Overstream meets the bar; `None` without a bar, or without Overstream.
    fn met(&self) -> Option<bool> {
        let (bar, metric) = (self.row.bar?, self.row.metric);
        let ours = self.of(OVERSTREAM)?;
        if ours.problem.is_some() {
            return ours.failed().then_some(false);
        }
        bar.met(metric, &ours.figures(metric), &self.kernels(metric))
    }

    /// How many times the figure of its best peer Overstream's is.
    fn beside_best_peer(&self) -> Option<f64> {
        let figure = |name: &str| self.of(name)?.middle(self.row.metric);
        let best = PEERS.iter().filter_map(|name| figure(name)).min_by(f64::total_cmp)?;
        Some(figure(OVERSTREAM)? / best)
    }

    fn verdict(&self) -> [String; 2] {
        let bar = self.row.bar.map_or("reported".to_owned(), |bar| bar.show(self.row.metric));
        let met = match (self.row.bar, self.met()) {
            (None, _) => "",
            (_, None) => "not run",
            (_, Some(true)) => "met",
            (_, Some(false)) => "MISSED",
        };
        [bar, met.to_owned()]
    }

    /// The lines of the table: the figure that counts, and the one beside it.
    fn lines(&self, columns: &[String]) -> Vec<Vec<String>> {
        let line = |metric: Metric| {
            let cells = columns.iter().map(|name| self.cell(name, metric));
            let head = [self.row.id.to_owned(), metric.name().to_owned()];
            head.into_iter().chain(cells).collect::<Vec<_>>()
        };
        let mut first = line(self.row.metric);
        first.extend(self.verdict());
        first.push(self.beside_best_peer().map_or(String::new(), |part| format!("{part:.2}x")));
        let second = self.row.metric.beside().map(|metric| {
            let mut second = line(metric);
            second[0].clear();
            second.extend([String::new(), String::new(), String::new()]);
            second
        });
        [Some(first), second].into_iter().flatten().collect()
    }

    fn cell(&self, name: &str, metric: Metric) -> String {
        let Some(measured) = self.of(name) else { return String::new() };
        let Some(middle) = measured.middle(metric) else {
            return if measured.problem.is_some() { "NOT RUN".to_owned() } else { String::new() };
        };
        let ratio = self.ratio(measured, metric).map_or(String::new(), |ratio| {
            format!(" {:.2}x [{:.2}, {:.2}]", ratio.value, ratio.low, ratio.high)
        });
        format!("{}{ratio}", metric.show(middle))
    }

    fn json(&self) -> Value {
        let Row { id, what, metric, bar } = self.row;
        let results = self.results.iter().map(|measured| {
            let ratio = |metric| {
                self.ratio(measured, metric)
                    .map(|ratio| json!([ratio.value, ratio.low, ratio.high]))
            };
            let each = |figure: fn(&Sample) -> f64| {
                measured.samples.iter().map(figure).collect::<Vec<_>>()
            };
            let Footprint { resident, descriptors } = measured.footprint.unwrap_or_default();
            json!({
                "name": measured.subject,
                "figure": measured.middle(metric),
                "ratio": ratio(metric),
                "ratio_beside": metric.beside().and_then(ratio),
                "wall_seconds": each(|sample| sample.wall),
                "client_cpu_seconds": each(|sample| sample.client),
                "daemon_cpu_seconds": each(|sample| sample.daemon),
                "operations": each(|sample| sample.ops),
                "values": each(|sample| sample.value),
                "daemon_resident_bytes": resident,
                "daemon_descriptors": descriptors,
                "problem": measured.problem,
            })
        });
        json!({
            "scenario": self.scenario, "row": id, "what": what, "metric": metric.name(), "fsync": self.fsync,
            "bar": bar.map(|bar| bar.show(metric)), "met": self.met(),
            "of_best_peer": self.beside_best_peer(),
            "results": results.collect::<Vec<_>>(),
        })
    }
}

impl Measured {
    fn figures(&self, metric: Metric) -> Vec<f64> {
        self.samples.iter().map(|sample| metric.of(sample)).collect()
    }

    fn middle(&self, metric: Metric) -> Option<f64> {
        let figures = self.figures(metric);
        (!figures.is_empty()).then(|| median(&figures))
    }

    /// Tells whether it was there and could not do it.
    fn failed(&self) -> bool {
        self.problem.is_some() && !self.missing
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; {}", self.machine, self.conditions)?;
        for (name, version) in &self.subjects {
            writeln!(f, "- {name}: {version}")?;
        }
        writeln!(f)?;
        let columns = self.columns();
        self.write_figures(f, &columns)?;
        self.write_footprints(f, &columns)?;
        self.write_rows(f)?;
        self.write_problems(f)?;
        let verdict = if self.holds() { "No bar is missed." } else { "NOT all bars are met." };
        writeln!(f, "\n{verdict}")
    }
}

impl Report {
    fn write_figures(&self, f: &mut fmt::Formatter<'_>, columns: &[String]) -> fmt::Result {
        let head = ["row", "per operation"].map(str::to_owned).into_iter();
        let tail = ["bar", "", "of the best peer's"].map(str::to_owned);
        let head = head.chain(columns.iter().cloned()).chain(tail).collect::<Vec<_>>();
        let lines = self.outcomes.iter().flat_map(|outcome| outcome.lines(columns));
        write_table(f, &[head].into_iter().chain(lines).collect::<Vec<_>>())
    }

    /// Writes what the daemons held; a kernel has none.
    fn write_footprints(&self, f: &mut fmt::Formatter<'_>, columns: &[String]) -> fmt::Result {
        let has = |name: &&String| {
            self.outcomes.iter().any(|one| one.of(name).is_some_and(|m| m.footprint.is_some()))
        };
        let columns: Vec<&String> = columns.iter().filter(has).collect();
        if columns.is_empty() {
            return Ok(());
        }
        let cell = |outcome: &Outcome, name: &str| {
            let footprint = outcome.of(name).and_then(|measured| measured.footprint);
            footprint.map_or(String::new(), |Footprint { resident, descriptors }| {
                format!("{} / {descriptors}", Metric::Bytes.show(resident))
            })
        };
        let head = ["daemon memory / descriptors after".to_owned()];
        let mut lines =
            vec![head.into_iter().chain(columns.iter().map(|c| (*c).clone())).collect()];
        for outcome in self.outcomes.chunk_by(|a, b| a.scenario == b.scenario).map(|rows| &rows[0])
        {
            let cells = columns.iter().map(|name| cell(outcome, name));
            lines.push([outcome.scenario.to_owned()].into_iter().chain(cells).collect::<Vec<_>>());
        }
        write_table(f, &lines)
    }

    fn write_rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in &self.outcomes {
            let rounds = outcome.results.iter().map(|measured| measured.samples.len()).max();
            let Row { id, what, .. } = outcome.row;
            writeln!(f, "- {id}: {what}; {} rounds", rounds.unwrap_or(0))?;
        }
        let policies: BTreeSet<&str> = self.outcomes.iter().map(|outcome| outcome.fsync).collect();
        for policy in policies {
            let rows = self.outcomes.iter().filter(|outcome| outcome.fsync == policy);
            let rows = rows.map(|outcome| outcome.row.id).collect::<Vec<_>>().join(", ");
            writeln!(f, "- fsync in {rows}: {policy}")?;
        }
        Ok(())
    }

    fn write_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = BTreeSet::new();
        for outcome in &self.outcomes {
            for measured in &outcome.results {
                let Some(problem) = &measured.problem else { continue };
                let rows = if measured.missing { "everything" } else { outcome.row.id };
                if said.insert((rows, &measured.subject)) {
                    let problem = problem.replace('\n', "\n  ");
                    writeln!(f, "- NOT RUN: {rows} of {}: {problem}", measured.subject)?;
                }
            }
        }
        Ok(())
    }
}
