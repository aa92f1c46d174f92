//! Starting containers.

use super::Settings;
use super::report::{Bar, Report};
use super::world::{DEMO, NAMESPACE, Series, Side, World, pairs, quiet, timed};

pub(super) fn measure(settings: &Settings, world: &World, report: &mut Report) {
    let before = world.directories();
    let mut started = Series::default();
    let mut whole = Series::default();
    pairs("container start", settings.pairs(30), |side, pair| {
        let id = format!("{}-{pair}", side.name());
        quiet();
        started.add(side, timed(&mut run(world, side, &["-d", "--null-io"], &id)));
        world.ctr(&["tasks", "rm", "-f", &id]);
        world.ctr(&["containers", "rm", &id]);
        world.settle(before);
    });
    report.compare("ctr run -d IMAGE true (start)", &started, Some(Bar::AtMost(1.05)));
    pairs("container run", settings.pairs(30), |side, pair| {
        quiet();
        let id = format!("{}-{pair}", side.name());
        whole.add(side, timed(&mut run(world, side, &["--rm"], &id)));
        world.settle(before);
    });
    report.compare("ctr run --rm IMAGE true", &whole, Some(Bar::AtMost(1.05)));
}

fn run(world: &World, side: Side, flags: &[&str], id: &str) -> std::process::Command {
    let rest = ["--snapshotter", side.name(), DEMO, id, "true"];
    world.containerd.ctr_command(NAMESPACE, &[&["run"], flags, &rest].concat())
}
