//! Programs of the grammar with edits that the fuzzer chooses: most of the text stays what the checker accepts.

use cordon_canary::grammar::{self, Pool};
use cordon_canary::{Program, Random, lacking, modes};
use cordon_checker::layout::{Forget, Slot};
use cordon_checker::note::NoteSpec;
use cordon_checker::{Mode, Protect, sample};
use std::sync::LazyLock;

/// Accepted instructions of each protection.
static POOLS: LazyLock<[Pool; 2]> = LazyLock::new(|| {
    let stores = Mode { protect: Protect::Stores, ..Mode::default() };
    [Mode::default(), stores].map(|mode| Pool::new(mode, lacking(), 1000))
});
/// Bytes of an edit: where (2), what, two values.
const EDIT: usize = 5;

/// The program that `data` stands for: 1 byte chooses the mode, 2 the program, the others are edits.
pub fn program(data: &[u8]) -> Option<Program> {
    let (&[mode, low, high], edits) = data.split_first_chunk()?;
    let mode = modes()[usize::from(mode % 8)];
    let base = NoteSpec { mode, ..sample::user() };
    let mut random = Random(u64::from(u16::from_le_bytes([low, high])).wrapping_add(1).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    let pool = &POOLS[usize::from(mode.protect == Protect::Stores)];
    let mut program = grammar::program(pool, &base, 24, &mut random);
    for edit in edits.chunks_exact(EDIT).take(16) {
        apply(&mut program, edit, &mut random);
    }
    Some(program)
}

fn apply(program: &mut Program, edit: &[u8], random: &mut Random) {
    let Program { text, spec } = program;
    let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % text.len().max(1);
    let (value, other) = (edit[3], usize::from(edit[4]));
    match edit[2] % 12 {
        0 | 1 => text[at] ^= 1 << (value % 8),
        2 | 3 => text[at] = value,
        4 => text[at] = text[at].wrapping_add(value),
        5 => text.insert(at, value),
        6 if text.len() > 1 => drop(text.remove(at)),
        7 => {
            let end = text.len().min(at + usize::from(value % 16));
            let piece = text[at..end].to_vec();
            let to = other % (text.len() + 1);
            text.splice(to..to, piece);
        }
        8 => spec.slots.push(Slot::Text(at as u32)),
        9 => spec.sub_tables[0].1.push(if value == 0 { Slot::Trap } else { Slot::Text(at as u32) }),
        10 => {
            spec.forgets.push(Forget { offset: at as u32, keep: random.next() as u16 });
            spec.forgets.sort_by_key(|record| record.offset);
        }
        11 => spec.sub_tables[0].0.set = u64::from(value),
        _ => {}
    }
}
