//! What an accepted instruction writes to general registers, and its immediate's value.

use super::{Operands, Window, byte, dword};
use crate::table::{Field, Imm, Operand};

/// General registers written, whole or part: bit n = register n. Of rsp only what a field names.
#[inline(always)]
pub(crate) fn writes(operands: &Operands) -> u16 {
    let line = operands.line;
    let rm = if operands.memory.is_some() { 0 } else { written(line.rm, operands.rm, operands.rex) };
    written(line.reg, operands.reg, operands.rex) | rm | written(line.vvvv, operands.vvvv, true) | line.implicit_writes()
}

/// Without branches: there is no telling which operands are written.
#[inline(always)]
fn written(operand: Operand, number: u8, rex: bool) -> u16 {
    // ah, ch, dh, bh are parts of registers 0 to 3.
    let high = (operand.field == Field::Gpr8) & !rex & (number & 12 == 4);
    let number = number & !(u8::from(high) << 2);
    let general = matches!(operand.field, Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32);
    u16::from(general & operand.write).wrapping_shl(u32::from(number))
}

/// The immediate that ends an instruction of `len` bytes with 32-bit or 64-bit operands, sign-extended if it is shorter than they are;
/// `None` without one.
pub(crate) fn immediate_of(operands: &Operands, window: &Window, len: usize) -> Option<i64> {
    let low = |bytes: usize| i64::from(dword(window, len.wrapping_sub(bytes)).cast_signed());
    match operands.line.imm {
        Imm::No | Imm::Register => None,
        Imm::B1 => Some(i64::from(byte(window, len.wrapping_sub(1)).cast_signed())),
        Imm::V if operands.w => Some(low(4) << 32 | low(8) & 0xffff_ffff),
        Imm::Z | Imm::V | Imm::B4 => Some(low(4)),
    }
}
