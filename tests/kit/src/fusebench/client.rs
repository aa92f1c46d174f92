//! The workloads, run by a process of their own inside the mount.
//!
//! Each one gets ready, then measures its own wall time and its own CPU time, children included, and
//! prints them as JSON. The code is the same for every file system, works with paths relative to the
//! working directory, and starts no process per operation.

mod delay;
mod io;
mod names;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};

/// What went wrong, with the name of the file.
type Problem = String;

/// Runs one workload and returns the line to print.
///
/// # Errors
/// Says what went wrong, or which workloads there are.
pub fn run(arguments: &[String]) -> Result<String, Problem> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["walk", count] => names::walk(number(count)?),
        ["read", count] => names::read(number(count)?),
        ["stat", prefix, count] => names::stat(prefix, number(count)?),
        ["create", count] => names::create(number(count)?),
        ["rename", count] => names::rename(number(count)?),
        ["unlink", count] => names::unlink(number(count)?),
        ["append", count] => names::append(number(count)?),
        ["create-unlink", prefix, count] => names::create_unlink(prefix, number(count)?),
        ["remove", file] => names::remove(file),
        ["truncate", file] => names::truncate(file),
        ["io", pattern, file, block, count] => {
            io::run(pattern, file, number(block)?, number(count)?)
        }
        ["hold", file] => io::hold(file),
        ["delay", file, count] => delay::run(file, number(count)?),
        ["each", rest @ ..] => each(rest),
        ["program", program, rest @ ..] => program_runs(program, rest),
        _ => Err(format!("no such workload: {}", words.join(" "))),
    };
    result.map(|value| value.to_string())
}

fn number(word: &str) -> Result<usize, Problem> {
    word.parse().map_err(|_| format!("not a number: {word}"))
}

/// Measures `work`, which does `ops` operations.
fn measured(ops: usize, work: impl FnOnce() -> Result<(), Problem>) -> Result<Value, Problem> {
    let (began, used) = (Instant::now(), cpu());
    work()?;
    let (wall, cpu) = (began.elapsed(), cpu() - used);
    Ok(json!({ "wall": wall.as_secs_f64(), "cpu": cpu.as_secs_f64(), "ops": ops }))
}

/// CPU time of this process and of its children that have ended.
fn cpu() -> Duration {
    let whole = |who| {
        let usage = getrusage(who).expect("getrusage");
        let micros = |time: TimeVal| u64::try_from(time.num_microseconds()).unwrap_or(0);
        Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
    };
    whole(UsageWho::RUSAGE_SELF) + whole(UsageWho::RUSAGE_CHILDREN)
}

/// A program that does everything, such as tar.
fn program_runs(program: &str, arguments: &[&str]) -> Result<Value, Problem> {
    measured(1, || {
        let mut command = Command::new(program);
        let status = command.args(arguments).stdout(Stdio::null()).status();
        let status = status.map_err(|error| format!("{program}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}")) }
    })
}

/// The same workload in several processes at once, each with a mark and perhaps a directory of its
/// own: `each A:a B:b -- WORKLOAD {} N` runs `WORKLOAD a N` in A and `WORKLOAD b N` in B.
fn each(words: &[&str]) -> Result<Value, Problem> {
    let end = words.iter().position(|word| *word == "--").ok_or("each: no --")?;
    let (places, workload) = (&words[..end], &words[end + 1..]);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let last = workload.last().ok_or("each: no workload")?;
    measured(places.len() * number(last)?, || {
        let start = |place: &&str| {
            let (directory, mark) = place.split_once(':').ok_or("each: no mark")?;
            let words = workload.iter().map(|word| if *word == "{}" { mark } else { *word });
            let mut command = Command::new(&own);
            command.arg("client").args(words).current_dir(directory).stdout(Stdio::null());
            command.spawn().map_err(|error| format!("start a client: {error}"))
        };
        let children: Vec<_> = places.iter().map(start).collect::<Result<_, _>>()?;
        let mut good = true;
        for mut child in children {
            good &= child.wait().map_err(|error| format!("wait: {error}"))?.success();
        }
        if good { Ok(()) } else { Err("one of several clients failed".to_owned()) }
    })
}
