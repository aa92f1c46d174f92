//! Workloads of one big file: blocks read and written in order and at random, never synced.

use std::fs::{File, OpenOptions};
use std::io::{Read, stdin};
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use super::{Problem, measured};
use crate::random::Random;

/// Reads or writes `count` blocks of `block` bytes, in order or at random, from opening the file to
/// closing it.
pub(super) fn run(pattern: &str, file: &str, block: usize, count: usize) -> Result<Value, Problem> {
    let (at_random, write) = match pattern {
        "read" => (false, false),
        "randread" => (true, false),
        "write" => (false, true),
        "randwrite" => (true, true),
        _ => return Err(format!("no such pattern: {pattern}")),
    };
    let length = std::fs::metadata(file).map_err(|error| format!("{file}: {error}"))?.len();
    let blocks = usize::try_from(length).map_err(|error| error.to_string())? / block;
    let mut random = Random::new(1);
    let offset = |turn: usize| {
        let number = if at_random { random.below(blocks) } else { turn % blocks };
        (number * block) as u64
    };
    let offsets: Vec<u64> = (0..count).map(offset).collect();
    let mut buffer = vec![0x5a; block];
    let mut work = || {
        let opened = OpenOptions::new().read(!write).write(write).open(file)?;
        offsets.iter().try_for_each(|offset| {
            if write {
                opened.write_all_at(&buffer, *offset)
            } else {
                opened.read_exact_at(&mut buffer, *offset)
            }
        })
    };
    measured(count, || work().map_err(|error| format!("{pattern} {file}: {error}")))
}

/// Keeps a file open for reading until standard input ends.
pub(super) fn hold(file: &str) -> Result<Value, Problem> {
    let problem = |error| format!("{file}: {error}");
    let mut held = File::open(file).map_err(problem)?;
    held.read_exact(&mut [0; 4096]).map_err(problem)?;
    println!("{}", json!({ "held": file }));
    stdin().read_to_end(&mut Vec::new()).map_err(|error| format!("standard input: {error}"))?;
    Ok(json!({}))
}
