//! Containers in a user namespace: layers mapped by the kernel, or copied with other owners.

use std::os::unix::fs::MetadataExt;

use overstream_testkit::{Options, Stack, Version, image, not_run};

use super::{DEMO, as_it_is, with_stack};

/// Host id of the container's root.
const BASE: u32 = 100_000;
const MAPS: [&str; 4] = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];

fn run_mapped(stack: &Stack, more: &[&str]) {
    stack.containerd.import("default", &image::demo(), DEMO);
    let arguments = [&["run", "-d"], &MAPS[..], more, &[DEMO, "c1", "sleep", "1000"]].concat();
    stack.containerd.ctr(&arguments).ok();
    let script = "cat /proc/self/uid_map; stat -c '%u %g' /bin/busybox /data/owned; echo x >/data/new; \
                  chown 5:6 /data/owned";
    let text = stack.containerd.exec("c1", &["sh", "-c", script]).ok().text();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "0", "1000", "1001"]);
    let upper = stack.upper("c1");
    let owner = |name: &str| {
        let found = upper.join(name).metadata().unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(owner("data/new"), (BASE, BASE));
    assert_eq!(owner("data/owned"), (BASE + 5, BASE + 6));
    assert_eq!(owner(""), (BASE, BASE));
}

/// SEMANTICS M4.
#[test]
fn ids_are_mapped_by_copying_layers() {
    with_stack(as_it_is, |_, stack| {
        run_mapped(stack, &[]);
        let mounts = stack.explain("c1")["mounts"].to_string();
        assert!(!mounts.contains("uidmap="), "{mounts}");
        stack.remove("c1");
    });
}

fn remapping(options: &mut Options) {
    options.proxies[0].capabilities.push("remap-ids".to_owned());
}

/// SEMANTICS M4.
#[test]
fn ids_are_mapped_by_the_kernel() {
    // Older versions pass the labels on but cannot mount what they ask for.
    if Version::chosen() != Version::V2 {
        not_run("containerd-2", "OVERSTREAM_CONTAINERD=2.x chooses it");
        return;
    }
    with_stack(remapping, |_, stack| {
        run_mapped(stack, &["--remap-labels"]);
        let mounts = stack.explain("c1")["mounts"].to_string();
        assert!(mounts.contains("uidmap=0:100000:65536"), "{mounts}");
        assert_eq!(stack.directories(stack.daemon.root()).len(), image::demo().layer_count() + 1);
        stack.remove("c1");
    });
}
