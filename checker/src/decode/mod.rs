//! The decoder: one instruction or fused unit at a time, from at most 16 bytes, by the tables of [`crate::table`].
//!
//! Canonical prefix order is `[segment] [67] [F0] [66] [F2|F3] [REX] opcode`, or `[segment] [67] VEX`; a prefix, or a bit of REX, VEX,
//! ModRM or SIB, that has no effect is rejected. So every accepted byte string has one meaning and no decoder can read another.
//!
//! Everything that names rsp (esp, sp, spl) is rejected here, except the forms that become an [`Action`] of their own.

mod effect;
mod head;
mod mode;
mod operand;
mod quick;
mod special;

use crate::policy::{Features, Host, Mode, Protect};
use crate::table::{self, Field, Kind, Line, Size, flag};
use crate::verdict::Rule;
pub(crate) use effect::{immediate_of, writes};
pub(crate) use head::Head;
use head::{DENY, Extension, Opcode, Prefixes};
use operand::{features, immediate, window_operand};
pub(crate) use quick::quick;
use special::special;

/// Most bytes that one instruction or fused unit has.
pub(crate) const LONGEST: usize = 16;
/// Most bytes that the CPU takes for one instruction.
const LONGEST_INSTRUCTION: usize = 15;
/// The bytes from an instruction on; zeros past the end of the text.
pub(crate) type Window = [u8; LONGEST];

/// What an accepted instruction does to control flow and depth; `disp` and `number` are those of [`Insn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Falls through, nothing else.
    Next,
    /// Falls through and does nothing: padding where no control arrives.
    Nop,
    /// Falls through; an `endbr64` begins it.
    Endbr,
    /// `push r64`, `pop r64`.
    Push,
    Pop,
    /// rsp moves down, up by `disp` bytes.
    Down,
    Up,
    Ret,
    Ud2,
    /// Direct branches and calls; `disp` counts from the instruction's end.
    Jcc,
    Jmp,
    Call,
    /// Fused `and $number,%r32; call|jmp *segment:disp(%r64)`.
    TableCall,
    TableJmp,
    /// `call|jmp *segment:disp`.
    ImportCall,
    ImportJmp,
    /// Inline state hint with the immediate `number`.
    Hint,
    /// Kernel: `cmp $number,%esp; jb`, and the same behind `endbr64`; `disp` counts from the unit's end.
    Limit,
    EndbrLimit,
    /// Match: `cmp $0x7fffffff,%r64; ja`: register `number`, `disp` from the unit's end.
    Check,
    /// Metered: `sub $number,%r14; jb`: 1 to 1023, `disp` from the unit's end.
    Meter,
}

/// The memory operand of an accepted instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// 0 to 15, or [`Memory::NONE`].
    pub(crate) base: u8,
    pub(crate) index: u8,
    /// Shift count, 0 to 3.
    pub(crate) scale: u8,
    pub(crate) disp: i32,
    /// A load with 64-bit base and index ([`Protect::Stores`]).
    pub(crate) wide: bool,
}

impl Memory {
    pub(crate) const NONE: u8 = 16;
}

/// A decoded instruction or unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) action: Action,
    /// What the action says; else 0.
    pub(crate) disp: i32,
    pub(crate) number: u32,
    pub(crate) features: Features,
}

impl Insn {
    const fn new(len: usize, action: Action, features: Features) -> Insn {
        Insn { len, action, disp: 0, number: 0, features }
    }
}

/// Who wants to know the operands of an accepted instruction.
pub(crate) trait Sink {
    fn take(&mut self, operands: Operands);
}

/// The walk does not.
impl Sink for () {
    #[inline(always)]
    fn take(&mut self, _: Operands) {}
}

impl Sink for Option<Operands> {
    fn take(&mut self, operands: Operands) {
        *self = Some(operands);
    }
}

/// The fields of a decoded instruction, for modes and for the comparison with other decoders; the walk without modes does not need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    pub(crate) line: &'static Line,
    pub(crate) memory: Option<Memory>,
    /// Register numbers, extended; meaningful where the line's field names a register.
    pub(crate) reg: u8,
    pub(crate) rm: u8,
    pub(crate) vvvv: u8,
    pub(crate) w: bool,
    pub(crate) l: bool,
    pub(crate) opsize: bool,
    /// A REX or VEX prefix is there: byte registers 4 to 7 are spl to dil.
    pub(crate) rex: bool,
    pub(crate) lock: bool,
}

/// What of the host the decoder needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Segment prefix of window operands.
    segment: u8,
    /// It and 67 behind it, as a little-endian number.
    window_prefixes: u64,
    kernel: bool,
    /// CHECK is a unit.
    matched: bool,
    /// METER is a unit.
    metered: bool,
    /// Loads may have 64-bit addresses.
    loads: bool,
}

impl Machine {
    pub(crate) const fn new(host: Host, mode: Mode) -> Machine {
        let (segment, window_prefixes, kernel) = match host {
            Host::User => (0x65, 0x6765, false),
            Host::Kernel => (0x64, 0x6764, true),
        };
        Machine {
            segment,
            window_prefixes,
            kernel,
            matched: mode.matched,
            metered: mode.metered,
            loads: matches!(mode.protect, Protect::Stores),
        }
    }

    /// Whether a mode has fused units.
    #[inline(always)]
    const fn has_units(self) -> bool {
        self.matched | self.metered
    }
}

type Decoded<T> = Result<T, Rule>;

#[inline(always)]
fn byte(window: &Window, at: usize) -> u8 {
    window.get(at).copied().unwrap_or(0)
}

#[inline(always)]
fn dword(window: &Window, at: usize) -> u32 {
    window.get(at..).and_then(|rest| rest.first_chunk::<4>()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[inline(always)]
fn signed_byte(window: &Window, at: usize) -> i32 {
    i32::from(byte(window, at).cast_signed())
}

/// Decodes the instruction or unit at the window's start. Its length may exceed what the text has left; the caller compares.
///
/// # Errors
/// The rule that the bytes violate by themselves.
#[inline(always)]
pub(crate) fn decode(window: &Window, machine: &Machine, sink: &mut impl Sink) -> Decoded<Insn> {
    let head = Head::of(window, machine);
    match quick(&head, machine.has_units()) {
        Some(insn) => {
            sink.take(head.operands());
            Ok(insn)
        }
        None => whole(head, machine, machine.has_units(), sink),
    }
}

/// C4, C5.
#[inline(never)]
fn vex(window: &Window, machine: &Machine, op: &Opcode, sink: &mut impl Sink) -> Decoded<Insn> {
    let (op, modrm) = head::vex(window, op)?;
    if op.line.is_deny() { Err(Rule::NotListed) } else { plain(window, machine, &op, modrm, sink) }
}

/// Everything that [`quick`] does not take, and why what is refused is refused.
#[inline(always)]
pub(crate) fn whole(head: Head<'_>, machine: &Machine, units: bool, sink: &mut impl Sink) -> Decoded<Insn> {
    let Head { window, op, modrm, .. } = head;
    if units && let Some(insn) = mode::unit(window, machine, &op, modrm)? {
        return Ok(insn);
    }
    // The frequent kinds are decided here, the others out of line.
    let action = match op.line.kind {
        Kind::Plain => Action::Next,
        Kind::Push => Action::Push,
        Kind::Pop => Action::Pop,
        // With a register operand of number 4, perhaps rsp.
        Kind::AddImm | Kind::SubImm | Kind::CmpImm if modrm & 0xc7 != 0xc4 => Action::Next,
        Kind::Jcc | Kind::Jmp | Kind::Call => return special::branch(window, &op),
        Kind::Lea => return special::lea(window, &op, modrm, sink),
        Kind::Vex => return vex(window, machine, &op, sink),
        _ => return special(window, machine, &op, modrm, sink),
    };
    let insn = plain(window, machine, &op, modrm, sink)?;
    Ok(Insn { action, ..insn })
}

impl Operands {
    const fn none(line: &'static Line) -> Operands {
        Operands { line, memory: None, reg: 0, rm: 0, vvvv: 0, w: false, l: false, opsize: false, rex: false, lock: false }
    }
}

/// An instruction that is its line: prefixes and fields against what the line says.
#[inline(never)]
fn plain(window: &Window, machine: &Machine, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    let Opcode { prefixes, extension, line, .. } = *op;
    if line.has(flag::W_ONE) && !extension.w() {
        return Err(Rule::NotListed);
    }
    let opsize = prefixes.has(Prefixes::OPSIZE);
    let w_unused = extension.w() && !line.has(flag::W_ANY | flag::W_ONE);
    let opsize_unused = opsize && (!line.has(flag::OPSIZE) || extension.w());
    if w_unused || opsize_unused || prefixes.has(Prefixes::REP | Prefixes::REPNE) {
        return Err(Rule::NotCanonical);
    }
    let lock = prefixes.has(Prefixes::LOCK);
    let mut operands =
        Operands { vvvv: op.vvvv, w: extension.w(), l: op.l, opsize, rex: extension.present(), lock, ..Operands::none(line) };
    let mut at = op.at;
    if line.has(flag::MODRM) {
        operands.reg = (modrm >> 3) & 7 | extension.r();
        field(line.reg.field, operands.reg, extension)?;
        if modrm >= 0xc0 {
            if line.has(flag::MEMORY_ONLY) {
                return Err(Rule::NotListed);
            }
            operands.rm = modrm & 7 | extension.b();
            field(line.rm.field, operands.rm, extension)?;
            if extension.x() != 0 || prefixes.has(Prefixes::SEGMENT | Prefixes::SHORT) {
                return Err(Rule::NotCanonical);
            }
            at = at.wrapping_add(1);
        } else {
            if line.size == Size::No {
                return Err(Rule::NotListed);
            }
            let (memory, next) = window_operand(window, machine, op, modrm)?;
            operands.memory = Some(memory);
            at = next;
        }
    } else {
        if extension.r() | extension.x() != 0 || prefixes.has(Prefixes::SEGMENT | Prefixes::SHORT) {
            return Err(Rule::NotCanonical);
        }
        if line.has(flag::IN_OPCODE) {
            operands.rm = op.byte & 7 | extension.b();
            field(line.rm.field, operands.rm, extension)?;
        } else if extension.b() != 0 {
            return Err(Rule::NotCanonical);
        }
    }
    if lock && (!line.has(flag::LOCK) || operands.memory.is_none()) {
        return Err(Rule::NotListed);
    }
    if op.vex {
        vex_fields(op, operands.memory.is_some())?;
    } else if extension.is_bare() && !byte_register(&operands, modrm) {
        return Err(Rule::NotCanonical);
    }
    at = at.wrapping_add(immediate(window, line.imm, at, op)?);
    if at > LONGEST_INSTRUCTION {
        return Err(Rule::NotListed);
    }
    let insn = Insn::new(at, Action::Next, features(&operands));
    sink.take(operands);
    Ok(insn)
}

/// Whether a register field may hold this number.
#[inline(always)]
fn field(field: Field, number: u8, extension: Extension) -> Decoded<()> {
    if number == 4 {
        return match field {
            // Without REX, number 4 is ah.
            Field::Gpr8 if !extension.present() => Ok(()),
            Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 => Err(Rule::StackPointer),
            Field::Zero => Err(Rule::NotCanonical),
            Field::None | Field::Extension | Field::Mmx | Field::Vector => Ok(()),
        };
    }
    match field {
        Field::Zero if number != 0 => Err(Rule::NotCanonical),
        Field::None | Field::Extension | Field::Mmx if number >= 8 => Err(Rule::NotCanonical),
        _ => Ok(()),
    }
}

/// Whether a bare REX changes a byte register's meaning (spl is refused by [`field`], the others are bpl, sil, dil).
fn byte_register(operands: &Operands, modrm: u8) -> bool {
    let line = operands.line;
    let reg = line.has(flag::MODRM) && line.reg.field == Field::Gpr8 && operands.reg >= 4;
    let rm_named = line.has(flag::IN_OPCODE) || line.has(flag::MODRM) && modrm >= 0xc0;
    reg || rm_named && line.rm.field == Field::Gpr8 && operands.rm >= 4
}

/// VEX.L and VEX.vvvv against the line.
fn vex_fields(op: &Opcode, memory: bool) -> Decoded<()> {
    let line = op.line;
    let length = if op.l { line.wide != table::NO_WIDE } else { !line.has(flag::L_ONE) };
    if !length {
        return Err(Rule::NotListed);
    }
    let unused = line.vvvv.field == Field::None || memory && line.has(flag::VVVV_REGISTER);
    if unused && op.vvvv != 0 {
        return Err(Rule::NotCanonical);
    }
    field(line.vvvv.field, op.vvvv, op.extension)
}
