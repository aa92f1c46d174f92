//! The `overstream` command.

fn main() {}
