//! Labels and times.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use overstream_testkit::proto::snapshots::{Info, Kind};
use tonic::Code;

use super::frame::{ROOT_LABEL, Suite, check};

type Nanoseconds = i128;

fn now() -> Nanoseconds {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

fn time(stamp: Option<prost_types::Timestamp>) -> Nanoseconds {
    let stamp = stamp.expect("a time");
    Nanoseconds::from(stamp.seconds) * 1_000_000_000 + Nanoseconds::from(stamp.nanos)
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn given(name: &str, pairs: &[(&str, &str)]) -> Info {
    Info { name: name.to_owned(), labels: labels(pairs), ..Info::default() }
}

#[test]
fn update() {
    check(|suite| {
        let began = now();
        suite.empty_layer("c1", "");
        suite.empty_layer("c2", "c1");
        suite.prepare("a1", "c2");
        suite.prepare("a2", "");
        suite.view("v1", "c2");
        suite.view("v2", "");
        let ended = now();
        let all = [
            ("c1", Kind::Committed, ""),
            ("c2", Kind::Committed, "c1"),
            ("a1", Kind::Active, "c2"),
            ("a2", Kind::Active, ""),
            ("v1", Kind::View, "c2"),
            ("v2", Kind::View, ""),
        ];
        for (name, kind, parent) in all {
            let info = suite.is(name, kind, parent);
            let created = time(info.created_at);
            assert!((began..=ended).contains(&created), "{name}: created {created}");
            assert_eq!(info.created_at, info.updated_at, "{name}");
            replaces_all_labels(suite, &info);
            changes_single_labels(suite, &info);
            refuses_other_fields(suite, name);
        }
    });
}

fn replaces_all_labels(suite: &Suite, before: &Info) {
    let wanted = [("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ROOT_LABEL];
    let mut info = given(&before.name, &wanted);
    info.parent = "doesnotexist".to_owned();
    let began = now();
    let updated = suite.client.update(info, &[]).unwrap();
    let ended = now();
    assert!((began..=ended).contains(&time(updated.updated_at)), "{updated:?}");
    let expected =
        Info { labels: labels(&wanted), updated_at: updated.updated_at, ..before.clone() };
    assert_eq!(updated, expected);
    assert_eq!(suite.client.stat(&before.name).unwrap(), expected);
}

fn changes_single_labels(suite: &Suite, before: &Info) {
    let update = |pairs: &[(&str, &str)], paths: &[&str]| {
        suite.client.update(given(&before.name, pairs), paths).unwrap().labels
    };
    let found = update(&[("l1", "updated"), ("l4", "v4")], &["labels.l1", "labels.l2"]);
    assert_eq!(found, labels(&[("l1", "updated"), ("l3", "v3"), ROOT_LABEL]));
    let found = update(&[("l4", "v4"), ROOT_LABEL], &["labels"]);
    assert_eq!(found, labels(&[("l4", "v4"), ROOT_LABEL]));
}

fn refuses_other_fields(suite: &Suite, name: &str) {
    let before = suite.client.stat(name).unwrap();
    let mut info = given(name, &[("l5", "v5")]);
    info.parent = "doesnotexist".to_owned();
    let refused = suite.client.update(info, &["parent"]).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(suite.client.stat(name).unwrap(), before);
}
