//! The encodings that are more than their operands: control flow, depth, fused units, no-ops, x87 and `lea`.

use super::operand::address;
use super::{
    Action, DENY, Decoded, Insn, Machine, Memory, Opcode, Operands, Prefixes, Sink, Window, byte, dword, plain, signed_byte,
};
use crate::policy::Features;
use crate::table::{self, Imm, Kind, Line, flag};
use crate::verdict::Rule;

/// The line of what has an [`Action`] or no operands at all.
static BARE: Line = table::plain();
/// `fnstsw %ax`.
static FNSTSW: Line = table::plain().with(flag::WRITES_A);
/// The encodings that are more than their operands.
#[inline(never)]
pub(super) fn special(window: &Window, machine: &Machine, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    let bare = !op.prefixes.any() && !op.extension.present();
    match op.line.kind {
        Kind::Deny | Kind::Group => Err(Rule::NotListed),
        Kind::StrayPrefix => Err(Rule::NotCanonical),
        Kind::StraySegment if op.byte == machine.segment => Err(Rule::NotCanonical),
        Kind::StraySegment => Err(Rule::MemoryForm),
        // Decided before.
        Kind::Plain | Kind::Push | Kind::Pop | Kind::Jcc | Kind::Jmp | Kind::Call | Kind::Lea | Kind::Vex => Err(Rule::NotListed),
        Kind::Fpu => fpu(window, machine, op, modrm, sink),
        Kind::Nop => no_op(window, machine, op, modrm, sink),
        Kind::LongNop => long_no_op(window, op),
        Kind::Endbr => endbr(window, machine, op),
        Kind::AddImm | Kind::SubImm if modrm & 0xc7 == 0xc4 && op.extension.w() && op.extension.b() == 0 => {
            move_depth(window, op, modrm)
        }
        Kind::AndImm => and_or_table(window, machine, op, modrm, sink),
        Kind::CmpImm if machine.kernel && bare && op.byte == 0x81 && modrm == 0xfc => limit(window, op.at.wrapping_sub(1), false),
        Kind::AddImm | Kind::SubImm | Kind::CmpImm => plain(window, machine, op, modrm, sink),
        Kind::CallMem | Kind::JmpMem => import(window, op, modrm, sink),
        Kind::Ret | Kind::Ud2 if !bare => Err(Rule::NotCanonical),
        Kind::Ret => Ok(control(op, 0, Action::Ret)),
        Kind::Ud2 => Ok(control(op, 0, Action::Ud2)),
    }
}

/// An instruction without operands that ends `more` bytes after its opcode.
#[inline(always)]
fn control(op: &Opcode, more: usize, action: Action) -> Insn {
    Insn::new(op.at.wrapping_add(more), action, Features::NONE)
}

/// A direct branch or call: no prefix at all.
#[inline(always)]
pub(super) fn branch(window: &Window, op: &Opcode) -> Decoded<Insn> {
    if op.prefixes.any() || op.extension.present() {
        return Err(Rule::NotCanonical);
    }
    let (disp, more) = match op.line.imm {
        Imm::B1 => (signed_byte(window, op.at), 1),
        _ => (dword(window, op.at).cast_signed(), 4),
    };
    let action = match op.line.kind {
        Kind::Jcc => Action::Jcc,
        Kind::Call => Action::Call,
        _ => Action::Jmp,
    };
    Ok(Insn { disp, ..control(op, more, action) })
}

fn fpu(window: &Window, machine: &Machine, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    let which = usize::from(op.byte & 7);
    if modrm >= 0xc0 {
        let forms = table::FPU_REGISTER.get(which).copied().unwrap_or(0);
        if forms >> (modrm & 63) & 1 == 0 {
            return Err(Rule::NotListed);
        }
        if op.prefixes.any() || op.extension.present() {
            return Err(Rule::NotCanonical);
        }
        let features = table::SETS.get(usize::from(op.line.set)).copied().unwrap_or_default();
        let line = if op.byte == 0xdf && modrm == 0xe0 { &FNSTSW } else { &BARE };
        sink.take(Operands::none(line));
        return Ok(Insn { features, ..control(op, 1, Action::Next) });
    }
    let line = table::FPU_MEMORY.get(which).and_then(|lines| lines.get(usize::from(modrm >> 3 & 7))).unwrap_or(&DENY);
    if line.is_deny() { Err(Rule::NotListed) } else { plain(window, machine, &Opcode { line, ..*op }, modrm, sink) }
}

/// 90: `nop`, `66 nop`, `pause`, or an exchange with r8.
fn no_op(window: &Window, machine: &Machine, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    if op.extension.b() != 0 {
        return plain(window, machine, op, modrm, sink);
    }
    let pause = op.prefixes == Prefixes(Prefixes::REP);
    let prefixes = if pause { Prefixes::default() } else { op.prefixes.without(Prefixes::OPSIZE) };
    if prefixes.any() || op.extension.present() {
        return Err(Rule::NotCanonical);
    }
    sink.take(Operands::none(&BARE));
    Ok(control(op, 0, if pause { Action::Next } else { Action::Nop }))
}

/// The multi-byte no-ops that assemblers emit, after their 0F 1F.
const LONG_NO_OPS: [&[u8]; 5] = [&[0x00], &[0x40, 0], &[0x44, 0, 0], &[0x80, 0, 0, 0, 0], &[0x84, 0, 0, 0, 0, 0]];

fn long_no_op(window: &Window, op: &Opcode) -> Decoded<Insn> {
    if op.prefixes.any() || op.extension.present() {
        return Err(Rule::NotCanonical);
    }
    // Column 66 has no line of its own, so the byte before 0F 1F tells.
    let wide = op.at > 2;
    let rest = window.get(op.at..).unwrap_or(&[]);
    if let Some([0x84, 0xc0, immediate @ ..]) = rest.first_chunk::<6>()
        && !wide
    {
        return Ok(Insn { number: u32::from_le_bytes(*immediate), ..control(op, 6, Action::Hint) });
    }
    let listed = LONG_NO_OPS.iter().filter(|no_op| !wide || no_op.len() == 3 || no_op.len() == 6);
    match listed.into_iter().find(|no_op| rest.starts_with(no_op)) {
        Some(no_op) => Ok(control(op, no_op.len(), Action::Nop)),
        None => Err(Rule::NotListed),
    }
}

fn endbr(window: &Window, machine: &Machine, op: &Opcode) -> Decoded<Insn> {
    if byte(window, op.at) != 0xfa {
        return Err(Rule::NotListed);
    }
    if op.prefixes.any() || op.extension.present() {
        return Err(Rule::NotCanonical);
    }
    let next = op.at.wrapping_add(1);
    if machine.kernel && byte(window, next) == 0x81 && byte(window, next.wrapping_add(1)) == 0xfc {
        return limit(window, next, true);
    }
    Ok(control(op, 1, Action::Endbr))
}

/// `cmp $imm32,%esp; jb rel32` whose opcode is at `at`.
fn limit(window: &Window, at: usize, endbr: bool) -> Decoded<Insn> {
    let jump = at.wrapping_add(6);
    if byte(window, jump) != 0x0f || byte(window, jump.wrapping_add(1)) != 0x82 {
        return Err(Rule::Limit);
    }
    let action = if endbr { Action::EndbrLimit } else { Action::Limit };
    let disp = dword(window, jump.wrapping_add(2)).cast_signed();
    let number = dword(window, at.wrapping_add(2));
    Ok(Insn { disp, number, ..Insn::new(jump.wrapping_add(6), action, Features::NONE) })
}

/// `add`/`sub` of an immediate to rsp.
fn move_depth(window: &Window, op: &Opcode, modrm: u8) -> Decoded<Insn> {
    if op.prefixes.any() || op.extension.r() | op.extension.x() != 0 {
        return Err(Rule::NotCanonical);
    }
    let at = op.at.wrapping_add(1);
    let (disp, more) = if op.byte == 0x83 { (signed_byte(window, at), 2) } else { (dword(window, at).cast_signed(), 5) };
    let action = if modrm & 0x38 == 0 { Action::Up } else { Action::Down };
    Ok(Insn { disp, ..control(op, more, action) })
}

/// `lea`: no access, so no segment and no 67. From rsp only with a 32-bit result, or to rsp as a depth change.
#[inline(always)]
pub(super) fn lea(window: &Window, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    if modrm >= 0xc0 {
        return Err(Rule::NotListed);
    }
    let extension = op.extension;
    let opsize = op.prefixes.has(Prefixes::OPSIZE);
    if op.prefixes.without(Prefixes::OPSIZE).any() || opsize && extension.w() || extension.is_bare() {
        return Err(Rule::NotCanonical);
    }
    let (memory, at) = address(window, op.at, modrm, extension)?;
    let reg = (modrm >> 3) & 7 | extension.r();
    let mut action = Action::Next;
    if reg == 4 {
        let frame = memory.base == 4 && memory.index == Memory::NONE;
        if !frame || !extension.w() || modrm < 0x40 {
            return Err(Rule::StackPointer);
        }
        action = Action::Up;
    } else if memory.base == 4 && (extension.w() || opsize) {
        return Err(Rule::StackPointer);
    }
    let operands =
        Operands { memory: Some(memory), reg, w: extension.w(), opsize, rex: extension.present(), ..Operands::none(op.line) };
    sink.take(operands);
    let disp = if action == Action::Up { memory.disp } else { 0 };
    Ok(Insn { disp, ..Insn::new(at, action, Features::NONE) })
}

/// `and` with an immediate, alone or as the first half of a table call or jump.
fn and_or_table(window: &Window, machine: &Machine, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    let insn = plain(window, machine, op, modrm, sink)?;
    if modrm < 0xc0 || op.extension.w() || op.prefixes.has(Prefixes::OPSIZE) {
        return Ok(insn);
    }
    let mut at = insn.len;
    let mut expect = |wanted: bool| {
        at = at.wrapping_add(1);
        wanted
    };
    let low = modrm & 7;
    let segment = expect(byte(window, insn.len) == machine.segment);
    let extended = op.extension.b() == 0 || expect(byte(window, insn.len.wrapping_add(1)) == 0x41);
    if !segment || !extended || byte(window, at) != 0xff {
        return Ok(insn);
    }
    let second = byte(window, at.wrapping_add(1));
    let call = second == 0x90 | low;
    if !call && second != 0xa0 | low {
        return Ok(insn);
    }
    at = at.wrapping_add(2);
    if low == 4 {
        if byte(window, at) != 0x24 {
            return Ok(insn);
        }
        at = at.wrapping_add(1);
    }
    let short = op.byte == 0x83;
    let imm = op.at.wrapping_add(1);
    let number = if short { signed_byte(window, imm).cast_unsigned() } else { dword(window, imm) };
    // A sign-extended byte is no table's mask, so the walk refuses it.
    if !short && number <= 127 {
        return Err(Rule::NotCanonical);
    }
    let disp = dword(window, at).cast_signed();
    let action = if call { Action::TableCall } else { Action::TableJmp };
    Ok(Insn { len: at.wrapping_add(4), action, disp, number, ..insn })
}

/// `call`/`jmp` through memory: only `segment:disp32` with the 64-bit form and nothing else.
fn import(window: &Window, op: &Opcode, modrm: u8, sink: &mut impl Sink) -> Decoded<Insn> {
    if !op.prefixes.has(Prefixes::SEGMENT) {
        return Err(Rule::NotListed);
    }
    if op.prefixes.without(Prefixes::SEGMENT).any()
        || op.extension.present()
        || modrm & 0xc7 != 0x04
        || byte(window, op.at.wrapping_add(1)) != 0x25
    {
        return Err(Rule::Table);
    }
    let disp = dword(window, op.at.wrapping_add(2)).cast_signed();
    let action = if op.line.kind == Kind::CallMem { Action::ImportCall } else { Action::ImportJmp };
    let memory = Some(Memory { base: Memory::NONE, index: Memory::NONE, scale: 0, disp, wide: false });
    let operands = Operands { memory, ..Operands::none(op.line) };
    sink.take(operands);
    Ok(Insn { disp, ..control(op, 6, action) })
}
