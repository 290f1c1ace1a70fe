//! Any note is taken apart or refused; a valid one keeps what loaders count on, and may judge text.
#![no_main]

use cordon_checker::layout::{MEMORY_END, NULL_ZONE_END};
use cordon_checker::note::Note;
use cordon_checker::policy::Host;
use cordon_checker::{Layout, Policy, check};
use libfuzzer_sys::fuzz_target;

/// xor %eax,%eax; ret; ud2
const TEXT: [u8; 5] = [0x31, 0xc0, 0xc3, 0x0f, 0x0b];

fuzz_target!(|data: &[u8]| {
    let Ok(note) = Note::parse(data) else { return };
    let entries = note.layout.entries.len();
    for index in 0..entries.min(64) + 1 {
        let _ = (note.entry_name(index), note.import(index));
    }
    for policy in [Policy::USER, Policy::KERNEL] {
        let policy = Policy { mode: note.layout.mode, ..policy };
        if note.validate(&policy).is_ok() {
            holds(&note.layout, policy.host);
            for index in 0..entries {
                note.entry_name(index).expect("names of a valid note are well formed");
            }
            let mut scratch = [0; TEXT.len()];
            let _ = check(&TEXT, &policy, &note.layout, &mut scratch);
        }
    }
});

/// SPEC R3, as far as it is said in a line each.
fn holds(layout: &Layout<'_>, host: Host) {
    let (table, end) = (i64::from(layout.table), i64::from(layout.table_end));
    assert!(table < end && table % 4096 == 0 && end % 4096 == 0);
    let mut last = if host == Host::User { end } else { i64::from(NULL_ZONE_END) };
    for region in (0..layout.region_count()).filter_map(|index| layout.region(index)) {
        assert!(i64::from(region.start) >= last && region.start < region.end && region.end <= MEMORY_END);
        assert!(region.start % 4096 == 0 && region.end % 4096 == 0);
        last = i64::from(region.end);
    }
    let mut past = table + (8 << layout.main_bits);
    for sub in (0..layout.sub_table_count()).filter_map(|index| layout.sub_table(index)) {
        assert!(i64::from(sub.base) >= past && sub.base % 8 == 0 && u64::from(sub.count) <= 1 << sub.bits);
        past = i64::from(sub.base) + (8 << sub.bits);
    }
    assert!(past <= end);
}
