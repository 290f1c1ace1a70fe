//! Small facts about iced's instructions that several phases need.

use iced_x86::{Code, Instruction, OpCodeOperandKind, OpKind, Register};

/// Bytes of all immediates at the end of `insn` (0 if none; branches have none, nor have shifts and rotations by 1, which the opcode says).
#[must_use]
pub fn immediate_size(insn: &Instruction) -> usize {
    (0..insn.op_count())
        .map(|i| match insn.op_kind(i) {
            OpKind::Immediate8 if insn.op_code().op_kind(i) == OpCodeOperandKind::imm8_const_1 => 0,
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

/// The form with a ModRM byte of a `mov` between rax and memory at an absolute address of 64 bits (gcc's code of the medium and large models).
#[must_use]
pub fn without_offset(code: Code) -> Option<Code> {
    Some(match code {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        _ => return None,
    })
}

/// The form of one meaning that the checker lists, of instructions that have several.
#[must_use]
pub fn listed(insn: &Instruction) -> Option<Code> {
    match insn.code() {
        Code::VEX_Vstmxcsr_m32 => Some(Code::Stmxcsr_m32),
        // What gcc writes for AMD's processors instead of `fstp %st(0)`.
        Code::Ffreep_sti if insn.op0_register() == Register::ST0 => Some(Code::Fstp_sti),
        code => without_offset(code),
    }
}
