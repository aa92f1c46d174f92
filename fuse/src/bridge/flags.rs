//! What programs ask of an open file by ioctl(2): its flags, and no more.

use crate::sys::{GET_EXTENDED_FLAGS, SET_EXTENDED_FLAGS};
use crate::{Caller, Ino, Overlay, Result};

/// `FS_IOC_GETFLAGS`; the kernel wants four bytes.
const GET_FLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`.
const SET_FLAGS: u32 = 0x4008_6602;

/// Returns the answer to a command; `None` if it is not known.
pub(super) fn answer(
    overlay: &Overlay,
    caller: &Caller,
    ino: Ino,
    command: u32,
    input: &[u8],
) -> Option<Result<Vec<u8>>> {
    Some(match command {
        GET_FLAGS => overlay.flags(ino).map(|flags| flags.to_ne_bytes().to_vec()),
        GET_EXTENDED_FLAGS => overlay.extended_flags(ino).map(Vec::from),
        SET_FLAGS => {
            let flags = u32::from_ne_bytes(*input.first_chunk()?);
            overlay.set_flags(caller, ino, flags).map(|()| Vec::new())
        }
        SET_EXTENDED_FLAGS => {
            let flags = input.first_chunk()?;
            overlay.set_extended_flags(caller, ino, flags).map(|()| Vec::new())
        }
        _ => return None,
    })
}
