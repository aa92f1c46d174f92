//! Ends a test that takes too long, with everything it started.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::require::test_name;
use crate::scratch;

/// How long a test may take to unwind after its children were killed.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the body of a test and returns what it returns.
///
/// When `time` is over, kills the children of every scratch directory the body made, so that what
/// it waits for ends, and panics with the test's name.
#[track_caller]
pub fn limit<T: Send + 'static>(time: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let name = test_name();
    let (sender, done) = channel();
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let result = body();
        sender.send(()).ok();
        result
    });
    let thread = thread.expect("start a thread");
    if done.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
        scratch::kill_all_of(&name);
        // A body that only waited for its children fails and cleans up by itself.
        let unwound = done.recv_timeout(GRACE) != Err(RecvTimeoutError::Timeout);
        if unwound {
            thread.join().ok();
        } else {
            scratch::clean_all_of(&name);
        }
        panic!("{name} was not done within {time:?}, so everything it started was killed");
    }
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
