//! How long lookups of other names take while a big file is copied up.

use std::fs::{OpenOptions, symlink_metadata};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::names::in_tree;
use super::{Problem, measured};
use crate::bench::stats::quantile;

/// Pause between two lookups, so that looking up does not take a CPU from copying.
const PAUSE: Duration = Duration::from_micros(200);
/// Lookups at least, however fast the copying is.
const LEAST: usize = 1000;

/// Overwrites the first byte of `file` while names of a tree of `count` files are looked up, each
/// for the first time; then names that do not exist.
pub(super) fn run(file: &str, count: usize) -> Result<Value, Problem> {
    let copied = AtomicBool::new(false);
    let (result, delays) = thread::scope(|scope| {
        let lookups = scope.spawn(|| look_up(count, &copied));
        // The first lookups find their feet before copying starts.
        thread::sleep(Duration::from_millis(20));
        let result = measured(1, || {
            let opened = OpenOptions::new().write(true).open(file);
            let written = opened.and_then(|opened| opened.write_all_at(b"+", 0));
            written.map_err(|error| format!("write to {file}: {error}"))
        });
        copied.store(true, Ordering::Relaxed);
        (result, lookups.join().expect("the thread that looks up"))
    });
    let (mut result, delays) = (result?, delays?);
    result["p99"] = json!(quantile(&delays, 0.99));
    result["max"] = json!(quantile(&delays, 1.0));
    result["lookups"] = json!(delays.len());
    Ok(result)
}

/// Looks names up until the file is copied, and returns the seconds that each lookup took.
fn look_up(count: usize, copied: &AtomicBool) -> Result<Vec<f64>, Problem> {
    let mut delays = Vec::new();
    for number in 0.. {
        if number >= LEAST && copied.load(Ordering::Relaxed) {
            break;
        }
        let there = number < count;
        let name = if there { in_tree(number) } else { format!("missing-{number}") };
        let began = Instant::now();
        let found = symlink_metadata(&name);
        delays.push(began.elapsed().as_secs_f64());
        match found {
            Ok(_) if there => {}
            Err(error) if !there && error.kind() == ErrorKind::NotFound => {}
            other => return Err(format!("lookup of {name}: {other:?}")),
        }
        thread::sleep(PAUSE);
    }
    Ok(delays)
}
