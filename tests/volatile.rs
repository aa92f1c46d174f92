//! Uppers that are never synced, and so are good for one boot only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Client, Daemon, Scratch, Stack, Version, image, limit, mount, require_root, try_mount, wait_for,
};
use tonic::Code;

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const DEMO: &str = "localhost/demo:1";
const VOLATILE: &str = "containerd.io/snapshot/overstream.volatile";
const RULES: &str = "[labels]\nallow = [\"volatile\", \"retain\", \"resume\"]\n\
                     [[rules]]\nnamespace = \"default\"\nvolatile = true\n";
const LAYER: &str =
    "default/2/sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn with_daemon(body: fn(&Scratch, Daemon)) {
    limit(Duration::from_secs(60), move || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, BINARY).with_config(RULES);
        daemon.start();
        let client = client(&daemon);
        let layer = client.prepare("default/1/extract-1", "", &[]).unwrap();
        fs::write(PathBuf::from(&layer[0].source).join("lower"), "lower").unwrap();
        client.commit(LAYER, "default/1/extract-1", &[]).unwrap();
        drop(client);
        body(&scratch, daemon);
    });
}

fn client(daemon: &Daemon) -> Client {
    Client::new(daemon.socket(), Stack::PLUGIN)
}

fn is_volatile(mounts: &[Mount]) -> bool {
    mounts[0].options.iter().any(|option| option == "volatile")
}

fn option(mounts: &[Mount], name: &str) -> PathBuf {
    mounts[0].options.iter().find_map(|option| option.strip_prefix(name)).unwrap().into()
}

/// The mark that the kernel puts into the workdir of a volatile overlay.
fn mark(mounts: &[Mount]) -> PathBuf {
    option(mounts, "workdir=").join("work/incompat/volatile")
}

/// SEMANTICS V1.
#[test]
fn only_containers_are_volatile() {
    with_daemon(|_, daemon| {
        let client = client(&daemon);
        let label = [(VOLATILE, "true")];
        assert!(is_volatile(&client.prepare("default/3/c", LAYER, &[]).unwrap()));
        assert!(is_volatile(&client.mounts("default/3/c").unwrap()));
        assert!(!is_volatile(&client.view("default/4/v", LAYER, &label).unwrap()));
        let extract = client.prepare("default/5/extract-5-x", LAYER, &label).unwrap();
        assert!(!is_volatile(&extract));
        assert!(!is_volatile(&client.prepare("default/6/c", "", &[]).unwrap()));
        assert!(!is_volatile(&client.prepare("other/7/c", LAYER, &[]).unwrap()));
        assert!(is_volatile(&client.prepare("other/8/c", LAYER, &label).unwrap()));
        let off = client.prepare("default/9/c", LAYER, &[(VOLATILE, "false")]).unwrap();
        assert!(!is_volatile(&off));
        for word in ["retain", "resume"] {
            let other = format!("containerd.io/snapshot/overstream.{word}");
            let labels = [(other.as_str(), "true")];
            let status = client.prepare("default/10/c", LAYER, &labels).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(status.message().contains("may be lost in a crash"), "{status}");
        }
    });
}

/// SEMANTICS V2.
#[test]
fn an_upper_is_mounted_again_once_nothing_uses_it() {
    with_daemon(|scratch, mut daemon| {
        let client = client(&daemon);
        let mounts = client.prepare("default/3/c", LAYER, &[]).unwrap();
        let target = scratch.join("target");
        let mounted = mount(&mounts, &target);
        fs::write(mounted.join("new"), "new").unwrap();
        assert!(mark(&mounts).exists());
        // In use: the mark protects the upper from a second mount.
        assert_eq!(client.mounts("default/3/c").unwrap(), mounts);
        assert!(mark(&mounts).exists());
        mounted.unmount();
        try_mount(&mounts, &target).expect_err("the kernel refuses a marked workdir");
        assert_eq!(client.mounts("default/3/c").unwrap(), mounts);
        assert!(!mark(&mounts).exists());
        let mounted = mount(&mounts, &target);
        assert_eq!(fs::read(mounted.join("new")).unwrap(), b"new");
        drop(client);
        daemon.kill();
        daemon.start();
        let client = self::client(&daemon);
        client.mounts("default/3/c").unwrap();
        assert!(mark(&mounts).exists());
        mounted.unmount();

        let again = client.mounts("default/3/c").unwrap();
        mount(&again, &target).unmount();
        client.commit("default/4/committed", "default/3/c", &[]).unwrap();
        let child = client.prepare("other/5/child", "default/4/committed", &[]).unwrap();
        let mounted = mount(&child, &target);
        assert_eq!(fs::read(mounted.join("new")).unwrap(), b"new");
        mounted.unmount();
    });
}

/// Makes every volatile upper one of an earlier boot.
fn reboot(root: &Path) {
    let database = rusqlite::Connection::open(root.join("metadata.db")).unwrap();
    let statement =
        "UPDATE snapshots SET volatile_boot = 'earlier' WHERE volatile_boot IS NOT NULL";
    assert!(database.execute(statement, []).unwrap() > 0);
}

/// SEMANTICS V2.
#[test]
fn an_upper_of_an_earlier_boot_is_refused() {
    with_daemon(|scratch, mut daemon| {
        let client = client(&daemon);
        let [used, unused] = ["used", "unused"].map(|name| format!("default/3/{name}"));
        let mounts = client.prepare(&used, LAYER, &[]).unwrap();
        client.prepare(&unused, LAYER, &[]).unwrap();
        client.prepare("other/4/kept", LAYER, &[]).unwrap();
        mount(&mounts, scratch.join("target")).unmount();
        drop(client);
        daemon.stop();
        reboot(daemon.root());
        daemon.start();
        let client = self::client(&daemon);
        for key in [&used, &unused] {
            for status in [
                client.mounts(key).unwrap_err(),
                client.commit("default/5/committed", key, &[]).unwrap_err(),
            ] {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains("create it anew"), "{status}");
            }
        }
        assert!(mark(&mounts).exists());
        client.mounts("other/4/kept").unwrap();
        for key in [&used, &unused] {
            client.usage(key).unwrap();
            client.remove(key).unwrap();
        }
        client.cleanup().unwrap();
        assert!(!option(&mounts, "upperdir=").exists());
        assert!(is_volatile(&client.prepare(&used, LAYER, &[]).unwrap()));
    });
}

/// SEMANTICS V2.
#[test]
fn a_container_is_started_again() {
    limit(Duration::from_secs(120), || {
        let version = Version::chosen();
        if !version.available() {
            return;
        }
        let scratch = Scratch::new();
        let stack = Stack::start(&scratch, version, BINARY, RULES);
        let containerd = &stack.containerd;
        containerd.import("default", &image::demo(), DEMO);
        assert!(stack.ask(&["ls"]).as_array().unwrap().iter().all(|one| one["volatile"] == false));
        containerd.run_detached(DEMO, "c1", &["sleep", "1000"]);
        let mounts = stack.mounts("c1");
        assert!(is_volatile(&mounts) && mark(&mounts).exists());
        containerd.exec("c1", &["sh", "-c", "echo 1 >/data/new"]).ok();
        let diff = containerd.ctr(&["snapshots", "diff", "c1"]).ok().stdout;
        containerd.import("default", &image::demo().archived_layer(diff), "localhost/new:1");
        assert_eq!(containerd.run("localhost/new:1", "c2", &["cat", "/data/new"]).ok().text(), "1");

        for _ in 0..2 {
            containerd.ctr(&["tasks", "kill", "-s", "KILL", "c1"]).ok();
            wait_for("the container's end", Duration::from_secs(20), || {
                containerd.ctr(&["tasks", "rm", "c1"]);
                !containerd.ctr(&["tasks", "ls"]).ok().text().contains("c1")
            });
            containerd.ctr(&["tasks", "start", "-d", "c1"]).ok();
            // On a busy host ctr can end before it has copied what the process printed.
            wait_for("what was written before", Duration::from_secs(10), || {
                containerd.exec("c1", &["cat", "/data/new"]).ok().text() == "1"
            });
        }
        stack.stop();
    });
}
