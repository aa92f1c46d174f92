//! Mounts views of directories: in the foreground, or in a process of their own.

mod background;
mod forms;
mod serve;

use std::process::ExitCode;

pub(super) use forms::{Mount, is_program};
use forms::{Request, Stay};

/// Runs `overstream mount`.
pub(super) fn run(args: Mount) -> Result<(), String> {
    perform(args.request()?)
}

/// Runs the command line of somebody who calls us as another program.
pub(super) fn run_as_program() -> ExitCode {
    use clap::Parser;
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
    super::exit(program.request().and_then(perform))
}

fn perform(request: Request) -> Result<(), String> {
    match request.stay {
        Stay::Foreground => serve::serve(request, None),
        Stay::Background if background::is_server() => {
            let parent = background::Parent::leave(request.log.as_deref())?;
            serve::serve(request, Some(parent))
        }
        Stay::Background => background::start(&request.target),
    }
}
