//! SIGKILL at every call that changes a layer, and before the last reply.

use super::world::{SOON, World, as_root, for_all};

/// SEMANTICS W20
#[test]
fn a_kill_at_any_call_leaves_the_old_or_the_new_view() {
    as_root(|| for_all(killed_everywhere));
}

fn killed_everywhere(world: &World<'_>) -> Vec<String> {
    let calls = match world.calls() {
        Ok(calls) => calls,
        Err(wrong) => return vec![wrong],
    };
    let points = calls.iter().filter(|call| call.changes() || !call.concerns_layer());
    let mut wrong = Vec::new();
    for (number, call) in points.enumerate() {
        let daemon = world.mount(&format!("kill-{number}"));
        let tracer = daemon.trace(Some(&call.inject("signal=SIGKILL")));
        // Whether the caller sees an error depends on how far it came.
        daemon.run().ok();
        daemon.process.wait_exit(SOON);
        tracer.end();
        daemon.detach();
        if let Err(what) = daemon.examine() {
            wrong.push(format!("killed at {}: {what}", call.line));
        }
    }
    wrong
}
