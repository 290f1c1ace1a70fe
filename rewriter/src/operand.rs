//! Small facts about iced's instructions that several phases need.

use iced_x86::{Instruction, OpKind};

/// Bytes of all immediates at the end of `insn` (0 if none; branches have none).
#[must_use]
pub fn immediate_size(insn: &Instruction) -> usize {
    (0..insn.op_count())
        .map(|i| match insn.op_kind(i) {
            OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64 => 1,
            OpKind::Immediate16 => 2,
            OpKind::Immediate32 | OpKind::Immediate32to64 => 4,
            OpKind::Immediate64 => 8,
            _ => 0,
        })
        .sum()
}
