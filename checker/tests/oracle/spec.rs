//! SPEC.md's rules R4 to R9 for one instruction of user text, written a second time: from what iced-x86 reads, without the checker's tables.
//! Slow and plain. Fused table units are in `tests/units.rs`.

use crate::refused::refused;
use cordon_checker::{Mode, Protect};
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};

/// Judges the instruction at the start of `bytes`: its length, or what it violates.
pub fn verdict(bytes: &[u8], mode: Mode, encoder: &mut Encoder) -> Result<usize, &'static str> {
    let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    let len = instruction.len();
    let bytes = &bytes[..len];
    if let Some(why) = refused(instruction.code()) {
        return Err(why);
    }
    rarities(&instruction, bytes)?;
    memory(&instruction, mode)?;
    stack_pointer(&instruction, bytes)?;
    canonical(&instruction, bytes, encoder)?;
    Ok(len)
}

/// What only some forms of an instruction are refused for.
fn rarities(instruction: &Instruction, bytes: &[u8]) -> Result<(), &'static str> {
    let memory = has_memory(instruction);
    let fail = |bad: bool, why: &'static str| if bad { Err(why) } else { Ok(()) };
    let xacquire = instruction.has_xacquire_prefix() || instruction.has_xrelease_prefix();
    fail(xacquire || instruction.has_rep_prefix() || instruction.has_repne_prefix(), "prefix without effect")?;
    fail(!memory && instruction.segment_prefix() != Register::None, "prefix without effect")?;
    match instruction.mnemonic() {
        Mnemonic::Xchg => fail(instruction.has_lock_prefix(), "lock without effect"),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            fail(memory && instruction.op1_kind() == OpKind::Register, "bit string")
        }
        Mnemonic::Call | Mnemonic::Jmp if instruction.op0_kind() == OpKind::Register => Err("indirect branch outside a unit"),
        // Imports.
        Mnemonic::Call | Mnemonic::Jmp if memory => {
            fail(bytes[1] != 0xff || instruction.memory_base() != Register::None, "memory-indirect branch")?;
            fail(instruction.memory_index() != Register::None, "memory-indirect branch")
        }
        Mnemonic::Nop if instruction.op_count() > 0 => fail(!is_long_no_op(bytes), "no-op that is not listed"),
        _ => Ok(()),
    }
}

/// SPEC, "No-ops", and the hint.
fn is_long_no_op(bytes: &[u8]) -> bool {
    let known: [&[u8]; 7] = [
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0],
        &[0x0f, 0x1f, 0x44, 0, 0],
        &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
        &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    ];
    known.contains(&bytes) || bytes.starts_with(&[0x0f, 0x1f, 0x84, 0xc0])
}

fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// R7. For the import form, too: the hardware reads its slot through the segment.
fn memory(instruction: &Instruction, mode: Mode) -> Result<(), &'static str> {
    if !has_memory(instruction) || instruction.mnemonic() == Mnemonic::Nop {
        return Ok(());
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if instruction.is_ip_rel_memory_operand() {
        return Err("rip-relative");
    }
    let none = |register: Register| register == Register::None;
    // The encoder keeps it as it was.
    if none(index) && instruction.memory_index_scale() != 1 {
        return Err("scale without an index");
    }
    if instruction.mnemonic() == Mnemonic::Lea {
        let wide = |register: Register| none(register) || register.is_gpr64();
        let no_prefix = none(instruction.segment_prefix()) && instruction.memory_displ_size() != 4;
        return if wide(base) && wide(index) && no_prefix { Ok(()) } else { Err("lea with a prefix of an access") };
    }
    if instruction.segment_prefix() != Register::GS {
        return Err("not through the segment");
    }
    let narrow = |register: Register| none(register) || register.is_gpr32();
    if none(base) && none(index) {
        let import = matches!(instruction.mnemonic(), Mnemonic::Call | Mnemonic::Jmp);
        // A displacement of 4 bytes behind 67, of 8 (sign-extended) without.
        let short = instruction.memory_displ_size() == 4;
        let negative = instruction.memory_displacement32().cast_signed() < 0;
        return if short || negative && !import { Err("displacement alone: below 0 or with 67") } else { Ok(()) };
    }
    if narrow(base) && narrow(index) {
        return Ok(());
    }
    let load = mode.protect == Protect::Stores && is_load(instruction) && base != Register::RSP;
    if load { Ok(()) } else { Err("64-bit address") }
}

/// Memory is the last source and no destination, by the order of operands; `cmp`, `test`, `bt` and the x87 operations have theirs in front.
fn is_load(instruction: &Instruction) -> bool {
    let mnemonic = instruction.mnemonic();
    let name = format!("{mnemonic:?}");
    if name.starts_with("Prefetch") {
        return false;
    }
    let first = instruction.op0_kind() == OpKind::Memory;
    let reads_only = matches!(
        mnemonic,
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt | Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Div | Mnemonic::Idiv
    );
    let x87_store = name.starts_with("Fst") || name.starts_with("Fist") || name.starts_with("Fnst") || name == "Fbstp";
    let x87 = name.starts_with('F') && !x87_store;
    !matches!(mnemonic, Mnemonic::Xadd | Mnemonic::Xchg) && (!first || reads_only || x87)
}

/// R8.
fn stack_pointer(instruction: &Instruction, bytes: &[u8]) -> Result<(), &'static str> {
    let stack = |register: Register| register.is_gpr() && register.full_register() == Register::RSP;
    let named = (0..instruction.op_count())
        .any(|operand| instruction.op_kind(operand) == OpKind::Register && stack(instruction.op_register(operand)));
    let wide = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() != 4;
    let plain_base = instruction.memory_index() == Register::None && stack(instruction.memory_base());
    let allowed = match instruction.code() {
        Code::Add_rm64_imm8 | Code::Sub_rm64_imm8 | Code::Add_rm64_imm32 | Code::Sub_rm64_imm32 => true,
        // 48 8D 64 24 ib, 48 8D A4 24 id: with a displacement.
        Code::Lea_r64_m if named => plain_base && bytes[2] >= 0x40,
        Code::Lea_r64_m | Code::Lea_r32_m | Code::Lea_r16_m => !(named || wide && stack(instruction.memory_base())),
        _ => !named,
    };
    if allowed { Ok(()) } else { Err("names rsp") }
}

/// R5: what iced-x86 would encode, with the prefixes in SPEC's order.
pub fn canonical(instruction: &Instruction, bytes: &[u8], encoder: &mut Encoder) -> Result<(), &'static str> {
    encoder.set_buffer(Vec::with_capacity(16));
    if encoder.encode(instruction, 0).is_err() {
        return Err("not encodable");
    }
    let mut again = encoder.take_buffer();
    // Constants are not compared: FILLed immediates that are sign-extended encode as they were.
    let rank = |byte: &u8| [0x65, 0x67, 0xf0, 0x66, 0xf3, 0xf2].iter().position(|prefix| prefix == byte);
    let prefixes = again.iter().take_while(|byte| rank(byte).is_some()).count();
    again[..prefixes].sort_by_key(rank);
    if again == bytes { Ok(()) } else { Err("not canonical") }
}
