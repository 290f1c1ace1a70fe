//! Damages accepted programs: bits, bytes, prefixes, instructions, neighbours, branch targets, constants.

use crate::random::Random;
use crate::run::Program;
use cordon_checker::starts;

/// One damage, and what it was; `scratch` is that of the accepted program.
#[must_use]
pub fn damage(program: &Program, scratch: &[u64], random: &mut Random) -> (Program, &'static str) {
    let mut text = program.text.clone();
    let instructions: Vec<usize> = starts(scratch, text.len()).chain([text.len()]).collect();
    let which = random.below(instructions.len() - 1);
    let (start, end) = (instructions[which], instructions[which + 1]);
    let at = random.below(text.len());
    let what = match random.below(9) {
        0 => {
            text[at] ^= 1 << random.below(8);
            "a bit"
        }
        1 => {
            text[at] = random.next() as u8;
            "a byte"
        }
        2 => {
            text.remove(start);
            "the first byte of an instruction gone"
        }
        3 => {
            text.drain(start..end);
            "an instruction gone"
        }
        4 => {
            let next = instructions.get(which + 2).copied().unwrap_or(end);
            text[start..next].rotate_left(end - start);
            "neighbours swapped"
        }
        5 => {
            retarget(&mut text, start, end, random);
            "a branch by 1 to 15"
        }
        6 => {
            // The last byte is mostly a constant's.
            text[end - 1] = text[end - 1].wrapping_add(1 + random.below(16) as u8);
            "a constant"
        }
        7 => {
            let copy = text[start..end].to_vec();
            let to = instructions[random.below(instructions.len())];
            text.splice(to..to, copy);
            "an instruction twice"
        }
        _ => {
            let prefix = [0x65, 0x64, 0x67, 0x66, 0xf0, 0xf2, 0xf3, 0x48, 0x40, 0x41, 0x2e][random.below(11)];
            text.insert(start, prefix);
            "a prefix more"
        }
    };
    (Program { text, spec: program.spec.clone() }, what)
}

/// Moves the target of a direct branch, if the instruction is one.
fn retarget(text: &mut [u8], start: usize, end: usize, random: &mut Random) {
    let by = (1 + random.below(15)) as u32;
    let by = if random.one_in(2) { by } else { by.wrapping_neg() };
    match text[start] {
        0xe8 | 0xe9 | 0x0f if end - start >= 5 => {
            let field = &mut text[end - 4..end];
            let rel = u32::from_le_bytes([field[0], field[1], field[2], field[3]]).wrapping_add(by);
            field.copy_from_slice(&rel.to_le_bytes());
        }
        _ => text[end - 1] = text[end - 1].wrapping_add(by as u8),
    }
}
