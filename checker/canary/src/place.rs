//! Where everything lies in the canary process: a window, a native stack, text and stubs, each alone in its terabyte, so that an address
//! which is off by anything faults where nothing is mapped.

use crate::random::Random;
use cordon_checker::layout::{RegionKind, Slot, USER_STACK_LOW};
use cordon_checker::note::NoteSpec;

/// The window's address; nothing is mapped in it but the layout's regions and the table. Its low half is no number that programs have.
pub(crate) const BASE: u64 = 0x1357_9bdf_0000;
pub(crate) const TEXT: u64 = 0x2468_0000_0000;
/// The native stack; its low half is the layout's.
const STACK: u64 = 0x3579_0000_0000;
/// Bytes of native stack mapped below the entry's return address besides the layout's depth; a call or two fit.
const STACK_LEN: u64 = 0x8000;
/// Bytes mapped above it, all poison: what belongs to the host.
const ABOVE: u64 = 0x1000;
/// Where the trap stub and the gate lie.
const STUBS: u64 = 0x5791_0000_0000;
pub(crate) const TRAP: u64 = STUBS;
pub(crate) const GATE: u64 = STUBS + 16;
/// Where the outermost `ret` goes: no address at all.
pub(crate) const GONE: u64 = 0x4681_9abc_def0;
/// Upper half of every word of poison.
const POISON: u32 = 0xd15e_a5ed;
/// Bytes around the window that nobody maps and that an access may reach.
const AROUND: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
/// Words of a page, which are compared and restored together.
const CHUNK: usize = 512;

const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Pages of this process, given back when dropped.
#[derive(Debug)]
struct Pages {
    start: u64,
    len: u64,
}

impl Pages {
    fn map(start: u64, len: u64, protection: libc::c_int) -> Pages {
        // SAFETY: replaces nothing.
        let got = unsafe {
            libc::mmap(start as *mut libc::c_void, len as usize, protection, PRIVATE | libc::MAP_FIXED_NOREPLACE, -1, 0)
        };
        assert_eq!(got as u64, start, "the address is free");
        Pages { start, len }
    }

    fn protect(&self, start: u64, len: u64, protection: libc::c_int) {
        assert!(start >= self.start && start + len <= self.start + self.len, "{start:#x} lies in these pages");
        // SAFETY: pages of this value.
        assert_eq!(unsafe { libc::mprotect(start as *mut libc::c_void, len as usize, protection) }, 0);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nothing borrows pages longer than their place lives.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len as usize) };
    }
}

/// Pages that programs see with one protection and the harness writes elsewhere.
#[derive(Debug)]
struct Alias {
    /// Where programs see them: here if that is not within other pages.
    _seen: Option<Pages>,
    written: Pages,
}

impl Alias {
    /// `within`: `at` lies in pages that are mapped, which these replace.
    fn new(at: u64, len: u64, protection: libc::c_int, within: bool) -> Alias {
        let fixed = if within { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
        // SAFETY: a new file; replaces nothing but what the caller says.
        unsafe {
            let file = libc::memfd_create(c"canary".as_ptr(), libc::MFD_CLOEXEC);
            assert!(file >= 0 && libc::ftruncate(file, len as libc::off_t) == 0);
            let seen = libc::mmap(at as *mut libc::c_void, len as usize, protection, libc::MAP_SHARED | fixed, file, 0);
            assert_eq!(seen as u64, at, "the address is free");
            let written = libc::mmap(std::ptr::null_mut(), len as usize, RW, libc::MAP_SHARED, file, 0);
            assert_ne!(written, libc::MAP_FAILED);
            libc::close(file);
            Alias { _seen: (!within).then_some(Pages { start: at, len }), written: Pages { start: written as u64, len } }
        }
    }

    fn bytes(&self) -> &'static mut [u8] {
        // SAFETY: mapped, writable; each slice is dropped before the next one is made.
        unsafe { std::slice::from_raw_parts_mut(self.written.start as *mut u8, self.written.len as usize) }
    }
}

/// Writable memory of programs, and what it holds before a run.
#[derive(Debug)]
struct Area {
    start: u64,
    pristine: Vec<u64>,
    /// Pages that the last run changed, by number.
    dirty: Vec<usize>,
}

impl Area {
    /// Fills mapped pages.
    fn new(start: u64, pristine: Vec<u64>) -> Area {
        let area = Area { start, pristine, dirty: Vec::new() };
        area.words().copy_from_slice(&area.pristine);
        area
    }

    fn words(&self) -> &'static mut [u64] {
        // SAFETY: mapped, writable; each slice is dropped before the next one to the same place is made.
        unsafe { std::slice::from_raw_parts_mut(self.start as *mut u64, self.pristine.len()) }
    }

    /// Restores everything; calls `changed` with the place and value of each changed word and the word in front of it.
    fn restore(&mut self, mut changed: impl FnMut(u64, u64, u64)) {
        let words = self.words();
        self.dirty.clear();
        let pages = words.chunks(CHUNK).zip(self.pristine.chunks(CHUNK)).enumerate();
        self.dirty.extend(pages.filter(|(_, (now, before))| now != before).map(|(page, _)| page));
        for &page in &self.dirty {
            for i in page * CHUNK..words.len().min((page + 1) * CHUNK) {
                if words[i] != self.pristine[i] {
                    changed(self.start + 8 * i as u64, words[i], if i == 0 { 0 } else { words[i - 1] });
                }
            }
        }
        for &page in &self.dirty {
            let end = words.len().min((page + 1) * CHUNK);
            words[page * CHUNK..end].copy_from_slice(&self.pristine[page * CHUNK..end]);
        }
    }
}

/// Everything that is mapped for programs of one layout.
#[derive(Debug)]
pub struct Place {
    spec: NoteSpec,
    text: Alias,
    table: Alias,
    /// Of the window.
    areas: Vec<Area>,
    stack: Area,
    _pages: [Pages; 3],
}

impl Place {
    /// Memory for text of at most `room` bytes under the layout of `spec`, a user host's. `contents`: what the image puts at window offsets; all else holds small
    /// numbers, some of them offsets of mapped memory.
    #[must_use]
    pub fn new(spec: &NoteSpec, contents: &[(u32, &[u8])], room: usize) -> Place {
        let window = Pages::map(BASE - AROUND, (1 << 32) + 2 * AROUND, libc::PROT_NONE);
        let data = spec.regions.iter().find(|r| r.kind != RegionKind::Rodata).map_or(0, |r| r.start);
        let mut areas = Vec::new();
        for region in &spec.regions {
            let (start, len) = (BASE + u64::from(region.start), u64::from(region.end - region.start));
            window.protect(start, len, RW);
            let mut bytes: Vec<u8> = (0..len as usize / 8).flat_map(|i| content(i, data).to_le_bytes()).collect();
            for (at, given) in contents.iter().filter(|(at, _)| (region.start..region.end).contains(at)) {
                let at = (at - region.start) as usize;
                bytes[at..at + given.len()].copy_from_slice(given);
            }
            let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect();
            let area = Area::new(start, words);
            match region.kind {
                RegionKind::Rodata => window.protect(start, len, libc::PROT_READ),
                _ => areas.push(area),
            }
        }
        let table_len = u64::from(spec.table_end.abs_diff(spec.table));
        let table = Alias::new(BASE + u64::from(spec.table.cast_unsigned()), table_len, libc::PROT_READ, true);
        let text_len = (room as u64).next_multiple_of(PAGE);
        let text = Alias::new(TEXT, text_len, libc::PROT_READ | libc::PROT_EXEC, false);
        let stubs = Pages::map(STUBS, PAGE, RW);
        // SAFETY: just mapped. ud2; and xor %eax,%eax; ret
        unsafe { (STUBS as *mut [u64; 4]).write([0x0b0f, 0, 0xc3_c031, 0]) };
        stubs.protect(STUBS, PAGE, libc::PROT_READ | libc::PROT_EXEC);
        let below = (STACK_LEN + u64::from(spec.max_depth)).next_multiple_of(PAGE);
        let entry = STACK + u64::from(spec.stack_low);
        let start = entry + 8 - below;
        let pages = Pages::map(start, below + ABOVE, RW);
        let mut poison: Vec<u64> = (start..start + below + ABOVE).step_by(8).map(poison_word).collect();
        poison[(entry - start) as usize / 8] = GONE;
        let stack = Area::new(start, poison);
        Place { spec: spec.clone(), text, table, areas, stack, _pages: [window, stubs, pages] }
    }

    /// The layout's.
    #[must_use]
    pub fn spec(&self) -> &NoteSpec {
        &self.spec
    }

    /// Most bytes of text.
    #[must_use]
    pub fn room(&self) -> usize {
        self.text.written.len as usize
    }

    /// rsp at entry.
    pub(crate) fn entry_stack(&self) -> u64 {
        STACK + u64::from(self.spec.stack_low)
    }

    /// A window offset of writable memory.
    pub(crate) fn offset(&self, random: &mut Random) -> u64 {
        let area = &self.areas[random.below(self.areas.len())];
        let len = 8 * area.pristine.len();
        area.start - BASE + random.below(len) as u64
    }

    /// Puts text in place, `int3` behind it, and fills the tables as a loader does. `spec` is the place's but for entries and slots.
    pub(crate) fn load(&self, text: &[u8], spec: &NoteSpec) {
        let page = self.text.bytes();
        page[..text.len()].copy_from_slice(text);
        let end = (text.len() + 64).min(page.len());
        page[text.len()..end].fill(0xcc);
        self.table.bytes().chunks_exact_mut(8).for_each(|slot| slot.copy_from_slice(&TRAP.to_le_bytes()));
        let put = |first: usize, slots: &[Slot]| {
            for (bytes, slot) in self.table.bytes()[8 * first..].chunks_exact_mut(8).zip(slots) {
                bytes.copy_from_slice(&address(slot).to_le_bytes());
            }
        };
        put(0, &spec.slots);
        for (sub, members) in &spec.sub_tables {
            put((sub.base - spec.table) as usize / 8, members);
        }
    }

    /// Writes the slots of a frame below the outermost return address: bit i of `set` is that of depth 8·(i+1).
    pub(crate) fn push(&self, set: u64, mut value: impl FnMut() -> u64) {
        let words = self.stack.words();
        let entry = (self.entry_stack() - self.stack.start) as usize / 8;
        for i in (0..16).filter(|i| set >> i & 1 == 1) {
            words[entry - 1 - i] = value();
        }
    }

    /// Whether a page fault at `address` is one that the design allows: in the window or around it, or right below the native stack.
    pub(crate) fn may_fault_at(&self, address: u64) -> bool {
        let bottom = self.stack.start;
        let guard = AROUND + u64::from(self.spec.max_depth);
        (BASE..BASE + (1 << 32) + AROUND).contains(&address) || (bottom - guard..bottom).contains(&address)
    }

    /// What a run left: secrets in window memory (if any count as such), or changes above the entry's frame. Restores everything.
    pub(crate) fn inspect(&mut self, secrets: bool) -> Result<(), String> {
        let entry = self.entry_stack();
        let mut wrong = None;
        self.stack.restore(|at, _, _| {
            if at >= entry {
                wrong.get_or_insert_with(|| format!("changed the host's stack {} bytes above the return address", at - entry));
            }
        });
        for area in &mut self.areas {
            area.restore(|at, word, before| {
                // A secret may lie across words.
                for value in [word, word << 32 | before >> 32] {
                    if secrets && let Some(what) = secret(value) {
                        wrong.get_or_insert_with(|| format!("{what} in memory at {at:#x}"));
                    }
                }
            });
        }
        wrong.map_or(Ok(()), Err)
    }
}

/// What a slot of a table holds.
pub(crate) fn address(slot: &Slot) -> u64 {
    match *slot {
        Slot::Trap => TRAP,
        Slot::Import(_) => GATE,
        Slot::Text(offset) => TEXT + u64::from(offset),
    }
}

/// What a word of window memory holds before a run: small numbers, some of them offsets into memory from `data` on.
fn content(index: usize, data: u32) -> u64 {
    match index % 4 {
        0 => 0,
        1 => u64::from(data) + 64 * (index as u64 % 512),
        2 => index as u64 % 251,
        _ => !0,
    }
}

/// What lies on the native stack at `at`.
fn poison_word(at: u64) -> u64 {
    u64::from(POISON) << 32 | at & 0xffff_ffff
}

/// What a 64-bit value gives away: poison, an address of the native stack or of the window, the return address to the host. Addresses of text
/// and stubs are in the table, which programs may read (DESIGN §2).
pub(crate) fn secret(value: u64) -> Option<String> {
    let (high, low) = ((value >> 32) as u32, value as u32);
    let stack = high == (STACK >> 32) as u32 && low >> 20 == USER_STACK_LOW >> 20;
    let window = (BASE..BASE + 0x2_0000).contains(&value);
    (high == POISON || low == POISON || stack || window || value == GONE).then(|| format!("a secret, {value:#x},"))
}
