//! The mount table, with an error that says what could not be read.

use std::path::Path;

pub(crate) use overstream_fuse::mountinfo::MountPoint;

use crate::error::{IoContext, Result};

/// Lists the mounts, in the order in which they were made.
pub(crate) fn read() -> Result<Vec<MountPoint>> {
    overstream_fuse::mountinfo::read().at("read", Path::new(overstream_fuse::mountinfo::TABLE))
}
