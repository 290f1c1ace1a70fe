//! `alloca` and variable-length arrays (DESIGN §4): the native stack keeps its static depth, rsp stands for a word of window memory.
//!
//! The arena word holds the virtual stack pointer of whichever function allocated last; memory comes from the arena, downwards. A function that
//! starts to allocate saves the word in its own frame and puts it back when it returns to a known depth. Stack arguments of calls made
//! meanwhile lie at the virtual stack pointer and are copied to where the callee looks for them.

use crate::body::{Body, Flow, Node};
use crate::plan::branch::copy_memory;
use crate::plan::{Borrow, Borrowed, Planned, Planner, encode, ok};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Bytes of frame that a function with `alloca` needs below its static frame: the saved word and room for stack arguments, keeping rsp's
/// alignment.
#[must_use]
pub fn frame_bytes(arguments: i32) -> i32 {
    16 + (arguments + 15) / 16 * 16
}

/// An upper bound of the bytes of stack arguments that calls after an allocation pass.
#[must_use]
pub fn argument_bytes(body: &Body) -> i32 {
    let mut pushes = 0;
    let mut stores = 0;
    for node in body.nodes.iter().filter(|n| n.state.dynamic) {
        let insn = &node.insn;
        if insn.mnemonic() == Mnemonic::Push {
            pushes += 8;
        } else if insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory && insn.memory_base() == Register::RSP {
            let disp = i32::try_from(insn.memory_displacement64().cast_signed()).unwrap_or(0);
            let end = disp.saturating_add(i32::try_from(insn.memory_size().size()).unwrap_or(64));
            stores = stores.max(if (0..512).contains(&disp) { end } else { 0 });
        }
    }
    pushes + stores
}

impl Planner<'_> {
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

    /// `lea d(%rsp),%rsp` while rsp is virtual: moves it without touching flags.
    fn dynamic_lea(&mut self, node: &Node, scratch: Borrowed) -> Planned<()> {
        let by = i32::try_from(node.insn.memory_displacement64().cast_signed())
            .map_err(|_| ("address-range", "stack move".to_owned()))?;
        self.shift_word(scratch, by)
    }

    fn shift_word(&mut self, scratch: Borrowed, by: i32) -> Planned<()> {
        self.keep(scratch, 0)?;
        let load = ok(encode::load(scratch.register, Register::None, self.word()))?;
        let lea = ok(encode::lea(scratch.register, scratch.register, Register::None, 1, by))?;
        let store = ok(encode::store(scratch.register, Register::None, self.word()))?;
        self.bytes(load);
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
        let insn = self.body.nodes[id as usize].insn;
        let top = self.borrow(id, &insn, &CALL_REGISTERS);
        let word = self.borrow(id, &insn, &[&CALL_REGISTERS[..], &[top.register]].concat());
        self.keep(top, 0)?;
        self.keep(word, 1)?;
        let load = ok(encode::load(encode::narrow(top.register), Register::None, self.word()))?;
        self.bytes(load);
        for at in (0..self.body.dynamic_arguments).step_by(8) {
            let load = ok(encode::load(word.register, top.register, at))?;
            let store = ok(encode::store(word.register, Register::RSP, self.k() + at))?;
            self.bytes(load);
            self.bytes(store);
        }
        self.give_back(word, 1)?;
        self.give_back(top, 0)
    }
}

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
