//! A part of a file in memory, as mmap(2) gives it.
#![allow(unsafe_code, reason = "memory that others change has no safe wrapper")]

use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// A mapped file, shared with everybody who uses it; dropping it unmaps it.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps the first bytes of an open file, for reading and, if `writable`, for writing. What is mapped past the
    /// end of the file must not be used.
    pub fn new(file: impl AsFd, length: usize, writable: bool) -> io::Result<Self> {
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: the kernel chooses where, so nothing of the process is replaced.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, file, 0)? };
        Ok(Self { start: start.cast(), length })
    }

    /// Returns what is there now.
    pub fn read(&self) -> Vec<u8> {
        // SAFETY: the bytes are mapped as long as this lives; others may change them at any time.
        let byte = |at| unsafe { self.start.add(at).read_volatile() };
        (0..self.length).map(byte).collect()
    }

    /// Writes; panics where nothing is mapped. Only for a writable mapping.
    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.length);
        for (offset, byte) in data.iter().enumerate() {
            // SAFETY: the byte lies within what is mapped, as was just checked.
            unsafe { self.start.add(at + offset).write_volatile(*byte) }
        }
    }

    /// Has what was written here reach the file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: it is mapped, and nothing is unmapped by this.
        unsafe { msync(self.start.cast(), self.length, MsyncFlags::SYNC) }.map_err(io::Error::from)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it, since all is copied.
        unsafe { munmap(self.start.cast(), self.length) }.expect("unmap a file");
    }
}
