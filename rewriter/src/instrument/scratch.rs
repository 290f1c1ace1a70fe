//! An access through a register that holds its address instead of through its own base and index, and which registers may be that one.

use super::check::wide;
use super::code::Op;
use super::known::RSP;
use crate::liveness::effect;
use crate::plan::{Planned, encode, ok};
use cordon_checker::MemoryOperand;
use iced_x86::{Instruction, InstructionInfoFactory, Register};

/// The access of `op` at `disp` from `register`, whose low half counts.
///
/// # Errors
/// An access that cannot be written with another address (none is known).
pub fn through(op: &Op, register: Register, disp: i32) -> Planned<Op> {
    let mut insn = op.insn;
    let base = encode::narrow(register);
    insn.set_memory_base(base);
    insn.set_memory_index(Register::None);
    insn.set_memory_index_scale(1);
    insn.set_memory_displacement64(i64::from(disp).cast_unsigned());
    insn.set_memory_displ_size(encode::displacement_size(disp, base));
    let bytes = ok(encode::encode(&insn))?;
    Op::first(&bytes).ok_or_else(|| ("internal", format!("`{insn}` has no accepted form")))
}

/// The access of `op`, which is on the stack, by the index `register`.
///
/// # Errors
/// An access that cannot be written with another address (none is known).
pub fn indexed(op: &Op, register: Register) -> Planned<Op> {
    let mut insn = op.insn;
    insn.set_memory_index(encode::narrow(register));
    insn.set_memory_index_scale(1);
    let bytes = ok(encode::encode(&insn))?;
    Op::first(&bytes).ok_or_else(|| ("internal", format!("`{insn}` has no accepted form")))
}

/// A register of the address `memory` itself that nothing else needs: neither `op` nor, behind it, those who want `live`, nor is it in `taken`.
pub fn dying(factory: &mut InstructionInfoFactory, op: &Op, memory: &MemoryOperand, live: u16, taken: u16) -> Option<Register> {
    let mut bare = op.insn;
    bare.set_memory_base(Register::None);
    bare.set_memory_index(Register::None);
    let e = effect(factory, &bare);
    let wanted = e.reads.registers | live & !e.kills.registers | taken | 1 << RSP;
    memory.index.into_iter().chain(memory.base).find(|r| wanted >> r & 1 == 0).map(wide)
}

/// Registers that `insn` names, in whatever way; rsp always.
pub fn named(factory: &mut InstructionInfoFactory, insn: &Instruction) -> u16 {
    let used = factory.info(insn).used_registers().iter();
    used.filter(|u| u.register().is_gpr()).fold(1 << RSP, |set, u| set | 1 << u.register().full_register().number())
}

/// Registers that `op` cannot name as a base: those that need a REX prefix, if it names ah, ch, dh or bh, which must have none.
pub fn unreachable(op: &Op) -> u16 {
    let high = [Register::AH, Register::CH, Register::DH, Register::BH];
    if (0..op.insn.op_count()).any(|k| high.contains(&op.insn.op_register(k))) { 0xff00 } else { 0 }
}
