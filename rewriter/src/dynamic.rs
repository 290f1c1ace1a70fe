//! `alloca` and variable-length arrays (DESIGN §4): the native stack keeps its static depth, rsp stands for a word of window memory.
//!
//! The arena word holds the virtual stack pointer of whichever function allocated last; memory comes from the arena, downwards. A function that
//! starts to allocate saves the word in its own frame and puts it back when it returns to a known depth. Stack arguments of calls made
//! meanwhile lie at the virtual stack pointer and are copied to where the callee looks for them.

use crate::body::{Body, Flow, Key, Node};
use crate::plan::branch::copy_memory;
use crate::plan::{Borrow, Borrowed, Piece, Planned, Planner, Target, encode, ok};
use crate::values::{State, Value};
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of frame that a function with `alloca` needs below its static frame: the saved word and room for stack arguments, keeping rsp's
/// alignment.
#[must_use]
pub fn frame_bytes(arguments: i32) -> i32 {
    16 + (arguments + 15) / 16 * 16
}

/// Most bytes of stack arguments. What may be more is refused: an allocation of a constant size looks like room for them.
pub const MOST: i32 = 64 << 10;
/// Bytes of stack arguments that are copied without a loop.
const FEW: i32 = 256;

/// Upper bounds of the bytes of stack arguments that calls after an allocation pass, by node: what has been pushed, stored above rsp, or made room for
/// since rsp moved by an unknown amount, and has not been taken back. Compilers that keep room for all calls below what they allocate name its end as
/// the address of what they allocated, plus less than a word where they round that up. Where ways meet, what only some of them have is no argument:
/// arguments that wait for their call lie at the same depth on all.
#[must_use]
pub fn arguments(body: &Body) -> BTreeMap<Key, i32> {
    let mut bytes: Vec<Option<i32>> = body.nodes.iter().map(|n| (!n.state.dynamic).then_some(0)).collect();
    let mut work: BTreeSet<u32> = (0..body.nodes.len() as u32).filter(|&i| bytes[i as usize].is_some()).collect();
    while let Some(id) = work.pop_first() {
        let node = &body.nodes[id as usize];
        let before = bytes[id as usize].unwrap_or(0).max(named_by_sum(&body.nodes, id as usize));
        let after = if node.state.dynamic { arguments_after(&node.insn, before) } else { 0 };
        for next in body.successors(node) {
            let known = &mut bytes[next as usize];
            if known.is_none_or(|known| after < known) {
                *known = Some(after);
                work.insert(next);
            }
        }
    }
    let calls = body.nodes.iter().zip(bytes).filter(|(node, _)| node.state.dynamic && node.callee().is_some());
    calls.map(|(node, bytes)| (node.key, (bytes.unwrap_or(0).min(MOST + 1) + 7) & !7)).collect()
}

/// Bytes of possible stack arguments behind `insn`, if there were `before` in front of it.
fn arguments_after(insn: &Instruction, before: i32) -> i32 {
    let from_rsp = insn.op_count() > 0 && insn.memory_base() == Register::RSP && insn.memory_index() == Register::None;
    let named = |bytes: usize| {
        let end = insn.memory_displacement64().cast_signed().saturating_add(bytes as i64);
        i32::try_from(end).unwrap_or(0).max(0)
    };
    match insn.mnemonic() {
        Mnemonic::Push => before.saturating_add(8),
        Mnemonic::Pop => (before - 8).max(0),
        _ if insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::RSP => match room_made(insn) {
            Some(room) => before.saturating_add(room).max(0),
            None if matches!(insn.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) => before,
            // From a copy of rsp.
            None if insn.mnemonic() == Mnemonic::Lea => {
                i32::try_from(insn.memory_displacement64().cast_signed().saturating_neg()).unwrap_or(0).max(0)
            }
            _ => 0,
        },
        Mnemonic::Lea if from_rsp => before.max(named(0) & !7),
        _ if from_rsp && insn.op0_kind() == OpKind::Memory => before.max(named(insn.memory_size().size().max(1))),
        _ => before,
    }
}

/// `mov %rsp,%r` and soon `add $n,%r`: n, as `lea n(%rsp),%r` would name it.
fn named_by_sum(nodes: &[Node], id: usize) -> i32 {
    let insn = &nodes[id].insn;
    if insn.mnemonic() != Mnemonic::Mov || insn.op1_register() != Register::RSP || insn.op0_kind() != OpKind::Register {
        return 0;
    }
    let behind = nodes[id + 1..].iter().take(NEAR).map(|n| &n.insn);
    let mut sums = behind.filter(|i| i.mnemonic() == Mnemonic::Add && i.op0_register() == insn.op0_register());
    let sum = sums.next().and_then(|i| i.try_immediate(1).ok()).and_then(|sum| i32::try_from(sum).ok());
    sum.unwrap_or(0).max(0) & !7
}

/// Instructions behind a copy of rsp that are looked at.
const NEAR: usize = 16;

/// Bytes by which `sub $n,%rsp`, `add $-n,%rsp` or `lea -n(%rsp),%rsp` moves rsp down; negative if up.
fn room_made(insn: &Instruction) -> Option<i32> {
    if insn.op_count() != 2 || insn.op0_kind() != OpKind::Register || insn.op0_register() != Register::RSP {
        return None;
    }
    let immediate = || insn.try_immediate(1).ok().map(u64::cast_signed);
    let down = match insn.mnemonic() {
        Mnemonic::Sub => immediate()?,
        Mnemonic::Add => immediate()?.checked_neg()?,
        Mnemonic::Lea if insn.memory_base() == Register::RSP && insn.memory_index() == Register::None => {
            insn.memory_displacement64().cast_signed().checked_neg()?
        }
        _ => return None,
    };
    i32::try_from(down).ok()
}

/// What an instruction computes from a copy of the stack pointer as it was before an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The address of what was allocated, or a place in it: the copy is in this register, and the other one holds the size as the allocation
    /// (the node of this number) subtracted it, or its negative.
    Allocated(Register, u32),
    /// A place in the frame, or in what was allocated.
    Unknown,
}

/// Whether `insn` adds something unknown to a copy of the stack pointer as it was before an allocation. Below the copy lies what was allocated,
/// in the order of the allocations; here that lies below the arena word that the frame keeps.
#[must_use]
pub fn counted(nodes: &[Node], arguments: i32, insn: &Instruction, state: &State) -> Option<Counted> {
    if !state.dynamic {
        return None;
    }
    let before = frame_bytes(arguments) - state.depth;
    let is_copy = |r: Register| r.is_gpr64() && r != Register::RSP && state.register(r) == Value::Copy(before);
    let down = |copy: Register, size: Value| match size {
        Value::Size(id) | Value::Minus(id) if nodes[id as usize].state.depth == -before => Counted::Allocated(copy, id),
        _ => Counted::Unknown,
    };
    let minus = |r: Register| if let value @ Value::Minus(_) = state.register(r) { value } else { Value::Unknown };
    let size = |r: Register| if let value @ Value::Size(_) = state.register(r) { value } else { Value::Unknown };
    let registers = insn.op_count() == 2 && insn.op0_kind() == OpKind::Register && insn.op1_kind() == OpKind::Register;
    let (to, from) = (insn.op0_register(), insn.op1_register());
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let strange = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc | Mnemonic::Xlatb);
    match insn.mnemonic() {
        Mnemonic::Add if registers && is_copy(to) => Some(down(to, minus(from))),
        Mnemonic::Sub if registers && is_copy(to) => Some(down(to, size(from))),
        Mnemonic::Add | Mnemonic::Sub if registers && is_copy(from) => Some(Counted::Unknown),
        _ if index == Register::None || base == Register::None || !is_copy(base) && !is_copy(index) => None,
        _ if insn.memory_index_scale() != 1 || strange => Some(Counted::Unknown),
        _ if is_copy(base) => Some(down(base, minus(index))),
        _ => Some(down(index, minus(base))),
    }
}

impl Planner<'_> {
    /// The register that `insn` of `node` counts down from, if that is where allocations began.
    pub(crate) fn counted_from(&self, node: &Node, insn: &Instruction) -> Planned<Option<Register>> {
        let Some(Counted::Allocated(copy, by)) = counted(&self.body.nodes, self.body.dynamic_arguments, insn, &node.state) else {
            return Ok(None);
        };
        if !self.body.arena_bases.contains(&self.body.nodes[by as usize].key) {
            return Err(("unknown-stack-pointer", format!("`{insn}` counts from the stack pointer as it was before `alloca`")));
        }
        Ok(Some(copy))
    }

    /// The code that gives `to` the place where allocations began here.
    pub(crate) fn begin_of_allocations(&mut self, to: Register) -> Planned<Vec<u8>> {
        self.note("what was allocated first: below the arena word that the frame keeps");
        ok(encode::load(encode::narrow(to), Register::RSP, self.saved()))
    }

    fn word(&self) -> i32 {
        self.env.space.arena_word.cast_signed()
    }

    /// Where the frame keeps the caller's arena word, as a displacement from rsp plus K.
    fn saved(&self) -> i32 {
        self.k() + frame_bytes(self.body.dynamic_arguments) - 16
    }

    /// An instruction that moves rsp while or before it is virtual.
    pub(crate) fn dynamic_move(&mut self, id: u32, node: &Node) -> Planned<()> {
        self.note("alloca: memory from the arena, native depth stays static");
        let insn = &node.insn;
        let scratch = self.borrow(id, insn, &[]);
        if !node.state.dynamic {
            self.enter(scratch)?;
        }
        let place = encode::window(Register::None, self.word());
        let change = match insn.mnemonic() {
            Mnemonic::Mov if insn.op1_kind() == OpKind::Memory => {
                return self.word_from_memory(id, node, scratch, Code::Mov_rm64_r64);
            }
            Mnemonic::Mov => Instruction::with2(Code::Mov_rm64_r64, place, insn.op1_register()),
            Mnemonic::Sub if insn.op1_kind() == OpKind::Register => {
                Instruction::with2(Code::Sub_rm64_r64, place, insn.op1_register())
            }
            Mnemonic::Sub if insn.op1_kind() == OpKind::Memory => {
                return self.word_from_memory(id, node, scratch, Code::Sub_rm64_r64);
            }
            Mnemonic::Sub => Instruction::with2(Code::Sub_rm64_imm32, place, insn.try_immediate(1).unwrap_or(0) as i32),
            Mnemonic::Add if insn.op1_kind() != OpKind::Register => {
                Instruction::with2(Code::Add_rm64_imm32, place, insn.try_immediate(1).unwrap_or(0) as i32)
            }
            Mnemonic::Lea => return self.dynamic_lea(node, scratch),
            _ => return Err(("unknown-stack-pointer", format!("`{insn}` after alloca"))),
        };
        let bytes = ok(change.and_then(|i| encode::encode(&i)))?;
        self.bytes(bytes);
        Ok(())
    }

    /// `sub mem,%rsp`: the size of what is allocated lies in memory. `mov mem,%rsp`: the stack pointer as it was at a scope's beginning does.
    fn word_from_memory(&mut self, id: u32, node: &Node, scratch: Borrowed, change: Code) -> Planned<()> {
        let mut load = ok(Instruction::with2(Code::Mov_r64_rm64, scratch.register, encode::window(Register::None, 0)))?;
        copy_memory(&node.insn, &mut load);
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut load, &mut borrow)?;
        if node.insn.memory_base() == Register::RSP || !borrow.0.is_empty() {
            return Err(("unknown-stack-pointer", format!("`{}` takes a word out of the frame that it changes", node.insn)));
        }
        let place = encode::window(Register::None, self.word());
        let value = ok(encode::encode(&load))?;
        let change = ok(Instruction::with2(change, place, scratch.register).and_then(|i| encode::encode(&i)))?;
        self.keep(scratch, 0)?;
        self.bytes(value);
        self.bytes(change);
        self.give_back(scratch, 0)
    }

    /// From here on rsp is virtual: keeps the caller's arena word in the frame.
    fn enter(&mut self, scratch: Borrowed) -> Planned<()> {
        self.move_by(-frame_bytes(self.body.dynamic_arguments))?;
        self.keep(scratch, 0)?;
        let load = ok(encode::load(scratch.register, Register::None, self.word()))?;
        let save = ok(encode::store(scratch.register, Register::RSP, self.saved()))?;
        self.bytes(load);
        self.bytes(save);
        self.give_back(scratch, 0)
    }

    /// If rsp becomes virtual with an instruction that only compares it (a probe loop), does that first and gives the node as it is then.
    pub(crate) fn enter_with(&mut self, id: u32, node: &Node) -> Planned<Option<Node>> {
        let Flow::Next(next) = &node.flow else { return Ok(None) };
        let after = &self.body.nodes[self.body.node(*next) as usize].state;
        if node.state.dynamic || !after.dynamic {
            return Ok(None);
        }
        let scratch = self.borrow(id, &node.insn, &[]);
        self.enter(scratch)?;
        let mut entered = node.clone();
        entered.state.dynamic = true;
        Ok(Some(entered))
    }

    /// `lea d(%rsp),%rsp`, or from a copy of rsp, while rsp is virtual: moves it without touching flags.
    fn dynamic_lea(&mut self, node: &Node, scratch: Borrowed) -> Planned<()> {
        let by = i32::try_from(node.insn.memory_displacement64().cast_signed())
            .map_err(|_| ("address-range", "stack move".to_owned()))?;
        match node.insn.memory_base() {
            Register::RSP => self.shift_word(scratch, by),
            copy => self.set_word(scratch, copy, by),
        }
    }

    fn shift_word(&mut self, scratch: Borrowed, by: i32) -> Planned<()> {
        self.set_word(scratch, Register::RSP, by)
    }

    /// Makes the stack pointer `from` plus `by`; rsp stands for what it is.
    fn set_word(&mut self, scratch: Borrowed, from: Register, by: i32) -> Planned<()> {
        self.keep(scratch, 0)?;
        let mut base = from;
        if from == Register::RSP {
            let load = ok(encode::load(scratch.register, Register::None, self.word()))?;
            self.bytes(load);
            base = scratch.register;
        }
        let lea = ok(encode::lea(scratch.register, base, Register::None, 1, by))?;
        let store = ok(encode::store(scratch.register, Register::None, self.word()))?;
        self.bytes(lea);
        self.bytes(store);
        self.give_back(scratch, 0)
    }

    /// `push` and `pop` while rsp is virtual, and `leave` out of it.
    pub(crate) fn dynamic_push_pop(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        if insn.mnemonic() == Mnemonic::Leave {
            return self.leave(id, node);
        }
        self.note("push or pop after alloca: through the arena word");
        let scratch = self.borrow(id, insn, &[]);
        if insn.mnemonic() == Mnemonic::Pop {
            if insn.op0_kind() != OpKind::Register {
                return Err(("unsupported-instruction", format!("`{insn}` pops into memory")));
            }
            self.keep(scratch, 1)?;
            let top = ok(encode::load(encode::narrow(scratch.register), Register::None, self.word()))?;
            let value = ok(encode::load(insn.op0_register(), scratch.register, 0))?;
            self.bytes(top);
            self.bytes(value);
            self.give_back(scratch, 1)?;
            return self.shift_word(scratch, 8);
        }
        self.shift_word(scratch, -8)?;
        self.keep(scratch, 1)?;
        let top = ok(encode::load(encode::narrow(scratch.register), Register::None, self.word()))?;
        let store = match insn.op0_kind() {
            OpKind::Register => ok(encode::store(insn.op0_register(), scratch.register, 0))?,
            OpKind::Memory => return self.push_from_memory(id, node, scratch),
            _ => {
                let value = self.pushed_immediate(node)?;
                let place = encode::window(scratch.register, 0);
                ok(Instruction::with2(Code::Mov_rm64_imm32, place, value).and_then(|i| encode::encode(&i)))?
            }
        };
        self.bytes(top);
        self.bytes(store);
        self.give_back(scratch, 1)
    }

    /// The rest of `push mem`: rsp has moved, `top` is kept already.
    fn push_from_memory(&mut self, id: u32, node: &Node, top: Borrowed) -> Planned<()> {
        let insn = &node.insn;
        let value = self.borrow(id, insn, &[top.register]);
        let mut load = ok(Instruction::with2(Code::Mov_r64_rm64, value.register, encode::window(Register::None, 0)))?;
        copy_memory(insn, &mut load);
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut load, &mut borrow)?;
        if insn.memory_base() == Register::RSP || !borrow.0.is_empty() {
            return Err(("unsupported-instruction", format!("`{insn}` after alloca")));
        }
        self.keep(value, 2)?;
        for code in [
            encode::encode(&load),
            encode::load(encode::narrow(top.register), Register::None, self.word()),
            encode::store(value.register, top.register, 0),
        ] {
            let code = ok(code)?;
            self.bytes(code);
        }
        self.give_back(value, 2)?;
        self.give_back(top, 1)
    }

    /// Puts the caller's arena word back, if rsp is virtual at `node`. Leaves flags alone; rsp is still at the dynamic depth.
    pub(crate) fn end_dynamic(&mut self, node: &Node) -> Planned<()> {
        if !node.state.dynamic {
            return Ok(());
        }
        let id = self.body.node(node.key);
        let scratch = self.borrow(id, &node.insn, &[]);
        self.keep(scratch, 0)?;
        let load = ok(encode::load(scratch.register, Register::RSP, self.saved()))?;
        let store = ok(encode::store(scratch.register, Register::None, self.word()))?;
        self.bytes(load);
        self.bytes(store);
        self.give_back(scratch, 0)
    }

    /// Copies what may be stack arguments to where a callee looks for them: just above its return address.
    pub(crate) fn copy_arguments(&mut self, id: u32) -> Planned<()> {
        let node = &self.body.nodes[id as usize];
        let bytes = self.body.call_arguments.get(&node.key).copied().unwrap_or(0);
        if bytes == 0 {
            return Ok(());
        }
        let insn = node.insn;
        if bytes > MOST {
            let message = format!("`{insn}`: more than {MOST} bytes below what `alloca` gave may be its stack arguments");
            return Err(("unsupported-instruction", message));
        }
        let top = self.borrow(id, &insn, &CALL_REGISTERS);
        let word = self.borrow(id, &insn, &[&CALL_REGISTERS[..], &[top.register]].concat());
        self.keep(top, 0)?;
        self.keep(word, 1)?;
        let load = ok(encode::load(encode::narrow(top.register), Register::None, self.word()))?;
        self.bytes(load);
        if bytes > FEW && self.live.before[id as usize].flags == 0 {
            let count = self.borrow(id, &insn, &[&CALL_REGISTERS[..], &[top.register, word.register]].concat());
            self.keep(count, 2)?;
            self.copy_words(top.register, word.register, count.register, bytes)?;
            self.give_back(count, 2)?;
        } else {
            for at in (0..bytes).step_by(8) {
                let load = ok(encode::load(word.register, top.register, at))?;
                let store = ok(encode::store(word.register, Register::RSP, self.k() + at))?;
                self.bytes(load);
                self.bytes(store);
            }
        }
        self.give_back(word, 1)?;
        self.give_back(top, 0)
    }

    /// A loop that copies `bytes` from `top` to the native stack pointer's place on the data stack, the last word first. Changes flags.
    fn copy_words(&mut self, top: Register, word: Register, count: Register, bytes: i32) -> Planned<()> {
        let again = self.label();
        let at = |base, disp| {
            let size = encode::displacement_size(disp, base);
            MemoryOperand::new(encode::narrow(base), encode::narrow(count), 1, i64::from(disp), size, false, Register::GS)
        };
        let code = |insn: Result<Instruction, iced_x86::IcedError>| ok(insn.and_then(|i| encode::encode(&i)));
        self.bytes(ok(encode::set(count, bytes.cast_unsigned()))?);
        self.piece(Piece::Label(again));
        self.bytes(code(Instruction::with2(Code::Mov_r64_rm64, word, at(top, -8)))?);
        self.bytes(code(Instruction::with2(Code::Mov_rm64_r64, at(Register::RSP, self.k() - 8), word))?);
        self.bytes(code(Instruction::with2(Code::Sub_rm32_imm8, encode::narrow(count), 8))?);
        self.piece(Piece::Jump(Some(NOT_EQUAL), Target::Label(again)));
        Ok(())
    }
}

/// Condition `ne`.
const NOT_EQUAL: u8 = 5;

/// Registers that carry arguments into a call, and r11, into which the target of `call *mem` has been loaded.
const CALL_REGISTERS: [Register; 9] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
    Register::RAX,
    Register::R10,
    Register::R11,
];
