//! A full disk: calls are refused with ResourceExhausted and leave nothing half made.

use std::sync::Arc;
use std::time::Duration;

use overstream_testkit::{FsKind, LoopFs, Scratch, limit};
use tonic::Code;

use super::world::{Op, World};

/// Fills the file system to the last block, the space of the log included.
fn fill(fs: &LoopFs) {
    fs.fill();
    // Directories take blocks that file data left over.
    for number in 0..10_000 {
        let directory = fs.join(format!(".full/{number}"));
        if std::fs::create_dir_all(directory).is_err() {
            break;
        }
    }
}

fn drain(fs: &LoopFs) {
    fs.drain();
    if fs.join(".full").exists() {
        std::fs::remove_dir_all(fs.join(".full")).unwrap();
    }
}

/// Performs a call on a full disk: it is done, or refused for lack of space and not done at all.
fn on_full_disk(world: &mut World, fs: &LoopFs, op: &Op) {
    fill(fs);
    let before = world.client.state();
    let answer = world.client.call(op);
    let after = world.client.state();
    eprintln!("{op:?}: {:?}", answer.as_ref().err().map(|error| error.message().to_owned()));
    if let (Err(error), Op::Remove { .. }) = (&answer, op) {
        panic!("removing must work, or nobody could make room: {error:?}");
    }
    if let Err(error) = &answer {
        assert_eq!(error.code(), Code::ResourceExhausted, "{op:?}: {error:?}");
        assert_eq!(before, after, "{op:?} was refused, but did something");
    }
    // Reading goes on.
    for (key, place) in &after.places {
        if place.kind == "active" {
            world.client.ok(&Op::Mounts { key: key.clone() });
        }
    }
    drain(fs);
    if answer.is_err() {
        world.client.ok(op);
    }
    world.check();
}

/// Calls that need space, and those that give some back.
fn calls(world: &mut World) -> Vec<Op> {
    let layer = world.layer("extract", "");
    let [plain, committed, removed] =
        ["plain", "extract", "plain"].map(|kind| world.prepared(kind, &layer));
    let fast = world.prepared("fast", &layer);
    let kept = world.prepared("keep", &layer);
    let labels = (0..200).map(|n| (format!("label-{n}"), "x".repeat(50))).collect();
    let garbage = world.prepared("plain", &layer);
    world.client.ok(&Op::remove(&garbage));
    vec![
        Op::Update { key: plain, labels },
        Op::prepare("default/901/plain-901", &layer),
        Op::prepare("default/902/fast-902", &layer),
        Op::View { key: "default/903/view".to_owned(), parent: layer.clone() },
        Op::commit(&committed, "default/904/layer"),
        Op::commit(&fast, "default/905/layer"),
        Op::Cleanup,
        Op::remove(&removed),
        Op::remove(&kept),
        Op::Cleanup,
    ]
}

fn full(kind: FsKind, sync_remove: bool) {
    limit(Duration::from_secs(120), move || {
        if !kind.available() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        let fs = LoopFs::new(&scratch, "disk", kind, 40);
        let (root, fast) = (fs.join("over"), fs.join("fast"));
        let mut world = World::unstarted(&scratch, "over", &root, &fast);
        world.configure(&format!("sync_remove = {sync_remove}\n"));
        world.daemon.start();
        for op in calls(&mut world) {
            on_full_disk(&mut world, &fs, &op);
        }
        // A log that was folded in has no space of its own to reuse.
        for op in calls_again(&mut world) {
            world.daemon.restart();
            on_full_disk(&mut world, &fs, &op);
        }
        let before = world.check();
        world.kill_and_start();
        assert_eq!(world.check(), before);
        world.daemon.kill();
    });
}

fn calls_again(world: &mut World) -> Vec<Op> {
    let layer = world.layer("extract", "");
    let [committed, removed] = ["extract", "plain"].map(|kind| world.prepared(kind, &layer));
    vec![
        Op::prepare("default/911/plain-911", &layer),
        Op::commit(&committed, "default/912/layer"),
        Op::remove(&removed),
    ]
}

/// A daemon starts on a disk that was filled while it ran or did not, and its snapshots can be removed.
fn starts_full(kind: FsKind, ran: bool) {
    limit(Duration::from_secs(120), move || {
        if !kind.available() {
            return;
        }
        let scratch = Arc::new(Scratch::new());
        let fs = LoopFs::new(&scratch, "disk", kind, 32);
        let mut world = World::at(&scratch, "over", &fs.join("over"), &fs.join("fast"));
        let layer = world.layer("extract", "");
        let keys = ["plain", "fast", "keep"].map(|kind| world.prepared(kind, &layer));
        let before = world.client.state();
        if ran {
            fill(&fs);
            world.daemon.kill();
        } else {
            world.daemon.stop();
            fill(&fs);
        }
        world.daemon.start();
        assert_eq!(world.client.state(), before);
        for key in keys {
            world.client.ok(&Op::remove(&key));
        }
        let retained: Vec<u64> = world.client.state().retained.keys().copied().collect();
        assert_eq!(retained.len(), 1);
        world.client.ok(&Op::RemoveRetained { id: retained[0] });
        assert_eq!(world.check().places.len(), 1);
        world.daemon.kill();
    });
}

#[test]
fn a_daemon_starts_on_a_full_disk_to_make_room() {
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
        starts_full(kind, true);
    }
}

#[test]
fn a_daemon_starts_on_a_disk_that_was_filled_meanwhile() {
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
        starts_full(kind, false);
    }
}

/// SEMANTICS D6
#[test]
fn a_full_disk_refuses_and_recovers_ext4() {
    full(FsKind::Ext4, false);
}

#[test]
fn a_full_disk_refuses_and_recovers_with_synchronous_removal() {
    full(FsKind::Ext4, true);
}

#[test]
fn a_full_disk_refuses_and_recovers_elsewhere() {
    if std::env::var_os("OVERSTREAM_FULL").is_some() {
        full(FsKind::Xfs, false);
        full(FsKind::Btrfs, false);
    }
}
