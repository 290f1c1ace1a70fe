//! VEX map 1 (0F).
//!
//! Not here, so rejected: `vmaskmovdqu` (implicit rdi), `vldmxcsr`, opmask instructions.

use super::line::*;
use super::sets::*;
use super::{Group, PrefixedMap, group, prefixed_map};

/// Packed: 16 or 32 bytes, two sources.
const fn v3() -> Line {
    vex3(WX, RX, RX, Size::L)
}

/// Packed integer: 256 bits need AVX2.
const fn i3() -> Line {
    v3().int()
}

/// Scalar with two sources (L ignored by the CPU, so 0).
const fn s3(size: Size) -> Line {
    vex3(WX, RX, RX, size).l0()
}

/// Shift by the low quadword of an xmm register or m128, whatever the vector length.
const fn count() -> Line {
    vex3(WX, RX, RX, Size::B16).int()
}

const SHIFT_W: u8 = 0;
const SHIFT_D: u8 = 1;
const SHIFT_Q: u8 = 2;
const CONTROL_GROUP: u8 = 3;

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    NP|P66: 0x10 => vex2(WX, RX, Size::L), "vmovup*";
    PF3: 0x10 => s3(Size::B4).with(flag::VVVV_REGISTER), "vmovss";
    PF2: 0x10 => s3(Size::B8).with(flag::VVVV_REGISTER), "vmovsd";
    NP|P66: 0x11 => vex2(RX, WX, Size::L), "vmovup*";
    PF3: 0x11 => vex3(RX, RX, WX, Size::B4).l0().with(flag::VVVV_REGISTER), "vmovss";
    PF2: 0x11 => vex3(RX, RX, WX, Size::B8).l0().with(flag::VVVV_REGISTER), "vmovsd";
    NP: 0x12 => s3(Size::B8), "vmovlps|vmovhlps";
    P66: 0x12 => s3(Size::B8).memory_only(), "vmovlpd";
    PF3: 0x12 => vex2(WX, RX, Size::L), "vmovsldup";
    PF2: 0x12 => vex2(WX, RX, Size::Dup), "vmovddup";
    NP|P66: 0x13 => vex2(RX, WX, Size::B8).l0().memory_only(), "vmovlp*";
    NP|P66: 0x14..=0x15 => v3(), "vunpck*";
    NP: 0x16 => s3(Size::B8), "vmovhps|vmovlhps";
    P66: 0x16 => s3(Size::B8).memory_only(), "vmovhpd";
    PF3: 0x16 => vex2(WX, RX, Size::L), "vmovshdup";
    NP|P66: 0x17 => vex2(RX, WX, Size::B8).l0().memory_only(), "vmovhp*";
    NP|P66: 0x28 => vex2(WX, RX, Size::L), "vmovap*";
    NP|P66: 0x29 => vex2(RX, WX, Size::L), "vmovap*";
    PF3|PF2: 0x2a => vex3(WX, RX, RY, Size::Y).l0(), "vcvtsi2s*";
    NP|P66: 0x2b => vex2(RX, WX, Size::L).sets(AVX_NT, AVX_NT).memory_only(), "vmovntp*";
    PF3: 0x2c..=0x2d => vex2(WY, RX, Size::B4).l0().extended(), "vcvt*ss2si";
    PF2: 0x2c..=0x2d => vex2(WY, RX, Size::B8).l0().extended(), "vcvt*sd2si";
    NP: 0x2e..=0x2f => vex2(RX, RX, Size::B4).l0(), "vucomiss|vcomiss";
    P66: 0x2e..=0x2f => vex2(RX, RX, Size::B8).l0(), "vucomisd|vcomisd";
    NP|P66: 0x50 => vex2(WD, RX, Size::No).extended(), "vmovmskp*";
    NP|P66: 0x51 => vex2(WX, RX, Size::L), "vsqrtp*";
    PF3: 0x51 => s3(Size::B4), "vsqrtss";
    PF2: 0x51 => s3(Size::B8), "vsqrtsd";
    NP: 0x52..=0x53 => vex2(WX, RX, Size::L), "vrsqrtps|vrcpps";
    PF3: 0x52..=0x53 => s3(Size::B4), "vrsqrtss|vrcpss";
    NP|P66: 0x54..=0x59 => v3(), "vand*|vor*|vxor*|vadd*|vmul*";
    PF3: 0x58..=0x59 => s3(Size::B4), "vaddss|vmulss";
    PF2: 0x58..=0x59 => s3(Size::B8), "vaddsd|vmulsd";
    NP: 0x5a => vex2(WX, RX, Size::L2), "vcvtps2pd";
    P66: 0x5a => vex2(WX, RX, Size::L), "vcvtpd2ps";
    PF3: 0x5a => s3(Size::B4), "vcvtss2sd";
    PF2: 0x5a => s3(Size::B8), "vcvtsd2ss";
    NP|P66|PF3: 0x5b => vex2(WX, RX, Size::L), "vcvt*";
    NP|P66: 0x5c..=0x5f => v3(), "vsub*|vmin*|vdiv*|vmax*";
    PF3: 0x5c..=0x5f => s3(Size::B4), "vsubss|vminss|vdivss|vmaxss";
    PF2: 0x5c..=0x5f => s3(Size::B8), "vsubsd|vminsd|vdivsd|vmaxsd";
    P66: 0x60..=0x6d => i3(), "vpunpck*|vpack*|vpcmpgt*";
    P66: 0x6e => vex2(WX, RY, Size::Y).l0(), "vmovd|vmovq";
    P66|PF3: 0x6f => vex2(WX, RX, Size::L), "vmovdq*";
    P66|PF3|PF2: 0x70 => vex2(WX, RX, Size::L).int().ib(), "vpshuf*";
    P66: 0x71 => group_of(SHIFT_W), "";
    P66: 0x72 => group_of(SHIFT_D), "";
    P66: 0x73 => group_of(SHIFT_Q), "";
    P66: 0x74..=0x76 => i3(), "vpcmpeq*";
    NP: 0x77 => Line { wide: AVX, ..plain().set(AVX) }, "vzeroupper|vzeroall";
    P66|PF2: 0x7c..=0x7d => v3(), "vhadd*|vhsub*";
    P66: 0x7e => vex2(RX, WY, Size::Y).l0().extended(), "vmovd|vmovq";
    PF3: 0x7e => vex2(WX, RX, Size::B8).l0(), "vmovq";
    P66|PF3: 0x7f => vex2(RX, WX, Size::L), "vmovdq*";
    NP: 0xae => group_of(CONTROL_GROUP), "";
    NP|P66: 0xc2 => v3().ib(), "vcmpp*";
    PF3: 0xc2 => s3(Size::B4).ib(), "vcmpss";
    PF2: 0xc2 => s3(Size::B8).ib(), "vcmpsd";
    P66: 0xc4 => vex3(WX, RX, RD, Size::B2).l0().ib(), "vpinsrw";
    P66: 0xc5 => vex2(WD, RX, Size::No).l0().ib().extended(), "vpextrw";
    NP|P66: 0xc6 => v3().ib(), "vshufp*";
    P66|PF2: 0xd0 => v3(), "vaddsub*";
    P66: 0xd1..=0xd3 => count(), "vpsrl*";
    P66: 0xd4..=0xd5 => i3(), "vpaddq|vpmullw";
    P66: 0xd6 => vex2(RX, WX, Size::B8).l0(), "vmovq";
    P66: 0xd7 => vex2(WD, RX, Size::No).int().extended(), "vpmovmskb";
    P66: 0xd8..=0xe0 => i3(), "vp*";
    P66: 0xe1..=0xe2 => count(), "vpsra*";
    P66: 0xe3..=0xe5 => i3(), "vpavgw|vpmulh*";
    P66|PF2: 0xe6 => vex2(WX, RX, Size::L), "vcvt*pd2dq";
    PF3: 0xe6 => vex2(WX, RX, Size::L2), "vcvtdq2pd";
    P66: 0xe7 => vex2(RX, WX, Size::L).sets(AVX_NT, AVX_NT).memory_only(), "vmovntdq";
    P66: 0xe8..=0xef => i3(), "vp*";
    PF2: 0xf0 => vex2(WX, RX, Size::L).memory_only(), "vlddqu";
    P66: 0xf1..=0xf3 => count(), "vpsll*";
    P66: 0xf4..=0xf6 => i3(), "vpmuludq|vpmaddwd|vpsadbw";
    P66: 0xf8..=0xfe => i3(), "vpsub*|vpadd*";
};

/// Shift by immediate: VEX.vvvv is the destination.
const fn shift() -> Line {
    vex3(EXT, WX, RX, Size::No).int().ib()
}

/// Groups by number (the constants above); [`super::vex_0f38`] has one more.
pub(crate) static GROUPS: [Group; 5] = [
    group! {
        2 register => shift(), "vpsrlw";
        4 register => shift(), "vpsraw";
        6 register => shift(), "vpsllw";
    },
    group! {
        2 register => shift(), "vpsrld";
        4 register => shift(), "vpsrad";
        6 register => shift(), "vpslld";
    },
    group! {
        2 register => shift(), "vpsrlq";
        3 register => shift(), "vpsrldq";
        6 register => shift(), "vpsllq";
        7 register => shift(), "vpslldq";
    },
    group! {
        3 memory => vex2(EXT, Operand { field: Field::None, read: false, write: true }, Size::B4).set(AVX_CONTROL).l0(), "vstmxcsr";
    },
    group! {
        1 both => vex3(EXT, WY, RY, Size::Y).set(BMI1).l0().extended(), "blsr";
        2 both => vex3(EXT, WY, RY, Size::Y).set(BMI1).l0().extended(), "blsmsk";
        3 both => vex3(EXT, WY, RY, Size::Y).set(BMI1).l0().extended(), "blsi";
    },
];
