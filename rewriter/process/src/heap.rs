//! Who has which part of the window's heap region: the break grows from its start, mappings are taken from its end downwards.

use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Bookkeeping only: no memory is touched here. All ranges are window offsets.
#[derive(Debug)]
pub struct Heap {
    region: Range<u64>,
    /// Current break.
    brk: u64,
    /// End of what the break has ever covered; behind it nothing below `fresh` was ever given out.
    highest_brk: u64,
    /// Start of the lowest mapping ever; between `highest_brk` and this, memory is still zero.
    fresh: u64,
    /// Mappings by start: end. None touch each other's bytes; neighbours are not joined.
    mapped: BTreeMap<u64, u64>,
}

/// A range that was given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub range: Range<u64>,
    /// The part of it that may hold old bytes and has to be zeroed.
    pub stale: Range<u64>,
}

/// `length` in whole pages.
pub fn pages(length: u64) -> Result<u64, Errno> {
    length.checked_next_multiple_of(PAGE).filter(|l| *l != 0).ok_or(Errno::NOMEM)
}

impl Heap {
    /// All of `region`, which begins and ends at page boundaries, is free and zero.
    pub fn new(region: Range<u64>) -> Heap {
        Heap { brk: region.start, highest_brk: region.start, fresh: region.end, region, mapped: BTreeMap::new() }
    }

    /// Current break.
    pub fn brk(&self) -> u64 {
        self.brk
    }

    /// Moves the break to `to` if there is room; gives the bytes that have to be zeroed.
    pub fn set_brk(&mut self, to: u64) -> Option<Range<u64>> {
        let lowest = self.mapped.keys().next().copied().unwrap_or(self.region.end);
        if to < self.region.start || to > lowest {
            return None;
        }
        // Below the highest break and above the lowest mapping there may be old bytes.
        let old = self.brk..to;
        self.brk = to;
        let stale = if to > self.fresh { old } else { old.start..old.end.min(self.highest_brk) };
        self.highest_brk = self.highest_brk.max(to);
        Some(stale)
    }

    /// First page that the break does not touch.
    fn floor(&self) -> u64 {
        self.brk.next_multiple_of(PAGE)
    }

    /// Takes `length` bytes, whole pages, as high as possible.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn map(&mut self, length: u64) -> Result<Given, Errno> {
        let length = pages(length)?;
        let mut end = self.region.end;
        for (&start, &stop) in self.mapped.iter().rev() {
            if end - stop >= length {
                break;
            }
            end = start;
        }
        let start = end.checked_sub(length).filter(|start| *start >= self.floor()).ok_or(Errno::NOMEM)?;
        Ok(self.take(start..end))
    }

    /// Takes exactly `start..start + length`, in place of what is mapped there.
    ///
    /// # Errors
    /// `EINVAL` if it is not page-aligned, `ENOMEM` if it is not all in the heap above the break.
    pub fn map_fixed(&mut self, start: u64, length: u64) -> Result<Given, Errno> {
        let range = self.range(start, length)?;
        if range.start < self.floor() {
            return Err(Errno::NOMEM);
        }
        self.remove(&range);
        Ok(self.take(range))
    }

    fn take(&mut self, range: Range<u64>) -> Given {
        let stale = range.start.max(self.fresh).min(range.end)..range.end;
        // What the break once covered lies below everything that is fresh.
        let stale = if range.start < self.highest_brk { range.clone() } else { stale };
        self.fresh = self.fresh.min(range.start);
        self.mapped.insert(range.start, range.end);
        Given { range, stale }
    }

    /// Gives back whatever is mapped in `start..start + length`.
    ///
    /// # Errors
    /// `EINVAL` if it is not page-aligned or not in the heap.
    pub fn unmap(&mut self, start: u64, length: u64) -> Result<(), Errno> {
        let range = self.range(start, length).map_err(|_| Errno::INVAL)?;
        self.remove(&range);
        Ok(())
    }

    fn remove(&mut self, range: &Range<u64>) {
        let hit: Vec<(u64, u64)> =
            self.mapped.range(..range.end).filter(|(_, end)| **end > range.start).map(|(s, e)| (*s, *e)).collect();
        for (start, end) in hit {
            self.mapped.remove(&start);
            if start < range.start {
                self.mapped.insert(start, range.start);
            }
            if end > range.end {
                self.mapped.insert(range.end, end);
            }
        }
    }

    /// The pages of `start..start + length`, which lie in the heap.
    ///
    /// # Errors
    /// `EINVAL` if `start` is not page-aligned or the length is 0, `ENOMEM` if part of it lies outside.
    pub fn range(&self, start: u64, length: u64) -> Result<Range<u64>, Errno> {
        if !start.is_multiple_of(PAGE) || length == 0 {
            return Err(Errno::INVAL);
        }
        let end = start.checked_add(pages(length)?).ok_or(Errno::NOMEM)?;
        if start < self.region.start || end > self.region.end { Err(Errno::NOMEM) } else { Ok(start..end) }
    }

    /// Whether every byte of `range` is mapped.
    pub fn is_mapped(&self, range: &Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            match self.mapped.range(..=at).next_back() {
                Some((_, end)) if *end > at => at = *end,
                _ => return false,
            }
        }
        true
    }

    /// Makes `range`, which is mapped, longer by `more` bytes in place if the pages behind it are free.
    pub fn extend(&mut self, range: &Range<u64>, more: u64) -> Option<Given> {
        let wanted = range.end..range.end.checked_add(more).filter(|end| *end <= self.region.end)?;
        let free = self.mapped.range(..wanted.end).next_back().is_none_or(|(_, end)| *end <= wanted.start);
        free.then(|| self.take(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::{Heap, PAGE};
    use rustix::io::Errno;

    const START: u64 = 0x10_0000;
    const END: u64 = START + 16 * PAGE;

    #[test]
    fn mappings_come_from_the_end_and_fill_holes() {
        let mut heap = Heap::new(START..END);
        let a = heap.map(2 * PAGE).expect("room");
        let b = heap.map(1).expect("room");
        assert_eq!((a.range.start, b.range.clone()), (END - 2 * PAGE, END - 3 * PAGE..END - 2 * PAGE));
        assert!(a.stale.is_empty() && b.stale.is_empty());
        heap.unmap(a.range.start, PAGE).expect("its first page");
        let c = heap.map(PAGE).expect("the hole");
        assert_eq!((c.range.clone(), c.stale), (a.range.start..a.range.start + PAGE, a.range.start..a.range.start + PAGE));
        assert!(heap.is_mapped(&(b.range.start..END)) && !heap.is_mapped(&(b.range.start - PAGE..END)));
        assert_eq!(heap.map(14 * PAGE), Err(Errno::NOMEM));
        assert_eq!(heap.map(u64::MAX), Err(Errno::NOMEM));
        assert_eq!(heap.map(0), Err(Errno::NOMEM));
    }

    #[test]
    fn break_and_mappings_do_not_meet() {
        let mut heap = Heap::new(START..END);
        assert_eq!(heap.set_brk(START + 100), Some(START..START));
        let all = heap.map(15 * PAGE).expect("all but the break's page");
        assert_eq!(all.range.start, START + PAGE);
        assert_eq!((heap.set_brk(START + PAGE + 1), heap.set_brk(START - 1), heap.set_brk(u64::MAX)), (None, None, None));
        assert_eq!(heap.map_fixed(START, PAGE), Err(Errno::NOMEM));
        assert_eq!(heap.map_fixed(END - PAGE, 2 * PAGE), Err(Errno::NOMEM));
        assert_eq!(heap.map_fixed(END - 1, 1), Err(Errno::INVAL));
        assert_eq!(heap.map_fixed(u64::MAX - PAGE + 1, PAGE), Err(Errno::NOMEM));
        assert_eq!(heap.brk(), START + 100);
    }

    #[test]
    fn memory_that_comes_back_is_stale() {
        let mut heap = Heap::new(START..END);
        heap.set_brk(START + 4 * PAGE).expect("room");
        heap.set_brk(START + PAGE).expect("smaller");
        assert_eq!(heap.set_brk(START + 5 * PAGE), Some(START + PAGE..START + 4 * PAGE));
        heap.set_brk(START).expect("none");
        let all = heap.map(16 * PAGE).expect("everything");
        assert_eq!(all.stale, START..END);
        heap.unmap(START, 16 * PAGE).expect("everything");
        assert_eq!(heap.set_brk(START + PAGE), Some(START..START + PAGE));
        let part = heap.map(PAGE).expect("room");
        assert_eq!(heap.extend(&part.range, PAGE), None);
        let fixed = heap.map_fixed(START + 2 * PAGE, PAGE).expect("free");
        assert_eq!(heap.extend(&fixed.range, PAGE).map(|g| g.stale), Some(START + 3 * PAGE..START + 4 * PAGE));
    }
}
