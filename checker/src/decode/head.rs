//! The front of an instruction: prefixes, REX or VEX, opcode, and the line that they select.

use super::{Decoded, Machine, Window, byte};
use crate::table::{self, Group, Kind, Line, flag};
use crate::verdict::Rule;

/// Legacy prefixes, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefixes(pub(super) u8);

impl Prefixes {
    pub(super) const SEGMENT: u8 = 1;
    /// 67.
    pub(super) const SHORT: u8 = 2;
    pub(super) const LOCK: u8 = 4;
    /// 66.
    pub(super) const OPSIZE: u8 = 8;
    /// F3 or F2; which, is the column that selected the line.
    pub(super) const REP: u8 = 16;
    pub(super) const REPNE: u8 = 32;
    /// What may select a line behind 0F.
    pub(super) const SELECTING: u8 = Prefixes::OPSIZE | Prefixes::REP | Prefixes::REPNE;

    #[inline(always)]
    pub(super) const fn has(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    #[inline(always)]
    pub(super) const fn any(self) -> bool {
        self.0 != 0
    }

    #[inline(always)]
    pub(super) const fn without(self, bits: u8) -> Prefixes {
        Prefixes(self.0 & !bits)
    }
}

/// REX, or the same bits of VEX behind 0x40; 0 without either. The register extensions are 0 or 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extension(pub(super) u8);

impl Extension {
    #[inline(always)]
    pub(super) const fn present(self) -> bool {
        self.0 != 0
    }
    #[inline(always)]
    pub(super) const fn w(self) -> bool {
        self.0 & 8 != 0
    }
    #[inline(always)]
    pub(super) const fn r(self) -> u8 {
        (self.0 & 4) << 1
    }
    #[inline(always)]
    pub(super) const fn x(self) -> u8 {
        (self.0 & 2) << 2
    }
    #[inline(always)]
    pub(super) const fn b(self) -> u8 {
        (self.0 & 1) << 3
    }
    /// A REX that changes nothing but the meaning of byte registers 4 to 7.
    #[inline(always)]
    pub(super) const fn is_bare(self) -> bool {
        self.0 == 0x40
    }
}

/// Whether a byte is a legacy prefix of [`Prefixes`].
static IS_PREFIX: [bool; 256] = {
    let mut table = [false; 256];
    table[0x64] = true;
    table[0x65] = true;
    table[0x67] = true;
    table[0x66] = true;
    table[0xf0] = true;
    table[0xf2] = true;
    table[0xf3] = true;
    table
};

/// An instruction up to and with its opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opcode {
    pub(super) prefixes: Prefixes,
    pub(super) extension: Extension,
    pub(super) line: &'static Line,
    pub(super) groups: &'static [Group],
    pub(super) byte: u8,
    /// Index after the opcode.
    pub(super) at: usize,
    pub(super) vex: bool,
    pub(super) vvvv: u8,
    pub(super) l: bool,
}

impl Opcode {
    /// With the line that ModRM selects, if the opcode is a group's.
    #[inline(always)]
    pub(super) fn of_group(self, modrm: u8) -> Opcode {
        if self.line.kind != Kind::Group {
            return self;
        }
        let group = self.groups.get(usize::from(self.line.group));
        let register = u8::from(modrm >= 0xc0) << 3;
        let line = group.and_then(|lines| lines.get(usize::from((modrm >> 3) & 7 | register))).unwrap_or(&DENY);
        Opcode { line, ..self }
    }
}

/// 8 bytes, the first one lowest.
#[inline(always)]
fn word(window: &Window, at: usize) -> u64 {
    window.get(at..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The lowest byte.
#[inline(always)]
fn low(word: u64) -> u8 {
    let [byte, ..] = word.to_le_bytes();
    byte
}

#[inline(always)]
fn column<T>(map: &'static [T; 4], prefix: usize, fallback: &'static T) -> &'static T {
    map.get(prefix).unwrap_or(fallback)
}

/// The line of what has none.
pub(super) static DENY: Line = Line::DENY;
static DENY_MAP: table::Map = [Line::DENY; 256];

#[inline(always)]
fn line_of(map: &'static table::Map, opcode: u8) -> &'static Line {
    map.get(usize::from(opcode)).unwrap_or(&DENY)
}

/// An instruction up to its opcode, and the bytes that may be ModRM and SIB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'w> {
    pub(super) window: &'w Window,
    pub(super) op: Opcode,
    pub(super) modrm: u8,
    pub(super) sib: u8,
}

impl<'w> Head<'w> {
    /// Takes prefixes and opcode apart.
    #[inline(always)]
    pub(crate) fn of(window: &'w Window, machine: &Machine) -> Head<'w> {
        // What most instructions have or have not is taken without a branch, by shifting `rest`: no processor can tell which have it.
        let mut rest = word(window, 0);
        let both = rest & 0xffff == machine.window_prefixes;
        let (mut prefixes, mut at) = if both { (Prefixes(Prefixes::SEGMENT | Prefixes::SHORT), 2) } else { (Prefixes(0), 0) };
        rest = if both { rest >> 16 } else { rest };
        if IS_PREFIX.get(usize::from(low(rest))).copied().unwrap_or(false) {
            (prefixes, at) = legacy_prefixes(window, machine.segment);
            rest = word(window, at);
        }
        let first = low(rest);
        let is_rex = first & 0xf0 == 0x40;
        let extension = Extension(if is_rex { first } else { 0 });
        rest = if is_rex { rest >> 8 } else { rest };
        let escaped = low(rest) == 0x0f;
        rest = if escaped { rest >> 8 } else { rest };
        at = at.wrapping_add(1).wrapping_add(usize::from(is_rex)).wrapping_add(usize::from(escaped));
        let opcode = low(rest);
        let (map, groups): (_, &[Group]) = if escaped {
            (column(&table::MAP_0F, table::NP, &DENY_MAP), &table::GROUPS_0F)
        } else {
            (&table::ONE_BYTE, &table::GROUPS)
        };
        let line = line_of(map, opcode);
        let mut op = Opcode { prefixes, extension, line, groups, byte: opcode, at, vex: false, vvvv: 0, l: false };
        if escaped & (prefixes.has(Prefixes::SELECTING) | (opcode & 0xfd == 0x38)) {
            op = two_byte(window, op);
            rest = word(window, op.at.wrapping_sub(1));
        }
        let [_, modrm, sib, ..] = rest.to_le_bytes();
        Head { window, op: op.of_group(modrm), modrm, sib }
    }
}

/// Prefixes in canonical order, each at most once; the index after them. What is left is an opcode or a stray prefix.
fn legacy_prefixes(window: &Window, segment: u8) -> (Prefixes, usize) {
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
    next(segment, Prefixes::SEGMENT);
    next(0x67, Prefixes::SHORT);
    next(0xf0, Prefixes::LOCK);
    next(0x66, Prefixes::OPSIZE);
    if !next(0xf3, Prefixes::REP) {
        next(0xf2, Prefixes::REPNE);
    }
    (Prefixes(prefixes), at)
}

/// The opcode of the maps behind 0F by what selects among them: 38, 3A and the last prefix.
#[inline(always)]
fn two_byte(window: &Window, op: Opcode) -> Opcode {
    let Opcode { prefixes, byte: second, .. } = op;
    let (map, opcode, at) = match second {
        0x38 => (&table::MAP_0F38, byte(window, op.at), op.at.wrapping_add(1)),
        0x3a => (&table::MAP_0F3A, byte(window, op.at), op.at.wrapping_add(1)),
        _ => (&table::MAP_0F, second, op.at),
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
    Opcode { prefixes, line, byte: opcode, at, ..op }
}

/// The instruction behind `op`, C4 or C5, and its ModRM.
///
/// # Errors
/// The rule that the VEX prefix violates.
pub(super) fn vex(window: &Window, op: &Opcode) -> Decoded<(Opcode, u8)> {
    let Opcode { prefixes, extension, byte: first, at, .. } = *op;
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
    let l = tail & 4 != 0;
    let op =
        Opcode { extension, line, groups: &table::GROUPS_VEX, byte: opcode, at: at.wrapping_add(1), vex: true, vvvv, l, ..*op };
    let modrm = byte(window, op.at);
    Ok((op.of_group(modrm), modrm))
}
