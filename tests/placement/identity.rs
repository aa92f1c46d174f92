//! Volumes by labels that tell the container's identity: what goes wrong on a volume.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use overstream_testkit::proto::snapshots::Info;
use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Client, Daemon, FsKind, LoopFs, Scratch, Stack, limit, mount, require_root, run, wait_for,
};
use tonic::{Code, Status};

use super::pods::{config, volume};
use super::{BINARY, add_layer, client, layer, restart, writable};

const POD: &str = "containerd.io/snapshot/overstream.pod-uid";
const CONTAINER: &str = "containerd.io/snapshot/overstream.container-name";
const TRUSTED: &str = "[labels]\nallow = [\"identity\"]";

/// Runs a body with a pod's volume and a daemon that believes identity labels.
fn with_volume(body: fn(&Scratch, &LoopFs, Daemon)) {
    limit(Duration::from_secs(120), move || {
        if !require_root() || !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let volume = volume(&scratch, "uid-1");
        let mut daemon = Daemon::new(&scratch, BINARY).with_config(&config(&scratch, TRUSTED));
        daemon.start();
        add_layer(&client(&daemon), 1, "");
        body(&scratch, &volume, daemon);
    });
}

/// Prepares the snapshot of a container of the pod `uid-1`.
fn prepare(client: &Client, key: &str, container: &str) -> Result<Vec<Mount>, Status> {
    let labels = [(POD, "uid-1"), (CONTAINER, container)];
    client.prepare(&format!("k8s.io/7/{key}"), &layer(1), &labels)
}

/// Prepares a container's snapshot, which must fail and leave none.
#[track_caller]
fn refused(client: &Client, container: &str, code: Code, words: &str) {
    let status = prepare(client, "refused", container).unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{words:?} is not in: {status}");
    assert_eq!(client.stat("k8s.io/7/refused").unwrap_err().code(), Code::NotFound);
}

#[track_caller]
fn no_mounts(client: &Client, key: &str, code: Code, words: &str) {
    let status = client.mounts(&format!("k8s.io/7/{key}")).unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{words:?} is not in: {status}");
}

/// SEMANTICS P10.
#[test]
fn mounts_need_the_volume_the_upper_lies_on() {
    with_volume(|_, volume, mut daemon| {
        let mut client = client(&daemon);
        let before = prepare(&client, "c1", "app").unwrap();
        assert_eq!(writable(&before), volume.join("overstream/app/fs"));
        fs::write(writable(&before).join("kept"), "kept").unwrap();
        volume.unmount();
        no_mounts(&client, "c1", Code::Unavailable, "its volume is not mounted");
        refused(&client, "other", Code::FailedPrecondition, "no mount of this host matches");
        client = restart(&mut daemon, client);
        no_mounts(&client, "c1", Code::Unavailable, "its volume is not mounted");
        assert_eq!(volume.path().read_dir().unwrap().count(), 0, "written below the mount point");

        let mut command = Command::new("mount");
        run(command.args(["-t", "tmpfs", "tmpfs"]).arg(volume.path())).ok();
        no_mounts(&client, "c1", Code::Unavailable, "is another one");
        assert_eq!(volume.path().read_dir().unwrap().count(), 0);
        volume.remount();
        assert_eq!(client.mounts("k8s.io/7/c1").unwrap(), before);
        assert_eq!(fs::read(writable(&before).join("kept")).unwrap(), b"kept");
    });
}

/// SEMANTICS P6.
#[test]
fn a_choice_between_volumes_is_never_made() {
    with_volume(|scratch, first, daemon| {
        let client = client(&daemon);
        let second = LoopFs::new(scratch, "pods/uid-1/volumes/second", FsKind::Ext4, 16);
        refused(&client, "app", Code::FailedPrecondition, "several mounts match");
        for volume in [first, &second] {
            assert!(!volume.join("overstream").exists());
        }
        second.unmount();
        assert!(writable(&prepare(&client, "c1", "app").unwrap()).starts_with(first.path()));
    });
}

/// SEMANTICS P6.
#[test]
fn nothing_planted_on_a_volume_leads_elsewhere() {
    with_volume(|scratch, volume, daemon| {
        let client = client(&daemon);
        let target = scratch.dir("target");
        let plant = |name: &str| symlink(&target, volume.join(name)).unwrap();
        let is_refused = || {
            let status = prepare(&client, "refused", "app").unwrap_err();
            assert_ne!(status.code(), Code::Unknown, "{status}");
            assert_eq!(client.stat("k8s.io/7/refused").unwrap_err().code(), Code::NotFound);
            assert_eq!(target.read_dir().unwrap().count(), 0, "written through a symlink");
        };
        plant("overstream");
        is_refused();
        fs::remove_file(volume.join("overstream")).unwrap();
        fs::create_dir(volume.join("overstream")).unwrap();
        plant("overstream/app");
        is_refused();
        fs::remove_file(volume.join("overstream/app")).unwrap();
        fs::create_dir(volume.join("overstream/app")).unwrap();
        for name in ["fs", "work", "overstream.json"] {
            let path = format!("overstream/app/{name}");
            plant(&path);
            is_refused();
            fs::remove_file(volume.join(path)).unwrap();
        }
        // What stands where the owner is written first is in nobody's way, and none waits for it.
        let new = volume.join("overstream/app/overstream.json.new");
        run(Command::new("mkfifo").arg(&new)).ok();
        prepare(&client, "c0", "app").unwrap();
        client.remove("k8s.io/7/c0").unwrap();
        plant("overstream/app/overstream.json.new");
        let mounts = prepare(&client, "c1", "app").unwrap();
        assert_eq!(target.read_dir().unwrap().count(), 0, "written through a symlink");
        assert!(!new.exists() && !new.is_symlink());
        mount(&mounts, scratch.join("mounted")).unmount();
        // The volume may be mounted into some container as well, whose root can write to all of it.
        fs::rename(volume.join("overstream/app/fs"), volume.join("aside")).unwrap();
        plant("overstream/app/fs");
        client.mounts("k8s.io/7/c1").unwrap_err();
    });
}

/// SEMANTICS P6.
#[test]
fn names_that_are_no_directory_are_refused() {
    with_volume(|_, volume, daemon| {
        let client = client(&daemon);
        for name in ["..", ".", "a/b", "../../etc", ".hidden", "a b", "ä", &"x".repeat(129)] {
            refused(&client, name, Code::InvalidArgument, "cannot name a directory");
        }
        refused(&client, "", Code::FailedPrecondition, "container.name");
        let top: Vec<_> = volume.path().read_dir().unwrap().map(|e| e.unwrap().path()).collect();
        let ours = |path: &&std::path::PathBuf| !path.ends_with("lost+found");
        let made = top.iter().filter(ours).flat_map(|path| path.read_dir().unwrap()).count();
        assert_eq!(made, 0, "{top:?}");
    });
}

/// SEMANTICS P9, P10.
#[test]
fn an_upper_changes_hands_only_when_nothing_uses_it() {
    with_volume(|scratch, volume, daemon| {
        let client = client(&daemon);
        let first = prepare(&client, "c1", "app").unwrap();
        // Handed out, and perhaps about to be mounted.
        refused(&client, "app", Code::Unavailable, "just given to another container");
        let mounted = mount(&first, scratch.join("mounted"));
        refused(&client, "app", Code::FailedPrecondition, "still has it mounted");
        fs::write(mounted.join("kept"), "kept").unwrap();
        mounted.unmount();
        let second = prepare(&client, "c2", "app").unwrap();
        assert_eq!(writable(&second), writable(&first));
        no_mounts(&client, "c1", Code::FailedPrecondition, "taken over by a newer container");
        client.remove("k8s.io/7/c1").unwrap();
        client.cleanup().unwrap();
        let mounted = mount(&client.mounts("k8s.io/7/c2").unwrap(), scratch.join("mounted"));
        assert_eq!(fs::read(mounted.join("kept")).unwrap(), b"kept");
        mounted.unmount();
        client.remove("k8s.io/7/c2").unwrap();
        client.cleanup().unwrap();
        assert!(volume.join("overstream/app/fs/kept").is_file(), "retained by default");

        add_layer(&client, 2, &layer(1));
        let labels = [(POD, "uid-1"), (CONTAINER, "app")];
        let status = client.prepare("k8s.io/7/c3", &layer(2), &labels).unwrap_err();
        assert!(status.message().contains("it belongs on layer"), "{status}");
        let third = prepare(&client, "c4", "app").unwrap();
        assert_eq!(fs::read(writable(&third).join("kept")).unwrap(), b"kept");
    });
}

/// Prepares a snapshot whose labels tell only later whose it is, so that its place is pending.
fn pending(client: &Client, key: &str, pod: &str) {
    client.prepare(&format!("k8s.io/7/{key}"), &layer(1), &[]).unwrap();
    let labels = [(POD, pod), (CONTAINER, "app")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let name = format!("k8s.io/7/{key}");
    let info = Info { name, labels: labels.into(), ..Info::default() };
    client.update(info, &["labels"]).unwrap();
}

/// Has several clients call at the same instant.
fn at_once<T: Send>(clients: &[Client], call: impl Fn(usize, &Client) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(clients.len());
    thread::scope(|scope| {
        let start = |(number, client)| {
            let (barrier, call) = (&barrier, &call);
            scope.spawn(move || {
                barrier.wait();
                call(number, client)
            })
        };
        let threads: Vec<_> = clients.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// SEMANTICS P8, P9.
#[test]
fn a_place_is_settled_once_whoever_asks() {
    with_volume(|scratch, volume, mut daemon| {
        daemon.set_config(&config(scratch, &format!("otherwise = \"next\"\n{TRUSTED}")));
        daemon.restart();
        let clients: Vec<_> = (0..6).map(|_| client(&daemon)).collect();
        let client = &clients[0];
        for round in 0..8 {
            for (pod, base) in [("uid-none", daemon.root()), ("uid-1", volume.path())] {
                let key = format!("{pod}-{round}");
                pending(client, &key, pod);
                let all = at_once(&clients, |_, c| c.mounts(&format!("k8s.io/7/{key}")).unwrap());
                assert!(all.iter().all(|mounts| *mounts == all[0]), "{all:?}");
                assert!(writable(&all[0]).starts_with(base), "{all:?}");
                mount(&all[0], scratch.join("mounted")).unmount();
            }
            let key = format!("k8s.io/7/committed-{round}");
            pending(client, &format!("committed-{round}"), "uid-none");
            let name = format!("k8s.io/8/committed-{round}");
            let results = at_once(&clients, |number, c| match number {
                0 => c.commit(&name, &key, &[]),
                _ => c.mounts(&key).map(drop),
            });
            results[0].as_ref().unwrap();
            for result in results.iter().filter_map(|result| result.as_ref().err()) {
                assert_eq!(result.code(), Code::NotFound, "{result}");
            }
            let child = format!("default/9/child-{round}");
            mount(&client.prepare(&child, &name, &[]).unwrap(), scratch.join("mounted")).unmount();
        }
    });
}

/// SEMANTICS P9.
#[test]
fn a_snapshot_that_is_removed_takes_nothing_with_it() {
    with_volume(|scratch, _, daemon| {
        let clients: Vec<_> = (0..4).map(|_| client(&daemon)).collect();
        let client = &clients[0];
        for round in 0..10 {
            let before = format!("before-{round}");
            let mounts = prepare(client, &before, "app").unwrap();
            mount(&mounts, scratch.join("mounted")).unmount();
            let key = format!("late-{round}");
            pending(client, &key, "uid-1");
            let key = format!("k8s.io/7/{key}");
            let results = at_once(&clients, |number, c| match number {
                0 => c.remove(&key),
                _ => c.mounts(&key).map(drop),
            });
            let before = format!("k8s.io/7/{before}");
            match client.stat(&key) {
                Ok(_) => no_mounts(client, &before[9..], Code::FailedPrecondition, "taken over"),
                Err(_) if results[1..].iter().all(Result::is_err) => {
                    client.mounts(&before).unwrap();
                }
                Err(_) => {}
            }
            drop(client.remove(&key));
            client.remove(&before).unwrap();
        }
    });
}

/// SEMANTICS P9.
#[test]
fn mounts_that_cannot_be_take_no_volume() {
    const MAPS: [(&str, &str); 2] = [
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:100000:65536"),
    ];
    with_volume(|scratch, volume, mut daemon| {
        daemon.set_config(&format!("remap_ids = \"on\"\n{}", config(scratch, TRUSTED)));
        daemon.restart();
        let client = client(&daemon);
        prepare(&client, "base", "base").unwrap();
        client.commit("k8s.io/8/committed", "k8s.io/7/base", &[]).unwrap();
        let mut labels = vec![(POD, "uid-1"), (CONTAINER, "app")];
        client.prepare("k8s.io/7/plain", "k8s.io/8/committed", &labels).unwrap();
        client.remove("k8s.io/7/plain").unwrap();
        let identity = volume.join("overstream/app/overstream.json");
        let before = fs::read(&identity).unwrap();
        labels.extend(MAPS);
        let status = client.prepare("k8s.io/7/c1", "k8s.io/8/committed", &labels).unwrap_err();
        assert!(status.message().contains("ids cannot be mapped"), "{status}");
        assert_eq!(client.stat("k8s.io/7/c1").unwrap_err().code(), Code::NotFound);
        assert_eq!(fs::read(&identity).unwrap(), before);
    });
}

/// SEMANTICS P6, R2.
#[test]
fn a_retained_upper_that_comes_too_late_is_not_passed_over() {
    with_volume(|scratch, _, mut daemon| {
        let next = format!(
            "otherwise = \"next\"\n[[rules]]\nkey = \"^kept\"\nretain = true\nresume = true\n{TRUSTED}"
        );
        daemon.set_config(&config(scratch, &next));
        daemon.restart();
        let client = client(&daemon);
        let labels = [(POD, "uid-none"), (CONTAINER, "app")];
        let place = |key: &str| client.prepare(&format!("k8s.io/7/{key}"), &layer(1), &labels);
        let mounts = place("kept-1").unwrap();
        let kept = writable(&mounts).join("kept");
        fs::write(&kept, "kept").unwrap();
        client.remove("k8s.io/7/kept-1").unwrap();
        let status = place("kept-1").unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        for words in ["rule 2", "kept-1@", "retained rm"] {
            assert!(status.message().contains(words), "{words:?} is not in: {status}");
        }
        assert_eq!(client.stat("k8s.io/7/kept-1").unwrap_err().code(), Code::NotFound);
        client.cleanup().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"kept");
        place("kept-2").unwrap();
    });
}

/// SEMANTICS P9.
#[test]
fn looking_at_a_live_container_does_not_keep_its_successor_waiting() {
    with_volume(|scratch, _, daemon| {
        let client = client(&daemon);
        let mounted = mount(&prepare(&client, "c1", "app").unwrap(), scratch.join("mounted"));
        // As a diff of the running container does.
        client.mounts("k8s.io/7/c1").unwrap();
        mounted.unmount();
        prepare(&client, "c2", "app").unwrap();
    });
}

/// SEMANTICS P6.
#[test]
fn a_directory_bound_to_the_place_of_a_volume_is_one() {
    with_volume(|scratch, _, daemon| {
        let client = client(&daemon);
        let [disk, target] = ["local-disk", "pods/uid-2/volumes/rootfs"].map(|n| scratch.dir(n));
        run(Command::new("mount").arg("--bind").arg(&disk).arg(&target)).ok();
        let labels = [(POD, "uid-2"), (CONTAINER, "app")];
        let mounts = client.prepare("k8s.io/7/c1", &layer(1), &labels).unwrap();
        assert_eq!(writable(&mounts), target.join("overstream/app/fs"));
        let mounted = mount(&mounts, scratch.join("mounted"));
        fs::write(mounted.join("new"), "new").unwrap();
        mounted.unmount();
        assert!(disk.join("overstream/app/fs/new").is_file());
    });
}

/// SEMANTICS P8.
#[test]
fn a_snapshot_whose_container_is_unknown_has_no_upper() {
    with_volume(|scratch, volume, daemon| {
        let client = client(&daemon);
        let provisional = client.prepare("k8s.io/7/c1", &layer(1), &[]).unwrap();
        let mounted = mount(&provisional, scratch.join("mounted"));
        assert_eq!(fs::read(mounted.join("1")).unwrap(), b"layer");
        let error = fs::write(mounted.join("new"), "new").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        mounted.unmount();
        no_mounts(&client, "c1", Code::Unavailable, "cannot ask containerd");
        assert_eq!(client.usage("k8s.io/7/c1").unwrap(), (0, 0));
        let orphan = client.prepare("k8s.io/7/orphan", "", &[]).unwrap_err();
        assert_eq!(orphan.code(), Code::FailedPrecondition, "{orphan}");

        client.prepare("k8s.io/7/c2", &layer(1), &[]).unwrap();
        client.remove("k8s.io/7/c2").unwrap();
        client.commit("k8s.io/8/committed", "k8s.io/7/c1", &[]).unwrap();
        let child = client.prepare("default/9/child", "k8s.io/8/committed", &[]).unwrap();
        mount(&child, scratch.join("mounted")).unmount();
        client.cleanup().unwrap();
        assert_eq!(entries(&daemon.root().join("snapshots")), 3);
        assert!(!volume.join("overstream").exists());
    });
}

/// SEMANTICS M5, P9.
#[test]
fn a_layer_on_a_volume_is_nobodys_upper_any_more() {
    with_volume(|scratch, volume, daemon| {
        let client = client(&daemon);
        let mounts = prepare(&client, "c1", "app").unwrap();
        fs::write(writable(&mounts).join("new"), "new").unwrap();
        mount(&mounts, scratch.join("mounted")).unmount();
        client.commit("k8s.io/8/committed", "k8s.io/7/c1", &[]).unwrap();
        refused(&client, "app", Code::FailedPrecondition, "holds the committed layer");
        let child = || client.prepare("default/9/child", "k8s.io/8/committed", &[]);
        let mounted = mount(&child().unwrap(), scratch.join("mounted"));
        assert_eq!(fs::read(mounted.join("new")).unwrap(), b"new");
        mounted.unmount();
        client.remove("default/9/child").unwrap();
        volume.unmount();
        assert_eq!(child().unwrap_err().code(), Code::Unavailable);
        volume.remount();
        child().unwrap();
        client.remove("default/9/child").unwrap();
        client.remove("k8s.io/8/committed").unwrap();
        client.cleanup().unwrap();
        assert!(!volume.join("overstream/app").exists());
        assert_eq!(entries(&daemon.root().join("snapshots")), 1);
        prepare(&client, "c2", "app").unwrap();
    });
}

/// SEMANTICS P9.
#[test]
fn files_that_nobody_claims_are_left_alone() {
    with_volume(|_, volume, daemon| {
        let client = client(&daemon);
        let upper = volume.join("overstream/app/fs");
        fs::create_dir_all(&upper).unwrap();
        fs::write(upper.join("somebody's"), "data").unwrap();
        refused(&client, "app", Code::FailedPrecondition, "nothing says whose they are");
        let marker = volume.join("overstream/app/overstream.json");
        fs::write(&marker, "{ damaged").unwrap();
        refused(&client, "app", Code::DataLoss, "is damaged");
        fs::write(&marker, r#"{"format":9,"root":"","snapshot":1,"chain":[],"userxattr":false}"#)
            .unwrap();
        refused(&client, "app", Code::FailedPrecondition, "has format 9");
        assert_eq!(fs::read(upper.join("somebody's")).unwrap(), b"data");
    });
}

fn entries(directory: &Path) -> usize {
    directory.read_dir().unwrap().count()
}

/// SEMANTICS P5, D6.
#[test]
fn a_volume_that_cannot_be_written_is_reported() {
    with_volume(|scratch, volume, daemon| {
        let client = client(&daemon);
        volume.remount_readonly();
        refused(&client, "app", Code::FailedPrecondition, "is mounted read-only");
        volume.remount_writable();
        volume.fill();
        refused(&client, "app", Code::ResourceExhausted, "No space left");
        volume.drain();
        assert_eq!(entries(&daemon.root().join("snapshots")), 1);
        let mounts = prepare(&client, "c1", "app").unwrap();
        mount(&mounts, scratch.join("mounted")).unmount();
    });
}

/// SEMANTICS P3.
#[test]
fn identity_labels_need_permission() {
    with_volume(|scratch, volume, mut daemon| {
        daemon.set_config(&config(scratch, ""));
        daemon.restart();
        let client = client(&daemon);
        refused(&client, "app", Code::InvalidArgument, "does not allow this label");
        assert!(!volume.join("overstream").exists());
    });
}

/// SEMANTICS P11.
#[test]
fn a_volume_that_hangs_holds_up_nobody_else() {
    with_volume(|scratch, hanging, daemon| {
        let sound = volume(scratch, "uid-2");
        let (sender, answers) = std::sync::mpsc::channel();
        let ask = |pod: &'static str| {
            let (sender, socket) = (sender.clone(), daemon.socket().to_owned());
            std::thread::spawn(move || {
                let client = Client::new(&socket, Stack::PLUGIN);
                let key = format!("k8s.io/7/{pod}");
                let labels = [(POD, pod), (CONTAINER, "app")];
                sender.send((pod, client.prepare(&key, &layer(1), &labels))).ok();
            })
        };
        let frozen = hanging.freeze();
        let blocked = ask("uid-1");
        // Long enough for the first to be in the middle of it.
        assert!(answers.recv_timeout(Duration::from_millis(300)).is_err());
        ask("uid-2");
        // Never waited for without an end: nothing can kill what waits for a frozen file system.
        let (pod, answer) = answers.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(pod, "uid-2");
        assert!(writable(&answer.unwrap()).starts_with(sound.path()));
        drop(frozen);
        blocked.join().unwrap();
        assert!(writable(&answers.recv().unwrap().1.unwrap()).starts_with(hanging.path()));
    });
}

/// SEMANTICS P12.
#[test]
fn a_volume_that_hangs_keeps_one_thread() {
    with_volume(|_, volume, daemon| {
        let client = &client(&daemon);
        thread::scope(|scope| {
            let frozen = volume.freeze();
            let calls: Vec<_> = (0..40)
                .map(|number| {
                    let (key, container) = (format!("c{number}"), format!("app-{number}"));
                    scope.spawn(move || {
                        prepare(client, &key, &container).map_err(|error| (key, error))
                    })
                })
                .collect();
            let (waits, refused): (Vec<_>, Vec<_>) = {
                let waiting = || calls.iter().filter(|call| !call.is_finished()).count();
                wait_for("all but one call", Duration::from_secs(12), || waiting() == 1);
                calls.into_iter().partition(|call| !call.is_finished())
            };
            for call in refused {
                let (key, status) = call.join().unwrap().unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!(status.message().contains("is it hung?"), "{status}");
                assert_eq!(
                    client.stat(&format!("k8s.io/7/{key}")).unwrap_err().code(),
                    Code::NotFound
                );
            }
            // containerd's garbage collection must not wait for the one that is left.
            let pending = client.list(&["kind==active"]).unwrap().remove(0).name;
            assert_eq!(client.remove(&pending).unwrap_err().code(), Code::Unavailable);
            client.prepare("default/2/c", &layer(1), &[]).unwrap();
            drop(frozen);
            for call in waits {
                assert!(writable(&call.join().unwrap().unwrap()).starts_with(volume.path()));
            }
        });
    });
}

/// SEMANTICS P5, P6.
#[test]
fn a_place_in_a_store_that_is_away_is_refused() {
    with_volume(|scratch, _, mut daemon| {
        let disk = LoopFs::new(scratch, "next", FsKind::Ext4, 16);
        daemon.set_config(&config(scratch, &next_is(disk.path())));
        daemon.restart();
        let client = client(&daemon);
        let away = |key: &str| {
            let labels = [(POD, "uid-2"), (CONTAINER, "app")];
            client.prepare(&format!("k8s.io/7/{key}"), &layer(1), &labels)
        };
        assert!(writable(&away("before").unwrap()).starts_with(disk.path()));
        disk.unmount();
        let status = away("without").unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("is its disk mounted?"), "{status}");
        assert_eq!(disk.path().read_dir().unwrap().count(), 0, "written below the mount point");
        disk.remount();
        away("without").unwrap();
        assert_eq!(disk.join("snapshots").read_dir().unwrap().count(), 2);
    });
}

/// SEMANTICS P5. The store was away when the number was planned, and has something under it.
#[test]
fn files_under_the_number_of_a_snapshot_do_not_become_its_upper() {
    with_volume(|scratch, _, mut daemon| {
        let store = scratch.dir("store");
        daemon.set_config(&config(scratch, &next_is(&store)));
        daemon.restart();
        let client = client(&daemon);
        let number = |key: &str| -> u64 {
            let database = rusqlite::Connection::open(daemon.root().join("metadata.db")).unwrap();
            let query = "SELECT id FROM snapshots WHERE key = ?1";
            database.query_row(query, [format!("k8s.io/7/{key}")], |row| row.get(0)).unwrap()
        };
        pending(&client, "full", "uid-none");
        let directory = store.join(format!("snapshots/{}", number("full")));
        fs::create_dir_all(directory.join("fs")).unwrap();
        fs::write(directory.join("fs/file"), "somebody's").unwrap();
        no_mounts(&client, "full", Code::FailedPrecondition, "move that directory aside");
        assert_eq!(fs::read(directory.join("fs/file")).unwrap(), b"somebody's");
        assert!(!directory.join("work").exists(), "something was made there");
        // Both ways out.
        fs::rename(&directory, scratch.join("aside")).unwrap();
        let mounts = client.mounts("k8s.io/7/full").unwrap();
        assert_eq!(writable(&mounts), directory.join("fs"));
        pending(&client, "linked", "uid-none");
        let link = store.join(format!("snapshots/{}", number("linked")));
        std::os::unix::fs::symlink(scratch.join("aside"), &link).unwrap();
        no_mounts(&client, "linked", Code::FailedPrecondition, "create the container anew");
        client.remove("k8s.io/7/linked").unwrap();
        pending(&client, "linked", "uid-none");
        client.mounts("k8s.io/7/linked").unwrap();

        // What a killed attempt to settle leaves is empty, and its own.
        pending(&client, "empty", "uid-none");
        let directory = store.join(format!("snapshots/{}", number("empty")));
        fs::create_dir_all(directory.join("fs")).unwrap();
        let mounts = client.mounts("k8s.io/7/empty").unwrap();
        assert_eq!(writable(&mounts), directory.join("fs"));
    });
}

/// Configuration that puts what has no volume into a store.
fn next_is(store: &Path) -> String {
    format!(
        "otherwise = \"next\"\n[[rules]]\nstore = \"next\"\n\
         [stores.next]\ntype = \"dir\"\npath = \"{}\"\n{TRUSTED}",
        store.display()
    )
}

/// Makes the database refuse to record that a snapshot has a place, while `body` runs.
fn with_refusing_database(daemon: &Daemon, body: impl FnOnce()) {
    let database = rusqlite::Connection::open(daemon.root().join("metadata.db")).unwrap();
    let trigger = "CREATE TRIGGER refuse BEFORE UPDATE OF placement ON snapshots
                   WHEN NEW.placement = 'placed' BEGIN SELECT RAISE(ABORT, 'refused'); END";
    database.execute_batch(trigger).unwrap();
    body();
    database.execute_batch("DROP TRIGGER refuse").unwrap();
}

/// SEMANTICS D6.
#[test]
fn a_place_that_cannot_be_recorded_leaves_nothing_behind() {
    with_volume(|scratch, volume, mut daemon| {
        let store = scratch.dir("store");
        daemon.set_config(&config(scratch, &next_is(&store)));
        daemon.restart();
        let client = client(&daemon);
        let held = prepare(&client, "held", "held").unwrap();
        fs::write(writable(&held).join("file"), "held").unwrap();
        let owner = volume.join("overstream/held/overstream.json");
        let held_by = fs::read(&owner).unwrap();
        let used = || mount(&held, scratch.join("target")).unmount();
        used();
        with_refusing_database(&daemon, || {
            // On a new upper, on one that is there, and where the volume is missing.
            refused(&client, "new", Code::Internal, "refused");
            refused(&client, "held", Code::Internal, "refused");
            let labels = [(POD, "uid-2"), (CONTAINER, "app")];
            let status = client.prepare("k8s.io/7/away", &layer(1), &labels).unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{status}");
        });
        let names = |path: &Path| path.read_dir().unwrap().count();
        assert_eq!(names(&volume.join("overstream")), 1);
        assert_eq!(names(&store.join("snapshots")), 0);
        assert_eq!(fs::read(&owner).unwrap(), held_by);
        assert_eq!(client.mounts("k8s.io/7/held").unwrap(), held);
        used();
        prepare(&client, "new", "new").unwrap();
        assert!(writable(&prepare(&client, "later", "held").unwrap()).join("file").exists());
    });
}
