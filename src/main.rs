//! The `overstream` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    overstream::cli::run()
}
