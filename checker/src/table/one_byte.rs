//! The one-byte opcode map.
//!
//! Not here, so rejected: string instructions (implicit operands), moffs, xlat, in/out, segment loads, far forms, `int*`, `hlt`, `popf`,
//! `pushf`, `enter`, `leave`, `loop*`, `jrcxz`, `push` of anything but a register, `pop` to memory, `ret imm16`, `std`, `cli`, `sti`; also
//! aliases (82, SHL /6, TEST /1) and forms without use (`movsxd` without W, `cld`: DF is always clear).

use super::line::*;
use super::sets::X87;
use super::{Group, Map, group, map};

/// A two-operand ALU operation that writes its destination.
const fn alu(reg: Operand, rm: Operand, size: Size) -> Line {
    if rm.write { modrm(reg, rm, size).lock() } else { modrm(reg, rm, size) }
}

/// Reads (writes) the accumulator as an implicit operand; never rsp, so no field names it.
const fn accumulator(imm: Imm) -> Line {
    plain().imm(imm).with(flag::WRITES_A)
}

const fn accumulator_v() -> Line {
    accumulator(Imm::Z).with(flag::OPSIZE | flag::W_ANY)
}

const fn jcc() -> Line {
    plain().kind(Kind::Jcc).imm(Imm::B1)
}

const ALU8: u8 = 0;
const ALU_Z: u8 = 1;
const ALU_B: u8 = 2;
const SHIFT8: u8 = 3;
const SHIFT_V: u8 = 4;
const SHIFT8_IMM: u8 = 5;
const SHIFT_V_IMM: u8 = 6;
const MOV8: u8 = 7;
const MOV_V: u8 = 8;
const UNARY8: u8 = 9;
const UNARY_V: u8 = 10;
const STEP8: u8 = 11;
const STEP_V: u8 = 12;
const SHIFT_V_CL: u8 = 13;

pub(crate) static MAP: Map = map! {
    0x00 => alu(R8, U8, Size::B1), "add";
    0x01 => alu(RV, UV, Size::V).extended(), "add";
    0x02 => alu(U8, R8, Size::B1), "add";
    0x03 => alu(UV, RV, Size::V).extended(), "add";
    0x04 => accumulator(Imm::B1), "add";
    0x05 => accumulator_v().value(Value::Moved), "add";
    0x08 => alu(R8, U8, Size::B1), "or";
    0x09 => alu(RV, UV, Size::V).extended(), "or";
    0x0a => alu(U8, R8, Size::B1), "or";
    0x0b => alu(UV, RV, Size::V).extended(), "or";
    0x0c => accumulator(Imm::B1), "or";
    0x0d => accumulator_v().extended(), "or";
    0x10 => alu(R8, U8, Size::B1), "adc";
    0x11 => alu(RV, UV, Size::V).extended(), "adc";
    0x12 => alu(U8, R8, Size::B1), "adc";
    0x13 => alu(UV, RV, Size::V).extended(), "adc";
    0x14 => accumulator(Imm::B1), "adc";
    0x15 => accumulator_v().extended(), "adc";
    0x18 => alu(R8, U8, Size::B1), "sbb";
    0x19 => alu(RV, UV, Size::V).extended(), "sbb";
    0x1a => alu(U8, R8, Size::B1), "sbb";
    0x1b => alu(UV, RV, Size::V).extended(), "sbb";
    0x1c => accumulator(Imm::B1), "sbb";
    0x1d => accumulator_v().extended(), "sbb";
    0x20 => alu(R8, U8, Size::B1), "and";
    0x21 => alu(RV, UV, Size::V).extended(), "and";
    0x22 => alu(U8, R8, Size::B1), "and";
    0x23 => alu(UV, RV, Size::V).extended(), "and";
    0x24 => accumulator(Imm::B1), "and";
    0x25 => accumulator_v().value(Value::Masked), "and";
    0x28 => alu(R8, U8, Size::B1), "sub";
    0x29 => alu(RV, UV, Size::V).value(Value::Difference), "sub";
    0x2a => alu(U8, R8, Size::B1), "sub";
    0x2b => alu(UV, RV, Size::V).value(Value::Difference), "sub";
    0x2c => accumulator(Imm::B1), "sub";
    0x2d => accumulator_v().value(Value::Moved), "sub";
    0x30 => alu(R8, U8, Size::B1), "xor";
    0x31 => alu(RV, UV, Size::V).value(Value::Difference), "xor";
    0x32 => alu(U8, R8, Size::B1), "xor";
    0x33 => alu(UV, RV, Size::V).value(Value::Difference), "xor";
    0x34 => accumulator(Imm::B1), "xor";
    0x35 => accumulator_v().extended(), "xor";
    0x38 => alu(R8, R8, Size::B1), "cmp";
    0x39 => alu(RV, RV, Size::V), "cmp";
    0x3a => alu(R8, R8, Size::B1), "cmp";
    0x3b => alu(RV, RV, Size::V), "cmp";
    0x3c => plain().ib(), "cmp";
    0x3d => plain().imm(Imm::Z).with(flag::OPSIZE | flag::W_ANY), "cmp";

    0x26 => plain().kind(Kind::StrayPrefix), "";
    0x2e => plain().kind(Kind::StrayPrefix), "";
    0x36 => plain().kind(Kind::StrayPrefix), "";
    0x3e => plain().kind(Kind::StrayPrefix), "";
    0x40..=0x4f => plain().kind(Kind::StrayPrefix), "";
    0x64..=0x65 => plain().kind(Kind::StraySegment), "";
    0x66..=0x67 => plain().kind(Kind::StrayPrefix), "";
    0xf0 => plain().kind(Kind::StrayPrefix), "";
    0xf2..=0xf3 => plain().kind(Kind::StrayPrefix), "";

    // The walk moves the depth; no other register operand of these names rsp.
    0x50..=0x57 => Line { flags: flag::IN_OPCODE, ..in_opcode(RV) }.kind(Kind::Push), "push";
    0x58..=0x5f => Line { flags: flag::IN_OPCODE, ..in_opcode(WV) }.kind(Kind::Pop), "pop";
    0x63 => Line { flags: flag::MODRM, ..modrm(WV, RD, Size::B4) }.w1(), "movsxd";
    0x69 => modrm(WV, RV, Size::V).imm(Imm::Z).extended(), "imul";
    0x6b => modrm(WV, RV, Size::V).ib().extended(), "imul";
    0x70..=0x7f => jcc(), "j*";
    0x80 => group_of(ALU8), "";
    0x81 => group_of(ALU_Z), "";
    0x83 => group_of(ALU_B), "";
    0x84 => modrm(R8, R8, Size::B1), "test";
    0x85 => modrm(RV, RV, Size::V), "test";
    0x86 => modrm(U8, U8, Size::B1).with(flag::LOCKS), "xchg";
    0x87 => modrm(UV, UV, Size::V).with(flag::LOCKS), "xchg";
    0x88 => modrm(R8, W8, Size::B1), "mov";
    0x89 => modrm(RV, WV, Size::V).value(Value::Copy), "mov";
    0x8a => modrm(W8, R8, Size::B1), "mov";
    0x8b => modrm(WV, RV, Size::V).value(Value::Copy), "mov";
    0x8d => modrm(WV, NONE, Size::No).kind(Kind::Lea), "lea";
    0x90 => in_opcode(UV).with(flag::WRITES_A).kind(Kind::Nop), "nop|xchg|pause";
    0x91..=0x97 => in_opcode(UV).with(flag::WRITES_A), "xchg";
    0x98 => plain().with(flag::OPSIZE | flag::W_ANY | flag::WRITES_A).extended(), "cbw|cwde|cdqe";
    0x99 => plain().with(flag::OPSIZE | flag::W_ANY | flag::WRITES_D).extended(), "cwd|cdq|cqo";
    0x9b => plain().set(X87), "wait";
    0x9e => plain(), "sahf";
    0x9f => plain().with(flag::WRITES_A), "lahf";
    0xa8 => plain().ib(), "test";
    0xa9 => plain().imm(Imm::Z).with(flag::OPSIZE | flag::W_ANY), "test";
    0xb0..=0xb7 => in_opcode(W8).ib(), "mov";
    0xb8..=0xbf => in_opcode(WV).imm(Imm::V).value(Value::Immediate), "mov";
    0xc0 => group_of(SHIFT8_IMM), "";
    0xc1 => group_of(SHIFT_V_IMM), "";
    0xc3 => plain().kind(Kind::Ret), "ret";
    0xc4..=0xc5 => plain().kind(Kind::Vex), "";
    0xc6 => group_of(MOV8), "";
    0xc7 => group_of(MOV_V), "";
    0xd0 => group_of(SHIFT8), "";
    0xd1 => group_of(SHIFT_V), "";
    0xd2 => group_of(SHIFT8), "";
    0xd3 => group_of(SHIFT_V_CL), "";
    0xd8..=0xdf => modrm(EXT, NONE, Size::No).set(X87).kind(Kind::Fpu), "f*";
    0xe8 => plain().kind(Kind::Call).imm(Imm::B4), "call";
    0xe9 => plain().kind(Kind::Jmp).imm(Imm::B4), "jmp";
    0xeb => plain().kind(Kind::Jmp).imm(Imm::B1), "jmp";
    0xf5 => plain(), "cmc";
    0xf6 => group_of(UNARY8), "";
    0xf7 => group_of(UNARY_V), "";
    0xf8 => plain(), "clc";
    0xf9 => plain(), "stc";
    0xfe => group_of(STEP8), "";
    0xff => group_of(STEP_V), "";
};

/// Groups by number (the constants above).
pub(crate) static GROUPS: [Group; 14] = [
    alu_group(U8, R8, Size::B1, Imm::B1),
    alu_group(UV, RV, Size::V, Imm::Z),
    alu_group(UV, RV, Size::V, Imm::B1),
    shift_group(U8, Size::B1, Imm::No, Value::Any, Value::Any),
    shift_group(UV, Size::V, Imm::No, Value::Shifted, Value::ShiftedRight),
    shift_group(U8, Size::B1, Imm::B1, Value::Any, Value::Any),
    shift_group(UV, Size::V, Imm::B1, Value::Shifted, Value::ShiftedRight),
    group! { 0 both => modrm(EXT, W8, Size::B1).ib(), "mov"; },
    group! { 0 both => modrm(EXT, WV, Size::V).imm(Imm::Z).value(Value::Immediate), "mov"; },
    unary_group(U8, R8, Size::B1, Imm::B1, flag::WRITES_A),
    unary_group(UV, RV, Size::V, Imm::Z, flag::WRITES_A | flag::WRITES_D),
    group! {
        0 both => modrm(EXT, U8, Size::B1).lock(), "inc";
        1 both => modrm(EXT, U8, Size::B1).lock(), "dec";
    },
    group! {
        0 both => modrm(EXT, UV, Size::V).lock().value(Value::Moved), "inc";
        1 both => modrm(EXT, UV, Size::V).lock().value(Value::Moved), "dec";
        2 memory => modrm(EXT, NONE, Size::B8).kind(Kind::CallMem), "call";
        4 memory => modrm(EXT, NONE, Size::B8).kind(Kind::JmpMem), "jmp";
    },
    // A count of 0 in cl leaves the register as it was.
    shift_group(UV, Size::V, Imm::No, Value::Any, Value::Any),
];

/// Nothing is ever known of 8-bit results.
const fn known(size: Size, value: Value) -> Value {
    if matches!(size, Size::B1) { Value::Any } else { value }
}

/// 8-bit forms never name rsp nor begin a unit.
const fn special(size: Size, kind: Kind) -> Kind {
    if matches!(size, Size::B1) { Kind::Plain } else { kind }
}

const fn alu_group(update: Operand, read: Operand, size: Size, imm: Imm) -> Group {
    let extended = known(size, Value::Extended);
    let moved = known(size, Value::Moved);
    let masked = known(size, Value::Masked);
    group! {
        0 both => modrm(EXT, update, size).imm(imm).lock().kind(special(size, Kind::AddImm)).value(moved), "add";
        1 both => modrm(EXT, update, size).imm(imm).lock().value(extended), "or";
        2 both => modrm(EXT, update, size).imm(imm).lock().value(extended), "adc";
        3 both => modrm(EXT, update, size).imm(imm).lock().value(extended), "sbb";
        4 both => modrm(EXT, update, size).imm(imm).lock().kind(special(size, Kind::AndImm)).value(masked), "and";
        5 both => modrm(EXT, update, size).imm(imm).lock().kind(special(size, Kind::SubImm)).value(moved), "sub";
        6 both => modrm(EXT, update, size).imm(imm).lock().value(extended), "xor";
        7 both => modrm(EXT, read, size).imm(imm).kind(special(size, Kind::CmpImm)), "cmp";
    }
}

const fn shift_group(update: Operand, size: Size, imm: Imm, value: Value, right: Value) -> Group {
    group! {
        0 both => modrm(EXT, update, size).imm(imm).value(value), "rol";
        1 both => modrm(EXT, update, size).imm(imm).value(value), "ror";
        2 both => modrm(EXT, update, size).imm(imm).value(value), "rcl";
        3 both => modrm(EXT, update, size).imm(imm).value(value), "rcr";
        4 both => modrm(EXT, update, size).imm(imm).value(value), "shl";
        5 both => modrm(EXT, update, size).imm(imm).value(right), "shr";
        7 both => modrm(EXT, update, size).imm(imm).value(value), "sar";
    }
}

const fn unary_group(update: Operand, read: Operand, size: Size, imm: Imm, product: u16) -> Group {
    let extended = known(size, Value::Extended);
    group! {
        0 both => modrm(EXT, read, size).imm(imm), "test";
        2 both => modrm(EXT, update, size).lock().value(extended), "not";
        3 both => modrm(EXT, update, size).lock().value(extended), "neg";
        4 both => modrm(EXT, read, size).with(product).value(extended), "mul";
        5 both => modrm(EXT, read, size).with(product).value(extended), "imul";
        6 both => modrm(EXT, read, size).with(product).value(extended), "div";
        7 both => modrm(EXT, read, size).with(product).value(extended), "idiv";
    }
}
