//! VEX map 2 (0F 38).
//!
//! Not here, so rejected: gathers (VSIB: an address per lane), AMX, `cmpccxadd`, key locker.

use super::line::*;
use super::sets::*;
use super::{PrefixedMap, prefixed_map};

const fn i3() -> Line {
    vex3(WX, RX, RX, Size::L).int()
}

const fn widen(size: Size) -> Line {
    vex2(WX, RX, size).int()
}

/// One element to all lanes; from a register only with AVX2.
const fn broadcast(size: Size) -> Line {
    vex2(WX, RX, size).sets(AVX2, AVX2)
}

/// Fused multiply-add: W selects single or double.
const fn fma() -> Line {
    vex3(UX, RX, RX, Size::L).sets(AVX_FMA, AVX_FMA).with(flag::W_ANY)
}

const fn fma_scalar() -> Line {
    vex3(UX, RX, RX, Size::Scalar).set(AVX_FMA).l0().with(flag::W_ANY)
}

/// Load of the lanes whose mask element (VEX.vvvv) has its sign bit set. A lane that is off suppresses its fault, and at the window's
/// edge a CPU may wrap or not; either way the lanes lie in the 64 KiB on both sides that nobody maps (SPEC "Masked moves").
const fn masked_load() -> Line {
    vex3(WX, RX, RX, Size::L).memory_only()
}

/// Store of such lanes. It may store nothing at all; no rule counts on a store.
const fn masked_store() -> Line {
    vex3(RX, RX, WX, Size::L).memory_only()
}

const BLS: u8 = 4;

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    P66: 0x00..=0x0b => i3(), "vp*";
    P66: 0x0c..=0x0d => vex3(WX, RX, RX, Size::L), "vpermilp*";
    P66: 0x0e..=0x0f => vex2(RX, RX, Size::L), "vtestp*";
    P66: 0x13 => vex2(WX, RX, Size::L2).sets(AVX_F16C, AVX_F16C), "vcvtph2ps";
    P66: 0x16 => vex3(WX, RX, RX, Size::L).l1(AVX2), "vpermps";
    P66: 0x17 => vex2(RX, RX, Size::L), "vptest";
    P66: 0x18 => vex2(WX, RX, Size::B4).with(flag::AVX2_REGISTER), "vbroadcastss";
    P66: 0x19 => vex2(WX, RX, Size::B8).l1(AVX).with(flag::AVX2_REGISTER), "vbroadcastsd";
    P66: 0x1a => vex2(WX, RX, Size::B16).l1(AVX).memory_only(), "vbroadcastf128";
    P66: 0x1c..=0x1e => vex2(WX, RX, Size::L).int(), "vpabs*";
    P66: 0x20 => widen(Size::L2), "vpmovsxbw";
    P66: 0x21 => widen(Size::L4), "vpmovsxbd";
    P66: 0x22 => widen(Size::L8), "vpmovsxbq";
    P66: 0x23 => widen(Size::L2), "vpmovsxwd";
    P66: 0x24 => widen(Size::L4), "vpmovsxwq";
    P66: 0x25 => widen(Size::L2), "vpmovsxdq";
    P66: 0x28..=0x29 => i3(), "vpmuldq|vpcmpeqq";
    P66: 0x2a => vex2(WX, RX, Size::L).int().memory_only(), "vmovntdqa";
    P66: 0x2b => i3(), "vpackusdw";
    P66: 0x2c..=0x2d => masked_load(), "vmaskmovp*";
    P66: 0x2e..=0x2f => masked_store(), "vmaskmovp*";
    P66: 0x30 => widen(Size::L2), "vpmovzxbw";
    P66: 0x31 => widen(Size::L4), "vpmovzxbd";
    P66: 0x32 => widen(Size::L8), "vpmovzxbq";
    P66: 0x33 => widen(Size::L2), "vpmovzxwd";
    P66: 0x34 => widen(Size::L4), "vpmovzxwq";
    P66: 0x35 => widen(Size::L2), "vpmovzxdq";
    P66: 0x36 => vex3(WX, RX, RX, Size::L).l1(AVX2), "vpermd";
    P66: 0x37..=0x40 => i3(), "vpcmpgtq|vpmin*|vpmax*|vpmulld";
    P66: 0x41 => vex2(WX, RX, Size::B16).l0(), "vphminposuw";
    P66: 0x45 => vex3(WX, RX, RX, Size::L).sets(AVX2, AVX2).with(flag::W_ANY), "vpsrlvd|vpsrlvq";
    P66: 0x46 => vex3(WX, RX, RX, Size::L).sets(AVX2, AVX2), "vpsravd";
    P66: 0x47 => vex3(WX, RX, RX, Size::L).sets(AVX2, AVX2).with(flag::W_ANY), "vpsllvd|vpsllvq";
    P66: 0x50..=0x53 => vex3(UX, RX, RX, Size::L).sets(AVX_VNNI, AVX_VNNI), "vpdp*";
    P66: 0x58 => broadcast(Size::B4), "vpbroadcastd";
    P66: 0x59 => broadcast(Size::B8), "vpbroadcastq";
    P66: 0x5a => vex2(WX, RX, Size::B16).l1(AVX2).memory_only(), "vbroadcasti128";
    P66: 0x78 => broadcast(Size::B1), "vpbroadcastb";
    P66: 0x79 => broadcast(Size::B2), "vpbroadcastw";
    P66: 0x8c => masked_load().sets(AVX2, AVX2).with(flag::W_ANY), "vpmaskmovd|vpmaskmovq";
    P66: 0x8e => masked_store().sets(AVX2, AVX2).with(flag::W_ANY), "vpmaskmovd|vpmaskmovq";
    P66: 0x96..=0x98 => fma(), "vfm*";
    P66: 0x99 => fma_scalar(), "vfmadd*";
    P66: 0x9a => fma(), "vfmsub*";
    P66: 0x9b => fma_scalar(), "vfmsub*";
    P66: 0x9c => fma(), "vfnmadd*";
    P66: 0x9d => fma_scalar(), "vfnmadd*";
    P66: 0x9e => fma(), "vfnmsub*";
    P66: 0x9f => fma_scalar(), "vfnmsub*";
    P66: 0xa6..=0xa8 => fma(), "vfm*";
    P66: 0xa9 => fma_scalar(), "vfmadd*";
    P66: 0xaa => fma(), "vfmsub*";
    P66: 0xab => fma_scalar(), "vfmsub*";
    P66: 0xac => fma(), "vfnmadd*";
    P66: 0xad => fma_scalar(), "vfnmadd*";
    P66: 0xae => fma(), "vfnmsub*";
    P66: 0xaf => fma_scalar(), "vfnmsub*";
    P66: 0xb6..=0xb8 => fma(), "vfm*";
    P66: 0xb9 => fma_scalar(), "vfmadd*";
    P66: 0xba => fma(), "vfmsub*";
    P66: 0xbb => fma_scalar(), "vfmsub*";
    P66: 0xbc => fma(), "vfnmadd*";
    P66: 0xbd => fma_scalar(), "vfnmadd*";
    P66: 0xbe => fma(), "vfnmsub*";
    P66: 0xbf => fma_scalar(), "vfnmsub*";
    P66: 0xcf => vex3(WX, RX, RX, Size::L).sets(AVX_GFNI, AVX_GFNI), "vgf2p8mulb";
    P66: 0xdb => vex2(WX, RX, Size::B16).set(AVX_AES).l0(), "vaesimc";
    P66: 0xdc..=0xdf => vex3(WX, RX, RX, Size::L).sets(AVX_AES, AVX_VAES), "vaes*";
    NP: 0xf2 => vex3(WY, RY, RY, Size::Y).set(BMI1).l0().extended(), "andn";
    NP: 0xf3 => group_of(BLS), "";
    NP: 0xf5 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "bzhi";
    PF3: 0xf5 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "pext";
    PF2: 0xf5 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "pdep";
    PF2: 0xf6 => vex3(WY, WY, RY, Size::Y).set(BMI2).l0(), "mulx";
    NP: 0xf7 => vex3(WY, RY, RY, Size::Y).set(BMI1).l0().extended(), "bextr";
    P66: 0xf7 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "shlx";
    PF3: 0xf7 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "sarx";
    PF2: 0xf7 => vex3(WY, RY, RY, Size::Y).set(BMI2).l0().extended(), "shrx";
};
