//! VEX map 3 (0F 3A).
//!
//! Not here, so rejected: FMA4 and XOP (AMD only, withdrawn).

use super::line::*;
use super::sets::*;
use super::{PrefixedMap, prefixed_map};

const fn v3() -> Line {
    vex3(WX, RX, RX, Size::L).ib()
}

const fn blendv() -> Line {
    vex3(WX, RX, RX, Size::L).imm(Imm::Register)
}

pub(crate) static MAP: PrefixedMap = prefixed_map! {
    P66: 0x00..=0x01 => vex2(WX, RX, Size::L).l1(AVX2).ib().w1(), "vpermq|vpermpd";
    P66: 0x02 => v3().sets(AVX2, AVX2), "vpblendd";
    P66: 0x04..=0x05 => vex2(WX, RX, Size::L).ib(), "vpermilp*";
    P66: 0x06 => v3().l1(AVX), "vperm2f128";
    P66: 0x08..=0x09 => vex2(WX, RX, Size::L).ib(), "vroundp*";
    P66: 0x0a => vex3(WX, RX, RX, Size::B4).l0().ib(), "vroundss";
    P66: 0x0b => vex3(WX, RX, RX, Size::B8).l0().ib(), "vroundsd";
    P66: 0x0c..=0x0d => v3(), "vblendp*";
    P66: 0x0e..=0x0f => v3().int(), "vpblendw|vpalignr";
    P66: 0x14 => vex2(RX, WD, Size::B1).l0().ib().extended(), "vpextrb";
    P66: 0x15 => vex2(RX, WD, Size::B2).l0().ib().extended(), "vpextrw";
    P66: 0x16 => vex2(RX, WY, Size::Y).l0().ib().extended(), "vpextrd|vpextrq";
    P66: 0x17 => vex2(RX, WD, Size::B4).l0().ib().extended(), "vextractps";
    P66: 0x18 => vex3(WX, RX, RX, Size::B16).l1(AVX).ib(), "vinsertf128";
    P66: 0x19 => vex2(RX, WX, Size::B16).l1(AVX).ib(), "vextractf128";
    P66: 0x1d => vex2(RX, WX, Size::L2).sets(AVX_F16C, AVX_F16C).ib(), "vcvtps2ph";
    P66: 0x20 => vex3(WX, RX, RD, Size::B1).l0().ib(), "vpinsrb";
    P66: 0x21 => vex3(WX, RX, RX, Size::B4).l0().ib(), "vinsertps";
    P66: 0x22 => vex3(WX, RX, RY, Size::Y).l0().ib(), "vpinsrd|vpinsrq";
    P66: 0x38 => vex3(WX, RX, RX, Size::B16).l1(AVX2).ib(), "vinserti128";
    P66: 0x39 => vex2(RX, WX, Size::B16).l1(AVX2).ib(), "vextracti128";
    P66: 0x40 => v3(), "vdpps";
    P66: 0x41 => v3().l0(), "vdppd";
    P66: 0x42 => v3().int(), "vmpsadbw";
    P66: 0x44 => v3().sets(AVX_PCLMUL, AVX_VPCLMUL), "vpclmulqdq";
    P66: 0x46 => v3().l1(AVX2), "vperm2i128";
    P66: 0x4a..=0x4b => blendv(), "vblendvp*";
    P66: 0x4c => blendv().int(), "vpblendvb";
    P66: 0x60 => vex2(RX, RX, Size::B16).l0().ib(), "vpcmpestrm";
    P66: 0x61 => vex2(RX, RX, Size::B16).l0().ib().with(flag::WRITES_C), "vpcmpestri";
    P66: 0x62 => vex2(RX, RX, Size::B16).l0().ib(), "vpcmpistrm";
    P66: 0x63 => vex2(RX, RX, Size::B16).l0().ib().with(flag::WRITES_C), "vpcmpistri";
    P66: 0xce..=0xcf => v3().sets(AVX_GFNI, AVX_GFNI).w1(), "vgf2p8affine*";
    P66: 0xdf => vex2(WX, RX, Size::B16).set(AVX_AES).l0().ib(), "vaeskeygenassist";
    PF2: 0xf0 => vex2(WY, RY, Size::Y).set(BMI2).l0().ib().extended(), "rorx";
};
