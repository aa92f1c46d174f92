//! Too long, too many.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use overstream_testkit::proto::snapshots::{
    Info, ListSnapshotsRequest, PrepareSnapshotRequest, UpdateSnapshotRequest,
};
use prost_types::FieldMask;
use tonic::{Code, Status};

use super::frame::{Bed, attack};

fn prepare(bed: &Bed, key: &str, labels: HashMap<String, String>) -> Result<(), Status> {
    let (snapshotter, key, parent) = ("over".to_owned(), key.to_owned(), String::new());
    let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
    bed.client.block_on(bed.client.raw().prepare(request)).map(drop)
}

#[test]
fn long_labels_are_kept() {
    attack(|bed| {
        let (label, value) = ("k".repeat(4096), "v".repeat(4096));
        prepare(bed, "a", [(label.clone(), value.clone())].into()).unwrap();
        assert_eq!(bed.client.stat("a").unwrap().labels[&label], value);
        let found = bed.client.list(&[&format!("labels.{label}=={value}")]).unwrap();
        assert_eq!(found.len(), 1);
    });
}

#[test]
fn a_long_key_that_is_not_there_is_not_found() {
    attack(|bed| {
        for odd in ["x", "\0", "\u{1f980}"] {
            for length in [1 << 10, 16 << 10, 1 << 20] {
                let key = odd.repeat(length);
                assert_eq!(bed.client.stat(&key).unwrap_err().code(), Code::NotFound);
                let parentless = bed.client.prepare("a", &key, &[]).unwrap_err();
                assert_eq!(parentless.code(), Code::NotFound);
            }
        }
    });
}

#[test]
fn ten_thousand_labels_are_kept() {
    attack(|bed| {
        let labels: HashMap<_, _> =
            (0..10_000).map(|n| (format!("label-{n}"), format!("value-{n}"))).collect();
        prepare(bed, "a", labels.clone()).unwrap();
        assert_eq!(bed.client.stat("a").unwrap().labels, labels);
        assert_eq!(bed.client.list(&["labels.\"label-9999\"==\"value-9999\""]).unwrap().len(), 1);
    });
}

/// SEMANTICS A8: containerd takes 16 MiB in one message; what it could not take would end its garbage collection.
#[test]
fn long_labels_do_not_make_list_unreadable() {
    attack(|bed| {
        for number in 0..60 {
            let size = if number == 30 { 15 << 20 } else { 512 << 10 };
            prepare(bed, &number.to_string(), [("k".to_owned(), "v".repeat(size))].into()).unwrap();
        }
        let messages = bed.client.list_messages(&[]).unwrap();
        assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), 60);
        for message in messages {
            let bytes: usize = message.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes < 16 << 20, "a message of {} infos has {bytes} bytes", message.len());
        }
    });
}

#[test]
fn requests_over_16_mib_are_refused() {
    attack(|bed| {
        let labels = |bytes: usize| HashMap::from([("k".to_owned(), "v".repeat(bytes))]);
        let refused = prepare(bed, "a", labels(17 << 20)).unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert_eq!(bed.client.stat("a").unwrap_err().code(), Code::NotFound);
        // What is just below goes through, and comes back.
        prepare(bed, "a", labels(15 << 20)).unwrap();
        assert_eq!(bed.client.stat("a").unwrap().labels["k"].len(), 15 << 20);
    });
}

#[test]
fn a_filter_may_be_a_mebibyte() {
    attack(|bed| {
        prepare(bed, "a", HashMap::new()).unwrap();
        let long = format!("name=={}", "x".repeat(1 << 20));
        assert!(bed.client.list(&[&long]).unwrap().is_empty());
        let many = vec!["kind==active"; (1 << 20) / 13].join(",");
        assert_eq!(bed.client.list(&[&many]).unwrap().len(), 1);
        let path = vec!["name"; (1 << 20) / 5].join(".");
        bed.client.list(&[&path]).unwrap();
        let quoted = format!("name==\"{}\"", "\\\\".repeat(1 << 19));
        assert!(bed.client.list(&[&quoted]).unwrap().is_empty());
        let open = format!("name==\"{}", "x".repeat(1 << 20));
        assert_eq!(bed.client.list(&[&open]).unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn an_expression_cannot_take_all_memory_or_time() {
    attack(|bed| {
        prepare(bed, &"a".repeat(10_000), HashMap::new()).unwrap();
        let nested = format!("name~=\"{}a{}\"", "(".repeat(50_000), ")".repeat(50_000));
        let repeated = "name~=\"(a{1000}){1000}{1000}\"".to_owned();
        let backtracking = "name~=\"^(a*)*(a*)*(a|aa)+$b\"".to_owned();
        for filter in [nested, repeated, backtracking] {
            let began = Instant::now();
            // What it answers does not matter, as long as it answers soon.
            bed.client.list(&[&filter]).ok();
            assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
        }
    });
}

#[test]
fn thousands_of_filters_are_taken() {
    attack(|bed| {
        prepare(bed, "a", HashMap::new()).unwrap();
        let mut filters: Vec<String> = (0..5000).map(|n| format!("name==none-{n}")).collect();
        let list = |filters: &[String]| {
            let (snapshotter, filters) = ("over".to_owned(), filters.to_vec());
            bed.client.block_on(async {
                let request = ListSnapshotsRequest { snapshotter, filters };
                bed.client.raw().list(request).await?.into_inner().message().await
            })
        };
        assert_eq!(list(&filters).unwrap(), None);
        filters.push("name==a".to_owned());
        assert_eq!(list(&filters).unwrap().unwrap().info.len(), 1);
        filters.push("name=".to_owned());
        assert_eq!(list(&filters).unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn huge_field_masks_are_taken() {
    attack(|bed| {
        prepare(bed, "a", [("kept".to_owned(), "v".to_owned())].into()).unwrap();
        let update = |paths: Vec<String>| {
            let request = UpdateSnapshotRequest {
                snapshotter: "over".to_owned(),
                info: Some(Info { name: "a".to_owned(), ..Info::default() }),
                update_mask: Some(FieldMask { paths }),
            };
            bed.client.block_on(bed.client.raw().update(request))
        };
        let mut paths: Vec<String> = (0..200_000).map(|n| format!("labels.none-{n}")).collect();
        let info = update(paths.clone()).unwrap().into_inner().info.unwrap();
        assert_eq!(info.labels.len(), 1);
        paths.push("kind".to_owned());
        assert_eq!(update(paths).unwrap_err().code(), Code::InvalidArgument);
        update(vec![format!("labels.{}", "x".repeat(1 << 20))]).unwrap();
        update(vec!["labels.".to_owned()]).unwrap();
        // Text of the request in the answer must not cost the client the code.
        for odd in ["x", "\u{1f980}"] {
            let refused = update(vec![odd.repeat(1 << 18)]).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
    });
}
