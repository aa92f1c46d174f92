//! System calls that no library has a safe name for; the only `unsafe` of the engine.
#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::ffi::{CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::{self, Errno};

/// The kernel's limit.
const LONGEST_HANDLE: usize = 128;

/// What a file system knows a file by, whatever its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// How the bytes are made.
    pub kind: u8,
    /// At most 128.
    pub bytes: Vec<u8>,
}

#[repr(C)]
struct RawHandle {
    length: libc::c_uint,
    kind: libc::c_int,
    bytes: [u8; LONGEST_HANDLE],
}

/// Returns the handle of `name` in a directory, or of the directory itself if the name is empty.
pub(crate) fn name_to_handle(dir: impl AsFd, name: &OsStr) -> io::Result<FileHandle> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut handle = RawHandle {
        length: u32::try_from(LONGEST_HANDLE).map_err(|_| Errno::INVAL)?,
        kind: 0,
        bytes: [0; LONGEST_HANDLE],
    };
    let mut mount = 0;
    let dir: BorrowedFd<'_> = dir.as_fd();
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: the name ends in a zero byte, the handle has room for the length it says, and all
    // pointers outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            flags,
        )
    };
    if result != 0 {
        return Err(last_error());
    }
    let length = usize::try_from(handle.length).map_err(|_| Errno::OVERFLOW)?;
    let bytes = handle.bytes.get(..length).ok_or(Errno::OVERFLOW)?.to_vec();
    Ok(FileHandle { kind: u8::try_from(handle.kind).map_err(|_| Errno::OVERFLOW)?, bytes })
}

/// `FS_IOC_GETFSUUID`: `_IOR(0x15, 0, struct { u8 length; u8 uuid[16]; })`.
const GET_UUID: libc::c_ulong = 0x8011_1500;

/// Returns the UUID of the file system that an open file lies on (Linux 6.9).
pub(crate) fn file_system_uuid(file: impl AsFd) -> io::Result<[u8; 16]> {
    #[repr(C)]
    struct Uuid {
        length: u8,
        bytes: [u8; 16],
    }
    let mut uuid = MaybeUninit::<Uuid>::zeroed();
    // SAFETY: the request writes that many bytes to the pointer, which is valid for them.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_UUID, uuid.as_mut_ptr()) };
    if result != 0 {
        return Err(last_error());
    }
    // SAFETY: zeros are a valid value of the type, and so is whatever the kernel wrote over them.
    let uuid = unsafe { uuid.assume_init() };
    if uuid.length == 16 { Ok(uuid.bytes) } else { Err(Errno::NOTSUP) }
}

/// `struct mount_attr` of mount_setattr(2), version 0.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_READ_ONLY: u64 = 1;

/// Makes a mount read-only; it must be one that nobody else uses.
pub(crate) fn make_read_only(mount: impl AsFd) -> io::Result<()> {
    let attributes =
        MountAttributes { set: MOUNT_READ_ONLY, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path ends in a zero byte, and the structure is as long as is said; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// `struct fsxattr`: flags, and what belongs to quotas and to the allocation of blocks.
pub(crate) type ExtendedFlags = [u8; 28];

/// `FS_IOC_FSGETXATTR`.
pub(crate) const GET_EXTENDED_FLAGS: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
pub(crate) const SET_EXTENDED_FLAGS: u32 = 0x401c_5820;

/// Returns the extended flags of an open file.
pub(crate) fn extended_flags(file: impl AsFd) -> io::Result<ExtendedFlags> {
    let mut flags = ExtendedFlags::default();
    // SAFETY: the request writes as many bytes as the array has.
    let result = unsafe {
        libc::ioctl(file.as_fd().as_raw_fd(), GET_EXTENDED_FLAGS.into(), flags.as_mut_ptr())
    };
    if result != 0 { Err(last_error()) } else { Ok(flags) }
}

/// Sets the extended flags of an open file.
pub(crate) fn set_extended_flags(file: impl AsFd, flags: &ExtendedFlags) -> io::Result<()> {
    // SAFETY: the request reads as many bytes as the array has.
    let result =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), SET_EXTENDED_FLAGS.into(), flags.as_ptr()) };
    if result != 0 { Err(last_error()) } else { Ok(()) }
}

fn last_error() -> Errno {
    let number = std::io::Error::last_os_error().raw_os_error();
    number.map_or(Errno::IO, Errno::from_raw_os_error)
}
