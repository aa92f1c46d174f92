//! Any text is a List filter or an error, and is told apart without a panic and in bounded time.
//!
//! `cargo fuzz run filter -- -dict=fuzz/filter.dict`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overstream::fuzzing::filter(data));
