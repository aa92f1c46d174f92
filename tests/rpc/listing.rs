//! List, the database without snapshots, and plugin names that share a socket.

use overstream_testkit::proto::snapshots::ListSnapshotsRequest;
use tonic::Code::NotFound;

use super::frame::{Bed, code, serve, update_of};

fn nothing_is_there(bed: &Bed) {
    let client = &bed.client;
    assert!(client.list_messages(&[]).unwrap().is_empty());
    assert!(client.list_messages(&["kind==active"]).unwrap().is_empty());
    client.cleanup().unwrap();
    assert_eq!(code(client.stat("a")), NotFound);
    assert_eq!(code(client.usage("a")), NotFound);
    assert_eq!(code(client.mounts("a")), NotFound);
    assert_eq!(code(client.remove("a")), NotFound);
    assert_eq!(code(client.commit("c", "a", &[])), NotFound);
    assert_eq!(code(client.update(update_of("a", &[]), &[])), NotFound);
    assert_eq!(code(client.prepare("a", "none", &[])), NotFound);
}

/// SEMANTICS A9
#[test]
fn a_daemon_without_snapshots_answers_as_any_other() {
    serve(|bed| {
        nothing_is_there(bed);
        bed.prepare("a", "");
        bed.client.remove("a").unwrap();
        nothing_is_there(bed);
    });
}

/// SEMANTICS A8
#[test]
fn long_lists_come_in_batches() {
    serve(|bed| {
        let mut expected = Vec::new();
        for number in 0..250 {
            let key = format!("key-{number:03}");
            bed.view(&key, "");
            expected.push(bed.client.stat(&key).unwrap());
        }
        let messages = bed.client.list_messages(&[]).unwrap();
        let sizes: Vec<usize> = messages.iter().map(Vec::len).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let mut listed = messages.concat();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(listed, expected);
        assert_eq!(bed.client.list_messages(&["name~=^key-0"]).unwrap().concat().len(), 100);
    });
}

/// SEMANTICS A8
#[test]
fn a_list_is_that_of_one_instant_and_blocks_nobody() {
    serve(|bed| {
        for number in 0..120 {
            bed.view(&format!("v{number}"), "");
        }
        let (client, snapshotter) = (&bed.client, "over".to_owned());
        let request = ListSnapshotsRequest { snapshotter, filters: Vec::new() };
        let mut stream = client.block_on(client.raw().list(request)).unwrap().into_inner();
        let first = client.block_on(stream.message()).unwrap().unwrap();
        client.prepare("meanwhile", "", &[]).unwrap();
        client.remove("v119").unwrap();
        let second = client.block_on(stream.message()).unwrap().unwrap();
        assert_eq!(first.info.len() + second.info.len(), 120);
        assert!(!second.info.iter().any(|info| info.name == "meanwhile"));
        assert!(client.block_on(stream.message()).unwrap().is_none());
    });
}

/// SEMANTICS A8
#[test]
fn names_are_listed_in_byte_order() {
    serve(|bed| {
        let mut names = ["b", "a/2", "a", "B", "\u{e9}", "a\0", "\u{1f980}", "a/10", "a b", "~"];
        for name in names {
            bed.view(name, "");
        }
        names.sort_unstable();
        let listed = bed.client.list(&[]).unwrap();
        assert_eq!(listed.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), names);
    });
}

/// SEMANTICS A10
#[test]
fn plugin_names_on_one_socket_are_kept_apart() {
    serve(|bed| {
        let other = bed.daemon.client("other");
        bed.layer("shared name", "");
        assert!(other.list(&[]).unwrap().is_empty());
        assert_eq!(code(other.stat("shared name")), NotFound);
        assert_eq!(code(other.prepare("a", "shared name", &[])), NotFound);
        assert_eq!(code(other.remove("shared name")), NotFound);
        other.prepare("shared name", "", &[("whose", "other")]).unwrap();
        other.commit("theirs", "shared name", &[]).unwrap();
        assert_eq!(other.list(&[]).unwrap().len(), 1);
        assert_eq!(bed.all().len(), 1);
        assert_eq!(code(bed.client.mounts("theirs")), NotFound);
        other.remove("theirs").unwrap();
        other.cleanup().unwrap();
        assert!(bed.fs(1).is_dir() && !bed.own(2).exists());
        bed.client.stat("shared name").unwrap();
    });
}
