//! The results, for people and for programs.

use std::fmt;

use serde_json::{Value, json};

use super::stats::{Ratio, median, quantile, ratio};
use super::world::Series;

/// What a ratio of times, ours to theirs, has to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bar {
    /// Its interval has to reach down to this.
    AtMost(f64),
    /// Itself at most 1: as many calls per second.
    NotSlower,
}

impl Bar {
    fn holds(self, ratio: &Ratio) -> bool {
        match self {
            Self::AtMost(bound) => ratio.low <= bound,
            Self::NotSlower => ratio.value <= 1.0,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "{bound} in or above the interval"),
            Self::NotSlower => f.write_str("throughput >= 1.0, so ratio <= 1.0"),
        }
    }
}

#[derive(Debug)]
struct Comparison {
    name: String,
    series: Series,
    ratio: Ratio,
    bar: Option<Bar>,
}

#[derive(Debug)]
struct Memory {
    name: String,
    now: f64,
    most: f64,
    bar: Option<f64>,
}

/// All results of one run.
#[derive(Debug)]
pub struct Report {
    machine: String,
    comparisons: Vec<Comparison>,
    memory: Vec<Memory>,
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(machine: String) -> Self {
        Self { machine, comparisons: Vec::new(), memory: Vec::new(), notes: Vec::new() }
    }

    /// Adds a comparison of paired times in seconds.
    pub(super) fn compare(&mut self, name: &str, series: &Series, bar: Option<Bar>) {
        let ratio = ratio(&series.ours, &series.theirs);
        let (name, series) = (name.to_owned(), series.clone());
        self.comparisons.push(Comparison { name, series, ratio, bar });
    }

    /// Adds the times of single calls, which are too many to be resampled and are not paired.
    pub(super) fn latency(&mut self, name: &str, series: &Series) {
        let value = median(&series.ours) / median(&series.theirs);
        let ratio = Ratio { value, low: f64::NAN, high: f64::NAN };
        let (name, series) = (name.to_owned(), series.clone());
        self.comparisons.push(Comparison { name, series, ratio, bar: None });
    }

    /// Adds a size in MiB: now, and at most so far.
    pub(super) fn memory(&mut self, name: &str, (now, most): (f64, f64), bar: Option<f64>) {
        self.memory.push(Memory { name: name.to_owned(), now, most, bar });
    }

    /// Adds a fact that is compared with nothing.
    pub(super) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Tells whether every bar holds.
    pub fn holds(&self) -> bool {
        let ratios = self.comparisons.iter().filter_map(|c| Some(c.bar?.holds(&c.ratio)));
        let sizes = self.memory.iter().filter_map(|m| Some(m.most < m.bar?));
        ratios.chain(sizes).all(|holds| holds)
    }

    /// Returns everything, down to the single measurement.
    pub fn json(&self) -> Value {
        let comparisons = self.comparisons.iter().map(|c| {
            json!({
                "name": c.name.trim(),
                "ratio": c.ratio.value, "low": c.ratio.low, "high": c.ratio.high,
                "bar": c.bar.map(|bar| bar.to_string()),
                "holds": c.bar.map(|bar| bar.holds(&c.ratio)),
                "overstream_seconds": c.series.ours, "overlayfs_seconds": c.series.theirs,
            })
        });
        let memory = self.memory.iter().map(|m| {
            json!({ "name": m.name, "resident_mib": m.now, "peak_mib": m.most, "bar_mib": m.bar })
        });
        json!({
            "machine": self.machine,
            "comparisons": comparisons.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
            "notes": self.notes,
            "holds": self.holds(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        if !self.comparisons.is_empty() {
            let mut rows = vec![
                [
                    "milliseconds: median / p99",
                    "n",
                    "overstream",
                    "overlayfs",
                    "ratio [95 %]",
                    "bar",
                ]
                .map(str::to_owned)
                .to_vec(),
            ];
            rows.extend(self.comparisons.iter().map(Comparison::row));
            write_table(f, &rows)?;
        }
        if !self.memory.is_empty() {
            let head = ["resident memory in MiB", "now", "peak", "bar"].map(str::to_owned).to_vec();
            let mut rows = vec![head];
            rows.extend(self.memory.iter().map(Memory::row));
            write_table(f, &rows)?;
        }
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        writeln!(f, "\n{}", if self.holds() { "All bars hold." } else { "NOT all bars hold." })
    }
}

impl Comparison {
    fn row(&self) -> Vec<String> {
        let both = |values: &[f64]| {
            format!("{:.2} / {:.2}", median(values) * 1e3, quantile(values, 0.99) * 1e3)
        };
        let Ratio { value, low, high } = self.ratio;
        let interval = if low.is_nan() { String::new() } else { format!(" [{low:.3}, {high:.3}]") };
        vec![
            self.name.clone(),
            self.series.ours.len().to_string(),
            both(&self.series.ours),
            both(&self.series.theirs),
            format!("{value:.3}{interval}"),
            self.bar
                .map_or(String::new(), |bar| format!("{bar}: {}", verdict(bar.holds(&self.ratio)))),
        ]
    }
}

impl Memory {
    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            format!("{:.1}", self.now),
            format!("{:.1}", self.most),
            self.bar.map_or(String::new(), |bar| format!("< {bar}: {}", verdict(self.most < bar))),
        ]
    }
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "MISSED" }
}

/// Writes rows, the first of which is the heading, as a table that is also Markdown.
pub(crate) fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
        if number == 0 {
            let lines = widths.iter().map(|width| "-".repeat(*width));
            writeln!(f, "| {} |", lines.collect::<Vec<_>>().join(" | "))?;
        }
    }
    writeln!(f)
}
