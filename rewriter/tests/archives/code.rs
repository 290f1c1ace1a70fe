//! Shapes of single instructions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// A window operand, `%gs:disp(base,index,scale)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub base: Register,
    pub index: Register,
    pub scale: u32,
    pub disp: i32,
}

impl Window {
    /// Without an index.
    pub fn at(base: Register, disp: i64) -> Window {
        Window { base, index: Register::None, scale: 1, disp: disp as i32 }
    }
}

/// The window operand of `insn`.
pub fn window(insn: &Instruction) -> Option<Window> {
    let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    (memory && insn.segment_prefix() == Register::GS && insn.mnemonic() != Mnemonic::Lea).then(|| Window {
        base: insn.memory_base(),
        index: insn.memory_index(),
        scale: insn.memory_index_scale(),
        disp: insn.memory_displacement64() as i32,
    })
}

/// `mov %gs:…,%register`.
pub fn load(insn: &Instruction) -> Option<(Register, Window)> {
    let plain = matches!(insn.code(), Code::Mov_r64_rm64 | Code::Mov_r32_rm32 | Code::Mov_r16_rm16 | Code::Mov_r8_rm8);
    if plain { Some((insn.op0_register(), window(insn)?)) } else { None }
}

/// `mov %register,%gs:…`.
pub fn store(insn: &Instruction) -> Option<(Register, Window)> {
    let plain = matches!(insn.code(), Code::Mov_rm64_r64 | Code::Mov_rm32_r32 | Code::Mov_rm16_r16 | Code::Mov_rm8_r8);
    if plain { Some((insn.op1_register(), window(insn)?)) } else { None }
}

/// `lea disp(%base),%to` of 64 bits.
pub fn add_to(insn: &Instruction) -> Option<(Register, Register, i64)> {
    let plain = insn.code() == Code::Lea_r64_m && insn.memory_index() == Register::None && insn.memory_base().is_gpr64();
    plain.then(|| (insn.op0_register(), insn.memory_base(), insn.memory_displacement64() as i64))
}

/// `lea by(%rsp),%rsp`: how far the native stack pointer moves up.
pub fn stack_move(insn: &Instruction) -> Option<i64> {
    add_to(insn).filter(|(to, base, _)| *to == Register::RSP && *base == Register::RSP).map(|(_, _, by)| by)
}

/// `lea disp(%rsp,index,scale),%to` of 32 bits: an address on the data stack.
pub fn stack_address(insn: &Instruction) -> Option<(Register, Window)> {
    let plain = insn.code() == Code::Lea_r32_m && insn.memory_base() == Register::RSP;
    plain.then(|| {
        let disp = insn.memory_displacement64() as i32;
        let place = Window { base: Register::RSP, index: insn.memory_index(), scale: insn.memory_index_scale(), disp };
        (insn.op0_register(), place)
    })
}

/// `mov $value,%register`, and the value as the 64-bit register gets it.
pub fn constant(insn: &Instruction) -> Option<(Register, i64)> {
    match insn.code() {
        Code::Mov_r32_imm32 => Some((insn.op0_register().full_register(), insn.immediate32().into())),
        Code::Mov_rm64_imm32 if insn.op0_kind() == OpKind::Register => Some((insn.op0_register(), insn.immediate(1) as i64)),
        _ => None,
    }
}

/// The 32-bit register of the same number.
pub fn narrow(register: Register) -> Register {
    if register == Register::None { register } else { register.full_register32() }
}

pub fn is_immediate(kind: OpKind) -> bool {
    use OpKind as O;
    matches!(
        kind,
        O::Immediate8
            | O::Immediate8_2nd
            | O::Immediate16
            | O::Immediate32
            | O::Immediate64
            | O::Immediate8to16
            | O::Immediate8to32
            | O::Immediate8to64
            | O::Immediate32to64
    )
}

/// Whether an explicit operand is the stack pointer, in any width.
pub fn names_stack_pointer(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).full_register() == Register::RSP)
}

/// Instructions that leave nothing behind: padding, landing pads, and the direction flag, which is always clear.
pub fn is_nothing(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Cld)
        || insn.code() == Code::Xchg_r16_AX && insn.op0_register() == Register::AX
}
