//! What this processor cannot run.

use cordon_checker::Features;

/// Extensions that this processor lacks.
pub fn lacking() -> u64 {
    let has = [
        (Features::SHA, std::arch::is_x86_feature_detected!("sha")),
        (Features::AVX, std::arch::is_x86_feature_detected!("avx")),
        (Features::AVX2, std::arch::is_x86_feature_detected!("avx2")),
        (Features::FMA, std::arch::is_x86_feature_detected!("fma")),
        (Features::F16C, std::arch::is_x86_feature_detected!("f16c")),
        (Features::BMI1, std::arch::is_x86_feature_detected!("bmi1")),
        (Features::BMI2, std::arch::is_x86_feature_detected!("bmi2")),
        (Features::LZCNT, std::arch::is_x86_feature_detected!("lzcnt")),
        (Features::ADX, std::arch::is_x86_feature_detected!("adx")),
        (Features::MOVBE, std::arch::is_x86_feature_detected!("movbe")),
        (Features::GFNI, std::arch::is_x86_feature_detected!("gfni")),
        (Features::VAES, std::arch::is_x86_feature_detected!("vaes")),
        (Features::VPCLMUL, std::arch::is_x86_feature_detected!("vpclmulqdq")),
        (Features::AVXVNNI, std::arch::is_x86_feature_detected!("avxvnni")),
        (Features::AES, std::arch::is_x86_feature_detected!("aes")),
        (Features::PCLMUL, std::arch::is_x86_feature_detected!("pclmulqdq")),
        (Features::SSE41, std::arch::is_x86_feature_detected!("sse4.1")),
        (Features::CX16, std::arch::is_x86_feature_detected!("cmpxchg16b")),
        (Features::SSE42, std::arch::is_x86_feature_detected!("sse4.2")),
        (Features::POPCNT, std::arch::is_x86_feature_detected!("popcnt")),
    ];
    has.iter().filter(|(_, has)| !has).fold(0, |set, (feature, _)| set | feature.0)
}
