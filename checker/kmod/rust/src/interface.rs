//! What C calls (`../src/rust.h`). The only unsafe code turns the caller's pointers into slices.

use crate::explain;
use cordon_checker::layout::{Layout, RegionKind, Slot, USER_STACK_LOW};
use cordon_checker::note::Note;
use cordon_checker::{Mode, Policy, check, is_start, scratch_len, state_at};
use cordon_image::{Image, ImageError};
use core::slice;

/// Low 32 bits of rsp at entry (DESIGN §4 S), the one place of native stacks that the module offers.
const STACK_LOW: u32 = USER_STACK_LOW;
/// Bytes of a native stack that handlers may use; what interrupts need lies below.
const STACK_BYTES: u32 = 64 << 10;

/// `enum cordon_verdict`, as far as it is said here.
#[repr(u32)]
pub enum Verdict {
    Accepted = 0,
    Rejected = 1,
    BadFormat = 2,
    BadNote = 3,
    BadLayout = 4,
    BadPlace = 5,
    NotMetered = 7,
}

const REGIONS: usize = 64;
const SEGMENTS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CRegion {
    pub start: u32,
    pub end: u32,
    pub kind: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct CSegment {
    pub start: u32,
    pub length: u32,
    pub offset: u64,
}

#[repr(C)]
pub struct CImage {
    pub text_offset: u64,
    pub text_length: u64,
    pub note_offset: u64,
    pub note_length: u64,
    pub table: i32,
    pub table_end: i32,
    pub max_depth: u32,
    pub limit: u32,
    pub imports: u32,
    pub metered: u32,
    pub regions: u32,
    pub segments: u32,
    pub region: [CRegion; REGIONS],
    pub segment: [CSegment; SEGMENTS],
}

#[repr(C)]
pub struct CJudgement {
    pub rule: u32,
    pub offset: u32,
    pub instructions: u32,
    pub max_depth: u32,
    pub features: u64,
}

fn policy(demand_metered: u32) -> Policy {
    Policy { mode: Mode { metered: demand_metered != 0, ..Mode::default() }, ..Policy::KERNEL }
}

/// Where `part` of `file` begins.
fn offset_in(file: &[u8], part: &[u8]) -> u64 {
    (part.as_ptr() as usize).wrapping_sub(file.as_ptr() as usize) as u64
}

/// Whether the native stack that the layout counts on is the module's: S, and LIMIT with D + 8 bytes below it.
fn has_our_stack(layout: &Layout<'_>) -> bool {
    let lowest = u64::from(STACK_LOW) + 8 - u64::from(STACK_BYTES);
    layout.stack_low == STACK_LOW && u64::from(layout.limit) >= lowest + u64::from(layout.max_depth) + 8
}

/// # Safety
/// `file` and `out` are valid for their lengths, `out` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_read(file: *const u8, length: usize, demand_metered: u32, out: *mut CImage) -> u32 {
    // SAFETY: the caller's promise.
    let (file, out) = unsafe { (slice::from_raw_parts(file, length), &mut *out) };
    let verdict = match Image::read(file, &policy(demand_metered)) {
        Ok(image) => describe(file, &image, out),
        Err(ImageError::Format(_)) => Verdict::BadFormat,
        Err(ImageError::Note(_)) => Verdict::BadNote,
        Err(ImageError::Layout(cordon_checker::LayoutError::Mode)) if demand_metered != 0 => Verdict::NotMetered,
        Err(ImageError::Layout(_)) => Verdict::BadLayout,
    };
    verdict as u32
}

fn describe(file: &[u8], image: &Image<'_>, out: &mut CImage) -> Verdict {
    let layout = &image.note.layout;
    if !has_our_stack(layout) {
        return Verdict::BadPlace;
    }
    (out.text_offset, out.text_length) = (offset_in(file, image.text), image.text.len() as u64);
    (out.note_offset, out.note_length) = (offset_in(file, image.descriptor), image.descriptor.len() as u64);
    (out.table, out.table_end) = (layout.table, layout.table_end);
    (out.max_depth, out.limit) = (layout.max_depth, layout.limit);
    (out.imports, out.metered) = (layout.imports, u32::from(layout.mode.metered));
    (out.regions, out.segments) = (0, 0);
    for (region, to) in image.regions().zip(&mut out.region) {
        *to = CRegion { start: region.start, end: region.end, kind: region.kind as u32 };
        out.regions += 1;
    }
    for (segment, to) in image.segments().zip(&mut out.segment) {
        *to = CSegment { start: segment.start, length: segment.bytes.len() as u32, offset: offset_in(file, segment.bytes) };
        out.segments += 1;
    }
    Verdict::Accepted
}

/// # Safety
/// The pointers are valid for their lengths, `scratch` for a word for each byte of text; `scratch` and `out` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_check(
    text: *const u8,
    length: usize,
    note: *const u8,
    note_length: usize,
    demand_metered: u32,
    scratch: *mut u64,
    out: *mut CJudgement,
) -> u32 {
    // SAFETY: the caller's promise.
    let (text, note, out) = unsafe { (slice::from_raw_parts(text, length), slice::from_raw_parts(note, note_length), &mut *out) };
    // SAFETY: as above.
    let scratch = unsafe { slice::from_raw_parts_mut(scratch, scratch_len(length)) };
    let policy = policy(demand_metered);
    let Ok(note) = Note::parse(note) else { return Verdict::BadNote as u32 };
    if note.validate(&policy).is_err() {
        return Verdict::BadLayout as u32;
    }
    match check(text, &policy, &note.layout, scratch) {
        Ok(summary) => {
            (out.instructions, out.max_depth) = (summary.instructions, summary.max_depth);
            out.features = summary.features.0;
            Verdict::Accepted as u32
        }
        Err(reject) => {
            (out.rule, out.offset) = (u32::from(reject.rule.number()), reject.offset);
            Verdict::Rejected as u32
        }
    }
}

/// # Safety
/// `scratch` is valid for `length` words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_next_start(scratch: *const u64, length: usize, from: usize) -> usize {
    // SAFETY: the caller's promise.
    let words = unsafe { slice::from_raw_parts(scratch, length) };
    let rest = words.get(from..).unwrap_or_default();
    rest.iter().position(|&word| is_start(word)).map_or(length, |more| from.wrapping_add(more))
}

/// What the checker knows in front of the instruction of a scratch word: depth in words << 16 | pushed set. Depths of a kernel's stacks fit.
#[unsafe(no_mangle)]
pub extern "C" fn cordon_rs_state(word: u64) -> u32 {
    state_at(word).map_or(0, |state| (state.units() as u32) << 16 | state.set() as u32 & 0xffff)
}

/// # Safety
/// `note` is valid for its length, `table` for writes of `words`, `gates` for a word for each import.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_tables(
    note: *const u8,
    note_length: usize,
    table: *mut u64,
    words: usize,
    text: u64,
    trap: u64,
    gates: *const u64,
) {
    // SAFETY: the caller's promise.
    let (note, table) = unsafe { (slice::from_raw_parts(note, note_length), slice::from_raw_parts_mut(table, words)) };
    table.fill(trap);
    let Ok(note) = Note::parse(note) else { return };
    let layout = &note.layout;
    // SAFETY: as above.
    let gates = unsafe { slice::from_raw_parts(gates, layout.imports as usize) };
    let address = |slot| match slot {
        Slot::Text(offset) => text.wrapping_add(offset.into()),
        Slot::Import(import) => gates.get(import as usize).copied().unwrap_or(trap),
        Slot::Trap => trap,
    };
    for (word, to) in layout.slots.iter().zip(table.iter_mut()) {
        *to = address(Slot::from_word(word));
    }
    for index in 0..layout.sub_table_count() {
        let Some(sub) = layout.sub_table(index) else { continue };
        let first = (sub.base.wrapping_sub(layout.table) / 8) as usize;
        let words = layout.sub_slots.slice(sub.first as usize, sub.count as usize).unwrap_or_default();
        for (word, to) in words.iter().zip(table.get_mut(first..).unwrap_or_default()) {
            *to = address(Slot::from_word(word));
        }
    }
}

/// # Safety
/// The pointers are valid for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_entry(note: *const u8, note_length: usize, name: *const u8, name_length: usize) -> i64 {
    // SAFETY: the caller's promise.
    let (note, name) = unsafe { (slice::from_raw_parts(note, note_length), slice::from_raw_parts(name, name_length)) };
    let Ok(note) = Note::parse(note) else { return -1 };
    let mut entries = note.layout.entries.iter().enumerate();
    let found = entries.find(|(index, _)| note.entry_name(*index).is_ok_and(|entry| entry.as_bytes() == name));
    found.map_or(-1, |(_, offset)| i64::from(offset))
}

/// # Safety
/// `note` is valid for its length, `name` for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_import(note: *const u8, note_length: usize, index: u32, name: *mut *const u8) -> usize {
    // SAFETY: the caller's promise.
    let note = unsafe { slice::from_raw_parts(note, note_length) };
    let Ok((_, text)) = Note::parse(note).and_then(|note| note.import(index as usize)) else { return 0 };
    // SAFETY: as above.
    unsafe { *name = text.as_ptr() };
    text.len()
}

/// Whether the byte at a window offset may be read or written, or what is wrong with it: `enum cordon_kind`.
pub(crate) fn kind_at(layout: &Layout<'_>, offset: u64, write: bool) -> explain::Kind {
    if offset < u64::from(cordon_checker::layout::NULL_ZONE_END) {
        return explain::Kind::NullZone;
    }
    for index in 0..layout.region_count() {
        let Some(region) = layout.region(index) else { continue };
        if (u64::from(region.start)..u64::from(region.end)).contains(&offset) {
            let refused = write && region.kind == RegionKind::Rodata;
            return if refused { explain::Kind::ReadOnly } else { explain::Kind::Returned };
        }
        let guard = u64::from(region.start).saturating_sub(u64::from(layout.max_depth) + 8);
        if region.kind == RegionKind::Stack && (guard..u64::from(region.start)).contains(&offset) {
            return explain::Kind::DataStackOverflow;
        }
    }
    explain::Kind::Unmapped
}

/// # Safety
/// `note` is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_kind_at(note: *const u8, note_length: usize, offset: u64, is_write: u32) -> u32 {
    // SAFETY: the caller's promise.
    let note = unsafe { slice::from_raw_parts(note, note_length) };
    let Ok(note) = Note::parse(note) else { return explain::Kind::Other as u32 };
    kind_at(&note.layout, offset, is_write != 0) as u32
}
