//! The fused units of the modes: CHECK (match) and METER (metered).

use super::{Action, Decoded, Insn, Machine, Opcode, Window, byte, dword, signed_byte};
use crate::policy::Features;
use crate::table::Kind;
use crate::verdict::Rule;

/// The greatest address that CHECK lets pass, 2^31 - 1.
const LIMIT: u32 = 0x7fff_ffff;
/// The greatest charge: what it leaves is below [`crate::state::Extra::UNPAYABLE`].
const CHARGE_LIMIT: u32 = 1023;
/// What a charge in one byte must exceed to need four.
const BYTE_LIMIT: u32 = 127;

/// CHECK or METER, if `op` begins one.
///
/// # Errors
/// [`Rule::Meter`] for a `sub` of an immediate from r14 that is no METER.
#[inline]
pub(super) fn unit(window: &Window, machine: &Machine, op: &Opcode, modrm: u8) -> Decoded<Option<Insn>> {
    if op.prefixes.any() || op.extension.0 | 1 != 0x49 {
        return Ok(None);
    }
    match op.line.kind {
        Kind::CmpImm if machine.matched && op.byte == 0x81 => Ok(check(window, op, modrm)),
        Kind::SubImm if machine.metered && op.extension.0 == 0x49 && modrm == 0xee => meter(window, op).map(Some),
        _ => Ok(None),
    }
}

/// `cmp $0x7fffffff,%r64; ja`: REX.W 81 /7 id with a register other than rsp, then 77 rel8 or 0F 87 rel32.
fn check(window: &Window, op: &Opcode, modrm: u8) -> Option<Insn> {
    let register = modrm & 7 | op.extension.b();
    let imm = op.at.wrapping_add(1);
    if modrm < 0xc0 || register == 4 || dword(window, imm) != LIMIT {
        return None;
    }
    let (disp, len) = jump(window, imm.wrapping_add(4), 0x77)?;
    Some(Insn { disp, number: register.into(), ..Insn::new(len, Action::Check, Features::NONE) })
}

/// `sub $charge,%r14; jb`: 49 83 EE ib with 1 to 127, or 49 81 EE id with 128 to 1023, then 72 rel8 or 0F 82 rel32.
fn meter(window: &Window, op: &Opcode) -> Decoded<Insn> {
    let imm = op.at.wrapping_add(1);
    let (number, end, least) = match op.byte {
        0x83 => (signed_byte(window, imm).cast_unsigned(), imm.wrapping_add(1), 1),
        _ => (dword(window, imm), imm.wrapping_add(4), BYTE_LIMIT.wrapping_add(1)),
    };
    if !(least..=CHARGE_LIMIT).contains(&number) {
        return Err(Rule::Meter);
    }
    let (disp, len) = jump(window, end, 0x72).ok_or(Rule::Meter)?;
    Ok(Insn { disp, number, ..Insn::new(len, Action::Meter, Features::NONE) })
}

/// The conditional jump `short` (or its long form) at `at`: displacement and the index after it.
fn jump(window: &Window, at: usize, short: u8) -> Option<(i32, usize)> {
    let next = at.wrapping_add(1);
    match byte(window, at) {
        op if op == short => Some((signed_byte(window, next), next.wrapping_add(1))),
        0x0f if byte(window, next) == short.wrapping_add(0x10) => {
            Some((dword(window, next.wrapping_add(1)).cast_signed(), next.wrapping_add(5)))
        }
        _ => None,
    }
}
