//! Open files, and what is done with their data.
//!
//! Who reads a file that is copied up meanwhile goes on in the upper, so that it sees what others write.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::caller::Caller;
use crate::change::{Change, What};
use crate::copy_up::Data;
use crate::errno::{Context, Error, Result};
use crate::inode::Ino;
use crate::node::{Leaf, Node};
use crate::overlay::Overlay;
use crate::protattr::Use;

/// The kernel's own flag of an open that is to run the file.
pub(crate) const EXECUTES: OFlags = OFlags::from_bits_retain(0x20);

/// Names something open; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// What is open, by handle.
#[derive(Debug)]
pub(crate) struct Handles<T> {
    next: AtomicU64,
    /// A leaf lock: nothing else is done while it is held.
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: RwLock::default() }
    }
}

impl<T> Handles<T> {
    /// Keeps `what` and names it.
    pub(crate) fn add(&self, what: T) -> Handle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, Arc::new(what));
        Handle(handle)
    }

    /// Returns what a handle names.
    ///
    /// # Errors
    /// `BadHandle` if it names nothing.
    pub(crate) fn get(&self, handle: Handle) -> Result<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).map(Arc::clone).ok_or(Error::BadHandle)
    }

    /// Tells whether anything open is such.
    fn any(&self, is_such: impl Fn(&T) -> bool) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|one| is_such(one))
    }

    /// Forgets a handle, and returns what it named. That is closed when the last operation on it ends.
    pub(crate) fn remove(&self, handle: Handle) -> Option<Arc<T>> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&handle.0)
    }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    leaf: Arc<Leaf>,
    real: RwLock<Real>,
    writable: bool,
    executes: bool,
}

/// The file that holds the data.
#[derive(Clone, Debug)]
struct Real {
    file: Arc<File>,
    /// It is a lower layer's, which must not be written to.
    lower: bool,
}

impl OpenFile {
    /// A file, opened with these flags; `lower` if it is a lower layer's.
    pub(crate) fn new(leaf: Arc<Leaf>, (file, lower): (File, bool), flags: OFlags) -> Self {
        let real = RwLock::new(Real { file: Arc::new(file), lower });
        let (writable, executes) = (may_write(flags), flags.contains(EXECUTES));
        Self { leaf, real, writable, executes }
    }

    /// Returns the file that holds the data now.
    fn real(&self) -> Result<Real> {
        let real = self.real.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !(real.lower && self.leaf.is_upper()) {
            return Ok(real);
        }
        let (file, lower) = self.leaf.open(OFlags::RDONLY)?;
        let real = Real { file: Arc::new(file), lower };
        *self.real.write().unwrap_or_else(PoisonError::into_inner) = real.clone();
        Ok(real)
    }

    /// Returns the file that is read.
    fn reading(&self) -> Result<Arc<File>> {
        Ok(self.real()?.file)
    }

    /// Returns the file that is written to.
    fn writing(&self) -> Result<Arc<File>> {
        match self.real()? {
            Real { file, lower: false } if self.writable => Ok(file),
            _ => Err(Error::BadHandle),
        }
    }
}

/// Tells whether a file opened with these flags may be written to.
fn may_write(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR)
}

/// Opens a file so that what it is opened for can be done. The kernel reads also for those who only write, to
/// have the rest of the page.
fn open_leaf(leaf: &Leaf, flags: OFlags) -> Result<(File, bool)> {
    if !may_write(flags) {
        return leaf.open(OFlags::RDONLY);
    }
    match leaf.open(OFlags::RDWR) {
        // Without root's rights it may be that nobody can read it.
        Err(Error::Layer { source: Errno::ACCESS, .. }) => leaf.open(OFlags::WRONLY),
        opened => opened,
    }
}

impl Overlay {
    /// Opens a file. One that is to be written to is copied up, without the data that `TRUNC` throws away.
    ///
    /// # Errors
    /// `Unsupported` if the layer has only the file's attributes: its data would read as zeros. `Running` if `TRUNC`
    /// would cut a program that runs.
    pub fn open(&self, caller: &Caller, ino: Ino, flags: OFlags) -> Result<Handle> {
        let node = self.inodes.get(ino)?;
        let Node::Leaf(leaf) = &node else { return Err(Error::IsDirectory) };
        let cuts = flags.contains(OFlags::TRUNC);
        let only_cuts = cuts && !may_write(flags);
        // For who writes the kernel looks first, but for who only cuts, when it is too late.
        if only_cuts && self.files.any(|open| open.executes && Arc::ptr_eq(&open.leaf, leaf)) {
            return Err(Error::Running);
        }
        if may_write(flags) || cuts {
            self.allow(&node, Use::Write { at_end: flags.contains(OFlags::APPEND) && !cuts })?;
            let data = if cuts { Data::First(0) } else { Data::All };
            self.copy_up(&node, data, caller)?;
        } else {
            self.refuse_partial(leaf)?;
        }
        let (real, lower) = open_leaf(leaf, flags)?;
        if lower && (may_write(flags) || cuts) {
            return Err(Error::Stale);
        }
        if cuts {
            let change = || Change::of_node(&node, What::Truncate(0));
            let cut = || {
                // Who may write can truncate a file that it opens only to read.
                let other = if only_cuts { Some(leaf.open(OFlags::WRONLY)?.0) } else { None };
                rustix::fs::ftruncate(other.as_ref().unwrap_or(&real), 0).at("truncate")
            };
            self.upper()?.change(caller, change, cut)?;
            if caller.uid != 0 {
                self.drop_privileges(caller, &node)?;
            }
        }
        Ok(self.files.add(OpenFile::new(Arc::clone(leaf), (real, lower), flags)))
    }

    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    pub fn read(&self, handle: Handle, offset: u64, size: usize) -> Result<Vec<u8>> {
        let file = self.files.get(handle)?.reading()?;
        let mut data = Vec::with_capacity(size.max(1));
        while data.len() < size {
            let at = offset.saturating_add(data.len() as u64);
            match rustix::io::pread(&file, spare_capacity(&mut data), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).at("read"),
            }
        }
        data.truncate(size);
        Ok(data)
    }

    /// Writes at `offset`; returns how many bytes were written.
    pub fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<usize> {
        let file = self.files.get(handle)?.writing()?;
        let mut written = 0;
        while let Some(left) = data.get(written..).filter(|left| !left.is_empty()) {
            match rustix::io::pwrite(&file, left, offset.saturating_add(written as u64)) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                // What is written is written; the next call tells the error.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error).at("write"),
            }
        }
        Ok(written)
    }

    /// Takes setuid and setgid away from an open file, as writing does.
    pub fn drop_privileges_of(&self, caller: &Caller, handle: Handle) -> Result<()> {
        let leaf = Arc::clone(&self.files.get(handle)?.leaf);
        self.drop_privileges(caller, &Node::Leaf(leaf))
    }

    /// Makes what was written to an open file durable, with its attributes unless `data_only`.
    pub fn sync(&self, handle: Handle, data_only: bool) -> Result<()> {
        let file = self.files.get(handle)?;
        if !file.leaf.is_upper() || self.upper()?.is_volatile() {
            return Ok(());
        }
        let real = file.reading()?;
        if data_only { rustix::fs::fdatasync(&real) } else { rustix::fs::fsync(&real) }.at("sync")
    }

    /// Reserves, frees or zeroes a part of a file.
    pub fn allocate(
        &self,
        handle: Handle,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let file = self.files.get(handle)?;
        let real = file.writing()?;
        let what =
            if (mode - FallocateFlags::KEEP_SIZE).is_empty() { Use::Touch } else { Use::Resize };
        self.allow(&Node::Leaf(Arc::clone(&file.leaf)), what)?;
        rustix::fs::fallocate(real, mode, offset, length).at("allocate")
    }

    /// Copies between two open files; returns how many bytes were copied.
    pub fn copy_range(
        &self,
        (from, mut from_at): (Handle, u64),
        (to, mut to_at): (Handle, u64),
        length: usize,
    ) -> Result<usize> {
        let (from, to) = (self.files.get(from)?.reading()?, self.files.get(to)?.writing()?);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), length);
        copied.at("copy")
    }

    /// Finds data or a hole at or after an offset.
    pub fn seek(&self, handle: Handle, to: SeekFrom) -> Result<u64> {
        rustix::fs::seek(self.files.get(handle)?.reading()?, to).at("seek")
    }

    /// Closes a file.
    pub fn release(&self, handle: Handle) {
        let closed = self.files.remove(handle);
        let ino = closed.map(|closed| closed.leaf.ino);
        // If the kernel has forgotten it before, nobody else will.
        ino.into_iter().for_each(|ino| self.inodes.forget(ino, 0));
    }

    /// Tells whether an open file lies in the upper, so that its data may be read and written there directly.
    pub fn backing(&self, handle: Handle) -> Result<Option<Arc<File>>> {
        let Real { file, lower } = self.files.get(handle)?.real()?;
        Ok(if lower { None } else { Some(file) })
    }
}
