//! Calls that cannot all succeed, made at the same instant.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use overstream_testkit::proto::snapshots::PrepareSnapshotRequest;
use overstream_testkit::{Client, limit, require_root};
use tonic::Code::{self, AlreadyExists, FailedPrecondition, NotFound, Ok};
use tonic::Status;

use super::frame::{Bed, NAME};

const CLIENTS: usize = 8;
const ROUNDS: usize = 15;

/// Runs rounds of: prepare alone, then call from every client at the same instant, then check.
fn race(
    before: impl Fn(&Client, usize) + Send + 'static,
    call: impl Fn(&Client, usize, usize) -> Result<(), Status> + Send + Sync + 'static,
    after: impl Fn(&Client, usize, &[Code]) + Send + 'static,
) {
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), move || {
        let bed = Bed::new();
        let client = bed.daemon.client(NAME);
        let clients: Vec<Client> = (0..CLIENTS).map(|_| bed.daemon.client(NAME)).collect();
        clients.iter().for_each(|client| client.cleanup().unwrap());
        for round in 0..ROUNDS {
            before(&client, round);
            let barrier = Barrier::new(CLIENTS);
            let codes: Vec<Code> = thread::scope(|scope| {
                let start = |(number, client)| {
                    let (barrier, call) = (&barrier, &call);
                    scope.spawn(move || {
                        barrier.wait();
                        call(client, round, number).err().map_or(Ok, |status| status.code())
                    })
                };
                let threads: Vec<_> = clients.iter().enumerate().map(start).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            after(&client, round, &codes);
        }
        bed.is_consistent();
        bed.can_be_emptied();
    });
}

#[track_caller]
fn one_wins(codes: &[Code], others: Code) {
    assert_eq!(codes.iter().filter(|code| **code == Ok).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == others).count(), CLIENTS - 1, "{codes:?}");
}

#[test]
fn one_prepare_of_a_key_wins() {
    race(
        |_, _| {},
        |client, round, number| {
            let key = format!("key-{round}");
            match number % 2 {
                0 => client.prepare(&key, "", &[]).map(drop),
                _ => client.view(&key, "", &[]).map(drop),
            }
        },
        |_, _, codes| one_wins(codes, AlreadyExists),
    );
}

#[test]
fn one_commit_to_a_name_wins_and_the_others_stay_active() {
    race(
        |client, round| {
            for number in 0..CLIENTS {
                client.prepare(&format!("{round}-{number}"), "", &[]).unwrap();
            }
        },
        |client, round, number| {
            client.commit(&format!("name-{round}"), &format!("{round}-{number}"), &[])
        },
        |client, round, codes| {
            one_wins(codes, AlreadyExists);
            for (number, code) in codes.iter().enumerate() {
                let key = format!("{round}-{number}");
                match code {
                    Ok => assert_eq!(client.stat(&key).unwrap_err().code(), NotFound),
                    _ => assert_eq!(client.mounts(&key).unwrap().len(), 1),
                }
            }
        },
    );
}

#[test]
fn one_commit_of_a_key_wins() {
    race(
        |client, round| drop(client.prepare(&format!("key-{round}"), "", &[]).unwrap()),
        |client, round, number| {
            client.commit(&format!("{round}-{number}"), &format!("key-{round}"), &[])
        },
        |_, _, codes| one_wins(codes, NotFound),
    );
}

#[test]
fn one_remove_of_a_key_wins() {
    race(
        |client, round| drop(client.prepare(&format!("key-{round}"), "", &[]).unwrap()),
        |client, round, _| client.remove(&format!("key-{round}")),
        |_, _, codes| one_wins(codes, NotFound),
    );
}

#[test]
fn a_key_is_either_committed_or_removed() {
    race(
        |client, round| drop(client.prepare(&format!("key-{round}"), "", &[]).unwrap()),
        |client, round, number| match number {
            0 => client.commit(&format!("name-{round}"), &format!("key-{round}"), &[]),
            1 => client.remove(&format!("key-{round}")).and_then(|()| client.cleanup()),
            _ => client.cleanup(),
        },
        |client, round, codes| {
            let (committed, removed) = (codes[0], codes[1]);
            assert!(matches!((committed, removed), (Ok, NotFound) | (NotFound, Ok)), "{codes:?}");
            assert_eq!(client.stat(&format!("name-{round}")).is_ok(), committed == Ok);
        },
    );
}

#[test]
fn a_parent_is_either_removed_or_has_children() {
    race(
        |client, round| {
            client.prepare("making", "", &[]).unwrap();
            client.commit(&format!("parent-{round}"), "making", &[]).unwrap();
        },
        |client, round, number| {
            let (parent, child) = (format!("parent-{round}"), format!("child-{round}-{number}"));
            match number {
                0 => client.remove(&parent).and_then(|()| client.cleanup()),
                1 => client.view(&child, &parent, &[]).map(drop),
                _ => client.prepare(&child, &parent, &[]).map(drop),
            }
        },
        |client, round, codes| {
            let (removed, children) = codes.split_first().unwrap();
            match removed {
                Ok => assert!(children.iter().all(|code| *code == NotFound), "{codes:?}"),
                FailedPrecondition => assert!(children.contains(&Ok), "{codes:?}"),
                other => panic!("{other:?}"),
            }
            let parent = format!("parent-{round}");
            assert_eq!(client.stat(&parent).is_err(), *removed == Ok);
        },
    );
}

#[test]
fn a_name_is_either_prepared_or_committed() {
    race(
        |client, round| drop(client.prepare(&format!("key-{round}"), "", &[]).unwrap()),
        |client, round, number| {
            let name = format!("name-{round}");
            match number {
                0 => client.commit(&name, &format!("key-{round}"), &[]),
                _ => client.prepare(&name, "", &[]).map(drop),
            }
        },
        |_, _, codes| one_wins(codes, AlreadyExists),
    );
}

#[test]
fn labels_are_never_mixed() {
    race(
        |client, round| drop(client.prepare(&format!("key-{round}"), "", &[]).unwrap()),
        |client, round, number| {
            let value = number.to_string();
            let labels = ["a", "b"].map(|label| (label.to_owned(), value.clone()));
            let info = overstream_testkit::proto::snapshots::Info {
                name: format!("key-{round}"),
                labels: labels.into(),
                ..Default::default()
            };
            client.update(info, &[]).map(drop)
        },
        |client, round, codes| {
            assert!(codes.iter().all(|code| *code == Ok), "{codes:?}");
            let labels = client.stat(&format!("key-{round}")).unwrap().labels;
            assert_eq!(labels["a"], labels["b"]);
        },
    );
}

#[test]
fn hundreds_of_calls_at_once_are_all_answered() {
    const CALLS: usize = 400;
    if !require_root() {
        return;
    }
    limit(Duration::from_secs(60), || {
        let bed = Bed::new();
        let client = bed.daemon.client(NAME);
        let request = |number: usize| PrepareSnapshotRequest {
            snapshotter: NAME.to_owned(),
            key: format!("key-{}", number / 2),
            ..Default::default()
        };
        let codes: Vec<Code> = client.block_on(async {
            let call = |number| {
                let mut raw = client.raw();
                tokio::spawn(async move { raw.prepare(request(number)).await })
            };
            let calls: Vec<_> = (0..CALLS).map(call).collect();
            let mut codes = Vec::new();
            for call in calls {
                codes.push(call.await.unwrap().err().map_or(Ok, |status| status.code()));
            }
            codes
        });
        for pair in codes.chunks(2) {
            assert!(matches!(pair, [Ok, AlreadyExists] | [AlreadyExists, Ok]), "{pair:?}");
        }
        bed.is_consistent();
    });
}
