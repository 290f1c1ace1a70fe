//! R4 of SPEC.md a second time: which instructions have no accepted encoding, and why.

use iced_x86::{Code, CpuidFeature, Mnemonic, OpCodeOperandKind};

/// The extensions of R9 (`Policy::USER`), as CPUID names them, and the base instruction set with what has reasons of its own.
const EXTENSIONS: &[CpuidFeature] = &[
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CPUID,
    CpuidFeature::SYSCALL,
    CpuidFeature::CX8,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CET_IBT,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::POPCNT,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::GFNI,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
    CpuidFeature::VAES,
    CpuidFeature::VPCLMULQDQ,
    CpuidFeature::AVX_VNNI,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::LZCNT,
    CpuidFeature::ADX,
    CpuidFeature::MOVBE,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::PREFETCHW,
];

/// R4: why no encoding of this instruction is on the allow-list; `None` if some may be.
pub fn refused(code: Code) -> Option<&'static str> {
    if code == Code::INVALID {
        return Some("no instruction");
    }
    if foreign_extension(code).is_some() {
        return Some("extension that no policy has");
    }
    by_operands(code).or_else(|| by_code(code)).or_else(|| by_mnemonic(code.mnemonic()))
}

/// The first extension that no policy has.
pub fn foreign_extension(code: Code) -> Option<CpuidFeature> {
    code.cpuid_features().iter().copied().find(|feature| !EXTENSIONS.contains(feature))
}

fn by_operands(code: Code) -> Option<&'static str> {
    use OpCodeOperandKind as Kind;
    let op_code = code.op_code();
    for operand in op_code.op_kinds() {
        let why = match operand {
            Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI => "memory at an implicit rsi or rdi",
            Kind::mem_offs => "moffs: an absolute 64-bit address",
            Kind::mem_vsib32x | Kind::mem_vsib64x | Kind::mem_vsib32y | Kind::mem_vsib64y => "gather: an address per lane",
            Kind::br16_1 | Kind::br16_2 => "66 on a branch: processors differ about its length",
            Kind::farbr2_2 | Kind::farbr4_2 => "far control flow",
            Kind::seg_reg | Kind::fs | Kind::gs => "segment registers",
            Kind::cr_reg | Kind::dr_reg => "privileged",
            _ => continue,
        };
        return Some(why);
    }
    if op_code.is_privileged() { Some("privileged") } else { None }
}

fn by_code(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Sal_rm8_1 | Code::Sal_rm16_1 | Code::Sal_rm32_1 | Code::Sal_rm64_1 => "alias of shl",
        Code::Sal_rm8_CL | Code::Sal_rm16_CL | Code::Sal_rm32_CL | Code::Sal_rm64_CL => "alias of shl",
        Code::Sal_rm8_imm8 | Code::Sal_rm16_imm8 | Code::Sal_rm32_imm8 | Code::Sal_rm64_imm8 => "alias of shl",
        Code::Test_rm8_imm8_F6r1 | Code::Test_rm16_imm16_F7r1 => "alias of test",
        Code::Test_rm32_imm32_F7r1 | Code::Test_rm64_imm32_F7r1 => "alias of test",
        Code::Fcom_st0_sti_DCD0 | Code::Fcomp_st0_sti_DCD8 | Code::Fcomp_st0_sti_DED0 => "undocumented x87 alias",
        Code::Fxch_st0_sti_DDC8 | Code::Fxch_st0_sti_DFC8 => "undocumented x87 alias",
        Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 | Code::Fstpnce_sti | Code::Ffreep_sti => "undocumented x87 alias",
        Code::Movsxd_r16_rm16 | Code::Movsxd_r32_rm32 => "a mov by another name",
        Code::Movzx_r16_rm16 | Code::Movsx_r16_rm16 => "a mov by another name",
        Code::Pinsrw_mm_r64m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 | Code::VEX_Vpinsrw_xmm_xmm_r64m16_imm8 => "W without effect",
        Code::Pextrw_r64_mm_imm8 | Code::Pextrw_r64_xmm_imm8 | Code::VEX_Vpextrw_r64_xmm_imm8 => "W without effect",
        Code::Pmovmskb_r64_mm | Code::Pmovmskb_r64_xmm => "W without effect",
        Code::VEX_Vpmovmskb_r64_xmm | Code::VEX_Vpmovmskb_r64_ymm => "W without effect",
        Code::Movmskps_r64_xmm | Code::VEX_Vmovmskps_r64_xmm | Code::VEX_Vmovmskps_r64_ymm => "W without effect",
        Code::Movmskpd_r64_xmm | Code::VEX_Vmovmskpd_r64_xmm | Code::VEX_Vmovmskpd_r64_ymm => "W without effect",
        Code::Crc32_r64_rm8 | Code::Pextrb_r64m8_xmm_imm8 | Code::VEX_Vpextrb_r64m8_xmm_imm8 => "W without effect",
        Code::Pextrw_r64m16_xmm_imm8 | Code::VEX_Vpextrw_r64m16_xmm_imm8 => "W without effect",
        Code::Extractps_r64m32_xmm_imm8 | Code::VEX_Vextractps_r64m32_xmm_imm8 => "W without effect",
        Code::Pinsrb_xmm_r64m8_imm8 | Code::VEX_Vpinsrb_xmm_xmm_r64m8_imm8 => "W without effect",
        Code::Pcmpestrm64_xmm_xmmm128_imm8 | Code::VEX_Vpcmpestrm64_xmm_xmmm128_imm8 => "64-bit lengths: no assembler writes it",
        Code::Pcmpestri64_xmm_xmmm128_imm8 | Code::VEX_Vpcmpestri64_xmm_xmmm128_imm8 => "64-bit lengths: no assembler writes it",
        Code::Bswap_r16 => "undefined",
        Code::Nopq | Code::Nop_rm64 => "REX without effect",
        Code::Retnw | Code::Call_rm16 | Code::Jmp_rm16 => "66 on a branch: processors differ about its length",
        Code::Lfence_E9 | Code::Lfence_EA | Code::Lfence_EB | Code::Lfence_EC | Code::Lfence_ED | Code::Lfence_EE => {
            "alias of lfence"
        }
        Code::Mfence_F1 | Code::Mfence_F2 | Code::Mfence_F3 | Code::Mfence_F4 | Code::Mfence_F5 | Code::Mfence_F6 => {
            "alias of mfence"
        }
        Code::Sfence_F9 | Code::Sfence_FA | Code::Sfence_FB | Code::Sfence_FC | Code::Sfence_FD | Code::Sfence_FE => {
            "alias of sfence"
        }
        Code::Lfence_EF | Code::Mfence_F7 | Code::Sfence_FF => "alias of a fence",
        Code::Push_r16 | Code::Pop_r16 => "16-bit push or pop",
        Code::Retnq_imm16 | Code::Retnw_imm16 => "return that moves rsp",
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => "far control flow",
        Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => "far control flow",
        Code::Push_rm16 | Code::Push_rm64 | Code::Pop_rm16 | Code::Pop_rm64 => "push or pop of memory, alias for registers",
        Code::Push_imm16 | Code::Pushq_imm32 | Code::Pushw_imm8 | Code::Pushq_imm8 => "push of a constant",
        Code::Prefetch_m8 => "prefetch of AMD only",
        Code::Prefetchreserved3_m8 | Code::Prefetchreserved4_m8 | Code::Prefetchreserved5_m8 => "reserved prefetch",
        Code::Prefetchreserved6_m8 | Code::Prefetchreserved7_m8 => "reserved prefetch",
        _ => return None,
    })
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Xlatb => "memory at an implicit rbx",
        M::In | M::Out | M::Hlt | M::Cli | M::Sti | M::Int | M::Int1 | M::Int3 | M::Into => "system",
        M::Iret | M::Iretd | M::Iretq | M::Retf => "far control flow",
        M::Lss | M::Lfs | M::Lgs | M::Lar | M::Lsl | M::Verr | M::Verw => "segment registers",
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => "shows system state",
        M::Cpuid => "shows the machine: a gate",
        M::Syscall => "a call of the kernel",
        M::Pushf | M::Pushfq | M::Popf | M::Popfq => "flags register",
        M::Enter | M::Leave => "frame pointers as stack pointers",
        M::Std | M::Cld => "direction flag: always clear",
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => "branch on a counter",
        M::Fldcw | M::Fninit | M::Fldenv | M::Fnstenv | M::Fnsave | M::Frstor | M::Ldmxcsr | M::Vldmxcsr => {
            "control words: a gate"
        }
        M::Fneni | M::Fndisi | M::Fnsetpm | M::Feni | M::Fdisi | M::Fsetpm => "obsolete x87",
        M::Ud0 | M::Ud1 => "processors differ about its length",
        M::Reservednop => "no-op that later processors give a meaning",
        M::Endbr32 => "no 64-bit instruction",
        _ => return None,
    })
}
