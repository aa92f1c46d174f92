//! What becomes of a snapshot: active, committed, removed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use overstream_testkit::Tree;
use overstream_testkit::proto::snapshots::Kind;

use super::frame::{ROOT_LABEL, Suite, check, dir, file, remove};

fn first_layer(root: &Path) {
    file(root, "foo", "foo\n", 0o777);
    for name in ["a", "a/b", "a/b/c"] {
        dir(root, name, 0o755);
    }
}

fn second_layer(root: &Path) {
    file(root, "bar", "bar\n", 0o777);
    file(root, "foo", "foo has changed\n", 0o777);
    remove(root, "a/b");
}

#[test]
fn basic() {
    check(|suite| {
        let (preparing, committed) = (suite.path("preparing"), suite.path("committed"));
        let mounted = suite.mount(&suite.prepare(&preparing, ""));
        first_layer(mounted.path());
        mounted.unmount();
        suite.commit(&committed, &preparing);
        suite.is(&committed, Kind::Committed, "");
        suite.client.stat(&preparing).unwrap_err();

        let (next, next_committed) = (suite.path("next"), suite.path("next-committed"));
        let flat = suite.scratch.dir("flat");
        first_layer(&flat);
        let mounted = suite.mount(&suite.prepare(&next, &committed));
        Tree::read(&flat).assert_same(&Tree::read(mounted.path()), "the next layer");
        second_layer(mounted.path());
        mounted.unmount();
        suite.is(&next, Kind::Active, &committed);
        suite.commit(&next_committed, &next);
        suite.is(&next_committed, Kind::Committed, &committed);
        suite.client.stat(&next).unwrap_err();
        is_listed_as_described(suite, &[&committed, &next_committed]);

        let view = suite.path("view");
        let mounts = suite.view(&view, &next_committed);
        second_layer(&flat);
        suite.shows(&mounts, &flat, "both layers");
        suite.remove(&view);
        let refused = suite.client.remove(&committed).unwrap_err();
        assert!(refused.message().contains("remove"), "{refused}");
        suite.remove(&next_committed);
        suite.remove(&committed);
    });
}

fn is_listed_as_described(suite: &Suite, names: &[&str]) {
    let mut listed = suite.client.list(&[]).unwrap();
    let mut described: Vec<_> = names.iter().map(|name| suite.client.stat(name).unwrap()).collect();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    described.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(listed, described);
}

#[test]
fn stat_active() {
    check(|suite| {
        let key = suite.path("preparing");
        suite.mount(&suite.prepare(&key, "")).unmount();
        suite.is(&key, Kind::Active, "");
    });
}

#[test]
fn stat_committed() {
    check(|suite| {
        let (key, name) = (suite.path("preparing"), suite.path("committed"));
        suite.mount(&suite.prepare(&key, "")).unmount();
        suite.commit(&name, &key);
        suite.is(&name, Kind::Committed, "");
    });
}

#[test]
fn transitivity() {
    check(|suite| {
        let (a, b) = (suite.path("a"), suite.path("b"));
        let mut parent = String::new();
        for (name, content) in [(&a, "first"), (&b, "second")] {
            let key = suite.path("preparing");
            let mounted = suite.mount(&suite.prepare(&key, &parent));
            file(mounted.path(), "foo", content, 0o777);
            mounted.unmount();
            suite.commit(name, &key);
            parent.clone_from(name);
        }
        suite.is(&a, Kind::Committed, "");
        let above = suite.is(&b, Kind::Committed, &a);
        suite.is(&above.parent, Kind::Committed, "");
    });
}

#[test]
fn prepare_view_failing() {
    check(|suite| {
        let base = suite.path("base");
        suite.empty_layer(&base, "");
        let (k1, k2, k3) = (suite.path("k1"), suite.path("k2"), suite.path("k3"));
        let labels = &[ROOT_LABEL];
        suite.prepare(&k1, &base);
        suite.client.view(&k1, &base, labels).unwrap_err();
        suite.prepare(&k2, "");
        suite.client.prepare(&k2, "", labels).unwrap_err();
        suite.view(&k3, &base);
        suite.client.view(&k3, &base, labels).unwrap_err();
    });
}

#[test]
fn remove_makes_keys_and_names_free_at_once() {
    check(|suite| {
        suite.empty_layer("committed-1", "");
        suite.prepare("reuse-1", "committed-1");
        suite.remove("reuse-1");
        suite.view("reuse-1", "committed-1");
        suite.remove("reuse-1");
        suite.prepare("reuse-1", "");
        suite.remove("committed-1");
        suite.commit("committed-1", "reuse-1");
    });
}

#[test]
fn remove_intermediate_snapshot() {
    check(|suite| {
        let (base, intermediate, top) =
            (suite.path("base"), suite.path("intermediate"), suite.path("top"));
        suite.mount(&suite.prepare("base-key", "")).unmount();
        suite.commit(&base, "base-key");
        suite.empty_layer(&intermediate, &base);
        suite.mount(&suite.prepare(&top, &intermediate)).unmount();
        suite.client.remove(&intermediate).unwrap_err();
        for name in [&top, &intermediate, &base] {
            suite.remove(name);
        }
    });
}

#[test]
fn close_twice() {
    check(|suite| {
        suite.empty_layer("committed", "");
        suite.remove("committed");
        // A client of this service has nothing to close but its connection.
        for _ in 0..2 {
            drop(suite.client.raw());
        }
        assert!(suite.client.list(&[]).unwrap().is_empty());
    });
}

#[test]
fn root_permission() {
    check(|suite| {
        let mounted = suite.mount(&suite.prepare("root-permission", ""));
        let mode = fs::metadata(mounted.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        mounted.unmount();
    });
}
