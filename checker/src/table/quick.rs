//! What a line says once more, as masks over what an encoding shows ([`mark`]): the test that most instructions pass at once.

use super::line::{Field, Imm, Kind, Line, Operand, Size, flag};

/// What an encoding shows besides its opcode; the lowest six are those of `Prefixes`.
pub(crate) mod mark {
    pub(crate) const SEGMENT: u16 = 1 << 0;
    pub(crate) const SHORT: u16 = 1 << 1;
    pub(crate) const LOCK: u16 = 1 << 2;
    pub(crate) const OPSIZE: u16 = 1 << 3;
    pub(crate) const REP: u16 = 1 << 4;
    pub(crate) const REPNE: u16 = 1 << 5;
    /// Bits of REX.
    pub(crate) const B: u16 = 1 << 6;
    pub(crate) const X: u16 = 1 << 7;
    pub(crate) const R: u16 = 1 << 8;
    pub(crate) const W: u16 = 1 << 9;
    /// REX without a bit.
    pub(crate) const BARE: u16 = 1 << 10;
    /// ModRM.reg, ModRM.rm of mod 3, SIB.base with their bits of REX are 4: rsp, or a part of it, if it is a general register.
    pub(crate) const REG_4: u16 = 1 << 11;
    pub(crate) const RM_4: u16 = 1 << 12;
    pub(crate) const BASE_4: u16 = 1 << 13;
    /// No base, rip, or (perhaps) not the one encoding of an address.
    pub(crate) const ODD_ADDRESS: u16 = 1 << 14;
    /// Never shown.
    pub(crate) const NEVER: u16 = 1 << 15;
}

/// The marks that matter, and what they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) mask: u16,
    pub(crate) value: u16,
}

impl Form {
    const NEVER: Form = Form { mask: mark::NEVER, value: mark::NEVER };
}

/// The quick test of a line. What it lets pass is accepted as the line says, with the line's extensions; it need not let pass all of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quick {
    /// By the byte behind the opcode, ModRM or not: from C0 up, below (with ModRM: a memory operand).
    pub(crate) forms: [Form; 2],
    /// Bytes of ModRM and immediate, 4 bits each: without 66 and W, with 66, with W, with both 15, which is too long.
    pub(crate) lengths: u16,
    /// With ModRM 15: SIB and displacement count.
    pub(crate) address: u8,
}

impl Quick {
    pub(crate) const NEVER: Quick = Quick { forms: [Form::NEVER; 2], lengths: 0, address: 0 };

    /// The test for a line of the legacy maps; `opcode` matters if it names a register.
    pub(crate) const fn of(line: &Line, opcode: usize) -> Quick {
        let immediates = match line.imm {
            Imm::No => 0xf000,
            Imm::B1 => 0xf111,
            Imm::B4 => 0xf444,
            Imm::Z => 0xf424,
            Imm::V => 0xf824,
            Imm::Register => return Quick::NEVER,
        };
        // What depends on more than the marks.
        let zero = matches!(line.reg.field, Field::Zero) || matches!(line.rm.field, Field::Zero);
        if zero || line.has(flag::LOCKS | flag::AVX2_REGISTER) || matches!(line.size, Size::Pair) {
            return Quick::NEVER;
        }
        let forms = match line.kind {
            Kind::Plain if !line.has(flag::MODRM) => [opcode_form(line, opcode); 2],
            Kind::Plain | Kind::AddImm | Kind::SubImm | Kind::CmpImm => [register_form(line), window_form(line)],
            // Behind the register form there may be a table call.
            Kind::AndImm => [Form::NEVER, window_form(line)],
            Kind::Lea => [Form::NEVER, address_form(line)],
            _ => [Form::NEVER; 2],
        };
        let with_modrm = line.has(flag::MODRM);
        #[allow(clippy::arithmetic_side_effects, reason = "evaluated at compile time only")]
        let lengths = if with_modrm { immediates + 0x111 } else { immediates };
        Quick { forms, lengths, address: if with_modrm { 15 } else { 0 } }
    }
}

/// Prefixes and REX.W.
const fn common(line: &Line) -> Form {
    let mut mask = mark::SEGMENT | mark::SHORT | mark::LOCK | mark::REP | mark::REPNE | mark::BARE;
    if !line.has(flag::OPSIZE) {
        mask |= mark::OPSIZE;
    }
    if !line.has(flag::W_ANY) || line.has(flag::W_ONE) {
        mask |= mark::W;
    }
    Form { mask, value: if line.has(flag::W_ONE) { mark::W } else { 0 } }
}

/// The mark that a field must not show: number 4 or, where there is no ninth register, the bit of REX.
const fn refused(operand: Operand, number_4: u16, extended: u16) -> u16 {
    match operand.field {
        Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 => number_4,
        Field::Vector => 0,
        Field::None | Field::Extension | Field::Mmx | Field::Zero => extended,
    }
}

/// A window operand with base or index.
const fn window_form(line: &Line) -> Form {
    if matches!(line.size, Size::No) {
        return Form::NEVER;
    }
    let common = common(line);
    Form {
        mask: common.mask | mark::ODD_ADDRESS | refused(line.reg, mark::REG_4, mark::R),
        value: common.value | mark::SEGMENT | mark::SHORT,
    }
}

/// `lea`: no access, so no prefixes, and nothing of rsp.
const fn address_form(line: &Line) -> Form {
    let common = common(line);
    Form { mask: common.mask | mark::ODD_ADDRESS | mark::BASE_4 | mark::REG_4, ..common }
}

/// Two registers, or one and an opcode extension.
const fn register_form(line: &Line) -> Form {
    if line.has(flag::MEMORY_ONLY) {
        return Form::NEVER;
    }
    let common = common(line);
    let fields = refused(line.reg, mark::REG_4, mark::R) | refused(line.rm, mark::RM_4, mark::B);
    Form { mask: common.mask | mark::X | fields, ..common }
}

/// Without ModRM; the opcode may name a register, which is not rsp.
const fn opcode_form(line: &Line, opcode: usize) -> Form {
    let common = common(line);
    let form = Form { mask: common.mask | mark::R | mark::X, ..common };
    match line.rm.field {
        Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 if opcode & 7 != 4 => form,
        Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 => Form { mask: form.mask | mark::B, value: form.value | mark::B },
        _ => Form { mask: form.mask | mark::B, ..form },
    }
}

/// What ModRM shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) marks: u16,
    /// Bytes of SIB and displacement.
    pub(crate) more: u8,
    /// All bits if a SIB follows, else none.
    pub(crate) sib: u16,
}

/// By REX.RXB and ModRM (`rxb << 8 | modrm`): their marks, and those of an address without SIB.
#[allow(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "at compile time only")]
pub(crate) static MODRM: [Shown; 2048] = {
    let mut table = [Shown { marks: 0, more: 0, sib: 0 }; 2048];
    let mut at = 0;
    while at < table.len() {
        let (rxb, mode, reg, low) = (at >> 8, at >> 6 & 3, at >> 3 & 7, at & 7);
        let (r, x, b) = (rxb & 4 != 0, rxb & 2 != 0, rxb & 1 != 0);
        let mut marks = rxb as u16 * mark::B;
        if reg == 4 && !r {
            marks |= mark::REG_4;
        }
        if mode == 3 && low == 4 && !b {
            marks |= mark::RM_4;
        }
        if mode != 3 && low != 4 && (x || mode == 0 && low == 5) {
            marks |= mark::ODD_ADDRESS;
        }
        let sib = mode != 3 && low == 4;
        let more = [0, 1, 4, 0][mode] + sib as u8;
        table[at] = Shown { marks, more, sib: if sib { u16::MAX } else { 0 } };
        at += 1;
    }
    table
};

/// By mod = 0, REX.XB and SIB (`(mod == 0) << 10 | xb << 8 | sib`): the marks of the address.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "at compile time only")]
pub(crate) static SIB: [u16; 2048] = {
    let mut table = [0; 2048];
    let mut at = 0;
    while at < table.len() {
        let (mode_0, x, b) = (at & 1 << 10 != 0, at & 1 << 9 != 0, at & 1 << 8 != 0);
        let (index, base) = (at >> 3 & 7, at & 7);
        // An index of 4 is none; then only SIB 24 says what ModRM alone cannot.
        if index == 4 && !x && at & 0xff != 0x24 || mode_0 && base == 5 {
            table[at] |= mark::ODD_ADDRESS;
        }
        if base == 4 && !b {
            table[at] |= mark::BASE_4;
        }
        at += 1;
    }
    table
};
