//! Compares Overstream with containerd's overlayfs snapshotter; see docs/BENCHMARKS.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark ends by telling"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use overstream_testkit::bench::{Settings, measure};

const USAGE: &str =
    "usage: bench [--quick] [--only memory|import|calls|start|inspect|syscalls] [--json FILE]";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Tells whether all bars hold.
fn run() -> Result<bool, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("mounting and running containers needs root; try `sudo make bench`".to_owned());
    }
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = std::env::var_os("OVERSTREAM_BIN")
        .map_or_else(|| own.with_file_name("overstream"), PathBuf::from);
    let mut settings = Settings { binary, quick: false, only: String::new() };
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => settings.quick = true,
            "--only" => settings.only = arguments.next().ok_or(USAGE)?,
            "--json" => json = Some(arguments.next().ok_or(USAGE)?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    if !settings.binary.is_file() {
        let missing = settings.binary.display();
        return Err(format!("{missing} does not exist; `cargo build --release` makes it"));
    }
    let report = measure(&settings);
    println!("{report}");
    if let Some(path) = json {
        std::fs::write(&path, format!("{:#}\n", report.json()))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(report.holds())
}
