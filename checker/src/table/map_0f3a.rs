//! The 0F 3A opcode map, legacy prefixes.

use super::line::*;
use super::sets::*;
use super::{PrefixedMap, prefixed_map};

const fn x(set: u8) -> Line {
    sse(UX, RX, Size::B16).set(set).ib()
}

const fn x41(size: Size) -> Line {
    sse(UX, RX, size).set(SSE41).ib()
}

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    P66: 0x08 => x41(Size::B16), "roundps";
    P66: 0x09 => x41(Size::B16), "roundpd";
    P66: 0x0a => x41(Size::B4), "roundss";
    P66: 0x0b => x41(Size::B8), "roundsd";
    P66: 0x0c..=0x0e => x41(Size::B16), "blendps|blendpd|pblendw";
    NP: 0x0f => modrm(UM, RM, Size::B8).set(MMX_SSSE3).ib(), "palignr";
    P66: 0x0f => x(SSSE3), "palignr";
    P66: 0x14 => sse(RX, WD, Size::B1).set(SSE41).ib().extended(), "pextrb";
    P66: 0x15 => sse(RX, WD, Size::B2).set(SSE41).ib().extended(), "pextrw";
    P66: 0x16 => sse(RX, WY, Size::Y).set(SSE41).ib().extended(), "pextrd|pextrq";
    P66: 0x17 => sse(RX, WD, Size::B4).set(SSE41).ib().extended(), "extractps";
    P66: 0x20 => sse(UX, RD, Size::B1).set(SSE41).ib(), "pinsrb";
    P66: 0x21 => x41(Size::B4), "insertps";
    P66: 0x22 => sse(UX, RY, Size::Y).set(SSE41).ib(), "pinsrd|pinsrq";
    P66: 0x40..=0x42 => x41(Size::B16), "dpps|dppd|mpsadbw";
    P66: 0x44 => x(PCLMUL), "pclmulqdq";
    P66: 0x60 => x(SSE42), "pcmpestrm";
    P66: 0x61 => x(SSE42).with(flag::WRITES_C), "pcmpestri";
    P66: 0x62 => x(SSE42), "pcmpistrm";
    P66: 0x63 => x(SSE42).with(flag::WRITES_C), "pcmpistri";
    NP: 0xcc => x(SHA), "sha1rnds4";
    P66: 0xce => x(GFNI), "gf2p8affineqb";
    P66: 0xcf => x(GFNI), "gf2p8affineinvqb";
    P66: 0xdf => x(AES), "aeskeygenassist";
};
