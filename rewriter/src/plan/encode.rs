//! Encoding: iced's encoder, then the checker's one legal order of legacy prefixes.

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

/// The checker's order of legacy prefixes (SPEC: segment, address size, lock, operand size, repeat).
const ORDER: [u8; 6] = [0x65, 0x67, 0xf0, 0x66, 0xf2, 0xf3];

/// Encodes one instruction that is not a branch.
///
/// # Errors
/// iced's reason, if the operands do not fit the form.
pub fn encode(insn: &Instruction) -> Result<Vec<u8>, IcedError> {
    let mut encoder = Encoder::try_with_capacity(64, 16)?;
    encoder.encode(insn, 0)?;
    let mut bytes = encoder.take_buffer();
    let prefixes = bytes.iter().take_while(|b| ORDER.contains(b)).count();
    bytes[..prefixes].sort_by_key(|b| ORDER.iter().position(|o| o == b));
    Ok(bytes)
}

/// `%gs:disp(base)` with a 32-bit base, or an absolute window offset without one.
#[must_use]
pub fn window(base: Register, disp: i32) -> MemoryOperand {
    let (base, size) = if base == Register::None { (base, 8) } else { (narrow(base), displacement_size(disp, base)) };
    MemoryOperand::new(base, Register::None, 1, i64::from(disp), size, false, Register::GS)
}

/// Size of the displacement field that iced is asked for: 0, 1 or 4 bytes.
#[must_use]
pub fn displacement_size(disp: i32, base: Register) -> u32 {
    let needs_one = matches!(base.full_register(), Register::RBP | Register::R13);
    match disp {
        0 if !needs_one => 0,
        -128..=127 => 1,
        _ => 4,
    }
}

/// The 32-bit register of the same number.
#[must_use]
pub fn narrow(register: Register) -> Register {
    if register == Register::None { register } else { Register::EAX + register.number() as u32 }
}

/// `mov from,%gs:disp(base)`, 64 bits or 32 by the register.
///
/// # Errors
/// Never for a general register.
pub fn store(from: Register, base: Register, disp: i32) -> Result<Vec<u8>, IcedError> {
    let code = if from.is_gpr64() { Code::Mov_rm64_r64 } else { Code::Mov_rm32_r32 };
    encode(&Instruction::with2(code, window(base, disp), from)?)
}

/// `mov %gs:disp(base),to`, 64 bits or 32 by the register.
///
/// # Errors
/// Never for a general register.
pub fn load(to: Register, base: Register, disp: i32) -> Result<Vec<u8>, IcedError> {
    let code = if to.is_gpr64() { Code::Mov_r64_rm64 } else { Code::Mov_r32_rm32 };
    encode(&Instruction::with2(code, to, window(base, disp))?)
}

/// `lea disp(base),to` without a segment; a 32-bit destination truncates.
///
/// # Errors
/// Never for general registers.
pub fn lea(to: Register, base: Register, index: Register, scale: u32, disp: i32) -> Result<Vec<u8>, IcedError> {
    let code = if to.is_gpr64() { Code::Lea_r64_m } else { Code::Lea_r32_m };
    // iced calls the 4-byte displacement of 64-bit addressing "8".
    let size = match displacement_size(disp, base) {
        small @ (0 | 1) if base != Register::None => small,
        _ => 8,
    };
    encode(&Instruction::with2(code, to, MemoryOperand::new(base, index, scale, i64::from(disp), size, false, Register::None))?)
}

/// `mov $value,to`, 32 bits zero-extended.
///
/// # Errors
/// Never for a general register.
pub fn set(to: Register, value: u32) -> Result<Vec<u8>, IcedError> {
    encode(&Instruction::with2(Code::Mov_r32_imm32, narrow(to), value)?)
}

/// `lea by(%rsp),%rsp`: moves the native stack pointer without touching flags.
///
/// # Errors
/// Never.
pub fn move_stack(by: i32) -> Result<Vec<u8>, IcedError> {
    lea(Register::RSP, Register::RSP, Register::None, 1, by)
}

/// A no-op of one byte.
pub const NO_OP: [u8; 1] = [0x90];
