//! Asking about a running container's snapshot, as kubelet does all the time.

use std::time::Instant;

use super::Settings;
use super::report::Report;
use super::world::{Series, Side, World, pairs, quiet, request_in, rooted};
use crate::block_on;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
};

const KEY: &str = "inspected";
const FILES: usize = 1000;

pub(super) fn measure(settings: &Settings, world: &World, report: &mut Report) {
    let before = world.directories();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("start a runtime");
    let mut client = runtime.block_on(world.containerd.snapshots());
    for side in [Side::Ours, Side::Theirs] {
        runtime.block_on(fill(&mut client, side, world.top_layer(side)));
    }
    quiet();
    let (mut stats, mut usages) = (Series::default(), Series::default());
    pairs("Stat and Usage", settings.pairs(500), |side, _| {
        let (stat, usage) = runtime.block_on(ask(&mut client, side));
        stats.add(side, stat);
        usages.add(side, usage);
    });
    report.compare("Stat of an active snapshot", &stats, None);
    report.compare(&format!("Usage of one with {FILES} files"), &usages, None);
    block_on(async {
        let mut client = world.containerd.snapshots().await;
        for side in [Side::Ours, Side::Theirs] {
            let (snapshotter, key) = (side.name().to_owned(), KEY.to_owned());
            let request = RemoveSnapshotRequest { snapshotter, key };
            client.remove(request_in(request)).await.expect("Remove");
        }
    });
    world.settle(before);
}

type Client = SnapshotsClient<tonic::transport::Channel>;

/// Prepares a snapshot and puts files in its upper.
async fn fill(client: &mut Client, side: Side, parent: String) {
    let (snapshotter, key) = (side.name().to_owned(), KEY.to_owned());
    let request = PrepareSnapshotRequest { snapshotter, key, parent, labels: rooted() };
    let mounts = client.prepare(request_in(request)).await.expect("Prepare").into_inner().mounts;
    let mut options = mounts.iter().flat_map(|mount| &mount.options);
    let upper = options.find_map(|option| option.strip_prefix("upperdir=")).expect("an upper");
    for number in 0..FILES {
        let directory = format!("{upper}/{}", number % 10);
        std::fs::create_dir_all(&directory).expect("make a directory");
        std::fs::write(format!("{directory}/{number}"), "x").expect("write a file");
    }
}

async fn ask(client: &mut Client, side: Side) -> (f64, f64) {
    let (snapshotter, key) = (side.name().to_owned(), KEY.to_owned());
    let begin = Instant::now();
    let request = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
    client.stat(request_in(request)).await.expect("Stat");
    let stat = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    client.usage(request_in(UsageRequest { snapshotter, key })).await.expect("Usage");
    (stat, begin.elapsed().as_secs_f64())
}
