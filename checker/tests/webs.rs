//! The texts and layouts that take the checker longest are judged like all others. Its work per instruction is constant but for a binary search
//! among sub-tables (AUDIT.md), so these end within seconds even without optimisation; a quadratic step would not.

use cordon_checker::layout::{Slot, SubTable, USER_TABLE};
use cordon_checker::note::NoteSpec;
use cordon_checker::{MAIN_BITS_LIMIT, Policy, Reject, Rule, Summary, sample};

fn judge(text: &[u8], spec: &NoteSpec) -> Result<Summary, Reject> {
    sample::judge(text, &Policy::USER, spec)
}

/// `count` conditional branches of 6 bytes, number `index` to number `target(index)`; then `ret`.
fn web(count: usize, target: impl Fn(usize) -> usize) -> Vec<u8> {
    let mut text = Vec::new();
    for index in 0..count {
        let relative = (target(index) as i64 - index as i64 - 1) * 6;
        text.extend([0x0f, 0x84]);
        text.extend((relative as i32).to_le_bytes());
    }
    text.push(0xc3);
    text
}

const COUNT: usize = 300_000;

/// The branch that a branch leads to.
type Target = fn(usize) -> usize;

#[test]
fn webs_of_branches_are_judged() {
    let webs: [(&str, Target); 5] = [
        ("all to the first", |_| 0),
        ("all to the last", |_| COUNT),
        ("halfway back", |index| index / 2),
        ("halfway on", |index| (index + COUNT) / 2),
        ("anywhere", |index| index.wrapping_mul(0x9e37_79b9) % COUNT),
    ];
    for (name, target) in webs {
        let text = web(COUNT, target);
        assert_eq!(judge(&text, &sample::user()).map(|summary| summary.instructions as usize), Ok(COUNT + 1), "{name}");
        // One branch that goes past the end.
        let bad = web(COUNT, |index| if index == COUNT - 1 { COUNT + 1 } else { target(index) });
        let expected = Reject { offset: (COUNT as u32 - 1) * 6, rule: Rule::TargetOutside };
        assert_eq!(judge(&bad, &sample::user()), Err(expected), "{name}");
    }
}

/// A layout with the most main slots, all text, and `count` sub-tables of one slot, all at the same place; each is jumped through once.
fn tables(count: usize) -> (Vec<u8>, NoteSpec) {
    let main = 1_usize << MAIN_BITS_LIMIT;
    let base = |index: usize| USER_TABLE + 8 * (main + index) as i32;
    let end = (base(count) as u32).next_multiple_of(4096) as i32;
    let mut text = vec![0xc3];
    for index in 0..count {
        // and $0,%eax; jmp *%gs:base(%rax)
        text.extend([0x83, 0xe0, 0, 0x65, 0xff, 0xa0]);
        text.extend(base(index).to_le_bytes());
    }
    let table = |index: usize| {
        let table = SubTable { base: base(index), bits: 0, depth: 0, set: 0, first: index as u32, count: 1 };
        (table, vec![Slot::Text(0)])
    };
    let user = sample::user();
    let shift = end as u32 - user.regions[0].start;
    let mut regions = user.regions.clone();
    regions[0].start += shift;
    regions[0].end += shift;
    let spec = NoteSpec {
        table_end: end,
        main_bits: MAIN_BITS_LIMIT,
        slots: [vec![Slot::Trap], vec![Slot::Text(0); main - 1]].concat(),
        sub_tables: (0..count).map(table).collect(),
        imports: Vec::new(),
        regions,
        entries: (0..1000).map(|index| (0, format!("entry{index}"))).collect(),
        ..user
    };
    (text, spec)
}

#[test]
fn layouts_with_the_most_tables_are_judged() {
    let count = 200_000;
    let (text, spec) = tables(count);
    assert_eq!(judge(&text, &spec).map(|summary| summary.instructions as usize), Ok(count + 1));
    // The table that nothing lists.
    let bad = [&text[..], &[0x83, 0xe0, 0, 0x65, 0xff, 0xa0, 4, 0, 1, 0]].concat();
    assert_eq!(judge(&bad, &spec), Err(Reject { offset: text.len() as u32, rule: Rule::Table }));
}
