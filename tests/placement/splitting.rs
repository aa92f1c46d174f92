//! Layers on one disk, uppers on another: a whole containerd on it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use overstream_testkit::{
    FsKind, LoopFs, PAUSE, Scratch, Stack, Tree, Version, block_on, image, limit, mount,
};

use super::{BINARY, DEMO, SLEEP, fast};

fn with_fast_store(body: fn(&Scratch, &LoopFs, &mut Stack)) {
    limit(Duration::from_secs(240), move || {
        let version = Version::chosen();
        if !version.available() || !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let disk = LoopFs::new(&scratch, "disk", FsKind::Ext4, 64);
        let mut stack = Stack::start(&scratch, version, BINARY, &fast(disk.path()));
        body(&scratch, &disk, &mut stack);
        stack.stop();
    });
}

fn device(path: &Path) -> u64 {
    path.metadata().unwrap().dev()
}

#[track_caller]
fn assert_split(stack: &Stack, disk: &LoopFs, container: &str) {
    let explained = stack.explain(container);
    let snapshot = &explained["snapshot"];
    assert_eq!((&snapshot["store"], &snapshot["placement"]), (&"fast".into(), &"placed".into()));
    assert_eq!(device(&stack.upper(container)), device(disk.path()));
    let layers = explained["layers"].as_array().unwrap();
    assert_eq!(layers.len(), image::demo().layer_count());
    for layer in layers {
        assert_eq!(device(Path::new(layer.as_str().unwrap())), device(stack.daemon.root()));
    }
    let mounts = explained["mounts"].to_string();
    assert!(mounts.contains(&format!("upperdir={}", disk.path().display())), "{mounts}");
    assert!(mounts.contains(&format!("workdir={}", disk.path().display())), "{mounts}");
}

/// SEMANTICS P1, P2.
#[test]
fn layers_stay_and_uppers_go_to_the_other_disk() {
    with_fast_store(|_, disk, stack| {
        stack.containerd.import("default", &image::demo(), DEMO);
        stack.containerd.run_detached(DEMO, "c1", &SLEEP);
        assert_split(stack, disk, "c1");
        stack.containerd.exec("c1", &["sh", "-c", "echo 1 >/data/new; rm /data/one"]).ok();
        assert!(stack.upper("c1").join("data/new").is_file());
        let usage = stack.ask(&["usage"]);
        let count = |name: &str| {
            let all = usage.as_array().unwrap();
            let store = all.iter().find(|store| store["name"] == name).unwrap();
            (store["committed"]["count"].clone(), store["active"]["count"].clone())
        };
        assert_eq!(count("root"), (4.into(), 0.into()));
        assert_eq!(count("fast"), (0.into(), 1.into()));

        stack.restart_daemon();
        assert_split(stack, disk, "c1");
        assert_eq!(stack.containerd.exec("c1", &["cat", "/data/new"]).ok().text(), "1");
        stack.containerd.restart();
        stack.remove("c1");
        stack.collect_until("the upper's directory to go", || {
            stack.directories(disk.path()).is_empty()
        });
        assert_eq!(stack.containerd.run(DEMO, "c2", &["cat", "/data/one"]).ok().text(), "ONE2");
    });
}

/// SEMANTICS M5, A11
#[test]
fn a_container_on_the_other_disk_becomes_a_layer() {
    with_fast_store(|scratch, disk, stack| {
        let containerd = &stack.containerd;
        containerd.import("default", &image::demo(), DEMO);
        let script = "rm -r /opaque; mkdir /opaque; echo 1 >/opaque/new; rm /data/one; sleep 1000";
        containerd.run_detached(DEMO, "c1", &["sh", "-c", script]);
        let upper = stack.upper("c1");
        stack.collect_until("the container's files", || upper.join("opaque/new").is_file());
        let ignored = &["dev", "proc", "run", "sys", "etc"];
        let expected = Tree::read(containerd.rootfs("c1")).without(ignored);
        containerd.ctr(&["tasks", "kill", "-s", "KILL", "c1"]).ok();
        containerd.ctr(&["snapshots", "commit", "by-hand", "c1"]).ok();
        assert_eq!(device(&stack.upper("by-hand")), device(disk.path()));
        for round in ["first", "after a restart"] {
            let key = round.replace(' ', "-");
            stack.containerd.ctr(&["snapshots", "prepare", &key, "by-hand"]).ok();
            let mounted = mount(&stack.mounts(&key), scratch.join("target"));
            expected.assert_same(&Tree::read(mounted.path()).without(ignored), round);
            std::fs::write(mounted.join("data/one"), round).unwrap();
            mounted.unmount();
            stack.restart_daemon();
        }
        let id = |key: &str| stack.explain(key)["snapshot"]["id"].to_string();
        let expected: BTreeSet<_> = ["by-hand", "first", "after-a-restart"].map(id).into();
        assert_eq!(stack.directories(disk.path()), expected);
    });
}

/// SEMANTICS P2.
#[test]
fn pods_go_to_the_other_disk_too() {
    with_fast_store(|_, disk, stack| {
        stack.containerd.import("k8s.io", &image::pause(), PAUSE);
        stack.containerd.import("k8s.io", &image::demo(), DEMO);
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = cri.run_pod("web", "uid-1", "shop", &[], &[]).await;
            let container = cri.create_container(&pod, "main", DEMO, &SLEEP, &[], &[]).await;
            cri.start(&container).await;
            assert_eq!(cri.exec_sync(&container, &["touch", "/data/new"]).await.code, 0);
            assert_split(stack, disk, &container);
            assert!(stack.upper(&container).join("data/new").is_file());
            assert_eq!(stack.explain(&pod.id)["snapshot"]["store"], "fast");
            cri.stop_pod(&pod).await;
            cri.remove_pod(&pod).await;
        });
        stack.collect_until("the uppers' directories to go", || {
            stack.directories(disk.path()).is_empty()
        });
    });
}
