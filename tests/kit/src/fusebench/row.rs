//! What a row of the table is, how a measured sample becomes its figure, and when its bar is met.
//! Pure.

use std::fmt;

use crate::bench::stats::{Ratio, median, ratio};

/// What one client did, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Seconds until the client was done.
    pub(super) wall: f64,
    /// Seconds of CPU of the client, system calls included.
    pub(super) client: f64,
    /// Seconds of CPU of the daemon, all threads.
    pub(super) daemon: f64,
    /// Operations.
    pub(super) ops: f64,
    /// What else was measured; the row knows its unit.
    pub(super) value: f64,
}

/// Which figure of a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    /// CPU of client and daemon, per operation.
    Cpu,
    /// Time, per operation.
    Wall,
    /// As [`Metric::Wall`], and compared as a speed.
    Speed,
    /// The value, in seconds.
    Seconds,
    /// The value, in bytes.
    Bytes,
}

impl Metric {
    /// The figure of a sample; less is better.
    pub(super) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Cpu => (sample.client + sample.daemon) / sample.ops,
            Self::Wall | Self::Speed => sample.wall / sample.ops,
            Self::Seconds | Self::Bytes => sample.value,
        }
    }

    /// The other figure worth showing, if there is one.
    pub(super) fn beside(self) -> Option<Self> {
        match self {
            Self::Cpu => Some(Self::Wall),
            Self::Wall | Self::Speed => Some(Self::Cpu),
            Self::Seconds | Self::Bytes => None,
        }
    }

    /// Name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Wall | Self::Seconds => "wall",
            Self::Speed => "speed",
            Self::Bytes => "size",
        }
    }

    /// A figure as people read it.
    pub(super) fn show(self, figure: f64) -> String {
        if self == Self::Bytes {
            let small = figure < f64::from(1 << 20);
            let (size, unit) = if small { (1 << 10, "KiB") } else { (1 << 20, "MiB") };
            return format!("{:.1} {unit}", figure / f64::from(size));
        }
        let (factor, unit) = match figure {
            small if small < 1e-3 => (1e6, "us"),
            middle if middle < 1.0 => (1e3, "ms"),
            _ => (1.0, "s"),
        };
        format!("{:.*} {unit}", if figure * factor < 100.0 { 1 } else { 0 }, figure * factor)
    }

    /// The ratio of two series of figures in the rounds that both have, so that both read "that many
    /// times the kernel's"; `None` if there is no such round.
    pub(super) fn ratio(self, ours: &[f64], kernels: &[f64]) -> Option<Ratio> {
        let rounds = ours.len().min(kernels.len());
        let (ours, kernels) = (&ours[..rounds], &kernels[..rounds]);
        let compared =
            || if self == Self::Speed { ratio(kernels, ours) } else { ratio(ours, kernels) };
        (rounds > 0).then(compared)
    }
}

/// What Overstream has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// At most this many times the kernel's figure.
    Ratio(f64),
    /// At least this part of the kernel's speed.
    Speed(f64),
    /// At most this figure.
    Most(f64),
}

impl Bar {
    /// Tells whether it is met; `None` if there is nothing to judge or to compare with.
    pub(super) fn met(self, metric: Metric, ours: &[f64], kernels: &[f64]) -> Option<bool> {
        let against = || metric.ratio(ours, kernels).map(|ratio| ratio.value);
        match self {
            Self::Ratio(most) => Some(against()? <= most),
            Self::Speed(least) => Some(against()? >= least),
            Self::Most(most) => (!ours.is_empty()).then(|| median(ours) <= most),
        }
    }

    /// The bar as people read it.
    pub(super) fn show(self, metric: Metric) -> String {
        match self {
            Self::Ratio(most) => format!("<= {most}x"),
            Self::Speed(least) => format!(">= {least}x"),
            Self::Most(most) => format!("<= {}", metric.show(most)),
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its name on the command line.
    pub(super) id: &'static str,
    /// What is measured.
    pub(super) what: &'static str,
    /// Which figure counts.
    pub(super) metric: Metric,
    /// What Overstream has to reach; without one the row is only reported.
    pub(super) bar: Option<Bar>,
}

impl Row {
    pub(super) const fn new(id: &'static str, what: &'static str, metric: Metric) -> Self {
        Self { id, what, metric, bar: None }
    }

    pub(super) const fn bar(self, bar: Bar) -> Self {
        Self { bar: Some(bar), ..self }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bar = self.bar.map_or(String::new(), |bar| {
            format!(" [{} {}]", self.metric.name(), bar.show(self.metric))
        });
        write!(f, "{}: {}{bar}", self.id, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_per_operation_and_counts_the_daemon() {
        let sample = Sample { wall: 4.0, client: 1.0, daemon: 2.0, ops: 10.0, value: 9.0 };
        assert_eq!(Metric::Cpu.of(&sample), 0.3);
        assert_eq!(Metric::Wall.of(&sample), 0.4);
        assert_eq!(Metric::Bytes.of(&sample), 9.0);
    }

    #[test]
    fn a_bar_is_met_from_its_own_side() {
        let kernel = [1.0, 1.0];
        let met = |bar: Bar, metric, ours: f64| bar.met(metric, &[ours, ours], &kernel);
        assert_eq!(met(Bar::Ratio(1.5), Metric::Cpu, 1.5), Some(true));
        assert_eq!(met(Bar::Ratio(1.5), Metric::Cpu, 1.6), Some(false));
        // Twice the time is half the speed.
        assert_eq!(met(Bar::Speed(0.9), Metric::Speed, 2.0), Some(false));
        assert_eq!(met(Bar::Speed(0.9), Metric::Speed, 1.1), Some(true));
        assert_eq!(Bar::Most(5e-3).met(Metric::Wall, &[4e-3], &[]), Some(true));
        assert_eq!(Bar::Most(5e-3).met(Metric::Wall, &[6e-3], &[]), Some(false));
        assert_eq!(Bar::Ratio(1.5).met(Metric::Cpu, &[1.0], &[]), None);
        assert_eq!(Bar::Most(1.0).met(Metric::Bytes, &[], &[]), None);
        // A round that only one of them has says nothing.
        assert_eq!(Bar::Ratio(1.5).met(Metric::Cpu, &[1.0, 9.0, 9.0], &[1.0]), Some(true));
    }

    #[test]
    fn figures_have_units() {
        assert_eq!(Metric::Cpu.show(5.34e-6), "5.3 us");
        assert_eq!(Metric::Wall.show(0.123), "123 ms");
        assert_eq!(Metric::Seconds.show(2.345), "2.3 s");
        assert_eq!(Metric::Bytes.show(1_572_864.0), "1.5 MiB");
        assert_eq!(Metric::Bytes.show(8192.0), "8.0 KiB");
    }
}
