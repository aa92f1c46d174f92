//! Pods whose containers write to a volume: through CRI, as kubelet calls it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use overstream_testkit::{
    Cri, FsKind, LoopFs, PAUSE, Pod, Scratch, Stack, Version, block_on, image, limit, wait_for,
};

use super::{BINARY, DEMO, SLEEP};

/// Enough for a process to end on a busy host.
const END: Duration = Duration::from_secs(20);

/// A store for volumes that are mounted where kubelet would, and a rule for pods.
pub(super) fn config(scratch: &Scratch, more: &str) -> String {
    format!(
        "[stores.pod]\ntype = \"volume\"\n\
         match = '^{}/pods/(?P<pod>[^/]+)/volumes/[^/]+$'\n\
         [[rules]]\nnamespace = \"k8s.io\"\nstore = \"pod\"\nvolume = {{ pod = \"{{pod.uid}}\" }}\n{more}\n",
        scratch.path().display()
    )
}

/// Makes and mounts a pod's volume.
pub(super) fn volume(scratch: &Scratch, uid: &str) -> LoopFs {
    scratch.dir(format!("pods/{uid}/volumes"));
    LoopFs::new(scratch, &format!("pods/{uid}/volumes/rootfs"), FsKind::Ext4, 16)
}

fn with_pods(more: &'static str, body: fn(&Scratch, &mut Stack)) {
    limit(Duration::from_secs(240), move || {
        let version = Version::chosen();
        if !version.available() || !FsKind::Ext4.available() {
            return;
        }
        let scratch = Scratch::new();
        let mut stack = Stack::start(&scratch, version, BINARY, &config(&scratch, more));
        stack.containerd.import("k8s.io", &image::pause(), PAUSE);
        stack.containerd.import("k8s.io", &image::demo(), DEMO);
        body(&scratch, &mut stack);
        stack.stop();
    });
}

async fn run_pod(cri: &mut Cri, uid: &str) -> Pod {
    cri.run_pod("web", uid, "shop", &[], &[]).await
}

async fn create(cri: &mut Cri, pod: &Pod, name: &str) -> String {
    cri.create_container(pod, name, DEMO, &SLEEP, &[], &[]).await
}

async fn start(cri: &mut Cri, pod: &Pod, name: &str) -> String {
    let container = create(cri, pod, name).await;
    cri.start(&container).await;
    container
}

async fn shell(cri: &mut Cri, container: &str, script: &str) -> String {
    let output = cri.exec_sync(container, &["sh", "-c", script]).await;
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout.trim_end().to_owned()
}

/// Starts a container that must be refused, and removes it.
async fn refused(cri: &mut Cri, pod: &Pod, name: &str, image: &str, words: &str) {
    let container = cri.create_container(pod, name, image, &SLEEP, &[], &[]).await;
    let status = cri.try_start(&container).await.unwrap_err();
    assert!(status.message().contains(words), "{words:?} is not in: {status}");
    cri.remove(&container).await;
}

fn place(stack: &Stack, key: &str) -> (String, String, String) {
    let snapshot = &stack.explain(key)["snapshot"];
    let text = |field: &str| snapshot[field].as_str().unwrap().to_owned();
    (text("store"), text("placement"), text("upper"))
}

fn on_volume(volume: &LoopFs, name: &str) -> (String, String, String) {
    let upper = volume.join(format!("overstream/{name}/fs")).display().to_string();
    ("pod".to_owned(), "placed".to_owned(), upper)
}

/// Kills a container's first process, as a crash does.
fn crash(stack: &Stack, container: &str) {
    let containerd = &stack.containerd;
    containerd.ctr_in("k8s.io", &["tasks", "kill", "-s", "KILL", container]).ok();
    let upper = PathBuf::from(place(stack, container).2);
    wait_for("the container's end", END, || !is_mounted(&upper));
}

/// Tells whether an overlay has this upper.
fn is_mounted(upper: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!("upperdir={}", upper.display()))
}

/// SEMANTICS P6, P7, P8, P9.
#[test]
fn what_a_pod_wrote_outlives_its_containers() {
    with_pods("", |scratch, stack| {
        let volume = volume(scratch, "uid-1");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = run_pod(&mut cri, "uid-1").await;
            let (store, placement, _) = place(stack, &pod.id);
            assert_eq!((store.as_str(), placement.as_str()), ("root", "placed"), "the sandbox");
            let first = create(&mut cri, &pod, "app").await;
            assert_eq!(place(stack, &first).1, "pending");
            cri.start(&first).await;
            let other = start(&mut cri, &pod, "other").await;
            assert_eq!(place(stack, &first), on_volume(&volume, "app"));
            assert_eq!(place(stack, &other), on_volume(&volume, "other"));
            shell(&mut cri, &first, "echo app >/data/who; rm /data/one; mv /data/4k /k").await;
            shell(&mut cri, &other, "echo other >/data/who").await;

            // A restarted container is prepared while the dead one still exists.
            crash(stack, &first);
            let second = start(&mut cri, &pod, "app").await;
            let script = "cat /data/who; ls /data/one /data/4k 2>/dev/null; wc -c </k";
            assert_eq!(shell(&mut cri, &second, script).await, "app\n4096");
            assert_eq!(place(stack, &second), on_volume(&volume, "app"));
            assert_eq!(place(stack, &first).1, "moved");
            let list = stack.overstream(&["ls"]).ok().text();
            let line = list.lines().find(|line| line.contains(&first)).unwrap();
            assert!(line.contains("(moved)"), "{line}");
            cri.remove(&first).await;
            stack.collect_until("the dead container's removal", || {
                stack.placements().iter().all(|(key, _)| *key != first)
            });
            assert_eq!(shell(&mut cri, &second, "cat /data/who").await, "app");

            cri.stop_pod(&pod).await;
            cri.remove_pod(&pod).await;
            stack.collect_until("the pod's removal", || {
                stack.placements().iter().all(|(key, _)| key.starts_with("sha256:"))
            });
            let retained = stack.ask(&["retained"]);
            assert_eq!(retained.as_array().unwrap().len(), 2, "{retained}");

            let pod = run_pod(&mut cri, "uid-1").await;
            let third = start(&mut cri, &pod, "app").await;
            assert_eq!(shell(&mut cri, &third, script).await, "app\n4096");
            assert_eq!(stack.ask(&["retained"]).as_array().unwrap().len(), 1);
        });
    });
}

/// SEMANTICS P9.
#[test]
fn an_upper_is_not_taken_from_a_live_container_nor_put_on_other_layers() {
    with_pods("", |scratch, stack| {
        let volume = volume(scratch, "uid-1");
        let changed = image::demo().layer(|layer| layer.file("data/more", "more\n"));
        stack.containerd.import("k8s.io", &changed, "localhost/changed:1");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = run_pod(&mut cri, "uid-1").await;
            let first = start(&mut cri, &pod, "app").await;
            shell(&mut cri, &first, "echo app >/data/who").await;
            refused(&mut cri, &pod, "app", DEMO, "still has it mounted").await;
            stack.restart_daemon();
            refused(&mut cri, &pod, "app", DEMO, "still has it mounted").await;
            assert_eq!(shell(&mut cri, &first, "cat /data/who").await, "app");
            assert_eq!(place(stack, &first), on_volume(&volume, "app"));

            crash(stack, &first);
            refused(&mut cri, &pod, "app", "localhost/changed:1", "it belongs on layer").await;
            let who = volume.join("overstream/app/fs/data/who");
            assert_eq!(std::fs::read(who).unwrap(), b"app\n");
            let second = start(&mut cri, &pod, "app").await;
            assert_eq!(shell(&mut cri, &second, "cat /data/who").await, "app");
        });
    });
}

/// SEMANTICS P6, P11.
#[test]
fn pods_get_their_own_volume_or_none() {
    with_pods("", |scratch, stack| {
        let [one, two] = ["uid-1", "uid-2"].map(|uid| volume(scratch, uid));
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let mut pods = Vec::new();
            for uid in ["uid-1", "uid-2", "uid-3"] {
                pods.push(run_pod(&mut cri, uid).await);
            }
            for (uid, pod, volume) in [("uid-2", &pods[1], &two), ("uid-1", &pods[0], &one)] {
                let container = start(&mut cri, pod, "app").await;
                shell(&mut cri, &container, &format!("echo {uid} >/data/who")).await;
                assert_eq!(place(stack, &container), on_volume(volume, "app"));
                let who = volume.join("overstream/app/fs/data/who");
                assert_eq!(std::fs::read_to_string(who).unwrap().trim(), uid);
            }
            refused(&mut cri, &pods[2], "app", DEMO, "no mount of this host matches").await;
            let volume = volume(scratch, "uid-3");
            let container = start(&mut cri, &pods[2], "app").await;
            assert_eq!(place(stack, &container), on_volume(&volume, "app"));
        });
        let run = ["run", "--rm", DEMO, "nobodys", "true"];
        let errors = stack.containerd.ctr_in("k8s.io", &run).fails().errors();
        assert!(errors.contains("containerd does not know the container's pod.uid"), "{errors}");
    });
}

/// SEMANTICS P6.
#[test]
fn the_next_rule_decides_where_that_is_allowed() {
    with_pods("otherwise = \"next\"", |scratch, stack| {
        let volume = volume(scratch, "uid-1");
        let run = ["run", "--rm", DEMO, "nobodys", "cat", "/data/one"];
        assert_eq!(stack.containerd.ctr_in("k8s.io", &run).ok().text(), "ONE2");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = run_pod(&mut cri, "uid-2").await;
            let container = start(&mut cri, &pod, "app").await;
            let (store, placement, upper) = place(stack, &container);
            assert_eq!((store.as_str(), placement.as_str()), ("root", "placed"));
            assert!(Path::new(&upper).starts_with(stack.daemon.root()));
            shell(&mut cri, &container, "echo 1 >/data/new").await;
            let pod = run_pod(&mut cri, "uid-1").await;
            let container = start(&mut cri, &pod, "app").await;
            assert_eq!(place(stack, &container), on_volume(&volume, "app"));
        });
    });
}

/// SEMANTICS P8.
#[test]
fn an_image_that_cri_reads_before_it_knows_the_container_runs() {
    with_pods("", |scratch, stack| {
        let volume = volume(scratch, "uid-1");
        // For the user's number, and for what the volume starts with.
        let image = image::demo().user("demo").volume("/opaque");
        stack.containerd.import("k8s.io", &image, "localhost/user:1");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = run_pod(&mut cri, "uid-1").await;
            let image = "localhost/user:1";
            let container = cri.create_container(&pod, "app", image, &SLEEP, &[], &[]).await;
            cri.start(&container).await;
            let script = "id -un; cat /opaque/up; echo 1 >/tmp/new";
            assert_eq!(shell(&mut cri, &container, script).await, "demo\nup");
            assert_eq!(place(stack, &container), on_volume(&volume, "app"));
            assert!(volume.join("overstream/app/fs/tmp/new").is_file());
        });
    });
}

/// SEMANTICS P6, P8.
#[test]
fn the_daemon_may_die_under_pods() {
    with_pods("retain = false", |scratch, stack| {
        let volume = volume(scratch, "uid-1");
        block_on(async {
            let mut cri = stack.containerd.cri().await;
            let pod = run_pod(&mut cri, "uid-1").await;
            let running = start(&mut cri, &pod, "running").await;
            let created = create(&mut cri, &pod, "created").await;
            stack.daemon.kill();
            shell(&mut cri, &running, "echo 1 >/data/new").await;
            stack.daemon.start();
            stack.wait_connected();
            cri.start(&created).await;
            assert_eq!(shell(&mut cri, &created, "cat /data/one").await, "ONE2");
            assert_eq!(place(stack, &running), on_volume(&volume, "running"));
            assert_eq!(place(stack, &created), on_volume(&volume, "created"));
            cri.stop_pod(&pod).await;
            cri.remove_pod(&pod).await;
        });
        // This rule keeps nothing.
        stack.collect_until("the pod's uppers to go", || {
            volume.join("overstream").read_dir().unwrap().count() == 0
        });
    });
}
