//! What each call costs in system calls, counted by strace.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tonic::transport::Channel;

use super::Settings;
use super::report::Report;
use crate::proto::snapshots::snapshots_client::SnapshotsClient;
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest,
};
use crate::wait::wait_for;
use crate::{Daemon, Scratch, block_on};

const CALLS: usize = 200;
const ATTACH: Duration = Duration::from_secs(10);
/// Rows of the table: what is counted together.
const GROUPS: &[(&str, &[&str])] = &[
    ("sync", &["fsync", "fdatasync", "syncfs", "sync_file_range"]),
    ("wake", &["futex", "epoll_wait", "eventfd2"]),
    ("lock", &["fcntl"]),
    ("socket", &["recvfrom", "sendto", "writev", "recvmsg", "sendmsg"]),
    ("write", &["write", "pwrite64", "ftruncate"]),
    ("read", &["read", "pread64"]),
    ("memory", &["mmap", "munmap", "mprotect", "madvise", "brk", "mremap"]),
    ("directory", &["mkdir", "mkdirat", "unlinkat", "rmdir", "getdents64", "openat", "openat2"]),
];

type Client = SnapshotsClient<Channel>;

pub(super) fn measure(settings: &Settings, scratch: &Scratch, report: &mut Report) {
    if !crate::require_command("strace", "strace") {
        return;
    }
    let mut daemon = Daemon::named(scratch, "traced", &settings.binary);
    daemon.start();
    block_on(async {
        let mut client = daemon.snapshots().await;
        prepare(&mut client, "layer".into(), String::new()).await;
        commit(&mut client, "layer".into(), "top".into()).await;
        let methods =
            ["Prepare", "Mounts", "Stat", "Usage", "List of 200", "Commit", "Remove", "Cleanup"];
        for method in methods {
            let counts = trace(&daemon, scratch, &mut client, method).await;
            report.note(&describe(method, &counts));
        }
    });
    daemon.stop();
}

/// Makes the calls of one method with strace attached; returns how often each system call was made.
async fn trace(
    daemon: &Daemon,
    scratch: &Scratch,
    client: &mut Client,
    method: &str,
) -> BTreeMap<String, usize> {
    let output = scratch.join("strace");
    let pid = daemon.pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &pid, "-o"]).arg(&output);
    let strace = scratch.spawn("strace-log", &mut strace);
    wait_for("strace", ATTACH, || {
        std::fs::read_to_string(strace.log_path()).is_ok_and(|log| log.contains("attached"))
    });
    for number in 0..CALLS {
        call(client, method, number).await;
    }
    strace.signal(Signal::SIGINT);
    strace.wait_exit(ATTACH);
    std::fs::remove_file(strace.log_path()).expect("delete a log");
    let text = std::fs::read_to_string(&output).expect("read strace's output");
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let call = line.split_whitespace().nth(1).and_then(|word| word.split_once('('));
        if let Some((name, _)) = call {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

async fn call(client: &mut Client, method: &str, number: usize) {
    let (snapshotter, key) = (String::new(), format!("bench/{number}/container"));
    match method {
        "Prepare" => prepare(client, key, "top".into()).await,
        "Mounts" => drop(client.mounts(MountsRequest { snapshotter, key }).await.expect(method)),
        "Stat" => drop(client.stat(StatSnapshotRequest { snapshotter, key }).await.expect(method)),
        "Usage" => drop(client.usage(UsageRequest { snapshotter, key }).await.expect(method)),
        "Commit" => commit(client, key, format!("committed-{number}")).await,
        "Remove" => {
            let key = format!("committed-{number}");
            client.remove(RemoveSnapshotRequest { snapshotter, key }).await.expect(method);
        }
        "Cleanup" => drop(client.cleanup(CleanupRequest { snapshotter }).await.expect(method)),
        _ => {
            let request = ListSnapshotsRequest { snapshotter, filters: Vec::new() };
            let mut stream = client.list(request).await.expect(method).into_inner();
            while stream.message().await.expect(method).is_some() {}
        }
    }
}

async fn prepare(client: &mut Client, key: String, parent: String) {
    let (snapshotter, labels) = (String::new(), HashMap::new());
    let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
    client.prepare(request).await.expect("Prepare");
}

async fn commit(client: &mut Client, key: String, name: String) {
    let (snapshotter, labels, parent) = (String::new(), HashMap::new(), String::new());
    let request = CommitSnapshotRequest { snapshotter, name, key, labels, parent };
    client.commit(request).await.expect("Commit");
}

fn describe(method: &str, counts: &BTreeMap<String, usize>) -> String {
    let each = |count: usize| count as f64 / CALLS as f64;
    let groups = GROUPS.iter().map(|(group, names)| {
        let count = names.iter().filter_map(|name| counts.get(*name)).sum();
        format!("{group} {:.2}", each(count))
    });
    let all = each(counts.values().sum());
    let mut most: Vec<_> = counts.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let most = most.iter().take(6).map(|(name, count)| format!("{name} {:.2}", each(**count)));
    let (groups, most) = (groups.collect::<Vec<_>>(), most.collect::<Vec<_>>());
    format!("{method}: {all:.1} system calls: {} (most: {})", groups.join(", "), most.join(", "))
}
