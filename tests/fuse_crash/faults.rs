//! Every call that concerns a layer fails once.

use std::io;

use super::seen::Which;
use super::traced::Call;
use super::world::{World, as_root, for_all, full};

const ERRORS: [(&str, i32); 4] = [
    ("EIO", nix::libc::EIO),
    ("ENOSPC", nix::libc::ENOSPC),
    ("EDQUOT", nix::libc::EDQUOT),
    ("EACCES", nix::libc::EACCES),
];
/// Of so many calls one fails, unless all do.
const SAMPLE: usize = 3;

/// SEMANTICS W21
#[test]
fn a_call_that_fails_once_leaves_the_old_or_the_new_view() {
    as_root(|| for_all(failing_everywhere));
}

fn failing_everywhere(world: &World<'_>) -> Vec<String> {
    let calls = match world.calls() {
        Ok(calls) => calls,
        Err(wrong) => return vec![wrong],
    };
    let calls = calls.iter().filter(|call| call.concerns_layer()).enumerate();
    // Operations begin at different calls, so that together they come to all kinds.
    let begin = world.op.name.len();
    let mut wrong = Vec::new();
    for (number, call) in calls {
        for (turn, error) in ERRORS.into_iter().enumerate() {
            let chosen = (number + begin).is_multiple_of(SAMPLE)
                && (number + begin) / SAMPLE % ERRORS.len() == turn;
            if (full() || chosen)
                && let Err(what) = fails(world, call, error)
            {
                wrong.push(format!("{} at {}: {what}", error.0, call.line));
            }
        }
    }
    wrong
}

fn fails(world: &World<'_>, call: &Call, (name, number): (&str, i32)) -> Result<(), String> {
    let daemon = world.mount(&format!("{}-{}-{name}", call.name, call.nth));
    let tracer = daemon.trace(Some(&call.inject(&format!("error={name}"))));
    let first = daemon.run();
    let failed = first.as_ref().err().and_then(io::Error::raw_os_error);
    if failed.is_some_and(|failed| failed != number) {
        return Err(format!("the caller sees {first:?}"));
    }
    let shown = daemon.which()?;
    match (shown, daemon.process.ended()) {
        (_, Some(status)) => return Err(format!("the daemon ended: {status}")),
        (Which::Old, _) if failed.is_none() => return Err("success, and nothing done".to_owned()),
        // What only looks at what was done can fail. What O_TRUNC and truncate cut is not copied up at all, and
        // is gone before they set the length; so it is in the kernel.
        (Which::New, _) if failed.is_some() && call.changes() && !world.op.cuts() => {
            return Err("done, and an error".to_owned());
        }
        (Which::New, _) => {}
        (Which::Old, _) => {
            daemon.run().map_err(|error| format!("the second try: {error}"))?;
            if daemon.which()? == Which::Old {
                return Err("the second try does nothing".to_owned());
            }
        }
    }
    tracer.end();
    daemon.stop();
    let left = daemon.left_in_work();
    // What could not be deleted when all was done is left to the next mount.
    if !left.is_empty() && failed.is_some() {
        return Err(format!("left in work: {left:?}"));
    }
    match daemon.examine()? {
        Which::New => Ok(()),
        Which::Old => Err("shown, but not on disk".to_owned()),
    }
}
