//! The 0F 38 opcode map, legacy prefixes.
//!
//! Not here, so rejected: `invept` and its kin, `wrss`/`wruss` (bare and 66 F5/F6: keyed on the prefix, design-review C11), `movdiri`,
//! `movdir64b`, `enqcmd`, key locker.

use super::line::*;
use super::sets::*;
use super::{PrefixedMap, prefixed_map};

const fn x(set: u8) -> Line {
    sse(UX, RX, Size::B16).set(set)
}

/// Widening move: reads a part of its source.
const fn widen(size: Size) -> Line {
    sse(WX, RX, size).set(SSE41)
}

const STORE: Operand = Operand { field: Field::None, read: false, write: true };
const LOAD: Operand = Operand { field: Field::None, read: true, write: false };

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    NP: 0x00..=0x0b => modrm(UM, RM, Size::B8).set(MMX_SSSE3), "p*";
    P66: 0x00..=0x0b => x(SSSE3), "p*";
    P66: 0x10 => x(SSE41), "pblendvb";
    P66: 0x14 => x(SSE41), "blendvps";
    P66: 0x15 => x(SSE41), "blendvpd";
    P66: 0x17 => x(SSE41), "ptest";
    NP: 0x1c..=0x1e => modrm(WM, RM, Size::B8).set(MMX_SSSE3), "pabs*";
    P66: 0x1c..=0x1e => x(SSSE3), "pabs*";
    P66: 0x20 => widen(Size::B8), "pmovsxbw";
    P66: 0x21 => widen(Size::B4), "pmovsxbd";
    P66: 0x22 => widen(Size::B2), "pmovsxbq";
    P66: 0x23 => widen(Size::B8), "pmovsxwd";
    P66: 0x24 => widen(Size::B4), "pmovsxwq";
    P66: 0x25 => widen(Size::B8), "pmovsxdq";
    P66: 0x28 => x(SSE41), "pmuldq";
    P66: 0x29 => x(SSE41), "pcmpeqq";
    P66: 0x2a => x(SSE41).memory_only(), "movntdqa";
    P66: 0x2b => x(SSE41), "packusdw";
    P66: 0x30 => widen(Size::B8), "pmovzxbw";
    P66: 0x31 => widen(Size::B4), "pmovzxbd";
    P66: 0x32 => widen(Size::B2), "pmovzxbq";
    P66: 0x33 => widen(Size::B8), "pmovzxwd";
    P66: 0x34 => widen(Size::B4), "pmovzxwq";
    P66: 0x35 => widen(Size::B8), "pmovzxdq";
    P66: 0x37 => x(SSE42), "pcmpgtq";
    P66: 0x38..=0x41 => x(SSE41), "pmin*|pmax*|pmulld|phminposuw";
    NP: 0xc8..=0xcd => x(SHA), "sha*";
    P66: 0xcf => x(GFNI), "gf2p8mulb";
    P66: 0xdb..=0xdf => x(AES), "aes*";
    NP|P66: 0xf0 => modrm(WV, LOAD, Size::V).set(MOVBE).memory_only().extended(), "movbe";
    NP|P66: 0xf1 => modrm(RV, STORE, Size::V).set(MOVBE).memory_only(), "movbe";
    PF2: 0xf0 => modrm(Operand { field: Field::Gpr32, read: true, write: true }, R8, Size::B1).set(CRC32).extended(), "crc32";
    PF2: 0xf1 => modrm(UY, RV, Size::V).set(CRC32).extended(), "crc32";
    P66: 0xf6 => modrm(UY, RY, Size::Y).set(ADX).extended(), "adcx";
    PF3: 0xf6 => modrm(UY, RY, Size::Y).set(ADX).extended(), "adox";
};
