//! The decoder: one instruction or fused unit at a time, from at most 16 bytes, by the tables of [`crate::table`].
//!
//! Canonical prefix order is `[segment] [67] [F0] [66] [F2|F3] [REX] opcode`, or `[segment] [67] VEX`; a prefix, or a bit of REX, VEX,
//! ModRM or SIB, that has no effect is rejected. So every accepted byte string has one meaning and no decoder can read another.
//!
//! Everything that names rsp (esp, sp, spl) is rejected here, except the forms that become an [`Action`] of their own.

mod effect;
mod mode;
mod operand;
mod special;

use crate::policy::{Features, Host, Mode, Protect};
use crate::table::{self, Field, Group, Kind, Line, Size, flag};
use crate::verdict::Rule;
pub(crate) use effect::{immediate_of, writes};
use operand::{features, immediate, window_operand};
use special::special;

/// Most bytes that one instruction or fused unit has.
pub(crate) const LONGEST: usize = 16;
/// Most bytes that the CPU takes for one instruction.
const LONGEST_INSTRUCTION: usize = 15;
/// The bytes from an instruction on; zeros past the end of the text.
pub(crate) type Window = [u8; LONGEST];

/// What an accepted instruction does to control flow and depth.
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
    /// rsp moves down by so many bytes (negative: up).
    Deepen(i64),
    Ret,
    Ud2,
    /// Direct branches and calls; displacement from the instruction's end.
    Jcc(i32),
    Jmp(i32),
    Call(i32),
    /// Fused `and $mask,%r32; call|jmp *segment:disp(%r64)`.
    TableCall {
        mask: u32,
        disp: i32,
    },
    TableJmp {
        mask: u32,
        disp: i32,
    },
    /// `call|jmp *segment:disp`.
    ImportCall(i32),
    ImportJmp(i32),
    /// Inline state hint with its immediate.
    Hint(u32),
    /// Kernel: `[endbr64] cmp $limit,%esp; jb abort`, displacement from the unit's end.
    Limit {
        endbr: bool,
        limit: u32,
        abort: i32,
    },
    /// Match: `cmp $0x7fffffff,%register; ja abort`.
    Check {
        register: u8,
        abort: i32,
    },
    /// Metered: `sub $charge,%r14; jb abort`; 1 to 1023.
    Meter {
        charge: u16,
        abort: i32,
    },
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn {
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) action: Action,
    pub(crate) features: Features,
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

/// The fields of a decoded instruction; the walk does not need them, the comparison with other decoders does.
#[derive(Clone, Copy, Debug)]
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
        let (segment, kernel) = match host {
            Host::User => (0x65, false),
            Host::Kernel => (0x64, true),
        };
        Machine { segment, kernel, matched: mode.matched, metered: mode.metered, loads: matches!(mode.protect, Protect::Stores) }
    }

    /// The same without modes, so that the compiler sees that there are none.
    #[inline(always)]
    pub(crate) const fn sandbox(self) -> Machine {
        Machine { matched: false, metered: false, loads: false, ..self }
    }
}

/// Legacy prefixes, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prefixes(u8);

impl Prefixes {
    const SEGMENT: u8 = 1;
    /// 67.
    const SHORT: u8 = 2;
    const LOCK: u8 = 4;
    /// 66.
    const OPSIZE: u8 = 8;
    /// F3 or F2; which, is the column that selected the line.
    const REP: u8 = 16;
    const REPNE: u8 = 32;

    #[inline(always)]
    const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    #[inline(always)]
    const fn any(self) -> bool {
        self.0 != 0
    }

    #[inline(always)]
    const fn without(self, bits: u8) -> Prefixes {
        Prefixes(self.0 & !bits)
    }
}

/// REX, or the same bits of VEX behind 0x40; 0 without either. The register extensions are 0 or 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Extension(u8);

impl Extension {
    #[inline(always)]
    const fn present(self) -> bool {
        self.0 != 0
    }
    #[inline(always)]
    const fn w(self) -> bool {
        self.0 & 8 != 0
    }
    #[inline(always)]
    const fn r(self) -> u8 {
        (self.0 & 4) << 1
    }
    #[inline(always)]
    const fn x(self) -> u8 {
        (self.0 & 2) << 2
    }
    #[inline(always)]
    const fn b(self) -> u8 {
        (self.0 & 1) << 3
    }
    /// A REX that changes nothing but the meaning of byte registers 4 to 7.
    #[inline(always)]
    const fn is_bare(self) -> bool {
        self.0 == 0x40
    }
}

/// Whether a byte is a legacy prefix of [`Prefixes`].
static IS_PREFIX: [bool; 256] = {
    let mut table = [false; 256];
    table[0x64] = true;
    table[0x65] = true;
    table[0x66] = true;
    table[0x67] = true;
    table[0xf0] = true;
    table[0xf2] = true;
    table[0xf3] = true;
    table
};

/// An instruction up to and with its opcode.
#[derive(Clone, Copy, Debug)]
struct Opcode {
    prefixes: Prefixes,
    extension: Extension,
    line: &'static Line,
    groups: &'static [Group],
    byte: u8,
    /// Index after the opcode.
    at: usize,
    vex: bool,
    vvvv: u8,
    l: bool,
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

#[inline(always)]
fn column<T>(map: &'static [T; 4], prefix: usize, fallback: &'static T) -> &'static T {
    map.get(prefix).unwrap_or(fallback)
}

static DENY: Line = Line::DENY;
static DENY_MAP: table::Map = [Line::DENY; 256];

#[inline(always)]
fn line_of(map: &'static table::Map, opcode: u8) -> &'static Line {
    map.get(usize::from(opcode)).unwrap_or(&DENY)
}

/// Decodes the instruction or unit at the window's start. Its length may exceed what the text has left; the caller compares.
///
/// # Errors
/// The rule that the bytes violate by themselves.
#[inline(always)]
pub(crate) fn decode(window: &Window, machine: Machine, sink: &mut impl Sink) -> Decoded<Insn> {
    let mut prefixes = Prefixes::default();
    let mut at = 0_usize;
    let mut first = byte(window, 0);
    if IS_PREFIX.get(usize::from(first)).copied().unwrap_or(false) {
        (prefixes, at) = legacy_prefixes(window, machine);
        first = byte(window, at);
    }
    let mut extension = Extension::default();
    if first & 0xf0 == 0x40 {
        extension = Extension(first);
        at = at.wrapping_add(1);
        first = byte(window, at);
    }
    at = at.wrapping_add(1);
    if first == 0x0f {
        return two_byte(window, machine, prefixes, extension, at, sink);
    }
    if first & 0xfe == 0xc4 {
        return vex(window, machine, prefixes, extension, first, at, sink);
    }
    let line = line_of(&table::ONE_BYTE, first);
    let groups = &table::GROUPS;
    finish(window, machine, Opcode { prefixes, extension, line, groups, byte: first, at, vex: false, vvvv: 0, l: false }, sink)
}

/// Prefixes in canonical order, each at most once; the index after them. What is left is an opcode or a stray prefix.
#[inline(always)]
fn legacy_prefixes(window: &Window, machine: Machine) -> (Prefixes, usize) {
    let mut prefixes = 0;
    let mut at = 0_usize;
    let mut next = |accepts: u8, bit: u8| {
        let found = byte(window, at) == accepts;
        if found {
            prefixes |= bit;
            at = at.wrapping_add(1);
        }
        found
    };
    next(machine.segment, Prefixes::SEGMENT);
    next(0x67, Prefixes::SHORT);
    next(0xf0, Prefixes::LOCK);
    next(0x66, Prefixes::OPSIZE);
    if !next(0xf3, Prefixes::REP) {
        next(0xf2, Prefixes::REPNE);
    }
    (Prefixes(prefixes), at)
}

#[inline(always)]
fn two_byte(
    window: &Window,
    machine: Machine,
    prefixes: Prefixes,
    extension: Extension,
    at: usize,
    sink: &mut impl Sink,
) -> Decoded<Insn> {
    let second = byte(window, at);
    let (map, opcode, at) = match second {
        0x38 => (&table::MAP_0F38, byte(window, at.wrapping_add(1)), at.wrapping_add(2)),
        0x3a => (&table::MAP_0F3A, byte(window, at.wrapping_add(1)), at.wrapping_add(2)),
        _ => (&table::MAP_0F, second, at.wrapping_add(1)),
    };
    let column_of = match prefixes.0 >> 3 {
        0 => table::NP,
        1 => table::P66,
        2 | 3 => table::PF3,
        _ => table::PF2,
    };
    let line = line_of(column(map, column_of, &DENY_MAP), opcode);
    // F3 and F2 always select the line; 66 selects it unless the line takes it as operand size.
    let selecting = Prefixes::REP | Prefixes::REPNE;
    let alone = !prefixes.has(selecting) && !line.has(flag::OPSIZE);
    let prefixes = prefixes.without(if alone { Prefixes::OPSIZE } else { selecting });
    let groups = &table::GROUPS_0F;
    finish(window, machine, Opcode { prefixes, extension, line, groups, byte: opcode, at, vex: false, vvvv: 0, l: false }, sink)
}

fn vex(
    window: &Window,
    machine: Machine,
    prefixes: Prefixes,
    extension: Extension,
    first: u8,
    at: usize,
    sink: &mut impl Sink,
) -> Decoded<Insn> {
    if extension.present() || prefixes.without(Prefixes::SEGMENT | Prefixes::SHORT).any() {
        return Err(Rule::NotCanonical);
    }
    let head = byte(window, at);
    let r = (!head & 0x80) >> 5;
    let (xb, map, tail, at) = if first == 0xc5 {
        (0, 1, head & 0x7f, at.wrapping_add(1))
    } else {
        ((!head & 0x60) >> 5, head & 0x1f, byte(window, at.wrapping_add(1)), at.wrapping_add(2))
    };
    let w = (tail & 0x80) >> 4;
    if first == 0xc4 && map == 1 && xb | w == 0 {
        return Err(Rule::NotCanonical);
    }
    let map = match map {
        1 => &table::VEX_0F,
        2 => &table::VEX_0F38,
        3 => &table::VEX_0F3A,
        _ => return Err(Rule::NotListed),
    };
    let opcode = byte(window, at);
    let line = line_of(column(map, usize::from(tail & 3), &DENY_MAP), opcode);
    let vvvv = (!tail >> 3) & 15;
    let extension = Extension(0x40 | w | r | xb);
    let groups = &table::GROUPS_VEX;
    let l = tail & 4 != 0;
    finish(
        window,
        machine,
        Opcode { prefixes, extension, line, groups, byte: opcode, at: at.wrapping_add(1), vex: true, vvvv, l },
        sink,
    )
}

/// Everything after the opcode.
#[inline(always)]
fn finish(window: &Window, machine: Machine, mut op: Opcode, sink: &mut impl Sink) -> Decoded<Insn> {
    let modrm = byte(window, op.at);
    if op.line.kind == Kind::Group {
        let group = op.groups.get(usize::from(op.line.group));
        let register = u8::from(modrm >= 0xc0) << 3;
        op.line = group.and_then(|lines| lines.get(usize::from((modrm >> 3) & 7 | register))).unwrap_or(&DENY);
    }
    if machine.matched | machine.metered
        && let Some(insn) = mode::unit(window, machine, &op, modrm)?
    {
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
        Kind::Lea => return special::lea(window, op, modrm, sink),
        _ => return special(window, machine, op, modrm, sink),
    };
    let insn = plain(window, machine, op, modrm, sink)?;
    Ok(Insn { action, ..insn })
}

impl Operands {
    const fn none(line: &'static Line) -> Operands {
        Operands { line, memory: None, reg: 0, rm: 0, vvvv: 0, w: false, l: false, opsize: false, rex: false, lock: false }
    }
}

/// An instruction that is its line: prefixes and fields against what the line says.
#[inline(always)]
fn plain(window: &Window, machine: Machine, op: Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    let Opcode { prefixes, extension, line, .. } = op;
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
            let (memory, next) = window_operand(window, machine, &op, modrm)?;
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
        vex_fields(&op, operands.memory.is_some())?;
    } else if extension.is_bare() && !byte_register(&operands, modrm) {
        return Err(Rule::NotCanonical);
    }
    at = at.wrapping_add(immediate(window, line.imm, at, &op)?);
    if at > LONGEST_INSTRUCTION {
        return Err(Rule::NotListed);
    }
    let insn = Insn { len: at, action: Action::Next, features: features(&operands) };
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
