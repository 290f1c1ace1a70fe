//! Every small damage to accepted text that leaves its length as it was, so that only the damaged place differs.

use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, describe_in, starts};

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One bit is flipped.
    Bit,
    /// One prefix is missing; a no-op in front of or behind the instruction makes up for its byte.
    PrefixGone,
    /// No-ops in place of the instruction.
    InstructionGone,
    /// Neighbours change places.
    Swapped,
    /// A direct branch leads 1 to 15 bytes further forward or back.
    Branch,
    /// A byte of a guard (table unit, CHECK, METER, change of rsp, import call) has another value: by 1 or 8 more or less, 0, 0x7f, 0xff.
    Guard,
}

/// A damage: `bytes` replace as many from `at` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    pub kind: Kind,
    pub at: usize,
    pub bytes: Vec<u8>,
}

/// No-ops that the checker accepts, `length` bytes of them.
#[must_use]
pub fn no_ops(mut length: usize) -> Vec<u8> {
    const ALL: [&[u8]; 7] = [
        &[0x90],
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0x00],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    ];
    let mut bytes = Vec::new();
    while length > 0 {
        let no_op = ALL[length.min(ALL.len()) - 1];
        bytes.extend_from_slice(no_op);
        length -= no_op.len();
    }
    bytes
}

/// Calls `visit` with each mutant of `text`, which the checker accepted in `mode` and left `scratch`.
pub fn each(text: &[u8], scratch: &[u64], mode: Mode, mut visit: impl FnMut(Mutant)) {
    for (at, byte) in text.iter().enumerate() {
        for bit in 0..8 {
            visit(Mutant { kind: Kind::Bit, at, bytes: vec![byte ^ 1 << bit] });
        }
    }
    let instructions: Vec<usize> = starts(scratch, text.len()).collect();
    for (nth, &at) in instructions.iter().enumerate() {
        let Ok(what) = describe_in(&text[at..], Host::User, mode) else { continue };
        let bytes = &text[at..at + what.len];
        visit(Mutant { kind: Kind::InstructionGone, at, bytes: no_ops(bytes.len()) });
        without_prefixes(bytes, |bytes| visit(Mutant { kind: Kind::PrefixGone, at, bytes }));
        if let Some(&next) = instructions.get(nth + 1).filter(|next| **next == at + what.len)
            && let Ok(other) = describe_in(&text[next..], Host::User, mode)
        {
            let mut both = text[at..next + other.len].to_vec();
            both.rotate_left(what.len);
            visit(Mutant { kind: Kind::Swapped, at, bytes: both });
        }
        retargeted(bytes, what.flow, |bytes| visit(Mutant { kind: Kind::Branch, at, bytes }));
        if is_guard(bytes, what.flow) {
            other_guards(bytes, |bytes| visit(Mutant { kind: Kind::Guard, at, bytes }));
        }
    }
}

/// Without each byte that stands in front of the opcode and could be a prefix.
fn without_prefixes(bytes: &[u8], mut visit: impl FnMut(Vec<u8>)) {
    let prefix = |byte: &u8| matches!(byte, 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
    for nth in 0..bytes.iter().take_while(|byte| prefix(byte)).count() {
        let mut less = bytes.to_vec();
        less.remove(nth);
        visit([&less, &[0x90][..]].concat());
        visit([&[0x90], less.as_slice()].concat());
    }
}

/// With the displacement of a direct branch changed by 1 to 15 both ways.
fn retargeted(bytes: &[u8], flow: Flow, mut visit: impl FnMut(Vec<u8>)) {
    let rel = match flow {
        Flow::Conditional(rel) | Flow::Jump(rel) | Flow::Call(rel) => rel,
        Flow::Check { abort, .. } | Flow::Meter { abort, .. } => abort,
        _ => return,
    };
    let long = bytes.ends_with(&rel.to_le_bytes());
    for by in (-15..=15).filter(|by| *by != 0) {
        let mut other = bytes.to_vec();
        let end = other.len();
        if long {
            other[end - 4..].copy_from_slice(&rel.wrapping_add(by).to_le_bytes());
        } else {
            other[end - 1] = (rel.wrapping_add(by)) as u8;
        }
        visit(other);
    }
}

/// Whether the instruction is one that keeps the others in their bounds.
fn is_guard(bytes: &[u8], flow: Flow) -> bool {
    let resizes = matches!(bytes, [0x48, 0x81 | 0x83, 0xc4 | 0xec, ..] | [0x48, 0x8d, 0x64 | 0xa4, 0x24, ..]);
    resizes || matches!(flow, Flow::TableCall { .. } | Flow::TableJump { .. } | Flow::Check { .. } | Flow::Meter { .. })
}

/// With each byte changed in a few ways.
fn other_guards(bytes: &[u8], mut visit: impl FnMut(Vec<u8>)) {
    for at in 0..bytes.len() {
        let old = bytes[at];
        let mut values = [1, 255, 8, 248].map(|by: u8| old.wrapping_add(by)).to_vec();
        values.extend([0, 0x7f, 0xff].into_iter().filter(|value| *value != old));
        for value in values {
            let mut other = bytes.to_vec();
            other[at] = value;
            visit(other);
        }
    }
}
