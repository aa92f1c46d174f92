//! Volatile uppers: never synced, so good for one boot only.
//!
//! The kernel marks the workdir of a volatile overlay and refuses the next mount. Within one boot, once
//! nothing uses the upper any more, all writes are in the page cache and the mark can go. After a
//! reboot nobody knows what reached the disk: the snapshot is refused, whether or not the mark did.

use std::path::Path;

use crate::error::{Error, IoContext, Result};
use crate::layout;
use crate::metastore::Row;
use crate::probe;

/// Refuses a volatile upper of an earlier boot.
pub(super) fn check_boot(row: &Row, boot: &str) -> Result<()> {
    match &row.placement.volatile_boot {
        Some(valid) if valid != boot => Err(Error::FailedPrecondition(format!(
            "the upper of snapshot {:?} is volatile and the host went down since: its files may be damaged; \
             remove the container and create it anew",
            row.info.name
        ))),
        _ => Ok(()),
    }
}

/// Lets the kernel mount a volatile upper again, where that is safe.
pub(super) fn make_mountable(row: &Row, directory: &Path, boot: &str) -> Result<()> {
    check_boot(row, boot)?;
    let mark = directory.join(layout::WORK).join("work/incompat");
    if row.placement.volatile_boot.is_none() || !mark.join("volatile").exists() {
        return Ok(());
    }
    let upper = directory.join(layout::FS);
    if probe::upper_in_use(&upper).at("ask the kernel about", &upper)? {
        return Ok(());
    }
    crate::tree::remove(&mark).at("remove", &mark)?;
    crate::crash::point("volatile: marker removed");
    Ok(())
}
