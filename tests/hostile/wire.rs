//! Bytes that are no requests, and requests that mean nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use overstream_testkit::proto::snapshots::{Info, PrepareSnapshotRequest, UpdateSnapshotRequest};
use overstream_testkit::{Daemon, wait_for};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::frame::{BINARY, Bed, attack};

/// A request whose strings are any bytes: field 1 the plugin name, 2 and 3 keys or names.
#[derive(Clone, PartialEq, prost::Message)]
struct Bytes {
    #[prost(bytes = "vec", tag = "1")]
    snapshotter: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    second: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    third: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    labels: Vec<Label>,
}

/// One entry of a map.
#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Calls any method with any message; the answer's content does not matter.
fn call<M: prost::Message + Default + 'static>(
    bed: &Bed,
    path: &'static str,
    message: M,
) -> Result<(), Status> {
    bed.client.block_on(async {
        let mut grpc = tonic::client::Grpc::new(bed.daemon.channel().await);
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let codec = ProstCodec::<M, ()>::default();
        grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await.map(drop)
    })
}

const PREPARE: &str = "/containerd.services.snapshots.v1.Snapshots/Prepare";
const STAT: &str = "/containerd.services.snapshots.v1.Snapshots/Stat";
const LIST: &str = "/containerd.services.snapshots.v1.Snapshots/List";

#[test]
fn strings_that_are_not_utf8_are_refused() {
    attack(|bed| {
        let label = |key: &[u8], value: &[u8]| Label { key: key.into(), value: value.into() };
        for bad in [b"\xff".as_slice(), b"a\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
            let good =
                Bytes { snapshotter: b"over".into(), second: b"k".into(), ..Bytes::default() };
            let requests = [
                Bytes { snapshotter: bad.into(), ..good.clone() },
                Bytes { second: bad.into(), ..good.clone() },
                Bytes { third: bad.into(), ..good.clone() },
                Bytes { labels: vec![label(bad, b"v")], ..good.clone() },
                Bytes { labels: vec![label(b"k", bad)], ..good.clone() },
            ];
            for request in requests {
                let refused = call(bed, PREPARE, request).unwrap_err();
                assert_eq!(refused.code(), Code::Internal, "{refused}");
            }
            let stat = Bytes { second: bad.into(), ..Bytes::default() };
            call(bed, STAT, stat.clone()).unwrap_err();
            call(bed, LIST, stat).unwrap_err();
        }
        assert!(bed.client.list(&[]).unwrap().is_empty());
    });
}

/// A request whose fields have the numbers of Prepare's, but other types.
#[derive(Clone, PartialEq, prost::Message)]
struct Numbers {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(fixed32, tag = "2")]
    second: u32,
    #[prost(string, tag = "4242")]
    unknown: String,
}

#[test]
fn requests_of_other_types_are_refused_and_unknown_fields_ignored() {
    attack(|bed| {
        let odd = Numbers { first: 1, second: 2, unknown: String::new() };
        assert_eq!(call(bed, PREPARE, odd).unwrap_err().code(), Code::Internal);
        let unknown = Numbers { unknown: "of a later version".to_owned(), ..Numbers::default() };
        // What is left is a request with an empty key.
        assert_eq!(call(bed, PREPARE, unknown).unwrap_err().code(), Code::InvalidArgument);
        for path in [
            "/containerd.services.snapshots.v1.Snapshots/Destroy",
            "/containerd.services.content.v1.Content/List",
            "/",
        ] {
            assert_eq!(call(bed, path, Bytes::default()).unwrap_err().code(), Code::Unimplemented);
        }
    });
}

#[test]
fn unknown_kinds_odd_times_and_missing_infos_do_no_harm() {
    attack(|bed| {
        bed.client.prepare("a", "", &[("l", "v")]).unwrap();
        let before = bed.client.stat("a").unwrap();
        for kind in [0, 4, 99, -1, i32::MAX, i32::MIN] {
            let updated = bed.client.update(Info { kind, ..before.clone() }, &[]).unwrap();
            assert_eq!((updated.kind, &updated.labels), (before.kind, &before.labels));
        }
        for (seconds, nanos) in [(i64::MAX, i32::MAX), (i64::MIN, i32::MIN), (0, -1)] {
            let time = Some(prost_types::Timestamp { seconds, nanos });
            let info = Info { created_at: time, updated_at: time, ..before.clone() };
            let updated = bed.client.update(info, &[]).unwrap();
            assert_eq!(updated.created_at, before.created_at);
        }
        let empty = UpdateSnapshotRequest { snapshotter: "over".to_owned(), ..Default::default() };
        let refused = bed.client.block_on(bed.client.raw().update(empty)).unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
    });
}

/// Bytes that look random, the same in every run.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn garbage_on_the_socket_ends_that_connection_only() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    attack(|bed| {
        for seed in 0..20 {
            let noise = noise(10_000, seed);
            for start in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE] {
                let mut stream = UnixStream::connect(bed.daemon.socket()).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                // The daemon may hang up at any moment.
                let sent = stream.write_all(start).and_then(|()| stream.write_all(&noise));
                if sent.is_ok() {
                    stream.shutdown(std::net::Shutdown::Write).ok();
                    stream.read_to_end(&mut Vec::new()).ok();
                }
            }
        }
    });
}

#[test]
fn silent_connections_hold_nobody_up() {
    attack(|bed| {
        let connect = |_| UnixStream::connect(bed.daemon.socket()).unwrap();
        let silent: Vec<_> = (0..300).map(connect).collect();
        bed.is_unharmed();
        drop(silent);
    });
}

#[test]
fn more_connections_than_descriptors_hold_it_up_only_for_a_while() {
    attack(|bed| {
        let few = format!("#!/bin/sh\nulimit -n 64\nexec {BINARY} \"$@\"\n");
        let path = bed.scratch.write("few", few);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut daemon = Daemon::named(&bed.scratch, "limited", &path);
        daemon.start();
        let connect = |_| UnixStream::connect(daemon.socket());
        let silent: Vec<_> = (0..100).map(connect).filter_map(Result::ok).collect();
        assert!(silent.len() > 64, "only {} connections", silent.len());
        drop(silent);
        let serves = || daemon.is_running() && daemon.client("over").prepare("a", "", &[]).is_ok();
        wait_for("the daemon to serve again", Duration::from_secs(10), serves);
        assert!(daemon.stop().success());
        for left in ["few", "limited.log", "limited.sock"] {
            fs::remove_file(bed.scratch.join(left)).ok();
        }
        fs::remove_dir_all(daemon.root()).unwrap();
    });
}

#[test]
fn clients_that_leave_in_the_middle_of_a_call_do_no_harm() {
    attack(|bed| {
        for number in 0..100 {
            let client = bed.daemon.client("over");
            let (snapshotter, key) = ("over".to_owned(), format!("left-{number}"));
            let request = PrepareSnapshotRequest { snapshotter, key, ..Default::default() };
            client.block_on(async {
                let wait = Duration::from_micros(50 * number);
                tokio::time::timeout(wait, client.raw().prepare(request)).await.ok();
            });
        }
        // A call goes on without its client, so what there is is whole.
        for info in bed.client.list(&[]).unwrap() {
            assert_eq!(bed.client.mounts(&info.name).unwrap().len(), 1);
        }
    });
}
