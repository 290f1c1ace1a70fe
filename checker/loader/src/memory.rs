//! Memory of the host in windows: packet buffers, tables, heaps that several windows or the host itself share.
//!
//! A [`Memory`] is a range of a memory file, in whole pages. [`Window::share`] maps it into free space of a window, where the handler finds it at a
//! window offset; unmapped pages lie before and behind it. The host reaches it by copies, for handlers may write at any time.

use crate::enter;
use crate::error::Error;
use crate::image::Image;
use crate::image::places::printable;
use crate::pages::{Access, PAGE, Pages};
use crate::report::region::Area;
use crate::window::Window;
use cordon_checker::layout::{MEMORY_END, NULL_ZONE_END};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// Unmapped bytes between a shared memory and anything else: so far past an end every access is reported.
const GAP: u64 = 64 << 10;

/// What a handler may do with a [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Read it; stores end the call.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// Memory that windows and the host share.
#[derive(Debug)]
pub struct Memory {
    name: String,
    file: OwnedFd,
    /// Place of the first mapped page in the file.
    offset: u64,
    /// Bytes in the mapped pages before the first byte.
    skipped: u64,
    len: u64,
    writable: bool,
    /// The host's own mapping.
    pages: Pages,
}

impl Memory {
    /// `len` zero bytes, at least one. The rest of the last page is accessible too, for handlers as well, and not reported.
    ///
    /// # Errors
    /// [`Error::SharedMemory`] for a length of 0 or more than handler memory has, [`Error::Memory`] if the kernel refuses.
    pub fn new(name: &str, len: usize) -> Result<Arc<Memory>, Error> {
        Memory::anonymous(name, len, 0)
    }

    /// As [`Memory::new`], with the last byte in front of an unmapped page: the first byte past the end is reported.
    ///
    /// It begins wherever its length leads to: unless that is a multiple of the alignment that code counts on, objects in it lie askew,
    /// aligned vector accesses fault and others run slower. Up to a page before its first byte is accessible and not reported.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn exact(name: &str, len: usize) -> Result<Arc<Memory>, Error> {
        let len64 = len as u64;
        Memory::anonymous(name, len, len64.next_multiple_of(PAGE) - len64)
    }

    fn anonymous(name: &str, len: usize, skipped: u64) -> Result<Arc<Memory>, Error> {
        let len = len as u64;
        if len == 0 || len >= u64::from(MEMORY_END) {
            return Err(Error::SharedMemory("its length is 0 or more than handler memory has"));
        }
        // SAFETY: a constant NUL-terminated name; the descriptor is new.
        let file = unsafe {
            match libc::memfd_create(c"cordon".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) {
                fd if fd < 0 => return Err(memory("make a memory file")),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let size = len.next_multiple_of(PAGE);
        // SAFETY: our own descriptor. Without the seals somebody with [`Memory::file`] could shrink the file, and accesses would raise SIGBUS,
        // or forbid writing, and it could not be shared any more.
        unsafe {
            if libc::ftruncate(file.as_raw_fd(), size.cast_signed()) != 0 {
                return Err(memory("size a memory file"));
            }
            if libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL) != 0
            {
                return Err(memory("seal a memory file"));
            }
        }
        Memory::map(name, file, 0, skipped, len, true)
    }

    /// `len` bytes of `file` from `offset` on: another process's memory file, or any file that can be mapped. Without `writable` neither
    /// host nor handlers may write, and the file need not be open for writing.
    ///
    /// A file that somebody makes shorter costs a handler that reads there a [`crate::FaultKind::MemoryError`].
    ///
    /// # Errors
    /// [`Error::SharedMemory`] if the range does not begin at a page of the file, does not end at one or at the end of the file (what lies
    /// behind it would be accessible), or is not in the file; [`Error::Memory`] if the kernel does not map it.
    pub fn from_file(name: &str, file: &File, offset: u64, len: u64, writable: bool) -> Result<Arc<Memory>, Error> {
        let failed = |error| Error::Memory { what: "look at a file to share", error };
        let size = file.metadata().map_err(failed)?.len();
        let end = offset.checked_add(len).filter(|end| *end <= size && len > 0 && len < u64::from(MEMORY_END));
        match end {
            None => Err(Error::SharedMemory("its range is empty, too long or not in the file")),
            Some(_) if !offset.is_multiple_of(PAGE) => Err(Error::SharedMemory("it does not begin at a page of the file")),
            Some(end) if end != size && !len.is_multiple_of(PAGE) => {
                Err(Error::SharedMemory("it ends neither at a page of the file nor with the file"))
            }
            Some(_) => Memory::map(name, file.as_fd().try_clone_to_owned().map_err(failed)?, offset, 0, len, writable),
        }
    }

    fn map(name: &str, file: OwnedFd, offset: u64, skipped: u64, len: u64, writable: bool) -> Result<Arc<Memory>, Error> {
        let size = (skipped + len).next_multiple_of(PAGE);
        let pages = Pages::reserve_random(size + 2 * PAGE, PAGE, 0, Access::None)?;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        pages.map_shared(pages.start() + PAGE, size, access, file.as_raw_fd(), offset)?;
        Ok(Arc::new(Memory { name: printable(name), file, offset, skipped, len, writable, pages }))
    }

    /// What reports call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a memory is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The memory file, for another process to map. Its first byte lies at [`Memory::file_offset`].
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Offset of the first byte in the file.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.offset + self.skipped
    }

    /// Address of the first byte in the host. Handlers of other threads and other processes may change the bytes at any time, so use it
    /// for atomics and volatile accesses, not for references to plain data.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        (self.pages.start() + PAGE + self.skipped) as *mut u8
    }

    fn range(&self, at: u64, len: usize) -> Result<*mut u8, Error> {
        match at.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(self.as_ptr().wrapping_add(at as usize)),
            _ => Err(Error::Range { offset: at, len: len as u64 }),
        }
    }

    /// Copies the bytes from `at` on to `to`. Bytes that somebody writes meanwhile come in old or new form.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is not in the memory, or its file was made shorter.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Error> {
        let from = self.range(at, to.len())?;
        // SAFETY: `to` is ours; the source is our own mapping, where a page may be missing.
        let done = unsafe { enter::try_copy(to.as_mut_ptr(), from, to.len()) };
        if done { Ok(()) } else { Err(Error::Range { offset: at, len: to.len() as u64 }) }
    }

    /// Copies `from` to the bytes from `at` on.
    ///
    /// # Errors
    /// As [`Memory::read`], and if the memory is not writable.
    pub fn write(&self, at: u64, from: &[u8]) -> Result<(), Error> {
        let to = self.range(at, from.len())?;
        // SAFETY: `from` is ours; the destination is our own mapping, of which no reference exists and where a page may be missing.
        let done = self.writable && unsafe { enter::try_copy(to, from.as_ptr(), from.len()) };
        if done { Ok(()) } else { Err(Error::Range { offset: at, len: from.len() as u64 }) }
    }
}

fn memory(what: &'static str) -> Error {
    Error::Memory { what, error: io::Error::last_os_error() }
}

/// A memory in a window.
#[derive(Clone, Debug)]
pub struct Share {
    memory: Arc<Memory>,
    /// Window offset of its first page.
    start: u32,
    /// Window offset past its last page.
    end: u32,
    writable: bool,
}

impl Share {
    /// Window offset of its first byte.
    fn first(&self) -> u32 {
        self.start + self.memory.skipped as u32
    }

    /// For reports: the bytes, not the pages.
    fn area(&self) -> Area {
        let first = self.first();
        Area { name: format!("memory {}", self.memory.name), start: first, end: first + self.memory.len as u32 }
    }
}

/// What the host has added to a window.
#[derive(Debug, Default)]
pub struct Shares {
    shares: Vec<Share>,
    /// For the reports of later faults.
    areas: Arc<[Area]>,
}

impl Shares {
    pub fn areas(&self) -> &Arc<[Area]> {
        &self.areas
    }

    /// The share that has window offset `offset` in its pages: whether it is writable.
    pub fn writable_at(&self, offset: u32) -> Option<bool> {
        self.shares.iter().find(|s| (s.start..s.end).contains(&offset)).map(|s| s.writable)
    }

    /// Page ranges of the window that are mapped here.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.shares.iter().map(|s| (s.start, s.end))
    }

    /// Whether `offset..offset + len` lies in one memory, which is writable if `write`.
    pub fn holds(&self, offset: u32, len: u32, write: bool) -> bool {
        let end = u64::from(offset) + u64::from(len);
        let fits = |s: &Share| s.first() <= offset && end <= u64::from(s.first()) + s.memory.len && (s.writable || !write);
        self.shares.iter().any(fits)
    }

    fn set(&mut self, shares: Vec<Share>) {
        self.areas = shares.iter().map(Share::area).collect();
        self.shares = shares;
    }
}

/// The lowest place for `len` bytes that keeps [`GAP`] bytes from everything in the window: null zone, table, regions, the guard below the data
/// stack, other shares.
fn free_place(image: &Image, shares: &Shares, len: u64) -> Option<u32> {
    let table = image.table();
    let mut taken: Vec<(u64, u64)> = image.regions().iter().map(|r| (r.start.into(), r.end.into())).collect();
    taken.extend([(0, NULL_ZONE_END.into()), (table.start.into(), table.end.into())]);
    taken.push((image.stack_guard().into(), image.stack_start().into()));
    taken.extend(shares.ranges().map(|(start, end)| (start.into(), end.into())));
    taken.push((MEMORY_END.into(), u64::MAX));
    taken.sort_unstable();
    let mut at = 0_u64;
    for (start, end) in taken {
        if at > 0 && at + len + GAP <= start {
            return u32::try_from(at).ok();
        }
        at = at.max(end.checked_add(GAP)?.next_multiple_of(PAGE));
    }
    None
}

impl Window {
    /// Maps `memory` into free space of the window; gives the window offset of its first byte, which is the handler's pointer to it.
    ///
    /// At least 64 KiB before and behind it stay unmapped. It keeps its content and its place until [`Window::unshare`] or until the window is
    /// dropped, also through [`Window::reset`]: it is the host's. It does not count for [`crate::LoadOptions::memory_limit`]. The same memory may be in
    /// several windows and several times in one. `atomic` instructions work on it as between threads.
    ///
    /// # Errors
    /// [`Error::SharedMemory`] if there is no room, or for writing if the memory is not writable; [`Error::Memory`] if the kernel refuses.
    pub fn share(&mut self, memory: &Arc<Memory>, sharing: Sharing) -> Result<u32, Error> {
        let writable = sharing == Sharing::ReadWrite;
        if writable && !memory.writable {
            return Err(Error::SharedMemory("it is not writable"));
        }
        let len = (memory.skipped + memory.len).next_multiple_of(PAGE);
        let inner = self.inner_mut();
        let start = free_place(&inner.image, &inner.shares, len);
        let start = start.ok_or(Error::SharedMemory("there is no room for it in the window"))?;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        let at = inner.base() + u64::from(start);
        inner.pages()?.map_shared(at, len, access, memory.file.as_raw_fd(), memory.offset)?;
        let share = Share { memory: Arc::clone(memory), start, end: start + len as u32, writable };
        let first = share.first();
        let mut shares = inner.shares.shares.clone();
        shares.push(share);
        inner.shares.set(shares);
        Ok(first)
    }

    /// Takes the memory at window offset `offset`, which [`Window::share`] gave, out of the window again.
    ///
    /// # Errors
    /// [`Error::SharedMemory`] if none begins there, [`Error::Memory`] if the kernel refuses.
    pub fn unshare(&mut self, offset: u32) -> Result<(), Error> {
        let inner = self.inner_mut();
        let mut shares = inner.shares.shares.clone();
        let found = shares.iter().position(|s| s.first() == offset);
        let share = shares.swap_remove(found.ok_or(Error::SharedMemory("none begins at this window offset"))?);
        inner.pages()?.map_zero(inner.base() + u64::from(share.start), u64::from(share.end - share.start), Access::None)?;
        inner.shares.set(shares);
        Ok(())
    }
}
