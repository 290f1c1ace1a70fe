//! Control transfers: direct ones keep their form, indirect ones go through the tables (DESIGN §5).

use super::{Borrow, Piece, Planned, Planner, Target, UD2, encode, ok};
use crate::body::{Body, Flow, Key, Node, Outside};
use crate::diag::Reason;
use crate::program::Reloc;
use crate::select::{AT_EXIT, TLS_RESOLVER};
use crate::space::Group;
use crate::thunks::stands_for_thunk;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Where control arrives in layout order.
#[derive(Debug)]
pub struct Arrivals {
    /// A transfer from an earlier place of the layout, or a table, records the state here.
    recorded: Vec<bool>,
    /// The node in front ends the flow.
    after_end: Vec<bool>,
    /// Something jumps back to here: a loop.
    looped: Vec<bool>,
}

impl Arrivals {
    /// Whether the checker would take node `id` for a function entry.
    #[must_use]
    pub fn needs_hint(&self, id: u32) -> bool {
        self.after_end[id as usize] && !self.recorded[id as usize]
    }

    /// Whether alignment of node `id` in the original is worth keeping: it begins a loop.
    #[must_use]
    pub fn begins_loop(&self, id: u32) -> bool {
        self.looped[id as usize]
    }
}

/// Finds the nodes that only backward branches reach.
#[must_use]
pub fn forward_arrivals(body: &Body) -> Arrivals {
    let n = body.nodes.len();
    let mut a = Arrivals { recorded: vec![false; n], after_end: vec![false; n], looped: vec![false; n] };
    for (id, node) in body.nodes.iter().enumerate() {
        let falls = falls_to(node).map(|k| body.node(k));
        let table = matches!(node.flow, Flow::Switch(_));
        for to in body.successors(node) {
            let direct_next = falls == Some(to) && to as usize == id + 1;
            if !direct_next {
                a.looped[to as usize] |= !table && to as usize <= id;
                a.recorded[to as usize] |= table || to as usize > id;
            }
        }
        if id + 1 < n {
            a.after_end[id + 1] = falls != Some(id as u32 + 1);
        }
    }
    a
}

/// The node that is reached without a jump if it is laid out next.
fn falls_to(node: &Node) -> Option<Key> {
    match &node.flow {
        Flow::Next(k) | Flow::Branch(_, k) | Flow::BranchOut(_, k) | Flow::Call(_, Some(k)) | Flow::CallIndirect(k) => Some(*k),
        Flow::Align(copies) if copies.len() == 1 => Some(copies[0]),
        _ => None,
    }
}

/// Low nibble of the opcode of a conditional branch.
fn condition(insn: &Instruction) -> u8 {
    insn.condition_code() as u8 - 1
}

/// The first jump table that would be needed but does not exist names a rewriter bug, never an input's.
fn internal(what: &str) -> Reason {
    ("internal", what.to_owned())
}

impl Planner<'_> {
    /// Continues at `to`: nothing if it comes next, else a jump.
    pub(crate) fn fall_through(&mut self, id: u32, to: Key) {
        let to = self.body.node(to);
        if to != id + 1 {
            self.piece(Piece::Jump(None, Target::Node(to)));
        }
    }

    pub(crate) fn branch(&mut self, id: u32, node: &Node) -> Planned<()> {
        match node.flow.clone() {
            Flow::Next(_) => Err(internal("not a branch")),
            Flow::Jump(to) => {
                self.fall_through(id, to);
                Ok(())
            }
            Flow::Branch(to, next) => self.conditional(id, node, Ok(to), next),
            Flow::BranchOut(out, next) => self.conditional(id, node, Err(out), next),
            Flow::TailCall(out) => self.tail_call(out),
            Flow::Call(out, next) => self.call(id, out, next),
            Flow::CallIndirect(next) => {
                self.indirect(id, node, Use::Call)?;
                self.fall_through(id, next);
                Ok(())
            }
            Flow::TailIndirect => self.indirect(id, node, Use::Tail),
            Flow::Switch(through) => self.indirect(id, node, Use::Switch(through)),
            Flow::Align(copies) => {
                self.align(id, node, &copies)?;
                if let [only] = copies[..] {
                    self.fall_through(id, only);
                }
                Ok(())
            }
            Flow::Return => {
                if stands_for_thunk(&node.insn) {
                    self.note("return thunk: a plain return");
                }
                self.bytes(vec![0xc3]);
                Ok(())
            }
            Flow::Trap => {
                if node.insn.mnemonic() != Mnemonic::Ud2 {
                    self.note("trap: ud2");
                }
                self.bytes(UD2.to_vec());
                Ok(())
            }
        }
    }

    fn conditional(&mut self, id: u32, node: &Node, to: Result<Key, Outside>, next: Key) -> Planned<()> {
        let insn = &node.insn;
        let cc = match insn.mnemonic() {
            Mnemonic::Jrcxz | Mnemonic::Jecxz => {
                if self.live.after[id as usize].flags != 0 {
                    return Err(("unsupported-instruction", format!("`{insn}` with live flags")));
                }
                self.note("jrcxz: test and branch");
                let wide = insn.mnemonic() == Mnemonic::Jrcxz;
                let (code, register) =
                    if wide { (Code::Test_rm64_r64, Register::RCX) } else { (Code::Test_rm32_r32, Register::ECX) };
                let test = ok(Instruction::with2(code, register, register).and_then(|i| encode::encode(&i)))?;
                self.bytes(test);
                4
            }
            Mnemonic::Loope | Mnemonic::Loopne => return self.loop_while(id, node, to, next),
            Mnemonic::Loop => {
                if self.live.after[id as usize].flags != 0 {
                    return Err(("unsupported-instruction", format!("`{insn}` with live flags")));
                }
                self.note("loop: decrement and branch");
                let dec = ok(Instruction::with1(Code::Dec_rm64, Register::RCX).and_then(|i| encode::encode(&i)))?;
                self.bytes(dec);
                5
            }
            _ if insn.is_jcc_short_or_near() => condition(insn),
            _ => return Err(("unsupported-instruction", format!("`{insn}` has no accepted form"))),
        };
        match to {
            Ok(to) => self.piece(Piece::Jump(Some(cc), Target::Node(self.body.node(to)))),
            Err(Outside::Function(at)) => self.piece(Piece::JumpOut(Some(cc), at)),
            Err(Outside::Symbol(reloc)) => {
                // Taken around an import jump.
                let over = self.label();
                self.piece(Piece::Jump(Some(cc ^ 1), Target::Label(over)));
                self.import(&reloc, true)?;
                self.piece(Piece::Label(over));
            }
        }
        self.fall_through(id, next);
        Ok(())
    }

    /// `loope`, `loopne`: leaves when the condition or the count ends it.
    fn loop_while(&mut self, id: u32, node: &Node, to: Result<Key, Outside>, next: Key) -> Planned<()> {
        let (Ok(to), 0) = (to, self.live.after[id as usize].flags) else {
            return Err(("unsupported-instruction", format!("`{}` with live flags or out of the function", node.insn)));
        };
        self.note("loop with a condition: decrement, two branches");
        let over = self.label();
        let leave = if node.insn.mnemonic() == Mnemonic::Loope { 5 } else { 4 };
        let count = ok(encode::lea(Register::RCX, Register::RCX, Register::None, 1, -1))?;
        let test = ok(Instruction::with2(Code::Test_rm64_r64, Register::RCX, Register::RCX).and_then(|i| encode::encode(&i)))?;
        self.bytes(count);
        self.piece(Piece::Jump(Some(leave), Target::Label(over)));
        self.bytes(test);
        self.piece(Piece::Jump(Some(5), Target::Node(self.body.node(to))));
        self.piece(Piece::Label(over));
        self.fall_through(id, next);
        Ok(())
    }

    fn tail_call(&mut self, out: Outside) -> Planned<()> {
        match out {
            Outside::Function(at) => {
                self.piece(Piece::JumpOut(None, at));
                Ok(())
            }
            Outside::Symbol(reloc) => self.import(&reloc, true).map(|_| ()),
        }
    }

    fn call(&mut self, id: u32, out: Outside, next: Option<Key>) -> Planned<()> {
        if self.body.nodes[id as usize].insn.mnemonic() == Mnemonic::Syscall {
            self.system_call(id)?;
        }
        self.copy_arguments(id)?;
        match out {
            Outside::Function(at) => self.piece(Piece::Call(at)),
            Outside::Symbol(reloc) => {
                if self.name_of(&reloc) == TLS_RESOLVER {
                    self.note("thread-local address: already computed");
                    let bytes = ok(
                        Instruction::with2(Code::Mov_rm64_r64, Register::RAX, Register::RDI).and_then(|i| encode::encode(&i))
                    )?;
                    self.bytes(bytes);
                } else if crate::select::import_name(self.name_of(&reloc)) == crate::jumps::SETJMP {
                    self.before_setjmp(id)?;
                    self.import(&reloc, false)?;
                    self.after_setjmp(id)?;
                } else if !self.import(&reloc, false)? && next.is_some() {
                    // What follows is dead, but it keeps its state for the branches that lead there.
                    let node = &self.body.nodes[id as usize];
                    let hint = Piece::Hint(node.state.depth.cast_unsigned(), self.native.set(node) as u32);
                    self.piece(hint);
                }
            }
        }
        match next {
            Some(next) => {
                let popped =
                    self.body.nodes[id as usize].state.depth - self.body.nodes[self.body.node(next) as usize].state.depth;
                self.move_by(popped)?;
                self.fall_through(id, next);
            }
            None => self.bytes(UD2.to_vec()),
        }
        Ok(())
    }

    /// What a call of the function that stands for `syscall` does not do as the kernel does must not matter.
    fn system_call(&mut self, id: u32) -> Planned<()> {
        self.note("system call: the host's import, other registers kept");
        if self.live.after[id as usize].flags != 0 {
            return Err(("unsupported-instruction", "`syscall` with live flags".into()));
        }
        crate::syscall::keeps_all(self.body)
    }

    fn name_of(&self, reloc: &Reloc) -> &str {
        &self.env.program.symbol(reloc.symbol).name
    }

    /// `call|jmp *%gs:T+8i`, or a trap where there is nothing to call (then false).
    fn import(&mut self, reloc: &Reloc, jump: bool) -> Planned<bool> {
        let name = self.name_of(reloc).to_owned();
        let slot = self.env.space.import_slots.get(crate::select::import_name(&name)).copied();
        match slot {
            Some(slot) => {
                self.note("call of a host function: through its table slot");
                self.import_slot(slot, jump);
            }
            None if name == AT_EXIT => {
                self.note("destructor of a static object: never run");
                let mut done = ok(encode::set(Register::RAX, 0))?;
                done.extend(jump.then_some(0xc3));
                self.bytes(done);
                return Ok(true);
            }
            None => {
                self.note("call of an absent function: trap");
                self.bytes(UD2.to_vec());
            }
        }
        Ok(slot.is_some())
    }

    /// The import unit for a slot number.
    pub(crate) fn import_slot(&mut self, slot: u32, jump: bool) {
        let at = self.env.space.table.wrapping_add_unsigned(8 * slot);
        let mut bytes = vec![0x65, 0xff, if jump { 0x24 } else { 0x14 }, 0x25];
        bytes.extend(at.to_le_bytes());
        self.bytes(bytes);
    }

    /// An indirect call or jump: the masked table unit.
    fn indirect(&mut self, id: u32, node: &Node, how: Use) -> Planned<()> {
        let insn = &node.insn;
        if self.live.after[id as usize].flags != 0 {
            return Err(("unsupported-instruction", format!("`{insn}` with live flags")));
        }
        let register = match insn.op0_kind() {
            OpKind::Register => insn.op0_register(),
            OpKind::Memory => match self.target_register(id, node, how) {
                Some(to) => self.load_target(id, node, to)?,
                None => return self.compare_chain(id, node, how),
            },
            _ => return Err(("privileged-instruction", format!("`{insn}` is not for handlers"))),
        };
        if register.full_register() == Register::RSP || !register.is_gpr64() {
            return Err(("unsupported-instruction", format!("`{insn}` has no accepted form")));
        }
        if how == Use::Call {
            self.copy_arguments(id)?;
        }
        self.note(match how {
            _ if stands_for_thunk(insn) => "retpoline: through the table of checked functions",
            Use::Switch(_) => "jump through its own table of checked labels",
            _ => "through the table of checked functions",
        });
        let (bits, base) = match how {
            Use::Switch(through) => {
                let group = self.group(through)?;
                (group.bits, *group.bases.get(&node.key.context).ok_or_else(|| internal("a switch without a table base"))?)
            }
            _ => (self.env.space.main_bits, self.env.space.table),
        };
        self.bytes(table_unit(register, bits, base, how == Use::Call));
        Ok(())
    }

    /// The group of tables that a switch jumps through.
    fn group(&self, through: Option<u64>) -> Planned<&Group> {
        let fits = |g: &&Group| match through {
            Some(set) => g.tables & set == set && set != 0,
            None => g.labels,
        };
        self.env.space.groups[self.index].iter().find(fits).ok_or_else(|| internal("a switch without a table"))
    }

    /// A register that `call|jmp *mem` is free to change.
    fn target_register(&self, id: u32, node: &Node, how: Use) -> Option<Register> {
        let Use::Switch(_) = how else { return Some(Register::R11) };
        let live = self.live.after[id as usize];
        let own = node.insn.memory_index();
        let all = [
            Register::R11,
            Register::RAX,
            Register::RCX,
            Register::RDX,
            Register::RSI,
            Register::RDI,
            Register::R8,
            Register::R9,
        ];
        let more = [Register::R10, Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
        [own].into_iter().chain(all).chain(more).find(|r| r.is_gpr64() && !live.has(*r))
    }

    /// A switch where every register is in use: compares the table's entry with each target's number in place.
    fn compare_chain(&mut self, id: u32, node: &Node, how: Use) -> Planned<()> {
        let Use::Switch(through) = how else { return Err(internal("not a switch")) };
        self.note("switch without a free register: compares in place");
        let group = self.group(through)?.clone();
        let mut compare = ok(Instruction::with2(Code::Cmp_rm32_imm32, encode::window(Register::None, 0), 0))?;
        copy_memory(&node.insn, &mut compare);
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut compare, &mut borrow)?;
        if !borrow.0.is_empty() {
            return Err(("unsupported-instruction", format!("`{}`: no register is free", node.insn)));
        }
        for (slot, to) in (group.first..).zip(&group.slots) {
            let target = to.and_then(|at| self.body.index.get(&Key { context: node.key.context, at }).copied());
            if let Some(target) = target {
                compare.set_immediate32(8 * slot);
                let bytes = ok(encode::encode(&compare))?;
                self.bytes(bytes);
                self.piece(Piece::Jump(Some(4), Target::Node(target)));
            }
        }
        self.bytes(UD2.to_vec());
        Ok(())
    }

    /// Loads the target of `call|jmp *mem` into `to`.
    fn load_target(&mut self, id: u32, node: &Node, to: Register) -> Planned<Register> {
        if self.entry_number(id, node, encode::narrow(to))? {
            return Ok(to);
        }
        let insn = &node.insn;
        let mut load = ok(Instruction::with2(Code::Mov_r32_rm32, encode::narrow(to), encode::window(Register::None, 0)))?;
        copy_memory(insn, &mut load);
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut load, &mut borrow)?;
        for (borrowed, fill) in &borrow.0 {
            if borrowed.keep {
                return Err(("unsupported-instruction", format!("`{insn}`: no register is free")));
            }
            self.bytes(fill.clone());
        }
        let bytes = ok(encode::encode(&load))?;
        self.bytes(bytes);
        Ok(to)
    }
}

/// Gives `to` the registers and segment of `from`'s memory operand.
pub(crate) fn copy_memory(from: &Instruction, to: &mut Instruction) {
    to.set_memory_base(from.memory_base());
    to.set_memory_index(from.memory_index());
    to.set_memory_index_scale(from.memory_index_scale());
    to.set_segment_prefix(from.segment_prefix());
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Call,
    Tail,
    Switch(Option<u64>),
}

/// `and $MASK,%r32; call|jmp *%gs:base(%r64)` (contract of the checker: one instruction).
fn table_unit(register: Register, bits: u32, base: i32, call: bool) -> Vec<u8> {
    let number = register.number() as u8;
    let (low, high) = (number & 7, number >> 3);
    let mask = 8 * ((1u32 << bits) - 1);
    let mut bytes = Vec::with_capacity(16);
    if high == 1 {
        bytes.push(0x41);
    }
    if mask <= 127 {
        bytes.extend([0x83, 0xe0 | low, mask as u8]);
    } else {
        bytes.extend([0x81, 0xe0 | low]);
        bytes.extend(mask.to_le_bytes());
    }
    bytes.push(0x65);
    if high == 1 {
        bytes.push(0x41);
    }
    let operation = if call { 2 } else { 4 };
    bytes.extend([0xff, 0x80 | operation << 3 | low]);
    if low == 4 {
        bytes.push(0x24);
    }
    bytes.extend(base.to_le_bytes());
    bytes
}
