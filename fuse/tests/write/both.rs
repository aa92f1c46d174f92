//! The same steps on both sides, of which every result is compared.

use std::fmt::Debug;
use std::io;
use std::path::Path;

use overstream_testkit::Scratch;

use super::frame::Data;
use super::pair::{Layers, Pair, Setup};

/// Lines before the first one that differs, which tell where it is.
const CONTEXT: usize = 3;

/// What was done, and how it ended, line by line.
#[derive(Debug)]
pub(super) struct Log {
    lines: Vec<String>,
    /// How what is tested is served.
    pub(super) data: Data,
    /// This is the kernel's side.
    pub(super) is_kernel: bool,
}

/// Something in which what is tested is not as the kernel is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Differs<T> {
    pub(super) kernel: T,
    pub(super) ours: T,
}

impl Log {
    /// Writes down what something is.
    pub(super) fn note(&mut self, what: impl AsRef<str>, is: impl Debug) {
        self.lines.push(format!("{}: {is:?}", what.as_ref()));
    }

    /// Writes down how something ended: what it gave, or the error number.
    pub(super) fn end<T: Debug, E: Into<io::Error>>(
        &mut self,
        what: impl AsRef<str>,
        end: Result<T, E>,
    ) {
        self.note(what, end.map_err(|error| error.into().raw_os_error()));
    }

    /// Panics unless something is as it should be on either side.
    #[track_caller]
    pub(super) fn differs<T: Debug + PartialEq>(&self, found: T, expected: Differs<T>) {
        let Differs { kernel, ours } = expected;
        assert_eq!(found, if self.is_kernel { kernel } else { ours });
    }

    /// Panics unless both are the same.
    #[track_caller]
    fn assert_same(expected: &Self, found: &Self) {
        let pairs = expected.lines.iter().zip(&found.lines);
        let same = pairs.take_while(|(expected, found)| expected == found).count();
        if same < expected.lines.len().max(found.lines.len()) {
            let before = &expected.lines[same.saturating_sub(CONTEXT)..same];
            let [expected, found] = [expected, found].map(|log| log.lines.get(same));
            panic!("expected {expected:?}\nfound {found:?}\nafter {before:#?}");
        }
    }
}

/// Does the same on both sides, and compares what was written down, what is seen afterwards and what lies on disk;
/// then everybody mounts everybody's upper.
#[track_caller]
pub(super) fn alike(setup: Setup, fill: impl FnOnce(&Layers), act: impl Fn(&Path, &mut Log)) {
    let scratch = Scratch::new();
    let pair = Pair::new(&scratch, setup, fill);
    let done = |root: &Path, is_kernel| {
        let mut log = Log { lines: Vec::new(), data: setup.data, is_kernel };
        act(root, &mut log);
        log
    };
    eprintln!("{setup:?}");
    let expected = done(pair.oracle(), true);
    Log::assert_same(&expected, &done(pair.subject(), false));
    pair.assert_same(&[]);
    pair.assert_interchangeable(&[]);
}

/// The same however data go.
#[track_caller]
pub(super) fn alike_in_every_mode(
    setup: Setup,
    fill: impl Fn(&Layers),
    act: impl Fn(&Path, &mut Log),
) {
    for data in Data::ALL {
        alike(Setup { data, ..setup }, &fill, &act);
    }
}
