//! A question that is answered once and remembered.

use std::sync::atomic::{AtomicU8, Ordering};

const NOT_YET: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// The answer, once it is known.
#[derive(Debug, Default)]
pub(crate) struct Known(AtomicU8);

impl Known {
    /// Returns the answer; `ask` finds it out. Who says meanwhile that it is yes is right.
    pub(crate) fn get<E>(&self, ask: impl FnOnce() -> Result<bool, E>) -> Result<bool, E> {
        match self.0.load(Ordering::Acquire) {
            NOT_YET => {
                let answer = if ask()? { YES } else { NO };
                let now =
                    self.0.compare_exchange(NOT_YET, answer, Ordering::AcqRel, Ordering::Acquire);
                Ok(now.map_or_else(|other| other, |_| answer) == YES)
            }
            answer => Ok(answer == YES),
        }
    }

    /// Says that the answer is yes from now on.
    pub(crate) fn set(&self) {
        self.0.store(YES, Ordering::Release);
    }
}
