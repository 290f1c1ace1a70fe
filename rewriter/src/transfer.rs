//! The effect of one instruction on the abstract state.

use crate::body::{Discovery, Key};
use crate::diag::Reason;
use crate::dynamic::Counted;
use crate::elf;
use crate::functions::{CodeRef, decode, exact_target, relocs_at};
use crate::liveness::{CALLER_SAVED, written};
use crate::program::{Program, Reloc, SectionKind};
use crate::tables::{self, TableKind};
use crate::values::{Slot, State, Value};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use std::sync::Arc;

/// The state after a call that may change the registers `clobbers` (bit = number).
pub fn clobber_by_call(state: &mut State, clobbers: u16) {
    state.forget(clobbers & CALLER_SAVED);
}

/// An address as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Offset from rsp at entry; `exact` unless an index is added.
    Stack {
        offset: i32,
        exact: bool,
    },
    /// A place in a section, plus an index unless `exact`.
    Data {
        at: (crate::program::SectionId, i64),
        exact: bool,
    },
    Unknown,
}

/// The address of the memory operand of `insn`.
#[must_use]
pub fn address(program: &Program, at: CodeRef, insn: &Instruction, state: &State) -> Address {
    let disp = insn.memory_displacement64().cast_signed();
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if let Some((section, offset)) = displacement_target(program, at, insn) {
        return Address::Data {
            at: (section, offset),
            exact: index == Register::None && (base == Register::None || base == Register::RIP),
        };
    }
    let value = |r: Register| if r == Register::None { Value::Unknown } else { state.register(r) };
    match (value(base), value(index)) {
        (Value::Stack(c) | Value::Copy(c), _) => i32::try_from(i64::from(c) + disp)
            .map_or(Address::Unknown, |offset| Address::Stack { offset, exact: index == Register::None }),
        (Value::Address(s, o), _) => Address::Data { at: (s, o + disp), exact: index == Register::None },
        (_, Value::Address(s, o)) if insn.memory_index_scale() == 1 => Address::Data { at: (s, o + disp), exact: false },
        (_, Value::Stack(c) | Value::Copy(c)) if insn.memory_index_scale() == 1 => {
            i32::try_from(i64::from(c) + disp).map_or(Address::Unknown, |offset| Address::Stack { offset, exact: false })
        }
        _ => Address::Unknown,
    }
}

/// The section place that a relocated (or rip-relative) displacement names; GOT and TLS forms give none.
pub(crate) fn displacement_target(
    program: &Program,
    at: CodeRef,
    insn: &Instruction,
) -> Option<(crate::program::SectionId, i64)> {
    let reloc = displacement_reloc(program, at, insn);
    let Some(reloc) = reloc else {
        return insn.is_ip_rel_memory_operand().then(|| (at.section, insn.ip_rel_memory_address().cast_signed()));
    };
    let bias = match reloc.kind {
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
            if !insn.is_ip_rel_memory_operand() {
                return None;
            }
            (at.offset + insn.len() as u64 - reloc.offset).cast_signed()
        }
        elf::R_X86_64_32 | elf::R_X86_64_32S => 0,
        _ => return None,
    };
    exact_target(program, &Reloc { addend: reloc.addend + bias, ..reloc }).map(|(s, o)| (s, o.cast_signed()))
}

/// The relocation of the displacement field of `insn`.
#[must_use]
pub fn displacement_reloc(program: &Program, at: CodeRef, insn: &Instruction) -> Option<Reloc> {
    let relocs = relocs_at(program, at, insn.len());
    let is_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    if relocs.is_empty() || !is_memory {
        return None;
    }
    // A displacement comes before an immediate; with one relocation the field's distance from the end tells them apart.
    let size = if crate::operand::without_offset(insn.code()).is_some() { 8 } else { 4 };
    let immediate = crate::operand::immediate_size(insn) as u64;
    let end = at.offset + insn.len() as u64;
    relocs.iter().find(|r| r.offset + size + immediate == end).copied()
}

/// The relocation of the immediate field of `insn`.
#[must_use]
pub fn immediate_reloc(program: &Program, at: CodeRef, insn: &Instruction) -> Option<Reloc> {
    let immediate = crate::operand::immediate_size(insn) as u64;
    let end = at.offset + insn.len() as u64;
    relocs_at(program, at, insn.len()).iter().find(|r| immediate != 0 && r.offset + immediate == end).copied()
}

/// Whether the field is the rip-relative place of a symbol's GOT word.
#[must_use]
pub fn is_got(kind: u32) -> bool {
    matches!(kind, elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX)
}

/// The value that a load of `size` bytes through the memory operand of `insn` gives.
pub(crate) fn load(ctx: &mut Discovery<'_>, at: CodeRef, insn: &Instruction, state: &State, size: u32) -> Value {
    if let Some(reloc) = displacement_reloc(ctx.program, at, insn)
        && is_got(reloc.kind)
    {
        let symbol = Reloc { addend: 0, ..reloc };
        return match exact_target(ctx.program, &symbol) {
            Some((section, offset)) if size == 8 && ctx.program.section(section).kind != SectionKind::Text => {
                Value::Address(section, offset.cast_signed())
            }
            _ => Value::Unknown,
        };
    }
    match address(ctx.program, at, insn, state) {
        Address::Stack { offset, exact: true } if size == 8 => state.frame.get(&offset).map_or(Value::Unknown, |s| s.value),
        Address::Data { at: (section, offset), .. } => {
            let kind = if size == 8 { TableKind::Absolute } else { TableKind::Relative };
            let table = tables::find(ctx.program, ctx.functions, ctx.entry, section, offset, kind);
            match ctx.table(table) {
                Some(id) if size == 8 => Value::Code(1 << id),
                Some(id) if size == 4 => Value::Relative(1 << id),
                _ => Value::Unknown,
            }
        }
        _ => Value::Unknown,
    }
}

/// Applies `insn` (no control transfer) to `state`.
pub(crate) fn apply(ctx: &mut Discovery<'_>, id: u32, key: Key, insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    match insn.mnemonic() {
        Mnemonic::Push => return push(id, insn, state),
        Mnemonic::Pop => return pop(insn, state),
        Mnemonic::Leave => return leave(insn, state),
        Mnemonic::Enter | Mnemonic::Pushfq | Mnemonic::Popfq => return Err(refused(insn)),
        _ => {}
    }
    if let (Mnemonic::Cmp, false) = (insn.mnemonic(), state.dynamic) {
        begin_probe(ctx, insn, state)?;
    }
    if !state.dynamic && ctx.growing.contains(&key.at) {
        begin_dynamic(ctx, insn, state)?;
    }
    no_old_copy(ctx, insn, state)?;
    let writes = written(&mut ctx.info, insn);
    if writes >> Register::RSP.number() & 1 == 1 {
        return move_rsp(ctx, key, insn, state);
    }
    note_store(ctx.program, key.at, insn, state);
    let result = value_of(ctx, id, key.at, insn, state);
    state.forget(writes);
    if let Some((register, value)) = result {
        state.set(register, value);
        // What has been subtracted stays where it was.
        let size = if insn.op_count() == 2 && insn.op1_kind() == OpKind::Register { insn.op1_register() } else { Register::None };
        if matches!((insn.mnemonic(), value), (Mnemonic::Sub, Value::Below(_)))
            && size != register
            && matches!(state.register(size), Value::Unknown | Value::Computed)
        {
            state.set(size, Value::Size(id));
        }
    }
    Ok(())
}

fn refused(insn: &Instruction) -> Reason {
    ("unsupported-instruction", format!("`{insn}` cannot be carried over"))
}

/// Whether `insn` gives rsp a value that does not depend on what it was.
#[must_use]
pub fn resets_rsp(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        Mnemonic::Leave => true,
        Mnemonic::Mov => insn.op0_register() == Register::RSP && insn.op1_register() != Register::RSP,
        Mnemonic::Lea => {
            insn.op0_register() == Register::RSP && insn.memory_base() != Register::RSP && insn.memory_index() == Register::None
        }
        _ => false,
    }
}

fn push(id: u32, insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    if insn.stack_pointer_increment() != -8 {
        return Err(refused(insn));
    }
    whole_words(insn, state)?;
    if state.dynamic {
        return Ok(());
    }
    let value = match insn.op0_kind() {
        OpKind::Register => match state.register(insn.op0_register()) {
            Value::Entry => Value::Saved(insn.op0_register().number() as u8),
            value => value,
        },
        _ => Value::Unknown,
    };
    state.set_depth(state.depth + 8);
    Arc::make_mut(&mut state.frame).insert(-state.depth, Slot { pushes: vec![id], value });
    Ok(())
}

fn pop(insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    if insn.stack_pointer_increment() != 8 {
        return Err(refused(insn));
    }
    whole_words(insn, state)?;
    if state.dynamic {
        state.set(insn.op0_register(), Value::Unknown);
        return Ok(());
    }
    if state.depth < 8 {
        return Err(("reads-return-address", format!("`{insn}` takes the return address off the stack")));
    }
    let value = state.frame.get(&-state.depth).map_or(Value::Unknown, |s| s.value);
    state.set_depth(state.depth - 8);
    if insn.op0_kind() == OpKind::Register {
        if insn.op0_register().full_register() == Register::RSP {
            return Err(refused(insn));
        }
        state.set(insn.op0_register(), value);
    }
    Ok(())
}

/// Where rbp points to, from rsp at entry, if that is known and a multiple of 8.
fn frame_pointer(state: &State) -> Option<i32> {
    state.register(Register::RBP).stack().filter(|at| at % 8 == 0)
}

/// What needs a stack pointer that is a multiple of 8: pushes, pops, calls, and what makes the frame dynamic.
///
/// # Errors
/// If it is not one.
pub(crate) fn whole_words(insn: &Instruction, state: &State) -> Result<(), Reason> {
    if state.skew == 0 {
        return Ok(());
    }
    Err(("unknown-stack-pointer", format!("`{insn}` while the stack pointer is no multiple of 8")))
}

fn leave(insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    let Some(at) = frame_pointer(state) else {
        return Err(("unknown-stack-pointer", format!("`{insn}`: rbp is not known to point to a word of the frame")));
    };
    if at >= 0 {
        return Err(("reads-return-address", format!("`{insn}` takes the return address off the stack")));
    }
    let value = state.frame.get(&at).map_or(Value::Unknown, |s| s.value);
    state.dynamic = false;
    state.set_depth(-at - 8);
    state.set(Register::RBP, value);
    Ok(())
}

/// Any other instruction that writes rsp.
fn move_rsp(ctx: &mut Discovery<'_>, key: Key, insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    let immediate = |i| insn.try_immediate(i).ok().and_then(|v| i32::try_from(v.cast_signed()).ok());
    let by_register = insn.op_count() == 2 && insn.op1_kind() == OpKind::Register;
    let new = match insn.mnemonic() {
        Mnemonic::Sub | Mnemonic::Add
            if insn.op0_register() == Register::RSP && !by_register && insn.op1_kind() != OpKind::Memory =>
        {
            let by = immediate(1).ok_or_else(|| refused(insn))?;
            if state.dynamic {
                return Ok(());
            }
            Value::Stack(state.skew - state.depth + if insn.mnemonic() == Mnemonic::Add { by } else { -by })
        }
        Mnemonic::Sub if insn.op0_register() == Register::RSP && (by_register || insn.op1_kind() == OpKind::Memory) => {
            return begin_dynamic(ctx, insn, state);
        }
        Mnemonic::Mov if insn.op0_register() == Register::RSP && by_register => match state.register(insn.op1_register()) {
            Value::Below(origin) => {
                ctx.arena_base(origin);
                return begin_dynamic(ctx, insn, state);
            }
            Value::Unknown if state.dynamic => return Ok(()),
            value => value,
        },
        Mnemonic::Mov if insn.op0_register() == Register::RSP && insn.op1_kind() == OpKind::Memory => {
            match address(ctx.program, key.at, insn, state) {
                Address::Stack { offset, exact: true } => match state.frame.get(&offset).and_then(|s| s.value.stack()) {
                    Some(c) => Value::Stack(c),
                    _ if state.dynamic => return Ok(()),
                    _ => return Err(unknown_sp(insn)),
                },
                _ => return Err(unknown_sp(insn)),
            }
        }
        Mnemonic::Lea if insn.op0_register() == Register::RSP => match address(ctx.program, key.at, insn, state) {
            Address::Stack { offset, exact: true } => Value::Stack(offset),
            // From rsp itself, or from a copy of it that was made after the allocation.
            Address::Unknown
                if state.dynamic
                    && insn.memory_index() == Register::None
                    && (insn.memory_base() == Register::RSP
                        || insn.memory_base().is_gpr64() && state.register(insn.memory_base()) == Value::Unknown) =>
            {
                return Ok(());
            }
            _ => return Err(unknown_sp(insn)),
        },
        _ => return Err(unknown_sp(insn)),
    };
    let to = new.stack().ok_or_else(|| unknown_sp(insn))?;
    if to > 0 {
        return Err(("unknown-stack-pointer", format!("`{insn}` moves the stack pointer to {to} bytes from the return address")));
    }
    // Rounded up to whole words; never far from the greatest depth that the checker takes, or it is refused there.
    let depth = to.checked_neg().and_then(|d| d.checked_add(7)).ok_or_else(|| unknown_sp(insn))? & !7;
    state.dynamic = false;
    state.set_depth(depth);
    state.skew = to + depth;
    Ok(())
}

fn unknown_sp(insn: &Instruction) -> Reason {
    ("unknown-stack-pointer", format!("`{insn}` moves the stack pointer by an unknown amount"))
}

/// `sub %reg,%rsp` and its kin: from here on rsp stands for the arena word; the native stack keeps a static depth with room for what
/// `dynamic.rs` saves there and for stack arguments.
fn begin_dynamic(ctx: &Discovery<'_>, insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    whole_words(insn, state)?;
    if !state.dynamic {
        state.set_depth(state.depth + crate::dynamic::frame_bytes(ctx.dynamic_arguments));
        state.dynamic = true;
    }
    Ok(())
}

/// `cmp` of rsp with the end of memory about to be allocated: a probe loop for `alloca` starts here, rsp is virtual from now on.
fn begin_probe(ctx: &mut Discovery<'_>, insn: &Instruction, state: &mut State) -> Result<(), Reason> {
    let (a, b) = (insn.op0_register(), insn.op1_register());
    let other = if a == Register::RSP { b } else { a };
    if insn.op1_kind() == OpKind::Register
        && (a == Register::RSP || b == Register::RSP)
        && let Value::Below(origin) = state.register(other)
    {
        ctx.arena_base(origin);
        begin_dynamic(ctx, insn, state)?;
    }
    Ok(())
}

/// After an allocation, a copy of the stack pointer from before plus something unknown may mean the frame, or what was allocated below it,
/// which lies elsewhere here.
fn no_old_copy(ctx: &Discovery<'_>, insn: &Instruction, state: &State) -> Result<(), Reason> {
    match crate::dynamic::counted(&ctx.nodes, ctx.dynamic_arguments, insn, state) {
        Some(Counted::Unknown) => {
            Err(("unknown-stack-pointer", format!("`{insn}` counts from the stack pointer as it was before `alloca`")))
        }
        _ => Ok(()),
    }
}

/// A store into the frame changes what its slots hold.
fn note_store(program: &Program, at: CodeRef, insn: &Instruction, state: &mut State) {
    if insn.op_count() == 0 || insn.op0_kind() != OpKind::Memory || insn.mnemonic() == Mnemonic::Lea {
        return;
    }
    let size = i32::try_from(insn.memory_size().size()).unwrap_or(64).max(1);
    if let Address::Stack { offset, exact: true } = address(program, at, insn, state) {
        state.overwrite(offset, size);
        let stores_register = insn.mnemonic() == Mnemonic::Mov && insn.op1_kind() == OpKind::Register && size == 8;
        let value = if insn.op_count() == 2 { copied(state, insn.op1_register()) } else { Value::Unknown };
        let kept =
            value.stack().is_some() || matches!(value, Value::Below(_) | Value::Size(_) | Value::Minus(_) | Value::Computed);
        if stores_register && kept {
            let absent = Slot { pushes: vec![crate::values::NOT_PUSHED], value };
            Arc::make_mut(&mut state.frame).entry(offset).or_insert(absent).value = value;
        }
    }
}

/// What a register has to give; rsp gives a copy of itself.
fn copied(state: &State, register: Register) -> Value {
    match state.register(register) {
        Value::Stack(c) if register == Register::RSP => Value::Copy(c),
        value => value,
    }
}

/// The register that `insn` gives a known value.
fn value_of(ctx: &mut Discovery<'_>, id: u32, at: CodeRef, insn: &Instruction, state: &State) -> Option<(Register, Value)> {
    let to = insn.op0_register();
    let from_register = insn.op_count() == 2 && insn.op1_kind() == OpKind::Register;
    let value = match insn.mnemonic() {
        Mnemonic::Neg if to.is_gpr64() => match state.register(to) {
            Value::Size(id) => Value::Minus(id),
            _ => Value::Unknown,
        },
        Mnemonic::Mov if from_register && to.is_gpr64() => match copied(state, insn.op1_register()) {
            Value::Entry if insn.op1_register() != to => Value::Unknown,
            value => value,
        },
        Mnemonic::Mov if from_register && to.is_gpr32() => only_relative(state.register(insn.op1_register().full_register())),
        Mnemonic::Mov | Mnemonic::Movsxd if insn.op1_kind() == OpKind::Memory && to.is_gpr() => {
            let size = insn.memory_size().size() as u32;
            load(ctx, at, insn, state, size)
        }
        Mnemonic::Movsxd if from_register => only_relative(state.register(insn.op1_register().full_register())),
        Mnemonic::Cdqe => return Some((Register::RAX, only_relative(state.register(Register::RAX)))),
        Mnemonic::Mov if to.is_gpr() && insn.op_count() == 2 => immediate_address(ctx.program, at, insn),
        Mnemonic::Lea if to.is_gpr64() => lea(ctx, at, insn, state),
        Mnemonic::Sub
            if (from_register || insn.op1_kind() == OpKind::Memory)
                && to.is_gpr64()
                && !state.dynamic
                && state.register(to).stack() == Some(-state.depth) =>
        {
            Value::Below(id)
        }
        Mnemonic::And if to.is_gpr64() && !from_register && matches!(state.register(to), Value::Below(_)) => state.register(to),
        Mnemonic::Add if from_register && to.is_gpr64() => sum(ctx, state.register(to), state.register(insn.op1_register())),
        Mnemonic::Add | Mnemonic::Sub if to.is_gpr64() && insn.op1_kind() != OpKind::Memory => {
            let by = insn.try_immediate(1).ok()?.cast_signed();
            let by = if insn.mnemonic() == Mnemonic::Add { by } else { by.wrapping_neg() };
            match state.register(to) {
                _ if immediate_reloc(ctx.program, at, insn).is_some() => Value::Computed,
                Value::Stack(c) | Value::Copy(c) => i32::try_from(i64::from(c) + by).map_or(Value::Unknown, Value::Stack),
                Value::Address(s, o) => Value::Address(s, o.wrapping_add(by)),
                below @ Value::Below(_) => below,
                _ => Value::Unknown,
            }
        }
        _ => return None,
    };
    // A 32-bit destination keeps table entries and addresses below 4 GiB, nothing else.
    let register = to.full_register();
    Some((register, value)).filter(|_| to.is_gpr64() || to.is_gpr32())
}

fn only_relative(value: Value) -> Value {
    if let Value::Relative(_) = value { value } else { Value::Unknown }
}

fn immediate_address(program: &Program, at: CodeRef, insn: &Instruction) -> Value {
    let Some(reloc) = immediate_reloc(program, at, insn) else { return Value::Unknown };
    match exact_target(program, &reloc) {
        Some((section, offset)) if program.section(section).kind != SectionKind::Text => {
            Value::Address(section, offset.cast_signed())
        }
        _ => Value::Unknown,
    }
}

fn lea(ctx: &mut Discovery<'_>, at: CodeRef, insn: &Instruction, state: &State) -> Value {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if index != Register::None && base != Register::None && insn.memory_index_scale() == 1 && insn.memory_displacement64() == 0 {
        let value = sum(ctx, state.register(base), state.register(index));
        if let Value::Code(_) = value {
            return value;
        }
    }
    match address(ctx.program, at, insn, state) {
        Address::Stack { offset, exact: true } => Value::Stack(offset),
        Address::Data { at: (section, offset), exact: true } if ctx.program.section(section).kind != SectionKind::Text => {
            Value::Address(section, offset)
        }
        Address::Data { exact: false, .. } => Value::Computed,
        _ => Value::Unknown,
    }
}

/// Table entry plus table address.
fn sum(ctx: &Discovery<'_>, a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Relative(set), Value::Address(section, offset)) | (Value::Address(section, offset), Value::Relative(set)) => {
            let fits = |t: &crate::tables::Table| t.section == section && i64::try_from(t.offset) == Ok(offset);
            let all = ctx.tables.iter().enumerate().all(|(i, t)| set >> i & 1 == 0 || fits(t));
            if all { Value::Code(set) } else { Value::Computed }
        }
        _ => Value::Computed,
    }
}

/// A stack probe loop (`sub $4096,%rsp; or $0,(%rsp); cmp %r,%rsp; jne`): the place behind it and the depth there.
#[must_use]
pub fn probe_loop(program: &Program, at: CodeRef, insn: &Instruction, state: &State) -> Option<(CodeRef, i32)> {
    let step = insn.mnemonic() == Mnemonic::Sub && insn.op0_register() == Register::RSP && insn.op1_kind() != OpKind::Register;
    if !step || insn.try_immediate(1).ok() != Some(4096) || state.dynamic || state.skew != 0 {
        return None;
    }
    let next = |at: CodeRef, i: &Instruction| CodeRef { offset: at.offset + i.len() as u64, ..at };
    let touch_at = next(at, insn);
    let touch = decode(program, touch_at);
    let touches = touch.op_count() == 2
        && touch.op0_kind() == OpKind::Memory
        && touch.memory_base() == Register::RSP
        && touch.try_immediate(1).ok() == Some(0)
        && matches!(touch.mnemonic(), Mnemonic::Or | Mnemonic::Mov);
    let compare_at = next(touch_at, &touch);
    let compare = decode(program, compare_at);
    let (a, b) = (compare.op0_register(), compare.op1_register());
    let limit = if a == Register::RSP { b } else { a };
    let branch_at = next(compare_at, &compare);
    let branch = decode(program, branch_at);
    let loops = branch.mnemonic() == Mnemonic::Jne && branch.near_branch_target() == at.offset;
    if !touches || compare.mnemonic() != Mnemonic::Cmp || (a != Register::RSP && b != Register::RSP) || !loops {
        return None;
    }
    match state.register(limit) {
        Value::Stack(c) | Value::Copy(c) if c < -state.depth && (c + state.depth) % 4096 == 0 => {
            Some((next(branch_at, &branch), -c))
        }
        _ => None,
    }
}
