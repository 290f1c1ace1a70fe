//! Retpolines and return thunks: what they do, without keeping the processor from predicting it.
//!
//! A thunk calls a place that overwrites the return address and returns (`call 1f; …; 1: mov %rax,(%rsp); ret`), so that no branch predictor is
//! asked. Its architectural effect is one jump, call or return, and so it is analysed and planned. Speculation is out of scope (DESIGN: property).

use crate::functions::{BranchTarget, CodeRef, branch_target, decode_plain};
use crate::program::{Definition, Program, Reloc};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Functions that the code expects from its surroundings (`-mindirect-branch=thunk-extern`, the kernel): one for each register.
const INDIRECT: &str = "__x86_indirect_thunk_";
/// Of `-mfunction-return=thunk-extern`.
const RETURN: &str = "__x86_return_thunk";

/// Where control goes once the return address has been overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overwritten {
    /// To the address in this register.
    Register(Register),
    /// To the caller's caller: the call's own return address was dropped.
    Caller,
}

/// What the direct transfer `insn` at `at` does, if its target is a thunk: an indirect call or jump through a register or a return, in the
/// place and of the length of `insn`. Anything else is given back as it is.
#[must_use]
pub fn resolve(program: &Program, at: CodeRef, insn: Instruction) -> Instruction {
    let call = insn.code() == Code::Call_rel32_64;
    let jump = matches!(insn.code(), Code::Jmp_rel32_64 | Code::Jmp_rel8_64);
    if !call && !jump {
        return insn;
    }
    let made = match branch_target(program, at, &insn) {
        BranchTarget::Symbol(reloc) => external(program, &reloc, call),
        BranchTarget::Code(to) => match overwritten(program, to).filter(|_| call) {
            Some(Overwritten::Register(r)) => Instruction::with1(Code::Jmp_rm64, r).ok(),
            Some(Overwritten::Caller) => Some(Instruction::with(Code::Retnq)),
            None => match (thunk(program, to), call) {
                (Some(Overwritten::Register(r)), true) => Instruction::with1(Code::Call_rm64, r).ok(),
                (Some(Overwritten::Register(r)), false) => Instruction::with1(Code::Jmp_rm64, r).ok(),
                (Some(Overwritten::Caller), false) => Some(Instruction::with(Code::Retnq)),
                _ => None,
            },
        },
    };
    let Some(mut made) = made else { return insn };
    made.set_len(insn.len());
    made.set_ip(insn.ip());
    made
}

/// Whether `insn`, as the analysis has it, stands for a direct transfer to a thunk.
#[must_use]
pub fn stands_for_thunk(insn: &Instruction) -> bool {
    let longest = match insn.mnemonic() {
        // With the prefixes that mean nothing.
        Mnemonic::Ret if insn.code() == Code::Retnq => 3,
        Mnemonic::Jmp | Mnemonic::Call if insn.op0_kind() == OpKind::Register => 4,
        _ => return false,
    };
    insn.len() > longest
}

/// What a thunk that the objects leave undefined does: its name says it.
fn external(program: &Program, reloc: &Reloc, call: bool) -> Option<Instruction> {
    let symbol = program.symbol(reloc.symbol);
    if !matches!(symbol.definition, Definition::Undefined { .. }) {
        return None;
    }
    if symbol.name == RETURN && !call {
        return Some(Instruction::with(Code::Retnq));
    }
    let name = symbol.name.strip_prefix(INDIRECT)?;
    let register =
        Register::values().find(|r| r.is_gpr64() && *r != Register::RSP && format!("{r:?}").eq_ignore_ascii_case(name))?;
    Instruction::with1(if call { Code::Call_rm64 } else { Code::Jmp_rm64 }, register).ok()
}

/// The thunk at `at`: a call of a place that overwrites the return address.
fn thunk(program: &Program, at: CodeRef) -> Option<Overwritten> {
    let insn = decode_plain(program, at);
    if insn.code() != Code::Call_rel32_64 {
        return None;
    }
    match branch_target(program, at, &insn) {
        BranchTarget::Code(to) => overwritten(program, to),
        BranchTarget::Symbol(_) => None,
    }
}

/// What a call of `at` comes to, if the code there only replaces or drops its return address and returns.
fn overwritten(program: &Program, at: CodeRef) -> Option<Overwritten> {
    let first = decode_plain(program, at);
    let then = decode_plain(program, CodeRef { offset: at.offset + first.len() as u64, ..at });
    if then.code() != Code::Retnq {
        return None;
    }
    let at_top = first.memory_base() == Register::RSP && first.memory_index() == Register::None;
    match first.code() {
        Code::Mov_rm64_r64 if first.op0_kind() == OpKind::Memory && at_top && first.memory_displacement64() == 0 => {
            Some(Overwritten::Register(first.op1_register())).filter(|_| first.op1_register() != Register::RSP)
        }
        Code::Lea_r64_m if first.op0_register() == Register::RSP && at_top && first.memory_displacement64() == 8 => {
            Some(Overwritten::Caller)
        }
        Code::Add_rm64_imm8 if first.op0_register() == Register::RSP && first.immediate8() == 8 => Some(Overwritten::Caller),
        _ => None,
    }
}
