//! Two small valid layouts, and image files around notes, for tests and measurements that need text judged or files read.

use crate::layout::{
    Layout, NULL_ZONE_END, Region, RegionKind, STACK_HEADROOM, Slot, SubTable, USER_STACK_LOW, USER_STACK_SHIFT, USER_TABLE,
};
use crate::note::{Note, NoteSpec};
use crate::{Policy, Reject, Summary, check};
use alloc::vec;
use alloc::vec::Vec;

/// User host: 16 main slots (1 and 2 are imports), one sub-table of 4 slots at 0x10080 with depth 16 and both slots pushed, D = 4096.
#[must_use]
pub fn user() -> NoteSpec {
    let top = USER_STACK_LOW + 8 + USER_STACK_SHIFT;
    NoteSpec {
        stack_shift: USER_STACK_SHIFT,
        stack_low: USER_STACK_LOW,
        table: USER_TABLE,
        table_end: USER_TABLE + 0x1000,
        main_bits: 4,
        max_depth: 4096,
        regions: vec![
            Region { start: 0x1_1000, end: 0x2_0000, kind: RegionKind::Data },
            Region { start: top - 0x1_0000, end: top + STACK_HEADROOM, kind: RegionKind::Stack },
        ],
        slots: vec![Slot::Trap, Slot::Import(0), Slot::Import(1)],
        sub_tables: vec![(sub_table(USER_TABLE + 0x80), Vec::new())],
        imports: vec![(1, "one".into()), (2, "two".into())],
        ..NoteSpec::default()
    }
}

/// Kernel host: the same tables at -0x2000, S + 8 = 0x7ff00000, K = 0x10000, a native stack of 32 KiB, LIMIT 0x7fefa000.
#[must_use]
pub fn kernel() -> NoteSpec {
    NoteSpec {
        kernel: true,
        stack_shift: 0x1_0000,
        stack_low: 0x7fef_fff8,
        table: -0x2000,
        table_end: -0x1000,
        limit: 0x7fef_a000,
        regions: vec![
            Region { start: NULL_ZONE_END, end: 0x2_0000, kind: RegionKind::Data },
            Region { start: 0x7ff1_0000 - 0x8000, end: 0x7ff1_0000 + STACK_HEADROOM, kind: RegionKind::Stack },
        ],
        sub_tables: vec![(sub_table(-0x2000 + 0x80), Vec::new())],
        ..user()
    }
}

fn sub_table(base: i32) -> SubTable {
    SubTable { base, bits: 2, depth: 16, set: 3, first: 0, count: 0 }
}

/// Judges `text` with the layout of `spec`.
///
/// # Errors
/// As [`check`].
///
/// # Panics
/// As [`with_layout`].
pub fn judge(text: &[u8], policy: &Policy, spec: &NoteSpec) -> Result<Summary, Reject> {
    let mut scratch = vec![u64::MAX; text.len()];
    with_layout(spec, |layout| check(text, policy, layout, &mut scratch))
}

/// Calls `f` with the layout that a loader reads from the written note.
///
/// # Panics
/// If the note does not fit its own format.
pub fn with_layout<T>(spec: &NoteSpec, f: impl FnOnce(&Layout<'_>) -> T) -> T {
    let bytes = spec.to_bytes();
    let note = Note::parse(&bytes).expect("a written note parses");
    f(&note.layout)
}

/// A segment of an image file: kind, flags, address, bytes in the file, bytes in memory.
pub type Load<T> = (u32, u32, u64, T, u64);

/// The ELF note that carries `descriptor`, as a segment of kind 4 has it.
#[must_use]
pub fn note_record(descriptor: &[u8]) -> Vec<u8> {
    let len = u32::try_from(descriptor.len()).expect("a note is short");
    let mut note = [7, len, 1].map(u32::to_le_bytes).concat();
    note.extend(b"Cordon\0\0");
    note.extend(descriptor);
    note
}

/// An ELF64 file with these segments, one behind the other after their headers, and nothing else.
#[must_use]
pub fn container<T: AsRef<[u8]>>(loads: &[Load<T>]) -> Vec<u8> {
    let count = u16::try_from(loads.len()).expect("few segments");
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([0_u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, count, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut at = 64 + 56 * u64::from(count);
    for (kind, flags, address, bytes, memory) in loads {
        let len = u64::try_from(bytes.as_ref().len()).expect("64 bits");
        file.extend([*kind, *flags].map(u32::to_le_bytes).concat());
        file.extend([at, *address, *address, len, *memory, 4].map(u64::to_le_bytes).concat());
        at += len;
    }
    loads.iter().for_each(|load| file.extend(load.3.as_ref()));
    file
}
