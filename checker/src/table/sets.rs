//! Sets of instruction-set extensions that lines name by a small number.

use crate::policy::Features;

macro_rules! sets {
    ($($name:ident = $($feature:ident)|*;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the sets")]
        #[repr(u8)]
        enum Number { $($name,)* COUNT }

        $(
            #[allow(clippy::as_conversions, reason = "evaluated at compile time only")]
            pub(crate) const $name: u8 = Number::$name as u8;
        )*

        /// The set of each number.
        #[allow(clippy::as_conversions, reason = "evaluated at compile time only")]
        pub(crate) static SETS: [Features; Number::COUNT as usize] = [$(Features::NONE$(.with(Features::$feature))*),*];
    };
}

sets! {
    BASE = ;
    X87 = X87;
    X87_CONTROL = X87 | CONTROL;
    X87_SSE3 = X87 | SSE3;
    MMX = MMX;
    MMX_SSE = MMX | SSE2;
    MMX_NT = MMX | SSE2 | NT;
    MMX_SSSE3 = MMX | SSSE3;
    SSE2 = SSE2;
    SSE2_NT = SSE2 | NT;
    SSE2_CONTROL = SSE2 | CONTROL;
    SSE3 = SSE2 | SSE3;
    SSSE3 = SSE2 | SSSE3;
    SSE41 = SSE2 | SSE41;
    SSE42 = SSE2 | SSE42;
    CRC32 = SSE42;
    AES = SSE2 | AES;
    PCLMUL = SSE2 | PCLMUL;
    SHA = SSE2 | SHA;
    GFNI = SSE2 | GFNI;
    POPCNT = POPCNT;
    BMI1 = BMI1;
    BMI2 = BMI2;
    LZCNT = LZCNT;
    ADX = ADX;
    MOVBE = MOVBE;
    PREFETCHW = PREFETCHW;
    NT = NT;
    AVX = AVX;
    AVX_NT = AVX | NT;
    AVX_CONTROL = AVX | CONTROL;
    AVX_AES = AVX | AES;
    AVX_PCLMUL = AVX | PCLMUL;
    AVX_GFNI = AVX | GFNI;
    AVX2 = AVX | AVX2;
    AVX_FMA = AVX | FMA;
    AVX_F16C = AVX | F16C;
    AVX_VAES = AVX | VAES;
    AVX_VPCLMUL = AVX | VPCLMUL;
    AVX_VNNI = AVX | AVXVNNI;
}
