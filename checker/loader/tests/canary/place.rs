//! Where everything lies in the canary process: a window, a native stack, text and stubs, each alone in its terabyte, so that an address
//! which is off by anything faults where nothing is mapped.

use cordon_checker::layout::{Slot, USER_STACK_LOW};
use cordon_checker::note::NoteSpec;
use cordon_checker::sample;

/// The window's address; nothing is mapped in it but the layout's regions and the table.
pub const BASE: u64 = 0x1357_0000_0000;
pub const TEXT: u64 = 0x2468_0000_0000;
pub const TEXT_LEN: usize = 0x1000;
/// The native stack; its low half is the layout's.
pub const STACK: u64 = 0x3579_0000_0000;
/// Bytes of native stack mapped below the entry's return address; D and a call or two fit.
const STACK_LEN: u64 = 0x8000;
/// Bytes mapped above it, all poison: what belongs to the host.
const ABOVE: u64 = 0x1000;
/// Where the trap stub and the gate lie.
pub const STUBS: u64 = 0x5791_0000_0000;
pub const TRAP: u64 = STUBS;
pub const GATE: u64 = STUBS + 16;
/// Where the outermost `ret` goes: no address at all.
pub const GONE: u64 = 0x4681_9abc_def0;
/// Upper half of every word of poison.
pub const POISON: u32 = 0xd15e_a5ed;
/// Bytes around the window that nobody maps and that an access may reach.
const AROUND: u64 = 0x1_0000;

const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn map(start: u64, len: u64, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got = unsafe { libc::mmap(start as *mut libc::c_void, len as usize, protection, flags, -1, 0) };
    assert_eq!(got as u64, start, "the address is free");
}

fn protect(start: u64, len: u64, protection: libc::c_int) {
    // SAFETY: pages of this test.
    assert_eq!(unsafe { libc::mprotect(start as *mut libc::c_void, len as usize, protection) }, 0);
}

fn words(start: u64, bytes: u64) -> &'static mut [u64] {
    // SAFETY: mapped, writable pages of this test; each slice is dropped before the next one to the same place is made.
    unsafe { std::slice::from_raw_parts_mut(start as *mut u64, (bytes / 8) as usize) }
}

/// What a word of window memory holds before a run: small numbers, some of them offsets into mapped memory.
fn content(index: usize) -> u64 {
    match index % 4 {
        0 => 0,
        1 => 0x1_2000 + 64 * (index as u64 % 512),
        2 => index as u64 % 251,
        _ => !0,
    }
}

/// Everything that is mapped for programs.
pub struct Place {
    spec: NoteSpec,
    /// Of the window.
    regions: Vec<(u64, u64)>,
}

impl Place {
    pub fn new() -> Place {
        let spec = sample::user();
        map(BASE - AROUND, (1 << 32) + 2 * AROUND, libc::PROT_NONE);
        let regions: Vec<(u64, u64)> =
            spec.regions.iter().map(|r| (BASE + u64::from(r.start), u64::from(r.end - r.start))).collect();
        for &(start, len) in &regions {
            protect(start, len, RW);
            words(start, len).iter_mut().enumerate().for_each(|(i, word)| *word = content(i));
        }
        map(TEXT, TEXT_LEN as u64, RW | libc::PROT_EXEC);
        map(STUBS, 0x1000, RW);
        // ud2; and xor %eax,%eax; ret
        words(STUBS, 32).copy_from_slice(&[0x0b0f, 0, 0xc3_c031, 0]);
        protect(STUBS, 0x1000, libc::PROT_READ | libc::PROT_EXEC);
        let entry = STACK + u64::from(spec.stack_low);
        map(entry + 8 - STACK_LEN, STACK_LEN + ABOVE, RW);
        let place = Place { spec, regions };
        poison(words(entry + 8 - STACK_LEN, STACK_LEN + ABOVE));
        place
    }

    pub fn spec(&self) -> &NoteSpec {
        &self.spec
    }

    /// rsp at entry.
    pub fn entry_stack(&self) -> u64 {
        STACK + u64::from(self.spec.stack_low)
    }

    /// Puts text into its page, `int3` behind it, and fills the tables as a loader does.
    pub fn load(&self, text: &[u8], spec: &NoteSpec) {
        // SAFETY: the text's pages; nothing runs there now.
        let page = unsafe { std::slice::from_raw_parts_mut(TEXT as *mut u8, TEXT_LEN) };
        page[..text.len()].copy_from_slice(text);
        page[text.len()..].fill(0xcc);
        let table = BASE + u64::from(spec.table.cast_unsigned());
        let len = u64::from(spec.table_end.abs_diff(spec.table));
        protect(table, len, RW);
        let slots = words(table, len);
        slots.fill(TRAP);
        let address = |slot: &Slot| match *slot {
            Slot::Trap => TRAP,
            Slot::Import(_) => GATE,
            Slot::Text(offset) => TEXT + u64::from(offset),
        };
        slots.iter_mut().zip(&spec.slots).for_each(|(to, slot)| *to = address(slot));
        for (sub, members) in &spec.sub_tables {
            let first = (sub.base - spec.table) as usize / 8;
            slots[first..].iter_mut().zip(members).for_each(|(to, slot)| *to = address(slot));
        }
        protect(table, len, libc::PROT_READ);
    }

    /// Puts the outermost return address.
    pub fn push_return(&self) {
        words(self.entry_stack(), 8)[0] = GONE;
    }

    /// Whether a page fault at `address` is one that the design allows: in the window or around it, or right below the native stack.
    pub fn may_fault_at(&self, address: u64) -> bool {
        let bottom = self.entry_stack() + 8 - STACK_LEN;
        (BASE..BASE + (1 << 32) + AROUND).contains(&address) || (bottom - AROUND..bottom).contains(&address)
    }

    /// What a run left: secrets in window memory, or changes above the entry's frame. Restores everything; `deepest` is the lowest rsp.
    pub fn inspect(&self, deepest: u64) -> Result<(), String> {
        let entry = self.entry_stack();
        let above = words(entry + 8, ABOVE);
        let changed = above.iter().enumerate().find(|(i, word)| **word != poison_word(entry + 8, *i)).map(|(i, _)| i);
        let from = (deepest.max(entry + 8 - STACK_LEN + 64) - 64) & !7;
        poison(words(from, entry + 8 + ABOVE - from));
        let mut seen = None;
        for &(start, len) in &self.regions {
            let memory = words(start, len);
            let mut before = 0;
            for (i, word) in memory.iter_mut().enumerate() {
                if *word != content(i) {
                    // A secret may lie across words.
                    for value in [*word, *word << 32 | before >> 32] {
                        seen = seen.or(secret(value).map(|what| format!("{what} in memory at {:#x}", start + 8 * i as u64)));
                    }
                }
                before = *word;
            }
            for (i, word) in memory.iter_mut().enumerate() {
                *word = content(i);
            }
        }
        match (changed, seen) {
            (Some(i), _) => Err(format!("changed the host's stack {i} words above the return address")),
            (None, Some(seen)) => Err(seen),
            (None, None) => Ok(()),
        }
    }
}

fn poison_word(start: u64, index: usize) -> u64 {
    u64::from(POISON) << 32 | (start + 8 * index as u64) & 0xffff_ffff
}

fn poison(memory: &mut [u64]) {
    let start = memory.as_ptr() as u64;
    for (i, word) in memory.iter_mut().enumerate() {
        *word = poison_word(start, i);
    }
}

/// What a 64-bit value gives away: poison, an address of the native stack or of the window, the return address to the host. Addresses of text
/// and stubs are in the table, which programs may read (DESIGN §2).
pub fn secret(value: u64) -> Option<String> {
    let (high, low) = ((value >> 32) as u32, value as u32);
    let stack = high == (STACK >> 32) as u32 && low >> 20 == USER_STACK_LOW >> 20;
    let window = high == (BASE >> 32) as u32 && low < 0x2_0000;
    (high == POISON || low == POISON || stack || window || value == GONE).then(|| format!("a secret, {value:#x},"))
}
