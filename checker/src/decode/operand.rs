//! Memory operands, immediates and extensions of an instruction.

use super::{Decoded, Extension, Machine, Memory, Opcode, Operands, Prefixes, Window, byte, dword, signed_byte};
use crate::policy::Features;
use crate::table::{self, Imm, Line, Size, flag};
use crate::verdict::Rule;

/// Bytes of the immediate.
#[inline(always)]
pub(super) fn immediate(window: &Window, imm: Imm, at: usize, op: &Opcode) -> Decoded<usize> {
    Ok(match imm {
        Imm::No => 0,
        Imm::B1 => 1,
        Imm::Register if byte(window, at) & 15 != 0 => return Err(Rule::NotCanonical),
        Imm::Register => 1,
        Imm::Z | Imm::V if op.prefixes.has(Prefixes::OPSIZE) => 2,
        Imm::V if op.extension.w() => 8,
        Imm::Z | Imm::V | Imm::B4 => 4,
    })
}

/// The extensions that the instruction needs.
#[inline(always)]
pub(super) fn features(operands: &Operands) -> Features {
    let line = operands.line;
    let number = if operands.l { line.wide } else { line.set };
    let set = table::SETS.get(usize::from(number)).copied().unwrap_or_default();
    if !operands.lock && !line.has(flag::LOCKS | flag::AVX2_REGISTER) && line.size != Size::Pair {
        return set;
    }
    let mut set = set;
    if operands.lock || line.has(flag::LOCKS) && operands.memory.is_some() {
        set = set.with(Features::LOCK);
    }
    if line.has(flag::AVX2_REGISTER) && operands.memory.is_none() {
        set = set.with(Features::AVX2);
    }
    if line.size == Size::Pair && operands.w {
        set = set.with(Features::CX16);
    }
    set
}

/// A window operand (DESIGN §3): the policy's segment and either 67 with a base or index, or a bare displacement from 0 up. Where loads
/// are left alone, those may lack the 67.
#[inline(always)]
pub(super) fn window_operand(window: &Window, machine: &Machine, op: &Opcode, modrm: u8) -> Decoded<(Memory, usize)> {
    let (mut memory, next) = address(window, op.at, modrm, op.extension)?;
    let addressed = memory.base != Memory::NONE || memory.index != Memory::NONE;
    let short = op.prefixes.has(Prefixes::SHORT);
    if !op.prefixes.has(Prefixes::SEGMENT) || addressed != short || !addressed && memory.disp < 0 {
        if !machine.loads || !op.prefixes.has(Prefixes::SEGMENT) || !addressed || !is_load(op.line) || memory.base == 4 {
            return Err(Rule::MemoryForm);
        }
        memory.wide = true;
    }
    Ok((memory, next))
}

/// Whether the line's memory form reads and does nothing else (a prefetch does less).
pub(crate) const fn is_load(line: &Line) -> bool {
    line.rm.read && !line.rm.write && !line.has(flag::PREFETCH)
}

/// ModRM (at `at`), SIB and displacement; the index after them.
#[inline(always)]
pub(super) fn address(window: &Window, at: usize, modrm: u8, extension: Extension) -> Decoded<(Memory, usize)> {
    let mode = modrm >> 6;
    let low = modrm & 7;
    let mut next = at.wrapping_add(1);
    let mut memory = Memory { base: low | extension.b(), index: Memory::NONE, scale: 0, disp: 0, wide: false };
    let mut wide = mode == 2;
    if low == 4 {
        let sib = byte(window, next);
        next = next.wrapping_add(1);
        let index = (sib >> 3) & 7 | extension.x();
        memory.base = sib & 7 | extension.b();
        if index != 4 {
            memory.index = index;
            memory.scale = sib >> 6;
        } else if sib >= 0x40 {
            return Err(Rule::NotCanonical);
        }
        if mode == 0 && sib & 7 == 5 {
            if extension.b() != 0 {
                return Err(Rule::NotCanonical);
            }
            memory.base = Memory::NONE;
            wide = true;
        } else if index == 4 && sib & 7 != 4 {
            // ModRM alone says the same.
            return Err(Rule::NotCanonical);
        }
    } else {
        if mode == 0 && low == 5 {
            return Err(Rule::MemoryForm);
        }
        if extension.x() != 0 {
            return Err(Rule::NotCanonical);
        }
    }
    if wide {
        memory.disp = dword(window, next).cast_signed();
        next = next.wrapping_add(4);
    } else if mode == 1 {
        memory.disp = signed_byte(window, next);
        next = next.wrapping_add(1);
    }
    Ok((memory, next))
}
