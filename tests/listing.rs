//! List to a client that reads slowly, or not to the end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, Instant};

use overstream_testkit::proto::snapshots::ListSnapshotsRequest;
use overstream_testkit::{Client, Daemon, Scratch, limit, require_root};

const BINARY: &str = env!("CARGO_BIN_EXE_overstream");
const NAME: &str = "listing";
/// Several messages, which with these labels are far more than the connection buffers.
const SNAPSHOTS: usize = 550;

fn with_snapshots(body: fn(&mut Daemon, &Client)) {
    limit(Duration::from_secs(120), move || {
        if !require_root() {
            return;
        }
        let scratch = Scratch::new();
        let mut daemon = Daemon::new(&scratch, BINARY).with_config("shutdown_grace_seconds = 2\n");
        daemon.start();
        let client = Client::new(daemon.socket(), NAME);
        let value = "v".repeat(4000);
        for number in 0..SNAPSHOTS {
            let labels = [("containerd.io/snapshot/long", value.as_str())];
            client.prepare(&format!("k{number:04}"), "", &labels).unwrap();
        }
        body(&mut daemon, &client);
        assert!(daemon.stop().success());
    });
}

fn request(filters: &[&str]) -> ListSnapshotsRequest {
    let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
    ListSnapshotsRequest { snapshotter: NAME.to_owned(), filters }
}

#[test]
fn a_list_is_of_one_instant_however_slowly_it_is_read() {
    with_snapshots(|_, client| {
        let mut stream = client.block_on(client.raw().list(request(&[]))).unwrap().into_inner();
        let mut names = Vec::new();
        let mut messages = 0;
        while let Some(message) = client.block_on(stream.message()).unwrap() {
            names.extend(message.info.into_iter().map(|info| info.name));
            if messages == 0 {
                client.remove("k0549").unwrap();
                client.prepare("k0549-later", "", &[]).unwrap();
            }
            messages += 1;
        }
        let expected: Vec<String> = (0..SNAPSHOTS).map(|number| format!("k{number:04}")).collect();
        assert_eq!(names, expected);
        assert_eq!(messages, SNAPSHOTS.div_ceil(100));
    });
}

#[test]
fn a_list_that_is_not_read_to_the_end_holds_nobody_up() {
    with_snapshots(|daemon, client| {
        for _ in 0..40 {
            let mut stream = client.block_on(client.raw().list(request(&[]))).unwrap().into_inner();
            client.block_on(stream.message()).unwrap().unwrap();
        }
        client.prepare("after", "", &[]).unwrap();
        assert_eq!(client.list(&["name==after"]).unwrap().len(), 1);
        // One that is never read delays the end by the grace time, not more.
        let _unread = client.block_on(client.raw().list(request(&[]))).unwrap();
        let begin = Instant::now();
        assert!(daemon.stop().success());
        assert!(begin.elapsed() < Duration::from_secs(10), "stopped after {:?}", begin.elapsed());
        daemon.start();
    });
}

#[test]
fn a_bad_filter_is_the_answer_itself() {
    with_snapshots(|_, client| {
        let status = client.block_on(client.raw().list(request(&["name=="]))).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(client.list(&["name==nobody"]).unwrap().is_empty());
    });
}
