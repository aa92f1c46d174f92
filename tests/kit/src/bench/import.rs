//! Importing an image of 128 layers.

use super::Settings;
use super::report::{Bar, Report};
use super::world::{NAMESPACE, Series, World, pairs, quiet, timed};
use crate::image;

const LAYERS: usize = 128;
const NAME: &str = "localhost/layers:1";

pub(super) fn measure(settings: &Settings, world: &World, report: &mut Report) {
    let archive = world.containerd.directory().join("layers.tar");
    image::many_layers(LAYERS).write_oci_archive(&archive, NAME);
    let archive = archive.to_string_lossy().into_owned();
    let empty = world.directories();
    let mut series = Series::default();
    let mut writeback = Series::default();
    pairs("import", settings.pairs(30), |side, _| {
        quiet();
        let import = ["images", "import", "--snapshotter", side.name(), &archive];
        series.add(side, timed(&mut world.containerd.ctr_command(NAMESPACE, &import)));
        let begin = std::time::Instant::now();
        nix::unistd::sync();
        writeback.add(side, begin.elapsed().as_secs_f64());
        world.ctr(&["images", "rm", NAME]);
        world.settle(empty);
    });
    report.compare(&format!("import of {LAYERS} layers"), &series, Some(Bar::AtMost(1.05)));
    report.compare("  sync(2) after it", &writeback, None);
}
