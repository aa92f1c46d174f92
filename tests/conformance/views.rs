//! Looking without changing: views, List and its filters.

use std::fs;

use overstream_testkit::proto::snapshots::ListSnapshotsRequest;

use super::frame::{check, file};

const ROOT: (&str, &str) = ("containerd.io/gc.root", "check-walk");
const ROOTED: &str = r#"labels."containerd.io/gc.root"==check-walk"#;

#[test]
fn walk() {
    check(|suite| {
        let client = &suite.client;
        client.prepare("a-np", "", &[ROOT]).unwrap();
        client.prepare("p-tmp", "", &[ROOT]).unwrap();
        client.commit("p", "p-tmp", &[ROOT]).unwrap();
        client.prepare("a", "p", &[ROOT]).unwrap();
        client.view("v", "p", &[ROOT]).unwrap();
        client.prepare("p-wl-tmp", "", &[ROOT]).unwrap();
        client.commit("p-wl", "p-wl-tmp", &[ROOT, ("l", "1")]).unwrap();
        client.prepare("a-wl", "p-wl", &[ROOT, ("l", "2")]).unwrap();
        client.view("v-wl", "p-wl", &[ROOT, ("l", "3")]).unwrap();
        client.prepare("a-np-wl", "", &[ROOT, ("l", "2")]).unwrap();
        let with_root = |filter: &str| format!("{filter},{ROOTED}");
        let cases: [(&[&str], &[&str]); 10] = [
            (&[ROOTED], &["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"]),
            (&[&with_root("kind==active")], &["a-np", "a", "a-wl", "a-np-wl"]),
            (&[&with_root("kind==view")], &["v", "v-wl"]),
            (&[&with_root("kind==committed")], &["p", "p-wl"]),
            (&["name==p", "name==a-np-wl"], &["p", "a-np-wl"]),
            (&["name==a-wl,labels.l"], &["a-wl"]),
            (&["parent==p"], &["a", "v"]),
            (&[&with_root(r#"parent!="""#)], &["a", "v", "a-wl", "v-wl"]),
            (&["labels.l"], &["p-wl", "a-wl", "v-wl", "a-np-wl"]),
            (&["labels.l==2"], &["a-wl", "a-np-wl"]),
        ];
        for (filters, expected) in cases {
            let found = client.list(filters).unwrap();
            let mut found: Vec<&str> = found.iter().map(|info| info.name.as_str()).collect();
            found.sort_unstable();
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            assert_eq!(found, expected, "{filters:?}");
        }
    });
}

#[test]
fn view_readonly() {
    check(|suite| {
        suite.empty_layer("layer", "");
        let mounted = suite.mount(&suite.view("view", "layer"));
        let error = fs::write(mounted.join("qux"), "qux").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
        mounted.unmount();
        suite.remove("view");
        suite.remove("layer");
    });
}

#[test]
fn stat_in_walk() {
    check(|suite| {
        suite.empty_layer("c1", "");
        suite.empty_layer("c2", "c1");
        let mounted = suite.mount(&suite.prepare("a1", "c2"));
        file(mounted.path(), "foo", "foo", 0o644);
        mounted.unmount();
        suite.view("v1", "c2");
        let client = &suite.client;
        let request =
            ListSnapshotsRequest { snapshotter: "conformance".to_owned(), filters: Vec::new() };
        let mut stream = client.block_on(client.raw().list(request)).unwrap().into_inner();
        let mut seen = 0;
        while let Some(message) = client.block_on(stream.message()).unwrap() {
            for listed in message.info {
                assert_eq!(client.stat(&listed.name).unwrap(), listed);
                seen += 1;
            }
        }
        assert_eq!(seen, 4);
    });
}
