//! What this CPU and kernel offer, and what a handler is told about it.

use cordon_checker::Features;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv, CpuidResult};
use std::sync::OnceLock;

/// One answer of the `cordon.cpuid` gate: leaf, sub-leaf (`u32::MAX`: any), eax, ebx, ecx, edx.
pub type Leaf = [u32; 6];

/// Which CPUID register a feature bit is in.
#[derive(Clone, Copy)]
enum Word {
    Ecx1,
    Edx1,
    Ebx7,
    Ecx7,
    Eax71,
    EcxExt,
}

/// CPUID bits of the features (AMD APM volume 3 appendix E, Intel SDM volume 2A CPUID). NT stores, `lock` and control-word reads are
/// part of the baseline.
const BITS: &[(Features, Word, u32)] = &[
    (Features::X87, Word::Edx1, 0),
    (Features::MMX, Word::Edx1, 23),
    (Features::SSE2, Word::Edx1, 26),
    (Features::SSE3, Word::Ecx1, 0),
    (Features::SSSE3, Word::Ecx1, 9),
    (Features::SSE41, Word::Ecx1, 19),
    (Features::SSE42, Word::Ecx1, 20),
    (Features::POPCNT, Word::Ecx1, 23),
    (Features::AES, Word::Ecx1, 25),
    (Features::PCLMUL, Word::Ecx1, 1),
    (Features::SHA, Word::Ebx7, 29),
    (Features::AVX, Word::Ecx1, 28),
    (Features::AVX2, Word::Ebx7, 5),
    (Features::FMA, Word::Ecx1, 12),
    (Features::F16C, Word::Ecx1, 29),
    (Features::BMI1, Word::Ebx7, 3),
    (Features::BMI2, Word::Ebx7, 8),
    (Features::LZCNT, Word::EcxExt, 5),
    (Features::ADX, Word::Ebx7, 19),
    (Features::MOVBE, Word::Ecx1, 22),
    (Features::CX16, Word::Ecx1, 13),
    (Features::PREFETCHW, Word::EcxExt, 8),
    (Features::VAES, Word::Ecx7, 9),
    (Features::VPCLMUL, Word::Ecx7, 10),
    (Features::AVXVNNI, Word::Eax71, 4),
    (Features::GFNI, Word::Ecx7, 8),
    (Features::SSE4A, Word::EcxExt, 6),
];

/// Features that need the kernel to save upper halves as well.
const NEEDS_AVX_STATE: Features = Features(
    Features::AVX.0
        | Features::AVX2.0
        | Features::FMA.0
        | Features::F16C.0
        | Features::VAES.0
        | Features::VPCLMUL.0
        | Features::AVXVNNI.0,
);

const SSE_BIT: u32 = 25;
const FXSR_BIT: u32 = 24;
const CMOV_BIT: u32 = 15;
const CX8_BIT: u32 = 8;
const OSXSAVE_BIT: u32 = 27;
const XSAVE_BIT: u32 = 26;
const LONG_MODE_BIT: u32 = 29;
const LAHF_BIT: u32 = 0;
/// x87, SSE and AVX state in XCR0.
const XCR0_AVX: u64 = 7;
/// Bit of AT_HWCAP2: user mode may use the fsgsbase instructions (Linux 5.9).
const HWCAP2_FSGSBASE: u64 = 2;
/// What `cordon.cpuid` answers as vendor, in ebx, edx, ecx: handlers learn features, not the machine.
const VENDOR: &[u8; 12] = b"Cordon SFI  ";

/// The machine.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Everything usable here.
    pub features: Features,
    /// `rdgsbase` and `wrgsbase` are usable.
    pub fsgsbase: bool,
}

/// The machine that this process runs on.
pub fn this_cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(probe)
}

fn probe() -> Cpu {
    let max = __cpuid(0).eax;
    let max_extended = __cpuid(0x8000_0000).eax;
    let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    let one = __cpuid(1);
    let seven = if max >= 7 { __cpuid_count(7, 0) } else { none };
    let seven_one = if max >= 7 && seven.eax >= 1 { __cpuid_count(7, 1) } else { none };
    let extended = if max_extended >= 0x8000_0001 { __cpuid(0x8000_0001) } else { none };
    let word = |word| match word {
        Word::Ecx1 => one.ecx,
        Word::Edx1 => one.edx,
        Word::Ebx7 => seven.ebx,
        Word::Ecx7 => seven.ecx,
        Word::Eax71 => seven_one.eax,
        Word::EcxExt => extended.ecx,
    };
    let mut features = Features::NT.with(Features::LOCK).with(Features::CONTROL);
    for &(feature, register, bit) in BITS {
        if word(register) >> bit & 1 == 1 {
            features = features.with(feature);
        }
    }
    // SAFETY: xgetbv is there when OSXSAVE says so.
    let avx_state = one.ecx >> OSXSAVE_BIT & 1 == 1 && unsafe { xcr0() } & XCR0_AVX == XCR0_AVX;
    if !avx_state {
        features = Features(features.0 & !NEEDS_AVX_STATE.0);
    }
    // SAFETY: getauxval has no preconditions.
    let fsgsbase = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0;
    Cpu { features, fsgsbase }
}

#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: the caller saw OSXSAVE.
    unsafe { _xgetbv(0) }
}

/// The CPUID answers for a handler that may use `features`: no model, serial number, topology, cache or frequency leaf.
pub fn leaves(features: Features) -> Vec<Leaf> {
    let mut words = [0_u32; 6];
    for &(feature, register, bit) in BITS {
        if features.contains(feature) {
            words[register as usize] |= 1 << bit;
        }
    }
    let [mut ecx1, mut edx1, ebx7, ecx7, eax71, ecx_ext] = words;
    edx1 |= 1 << SSE_BIT | 1 << FXSR_BIT | 1 << CMOV_BIT | 1 << CX8_BIT;
    if features.contains(Features::AVX) {
        ecx1 |= 1 << OSXSAVE_BIT | 1 << XSAVE_BIT;
    }
    let vendor = |i: usize| u32::from_le_bytes([VENDOR[i], VENDOR[i + 1], VENDOR[i + 2], VENDOR[i + 3]]);
    let highest = |leaf| [leaf, vendor(0), vendor(8), vendor(4)];
    let [a0, b0, c0, d0] = highest(7);
    let [a8, b8, c8, d8] = highest(0x8000_0001);
    vec![
        [0, u32::MAX, a0, b0, c0, d0],
        [1, u32::MAX, 0, 0, ecx1, edx1],
        [7, 0, 1, ebx7, ecx7, 0],
        [7, 1, eax71, 0, 0, 0],
        [0x8000_0000, u32::MAX, a8, b8, c8, d8],
        [0x8000_0001, u32::MAX, 0, 0, ecx_ext | 1 << LAHF_BIT, 1 << LONG_MODE_BIT],
    ]
}

/// What `xgetbv` of register 0 answers a handler that may use `features`.
pub const fn state_components(features: Features) -> u64 {
    if features.contains(Features::AVX) { XCR0_AVX } else { 3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_baseline() {
        let cpu = this_cpu();
        assert!(cpu.features.contains(Features::SSE2.with(Features::X87)));
        assert_eq!(cpu.features.contains(Features::AVX2), std::arch::is_x86_feature_detected!("avx2"));
        assert_eq!(cpu.features.contains(Features::BMI2), std::arch::is_x86_feature_detected!("bmi2"));
        assert_eq!(cpu.features.contains(Features::SHA), std::arch::is_x86_feature_detected!("sha"));
        assert_eq!(cpu.features.contains(Features::GFNI), std::arch::is_x86_feature_detected!("gfni"));
    }

    #[test]
    fn tells_no_more_than_the_features() {
        let leaves = leaves(Features::SSE2.with(Features::POPCNT));
        let one = leaves.iter().find(|l| l[0] == 1).expect("leaf 1");
        assert_eq!(one[4], 1 << 23);
        assert_eq!(one[3], 0, "no APIC identity");
    }
}
