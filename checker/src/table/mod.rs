//! The allow-list: one line per encoding (DESIGN §6). What has no line is rejected.
//!
//! A line says what ModRM.reg, ModRM.rm and VEX.vvvv name, how each is accessed, how many bytes a memory operand has, the
//! immediate's form and the extensions it needs. Absence of an attribute is the safe side: no memory form, no `lock`, no operand-size
//! prefix, REX.W = 0, VEX.L = 0, VEX.vvvv = 1111. Sources: Intel SDM volume 2, AMD APM volumes 3 to 5, opcode maps.

mod fpu;
mod line;
mod map_0f;
mod map_0f38;
mod map_0f3a;
mod one_byte;
mod quick;
mod sets;
mod vex_0f;
mod vex_0f38;
mod vex_0f3a;

pub(crate) use fpu::{MEMORY as FPU_MEMORY, REGISTER as FPU_REGISTER};
pub(crate) use line::{Field, Imm, Kind, Line, NO_WIDE, Operand, Size, Value, flag, plain};
pub(crate) use map_0f::{GROUPS as GROUPS_0F, MAP as MAP_0F};
pub(crate) use map_0f3a::MAP as MAP_0F3A;
pub(crate) use map_0f38::MAP as MAP_0F38;
pub(crate) use one_byte::{GROUPS, MAP as ONE_BYTE};
pub(crate) use quick::{MODRM, SIB, Shown, mark};
pub(crate) use sets::SETS;
pub(crate) use vex_0f::{GROUPS as GROUPS_VEX, MAP as VEX_0F};
pub(crate) use vex_0f3a::MAP as VEX_0F3A;
pub(crate) use vex_0f38::MAP as VEX_0F38;

/// One opcode map without mandatory prefixes.
pub(crate) type Map = [Line; 256];
/// One opcode map by mandatory prefix: none, 66, F3, F2.
pub(crate) type PrefixedMap = [Map; 4];
/// The lines of a group: index = ModRM.reg, plus 8 for the register form (mod = 3).
pub(crate) type Group = [Line; 16];

/// Column of a [`PrefixedMap`]: no mandatory prefix.
pub(crate) const NP: usize = 0;
/// Column of mandatory prefix 66.
pub(crate) const P66: usize = 1;
/// Column of mandatory prefix F3.
pub(crate) const PF3: usize = 2;
/// Column of mandatory prefix F2.
pub(crate) const PF2: usize = 3;

/// Builds a map; each row is `opcode => line, "mnemonics";`. The mnemonics are for the reader and for the comparison with the oracle.
macro_rules! map {
    ($($op:literal $(..= $last:literal)? => $line:expr, $name:literal;)*) => {{
        let mut map: crate::table::Map = [crate::table::Line::DENY; 256];
        $( map = crate::table::fill(map, $op, crate::table::last!($op $(, $last)?), $line); )*
        map
    }};
}

/// Builds a map by mandatory prefix; each row is `prefixes: opcode => line, "mnemonics";`.
macro_rules! prefixed_map {
    ($($($column:ident)|+: $op:literal $(..= $last:literal)? => $line:expr, $name:literal;)*) => {{
        let mut maps: crate::table::PrefixedMap = [[crate::table::Line::DENY; 256]; 4];
        $( maps = crate::table::fill_columns(
            maps, &[$(crate::table::$column),+], $op, crate::table::last!($op $(, $last)?), $line); )*
        maps
    }};
}

/// Builds a group; each row is `reg memory|register|both => line, "mnemonic";`.
macro_rules! group {
    ($($reg:literal $form:ident => $line:expr, $name:literal;)*) => {{
        let mut group: crate::table::Group = [crate::table::Line::DENY; 16];
        $( group = crate::table::fill_group(group, $reg, stringify!($form).as_bytes(), $line); )*
        group
    }};
}

macro_rules! last {
    ($op:literal) => {
        $op
    };
    ($op:literal, $last:literal) => {
        $last
    };
}

use {group, last, map, prefixed_map};

/// `map` with `line` at `first..=last`; a place that is already taken stops the build.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, reason = "evaluated at compile time only")]
const fn fill(mut map: Map, first: usize, last: usize, line: Line) -> Map {
    let mut op = first;
    while op <= last {
        assert!(map[op].is_deny(), "two lines for one encoding");
        map[op] = line.seal(op);
        op += 1;
    }
    map
}

/// `maps` with `line` at `first..=last` of each of `columns`.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated at compile time only")]
const fn fill_columns(mut maps: PrefixedMap, columns: &[usize], first: usize, last: usize, line: Line) -> PrefixedMap {
    let mut index = 0;
    while index < columns.len() {
        maps[columns[index]] = fill(maps[columns[index]], first, last, line);
        index += 1;
    }
    maps
}

/// `group` with `line` for /`reg`, in the memory form, the register form, or both.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, reason = "evaluated at compile time only")]
const fn fill_group(mut group: Group, reg: usize, form: &[u8], line: Line) -> Group {
    let (memory, register) = match form {
        b"memory" => (true, false),
        b"register" => (false, true),
        b"both" => (true, true),
        _ => panic!("unknown form"),
    };
    assert!(!memory || group[reg].is_deny(), "two lines for one encoding");
    assert!(!register || group[reg + 8].is_deny(), "two lines for one encoding");
    if memory {
        group[reg] = line.seal(0);
    }
    if register {
        group[reg + 8] = line.seal(0);
    }
    group
}
