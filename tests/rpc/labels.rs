//! Labels, masks and times.

use std::collections::HashMap;

use overstream_testkit::proto::snapshots::Info;

use super::frame::{Bed, serve, serve_as, update_of};

const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

fn sorted(labels: &HashMap<String, String>) -> Vec<(&str, &str)> {
    let mut labels: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    labels.sort_unstable();
    labels
}

fn nanoseconds(time: Option<prost_types::Timestamp>) -> i64 {
    let time = time.expect("a time");
    time.seconds * 1_000_000_000 + i64::from(time.nanos)
}

/// SEMANTICS A6
#[test]
fn labels_with_an_empty_value_are_dropped() {
    serve(|bed| {
        bed.client.prepare("a", "", &[("k", "v"), ("empty", "")]).unwrap();
        assert_eq!(sorted(&bed.client.stat("a").unwrap().labels), [("k", "v")]);
        let updated = bed.client.update(update_of("a", &[("k", ""), ("l", "w")]), &[]).unwrap();
        assert_eq!(sorted(&updated.labels), [("l", "w")]);
        bed.client.commit("c", "a", &[("m", "x"), ("n", "")]).unwrap();
        // Those of the active snapshot do not pass on.
        assert_eq!(sorted(&bed.client.stat("c").unwrap().labels), [("m", "x")]);
    });
}

/// SEMANTICS A5
#[test]
fn a_mask_picks_labels() {
    const ODD: &str = "containerd.io/snapshot/a.b/c";
    serve(|bed| {
        bed.layer("c", "");
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [(&'a str, &'a str)]);
        let steps: [Case<'_>; 9] = [
            (&[("a", "1"), ("b", "2"), (ODD, "3")], &[], &[("a", "1"), ("b", "2"), (ODD, "3")]),
            (&[("a", "9"), ("z", "9")], &["labels.a"], &[("a", "9"), ("b", "2"), (ODD, "3")]),
            (&[], &["labels.a"], &[("b", "2"), (ODD, "3")]),
            (&[("b", "")], &["labels.b"], &[(ODD, "3")]),
            (&[(ODD, "4")], &[&format!("labels.{ODD}")], &[(ODD, "4")]),
            (&[("a", "1")], &["labels.absent", "labels.a"], &[("a", "1"), (ODD, "4")]),
            (
                &[("labels.a", "5")],
                &["labels.labels.a"],
                &[("a", "1"), (ODD, "4"), ("labels.a", "5")],
            ),
            (&[("x", "1"), ("y", "2")], &["labels", "labels.x"], &[("x", "1"), ("y", "2")]),
            (&[], &["labels"], &[]),
        ];
        for (given, mask, expected) in steps {
            let updated = bed.client.update(update_of("c", given), mask).unwrap();
            assert_eq!(sorted(&updated.labels), expected, "{given:?} masked {mask:?}");
            assert_eq!(bed.client.stat("c").unwrap(), updated);
        }
    });
}

/// SEMANTICS A7
#[test]
fn only_update_and_commit_change_the_times() {
    serve(|bed| {
        bed.prepare("a", "");
        let made = bed.client.stat("a").unwrap();
        assert_eq!(made.created_at, made.updated_at);
        bed.client.mounts("a").unwrap();
        bed.client.usage("a").unwrap();
        assert_eq!(bed.client.stat("a").unwrap(), made);
        let same = bed.client.update(update_of("a", &[]), &[]).unwrap();
        assert_eq!(same.created_at, made.created_at);
        assert!(nanoseconds(same.updated_at) > nanoseconds(made.updated_at), "{same:?}");
        assert_eq!(Info { updated_at: made.updated_at, ..same.clone() }, made);
        bed.client.commit("c", "a", &[]).unwrap();
        let committed = bed.client.stat("c").unwrap();
        assert_eq!(committed.created_at, committed.updated_at);
        assert!(nanoseconds(committed.created_at) > nanoseconds(same.updated_at), "{committed:?}");
        bed.prepare("child", "c");
        assert_eq!(bed.client.stat("c").unwrap(), committed);
    });
}

/// Committed `c`, active `a`, views `v` and `v0` with the numbers 1 to 4.
fn one_of_each(bed: &Bed) -> [(&'static str, u64); 4] {
    bed.layer("c", "");
    bed.prepare("a", "c");
    bed.view("v", "c");
    bed.view("v0", "");
    [("c", 1), ("a", 2), ("v", 3), ("v0", 4)]
}

/// SEMANTICS A12
#[test]
fn the_upperdir_label_is_shown_but_not_kept() {
    serve_as(
        |daemon| daemon.with_config("upperdir_label = true\n"),
        |bed| {
            let all = one_of_each(bed);
            let listed = bed.all();
            for (key, id) in all {
                let expected = bed.fs(id).display().to_string();
                let stat = bed.client.stat(key).unwrap();
                assert_eq!(stat.labels.get(UPPERDIR), Some(&expected), "{key}");
                assert!(listed.contains(&stat), "{key}");
                let updated = bed.client.update(update_of(key, &[("l", "v")]), &[]).unwrap();
                assert_eq!(sorted(&updated.labels), [(UPPERDIR, expected.as_str()), ("l", "v")]);
            }
            let filter = format!("labels.\"{UPPERDIR}\"");
            assert!(bed.client.list(&[&filter]).unwrap().is_empty());
            let absent = format!("labels.\"{UPPERDIR}\"!=x");
            assert_eq!(bed.client.list(&[&absent]).unwrap().len(), 4);
            bed.daemon.set_config("upperdir_label = false\n");
            bed.daemon.restart();
            for info in bed.all() {
                assert_eq!(sorted(&info.labels), [("l", "v")]);
            }
        },
    );
}

#[test]
fn nobody_sees_the_upperdir_label_unasked() {
    serve(|bed| {
        for (key, _) in one_of_each(bed) {
            assert!(bed.client.stat(key).unwrap().labels.is_empty(), "{key}");
        }
    });
}
