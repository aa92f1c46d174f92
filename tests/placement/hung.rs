//! A disk that hangs: its own calls wait or are refused, and nobody else's.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use overstream_testkit::{Client, Daemon, FsKind, LoopFs, Scratch, limit, require_root, wait_for};
use tonic::{Code, Status};

use super::{BINARY, add_layer, client, layer, writable};

/// Longest time after which a full store is known to hang.
const NOTICED: Duration = Duration::from_secs(7);
/// What a call takes that nothing holds up, on a busy host.
const PROMPT: Duration = Duration::from_secs(3);
/// Longest time until a layer is synced by a disk that does not hang.
const SYNCED: Duration = Duration::from_secs(40);

/// Longest time that a start takes, whatever hangs.
const START: Duration = Duration::from_secs(12);

/// A daemon with a store on a disk that can hang, and one on a disk that cannot.
struct World {
    /// Holds the image of `disk`.
    below: LoopFs,
    disk: LoopFs,
    sound: PathBuf,
    daemon: Daemon,
}

/// Runs a body with the stores `hung` and `sound`, for namespaces of the same names.
fn with_stores(top: &'static str, body: fn(&mut World)) {
    limit(Duration::from_secs(120), move || {
        if !require_root() || !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let below = LoopFs::new(&scratch, "below", FsKind::Ext4, 64);
        let disk = LoopFs::new(&scratch, "below/disk", FsKind::Ext4, 16);
        let sound = scratch.dir("sound");
        let store = |name: &str, path: &Path| {
            format!(
                "[stores.{name}]\ntype = \"dir\"\npath = \"{}\"\n\
                 [[rules]]\nnamespace = \"{name}\"\nstore = \"{name}\"\n",
                path.display()
            )
        };
        let config = [top, &store("hung", disk.path()), &store("sound", &sound)].concat();
        let mut daemon = Daemon::new(&scratch, BINARY).with_config(&config);
        daemon.start();
        add_layer(&client(&daemon), 1, "");
        body(&mut World { below, disk, sound, daemon });
    });
}

/// Makes a snapshot with a file in it.
fn filled(client: &Client, key: &str) {
    let mounts = client.prepare(key, &layer(1), &[]).unwrap();
    fs::write(writable(&mounts).join("file"), "file").unwrap();
}

fn entries(store: &Path) -> usize {
    store.join("snapshots").read_dir().unwrap().count()
}

#[track_caller]
fn promptly<T>(call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = call();
    assert!(started.elapsed() < PROMPT, "took {:?}", started.elapsed());
    result
}

/// What containers of other stores need.
fn others_are_served(client: &Client, sound: &Path, round: u32) {
    for namespace in ["sound", "default"] {
        let key = format!("{namespace}/{round}0/c");
        promptly(|| filled(client, &key));
        promptly(|| client.mounts(&key).unwrap());
        promptly(|| client.usage(&key).unwrap());
        promptly(|| client.commit(&format!("{namespace}/{round}1/layer"), &key, &[]).unwrap());
        promptly(|| client.remove(&format!("{namespace}/{round}1/layer")).unwrap());
    }
    client.cleanup().unwrap();
    assert_eq!(entries(sound), 0);
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("is it hung?"), "{status}");
}

/// SEMANTICS P12.
#[test]
fn a_store_that_hangs_does_not_hold_up_the_others() {
    with_stores("", |World { disk, sound, daemon, .. }| {
        let client = &client(daemon);
        filled(client, "hung/1/used");
        filled(client, "hung/2/gone");
        thread::scope(|scope| {
            let frozen = disk.freeze();
            // More than there are threads.
            let calls: Vec<_> = (0..48)
                .map(|number| {
                    let key = format!("hung/{}/c", 100 + number);
                    scope.spawn(move || client.prepare(&key, &layer(1), &[]))
                })
                .collect();
            let waiting = || calls.iter().filter(|call| !call.is_finished()).count();
            wait_for("all but 8 calls", NOTICED, || waiting() == 8);
            promptly(|| is_refused(client.prepare("hung/3/c", &layer(1), &[])));
            promptly(|| is_refused(client.mounts("hung/1/used")));
            promptly(|| client.remove("hung/2/gone").unwrap());
            others_are_served(client, sound, 1);
            promptly(|| client.cleanup().unwrap());
            others_are_served(client, sound, 2);

            drop(frozen);
            let made = calls.into_iter().map(|call| call.join().unwrap()).filter(Result::is_ok);
            assert_eq!(made.count(), 8);
        });
        client.mounts("hung/1/used").unwrap();
        client.cleanup().unwrap();
        assert_eq!(entries(disk.path()), 9);
    });
}

/// SEMANTICS P12.
#[test]
fn synchronous_removal_does_not_wait_for_a_store_that_hangs() {
    with_stores("sync_remove = true\n", |World { disk, sound, daemon, .. }| {
        let client = client(daemon);
        for key in ["hung/1/gone", "hung/2/gone", "sound/1/gone", "default/1/gone"] {
            filled(&client, key);
        }
        let frozen = disk.freeze();
        let started = Instant::now();
        client.remove("hung/1/gone").unwrap();
        assert!(started.elapsed() < NOTICED, "took {:?}", started.elapsed());
        for key in ["hung/2/gone", "sound/1/gone", "default/1/gone"] {
            promptly(|| client.remove(key).unwrap());
        }
        assert_eq!((entries(sound), entries(daemon.root())), (0, 1));
        assert!(daemon.log().contains("nothing gets deleted there"), "{}", daemon.log());
        drop(frozen);
        client.cleanup().unwrap();
        assert_eq!(entries(disk.path()), 0);
    });
}

/// SEMANTICS P12, P5.
#[test]
fn a_start_does_not_wait_for_a_store_that_hangs() {
    with_stores("", |World { disk, sound, daemon, .. }| {
        for key in ["hung/1/used", "hung/2/lost", "default/1/used"] {
            filled(&client(daemon), key);
        }
        daemon.kill();
        let lost = disk.path().join("snapshots").join("3");
        fs::remove_dir_all(lost).unwrap();
        let frozen = disk.freeze();
        let started = Instant::now();
        daemon.start();
        assert!(started.elapsed() < START, "took {:?}", started.elapsed());
        assert!(daemon.log().contains("a store does not answer"), "{}", daemon.log());
        let client = client(daemon);
        promptly(|| client.mounts("default/1/used").unwrap());
        promptly(|| is_refused(client.mounts("hung/1/used")));
        promptly(|| is_refused(client.prepare("hung/3/c", &layer(1), &[])));
        others_are_served(&client, sound, 1);
        drop(frozen);
        wait_for("the store", NOTICED, || client.mounts("hung/1/used").is_ok());
        filled(&client, "hung/3/c");
        wait_for("the lost upper", SYNCED, || client.mounts("hung/2/lost").is_ok());
    });
}

/// Keys of the committed layers that are not known to be on disk.
fn unsynced(daemon: &Daemon) -> Vec<String> {
    let database = rusqlite::Connection::open(daemon.root().join("metadata.db")).unwrap();
    let query = "SELECT key FROM snapshots WHERE unsynced_boot IS NOT NULL ORDER BY key";
    let mut statement = database.prepare(query).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Commits a layer in the store that hangs and one in the root, and waits for the latter to be synced.
fn commit_both(client: &Client, daemon: &Daemon, hang: impl FnOnce()) {
    filled(client, "hung/1/c");
    filled(client, "default/1/c");
    client.commit("hung/2/layer", "hung/1/c", &[]).unwrap();
    hang();
    client.commit("default/2/layer", "default/1/c", &[]).unwrap();
    wait_for("the root to be synced", SYNCED, || unsynced(daemon) == ["hung/2/layer"]);
}

/// SEMANTICS P12. A disk hangs at a sync when the one below it does.
#[test]
fn a_disk_that_hangs_does_not_keep_others_from_being_synced() {
    with_stores("", |World { below, daemon, .. }| {
        let client = client(daemon);
        let mut frozen = None;
        commit_both(&client, daemon, || frozen = Some(below.freeze()));
        // Once more, while the first sync hangs.
        filled(&client, "default/3/c");
        client.commit("default/4/layer", "default/3/c", &[]).unwrap();
        wait_for("the root to be synced again", SYNCED, || unsynced(daemon) == ["hung/2/layer"]);
        drop(frozen);
        wait_for("the other disk to be synced", SYNCED, || unsynced(daemon).is_empty());
    });
}

#[test]
fn a_disk_that_is_away_does_not_keep_others_from_being_synced() {
    with_stores("", |World { disk, daemon, .. }| {
        let client = client(daemon);
        commit_both(&client, daemon, || disk.unmount());
        disk.remount();
        filled(&client, "default/3/c");
        client.commit("default/4/layer", "default/3/c", &[]).unwrap();
        wait_for("the other disk to be synced", SYNCED, || unsynced(daemon).is_empty());
    });
}
