//! Uppers that outlive their containers, and containers that take them back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use overstream_testkit::proto::types::Mount;
use overstream_testkit::{
    Client, Daemon, Output, Registry, Scratch, Stack, Version, block_on, image, limit, mount,
    require_root,
};
use serde_json::Value;
use tonic::Code;

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const DEMO: &str = "localhost/demo:1";
const RETAIN: &str = "containerd.io/snapshot/overstream.retain";
const RESUME: &str = "containerd.io/snapshot/overstream.resume";
const RULES: &str = "[labels]\nallow = [\"retain\", \"resume\"]\n\
                     [[rules]]\nkey = \"^kept\"\nretain = true\nresume = true\n";

fn with_stack(config: &'static str, body: fn(&Scratch, &mut Stack)) {
    limit(Duration::from_secs(240), move || {
        let version = Version::chosen();
        if !version.available() {
            return;
        }
        let scratch = Scratch::new();
        let mut stack = Stack::start(&scratch, version, BINARY, config);
        stack.containerd.import("default", &image::demo(), DEMO);
        body(&scratch, &mut stack);
        stack.stop();
    });
}

/// Runs a shell script in a container that stays until it is removed.
fn run_labelled(stack: &Stack, id: &str, label: (&str, &str), script: &str) -> Output {
    let label = format!("{}={}", label.0, label.1);
    stack.containerd.ctr(&["run", "--snapshotter-label", &label, DEMO, id, "sh", "-c", script])
}

fn retained(stack: &Stack) -> Vec<Value> {
    stack.ask(&["retained"]).as_array().unwrap().clone()
}

/// Removes a container whose upper must stay, and returns its number.
fn remove_and_keep(stack: &Stack, id: &str) -> (String, PathBuf) {
    let upper = stack.upper(id);
    stack.remove(id);
    let found = retained(stack).into_iter().find(|one| one["name"] == id).unwrap();
    assert_eq!(found["upper"].as_str().unwrap(), upper.to_str().unwrap());
    assert_eq!((&found["namespace"], &found["store"]), (&"default".into(), &"root".into()));
    assert_eq!(found["chain"].as_array().unwrap().len(), image::demo().layer_count());
    (found["id"].to_string(), upper)
}

/// SEMANTICS R1, R2.
#[test]
fn an_upper_is_retained_and_resumed_by_label() {
    with_stack(RULES, |_, stack| {
        run_labelled(stack, "c1", (RETAIN, "true"), "echo c1 >/data/new; rm /data/one").ok();
        let (id, upper) = remove_and_keep(stack, "c1");
        let keys = stack.containerd.ctr(&["snapshots", "ls"]).ok().text();
        assert!(keys.lines().skip(1).all(|line| line.starts_with("sha256:")), "{keys}");
        let text = stack.overstream(&["retained"]).ok().text();
        assert!(text.contains("c1") && text.contains(upper.to_str().unwrap()), "{text}");
        stack.restart_daemon();
        stack.containerd.collect_garbage();
        assert_eq!(fs::read(upper.join("data/new")).unwrap(), b"c1\n");

        let errors = run_labelled(stack, "c2", (RESUME, "nothing"), "true").fails().errors();
        assert!(errors.contains("there is no retained upper"), "{errors}");
        let script = "cat /data/new; echo c2 >>/data/new; ls /data/one";
        let output = run_labelled(stack, "c3", (RESUME, "c1"), script);
        assert_eq!((output.text().as_str(), output.code()), ("c1", Some(1)));
        assert_eq!(stack.upper("c3"), upper);
        let why = "took back the retained upper \"c1\", as label overstream.resume asks";
        let shown = stack.overstream(&["mounts", "c3"]).ok().text();
        assert!(shown.contains(why), "{shown}");
        assert!(retained(stack).is_empty());
        assert_eq!(remove_and_keep(stack, "c3").0, id);

        stack.overstream(&["retained", "rm", &id]).ok();
        assert!(retained(stack).is_empty());
        assert!(!upper.exists());
        stack.overstream(&["retained", "rm", &id]).fails();
    });
}

/// SEMANTICS R2, R3.
#[test]
fn an_upper_is_resumed_by_rule_after_the_image_was_pulled_again() {
    with_stack(RULES, |_, stack| {
        let containerd = &stack.containerd;
        let run =
            |image: &str, script: &str| containerd.ctr(&["run", image, "kept", "sh", "-c", script]);
        run(DEMO, "echo kept >/data/new").ok();
        let (id, upper) = remove_and_keep(stack, "kept");
        containerd.ctr(&["images", "rm", DEMO]).ok();
        let root = stack.daemon.root();
        stack.collect_until("the image's layers to go", || {
            stack.directories(root).into_iter().eq([id.clone()])
        });
        containerd.import("default", &image::demo(), DEMO);
        let changed = image::demo().layer(|layer| layer.file("data/more", "more\n"));
        containerd.import("default", &changed, "localhost/changed:1");
        let errors = run("localhost/changed:1", "true").fails().errors();
        assert!(errors.contains("use the image it was made with"), "{errors}");
        assert_eq!(run(DEMO, "cat /data/new").ok().text(), "kept");
        assert_eq!(stack.upper("kept"), upper);
        let why = "took back the retained upper \"kept\", as `resume` in its rule asks (rule 1)";
        let shown = stack.overstream(&["mounts", "kept"]).ok().text();
        assert!(shown.contains(why), "{shown}");
        remove_and_keep(stack, "kept");
        containerd.run(DEMO, "other", &["ls", "/data/new"]).fails();
    });
}

/// SEMANTICS P3.
#[test]
fn labels_need_permission() {
    with_stack("", |_, stack| {
        for label in [(RETAIN, "true"), (RESUME, "c1")] {
            let errors = run_labelled(stack, "c1", label, "true").fails().errors();
            assert!(errors.contains("does not allow this label"), "{errors}");
        }
        let unknown = ("containerd.io/snapshot/overstream.retian", "true");
        let errors = run_labelled(stack, "c1", unknown, "true").fails().errors();
        assert!(errors.contains("there is no such label"), "{errors}");
        // Other labels are none of our business.
        run_labelled(stack, "c2", ("containerd.io/snapshot/other", "x"), "true").ok();
        assert!(retained(stack).is_empty());
    });
}

/// SEMANTICS P1.
#[test]
fn an_image_cannot_choose_by_its_annotations() {
    let config = "[labels]\nallow = [\"retain\", \"resume\", \"volatile\"]\n";
    with_stack(config, |scratch, stack| {
        if !Registry::available() {
            return;
        }
        let mut planted = image::demo().layer(|layer| layer.file("data/planted", "x"));
        for (word, value) in [("retain", "true"), ("resume", "c1"), ("volatile", "1"), ("x", "x")] {
            let name = format!("containerd.io/snapshot/overstream.{word}");
            planted = planted.layer_annotation(&name, value);
        }
        let containerd = &stack.containerd;
        containerd.import("default", &planted, "localhost/planted:1");
        // Only CRI makes labels of annotations in every version.
        let registry = Registry::start(scratch);
        let name = registry.push(containerd, "localhost/planted:1", "planted:1");
        block_on(async { containerd.cri().await.pull(&name).await });
        let all = stack.ask(&["ls"]);
        let mut labelled =
            all.as_array().unwrap().iter().filter(|one| one["labels"][RESUME] == "c1");
        assert_eq!(labelled.next().expect("annotations as labels")["store"], "root");
        let run = ["run", "--rm", &name, "c1", "cat", "/data/planted"];
        assert_eq!(containerd.ctr_in("k8s.io", &run).ok().text(), "x");
        stack.collect_until("the container's removal", || {
            stack.placements().iter().all(|(key, _)| key != "c1")
        });
        assert!(retained(stack).is_empty());
    });
}

fn with_daemon(body: fn(&Scratch, &Client)) {
    limit(Duration::from_secs(60), move || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, BINARY).with_config(RULES);
        daemon.start();
        let client = Client::new(daemon.socket(), Stack::PLUGIN);
        let layer = client.prepare("default/1/extract-1", "", &[]).unwrap();
        fs::write(PathBuf::from(&layer[0].source).join("lower"), "lower").unwrap();
        client.commit(LAYER, "default/1/extract-1", &[]).unwrap();
        body(&scratch, &client);
    });
}

const LAYER: &str =
    "default/2/sha256:0000000000000000000000000000000000000000000000000000000000000001";

fn upper(mounts: &[Mount]) -> PathBuf {
    let upper = |option: &String| option.strip_prefix("upperdir=").map(PathBuf::from);
    mounts[0].options.iter().find_map(upper).unwrap()
}

/// Makes a container's snapshot, writes to it and removes it, so that it is retained.
fn retain(client: &Client, key: &str, text: &str) -> PathBuf {
    let mounts = client.prepare(key, LAYER, &[(RETAIN, "true")]).unwrap();
    fs::write(upper(&mounts).join("text"), text).unwrap();
    client.remove(key).unwrap();
    client.cleanup().unwrap();
    upper(&mounts)
}

/// SEMANTICS R2.
#[test]
fn the_newest_of_several_is_taken_unless_a_number_is_given() {
    with_daemon(|_, client| {
        let old = retain(client, "default/3/c1", "old");
        let new = retain(client, "default/4/c1", "new");
        let number = old.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let resume = |key: &str, name: &str| client.prepare(key, LAYER, &[(RESUME, name)]);
        for name in ["c2", "c1@999", "c1@", "@1", "c1@-1"] {
            let status = resume("default/5/c1", name).unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
        }
        let elsewhere = resume("other/5/c1", "c1").unwrap_err();
        assert_eq!(elsewhere.code(), Code::FailedPrecondition, "{elsewhere}");
        assert_eq!(upper(&resume("default/6/c1", "c1").unwrap()), new);
        let named = resume("default/7/c1", &format!("c1@{number}")).unwrap();
        assert_eq!(upper(&named), old);
        let status = resume("default/8/c1", "c1").unwrap_err();
        assert!(status.message().contains("there is no retained upper"), "{status}");
        let status = resume("default/8/c1", "true").unwrap_err();
        let words = ["overstream.resume=\"true\"", "the value is a name"];
        assert!(words.iter().all(|word| status.message().contains(word)), "{status}");
    });
}

/// SEMANTICS R1, R2.
#[test]
fn an_upper_in_use_or_empty_is_not_offered() {
    with_daemon(|scratch, client| {
        let mounts = client.prepare("default/3/kept", LAYER, &[]).unwrap();
        client.remove("default/3/kept").unwrap();
        client.cleanup().unwrap();
        assert!(!upper(&mounts).exists(), "nothing in it to retain");

        let mounts = client.prepare("default/4/kept", LAYER, &[]).unwrap();
        let mounted = mount(&mounts, scratch.join("mounted"));
        fs::write(mounted.join("text"), "text").unwrap();
        client.remove("default/4/kept").unwrap();
        let status = client.prepare("default/5/kept", LAYER, &[]).unwrap_err();
        assert!(status.message().contains("is still mounted"), "{status}");
        mounted.unmount();
        let status = client.prepare("default/5/kept", "", &[]).unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let again = client.prepare("default/5/kept", LAYER, &[]).unwrap();
        assert_eq!(again, mounts);
        // A view of the same name takes nothing.
        client.view("default/6/kept", LAYER, &[]).unwrap();
    });
}
