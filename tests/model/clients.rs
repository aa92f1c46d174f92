//! Eight clients that do whatever comes to their minds.

use std::collections::HashSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use overstream_testkit::{limit, require_root};
use tonic::Code;

use super::frame::{Bed, NAME, Random};
use super::reference::{Model, Op};

const CLIENTS: u64 = 8;
/// Every client's keys begin with its own prefix, or with this.
const SHARED: &str = "shared/";

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text:?}")))
}

fn seed() -> u64 {
    let clock = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(since.subsec_nanos())
    };
    number("OVERSTREAM_SEED").unwrap_or_else(clock)
}

#[test]
fn clients_see_their_own_snapshots_as_if_they_were_alone() {
    if !require_root() {
        return;
    }
    let time = Duration::from_secs(number("OVERSTREAM_SOAK_SECONDS").unwrap_or(8));
    let seed = seed();
    eprintln!("OVERSTREAM_SEED={seed} OVERSTREAM_SOAK_SECONDS={}", time.as_secs());
    limit(time + Duration::from_secs(60), move || {
        let mut bed = Bed::new();
        let uppers = Mutex::new(HashSet::new());
        let end = Instant::now() + time;
        let socket = bed.daemon.socket();
        let calls: usize = thread::scope(|scope| {
            let run = |client| {
                scope.spawn({
                    let uppers = &uppers;
                    move || work(socket, client, seed, end, uppers)
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(run).collect();
            let join = |client: thread::ScopedJoinHandle<'_, usize>| {
                client.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            clients.into_iter().map(join).sum()
        });
        eprintln!("{calls} calls, {} uppers", uppers.lock().unwrap().len());
        bed.is_consistent();
        bed.survives_a_restart();
        bed.can_be_emptied();
    });
}

/// One client's calls until `end`; returns how many.
fn work(
    socket: &Path,
    number: u64,
    seed: u64,
    end: Instant,
    uppers: &Mutex<HashSet<PathBuf>>,
) -> usize {
    let client = overstream_testkit::Client::new(socket, NAME);
    let mut random = Random::new(seed.wrapping_mul(CLIENTS).wrapping_add(number));
    let prefix = format!("client-{number}/");
    let mut model = Model::new(&prefix);
    let mut calls = 0;
    while Instant::now() < end {
        calls += 1;
        if random.below(4) == 0 {
            let op = Op::choose(&mut random, SHARED);
            is_an_ordinary_answer(&op, op.call(&client));
            continue;
        }
        let mut op = Op::choose(&mut random, &prefix);
        if random.below(2) == 0 {
            // Half of the calls are such that they work, if one comes to mind.
            for _ in 0..5 {
                if model.expected(&op) != Code::Ok {
                    op = Op::choose(&mut random, &prefix);
                }
            }
        }
        let result = catch_unwind(AssertUnwindSafe(|| model.compare(&client, &op)));
        let upper = result.unwrap_or_else(|panic| {
            let recent = model.history.len().saturating_sub(30);
            eprintln!("client {number}, seed {seed}:\n{}", model.history[recent..].join("\n"));
            resume_unwind(panic)
        });
        if let Some(upper) = upper {
            let new = uppers.lock().unwrap().insert(upper.clone());
            assert!(new, "{} was given out twice", upper.display());
        }
    }
    calls
}

/// Whatever others do to the same keys, a call either works or is refused for a reason of its own.
fn is_an_ordinary_answer(op: &Op, answer: Result<(), tonic::Status>) {
    const ORDINARY: [Code; 4] =
        [Code::NotFound, Code::AlreadyExists, Code::InvalidArgument, Code::FailedPrecondition];
    if let Err(status) = answer {
        assert!(ORDINARY.contains(&status.code()), "{op:?}: {status}");
    }
}
