//! Pages of the process: address ranges drawn at random, mapping over and protecting within a reservation, sealing.
//!
//! A reservation is one `PROT_NONE` mapping. While it is in use its pages change only by mapping over them or protecting them,
//! never by unmapping, so that no other thread's `mmap` can land inside (design-review B12).

use crate::error::Error;
use std::io::{self, Read as _};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Page size in bytes; x86-64 has no other base page size.
pub const PAGE: u64 = 4096;

/// `mseal(2)`, Linux 6.10; not in every libc crate's table.
const SYS_MSEAL: libc::c_long = 462;
/// End of the user half with four-level page tables; random addresses are drawn below it.
const USER_END: u64 = 1 << 47;
/// First address for anything drawn at random: nothing of the loader lies where a fast window or its guard could be (G3).
const RANDOM_FROM: u64 = 1 << 33;
/// Draws before giving up; each one fails only if the range is taken.
const DRAWS: u32 = 256;
/// Most bytes that are left for the main thread's stack, if its limit is more or none.
const MOST_STACK: u64 = 64 << 30;
/// What the kernel keeps free below a stack (`stack_guard_gap`, 256 pages by default).
const STACK_GAP: u64 = 1 << 20;

/// How a page may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    None,
    Read,
    ReadWrite,
    ReadExecute,
}

impl Access {
    const fn bits(self) -> libc::c_int {
        match self {
            Access::None => libc::PROT_NONE,
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Access::ReadExecute => libc::PROT_READ | libc::PROT_EXEC,
        }
    }
}

/// An owned address range, unmapped when dropped but for what is sealed.
#[derive(Debug)]
pub struct Pages {
    start: u64,
    len: u64,
    /// Nothing of it can be unmapped.
    sealed: AtomicBool,
}

impl Pages {
    /// Reserves `len` bytes at exactly `start` without touching anything that is mapped there; `None` if something is.
    ///
    /// # Errors
    /// [`Error::Memory`] for any other failure of `mmap`.
    pub fn reserve_at(start: u64, len: u64, access: Access) -> Result<Option<Pages>, Error> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping; the new pages belong to nobody else.
        let got = unsafe { libc::mmap(address(start), size(len), access.bits(), flags, -1, 0) };
        if got == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EEXIST) => Ok(None),
                _ => Err(refused("reserve an address range", error)),
            };
        }
        let pages = Pages { start: got as u64, len, sealed: AtomicBool::new(false) };
        // Kernels before 4.17 take the address as a hint only; dropping `pages` gives the range back.
        Ok((pages.start == start).then_some(pages))
    }

    /// Reserves `len` bytes at a random address which is `offset` plus a multiple of `step` (whole pages).
    ///
    /// # Errors
    /// [`Error::Memory`] if no free range was found or the kernel gave no random bytes.
    pub fn reserve_random(len: u64, step: u64, offset: u64, access: Access) -> Result<Pages, Error> {
        let stack = main_stack();
        for _ in 0..DRAWS {
            let start = (random()? % (USER_END / step) * step).wrapping_add(offset);
            let Some(end) = start.checked_add(len) else { continue };
            if start < RANDOM_FROM || end > USER_END - PAGE || start < stack.end && stack.start < end {
                continue;
            }
            if let Some(pages) = Pages::reserve_at(start, len, access)? {
                return Ok(pages);
            }
        }
        Err(Error::Memory { what: "find a free address range", error: io::Error::from_raw_os_error(libc::ENOMEM) })
    }

    /// First address.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// First address past the end.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }

    fn checked(&self, start: u64, len: u64) -> Result<(), Error> {
        let inside = start >= self.start && start.checked_add(len).is_some_and(|end| end <= self.end());
        let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        if inside && aligned { Ok(()) } else { Err(Error::Internal("a page range leaves its reservation")) }
    }

    /// Maps fresh zero pages over `start..start + len`, which must lie inside.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn map_zero(&self, start: u64, len: u64, access: Access) -> Result<(), Error> {
        self.map_over(start, len, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    /// Maps the beginning of the sealed memory file `fd` read-only over `start..start + len`, which must lie inside.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn map_shared_read_only(&self, start: u64, len: u64, file: &SharedBytes) -> Result<(), Error> {
        self.map_over(start, len, Access::Read, libc::MAP_PRIVATE, file.fd, 0)
    }

    /// Maps the pages of file `fd` from `offset` on over `start..start + len`, which must lie inside; writes reach the file.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn map_shared(&self, start: u64, len: u64, access: Access, fd: libc::c_int, offset: u64) -> Result<(), Error> {
        self.map_over(start, len, access, libc::MAP_SHARED, fd, offset)
    }

    fn map_over(
        &self,
        start: u64,
        len: u64,
        access: Access,
        flags: libc::c_int,
        fd: libc::c_int,
        offset: u64,
    ) -> Result<(), Error> {
        self.checked(start, len)?;
        let offset = libc::off_t::try_from(offset).map_err(|_| Error::Internal("a file offset is too large"))?;
        // SAFETY: the range lies inside this reservation (checked), which nothing else uses.
        let got = unsafe { libc::mmap(address(start), size(len), access.bits(), flags | libc::MAP_FIXED, fd, offset) };
        if got != libc::MAP_FAILED {
            return Ok(());
        }
        let error = memory("map pages");
        self.close_gap(start, len);
        Err(error)
    }

    /// Reserves `start..start + len` of the reservation again if nothing is mapped there: before Linux 6.12 a failed mapping over other pages
    /// leaves the range unmapped, and the host's next mapping could land in a window.
    fn close_gap(&self, start: u64, len: u64) {
        if let Ok(Some(gap)) = Pages::reserve_at(start, len, Access::None) {
            // It belongs to this reservation, which unmaps it.
            std::mem::forget(gap);
        }
    }

    /// Changes the access of `start..start + len`, which must lie inside.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn protect(&self, start: u64, len: u64, access: Access) -> Result<(), Error> {
        self.checked(start, len)?;
        // SAFETY: the range lies inside this reservation (checked).
        let failed = unsafe { libc::mprotect(address(start), size(len), access.bits()) } != 0;
        if failed { Err(memory("protect pages")) } else { Ok(()) }
    }

    /// Gives the private pages of `start..start + len` back to the kernel; they read as zero (or as their file) afterwards.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn discard(&self, start: u64, len: u64) -> Result<(), Error> {
        self.checked(start, len)?;
        // SAFETY: the range lies inside this reservation (checked); no reference into it is alive while its owner is borrowed mutably.
        let failed = unsafe { libc::madvise(address(start), size(len), libc::MADV_DONTNEED) } != 0;
        if failed { Err(memory("discard pages")) } else { Ok(()) }
    }

    /// Copies `bytes` to `start`; the range must lie inside and be writable.
    ///
    /// # Errors
    /// [`Error::Internal`] if the range leaves the reservation.
    ///
    /// # Safety
    /// The pages are mapped writable and no reference to them is alive.
    pub unsafe fn write(&self, start: u64, bytes: &[u8]) -> Result<(), Error> {
        let inside = start >= self.start && start.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.end());
        if !inside {
            return Err(Error::Internal("a write leaves its reservation"));
        }
        // SAFETY: inside the reservation, mapped writable as the caller says, and disjoint from `bytes`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, bytes.len()) };
        Ok(())
    }

    /// Makes mapping and protection of `start..start + len` final (`mseal`); gives whether the kernel could.
    pub fn seal(&self, start: u64, len: u64) -> bool {
        // SAFETY: mseal only forbids later changes.
        let sealed = self.checked(start, len).is_ok() && unsafe { libc::syscall(SYS_MSEAL, start, len, 0_u64) } == 0;
        if sealed && start == self.start && len == self.len {
            self.sealed.store(true, Ordering::Relaxed);
        }
        sealed
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is owned and, with its owner gone, unused.
        if !self.sealed.load(Ordering::Relaxed) && unsafe { libc::munmap(address(self.start), size(self.len)) } != 0 {
            self.unmap_around_seals();
        }
    }
}

impl Pages {
    /// Unmaps what is not sealed, page range by page range: sealed pages stay to the end of the process.
    fn unmap_around_seals(&self) {
        let mut ranges = vec![(self.start, self.len)];
        while let Some((start, len)) = ranges.pop() {
            // SAFETY: a part of the owned, unused range.
            if unsafe { libc::munmap(address(start), size(len)) } != 0 && len > PAGE {
                let half = (len / 2).next_multiple_of(PAGE);
                ranges.push((start, half));
                ranges.push((start + half, len - half));
            }
        }
    }
}

/// Where the stack of the main thread lies and may grow to. Nothing is mapped in most of it, so the kernel would give it away, and the host
/// would die of a stack overflow when it needs it.
fn main_stack() -> Range<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes `limit` only; getauxval has no preconditions. The name of the program lies on the stack's last page (execve).
    let (failed, name) = unsafe { (libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) != 0, libc::getauxval(libc::AT_EXECFN)) };
    let size = if failed { MOST_STACK } else { limit.rlim_cur.min(MOST_STACK) };
    let end = name.next_multiple_of(PAGE);
    end.saturating_sub(size + STACK_GAP)..end
}

/// A sealed memory file: bytes that every window of an image maps read-only.
#[derive(Debug)]
pub struct SharedBytes {
    fd: libc::c_int,
}

impl SharedBytes {
    /// Makes an unchangeable memory file of `len` bytes: `parts` at their offsets, zero besides.
    ///
    /// # Errors
    /// [`Error::Memory`] if the kernel refuses.
    pub fn new(parts: &[(u64, &[u8])], len: u64) -> Result<SharedBytes, Error> {
        // SAFETY: a constant NUL-terminated name.
        let fd = unsafe { libc::memfd_create(c"cordon".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(memory("make a memory file"));
        }
        let file = SharedBytes { fd };
        // SAFETY: our own descriptor.
        if unsafe { libc::ftruncate(fd, len.cast_signed()) } != 0 {
            return Err(memory("size a memory file"));
        }
        for (offset, bytes) in parts {
            file.fill(*offset, bytes)?;
        }
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: our own descriptor.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } != 0 {
            return Err(memory("seal a memory file"));
        }
        Ok(file)
    }

    fn fill(&self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            // SAFETY: our own descriptor; `bytes` is valid for reads of its length.
            let wrote = unsafe { libc::pwrite(self.fd, bytes.as_ptr().cast(), bytes.len(), offset.cast_signed()) };
            match usize::try_from(wrote).ok().and_then(|n| bytes.split_at_checked(n)) {
                Some((done, rest)) if !done.is_empty() => {
                    bytes = rest;
                    offset += done.len() as u64;
                }
                _ => return Err(memory("fill a memory file")),
            }
        }
        Ok(())
    }
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        // SAFETY: our own descriptor, closed once; mappings of it stay valid.
        unsafe { libc::close(self.fd) };
    }
}

/// 64 random bits from the kernel.
///
/// # Errors
/// [`Error::Memory`] if the kernel gives none.
pub fn random() -> Result<u64, Error> {
    let mut bytes = [0_u8; 8];
    loop {
        // SAFETY: the buffer is valid for eight bytes.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got == 8 {
            return Ok(u64::from_ne_bytes(bytes));
        }
        let error = io::Error::last_os_error();
        if got < 0 && error.raw_os_error() != Some(libc::EINTR) {
            return Err(Error::Memory { what: "get random bytes", error });
        }
    }
}

fn memory(what: &'static str) -> Error {
    refused(what, io::Error::last_os_error())
}

/// Mappings that a call may need at most for a moment, and that the kernel counts otherwise than it lists them.
const NEARLY: u64 = 4;

/// What the kernel's refusal means: too little memory, or too many mappings, for which it has the same number.
#[cold]
fn refused(what: &'static str, error: io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ENOMEM)
        && let Some((mappings, limit)) = mappings()
        && mappings + NEARLY >= limit
    {
        return Error::Mappings { what, mappings, limit };
    }
    Error::Memory { what, error }
}

/// Mappings of this process, and how many it may have.
fn mappings() -> Option<(u64, u64)> {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let mut maps = std::fs::File::open("/proc/self/maps").ok()?;
    let (mut count, mut buffer) = (0, [0; 4096]);
    loop {
        match maps.read(&mut buffer).ok()? {
            0 => return Some((count, limit)),
            len => count += buffer[..len].iter().filter(|&&byte| byte == b'\n').count() as u64,
        }
    }
}

fn address(start: u64) -> *mut libc::c_void {
    start as *mut libc::c_void
}

/// Lengths here are at most a few times 4 GiB and the target is 64-bit.
const fn size(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_of_the_main_thread_has_room_to_grow() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("readable");
        let line = maps.lines().find(|line| line.ends_with("[stack]")).expect("there is one");
        let (start, rest) = line.split_once('-').expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let (start, end) = (number(start), number(rest.split(' ').next().expect("its end")));
        let stack = main_stack();
        assert_eq!(stack.end, end);
        assert!(stack.start <= start && end - stack.start > STACK_GAP, "{stack:x?}");
        // With this step every draw gives the same address.
        let at = |start| Pages::reserve_random(PAGE, USER_END, start, Access::None).map(|pages| pages.start());
        assert!(at(stack.start).is_err() && at(start - PAGE).is_err());
        assert_eq!(at(stack.start - PAGE).ok(), Some(stack.start - PAGE));
    }

    #[test]
    fn a_gap_that_a_failed_mapping_leaves_is_closed() {
        let pages = Pages::reserve_random(8 * PAGE, PAGE, 0, Access::None).expect("reserved");
        let gap = pages.start() + 2 * PAGE;
        // SAFETY: a part of the reservation, which nothing uses: what an older kernel does.
        assert_eq!(unsafe { libc::munmap(address(gap), size(3 * PAGE)) }, 0);
        pages.close_gap(gap, 3 * PAGE);
        for page in 0..8 {
            let taken = Pages::reserve_at(pages.start() + page * PAGE, PAGE, Access::None);
            assert!(matches!(taken, Ok(None)), "page {page}");
        }
        assert!(pages.map_shared(gap, PAGE, Access::Read, -1, 0).is_err());
        pages.map_zero(pages.start(), 8 * PAGE, Access::ReadWrite).expect("all of it is still ours");
    }
}
