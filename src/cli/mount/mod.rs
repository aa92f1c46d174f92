//! Mounts views of directories: in the foreground, or in a process of their own.

mod background;
mod forms;
mod serve;
mod trace;

use std::process::ExitCode;

use clap::Parser;

pub(super) use forms::{Mount, is_program};
use forms::{Request, Stay};

/// Runs `overstream mount`.
pub(super) fn run(args: Mount) -> ExitCode {
    end(args.request().and_then(perform))
}

/// Runs the command line of somebody who calls us as another program.
pub(super) fn run_as_program() -> ExitCode {
    let program = match forms::Program::try_parse() {
        Ok(program) => program,
        // Two, which clap says of a wrong command line, is a mistake of the system to mount(8).
        Err(said) => {
            let printed = said.print().is_ok();
            return if printed && !said.use_stderr() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
    };
    end(program.request().and_then(perform))
}

fn end(result: Result<ExitCode, String>) -> ExitCode {
    result.unwrap_or_else(|problem| super::exit(Err(problem)))
}

fn perform(request: Request) -> Result<ExitCode, String> {
    match request.stay {
        Stay::Foreground => serve::serve(request, None)?,
        Stay::Background if background::is_server() => {
            serve::serve(request, Some(background::Parent::leave()?))?;
        }
        Stay::Background => return background::start(&request.target),
    }
    Ok(ExitCode::SUCCESS)
}
