//! What a host allows: the segment, the instruction-set extensions, the greatest stack depth.

/// A set of instruction-set extensions, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $bit:expr, $text:expr;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*
            /// Every feature with its name, lowest bit first.
            pub const NAMES: &'static [(Features, &'static str)] = &[$((Features(1 << $bit), $text)),*];
        }
    };
}

features! {
    /// x87 floating point (D8-DF).
    X87 = 0, "x87";
    /// 64-bit SIMD in the x87 registers.
    MMX = 1, "mmx";
    /// SSE and SSE2, the x86-64 baseline.
    SSE2 = 2, "sse2";
    SSE3 = 3, "sse3";
    SSSE3 = 4, "ssse3";
    SSE41 = 5, "sse4.1";
    SSE42 = 6, "sse4.2";
    POPCNT = 7, "popcnt";
    AES = 8, "aes";
    PCLMUL = 9, "pclmul";
    SHA = 10, "sha";
    AVX = 11, "avx";
    AVX2 = 12, "avx2";
    FMA = 13, "fma";
    F16C = 14, "f16c";
    BMI1 = 15, "bmi1";
    BMI2 = 16, "bmi2";
    /// `lzcnt` (CPUID 80000001h:ECX.ABM).
    LZCNT = 17, "lzcnt";
    ADX = 18, "adx";
    MOVBE = 19, "movbe";
    /// `cmpxchg16b`.
    CX16 = 20, "cx16";
    /// `prefetchw` (0F 0D /1).
    PREFETCHW = 21, "prefetchw";
    /// Non-temporal stores: exit must fence.
    NT = 22, "nt-store";
    /// `lock` prefix or `xchg` with memory.
    LOCK = 23, "lock";
    /// Reads of the x87 or SSE control words are used (`fnstcw`, `stmxcsr`).
    CONTROL = 24, "control-word";
    /// VAES/VPCLMULQDQ on 256-bit registers.
    VAES = 25, "vaes";
    VPCLMUL = 26, "vpclmulqdq";
    /// AVX-VNNI, VEX encoded.
    AVXVNNI = 27, "avx-vnni";
    GFNI = 28, "gfni";
    /// Legacy-encoded SSE4A (AMD); never in a default policy.
    SSE4A = 29, "sse4a";
}

impl Features {
    /// The empty set.
    pub const NONE: Features = Features(0);

    /// What text may use and still name no register but the general ones, and no control word.
    pub const GENERAL: Features = Policy::KERNEL.features.with(Features::LOCK).with(Features::CX16).with(Features::NT);

    /// The union of two sets.
    #[must_use]
    pub const fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Whether every feature of `other` is in `self`.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which host the text will run in; it decides the segment, the entry discipline and the base instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// A user-mode process: window operands use `%gs`, the table lies in the window.
    User,
    /// A kernel: window operands use `%fs`, the table lies below the window, every function entry carries LIMIT and `endbr64`,
    /// no `lock`, general-purpose registers only unless the policy names more.
    Kernel,
}

/// Which accesses are forced into the window, and in match mode checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protect {
    /// Loads and stores.
    #[default]
    All,
    /// Stores, jumps and everything that names the stack; plain loads go where their 64-bit address points (DESIGN §7). User mode only.
    Stores,
}

/// What text proves beyond the sandbox (DESIGN §7, §8): what an image claims, and the least that a policy demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Segment matching: no access without a check of its 64-bit address.
    pub matched: bool,
    /// Every cycle pays for its instructions from the count in r14.
    pub metered: bool,
    pub protect: Protect,
}

impl Mode {
    /// Whether text of this mode is good enough where `demanded` is asked for.
    #[must_use]
    pub fn fulfils(self, demanded: Mode) -> bool {
        (self.matched || !demanded.matched)
            && (self.metered || !demanded.metered)
            && (self.protect == Protect::All || demanded.protect == Protect::Stores)
    }
}

/// The host's terms. A note can only narrow them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub host: Host,
    /// Extensions that the text may use.
    pub features: Features,
    /// Greatest static stack depth in bytes (DESIGN §4 D), a multiple of 8, at most [`crate::layout::DEPTH_LIMIT`].
    pub max_depth: u32,
    /// The least that the text must prove.
    pub mode: Mode,
}

impl Policy {
    /// The user-mode default: everything the checker knows but SSE4A, 1 MiB of stack depth.
    pub const USER: Policy = Policy {
        host: Host::User,
        features: Features(((1 << 29) - 1) & !Features::SSE4A.0),
        max_depth: 1 << 20,
        mode: Mode { matched: false, metered: false, protect: Protect::All },
    };
    /// The kernel default: general-purpose instructions with `popcnt`, BMI, `lzcnt`, `movbe` and ADX, 8 KiB of depth.
    pub const KERNEL: Policy = Policy {
        host: Host::Kernel,
        features: Features(
            Features::POPCNT.0
                | Features::BMI1.0
                | Features::BMI2.0
                | Features::LZCNT.0
                | Features::MOVBE.0
                | Features::ADX.0
                | Features::PREFETCHW.0,
        ),
        max_depth: 8 << 10,
        mode: Mode { matched: false, metered: false, protect: Protect::All },
    };
}
