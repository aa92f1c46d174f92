//! Prints every change of an upper as it happens: what, since when the mount is there, and who asked for it.

use std::fs;
use std::io;
use std::time::Instant;

use overstream_fuse::{Caller, Change, ChangeSink};

use super::serve::say;

#[derive(Debug)]
pub(super) struct Trace {
    begin: Instant,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self { begin: Instant::now() }
    }
}

impl ChangeSink for Trace {
    fn before(&self, _: &Change, _: &Caller) -> io::Result<()> {
        Ok(())
    }

    fn after(&self, change: &Change, caller: &Caller, happened: bool) {
        // It may have ended meanwhile.
        let name = fs::read_to_string(format!("/proc/{}/comm", caller.pid)).unwrap_or_default();
        let failed = if happened { "" } else { "failed: " };
        let seconds = self.begin.elapsed().as_secs_f64();
        say(&format!("{seconds:.3} {failed}{change} ({caller}, {})", name.trim_end()));
    }
}
