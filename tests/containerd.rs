//! Images and containers of a real containerd on our plugin; `OVERSTREAM_CONTAINERD` chooses its version.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "containerd/idmap.rs"]
mod idmap;

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use overstream_testkit::image::{self, Image};
use overstream_testkit::{
    LISTING, Options, Proxy, Registry, Scratch, Stack, Tree, Version, limit, run, wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const DEMO: &str = "localhost/demo:1";
/// What runc mounts or makes.
const NOT_OF_THE_IMAGE: &[&str] = &["dev", "proc", "run", "sys", "etc/hosts", "etc/resolv.conf"];
/// Enough for a process to end on a busy host.
const END: Duration = Duration::from_secs(20);

/// Runs a body with a daemon and a containerd of the chosen version, and leaves nothing behind.
fn with_stack(change: fn(&mut Options), body: fn(&Scratch, &mut Stack)) {
    limit(Duration::from_secs(240), move || {
        let version = Version::chosen();
        if !version.available() {
            return;
        }
        let scratch = Scratch::new();
        let mut stack = Stack::start_with(&scratch, version, BINARY, "", change);
        body(&scratch, &mut stack);
        stack.stop();
    });
}

fn as_it_is(_: &mut Options) {}

#[track_caller]
fn assert_rootfs(expected: &Image, found: &Tree) {
    let expected = expected.tree().without(NOT_OF_THE_IMAGE);
    expected.assert_same(&found.without(NOT_OF_THE_IMAGE), "root file system");
}

/// Names in a compressed tar archive, with those the runtime makes left out.
fn names(scratch: &Scratch, tar_gz: &[u8]) -> Vec<String> {
    let file = scratch.write("diff.tar.gz", tar_gz);
    let text = run(Command::new("tar").arg("-tzf").arg(file)).ok().text();
    let runtime = ["dev/", "proc/", "run/", "sys/", "etc/"];
    let ours = text.lines().filter(|name| !runtime.iter().any(|other| name.starts_with(other)));
    let mut names: Vec<_> = ours.map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn containers_see_the_image_and_keep_what_they_write() {
    with_stack(as_it_is, |_, stack| {
        let demo = image::demo();
        let containerd = &stack.containerd;
        containerd.import("default", &demo, DEMO);
        let listing = containerd.run(DEMO, "list", &["sh", "-c", LISTING]).ok();
        assert_rootfs(&demo, &Tree::from_listing(&listing.stdout));
        assert_eq!(containerd.run(DEMO, "code", &["sh", "-c", "exit 7"]).code(), Some(7));

        containerd.run_detached(DEMO, "c1", &["sleep", "1000"]);
        let root = containerd.rootfs("c1");
        assert_rootfs(&demo, &Tree::read(&root));
        let xattr = |name, key| xattr::get(root.join(name), key).unwrap();
        let capability = xattr("bin/capable", "security.capability");
        assert_eq!(capability.as_deref(), Some(&image::CAPABILITY[..]));
        assert_eq!(xattr("data/attributes", "user.demo").as_deref(), Some(&b"value"[..]));
        assert_eq!(root.join("data/pipe").metadata().unwrap().mtime(), 1_000_000_000);

        let usage = |stack: &Stack| stack.explain("c1")["snapshot"]["upper"].to_string();
        let upper = usage(stack);
        containerd.exec("c1", &["sh", "-c", "cp /data/1m /data/copy; rm /data/one"]).ok();
        assert_eq!(containerd.exec("c1", &["false"]).code(), Some(1));
        assert_eq!(containerd.exec("c1", &["cmp", "/data/1m", "/data/copy"]).code(), Some(0));
        assert_eq!(usage(stack), upper);
        let text = containerd.ctr(&["snapshots", "usage", "c1"]).ok().text();
        assert!(text.contains("1.0 MiB"), "{text}");
        stack.remove("c1");
        let listing = containerd.run(DEMO, "list", &["sh", "-c", LISTING]).ok();
        assert_rootfs(&demo, &Tree::from_listing(&listing.stdout));
    });
}

#[test]
fn a_container_becomes_an_image_that_runs() {
    with_stack(as_it_is, |scratch, stack| {
        let containerd = &stack.containerd;
        containerd.import("default", &image::demo(), DEMO);
        containerd.run_detached(DEMO, "c1", &["sleep", "1000"]);
        let script = "echo new >/data/new; rm /data/one; rm -r /opaque; mkdir /opaque; chmod 700 /tmp; \
                      mv /data/4k /data/moved";
        containerd.exec("c1", &["sh", "-c", script]).ok();
        let expected = Tree::read(containerd.rootfs("c1")).without(NOT_OF_THE_IMAGE);
        let diff = containerd.ctr(&["snapshots", "diff", "c1"]).ok().stdout;
        let found = names(scratch, &diff);
        for name in ["data/.wh.one", "data/.wh.4k", "data/moved", "data/new", "opaque/.wh.up"] {
            assert!(found.iter().any(|found| found == name), "{name} is not in {found:?}");
        }
        assert!(!found.iter().any(|name| name == "data/1m"), "{found:?}");

        let committed = image::demo().archived_layer(diff);
        containerd.import("default", &committed, "localhost/committed:1");
        containerd.run_detached("localhost/committed:1", "c2", &["sleep", "1000"]);
        let root = containerd.rootfs("c2");
        expected.assert_same(&Tree::read(&root).without(NOT_OF_THE_IMAGE), "committed image");
        // containerd's own archives carry this attribute and no other.
        let capability = xattr::get(root.join("bin/capable"), "security.capability").unwrap();
        assert_eq!(capability.as_deref(), Some(&image::CAPABILITY[..]));

        containerd.ctr(&["tasks", "kill", "-s", "KILL", "c1"]).ok();
        let stopped = || containerd.ctr(&["tasks", "ls"]).text().contains("STOPPED");
        wait_for("the container's end", END, stopped);
        containerd.ctr(&["snapshots", "commit", "by-hand", "c1"]).ok();
        containerd.ctr(&["snapshots", "prepare", "child", "by-hand"]).ok();
        let mounts = stack.explain("child");
        let layers = mounts["layers"].as_array().unwrap().len();
        assert_eq!(layers, image::demo().layer_count() + 1);
    });
}

#[test]
fn garbage_collection_deletes_what_nobody_uses() {
    with_stack(as_it_is, |_, stack| {
        let containerd = &stack.containerd;
        let root = stack.daemon.root().to_owned();
        containerd.import("default", &image::demo(), DEMO);
        containerd.import("other", &image::demo(), DEMO);
        let layers = image::demo().layer_count();
        assert_eq!(stack.directories(&root).len(), 2 * layers);
        containerd.run_detached(DEMO, "kept", &["sleep", "1000"]);
        containerd.run_detached(DEMO, "removed", &["sleep", "1000"]);
        let removed = stack.upper("removed");
        containerd.remove("removed");
        stack.collect_until("the container's directory to go", || !removed.exists());
        assert_eq!(stack.directories(&root).len(), 2 * layers + 1);

        containerd.ctr_in("other", &["images", "rm", DEMO]).ok();
        stack.collect_until("the other namespace's layers to go", || {
            stack.directories(&root).len() == layers + 1
        });
        containerd.ctr(&["images", "rm", DEMO]).ok();
        containerd.collect_garbage();
        assert_eq!(stack.directories(&root).len(), layers + 1, "layers below a container");
        assert_eq!(containerd.exec("kept", &["cat", "/data/one"]).ok().text(), "ONE2");
        containerd.remove("kept");
        stack.collect_until("everything to go", || stack.directories(&root).is_empty());
        assert!(stack.placements().is_empty());
    });
}

#[test]
fn an_image_is_pulled_from_a_registry() {
    with_stack(as_it_is, |scratch, stack| {
        if !Registry::available() {
            return;
        }
        let registry = Registry::start(scratch);
        let containerd = &stack.containerd;
        containerd.import("default", &image::demo(), DEMO);
        let name = registry.push(containerd, DEMO, "demo:1");
        registry.pull(containerd, "other", &name);
        let arguments = ["run", "--rm", &name, "c1", "sh", "-c", LISTING];
        let listing = containerd.ctr_in("other", &arguments).ok();
        assert_rootfs(&image::demo(), &Tree::from_listing(&listing.stdout));
    });
}

#[test]
fn a_container_outlives_the_daemon_and_containerd() {
    with_stack(as_it_is, |_, stack| {
        stack.containerd.import("default", &image::demo(), DEMO);
        stack.containerd.run_detached(DEMO, "c1", &["sleep", "1000"]);
        let write = |stack: &Stack, text: &str| {
            let script = format!("cat /data/1m >/dev/null && echo {text} >>/data/log");
            stack.containerd.exec("c1", &["sh", "-c", &script]).ok();
        };
        write(stack, "before");
        stack.daemon.kill();
        write(stack, "dead");
        stack.containerd.run(DEMO, "c2", &["true"]).fails();
        stack.daemon.start();
        write(stack, "alive");
        stack.wait_connected();
        stack.containerd.run(DEMO, "c3", &["true"]).ok();

        stack.containerd.restart();
        write(stack, "restarted");
        stack.containerd.crash();
        write(stack, "crashed");
        stack.daemon.kill();
        stack.daemon.start();
        let log = stack.containerd.exec("c1", &["cat", "/data/log"]).ok().text();
        assert_eq!(log, "before\ndead\nalive\nrestarted\ncrashed");
        let upper = stack.upper("c1");
        assert!(upper.join("data/log").is_file());
        // A collection that finds the daemon away is not repeated before the next removal.
        stack.wait_connected();
        stack.containerd.remove("c1");
        stack.collect_until("the container's directory to go", || !upper.exists());
        assert_eq!(stack.containerd.run(DEMO, "c4", &["cat", "/data/one"]).ok().text(), "ONE2");
    });
}

#[test]
fn an_image_of_128_layers_runs() {
    with_stack(as_it_is, |_, stack| {
        let many = image::many_layers(128);
        stack.containerd.import("default", &many, "localhost/many:1");
        let script = format!("echo up >/added/up; rm /added/up; {LISTING}");
        let listing = stack.containerd.run("localhost/many:1", "c1", &["sh", "-c", &script]).ok();
        assert_rootfs(&many, &Tree::from_listing(&listing.stdout));
    });
}

fn two_names(options: &mut Options) {
    let socket = options.proxies[0].socket.clone();
    options.proxies.push(Proxy { name: "second".into(), socket, ..Proxy::default() });
}

/// SEMANTICS A10
#[test]
fn two_plugin_names_on_one_daemon_keep_apart() {
    with_stack(two_names, |_, stack| {
        let containerd = &stack.containerd;
        containerd.import("default", &image::demo(), DEMO);
        containerd.run_detached(DEMO, "first", &["sleep", "1000"]);
        let second = ["run", "-d", "--snapshotter", "second", DEMO, "second", "sleep", "1000"];
        containerd.ctr(&second).ok();
        let count = |stack: &Stack, name: &str| {
            let all = stack.ask(&["ls"]);
            all.as_array().unwrap().iter().filter(|one| one["snapshotter"] == name).count()
        };
        let full = image::demo().layer_count() + 1;
        assert_eq!((count(stack, Stack::PLUGIN), count(stack, "second")), (full, full));
        containerd.remove("first");
        stack.collect_until("the first's removal", || count(stack, Stack::PLUGIN) == full - 1);
        assert_eq!(count(stack, "second"), full);
        assert_eq!(containerd.exec("second", &["cat", "/data/one"]).ok().text(), "ONE2");
        containerd.ctr(&["images", "rm", DEMO]).ok();
        stack.collect_until("the first's layers to go", || count(stack, Stack::PLUGIN) == 0);
        assert_eq!(count(stack, "second"), full);
        containerd.remove("second");
        stack.collect_until("the rest to go", || count(stack, "second") == 0);
        assert!(stack.directories(stack.daemon.root()).is_empty());
    });
}
