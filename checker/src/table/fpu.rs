//! x87: opcodes D8 to DF (SDM volume 2, appendix B.17; APM volume 5).
//!
//! Not here, so rejected: `fldenv`, `frstor`, `fnstenv`, `fnsave` (they show or load instruction pointers and unmask exceptions),
//! `fldcw` and `fninit` (the control word stays the host's; a gate sets it), and the undocumented aliases.

use super::line::*;
use super::sets::{X87, X87_CONTROL, X87_SSE3};

const fn load(size: Size) -> Line {
    modrm(EXT, Operand { field: Field::None, read: true, write: false }, size).set(X87)
}

const fn store(size: Size) -> Line {
    modrm(EXT, Operand { field: Field::None, read: false, write: true }, size).set(X87)
}

const fn truncate(size: Size) -> Line {
    store(size).set(X87_SSE3)
}

/// Memory forms by opcode - D8 and ModRM.reg.
pub(crate) static MEMORY: [[Line; 8]; 8] = [
    // D8: fadd fmul fcom fcomp fsub fsubr fdiv fdivr, 32-bit
    [load(Size::B4); 8],
    // D9: fld - fst fstp - - - fnstcw
    [
        load(Size::B4),
        Line::DENY,
        store(Size::B4),
        store(Size::B4),
        Line::DENY,
        Line::DENY,
        Line::DENY,
        store(Size::B2).set(X87_CONTROL),
    ],
    // DA: the eight operations, 32-bit integer
    [load(Size::B4); 8],
    // DB: fild fisttp fist fistp - fld80 - fstp80
    [
        load(Size::B4),
        truncate(Size::B4),
        store(Size::B4),
        store(Size::B4),
        Line::DENY,
        load(Size::B10),
        Line::DENY,
        store(Size::B10),
    ],
    // DC: the eight operations, 64-bit
    [load(Size::B8); 8],
    // DD: fld fisttp fst fstp - - - fnstsw
    [load(Size::B8), truncate(Size::B8), store(Size::B8), store(Size::B8), Line::DENY, Line::DENY, Line::DENY, store(Size::B2)],
    // DE: the eight operations, 16-bit integer
    [load(Size::B2); 8],
    // DF: fild16 fisttp fist fistp fbld fild64 fbstp fistp64
    [
        load(Size::B2),
        truncate(Size::B2),
        store(Size::B2),
        store(Size::B2),
        load(Size::B10),
        load(Size::B8),
        store(Size::B10),
        store(Size::B8),
    ],
];

/// Bits of `count` register forms from ModRM `first` on (bit = ModRM - C0).
const fn forms(first: u32, count: u32) -> u64 {
    (u64::MAX >> 64_u32.wrapping_sub(count)).wrapping_shl(first.wrapping_sub(0xc0))
}

/// Register forms by opcode - D8: bit ModRM - C0.
pub(crate) static REGISTER: [u64; 8] = [
    // D8: the eight operations
    forms(0xc0, 64),
    // D9: fld, fxch, fnop, fchs fabs, ftst fxam, constants, the F0 to FF operations
    forms(0xc0, 17) | forms(0xe0, 2) | forms(0xe4, 2) | forms(0xe8, 7) | forms(0xf0, 16),
    // DA: fcmovb fcmove fcmovbe fcmovu, fucompp
    forms(0xc0, 32) | forms(0xe9, 1),
    // DB: fcmovnb fcmovne fcmovnbe fcmovnu, fnclex, fucomi, fcomi
    forms(0xc0, 32) | forms(0xe2, 1) | forms(0xe8, 16),
    // DC: fadd fmul, fsubr fsub fdivr fdiv
    forms(0xc0, 16) | forms(0xe0, 32),
    // DD: ffree, fst fstp fucom fucomp
    forms(0xc0, 8) | forms(0xd0, 32),
    // DE: faddp fmulp, fcompp, fsubrp fsubp fdivrp fdivp
    forms(0xc0, 16) | forms(0xd9, 1) | forms(0xe0, 32),
    // DF: fnstsw ax, fucomip, fcomip
    forms(0xe0, 1) | forms(0xe8, 16),
];
