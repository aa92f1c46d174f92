//! Compares overlay file systems side by side; see docs/BENCHMARKS.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark ends by telling"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use overstream_testkit::fusebench::{SUBJECTS, Settings, client, list, measure};

const USAGE: &str = "\
usage: bench-fuse [OPTIONS]
  --list                   list all rows
  --only ROW[,ROW...]      only these rows, scenarios, or what begins with ROW and a dash
  --subjects NAME[,..]     kernel, c, rust, overstream, rust-plain, overstream-plain (no passthrough)
  --add 'NAME=COMMAND'     one more subject: a command that serves in the foreground, with {lowers},
                           {upper}, {work}, {options} and {target} filled in
  --options OPTIONS        mount options (-o) for Overstream
  --layers N               lower directories (2); all but the lowest are nearly empty
  --rounds N               rounds of each row, instead of as many as fit
  --quick                  small sizes, two rounds
  --read-only              mounts without an upper, and only the rows that can do without
  --attach COMMAND         a shell command beside every measured step, with $PID of the daemon, $SUBJECT
                           and $ROW, interrupted after the step
  --json FILE              everything that was measured";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == "client" => client(rest).map(|line| {
            println!("{line}");
            true
        }),
        _ => run(arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("bench-fuse: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Tells whether no bar is missed.
fn run(arguments: Vec<String>) -> Result<bool, String> {
    let mut settings = defaults()?;
    let mut json = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => {
                print!("{}", list());
                return Ok(true);
            }
            "--quick" => settings.quick = true,
            "--read-only" => settings.read_only = true,
            "--json" => json = Some(arguments.next().ok_or(USAGE)?),
            _ => valued(&mut settings, &argument, arguments.next())?,
        }
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("mounting overlays needs root; try `sudo make bench-fuse`".to_owned());
    }
    for (name, _) in &settings.added {
        settings.subjects.push(name.clone());
    }
    let report = measure(&settings)?;
    println!("{report}");
    if let Some(path) = json {
        std::fs::write(&path, format!("{:#}\n", report.json()))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(report.holds())
}

fn defaults() -> Result<Settings, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = |name: &str| own.with_file_name(name);
    let chosen = |variable: &str, or: PathBuf| std::env::var_os(variable).map_or(or, PathBuf::from);
    Ok(Settings {
        overstream: chosen("OVERSTREAM_BIN", beside("overstream")),
        rust_peer: chosen("OVERSTREAM_RUST_PEER", beside("../peers/bin/fuse-overlayfs")),
        client: own,
        subjects: names(SUBJECTS),
        layers: 2,
        ..Settings::default()
    })
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}

/// Takes an option that has a value.
fn valued(settings: &mut Settings, option: &str, value: Option<String>) -> Result<(), String> {
    let usage = || USAGE.to_owned();
    let number = |value: &str| value.parse().ok().filter(|number| *number > 0).ok_or_else(usage);
    let value = value.ok_or_else(usage)?;
    match option {
        "--only" => settings.only = names(&value),
        "--subjects" => settings.subjects = names(&value),
        "--options" => settings.options = value,
        "--layers" => settings.layers = number(&value)?,
        "--rounds" => settings.rounds = Some(number(&value)?),
        "--attach" => settings.attach = Some(value),
        "--add" => {
            let (name, command) = value.split_once('=').ok_or_else(usage)?;
            settings.added.push((name.to_owned(), command.to_owned()));
        }
        _ => return Err(usage()),
    }
    Ok(())
}
