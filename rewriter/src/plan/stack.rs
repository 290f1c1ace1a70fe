//! The mirrored stack (DESIGN §4): which pushes stay on the native stack, and what everything else that moves rsp becomes.

use super::{Borrow, Piece, Planned, Planner, encode, ok};
use crate::body::{Body, Flow, Node};
use crate::liveness::{CALLEE_SAVED, Liveness};
use crate::program::Program;
use crate::transfer::{Address, address};
use crate::values::{NOT_PUSHED, Value};
use cordon_checker::layout::HINT_SLOTS;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Which pushes and pops use the native stack itself.
#[derive(Debug, Default)]
pub struct Native {
    /// Per node: a `push` that stays one.
    push: Vec<bool>,
    /// Per node: a `pop` (or the pop in `leave`) that stays one.
    pop: Vec<bool>,
}

impl Native {
    /// The natively pushed slots before `node`: bit i = i-th slot below the return address.
    #[must_use]
    pub fn set(&self, node: &Node) -> u64 {
        let mut set = 0;
        for (offset, slot) in node.state.frame.iter() {
            let index = -offset / 8 - 1;
            let native = slot.pushes.iter().all(|&p| p != NOT_PUSHED && self.push[p as usize]);
            if native && index < HINT_SLOTS.cast_signed() {
                set |= 1 << index;
            }
        }
        set
    }

    /// Whether node `id` keeps its push.
    #[must_use]
    pub fn keeps_push(&self, id: u32) -> bool {
        self.push[id as usize]
    }

    /// Whether node `id` keeps its pop.
    #[must_use]
    pub fn keeps_pop(&self, id: u32) -> bool {
        self.pop[id as usize]
    }
}

/// What a push is for, as far as it can stay native.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Saves a callee-saved register that still holds the caller's value; only ever popped back into it.
    Save(Register),
    /// Pushes a value that means nothing (rax at entry): room or alignment; only popped into dead registers.
    Room,
    /// A value that somebody may read through memory.
    Data,
}

/// Decides for every push of `body`. Conservative: a push as a store on the data stack is always right.
#[must_use]
pub fn classify(program: &Program, body: &Body, live: &Liveness) -> Native {
    let n = body.nodes.len();
    let mut role: Vec<Role> = body.nodes.iter().map(role_of).collect();
    if let Some(evicted) = &body.evicted {
        (0..n).filter(|&i| evicted.is_room(i as u32)).for_each(|i| role[i] = Role::Data);
    }
    let mut join = Joined((0..n as u32).collect());
    for (id, node) in body.nodes.iter().enumerate() {
        demote_addressed(program, node, &mut role);
        let Some((register, pushes)) = popped(node) else { continue };
        let dead = register.is_gpr64() && !live.after[id].has(register);
        for &push in &pushes {
            join.unite(pushes[0], push);
            let fits = match role[push as usize] {
                Role::Save(saved) => saved == register,
                Role::Room => dead,
                Role::Data => false,
            };
            if !fits {
                role[push as usize] = Role::Data;
            }
        }
    }
    let all_pushed = |pushes: &[u32]| !pushes.contains(&NOT_PUSHED);
    let mut bad = vec![false; n];
    for (id, node) in body.nodes.iter().enumerate() {
        if node.insn.mnemonic() == Mnemonic::Push && role[id] == Role::Data {
            bad[join.find(id as u32) as usize] = true;
        }
        if let Some((_, pushes)) = popped(node)
            && !all_pushed_raw(node)
        {
            for push in pushes {
                bad[join.find(push) as usize] = true;
            }
        }
    }
    let push: Vec<bool> = (0..n).map(|i| role[i] != Role::Data && !bad[join.find(i as u32) as usize]).collect();
    let pop = body
        .nodes
        .iter()
        .map(|node| raw_pushes(node).is_some_and(|p| !p.is_empty() && all_pushed(&p) && p.iter().all(|&i| push[i as usize])))
        .collect();
    Native { push, pop }
}

fn role_of(node: &Node) -> Role {
    let insn = &node.insn;
    let register = insn.op0_register();
    let index = node.state.depth / 8;
    if insn.mnemonic() != Mnemonic::Push
        || insn.op0_kind() != OpKind::Register
        || node.state.dynamic
        || index >= HINT_SLOTS.cast_signed()
    {
        return Role::Data;
    }
    match (node.state.register(register), register) {
        (Value::Entry, Register::RAX) => Role::Room,
        (Value::Entry, r) if r.is_gpr64() && CALLEE_SAVED >> r.number() & 1 == 1 => Role::Save(r),
        _ => Role::Data,
    }
}

/// A saved register that is also accessed as memory (`mov -8(%rbp),%rbx`) is data.
fn demote_addressed(program: &Program, node: &Node, role: &mut [Role]) {
    let insn = &node.insn;
    let accesses = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) && insn.mnemonic() != Mnemonic::Lea;
    if !accesses || matches!(node.flow, Flow::Trap) {
        return;
    }
    let Address::Stack { offset, .. } = address(program, node.key.at, insn, &node.state) else { return };
    let size = i32::try_from(insn.memory_size().size()).unwrap_or(64).max(1);
    for (_, slot) in node.state.frame.range(offset - 7..offset + size) {
        for &push in slot.pushes.iter().filter(|p| **p != NOT_PUSHED) {
            if let Role::Save(_) = role[push as usize] {
                role[push as usize] = Role::Data;
            }
        }
    }
}

/// The frame offset that `pop` or `leave` takes its value from.
fn popped_slot(node: &Node) -> Option<(i32, Register)> {
    match node.insn.mnemonic() {
        // A pop into memory names no register, so it never matches a saved one.
        Mnemonic::Pop if !node.state.dynamic => Some((-node.state.depth, node.insn.op0_register())),
        Mnemonic::Leave => match node.state.register(Register::RBP) {
            Value::Stack(at) | Value::Copy(at) => Some((at, Register::RBP)),
            _ => None,
        },
        _ => None,
    }
}

fn raw_pushes(node: &Node) -> Option<Vec<u32>> {
    let (at, _) = popped_slot(node)?;
    Some(node.state.frame.get(&at).map_or_else(|| vec![NOT_PUSHED], |s| s.pushes.clone()))
}

fn all_pushed_raw(node: &Node) -> bool {
    raw_pushes(node).is_some_and(|p| !p.contains(&NOT_PUSHED))
}

fn popped(node: &Node) -> Option<(Register, Vec<u32>)> {
    let (_, register) = popped_slot(node)?;
    let pushes: Vec<u32> = raw_pushes(node)?.into_iter().filter(|p| *p != NOT_PUSHED).collect();
    (!pushes.is_empty()).then_some((register, pushes))
}

/// Union-find over pushes that one pop may take.
struct Joined(Vec<u32>);

impl Joined {
    fn find(&mut self, mut a: u32) -> u32 {
        while self.0[a as usize] != a {
            let up = self.0[self.0[a as usize] as usize];
            self.0[a as usize] = up;
            a = up;
        }
        a
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

/// Pushes and pops of memory have no register for an address (32-bit operands in match mode).
fn no_borrow(borrow: &Borrow, insn: &Instruction) -> Planned<()> {
    if borrow.0.is_empty() { Ok(()) } else { Err(("unsupported-instruction", format!("`{insn}` with a 32-bit address"))) }
}

impl Planner<'_> {
    /// Whether the instruction writes rsp in a way that is not `push`, `pop` or `leave`.
    pub(crate) fn moves_stack(&self, node: &Node) -> bool {
        let insn = &node.insn;
        insn.op_count() > 0
            && insn.op0_kind() == OpKind::Register
            && insn.op0_register() == Register::RSP
            && matches!(insn.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Mov | Mnemonic::Lea)
    }

    /// Whether the memory operand of `node` overlaps the return address. A fence that adds 0 to it is none; nor is a plain store through
    /// another register than rsp, a buffer's overrun: here it does not change where the function returns to.
    pub(crate) fn touches_return_address(&self, node: &Node) -> bool {
        let Address::Stack { offset, exact: true } = address(self.env.program, node.key.at, &node.insn, &node.state) else {
            return false;
        };
        let size = i32::try_from(node.insn.memory_size().size()).unwrap_or(64);
        let fence = matches!(node.insn.mnemonic(), Mnemonic::Or | Mnemonic::Add) && node.insn.try_immediate(1).ok() == Some(0);
        let store = node.insn.op0_kind() == OpKind::Memory && node.insn.mnemonic() == Mnemonic::Mov;
        let overrun = store && node.insn.memory_base() != Register::RSP;
        offset < 8 && offset + size > 0 && !fence && !overrun
    }

    pub(crate) fn push_pop(&mut self, id: u32, node: &Node) -> Planned<()> {
        if node.state.dynamic {
            return self.dynamic_push_pop(id, node);
        }
        match node.insn.mnemonic() {
            Mnemonic::Push => self.push(id, node),
            Mnemonic::Pop => self.pop(id, node),
            _ => self.leave(id, node),
        }
    }

    fn native(&mut self, insn: &Instruction) -> Planned<()> {
        let bytes = ok(encode::encode(insn))?;
        self.bytes(bytes);
        Ok(())
    }

    fn push(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        if self.native.keeps_push(id) {
            return self.native(insn);
        }
        self.note("pushed value that memory may read: a store on the data stack");
        let down = ok(encode::move_stack(-8))?;
        let top = encode::window(Register::RSP, self.k());
        match insn.op0_kind() {
            OpKind::Register => {
                let from = insn.op0_register();
                if from == Register::RSP {
                    return Err(("unsupported-instruction", "pushes the stack pointer".into()));
                }
                let store = ok(encode::store(from, Register::RSP, self.k()))?;
                self.bytes(down);
                self.bytes(store);
            }
            OpKind::Memory => self.push_memory(id, node, down)?,
            _ => {
                let value = self.pushed_immediate(node)?;
                let store = ok(Instruction::with2(Code::Mov_rm64_imm32, top, value).and_then(|i| encode::encode(&i)))?;
                self.bytes(down);
                self.bytes(store);
            }
        }
        Ok(())
    }

    /// The sign-extended value that a `push $imm` pushes.
    pub(crate) fn pushed_immediate(&mut self, node: &Node) -> Planned<i32> {
        let mut insn = node.insn;
        self.immediate(node, &mut insn)?;
        let value = insn.try_immediate(0).unwrap_or(0).cast_signed();
        i32::try_from(value).map_err(|_| ("address-range", format!("`{}`: immediate {value:#x}", node.insn)))
    }

    fn push_memory(&mut self, id: u32, node: &Node, down: Vec<u8>) -> Planned<()> {
        let scratch = self.borrow(id, &node.insn, &[]);
        let to = scratch.register;
        let mut load = ok(Instruction::with2(Code::Mov_r64_rm64, to, encode::window(Register::None, 0)))?;
        super::branch::copy_memory(&node.insn, &mut load);
        let mut borrow = Borrow::default();
        // The return address may be pushed again (a realigned frame's copy for unwinders): the data stack has a hole there, nobody reads it.
        self.push_source(id, node, &mut load, &mut borrow)?;
        no_borrow(&borrow, &node.insn)?;
        self.keep(scratch, 1)?;
        let load = ok(encode::encode(&load))?;
        let store = ok(encode::store(to, Register::RSP, self.k() - 8))?;
        self.bytes(load);
        self.bytes(store);
        self.give_back(scratch, 1)?;
        self.bytes(down);
        Ok(())
    }

    fn push_source(&mut self, id: u32, node: &Node, load: &mut Instruction, borrow: &mut Borrow) -> Planned<()> {
        if self.touches_return_address(node) {
            *load = ok(Instruction::with2(Code::Mov_r32_imm32, encode::narrow(load.op0_register()), 0u32))?;
            return Ok(());
        }
        self.memory(id, node, load, borrow)?;
        Ok(())
    }

    fn pop(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        if self.native.keeps_pop(id) {
            return self.native(insn);
        }
        let up = ok(encode::move_stack(8))?;
        let register = insn.op0_register();
        self.note("popped value lies on the data stack: a load");
        if insn.op0_kind() == OpKind::Register {
            let load = ok(encode::load(register, Register::RSP, self.k()))?;
            self.bytes(load);
            self.bytes(up);
            return Ok(());
        }
        // The address of `pop m` counts from the stack pointer after the pop.
        let mut moved = node.clone();
        if insn.memory_base() == Register::RSP {
            moved.insn.set_memory_displacement64(insn.memory_displacement64().wrapping_add(8));
        }
        let scratch = self.borrow(id, insn, &[]);
        let mut store = ok(Instruction::with2(Code::Mov_rm64_r64, encode::window(Register::None, 0), scratch.register))?;
        super::branch::copy_memory(insn, &mut store);
        let mut borrow = Borrow::default();
        self.memory(id, &moved, &mut store, &mut borrow)?;
        no_borrow(&borrow, insn)?;
        self.keep(scratch, 0)?;
        let load = ok(encode::load(scratch.register, Register::RSP, self.k()))?;
        let store = ok(encode::encode(&store))?;
        self.bytes(load);
        self.bytes(store);
        self.give_back(scratch, 0)?;
        self.bytes(up);
        Ok(())
    }

    /// `leave`, out of a static or a dynamic frame.
    pub(crate) fn leave(&mut self, id: u32, node: &Node) -> Planned<()> {
        let Some(at) = node.state.register(Register::RBP).stack() else {
            return Err(("internal", "leave without a known frame".into()));
        };
        self.note("leave: the static depth is known");
        self.end_dynamic(node)?;
        let by = at + node.state.depth;
        if self.native.keeps_pop(id) {
            self.move_by(by)?;
            return self.native(&ok(Instruction::with1(Code::Pop_r64, Register::RBP))?);
        }
        let load = ok(encode::load(Register::RBP, Register::RSP, self.k() + by))?;
        self.bytes(load);
        self.move_by(by + 8)
    }

    /// Moves rsp up by `by` bytes without touching flags.
    pub(crate) fn move_by(&mut self, by: i32) -> Planned<()> {
        if by != 0 {
            let bytes = ok(encode::move_stack(by))?;
            self.bytes(bytes);
        }
        Ok(())
    }

    /// `add`, `sub`, `mov`, `lea` into rsp.
    pub(crate) fn move_rsp(&mut self, id: u32, node: &Node) -> Planned<()> {
        let Flow::Next(next) = &node.flow else { return Err(("internal", "rsp moved by a transfer".into())) };
        let after = &self.body.nodes[self.body.node(*next) as usize].state;
        if after.dynamic {
            return self.dynamic_move(id, node);
        }
        let by = node.state.depth - after.depth;
        if node.state.dynamic {
            self.note("back from alloca to the static frame");
            self.end_dynamic(node)?;
            return self.move_by(by);
        }
        let plain = matches!(node.insn.mnemonic(), Mnemonic::Add | Mnemonic::Sub)
            && node.insn.op1_kind() != OpKind::Register
            && node.insn.next_ip() == next.at.offset
            && node.insn.try_immediate(1).is_ok_and(|v| v.cast_signed().unsigned_abs() == u64::from(by.unsigned_abs()));
        if plain {
            return self.native(&node.insn);
        }
        self.note("stack pointer set to a known depth");
        if self.live.after[id as usize].flags != 0 && matches!(node.insn.mnemonic(), Mnemonic::Add | Mnemonic::Sub) {
            return Err(("unsupported-instruction", format!("the flags of `{}` are used", node.insn)));
        }
        self.move_by(by)
    }

    /// `and $-align,%rsp`: measures the misalignment and continues in the copy of the code that was made for it.
    pub(crate) fn align(&mut self, id: u32, node: &Node, copies: &[crate::body::Key]) -> Planned<()> {
        self.note("over-aligned frame: one copy of the code per misalignment keeps every depth static");
        if copies.len() == 1 {
            return Ok(());
        }
        if self.live.after[id as usize].flags != 0 {
            return Err(("unsupported-instruction", format!("the flags of `{}` are used", node.insn)));
        }
        let scratch = super::Borrowed { register: Register::RAX, keep: true };
        let mask = 8 * copies.len() as u32 - 1;
        let mut code = ok(encode::lea(Register::EAX, Register::RSP, Register::None, 1, 0))?;
        code.extend(ok(Instruction::with2(Code::And_rm32_imm32, Register::EAX, mask).and_then(|i| encode::encode(&i)))?);
        self.keep(scratch, 0)?;
        self.bytes(code);
        let labels: Vec<u32> = copies.iter().map(|_| self.label()).collect();
        for (i, label) in labels.iter().enumerate().skip(1) {
            let test =
                ok(Instruction::with2(Code::Cmp_rm32_imm32, Register::EAX, 8 * i as u32).and_then(|c| encode::encode(&c)))?;
            self.bytes(test);
            self.piece(Piece::Jump(Some(4), super::Target::Label(*label)));
        }
        for (i, (label, copy)) in labels.iter().zip(copies).enumerate() {
            if i != 0 {
                self.piece(Piece::Label(*label));
            }
            self.give_back(scratch, 0)?;
            self.move_by(-8 * i as i32)?;
            self.piece(Piece::Jump(None, super::Target::Node(self.body.node(*copy))));
        }
        Ok(())
    }
}
