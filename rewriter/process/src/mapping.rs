//! `mmap` and its kin on the window's heap.

use crate::files::Files;
use crate::guest::{Answer, Guest, MOST, descriptor};
use crate::heap::{Given, Heap, pages};
use rustix::io::Errno;

/// `mmap` flags.
const MAP_SHARED: u64 = 1;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// Protections.
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
/// `mremap` flags.
const MREMAP_MAYMOVE: u64 = 1;
/// `madvise`: the pages' content is not needed, and reads as zero from now on.
const MADV_DONTNEED: u64 = 4;

/// Moves the break; gives the new or, if that is not possible, the old one.
pub fn brk(heap: &mut Heap, guest: &mut Guest<'_, '_>, to: u64) -> Answer {
    if let Some(stale) = heap.set_brk(to) {
        guest.zero(stale.start, stale.end.saturating_sub(stale.start))?;
    }
    Ok(heap.brk())
}

/// Zeroes what has to be.
fn given(guest: &mut Guest<'_, '_>, given: &Given) -> Answer {
    guest.zero(given.stale.start, given.stale.end - given.stale.start)?;
    Ok(given.range.start)
}

/// `mmap`.
pub fn map(heap: &mut Heap, files: &Files, guest: &mut Guest<'_, '_>, arguments: [u64; 6]) -> Answer {
    let [address, length, protection, flags, file, offset] = arguments;
    if protection & PROT_EXEC != 0 {
        return Err(Errno::ACCESS);
    }
    if length == 0 || flags & MAP_FIXED_NOREPLACE != 0 {
        return Err(Errno::INVAL);
    }
    let source = if flags & MAP_ANONYMOUS != 0 {
        None
    } else {
        let handle = files.get(descriptor(file))?;
        // A copy is not shared: only one that neither side changes through the other may stand for it.
        if handle.stream || handle.folder || flags & MAP_SHARED != 0 && protection & PROT_WRITE != 0 {
            return Err(Errno::NODEV);
        }
        if !handle.readable {
            return Err(Errno::ACCESS);
        }
        if !offset.is_multiple_of(crate::heap::PAGE) {
            return Err(Errno::INVAL);
        }
        Some(handle)
    };
    let range = if flags & MAP_FIXED != 0 { heap.map_fixed(address, length)? } else { heap.map(length)? };
    let start = given(guest, &range)?;
    if let Some(handle) = source {
        let mut at = 0;
        while at < length {
            let mut bytes = vec![0; (length - at).min(MOST) as usize];
            let count = match offset.checked_add(at) {
                Some(from) => rustix::io::pread(&handle.file, &mut bytes, from)?,
                None => 0,
            };
            if count == 0 {
                break;
            }
            guest.write(start + at, &bytes[..count])?;
            at += count as u64;
        }
    }
    Ok(start)
}

/// `mprotect`: the heap is readable and writable throughout.
pub fn protect(heap: &Heap, address: u64, length: u64, protection: u64) -> Answer {
    if protection & PROT_EXEC != 0 {
        return Err(Errno::ACCESS);
    }
    if length != 0 {
        heap.range(address, length)?;
    }
    Ok(0)
}

/// `madvise`.
pub fn advise(heap: &Heap, guest: &mut Guest<'_, '_>, address: u64, length: u64, advice: u64) -> Answer {
    let range = heap.range(address, length)?;
    if advice == MADV_DONTNEED {
        guest.zero(range.start, range.end - range.start)?;
    }
    Ok(0)
}

/// `mremap`.
pub fn remap(heap: &mut Heap, guest: &mut Guest<'_, '_>, address: u64, old: u64, new: u64, flags: u64) -> Answer {
    let range = heap.range(address, old)?;
    let (old, new) = (range.end - range.start, pages(new).map_err(|_| Errno::INVAL)?);
    if !heap.is_mapped(&range) || flags & !MREMAP_MAYMOVE != 0 {
        return Err(if flags & !MREMAP_MAYMOVE != 0 { Errno::INVAL } else { Errno::FAULT });
    }
    if new < old {
        heap.unmap(range.start + new, old - new)?;
    }
    if new <= old {
        return Ok(range.start);
    }
    if let Some(more) = heap.extend(&range, new - old) {
        given(guest, &more)?;
        return Ok(range.start);
    }
    if flags & MREMAP_MAYMOVE == 0 {
        return Err(Errno::NOMEM);
    }
    let moved = heap.map(new)?;
    let start = given(guest, &moved)?;
    let mut at = 0;
    while at < old {
        let bytes = guest.read(range.start + at, old - at)?;
        guest.write(start + at, &bytes)?;
        at += bytes.len() as u64;
    }
    heap.unmap(range.start, old)?;
    Ok(start)
}
