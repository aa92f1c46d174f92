use std::time::Duration;

use overstream_testkit::{
    Containerd, Options, Proxy, Registry, Scratch, Version, block_on, image, limit,
};

const DEMO: &str = "localhost/demo:1";

fn an_image_goes_to_the_registry_and_back(version: Version) {
    limit(Duration::from_secs(300), move || {
        if !version.available() || !Registry::available() {
            return;
        }
        let scratch = Scratch::new();
        let registry = Registry::start(&scratch);
        let options = || Options { version, ..Options::default() };
        let source = Containerd::start_named(&scratch, "source", options());
        source.import("default", &image::demo(), DEMO);
        let name = registry.push(&source, DEMO, "demo:1");
        source.stop();

        let target = Containerd::start_named(&scratch, "target", options());
        registry.pull(&target, "default", &name);
        assert_eq!(target.run(&name, "cat", &["cat", "/data/one"]).ok().text(), "ONE2");
        block_on(async {
            target.cri().await.pull(&name).await;
        });
        let images = target.ctr_in("k8s.io", &["images", "ls", "-q"]).ok().text();
        assert!(images.lines().any(|image| image == name), "{images}");
        target.stop();
    });
}

#[test]
fn an_image_goes_to_the_registry_and_back_system() {
    an_image_goes_to_the_registry_and_back(Version::System);
}

#[test]
fn an_image_goes_to_the_registry_and_back_1_7() {
    an_image_goes_to_the_registry_and_back(Version::V1_7);
}

#[test]
fn an_image_goes_to_the_registry_and_back_2() {
    an_image_goes_to_the_registry_and_back(Version::V2);
}

#[test]
fn a_proxy_plugin_is_configured_in_every_version() {
    limit(Duration::from_secs(300), || {
        for version in Version::ALL.into_iter().filter(|version| version.available()) {
            let scratch = Scratch::new();
            let proxy = Proxy {
                name: "over".into(),
                socket: scratch.join("over.sock"),
                exports_root: Some(scratch.join("over")),
                capabilities: vec!["remap-ids".into()],
            };
            let proxies = vec![proxy];
            let snapshotter = "over".into();
            let options = Options { version, proxies, snapshotter, ..Options::default() };
            let containerd = Containerd::start(&scratch, options);
            let plugins = containerd.ctr(&["plugins", "ls"]).ok().text();
            for (kind, name) in
                [("io.containerd.snapshotter.v1", "over"), ("io.containerd.grpc.v1", "cri")]
            {
                let words = plugins.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                let mut found = words.filter(|words| words[0] == kind && words[1] == name);
                assert_eq!(
                    found.next().and_then(|words| words.last().copied()),
                    Some("ok"),
                    "{plugins}"
                );
            }
            let root = scratch.join("over").display().to_string();
            let image_root = block_on(async {
                let info = containerd.cri().await.image_fs_info().await;
                info.image_filesystems[0].fs_id.clone().unwrap().mountpoint
            });
            assert_eq!(image_root == root, version != Version::System, "{version}: {image_root}");
            containerd.stop();
        }
    });
}
