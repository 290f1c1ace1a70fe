//! What an accepted instruction writes to general registers, and its immediate's value.

use super::{Operands, Window, byte, dword};
use crate::table::{Field, Imm, Operand, flag};

/// General registers written, whole or part: bit n = register n. Of rsp only what a field names.
#[inline]
pub(crate) fn writes(operands: &Operands) -> u16 {
    let line = operands.line;
    let mut set = 0;
    if line.has(flag::MODRM) {
        set |= written(line.reg, operands.reg, operands.rex);
    }
    if operands.memory.is_none() {
        set |= written(line.rm, operands.rm, operands.rex);
    }
    set |= written(line.vvvv, operands.vvvv, true);
    for (attribute, register) in [(flag::WRITES_A, 0), (flag::WRITES_C, 1), (flag::WRITES_D, 2)] {
        if line.has(attribute) {
            set |= 1_u16.wrapping_shl(register);
        }
    }
    set
}

#[inline]
fn written(operand: Operand, number: u8, rex: bool) -> u16 {
    let number = match operand.field {
        // ah, ch, dh, bh are parts of registers 0 to 3.
        Field::Gpr8 if !rex && number >= 4 => number & 3,
        Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 => number,
        _ => return 0,
    };
    if operand.write { 1_u16.wrapping_shl(u32::from(number)) } else { 0 }
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
