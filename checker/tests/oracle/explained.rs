//! Where Capstone 5 and the checker differ, and why Capstone is wrong: each line is mnemonics, the difference, the reason.
//!
//! That these accesses and writes are what the table says, the processor shows in `loader/tests/processor.rs`: it runs them with the
//! operand at the edges of mapped memory and compares registers and memory.

use super::second::Difference;

pub type Explained = (&'static str, &'static str, &'static str);

/// Every difference there may be. A line that nothing needs fails the whole run.
pub const EXPLAINED: &[Explained] = &[
    (
        "extractps fist fistp fisttp fnstcw fst fstp movd movhpd movhps movlpd movlps movntdq movnti movntpd movntps movntq movq \
         movupd movups pextrb pextrd pextrq pextrw stmxcsr vcvtps2ph vextractf128 vextracti128 vextractps vmovapd vmovaps vmovd \
         vmovdqa vmovdqu vmovhpd vmovhps vmovlpd vmovlps vmovntdq vmovntpd vmovntps vmovq vmovsd vmovss vmovupd vmovups vpextrb \
         vpextrd vpextrq vpextrw vstmxcsr",
        "access w against r",
        "a store: the SDM's operand encoding of each says ModRM:r/m (w); Capstone calls any memory operand of these read",
    ),
    (
        "seta setae setb setbe setg setge setl setle setne sete setno setnp setns seto setp sets",
        "access w against r",
        "SDM, SETcc: sets the byte operand, ModRM:r/m (w)",
    ),
    (
        "vmaskmovpd vmaskmovps vpmaskmovd vpmaskmovq",
        "access w against r",
        "SDM, VMASKMOV and VPMASKMOV: the forms 2E, 2F and 8E conditionally store, ModRM:r/m (w)",
    ),
    ("rcl rcr rol ror", "access rw against r", "SDM, RCL/RCR/ROL/ROR: rotates the operand in place, ModRM:r/m (r, w)"),
    (
        "cmpxchg lock_cmpxchg cmpxchg8b lock_cmpxchg8b cmpxchg16b lock_cmpxchg16b",
        "access rw against r",
        "SDM, CMPXCHG and CMPXCHG8B: the destination is always written, with the source or with itself",
    ),
    (
        "cmpxchg lock_cmpxchg",
        "writes +rax",
        "SDM, CMPXCHG: the accumulator is loaded with the destination if they differ; Capstone knows of eflags only",
    ),
    ("cdq cqo cwd", "writes -rax", "SDM, CWD/CDQ/CQO: the sign goes to dx; Capstone counts the source as written"),
    ("test", "writes -rax", "SDM, TEST: writes flags only; Capstone counts the accumulator of A9 as written"),
    ("comisd", "size 8 against 16", "SDM, COMISD: xmm1, xmm2/m64"),
    (
        "roundsd roundss vroundsd vroundss vbroadcasti128 vcvtpd2ps test",
        "access r against none",
        "the SDM gives ModRM:r/m (r); Capstone has no access of the operand at all",
    ),
    ("", "unknown VEX map 2 50", "AVX-VNNI is younger than Capstone 5: objdump decodes it (tests/accepted.rs)"),
    ("", "unknown VEX map 2 51", "AVX-VNNI, as 50"),
    ("", "unknown VEX map 2 52", "AVX-VNNI, as 50"),
    ("", "unknown VEX map 2 53", "AVX-VNNI, as 50"),
];

/// The line that explains a difference.
pub fn explanation(difference: &Difference) -> Option<&'static Explained> {
    let mnemonic = difference.0.replace(' ', "_");
    EXPLAINED.iter().find(|(mnemonics, what, _)| {
        *what == difference.1 && (mnemonics.split(' ').any(|known| known == mnemonic) || *mnemonics == mnemonic)
    })
}
