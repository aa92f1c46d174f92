//! Pods through CRI on our plugin; `OVERSTREAM_CONTAINERD` chooses containerd's version.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use overstream_testkit::{Cri, PAUSE, Registry, Scratch, Stack, Version, block_on, image, limit};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const DEMO: &str = "localhost/demo:1";
const SLEEP: [&str; 2] = ["sleep", "1000"];
/// containerd measures every 10 s.
const MEASURED: Duration = Duration::from_secs(40);

fn with_stack(body: fn(&Scratch, &mut Stack)) {
    limit(Duration::from_secs(240), move || {
        let version = Version::chosen();
        if !version.available() {
            return;
        }
        let scratch = Scratch::new();
        let mut stack = Stack::start(&scratch, version, BINARY, "");
        stack.containerd.import("k8s.io", &image::pause(), PAUSE);
        body(&scratch, &mut stack);
        stack.stop();
    });
}

async fn wait_for_bytes(cri: &mut Cri, container: &str, bytes: u64) {
    let begin = Instant::now();
    loop {
        let layer = cri.writable_layer(container).await;
        let used = layer.as_ref().and_then(|layer| layer.used_bytes).map_or(0, |used| used.value);
        if used >= bytes {
            assert!(layer.unwrap().inodes_used.unwrap().value >= 2);
            return;
        }
        assert!(begin.elapsed() < MEASURED, "the writable layer uses {used} of {bytes} bytes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn a_pod_runs_and_leaves_nothing() {
    with_stack(|_, stack| {
        // CRI looks the name up in the image before it stores the container.
        stack.containerd.import("k8s.io", &image::demo().user("demo"), DEMO);
        let layers = stack.directories(stack.daemon.root());
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = cri.run_pod("web", "uid-1", "shop", &[], &[]).await;
            let container = cri.create_container(&pod, "main", DEMO, &SLEEP, &[], &[]).await;
            cri.start(&container).await;
            let script = "id -un; cat /data/one; echo e >&2; exit 3";
            let output = cri.exec_sync(&container, &["sh", "-c", script]).await;
            let found = (output.stdout.as_str(), output.stderr.as_str(), output.code);
            assert_eq!(found, ("demo\nONE2\n", "e\n", 3));
            let copy = cri.exec_sync(&container, &["cp", "/data/1m", "/tmp/copy"]).await;
            assert_eq!(copy.code, 0, "{copy:?}");
            wait_for_bytes(&mut cri, &container, 1 << 20).await;
            // Its own container has the pod's other layer.
            assert_eq!(stack.directories(stack.daemon.root()).len(), layers.len() + 2);

            cri.stop(&container).await;
            assert!(stack.upper(&container).join("tmp/copy").is_file());
            cri.remove(&container).await;
            cri.stop_pod(&pod).await;
            cri.remove_pod(&pod).await;
        });
        stack.collect_until("the containers' directories to go", || {
            stack.directories(stack.daemon.root()) == layers
        });
    });
}

#[test]
fn an_image_is_pulled_from_a_registry() {
    with_stack(|scratch, stack| {
        if !Registry::available() {
            return;
        }
        let registry = Registry::start(scratch);
        stack.containerd.import("default", &image::demo(), DEMO);
        let name = registry.push(&stack.containerd, DEMO, "demo:1");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            cri.pull(&name).await;
            let pod = cri.run_pod("web", "uid-1", "shop", &[], &[]).await;
            let container = cri.create_container(&pod, "main", &name, &SLEEP, &[], &[]).await;
            cri.start(&container).await;
            assert_eq!(cri.exec_sync(&container, &["cat", "/data/one"]).await.stdout, "ONE2\n");
        });
    });
}
