//! Memory of a daemon with very many snapshots, and its speed without containerd in front.

use std::collections::HashMap;
use std::time::Instant;

use tonic::transport::Channel;

use super::report::Report;
use super::world::quiet;
use super::{Settings, calls, stats};
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest,
};
use crate::{Daemon, Scratch, block_on};

const SNAPSHOTTER: &str = "direct";
const SNAPSHOTS: usize = 10_000;
/// Images of ten layers each; the rest are containers on them.
const IMAGES: usize = 100;
const LAYERS: usize = 10;
const BAR: f64 = 25.0;

type Client = SnapshotsClient<Channel>;

pub(super) fn measure(settings: &Settings, scratch: &Scratch, report: &mut Report) {
    let mut daemon = Daemon::named(scratch, "direct", &settings.binary);
    daemon.start();
    let count = if settings.quick { SNAPSHOTS / 10 } else { SNAPSHOTS };
    let images = if settings.quick { IMAGES / 10 } else { IMAGES };
    let began = Instant::now();
    report.memory("at rest, without snapshots", resident(&daemon), None);
    let label = |what: &str| format!("{what} {count} snapshots");
    block_on(async {
        let clients = calls::clients(async || daemon.snapshots().await).await;
        create(&clients, images, count).await;
        report.memory(&label("after making"), resident(&daemon), Some(BAR));
        let mut client = daemon.snapshots().await;
        let begin = Instant::now();
        let all = list(&mut client).await;
        assert_eq!(all.len(), count);
        report.note(&format!("List of {count}: {:.0} ms", begin.elapsed().as_secs_f64() * 1e3));
        report.memory(&label("after one List of all"), resident(&daemon), Some(BAR));
        direct(settings, &daemon, report).await;
        report.memory(&label("after that, still with"), resident(&daemon), Some(BAR));
        collect(&mut client, report).await;
        report.memory(&label("after removing"), resident(&daemon), Some(BAR));
    });
    eprintln!("memory: {:.0} s", began.elapsed().as_secs_f64());
    daemon.stop();
}

/// Makes images layer by layer, and containers on them, from all clients at once.
async fn create(clients: &[Client], images: usize, count: usize) {
    let tasks: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(number, client)| {
            let (client, step) = (client.clone(), clients.len());
            tokio::task::spawn(async move {
                for image in (number..images).step_by(step) {
                    make_image(client.clone(), image).await;
                }
                for container in (number..count - images * LAYERS).step_by(step) {
                    let key = format!("bench/{container}/container-{container}");
                    let parent = layer(container / step % images * step % images, LAYERS);
                    prepare(&mut client.clone(), key, parent).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client");
    }
}

fn layer(image: usize, height: usize) -> String {
    if height == 0 {
        String::new()
    } else {
        format!("bench/{height}/sha256:{image:032}{height:032}")
    }
}

async fn make_image(mut client: Client, image: usize) {
    for height in 1..=LAYERS {
        let key = format!("bench/{height}/extract-{image} {}", layer(image, height));
        prepare(&mut client, key.clone(), layer(image, height - 1)).await;
        let (name, labels) = (layer(image, height), HashMap::new());
        let snapshotter = SNAPSHOTTER.to_owned();
        let request =
            CommitSnapshotRequest { snapshotter, name, key, labels, parent: String::new() };
        client.commit(request).await.expect("Commit");
    }
}

async fn prepare(client: &mut Client, key: String, parent: String) {
    let labels = ["containerd.io/snapshot/cri.layer-digest", "containerd.io/snapshot.ref"];
    let labels = labels.map(|name| (name.to_owned(), key.clone())).into_iter().collect();
    // Other clients may not have made this parent yet.
    let snapshotter = SNAPSHOTTER.to_owned();
    let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
    for _ in 0..1000 {
        match client.prepare(request.clone()).await {
            Err(status) if status.code() == tonic::Code::NotFound => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            other => return drop(other.expect("Prepare")),
        }
    }
    panic!("the parent of {request:?} never appeared");
}

async fn list(client: &mut Client) -> Vec<Info> {
    let request = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: Vec::new() };
    let mut stream = client.list(request).await.expect("List").into_inner();
    let mut all = Vec::new();
    while let Some(batch) = stream.message().await.expect("List") {
        all.extend(batch.info);
    }
    all
}

/// The rounds of [`calls`], on our socket.
async fn direct(settings: &Settings, daemon: &Daemon, report: &mut Report) {
    let top = layer(0, LAYERS);
    let mut seconds = Vec::new();
    let mut latencies = calls::Latencies::default();
    for run in 0..settings.pairs(5) {
        quiet();
        let clients = calls::clients(async || daemon.snapshots().await).await;
        let begin = Instant::now();
        let found = calls::rounds(clients, SNAPSHOTTER, &top, &run.to_string()).await;
        seconds.push(begin.elapsed().as_secs_f64());
        for (all, mut one) in latencies.iter_mut().zip(found) {
            all.append(&mut one);
        }
        let cleanup = CleanupRequest { snapshotter: SNAPSHOTTER.to_owned() };
        daemon.snapshots().await.cleanup(cleanup).await.expect("Cleanup");
    }
    let rate = calls::ROUNDS as f64 / stats::median(&seconds);
    let calls: Vec<String> = calls::NAMES
        .iter()
        .zip(&latencies)
        .map(|(name, all)| {
            let (middle, late) = (stats::median(all), stats::quantile(all, 0.99));
            format!("{name} {:.2} / {:.2} ms", middle * 1e3, late * 1e3)
        })
        .collect();
    report.note(&format!(
        "on our own socket, {} clients: {rate:.0} rounds of Prepare+Mounts+Remove per second (median of {} x {}); \
         median / p99: {}",
        calls::CLIENTS,
        seconds.len(),
        calls::ROUNDS,
        calls.join(", ")
    ));
}

/// Removes everything as containerd's garbage collector does: one by one, children first.
async fn collect(client: &mut Client, report: &mut Report) {
    let mut all = list(client).await;
    // Layers are the deeper the lower their names are in order; containers come first of all.
    all.sort_by_key(|info| std::cmp::Reverse(height(info)));
    let begin = Instant::now();
    let count = all.len();
    for info in all {
        let request = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: info.name };
        client.remove(request).await.expect("Remove");
    }
    let removed = begin.elapsed().as_secs_f64();
    let cleanup = CleanupRequest { snapshotter: SNAPSHOTTER.to_owned() };
    client.cleanup(cleanup).await.expect("Cleanup");
    let cleaned = begin.elapsed().as_secs_f64() - removed;
    report.note(&format!(
        "garbage collection of {count}: {:.2} ms per Remove, Cleanup {cleaned:.1} s",
        removed * 1e3 / count as f64
    ));
}

fn height(info: &Info) -> usize {
    if info.name.contains("container-") {
        return LAYERS + 1;
    }
    info.name.split('/').nth(1).and_then(|height| height.parse().ok()).expect("a layer's name")
}

/// Resident memory in MiB: now, and at most so far.
fn resident(daemon: &Daemon) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("status");
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).expect("a line of status");
        let number = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
        number.expect("a number") / 1024.0
    };
    (value("VmRSS:"), value("VmHWM:"))
}
