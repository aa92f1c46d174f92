//! Stores that are missing, full, read-only, unsuitable or somebody else's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use overstream_testkit::{
    Client, Daemon, FsKind, LoopFs, Scratch, limit, mount, require_root, run, wait_for,
};
use tonic::Code;

use super::{BINARY, add_layer, client, fast, layer, restart, writable};

/// Runs a body with a disk and a daemon that has the store `fast` on it.
fn with_disk(body: fn(&Scratch, &LoopFs, Daemon)) {
    limit(Duration::from_secs(60), move || {
        if !require_root() || !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let disk = LoopFs::new(&scratch, "disk", FsKind::Ext4, 16);
        let daemon = Daemon::new(&scratch, BINARY).with_config(&fast(disk.path()));
        body(&scratch, &disk, daemon);
    });
}

/// Directories of snapshots in a store.
fn entries(store: &Path) -> usize {
    store.join("snapshots").read_dir().map_or(0, Iterator::count)
}

/// Prepares a container's snapshot, which must fail and leave nothing.
#[track_caller]
fn refused(client: &Client, code: Code, words: &str) {
    let before = client.list(&[]).unwrap().len();
    let status = client.prepare("default/900/refused", &layer(1), &[]).unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(words), "{status}");
    assert_eq!(client.list(&[]).unwrap().len(), before);
    assert_eq!(client.stat("default/900/refused").unwrap_err().code(), Code::NotFound);
}

/// Changes the database of a daemon that does not run.
fn sql(daemon: &Daemon, statement: &str) {
    let database = rusqlite::Connection::open(daemon.root().join("metadata.db")).unwrap();
    database.execute_batch(statement).unwrap();
}

#[track_caller]
fn does_not_start(daemon: &mut Daemon, words: &str) {
    assert!(daemon.try_start().is_err(), "started: {}", daemon.describe());
    let log = daemon.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(words), "{words:?} is not in the last line of: {log}");
}

/// SEMANTICS P5.
#[test]
fn a_store_that_was_never_there_stops_the_start() {
    with_disk(|scratch, _, mut daemon| {
        let missing = scratch.join("missing");
        daemon.set_config(&fast(&missing));
        does_not_start(&mut daemon, "mount its disk, or create the directory");
        assert!(!missing.exists());
        scratch.write("missing", "a file");
        does_not_start(&mut daemon, "not a directory");
    });
}

/// SEMANTICS P5. containerd's own overlayfs snapshotter keeps its files in the same layout.
#[test]
fn a_directory_with_somebody_elses_snapshots_is_not_adopted() {
    with_disk(|scratch, _, mut daemon| {
        let theirs = scratch.join("io.containerd.snapshotter.v1.overlayfs");
        let layer = theirs.join("snapshots/7/fs");
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("file"), "theirs").unwrap();
        daemon.set_config(&fast(&theirs));
        does_not_start(&mut daemon, "holds files, but no marker .overstream-store");
        assert_eq!(fs::read(layer.join("file")).unwrap(), b"theirs");
        assert_eq!(theirs.read_dir().unwrap().count(), 1, "something was left there");
        // One without snapshots is as good as a new one.
        fs::remove_dir_all(theirs.join("snapshots/7")).unwrap();
        daemon.start();
    });
}

/// SEMANTICS P5.
#[test]
fn one_directory_is_not_two_stores() {
    with_disk(|scratch, disk, mut daemon| {
        // Under the name of the root.
        fs::create_dir(daemon.root()).unwrap();
        let link = scratch.join("link");
        symlink(daemon.root(), &link).unwrap();
        daemon.set_config(&fast(&link));
        does_not_start(&mut daemon, "the same directory as that of store \"root\"");
        assert!(!daemon.root().join(".overstream-store").exists());
        // Under two names.
        let two = scratch.join("two");
        symlink(disk.path(), &two).unwrap();
        let other = |name: &str, path: &Path| {
            format!("[stores.{name}]\ntype = \"dir\"\npath = \"{}\"\n", path.display())
        };
        daemon.set_config(&format!("{}{}", fast(disk.path()), other("two", &two)));
        does_not_start(&mut daemon, "the same directory as that of store \"fast\"");
        assert_eq!(entries(disk.path()), 0);
        // Under another name, once nothing is left of the first.
        daemon.set_config(&fast(disk.path()));
        daemon.start();
        daemon.stop();
        daemon.set_config(&other("two", disk.path()));
        daemon.start();
        daemon.stop();
        // Under two names that are new to a root in use.
        let (new, alias) = (scratch.dir("new"), scratch.join("alias"));
        symlink(&new, &alias).unwrap();
        daemon.set_config(&format!("{}{}", other("new", &new), other("alias", &alias)));
        does_not_start(&mut daemon, "the same directory as that of store \"alias\"");
        assert!(!new.join(".overstream-store").exists());
        // The disk of one, where another is expected.
        let copy = scratch.dir("copy");
        fs::copy(disk.join(".overstream-store"), copy.join(".overstream-store")).unwrap();
        daemon.set_config(&format!("{}{}", other("copy", &copy), other("two", disk.path())));
        does_not_start(&mut daemon, "this is the directory of store \"two\"");
    });
}

/// SEMANTICS P5.
#[test]
fn an_unmounted_disk_is_reported_and_used_again_when_it_is_back() {
    with_disk(|scratch, disk, mut daemon| {
        daemon.start();
        let mut client = client(&daemon);
        add_layer(&client, 1, "");
        let before = client.prepare("default/2/before", &layer(1), &[]).unwrap();
        fs::write(writable(&before).join("kept"), "kept").unwrap();
        client.prepare("default/3/c", &layer(1), &[]).unwrap();
        client.commit("default/4/committed", "default/3/c", &[]).unwrap();

        for round in 0..2 {
            disk.unmount();
            if round == 1 {
                // Found missing at the start, and not before.
                client = restart(&mut daemon, client);
                assert!(daemon.log().contains("a store cannot be used"), "{}", daemon.log());
            }
            refused(&client, Code::Unavailable, "is its disk mounted?");
            for call in [
                client.mounts("default/2/before"),
                client.prepare("default/5/child", "default/4/committed", &[]),
            ] {
                let status = call.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{status}");
            }
            assert_eq!(disk.path().read_dir().unwrap().count(), 0, "written below the mount point");
            let text = run(daemon.tool(&["usage"]).env("OVERSTREAM_SOCKET", daemon.socket()));
            assert!(text.ok().text().contains("store fast cannot be used now"));
            add_layer(&client, 10 + round, &layer(1));

            disk.remount();
            assert_eq!(client.mounts("default/2/before").unwrap(), before);
            let key = format!("default/{round}/again");
            let again = client.prepare(&key, "default/4/committed", &[]).unwrap();
            mount(&again, scratch.join("target")).unmount();
            client.remove(&key).unwrap();
            client.cleanup().unwrap();
            assert_eq!(entries(disk.path()), 2);
        }
        assert_eq!(fs::read(writable(&before).join("kept")).unwrap(), b"kept");
    });
}

/// SEMANTICS P5, X2.
#[test]
fn an_unmounted_disk_is_not_taken_for_an_empty_one() {
    with_disk(|_, disk, mut daemon| {
        let keep = "[[rules]]\nretain = true\nresume = true\n";
        daemon.set_config(&fast(disk.path()).replace("[[rules]]\n", keep));
        daemon.start();
        let client = client(&daemon);
        add_layer(&client, 1, "");
        for key in ["default/2/gone", "default/3/kept"] {
            let mounts = client.prepare(key, &layer(1), &[]).unwrap();
            if key.ends_with("kept") {
                fs::write(writable(&mounts).join("file"), "kept").unwrap();
            }
            client.remove(key).unwrap();
        }
        disk.unmount();
        client.cleanup().unwrap();
        let status = client.prepare("default/4/kept", &layer(1), &[]).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("is its disk mounted?"), "{status}");
        disk.remount();
        assert_eq!(entries(disk.path()), 2);
        client.cleanup().unwrap();
        assert_eq!(entries(disk.path()), 1);
        let mounts = client.prepare("default/4/kept", &layer(1), &[]).unwrap();
        assert_eq!(fs::read(writable(&mounts).join("file")).unwrap(), b"kept");
    });
}

/// A failed call may note what it made as garbage in one store, for a snapshot that went to another.
#[test]
fn garbage_does_not_take_a_layers_link_along() {
    with_disk(|scratch, disk, mut daemon| {
        let other = scratch.dir("other");
        let config = format!(
            "{}[stores.other]\ntype = \"dir\"\npath = \"{}\"\n",
            fast(disk.path()),
            other.display()
        );
        daemon.set_config(&config);
        daemon.start();
        client(&daemon).prepare("default/1/c", "", &[]).unwrap();
        client(&daemon).commit(&layer(1), "default/1/c", &[]).unwrap();
        let link = daemon.root().join("snapshots/1");
        assert!(link.is_symlink());
        daemon.stop();
        sql(&daemon, "INSERT INTO garbage (id, store) VALUES (1, 'other')");
        fs::create_dir_all(other.join("snapshots/1/fs")).unwrap();
        daemon.start();
        client(&daemon).cleanup().unwrap();
        assert_eq!(entries(&other), 0);
        assert!(link.is_symlink());
        client(&daemon).prepare("default/2/c", &layer(1), &[]).unwrap();
    });
}

/// SEMANTICS P5.
#[test]
fn a_store_whose_disk_is_dead_can_be_given_up() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        client(&daemon).prepare("default/1/c", "", &[]).unwrap();
        disk.unmount();
        client(&daemon).remove("default/1/c").unwrap();
        client(&daemon).cleanup().unwrap();
        daemon.stop();
        daemon.set_config("");
        daemon.start();
        assert!(daemon.log().contains("is left alone"), "{}", daemon.log());
        client(&daemon).prepare("default/2/c", "", &[]).unwrap();
    });
}

/// SEMANTICS P5. The root may have come from a backup without the links, the disk later.
#[test]
fn layers_of_a_store_that_comes_back_late_are_linked_again() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        client(&daemon).prepare("default/1/c", "", &[]).unwrap();
        client(&daemon).commit(&layer(1), "default/1/c", &[]).unwrap();
        daemon.stop();
        disk.unmount();
        let link = daemon.root().join("snapshots/1");
        fs::remove_file(&link).unwrap();
        daemon.start();
        client(&daemon).prepare("default/2/c", &layer(1), &[]).unwrap_err();
        disk.remount();
        client(&daemon).prepare("default/2/c", &layer(1), &[]).unwrap();
        assert!(link.is_symlink());
    });
}

/// SEMANTICS P5, D2.
#[test]
fn a_store_that_comes_back_late_is_mended_as_at_a_start() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        add_layer(&client(&daemon), 1, "");
        client(&daemon).prepare("default/2/lost", &layer(1), &[]).unwrap();
        daemon.kill();
        let directory = |number: u64| disk.join("snapshots").join(number.to_string());
        fs::remove_dir_all(directory(2)).unwrap();
        for (stray, file) in [(1, true), (90, false), (91, true)] {
            fs::create_dir_all(directory(stray).join("fs")).unwrap();
            if file {
                fs::write(directory(stray).join("fs/file"), "file").unwrap();
            }
        }
        disk.unmount();
        daemon.start();
        let client = client(&daemon);
        client.mounts("default/2/lost").unwrap_err();
        disk.remount();
        client.prepare("default/3/notices", &layer(1), &[]).unwrap();
        let mounts = client.prepare("default/4/c", &layer(1), &[]).unwrap();
        assert_eq!(writable(&mounts), directory(92).join("fs"), "a number was used again");
        wait_for("the lost upper", Duration::from_secs(20), || {
            client.mounts("default/2/lost").is_ok()
        });
        client.cleanup().unwrap();
        // What a database from a backup may just not know is left to the next start.
        for (number, is_there) in [(1, false), (2, true), (90, false), (91, true), (92, true)] {
            assert_eq!(directory(number).exists(), is_there, "{number}");
        }
    });
}

/// SEMANTICS P5.
#[test]
fn a_readonly_disk_is_refused_until_it_is_writable() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        let mut client = client(&daemon);
        add_layer(&client, 1, "");
        disk.remount_readonly();
        refused(&client, Code::Unavailable, "ead-only");
        client = restart(&mut daemon, client);
        refused(&client, Code::Unavailable, "ead-only");
        disk.remount_writable();
        client.prepare("default/2/c", &layer(1), &[]).unwrap();
        assert_eq!(entries(disk.path()), 1);
    });
}

/// SEMANTICS P5, D6.
#[test]
fn a_full_disk_is_reported_and_nothing_leaks() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        let mut client = client(&daemon);
        add_layer(&client, 1, "");
        disk.fill();
        for _ in 0..20 {
            refused(&client, Code::ResourceExhausted, "No space left");
        }
        client = restart(&mut daemon, client);
        refused(&client, Code::ResourceExhausted, "No space left");
        add_layer(&client, 2, &layer(1));
        disk.drain();
        assert_eq!(entries(disk.path()), 0);
        client.prepare("default/3/c", &layer(2), &[]).unwrap();
        client.remove("default/3/c").unwrap();
        client.cleanup().unwrap();
        assert_eq!(entries(disk.path()), 0);
    });
}

/// SEMANTICS P5.
#[test]
fn a_file_system_that_cannot_hold_an_upper_is_refused() {
    with_disk(|scratch, disk, mut daemon| {
        let [lower, upper, work] = ["l", "u", "w"].map(|name| {
            let path = disk.join(name);
            fs::create_dir(&path).unwrap();
            path.display().to_string()
        });
        let store = scratch.dir("overlay");
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let mut command = Command::new("mount");
        run(command.args(["-t", "overlay", "overlay", "-o", &options]).arg(&store)).ok();
        daemon.set_config(&fast(&store));
        does_not_start(&mut daemon, "overlay");
        assert_eq!(store.read_dir().unwrap().count(), 0, "something was left there");
    });
}

/// SEMANTICS P5.
#[test]
fn fat_cannot_hold_an_upper() {
    with_disk(|scratch, _, mut daemon| {
        if !FsKind::Vfat.available() {
            return;
        }
        let fat = LoopFs::new(scratch, "fat", FsKind::Vfat, 16);
        daemon.set_config(&fast(fat.path()));
        does_not_start(&mut daemon, "kernel overlayfs refuses an upper on this file system (vfat)");
        assert_eq!(fat.path().read_dir().unwrap().count(), 0, "something was left there");
        let mut root = Daemon::named(scratch, "root", BINARY).with_root(fat.join("root"));
        does_not_start(&mut root, "refuses an upper on this file system (vfat)");
    });
}

/// SEMANTICS P5. A tmpfs is as good as a disk until it goes.
#[test]
fn a_store_in_memory_is_missed_when_it_went() {
    with_disk(|scratch, _, mut daemon| {
        let memory = scratch.dir("memory");
        let mount_memory = || {
            let mut command = Command::new("mount");
            run(command.args(["-t", "tmpfs", "tmpfs"]).arg(&memory)).ok();
        };
        mount_memory();
        daemon.set_config(&fast(&memory));
        daemon.start();
        let mut client = client(&daemon);
        add_layer(&client, 1, "");
        let mounts = client.prepare("default/2/c", &layer(1), &[]).unwrap();
        mount(&mounts, scratch.join("target")).unmount();
        run(Command::new("umount").arg(&memory)).ok();
        mount_memory();
        client = restart(&mut daemon, client);
        refused(&client, Code::Unavailable, "its marker .overstream-store is missing");
        let status = client.mounts("default/2/c").unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert_eq!(memory.read_dir().unwrap().count(), 0);
        client.remove("default/2/c").unwrap();
    });
}

/// SEMANTICS P5.
#[test]
fn a_store_of_another_root_is_refused() {
    with_disk(|scratch, disk, mut daemon| {
        daemon.start();
        add_layer(&client(&daemon), 1, "");
        client(&daemon).prepare("default/2/c", &layer(1), &[]).unwrap();
        let mut other = Daemon::named(scratch, "other", BINARY).with_config(&fast(disk.path()));
        does_not_start(&mut other, "belongs to another Overstream root");
        assert_eq!(entries(disk.path()), 1);
        daemon.restart();
        client(&daemon).mounts("default/2/c").unwrap();
    });
}

/// SEMANTICS P4, P5.
#[test]
fn the_place_stays_when_the_configuration_changes() {
    with_disk(|_, disk, mut daemon| {
        daemon.start();
        add_layer(&client(&daemon), 1, "");
        let before = client(&daemon).prepare("default/2/c", &layer(1), &[]).unwrap();
        daemon.stop();
        daemon.set_config("");
        does_not_start(&mut daemon, "has no store \"fast\", but 1 snapshots lie there");

        let store = fast(disk.path());
        daemon.set_config(store.split("[[rules]]").next().unwrap());
        daemon.start();
        let client = client(&daemon);
        assert_eq!(client.mounts("default/2/c").unwrap(), before);
        let now = client.prepare("default/3/c", &layer(1), &[]).unwrap();
        assert!(writable(&now).starts_with(daemon.root()));
        client.remove("default/2/c").unwrap();
        client.cleanup().unwrap();
        assert_eq!(entries(disk.path()), 0);
        drop(client);
        daemon.stop();
        daemon.set_config("");
        daemon.start();
    });
}

/// SEMANTICS M3, M5.
#[test]
fn a_chain_of_128_layers_mounts_with_some_in_another_store() {
    with_disk(|scratch, disk, mut daemon| {
        daemon.start();
        let mut client = client(&daemon);
        let mut parent = String::new();
        for number in 1..=128 {
            if number % 40 == 0 {
                let key = format!("default/{number}/container");
                let mounts = client.prepare(&key, &parent, &[]).unwrap();
                fs::write(writable(&mounts).join(number.to_string()), "layer").unwrap();
                client.commit(&layer(number), &key, &[]).unwrap();
            } else {
                add_layer(&client, number, &parent);
            }
            parent = layer(number);
        }
        assert_eq!(entries(disk.path()), 3);
        for round in 0..2 {
            let key = format!("default/{}/top", 200 + round);
            let mounts = client.prepare(&key, &parent, &[]).unwrap();
            assert!(writable(&mounts).starts_with(disk.path()));
            let mounted = mount(&mounts, scratch.join("target"));
            assert_eq!(mounted.path().read_dir().unwrap().count(), 128);
            fs::remove_file(mounted.join("80")).unwrap();
            mounted.unmount();
            client = restart(&mut daemon, client);
        }
    });
}

/// SEMANTICS P3.
#[test]
fn a_label_names_a_store_only_where_that_is_allowed() {
    const STORE: &str = "containerd.io/snapshot/overstream.store";
    with_disk(|_, disk, mut daemon| {
        let no_rules = fast(disk.path()).split("[[rules]]").next().unwrap().to_owned();
        daemon.set_config(&no_rules);
        daemon.start();
        let mut client = client(&daemon);
        add_layer(&client, 1, "");
        let fast_label = [(STORE, "fast")];
        let status = client.prepare("default/2/c", &layer(1), &fast_label).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("does not allow this label"), "{status}");
        // A layer's labels come from the image: they choose nothing, and break nothing.
        let extract = client.prepare("default/9/extract-9-x", &layer(1), &fast_label);
        assert!(writable(&extract.unwrap()).starts_with(daemon.root()));

        daemon.set_config(&format!("{no_rules}[labels]\nallow = [\"store\"]\n"));
        client = restart(&mut daemon, client);
        for value in ["", "/tmp", "../fast", "none", "fast/"] {
            let label = [(STORE, value)];
            match client.prepare("default/3/c", &layer(1), &label) {
                // An empty value is no label.
                Ok(mounts) if value.is_empty() => {
                    assert!(writable(&mounts).starts_with(daemon.root()));
                    client.remove("default/3/c").unwrap();
                }
                other => {
                    let status = other.unwrap_err();
                    assert_eq!(status.code(), Code::InvalidArgument, "{value:?}: {status}");
                }
            }
        }
        let placed = client.prepare("default/2/c", &layer(1), &fast_label).unwrap();
        assert!(writable(&placed).starts_with(disk.path()));
        let extract = client.prepare("default/10/extract-9-x", &layer(1), &fast_label);
        assert!(writable(&extract.unwrap()).starts_with(daemon.root()));
        assert_eq!(entries(disk.path()), 1);
    });
}

/// SEMANTICS D6.
#[test]
fn a_full_root_can_be_started_on() {
    with_disk(|scratch, disk, _| {
        for ending in ["stopped", "killed"] {
            let mut daemon = Daemon::named(scratch, ending, BINARY).with_root(disk.join(ending));
            daemon.start();
            let mut client = client(&daemon);
            add_layer(&client, 1, "");
            let mounts = client.prepare("default/2/c", &layer(1), &[]).unwrap();
            fs::write(writable(&mounts).join("big"), vec![1; 1 << 20]).unwrap();
            disk.fill();
            if ending == "killed" {
                daemon.kill();
                daemon.start();
                client = super::client(&daemon);
            } else {
                client = restart(&mut daemon, client);
            }
            refused(&client, Code::ResourceExhausted, "");
            assert_eq!(client.mounts("default/2/c").unwrap(), mounts);
            disk.drain();
            client.remove("default/2/c").unwrap();
            client.cleanup().unwrap();
            assert_eq!(entries(daemon.root()), 1);
            client.prepare("default/3/c", &layer(1), &[]).unwrap();
            drop(client);
            daemon.stop();
            fs::remove_dir_all(daemon.root()).unwrap();
        }
    });
}

/// SEMANTICS M5.
#[test]
fn ids_are_not_mapped_for_layers_in_another_store() {
    const MAPS: [(&str, &str); 2] = [
        ("containerd.io/snapshot/uidmapping", "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:100000:65536"),
    ];
    with_disk(|_, disk, mut daemon| {
        daemon.set_config(&format!("remap_ids = \"on\"\n{}", fast(disk.path())));
        daemon.start();
        let client = client(&daemon);
        add_layer(&client, 1, "");
        client.prepare("default/2/mapped", &layer(1), &MAPS).unwrap();
        client.prepare("default/3/base", &layer(1), &[]).unwrap();
        client.commit(&layer(4), "default/3/base", &[]).unwrap();
        let status = client.prepare("default/5/mapped", &layer(4), &MAPS).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("ids cannot be mapped"), "{status}");
        assert_eq!(entries(disk.path()), 2);
    });
}
