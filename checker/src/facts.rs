//! Match mode: what is known of the general registers between two labels, and which addresses that makes exact (SPEC "Match").
//!
//! An address is exact if its low 32 bits, which the access uses, are the whole address, or if they lie where nobody maps anything, so
//! that the access faults. Memory lies in [64 KiB, 2 GiB) of a window; below, from there to 4 GiB and 64 KiB above is nothing.
//!
//! Three levels, each implying the next: *small* is 0 to 2^16 - 1, *low* 0 to 2^31 - 1, *near* -2^30 to 2^32 - 1.

use crate::decode::{Action, Insn, Memory, Operands, Window, immediate_of, writes};
use crate::describe::MemoryOperand;
use crate::table::{Field, Kind, Operand, Value, flag};

/// rsp's number. The masks do not have it: its low half is from 8 to a constant, S less the depth, which is less in every callee.
const STACK: u8 = 4;
/// The registers that the masks may name.
const TRACKED: u16 = !(1 << STACK);
/// Past the greatest small value.
const SMALL_END: i64 = 1 << 16;
/// Past the greatest low value, 2 GiB ([`crate::layout::MEMORY_END`]).
const LOW_END: i64 = 1 << 31;
/// The least near value is its negative; a low value may move by as much and be near.
const REACH: i64 = 1 << 30;
/// Past the greatest near value.
const NEAR_END: i64 = 1 << 32;
/// The greatest place in the null zone where an access of 64 bytes ends in it.
const NULL_REACH: i64 = 0xffc0;

/// Registers known to be small, low and near; one bit each, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    small: u16,
    low: u16,
    near: u16,
}

impl Facts {
    /// Nothing is known: the state at entries, slots and hints, and after calls.
    pub const NONE: Facts = Facts { small: 0, low: 0, near: 0 };

    /// The registers of `low` are low, no more is known: what a label can say.
    #[must_use]
    pub const fn at_label(low: u16) -> Facts {
        let low = low & TRACKED;
        Facts { small: 0, low, near: low }
    }

    /// Registers below 2^16.
    #[must_use]
    pub const fn small(self) -> u16 {
        self.small
    }

    /// Registers below 2^31.
    #[must_use]
    pub const fn low(self) -> u16 {
        self.low
    }

    /// Registers from -2^30 to 2^32 - 1.
    #[must_use]
    pub const fn near(self) -> u16 {
        self.near
    }

    /// Whether more is known than a label can say; then no edge may lead back to this place.
    #[must_use]
    pub const fn is_local(self) -> bool {
        self.small != 0 || self.near != self.low
    }

    /// With `register` low: after CHECK.
    #[must_use]
    pub fn checked(self, register: u8) -> Facts {
        self.with(Facts::at_label(bit(register)))
    }

    /// Whether the operand's address is exact (SPEC R25). `esp`: the greatest low half of rsp here, that of a depth counted from an entry.
    #[must_use]
    pub fn allows(self, memory: &MemoryOperand, esp: u32) -> bool {
        let range = self.sum(memory.base, memory.index, memory.scale, memory.disp, esp);
        // From -2^31 to -1 the low half is 2^31 or more, and from 2^32 on it lies in the null zone.
        range.is_some_and(|(least, most)| least >= LOW_END.wrapping_neg() && most <= NEAR_END.wrapping_add(NULL_REACH))
    }

    /// The least and the greatest value of an address, rsp counting with its low half; `None` if a register is not known.
    fn sum(self, base: Option<u8>, index: Option<u8>, scale: u8, disp: i32, esp: u32) -> Option<(i64, i64)> {
        let base = match base {
            None => (0, 0),
            Some(STACK) => (0, i64::from(esp)),
            Some(base) => self.range(base)?,
        };
        let index = index.map_or(Some((0, 0)), |index| self.range(index))?;
        let sum = |base: i64, index: i64| index.saturating_mul(scale.into()).saturating_add(base).saturating_add(disp.into());
        Some((sum(base.0, index.0), sum(base.1, index.1)))
    }

    /// The least and the greatest value that the register may hold; `None` if nothing is known.
    fn range(self, register: u8) -> Option<(i64, i64)> {
        let known = |mask: u16| mask & bit(register) != 0;
        if known(self.small) {
            Some((0, SMALL_END.wrapping_sub(1)))
        } else if known(self.low) {
            Some((0, LOW_END.wrapping_sub(1)))
        } else {
            known(self.near).then_some((REACH.wrapping_neg(), NEAR_END.wrapping_sub(1)))
        }
    }

    const fn with(self, other: Facts) -> Facts {
        Facts { small: self.small | other.small, low: self.low | other.low, near: self.near | other.near }
    }

    const fn of(self, registers: u16) -> Facts {
        Facts { small: self.small & registers, low: self.low & registers, near: self.near & registers }
    }

    /// The registers of `registers` are from 0 to 2^32 - 1.
    const fn extended(registers: u16) -> Facts {
        Facts { small: 0, low: 0, near: registers & TRACKED }
    }

    /// The registers of `registers` hold `least` to `most`.
    fn between(registers: u16, least: i64, most: i64) -> Facts {
        let registers = registers & TRACKED;
        let within = |from: i64, end: i64| if from <= least && most < end { registers } else { 0 };
        Facts { small: within(0, SMALL_END), low: within(0, LOW_END), near: within(REACH.wrapping_neg(), NEAR_END) }
    }

    /// What is known behind an instruction when control falls through it. `esp`: as for [`Facts::allows`], in front of it; `operands`: as the decoder gave
    /// them, `None` where it gives none.
    #[inline]
    pub(crate) fn after(self, insn: &Insn, operands: Option<&Operands>, window: &Window, esp: u32) -> Facts {
        match insn.action {
            Action::Call | Action::TableCall | Action::ImportCall => return Facts::NONE,
            Action::TableJmp | Action::ImportJmp => return Facts::NONE,
            // Nothing but rsp, or nothing, is written.
            Action::Nop | Action::Endbr | Action::Hint | Action::Limit | Action::EndbrLimit => return self,
            Action::Down | Action::Up | Action::Ret | Action::Ud2 | Action::Jcc | Action::Jmp | Action::Check => return self,
            Action::Meter => return self.of(!bit(14)),
            Action::Next | Action::Push | Action::Pop => {}
        }
        let Some(operands) = operands else { return Facts::NONE };
        self.behind(operands, writes(operands), window, insn.len, esp)
    }

    /// The same for an instruction of `len` bytes that writes its operands, the registers of `written` among them, and does nothing else.
    #[inline(always)]
    pub(crate) fn behind(self, operands: &Operands, written: u16, window: &Window, len: usize, esp: u32) -> Facts {
        let rest = self.of(!written);
        // Of most instructions that write a register nothing is known, or nothing needs to be worked out.
        if written == 0 || operands.line.value == Value::Any && operands.line.kind != Kind::Lea {
            return rest;
        }
        rest.with(self.result(operands, written, window, len, esp))
    }

    /// Whether the address of `base` and `index` without scale is exact for every displacement; that of others may be.
    #[inline(always)]
    pub(crate) fn allows_any(self, memory: &Memory) -> bool {
        let known = u32::from(self.low) | 1 << STACK;
        (memory.index == Memory::NONE) & (known >> memory.base & 1 != 0)
    }

    /// What the values written to the registers of `written` are; `self` is what was known before.
    fn result(self, operands: &Operands, written: u16, window: &Window, len: usize, esp: u32) -> Facts {
        let line = operands.line;
        let Some(wide) = width(operands) else { return Facts::NONE };
        let extended = Facts::extended(if wide { 0 } else { written });
        let old = self.of(written);
        // Not below 0 and not above what it was.
        let shrunk = Facts { small: old.small, low: old.low, near: old.low };
        let immediate = immediate_of(operands, window, len);
        let count = immediate.unwrap_or(1) & if wide { 63 } else { 31 };
        if line.kind == Kind::Lea {
            return self.address(operands, written, wide, esp).with(extended);
        }
        match line.value {
            Value::Any => Facts::NONE,
            Value::Extended => extended,
            Value::Shifted if count == 0 => Facts::NONE,
            Value::Shifted => extended,
            Value::ShiftedRight if count == 0 => Facts::NONE,
            Value::ShiftedRight => {
                let bits = if wide { 64_i64 } else { 32 }.wrapping_sub(count);
                let most =
                    if bits < 63 { 1_i64.wrapping_shl(u32::try_from(bits).unwrap_or(0)).wrapping_sub(1) } else { i64::MAX };
                Facts::between(written, 0, most).with(shrunk).with(extended)
            }
            Value::Small => Facts::between(written, 0, SMALL_END.wrapping_sub(1)),
            Value::Immediate => {
                let value = in_width(immediate.unwrap_or(i64::MAX), wide);
                Facts::between(written, value, value)
            }
            Value::Masked => {
                let mask = in_width(immediate.unwrap_or(-1), wide);
                let masked = if mask < 0 { Facts::NONE } else { Facts::between(written, 0, mask) };
                masked.with(shrunk).with(extended)
            }
            Value::Moved => {
                let near = wide && (REACH.wrapping_neg()..=REACH).contains(&immediate.unwrap_or(1));
                Facts { near: if near { old.low } else { 0 }, ..Facts::NONE }.with(extended)
            }
            Value::Difference if operands.memory.is_none() && operands.reg == operands.rm => Facts::between(written, 0, 0),
            Value::Difference => extended,
            Value::Copy => self.copied(operands, written, wide).with(extended),
        }
    }

    /// `mov` between registers: the source's levels; of a 32-bit one those that speak of no other bits than the copied.
    fn copied(self, operands: &Operands, written: u16, wide: bool) -> Facts {
        if operands.memory.is_some() {
            return Facts::NONE;
        }
        let source = bit(if operands.line.rm.write { operands.reg } else { operands.rm });
        let levels = |mask: u16| if mask & source != 0 { written } else { 0 };
        let near = if wide { levels(self.near) } else { 0 };
        Facts { small: levels(self.small), low: levels(self.low), near: near | levels(self.low) }.of(TRACKED)
    }

    /// `lea`: the range of its sum, if that is what 32 bits hold.
    fn address(self, operands: &Operands, written: u16, wide: bool, esp: u32) -> Facts {
        // rsp itself has a high half that nobody knows.
        let Some(memory) = operands.memory.filter(|memory| !wide || memory.base != STACK) else { return Facts::NONE };
        let named = |register: u8| (register != Memory::NONE).then_some(register);
        let scale = 1_u8.wrapping_shl(u32::from(memory.scale));
        match self.sum(named(memory.base), named(memory.index), scale, memory.disp, esp) {
            Some((least, most)) if wide || least >= 0 && most < NEAR_END => Facts::between(written, least, most),
            _ => Facts::NONE,
        }
    }
}

/// The mask of one register.
fn bit(register: u8) -> u16 {
    1_u16.wrapping_shl(u32::from(register & 15))
}

/// A value as the register holds it after a write of 64 (`wide`) or 32 bits.
const fn in_width(value: i64, wide: bool) -> i64 {
    if wide { value } else { value & 0xffff_ffff }
}

/// Whether the written register gets 64 bits (true) or 32 with the upper half 0 (false); `None` if only a part of it is written.
fn width(operands: &Operands) -> Option<bool> {
    let line = operands.line;
    let register =
        |operand: Operand| operand.write && matches!(operand.field, Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32);
    let field = if line.has(flag::MODRM) && register(line.reg) {
        line.reg.field
    } else if operands.memory.is_none() && register(line.rm) {
        line.rm.field
    } else if register(line.vvvv) {
        line.vvvv.field
    } else if line.rm.field == Field::Gpr8 {
        Field::Gpr8
    } else {
        // An implicit one, of operand size.
        Field::GprV
    };
    match field {
        Field::GprV if operands.w => Some(true),
        Field::GprV => (!operands.opsize).then_some(false),
        Field::GprY => Some(operands.w),
        Field::Gpr32 => Some(false),
        _ => None,
    }
}
