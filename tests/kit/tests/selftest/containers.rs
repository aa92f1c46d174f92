use std::time::Duration;

use overstream_testkit::image::{self, Image};
use overstream_testkit::{
    Containerd, LISTING, Options, PAUSE, Scratch, Tree, Version, block_on, limit,
};

const DEMO: &str = "localhost/demo:1";
/// What runc mounts or makes.
const NOT_OF_THE_IMAGE: &[&str] = &["dev", "proc", "run", "sys", "etc/hosts", "etc/resolv.conf"];

/// Runs a body with a containerd of the version, and leaves nothing behind.
fn with_containerd(version: Version, body: fn(&Containerd)) {
    limit(Duration::from_secs(300), move || {
        if !version.available() {
            return;
        }
        let scratch = Scratch::new();
        let options = Options { version, ..Options::default() };
        let containerd = Containerd::start(&scratch, options);
        body(&containerd);
        containerd.stop();
    });
}

fn assert_rootfs(expected: &Image, found: &Tree) {
    let expected = expected.tree().without(NOT_OF_THE_IMAGE);
    expected.assert_same(&found.without(NOT_OF_THE_IMAGE), "root file system");
}

fn containers_see_the_demo_image(containerd: &Containerd) {
    let demo = image::demo();
    containerd.import("default", &demo, DEMO);
    let listing = containerd.run(DEMO, "list", &["sh", "-c", LISTING]).ok();
    assert_rootfs(&demo, &Tree::from_listing(&listing.stdout));
    assert_eq!(containerd.run(DEMO, "code", &["sh", "-c", "exit 7"]).code(), Some(7));

    containerd.run_detached(DEMO, "sleeper", &["sleep", "1000"]);
    let root = containerd.rootfs("sleeper");
    assert_rootfs(&demo, &Tree::read(&root));
    let capability = xattr::get(root.join("bin/capable"), "security.capability").unwrap();
    assert_eq!(capability.as_deref(), Some(&image::CAPABILITY[..]));
    let attribute = xattr::get(root.join("data/attributes"), "user.demo").unwrap();
    assert_eq!(attribute.as_deref(), Some(&b"value"[..]));

    containerd.exec("sleeper", &["sh", "-c", "echo new >/data/new; rm /data/one"]).ok();
    let ls = containerd.exec("sleeper", &["ls", "/data"]).ok().text();
    assert!(ls.contains("new") && !ls.lines().any(|name| name == "one"), "{ls}");
    assert_eq!(containerd.exec("sleeper", &["false"]).code(), Some(1));
    containerd.remove("sleeper");
    assert_eq!(containerd.ctr(&["containers", "ls", "-q"]).ok().text(), "");
    // Left for the stop to clean up.
    containerd.run_detached(DEMO, "left", &["sleep", "1000"]);
}

fn pods_run(containerd: &Containerd) {
    containerd.import("k8s.io", &image::demo(), DEMO);
    containerd.import("k8s.io", &image::pause(), PAUSE);
    block_on(async {
        let mut cri = containerd.cri().await;
        let pod = cri.run_pod("web", "uid-1", "shop", &[("app", "web")], &[("note", "x")]).await;
        let sleep = ["sleep", "1000"];
        let container = cri.create_container(&pod, "main", DEMO, &sleep, &[], &[]).await;
        cri.start(&container).await;
        let output =
            cri.exec_sync(&container, &["sh", "-c", "cat /data/one; echo e >&2; exit 3"]).await;
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str(), output.code),
            ("ONE2\n", "e\n", 3)
        );
        cri.exec_sync(&container, &["cp", "/data/1m", "/data/copy"]).await;
        assert!(!cri.image_fs_info().await.image_filesystems.is_empty());
        for _ in 0..40 {
            let usage = cri.writable_layer(&container).await.and_then(|layer| layer.used_bytes);
            if usage.is_some_and(|bytes| bytes.value >= 1 << 20) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let usage = cri.writable_layer(&container).await.unwrap();
        assert!(usage.used_bytes.unwrap().value >= 1 << 20);
        cri.stop(&container).await;
        cri.remove(&container).await;
        cri.stop_pod(&pod).await;
        cri.remove_pod(&pod).await;
        // Left for the stop to clean up.
        cri.run_pod("left", "uid-2", "shop", &[], &[]).await;
    });
    assert_eq!(
        containerd.ctr_in("k8s.io", &["containers", "ls", "-q"]).ok().text().lines().count(),
        1
    );
}

#[test]
fn containers_see_the_demo_image_system() {
    with_containerd(Version::System, containers_see_the_demo_image);
}

#[test]
fn containers_see_the_demo_image_1_7() {
    with_containerd(Version::V1_7, containers_see_the_demo_image);
}

#[test]
fn containers_see_the_demo_image_2() {
    with_containerd(Version::V2, containers_see_the_demo_image);
}

#[test]
fn pods_run_system() {
    with_containerd(Version::System, pods_run);
}

#[test]
fn pods_run_1_7() {
    with_containerd(Version::V1_7, pods_run);
}

#[test]
fn pods_run_2() {
    with_containerd(Version::V2, pods_run);
}

#[test]
fn an_image_of_128_layers_runs() {
    limit(Duration::from_secs(120), || {
        if !Version::System.available() {
            return;
        }
        let scratch = Scratch::new();
        let mut containerd = Containerd::start(&scratch, Options::default());
        let many = image::many_layers(128);
        containerd.import("default", &many, "localhost/many:1");
        let listing = containerd.run("localhost/many:1", "list", &["sh", "-c", LISTING]).ok();
        assert_rootfs(&many, &Tree::from_listing(&listing.stdout));
        containerd.restart();
        containerd.crash();
        containerd.collect_garbage();
        assert_eq!(
            containerd.run("localhost/many:1", "again", &["cat", "/overwritten"]).ok().text(),
            "127"
        );
    });
}

#[test]
fn everything_goes_to_the_chosen_snapshotter() {
    limit(Duration::from_secs(300), || {
        for version in Version::ALL.into_iter().filter(|version| version.available()) {
            let scratch = Scratch::new();
            let options = Options { version, snapshotter: "native".into(), ..Options::default() };
            let containerd = Containerd::start(&scratch, options);
            containerd.import("default", &image::demo(), DEMO);
            containerd.run_detached(DEMO, "one", &["sleep", "1000"]);
            let snapshots = |name| {
                let list = containerd.ctr(&["snapshots", "--snapshotter", name, "ls"]).ok().text();
                list.lines().count() - 1
            };
            assert_eq!((snapshots("native"), snapshots("overlayfs")), (5, 0), "{version}");
            containerd.remove("one");
            containerd.collect_garbage();
            assert_eq!(snapshots("native"), 4, "{version}");
            containerd.stop();
        }
    });
}
