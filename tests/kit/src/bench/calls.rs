//! Prepare, Mounts and Remove in great numbers, from several clients at once.

use std::time::Instant;

use tonic::transport::Channel;

use super::Settings;
use super::report::{Bar, Report};
use super::world::{Series, Side, World, pairs, quiet, request_in, rooted};
use crate::block_on;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};

pub(super) const ROUNDS: usize = 1000;
pub(super) const CLIENTS: usize = 8;

/// Seconds each call took, in the order of [`NAMES`].
pub(super) type Latencies = [Vec<f64>; 3];
pub(super) const NAMES: [&str; 3] = ["Prepare", "Mounts", "Remove"];

pub(super) fn measure(settings: &Settings, world: &World, report: &mut Report) {
    let before = world.directories();
    let tops = [Side::Ours, Side::Theirs].map(|side| (side, world.top_layer(side)));
    let mut whole = Series::default();
    let mut emptied = Series::default();
    let mut latencies: [Series; 3] = Default::default();
    pairs("calls through containerd", settings.pairs(40), |side, pair| {
        let top = &tops.iter().find(|(of, _)| *of == side).expect("both sides").1;
        quiet();
        let begin = Instant::now();
        let found = block_on(async {
            let clients = clients(async || world.containerd.snapshots().await).await;
            rounds(clients, side.name(), top, &format!("{pair}")).await
        });
        whole.add(side, begin.elapsed().as_secs_f64());
        world.settle(before);
        emptied.add(side, begin.elapsed().as_secs_f64());
        for (series, found) in latencies.iter_mut().zip(found) {
            found.into_iter().for_each(|seconds| series.add(side, seconds));
        }
    });
    let what = format!("{ROUNDS} x Prepare+Mounts+Remove, {CLIENTS} clients");
    report.compare(&what, &whole, Some(Bar::NotSlower));
    report.compare("  until the garbage is collected, too", &emptied, None);
    for (name, series) in NAMES.iter().zip(&latencies) {
        report.latency(&format!("  {name}, one call"), series);
    }
}

/// Connections, one per client, all made before anything is measured.
pub(super) async fn clients(
    connect: impl AsyncFn() -> SnapshotsClient<Channel>,
) -> Vec<SnapshotsClient<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(connect().await);
    }
    clients
}

/// Has the clients share the rounds.
pub(super) async fn rounds(
    clients: Vec<SnapshotsClient<Channel>>,
    snapshotter: &'static str,
    parent: &str,
    mark: &str,
) -> Latencies {
    let share = ROUNDS / clients.len();
    let tasks: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(number, client)| {
            let (parent, keys) = (parent.to_owned(), format!("round-{mark}-{number}"));
            tokio::task::spawn(one_client(client, snapshotter, parent, keys, share))
        })
        .collect();
    let mut all = Latencies::default();
    for task in tasks {
        for (all, mut one) in all.iter_mut().zip(task.await.expect("a client")) {
            all.append(&mut one);
        }
    }
    all
}

async fn one_client(
    mut client: SnapshotsClient<Channel>,
    snapshotter: &'static str,
    parent: String,
    keys: String,
    rounds: usize,
) -> Latencies {
    let mut latencies = Latencies::default();
    let [prepares, mounts, removes] = &mut latencies;
    let snapshotter = || snapshotter.to_owned();
    for round in 0..rounds {
        let key = || format!("{keys}-{round}");
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter(),
            key: key(),
            parent: parent.clone(),
            labels: rooted(),
        };
        let begin = Instant::now();
        client.prepare(request_in(request)).await.expect("Prepare");
        prepares.push(begin.elapsed().as_secs_f64());
        let request = MountsRequest { snapshotter: snapshotter(), key: key() };
        let begin = Instant::now();
        client.mounts(request_in(request)).await.expect("Mounts");
        mounts.push(begin.elapsed().as_secs_f64());
        let request = RemoveSnapshotRequest { snapshotter: snapshotter(), key: key() };
        let begin = Instant::now();
        client.remove(request_in(request)).await.expect("Remove");
        removes.push(begin.elapsed().as_secs_f64());
    }
    latencies
}
