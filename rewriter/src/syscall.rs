//! System calls of whole programs: with `Options::syscalls`, every `syscall` instruction becomes a call of one function that is added to the
//! program here, and that function hands the call to the import [`IMPORT`].
//!
//! The kernel changes rax, rcx and r11 only; an import changes every caller-saved register, vector registers included. The function makes
//! up for that: it keeps the rest below its caller's red zone and puts it back. It is added as original code, so that every later phase and
//! every mode treats it as any other function.

use crate::body::Body;
use crate::diag::Reason;
use crate::elf;
use crate::plan::encode;
use crate::program::{
    Definition, ObjectId, ObjectInfo, Program, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId, SymbolKind,
};
use iced_x86::{Code, IcedError, Instruction, InstructionInfoFactory, MemoryOperand, Register};

/// The import behind every system call. rdi = window offset of seven words: the call's number and its six arguments; rsi = window offset of the
/// thread control block. Result as the kernel's, in rax.
pub const IMPORT: &str = "cordon.syscall";
/// The function that `syscall` instructions call.
pub const FUNCTION: &str = "__cordon_syscall";
/// The window offset of the thread control block, as a symbol.
pub const THREAD_POINTER: &str = "__cordon_thread_pointer";
/// What `syscall` changes (bit = register number): rax, rcx, r11.
pub const CLOBBERS: u16 = 1 | 1 << 1 | 1 << 11;

/// Call number and arguments in the kernel's order.
const WORDS: [Register; 7] =
    [Register::RAX, Register::RDI, Register::RSI, Register::RDX, Register::R10, Register::R8, Register::R9];
/// Vector registers that SSE code can use.
const VECTORS: u32 = 16;
/// Bytes of the words, rounded up for the vectors behind them.
const WORDS_SIZE: i32 = 64;
/// The caller's red zone as far as it lies below this function's return address.
const RED_ZONE: i32 = 120;
/// Bytes of stack.
const FRAME: i32 = RED_ZONE + WORDS_SIZE + 16 * VECTORS as i32;

/// Adds the function to `program`.
///
/// # Errors
/// Never; the encoder's signature has one.
pub fn add(program: &mut Program) -> Result<(), IcedError> {
    let object = ObjectId(program.objects.len() as u32);
    let section = SectionId(program.sections.len() as u32);
    let first = program.symbols.len() as u32;
    let (data, relocs) = code(SymbolId(first), SymbolId(first + 1))?;
    let undefined = Definition::Undefined { weak: false };
    let symbol = |name: &str, definition, size, kind| Symbol { name: name.into(), definition, size, kind, global: false, object };
    program.symbols.push(symbol(IMPORT, undefined, 0, SymbolKind::Function));
    program.symbols.push(symbol(THREAD_POINTER, undefined, 0, SymbolKind::Object));
    program.symbols.push(symbol(FUNCTION, Definition::Section(section, 0), data.len() as u64, SymbolKind::Function));
    program.objects.push(ObjectInfo { name: "cordon".into(), explicit: false, debug: Vec::new() });
    let (name, size) = (".text".to_owned(), data.len() as u64);
    program.sections.push(Section { object, index: 0, name, kind: SectionKind::Text, align: 16, data, size, relocs });
    program.syscall = Some(section);
    Ok(())
}

/// The function's original code.
fn code(import: SymbolId, thread_pointer: SymbolId) -> Result<(Vec<u8>, Vec<Reloc>), IcedError> {
    let slot = |at: i32| MemoryOperand::new(Register::RSP, Register::None, 1, i64::from(at), 8, false, Register::None);
    let mut bytes = encode::move_stack(-FRAME)?;
    let mut relocs = Vec::new();
    let vector = |i: u32| (Register::XMM0 + i, slot(WORDS_SIZE + 16 * i as i32));
    for (i, word) in WORDS.into_iter().enumerate() {
        bytes.extend(encode::encode(&Instruction::with2(Code::Mov_rm64_r64, slot(8 * i as i32), word)?)?);
    }
    for (register, place) in (0..VECTORS).map(vector) {
        bytes.extend(encode::encode(&Instruction::with2(Code::Movups_xmmm128_xmm, place, register)?)?);
    }
    bytes.extend(encode::encode(&Instruction::with2(Code::Mov_rm64_r64, Register::RDI, Register::RSP)?)?);
    bytes.push(0xbe);
    relocs.push(Reloc { offset: bytes.len() as u64, kind: elf::R_X86_64_32, symbol: thread_pointer, addend: 0 });
    bytes.extend([0, 0, 0, 0, 0xe8]);
    relocs.push(Reloc { offset: bytes.len() as u64, kind: elf::R_X86_64_PLT32, symbol: import, addend: -4 });
    bytes.extend([0; 4]);
    for (i, word) in WORDS.into_iter().enumerate().skip(1) {
        bytes.extend(encode::encode(&Instruction::with2(Code::Mov_r64_rm64, word, slot(8 * i as i32))?)?);
    }
    for (register, place) in (0..VECTORS).map(vector) {
        bytes.extend(encode::encode(&Instruction::with2(Code::Movups_xmm_xmmm128, register, place)?)?);
    }
    bytes.extend(encode::move_stack(FRAME)?);
    bytes.push(0xc3);
    Ok((bytes, relocs))
}

/// Refuses a system call in `body` if it may have to keep what the function does not: x87, MMX and the upper parts of vector registers.
///
/// # Errors
/// The first register of such a kind that the body names.
pub fn keeps_all(body: &Body) -> Result<(), Reason> {
    let mut factory = InstructionInfoFactory::new();
    for node in &body.nodes {
        let lost = factory.info(&node.insn).used_registers().iter().map(iced_x86::UsedRegister::register).find(|r| {
            r.is_st() || r.is_mm() || r.is_ymm() || r.is_zmm() || r.is_k() || r.is_xmm() && r.number() >= VECTORS as usize
        });
        if let Some(register) = lost {
            let register = format!("{register:?}").to_lowercase();
            return Err((
                "unsupported-instruction",
                format!("`syscall` in a function that uses {register}, which it would not keep"),
            ));
        }
    }
    Ok(())
}
