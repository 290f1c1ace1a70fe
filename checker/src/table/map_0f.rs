//! The 0F opcode map, legacy prefixes.
//!
//! Not here, so rejected: everything privileged or system (05, 06-09, 20-23, 30-35, 00, 01), `cpuid`, `rdtsc`, `rdpmc`, `rdrand`, `rdseed`,
//! `rdpid`, `push`/`pop` of segments, the fxsave/xsave family, `ldmxcsr` (a gate sets it), `clflush*`, `clwb`, FS/GS base access, `ptwrite`,
//! `umonitor`, `ud0`, `ud1`, 3DNow, `maskmovq`/`maskmovdqu` (implicit rdi), bit strings indexed by a register with a memory operand (any
//! address), reserved no-ops (0F 18 to 1E hold MPX, CET, CLDEMOTE) but the listed ones, SSE4A.

use super::line::*;
use super::sets::*;
use super::{Group, PrefixedMap, group, prefixed_map};

const fn jcc() -> Line {
    plain().kind(Kind::Jcc).imm(Imm::B4)
}

/// xmm, xmm/m128.
const fn x16() -> Line {
    sse(UX, RX, Size::B16)
}

/// mm, mm/m64.
const fn m8() -> Line {
    modrm(UM, RM, Size::B8).set(MMX)
}

/// mm, mm/m64 that came with SSE.
const fn m8_sse() -> Line {
    m8().set(MMX_SSE)
}

/// mm, mm/m32.
const fn m4() -> Line {
    modrm(UM, RM, Size::B4).set(MMX)
}

const PREFETCHW_GROUP: u8 = 0;
const PREFETCH: u8 = 1;
const SHIFT_W_M: u8 = 2;
const SHIFT_W_X: u8 = 3;
const SHIFT_D_M: u8 = 4;
const SHIFT_D_X: u8 = 5;
const SHIFT_Q_M: u8 = 6;
const SHIFT_Q_X: u8 = 7;
const FENCE: u8 = 8;
const BIT: u8 = 9;
const CMPXCHG8: u8 = 10;

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    NP: 0x0b => plain().kind(Kind::Ud2), "ud2";
    NP: 0x0d => group_of(PREFETCHW_GROUP), "";
    NP: 0x10 => sse(WX, RX, Size::B16), "movups";
    P66: 0x10 => sse(WX, RX, Size::B16), "movupd";
    PF3: 0x10 => sse(WX, RX, Size::B4), "movss";
    PF2: 0x10 => sse(WX, RX, Size::B8), "movsd";
    NP: 0x11 => sse(RX, WX, Size::B16), "movups";
    P66: 0x11 => sse(RX, WX, Size::B16), "movupd";
    PF3: 0x11 => sse(RX, WX, Size::B4), "movss";
    PF2: 0x11 => sse(RX, WX, Size::B8), "movsd";
    NP: 0x12 => sse(UX, RX, Size::B8), "movlps|movhlps";
    P66: 0x12 => sse(UX, RX, Size::B8).memory_only(), "movlpd";
    PF3: 0x12 => sse(WX, RX, Size::B16).set(SSE3), "movsldup";
    PF2: 0x12 => sse(WX, RX, Size::B8).set(SSE3), "movddup";
    NP: 0x13 => sse(RX, WX, Size::B8).memory_only(), "movlps";
    P66: 0x13 => sse(RX, WX, Size::B8).memory_only(), "movlpd";
    NP: 0x14 => x16(), "unpcklps";
    P66: 0x14 => x16(), "unpcklpd";
    NP: 0x15 => x16(), "unpckhps";
    P66: 0x15 => x16(), "unpckhpd";
    NP: 0x16 => sse(UX, RX, Size::B8), "movhps|movlhps";
    P66: 0x16 => sse(UX, RX, Size::B8).memory_only(), "movhpd";
    PF3: 0x16 => sse(WX, RX, Size::B16).set(SSE3), "movshdup";
    NP: 0x17 => sse(RX, WX, Size::B8).memory_only(), "movhps";
    P66: 0x17 => sse(RX, WX, Size::B8).memory_only(), "movhpd";
    NP: 0x18 => group_of(PREFETCH), "";
    PF3: 0x1e => modrm(EXT, NONE, Size::No).kind(Kind::Endbr), "endbr64";
    NP|P66: 0x1f => modrm(EXT, NONE, Size::No).kind(Kind::LongNop), "nop";
    NP: 0x28 => sse(WX, RX, Size::B16), "movaps";
    P66: 0x28 => sse(WX, RX, Size::B16), "movapd";
    NP: 0x29 => sse(RX, WX, Size::B16), "movaps";
    P66: 0x29 => sse(RX, WX, Size::B16), "movapd";
    NP: 0x2a => sse(UX, RM, Size::B8).set(MMX_SSE), "cvtpi2ps";
    P66: 0x2a => sse(UX, RM, Size::B8).set(MMX_SSE), "cvtpi2pd";
    PF3: 0x2a => sse(UX, RY, Size::Y), "cvtsi2ss";
    PF2: 0x2a => sse(UX, RY, Size::Y), "cvtsi2sd";
    NP: 0x2b => sse(RX, WX, Size::B16).set(SSE2_NT).memory_only(), "movntps";
    P66: 0x2b => sse(RX, WX, Size::B16).set(SSE2_NT).memory_only(), "movntpd";
    NP: 0x2c => sse(WM, RX, Size::B8).set(MMX_SSE), "cvttps2pi";
    P66: 0x2c => sse(WM, RX, Size::B16).set(MMX_SSE), "cvttpd2pi";
    PF3: 0x2c => sse(WY, RX, Size::B4).extended(), "cvttss2si";
    PF2: 0x2c => sse(WY, RX, Size::B8).extended(), "cvttsd2si";
    NP: 0x2d => sse(WM, RX, Size::B8).set(MMX_SSE), "cvtps2pi";
    P66: 0x2d => sse(WM, RX, Size::B16).set(MMX_SSE), "cvtpd2pi";
    PF3: 0x2d => sse(WY, RX, Size::B4).extended(), "cvtss2si";
    PF2: 0x2d => sse(WY, RX, Size::B8).extended(), "cvtsd2si";
    NP: 0x2e => sse(RX, RX, Size::B4), "ucomiss";
    P66: 0x2e => sse(RX, RX, Size::B8), "ucomisd";
    NP: 0x2f => sse(RX, RX, Size::B4), "comiss";
    P66: 0x2f => sse(RX, RX, Size::B8), "comisd";
    NP|P66: 0x40..=0x4f => modrm(UV, RV, Size::V).extended(), "cmov*";
    NP: 0x50 => sse(WD, RX, Size::No).extended(), "movmskps";
    P66: 0x50 => sse(WD, RX, Size::No).extended(), "movmskpd";
    NP: 0x51 => x16(), "sqrtps";
    P66: 0x51 => x16(), "sqrtpd";
    PF3: 0x51 => sse(UX, RX, Size::B4), "sqrtss";
    PF2: 0x51 => sse(UX, RX, Size::B8), "sqrtsd";
    NP: 0x52 => x16(), "rsqrtps";
    PF3: 0x52 => sse(UX, RX, Size::B4), "rsqrtss";
    NP: 0x53 => x16(), "rcpps";
    PF3: 0x53 => sse(UX, RX, Size::B4), "rcpss";
    NP: 0x54 => x16(), "andps";
    P66: 0x54 => x16(), "andpd";
    NP: 0x55 => x16(), "andnps";
    P66: 0x55 => x16(), "andnpd";
    NP: 0x56 => x16(), "orps";
    P66: 0x56 => x16(), "orpd";
    NP: 0x57 => x16(), "xorps";
    P66: 0x57 => x16(), "xorpd";
    NP: 0x58 => x16(), "addps";
    P66: 0x58 => x16(), "addpd";
    PF3: 0x58 => sse(UX, RX, Size::B4), "addss";
    PF2: 0x58 => sse(UX, RX, Size::B8), "addsd";
    NP: 0x59 => x16(), "mulps";
    P66: 0x59 => x16(), "mulpd";
    PF3: 0x59 => sse(UX, RX, Size::B4), "mulss";
    PF2: 0x59 => sse(UX, RX, Size::B8), "mulsd";
    NP: 0x5a => sse(WX, RX, Size::B8), "cvtps2pd";
    P66: 0x5a => x16(), "cvtpd2ps";
    PF3: 0x5a => sse(UX, RX, Size::B4), "cvtss2sd";
    PF2: 0x5a => sse(UX, RX, Size::B8), "cvtsd2ss";
    NP: 0x5b => x16(), "cvtdq2ps";
    P66: 0x5b => x16(), "cvtps2dq";
    PF3: 0x5b => x16(), "cvttps2dq";
    NP: 0x5c => x16(), "subps";
    P66: 0x5c => x16(), "subpd";
    PF3: 0x5c => sse(UX, RX, Size::B4), "subss";
    PF2: 0x5c => sse(UX, RX, Size::B8), "subsd";
    NP: 0x5d => x16(), "minps";
    P66: 0x5d => x16(), "minpd";
    PF3: 0x5d => sse(UX, RX, Size::B4), "minss";
    PF2: 0x5d => sse(UX, RX, Size::B8), "minsd";
    NP: 0x5e => x16(), "divps";
    P66: 0x5e => x16(), "divpd";
    PF3: 0x5e => sse(UX, RX, Size::B4), "divss";
    PF2: 0x5e => sse(UX, RX, Size::B8), "divsd";
    NP: 0x5f => x16(), "maxps";
    P66: 0x5f => x16(), "maxpd";
    PF3: 0x5f => sse(UX, RX, Size::B4), "maxss";
    PF2: 0x5f => sse(UX, RX, Size::B8), "maxsd";
    NP: 0x60 => m4(), "punpcklbw";
    NP: 0x61 => m4(), "punpcklwd";
    NP: 0x62 => m4(), "punpckldq";
    NP: 0x63 => m8(), "packsswb";
    NP: 0x64 => m8(), "pcmpgtb";
    NP: 0x65 => m8(), "pcmpgtw";
    NP: 0x66 => m8(), "pcmpgtd";
    NP: 0x67 => m8(), "packuswb";
    NP: 0x68 => m8(), "punpckhbw";
    NP: 0x69 => m8(), "punpckhwd";
    NP: 0x6a => m8(), "punpckhdq";
    NP: 0x6b => m8(), "packssdw";
    P66: 0x60..=0x6d => x16(), "punpck*|pack*|pcmpgt*";
    NP: 0x6e => modrm(WM, RY, Size::Y).set(MMX), "movd|movq";
    P66: 0x6e => sse(WX, RY, Size::Y), "movd|movq";
    NP: 0x6f => modrm(WM, RM, Size::B8).set(MMX), "movq";
    P66: 0x6f => sse(WX, RX, Size::B16), "movdqa";
    PF3: 0x6f => sse(WX, RX, Size::B16), "movdqu";
    NP: 0x70 => modrm(WM, RM, Size::B8).set(MMX_SSE).ib(), "pshufw";
    P66: 0x70 => sse(WX, RX, Size::B16).ib(), "pshufd";
    PF3: 0x70 => sse(WX, RX, Size::B16).ib(), "pshufhw";
    PF2: 0x70 => sse(WX, RX, Size::B16).ib(), "pshuflw";
    NP: 0x71 => group_of(SHIFT_W_M), "";
    P66: 0x71 => group_of(SHIFT_W_X), "";
    NP: 0x72 => group_of(SHIFT_D_M), "";
    P66: 0x72 => group_of(SHIFT_D_X), "";
    NP: 0x73 => group_of(SHIFT_Q_M), "";
    P66: 0x73 => group_of(SHIFT_Q_X), "";
    NP: 0x74..=0x76 => m8(), "pcmpeq*";
    P66: 0x74..=0x76 => x16(), "pcmpeq*";
    NP: 0x77 => plain().set(MMX), "emms";
    P66: 0x7c => x16().set(SSE3), "haddpd";
    PF2: 0x7c => x16().set(SSE3), "haddps";
    P66: 0x7d => x16().set(SSE3), "hsubpd";
    PF2: 0x7d => x16().set(SSE3), "hsubps";
    NP: 0x7e => modrm(RM, WY, Size::Y).set(MMX).extended(), "movd|movq";
    P66: 0x7e => sse(RX, WY, Size::Y).extended(), "movd|movq";
    PF3: 0x7e => sse(WX, RX, Size::B8), "movq";
    NP: 0x7f => modrm(RM, WM, Size::B8).set(MMX), "movq";
    P66: 0x7f => sse(RX, WX, Size::B16), "movdqa";
    PF3: 0x7f => sse(RX, WX, Size::B16), "movdqu";
    NP: 0x80..=0x8f => jcc(), "j*";
    NP: 0x90..=0x9f => modrm(ZERO, W8, Size::B1), "set*";
    NP|P66: 0xa3 => modrm(RV, RV, Size::No), "bt";
    NP|P66: 0xa4 => modrm(RV, UV, Size::V).ib().value(Value::Shifted), "shld";
    NP|P66: 0xa5 => modrm(RV, UV, Size::V), "shld";
    NP|P66: 0xab => modrm(RV, UV, Size::No).extended(), "bts";
    NP|P66: 0xac => modrm(RV, UV, Size::V).ib().value(Value::Shifted), "shrd";
    NP|P66: 0xad => modrm(RV, UV, Size::V), "shrd";
    NP: 0xae => group_of(FENCE), "";
    NP|P66: 0xaf => modrm(UV, RV, Size::V).extended(), "imul";
    NP: 0xb0 => modrm(R8, U8, Size::B1).lock().with(flag::WRITES_A), "cmpxchg";
    NP|P66: 0xb1 => modrm(RV, UV, Size::V).lock().with(flag::WRITES_A), "cmpxchg";
    NP|P66: 0xb3 => modrm(RV, UV, Size::No).extended(), "btr";
    NP|P66: 0xb6 => modrm(WV, R8, Size::B1).value(Value::Small), "movzx";
    NP: 0xb7 => modrm(WY, RD, Size::B2).value(Value::Small), "movzx";
    PF3: 0xb8 => modrm(WV, RV, Size::V).set(POPCNT).extended(), "popcnt";
    NP|P66: 0xba => group_of(BIT).with(flag::OPSIZE), "";
    NP|P66: 0xbb => modrm(RV, UV, Size::No).extended(), "btc";
    // bsf and bsr leave the destination alone for 0.
    NP|P66: 0xbc => modrm(UV, RV, Size::V), "bsf";
    PF3: 0xbc => modrm(WV, RV, Size::V).set(BMI1).extended(), "tzcnt";
    NP|P66: 0xbd => modrm(UV, RV, Size::V), "bsr";
    PF3: 0xbd => modrm(WV, RV, Size::V).set(LZCNT).extended(), "lzcnt";
    NP|P66: 0xbe => modrm(WV, R8, Size::B1).extended(), "movsx";
    NP: 0xbf => modrm(WY, RD, Size::B2).extended(), "movsx";
    NP: 0xc0 => modrm(U8, U8, Size::B1).lock(), "xadd";
    NP|P66: 0xc1 => modrm(UV, UV, Size::V).lock(), "xadd";
    NP: 0xc2 => x16().ib(), "cmpps";
    P66: 0xc2 => x16().ib(), "cmppd";
    PF3: 0xc2 => sse(UX, RX, Size::B4).ib(), "cmpss";
    PF2: 0xc2 => sse(UX, RX, Size::B8).ib(), "cmpsd";
    NP: 0xc3 => modrm(RY, Operand { field: Field::None, read: false, write: true }, Size::Y).set(NT).memory_only(), "movnti";
    NP: 0xc4 => modrm(UM, RD, Size::B2).set(MMX_SSE).ib(), "pinsrw";
    P66: 0xc4 => sse(UX, RD, Size::B2).ib(), "pinsrw";
    NP: 0xc5 => modrm(WD, RM, Size::No).set(MMX_SSE).ib().extended(), "pextrw";
    P66: 0xc5 => sse(WD, RX, Size::No).ib().extended(), "pextrw";
    NP: 0xc6 => x16().ib(), "shufps";
    P66: 0xc6 => x16().ib(), "shufpd";
    NP: 0xc7 => group_of(CMPXCHG8), "";
    NP: 0xc8..=0xcf => in_opcode(UY).extended(), "bswap";
    P66: 0xd0 => x16().set(SSE3), "addsubpd";
    PF2: 0xd0 => x16().set(SSE3), "addsubps";
    NP: 0xd1..=0xd3 => m8(), "psrl*";
    NP: 0xd4 => m8_sse(), "paddq";
    NP: 0xd5 => m8(), "pmullw";
    P66: 0xd1..=0xd5 => x16(), "psrl*|paddq|pmullw";
    P66: 0xd6 => sse(RX, WX, Size::B8), "movq";
    PF3: 0xd6 => sse(WX, RM, Size::No).set(MMX_SSE), "movq2dq";
    PF2: 0xd6 => sse(WM, RX, Size::No).set(MMX_SSE), "movdq2q";
    NP: 0xd7 => modrm(WD, RM, Size::No).set(MMX_SSE).extended(), "pmovmskb";
    P66: 0xd7 => sse(WD, RX, Size::No).extended(), "pmovmskb";
    NP: 0xd8..=0xd9 => m8(), "psubus*";
    NP: 0xda => m8_sse(), "pminub";
    NP: 0xdb..=0xdd => m8(), "pand|paddus*";
    NP: 0xde => m8_sse(), "pmaxub";
    NP: 0xdf => m8(), "pandn";
    P66: 0xd8..=0xe5 => x16(), "p*";
    NP: 0xe0 => m8_sse(), "pavgb";
    NP: 0xe1..=0xe2 => m8(), "psra*";
    NP: 0xe3..=0xe4 => m8_sse(), "pavgw|pmulhuw";
    NP: 0xe5 => m8(), "pmulhw";
    P66: 0xe6 => x16(), "cvttpd2dq";
    PF3: 0xe6 => sse(WX, RX, Size::B8), "cvtdq2pd";
    PF2: 0xe6 => x16(), "cvtpd2dq";
    NP: 0xe7 => modrm(RM, WM, Size::B8).set(MMX_NT).memory_only(), "movntq";
    P66: 0xe7 => sse(RX, WX, Size::B16).set(SSE2_NT).memory_only(), "movntdq";
    NP: 0xe8..=0xe9 => m8(), "psubs*";
    NP: 0xea => m8_sse(), "pminsw";
    NP: 0xeb..=0xed => m8(), "por|padds*";
    NP: 0xee => m8_sse(), "pmaxsw";
    NP: 0xef => m8(), "pxor";
    P66: 0xe8..=0xef => x16(), "p*";
    PF2: 0xf0 => sse(WX, RX, Size::B16).set(SSE3).memory_only(), "lddqu";
    NP: 0xf1..=0xf3 => m8(), "psll*";
    NP: 0xf4 => m8_sse(), "pmuludq";
    NP: 0xf5 => m8(), "pmaddwd";
    NP: 0xf6 => m8_sse(), "psadbw";
    P66: 0xf1..=0xf6 => x16(), "p*";
    NP: 0xf8..=0xfa => m8(), "psub*";
    NP: 0xfb => m8_sse(), "psubq";
    NP: 0xfc..=0xfe => m8(), "padd*";
    P66: 0xf8..=0xfe => x16(), "p*";
};

const READ: Operand = Operand { field: Field::None, read: true, write: false };
const UPDATE: Operand = Operand { field: Field::None, read: true, write: true };

const fn shift(rm: Operand, set: u8) -> Line {
    modrm(EXT, rm, Size::No).set(set).ib()
}

/// Groups by number (the constants above).
pub(crate) static GROUPS: [Group; 11] = [
    // A prefetch touches one cache line and never faults; it still counts as an access (it tells whether an address is mapped).
    group! { 1 memory => modrm(EXT, READ, Size::B1).set(PREFETCHW).with(flag::PREFETCH), "prefetchw"; },
    group! {
        0 memory => modrm(EXT, READ, Size::B1).with(flag::PREFETCH), "prefetchnta";
        1 memory => modrm(EXT, READ, Size::B1).with(flag::PREFETCH), "prefetcht0";
        2 memory => modrm(EXT, READ, Size::B1).with(flag::PREFETCH), "prefetcht1";
        3 memory => modrm(EXT, READ, Size::B1).with(flag::PREFETCH), "prefetcht2";
    },
    group! {
        2 register => shift(UM, MMX), "psrlw";
        4 register => shift(UM, MMX), "psraw";
        6 register => shift(UM, MMX), "psllw";
    },
    group! {
        2 register => shift(UX, SSE2), "psrlw";
        4 register => shift(UX, SSE2), "psraw";
        6 register => shift(UX, SSE2), "psllw";
    },
    group! {
        2 register => shift(UM, MMX), "psrld";
        4 register => shift(UM, MMX), "psrad";
        6 register => shift(UM, MMX), "pslld";
    },
    group! {
        2 register => shift(UX, SSE2), "psrld";
        4 register => shift(UX, SSE2), "psrad";
        6 register => shift(UX, SSE2), "pslld";
    },
    group! {
        2 register => shift(UM, MMX), "psrlq";
        6 register => shift(UM, MMX), "psllq";
    },
    group! {
        2 register => shift(UX, SSE2), "psrlq";
        3 register => shift(UX, SSE2), "psrldq";
        6 register => shift(UX, SSE2), "psllq";
        7 register => shift(UX, SSE2), "pslldq";
    },
    group! {
        3 memory => modrm(EXT, Operand { field: Field::None, read: false, write: true }, Size::B4).set(SSE2_CONTROL), "stmxcsr";
        5 register => modrm(EXT, ZERO, Size::No), "lfence";
        6 register => modrm(EXT, ZERO, Size::No), "mfence";
        7 register => modrm(EXT, ZERO, Size::No), "sfence";
    },
    group! {
        4 both => modrm(EXT, RV, Size::V).ib(), "bt";
        5 both => modrm(EXT, UV, Size::V).ib().lock().extended(), "bts";
        6 both => modrm(EXT, UV, Size::V).ib().lock().extended(), "btr";
        7 both => modrm(EXT, UV, Size::V).ib().lock().extended(), "btc";
    },
    group! {
        1 memory => modrm(EXT, UPDATE, Size::Pair).lock().with(flag::W_ANY | flag::WRITES_A | flag::WRITES_D), "cmpxchg8b|cmpxchg16b";
    },
];
