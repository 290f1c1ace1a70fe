//! Puts a check in front of each access that needs one.
//!
//! A check changes flags. Where they are live it moves up in its block to where they are not and the address is already known; else the flags are
//! kept in rax meanwhile. An address in a scratch register serves the accesses behind it that differ in the displacement only.

use super::code::{Code, Item, Op};
use super::known::{Known, RSP, Solved, limit_compare};
use super::live::free;
use super::need::{Need, need};
use super::save::Keeping;
use super::scratch::{dying, indexed, named, through, unreachable};
use crate::diag::Reason;
use crate::liveness::{Live, effect};
use crate::plan::{Piece, Planned, Target, encode, ok};
use cordon_checker::{MemoryOperand, Mode};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, Register};
use std::collections::BTreeMap;

/// rax's number.
const RAX: u8 = 0;
/// The register with the count of metered text.
const COUNT: u8 = 14;
/// Least displacement at which an access of the stack by 2 GiB or more is astray: the last 64 KiB below 2 GiB are free.
const LEAST: i32 = -0x1_0000;
/// `ja`: above the limit, as an unsigned number.
const ABOVE: Option<u8> = Some(7);

/// An address less its displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    base: Option<u8>,
    index: Option<u8>,
    scale: u8,
}

impl Sum {
    fn of(memory: &MemoryOperand) -> Sum {
        Sum { base: memory.base, index: memory.index, scale: memory.scale }
    }

    /// The registers in it.
    fn registers(self) -> u16 {
        self.base.into_iter().chain(self.index).fold(0, |set, r| set | 1 << r)
    }
}

/// A scratch register with a checked address in it, or on the stack with a checked index times its scale.
#[derive(Clone, Copy, Debug)]
struct Held {
    register: Register,
    sum: Sum,
    disp: i32,
    /// It holds `index × scale` only, and the access is on the stack.
    product: bool,
}

/// Inserts checks; true if there was something to do.
///
/// # Errors
/// An access that cannot be written with another address (none is known).
pub fn insert(code: &mut Code, solved: &Solved, live: &[Live], mode: Mode) -> Result<bool, Reason> {
    let mut inserter = Inserter {
        joined: &solved.joined,
        code,
        live,
        factory: InstructionInfoFactory::new(),
        front: BTreeMap::new(),
        held: Vec::new(),
        busy: [None; 16],
        floor: 0,
        reserved: if mode.metered { 1 << COUNT } else { 0 },
    };
    for (i, known) in solved.before.iter().enumerate() {
        inserter.item(i, *known, mode)?;
    }
    let front = std::mem::take(&mut inserter.front);
    let changed = !front.is_empty();
    let merged = front.into_iter().map(|(i, front)| (i, [front.checks, front.marks].concat())).collect();
    code.insert(merged);
    Ok(changed)
}

/// What goes in front of an item.
#[derive(Default)]
struct Front {
    checks: Vec<Item>,
    /// Labels of the access itself, behind every check.
    marks: Vec<Item>,
}

struct Inserter<'a> {
    code: &'a mut Code,
    joined: &'a [bool],
    live: &'a [Live],
    factory: InstructionInfoFactory,
    front: BTreeMap<usize, Front>,
    held: Vec<Held>,
    /// Per register: the last item at which inserted code counts on it.
    busy: [Option<usize>; 16],
    /// No check may move up over here: registers hold other values for a while.
    floor: usize,
    /// Registers that inserted code must not write.
    reserved: u16,
}

impl Inserter<'_> {
    fn item(&mut self, i: usize, known: Known, mode: Mode) -> Planned<()> {
        if self.joined[i] || (i > 0 && (!self.code.items[i - 1].falls() || self.code.items[i - 1].calls())) {
            self.held.clear();
        }
        let Item::Op(op) = &self.code.items[i] else { return Ok(()) };
        let op = op.clone();
        match need(&op, known, mode) {
            Some(Need::Base(base)) => self.base(i, &op, base)?,
            Some(Need::Address) => match on_stack(&op, known) {
                Some((memory, index)) => self.on_stack(i, &op, &memory, index)?,
                None => self.address(i, &op)?,
            },
            None => {}
        }
        let written = effect(&mut self.factory, &op.insn).writes | op.what.gpr_writes;
        self.held.retain(|h| (h.sum.registers() | 1 << h.register.number()) & written == 0);
        Ok(())
    }

    fn keeping(&self, i: usize, taken: u16) -> Keeping {
        Keeping::new(self.live[i], taken, self.code.stack_shift)
    }

    fn base(&mut self, i: usize, op: &Op, base: u8) -> Planned<()> {
        let stop = self.stop(i);
        if let Some(at) = self.place(i, 1 << base) {
            self.front(at).checks.extend(check(base, stop)?);
            return Ok(());
        }
        if let (RAX, Some(memory)) = (base, op.what.memory) {
            // rax is wanted for the flags, and a report wants to find the address in its register.
            let own = self.own(i, op, &memory);
            return self.address_kept(i, op, &memory, own, stop);
        }
        // The way back into a register may be a load, behind which nothing is known of it; then another round looks again.
        self.detour(i);
        let taken = named(&mut self.factory, &op.insn) | self.reserved;
        let (before, after) = self.keeping(i, taken).flags()?;
        let front = &mut self.front(i).checks;
        front.extend(before);
        front.extend(check(base, stop)?);
        front.extend(after);
        Ok(())
    }

    fn address(&mut self, i: usize, op: &Op) -> Planned<()> {
        let Some(memory) = op.what.memory else { return Ok(()) };
        let sum = Sum::of(&memory);
        let nameable = |h: &&Held| !h.product && h.sum == sum && unreachable(op) >> h.register.number() & 1 == 0;
        if let Some(held) = self.held.iter().find(nameable).copied()
            && let Some(disp) = memory.disp.checked_sub(held.disp)
        {
            self.busy[held.register.number()] = Some(i);
            return self.through(i, op, held.register, disp);
        }
        let stop = self.stop(i);
        let unreachable = unreachable(op) | self.reserved;
        let place = self.place(i, sum.registers());
        if let Some(at) = place {
            // A register that the access itself overwrites serves it, but nothing after it.
            let overwritten = effect(&mut self.factory, &op.insn).writes;
            let first = free(self.live[i], overwritten | unreachable).chain(free(self.live[i], unreachable));
            let found = { first }.find(|r| self.is_free(*r, at, i));
            if let Some(register) = found {
                self.busy[register.number()] = Some(i);
                self.held.retain(|h| h.register != register);
                self.held.push(Held { register, sum, disp: memory.disp, product: false });
                return self.address_in(register, at, i, op, &memory, stop);
            }
        }
        match self.own(i, op, &memory) {
            Some(register) if place == Some(i) => self.address_in(register, i, i, op, &memory, stop),
            own => self.address_kept(i, op, &memory, own, stop),
        }
    }

    /// An access of the stack by an index that is not negative: its product with the scale is checked, which in reach leaves the address in
    /// reach, and astray leaves it astray.
    fn on_stack(&mut self, i: usize, op: &Op, memory: &MemoryOperand, index: u8) -> Planned<()> {
        let sum = Sum::of(memory);
        let unreachable = unreachable(op) | self.reserved;
        let nameable = |h: &&Held| h.product && h.sum == sum && unreachable >> h.register.number() & 1 == 0;
        if let Some(held) = self.held.iter().find(nameable).copied() {
            self.busy[held.register.number()] = Some(i);
            return self.indexed(i, op, held.register);
        }
        let Some(at) = self.place(i, 1 << index) else { return self.address(i, op) };
        if memory.scale == 1 {
            let stop = self.stop(i);
            self.front(at).checks.extend(check(index, stop)?);
            return Ok(());
        }
        // A register that the access itself overwrites serves it, but nothing after it.
        let overwritten = effect(&mut self.factory, &op.insn).writes;
        let first = free(self.live[i], overwritten | unreachable).chain(free(self.live[i], unreachable));
        let found = { first }.find(|r| self.is_free(*r, at, i));
        if let Some(register) = found {
            self.busy[register.number()] = Some(i);
            self.held.retain(|h| h.register != register);
            self.held.push(Held { register, sum, disp: 0, product: true });
            return self.product_in(register, at, i, op, memory.scale, index);
        }
        let after = self.live.get(i + 1).map_or(u16::MAX, |live| live.registers);
        match dying(&mut self.factory, op, memory, after, unreachable) {
            Some(own) if at == i => self.product_in(own, i, i, op, memory.scale, index),
            _ => self.address(i, op),
        }
    }

    /// `index × scale` into `register` and its check, in front of item `at`; the access, item `i`, has that as its index.
    fn product_in(&mut self, register: Register, at: usize, i: usize, op: &Op, scale: u8, index: u8) -> Planned<()> {
        let stop = self.stop(i);
        let front = times(register, index, scale)?.into_iter().chain(check(register.number() as u8, stop)?);
        self.front(at).checks.extend(front);
        self.indexed(i, op, register)
    }

    /// The access, on the stack, by `register` as its index.
    fn indexed(&mut self, i: usize, op: &Op, register: Register) -> Planned<()> {
        self.code.items[i] = Item::Op(indexed(op, register)?);
        Ok(())
    }

    /// The address into `register` and its check, in front of item `at`; the access, item `i`, goes through the register.
    fn address_in(&mut self, register: Register, at: usize, i: usize, op: &Op, memory: &MemoryOperand, stop: u32) -> Planned<()> {
        let front = sum_into(register, memory)?.into_iter().chain(check(register.number() as u8, stop)?);
        self.front(at).checks.extend(front);
        self.through(i, op, register, 0)
    }

    /// A register of the address itself that nothing else needs from item `i` on.
    fn own(&mut self, i: usize, op: &Op, memory: &MemoryOperand) -> Option<Register> {
        if memory.base == Some(RSP) {
            // The address of the data stack is summed in two steps, the index last.
            return None;
        }
        let after = self.live.get(i + 1).map_or(u16::MAX, |live| live.registers);
        dying(&mut self.factory, op, memory, after, unreachable(op) | self.reserved)
    }

    /// Inserted code uses registers in front of item `i` that have values for others.
    fn detour(&mut self, i: usize) {
        self.held.clear();
        self.floor = i + 1;
    }

    /// The address in a register that is put back behind the access, or with the flags kept, or both.
    fn address_kept(&mut self, i: usize, op: &Op, memory: &MemoryOperand, own: Option<Register>, stop: u32) -> Planned<()> {
        let taken = named(&mut self.factory, &op.insn) | unreachable(op) | self.reserved;
        let (register, spill, back) = match own {
            // rax is wanted for the flags.
            Some(own) if own.number() as u8 != RAX => (own, Vec::new(), Vec::new()),
            _ => self.keeping(i, taken).scratch()?,
        };
        let number = register.number() as u8;
        let mut front: Vec<Item> = spill.into_iter().chain(sum_into(register, memory)?).collect();
        if self.live[i].flags == 0 {
            front.extend(check(number, stop)?);
        } else {
            let (before, after) = self.keeping(i, taken | 1 << number).flags()?;
            front.extend(before);
            front.extend(check(number, stop)?);
            front.extend(after);
        }
        self.detour(i);
        self.front(i).checks.extend(front);
        self.front(i + 1).checks.extend(back);
        self.through(i, op, register, 0)
    }

    /// The access through `register` instead of its own base and index.
    fn through(&mut self, i: usize, op: &Op, register: Register, disp: i32) -> Planned<()> {
        self.code.items[i] = Item::Op(through(op, register, disp)?);
        Ok(())
    }

    fn front(&mut self, i: usize) -> &mut Front {
        self.front.entry(i).or_default()
    }

    /// A stub that reports item `i`.
    fn stop(&mut self, i: usize) -> u32 {
        let place = self.code.label();
        self.front(i).marks.push(Item::Piece(Piece::Label(place)));
        self.code.stop(place, false)
    }

    /// The nearest place for a check of `registers` in front of item `i` where flags are dead.
    fn place(&mut self, i: usize, registers: u16) -> Option<usize> {
        let mut at = i;
        while self.live[at].flags != 0 {
            if at <= self.floor || self.joined[at] || !self.passes(at - 1, registers) {
                return None;
            }
            at -= 1;
        }
        Some(at)
    }

    /// Whether a check of `registers` may move up over item `i`: nothing that it reads changes there, and neither control nor a fault that is
    /// none of memory can end the call there.
    fn passes(&mut self, i: usize, registers: u16) -> bool {
        match &self.code.items[i] {
            Item::Op(op) => {
                let divides = matches!(op.insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
                let plain = op.what.flow == cordon_checker::Flow::Next && !divides;
                let written = effect(&mut self.factory, &op.insn).writes | op.what.gpr_writes;
                plain && written & registers == 0
            }
            Item::Piece(Piece::Node(_) | Piece::Label(_) | Piece::Forget(_)) => true,
            Item::Piece(_) => false,
        }
    }

    /// Whether `register` is dead from item `at` to item `i` and nothing inserted before counts on it there.
    fn is_free(&self, register: Register, at: usize, i: usize) -> bool {
        let number = register.number();
        let written = |k: usize| match &self.code.items[k] {
            Item::Op(op) => effect(&mut InstructionInfoFactory::new(), &op.insn).writes >> number & 1 == 1,
            Item::Piece(_) => false,
        };
        self.busy[number].is_none_or(|last| last < at) && (at..=i).all(|k| !self.live[k].has(register)) && !(at..i).any(written)
    }
}

/// `cmp $LIMIT,%register; ja stop`.
pub(super) fn check(register: u8, stop: u32) -> Planned<[Item; 2]> {
    let compare = Op::first(&limit_compare(register)).ok_or_else(|| ("internal", "a check that is not listed".to_owned()))?;
    Ok([Item::Op(compare), Item::jump(ABOVE, Target::Label(stop))])
}

/// One inserted instruction.
pub(super) fn item(bytes: &[u8]) -> Planned<Item> {
    Op::first(bytes).map(Item::Op).ok_or_else(|| ("internal", format!("inserted bytes are not listed: {bytes:02x?}")))
}

/// The 64-bit register of this number.
pub(super) fn wide(number: u8) -> Register {
    Register::RAX + u32::from(number)
}

/// The true 64-bit address of `memory` into `to`.
fn sum_into(to: Register, memory: &MemoryOperand) -> Planned<Vec<Item>> {
    let index = memory.index.map_or(Register::None, wide);
    let scale = memory.scale.into();
    if memory.base == Some(RSP) {
        // The data stack's address is the 32-bit sum; what is added to it counts in full.
        let stack = ok(encode::lea(encode::narrow(to), Register::RSP, Register::None, 1, memory.disp))?;
        let sum = ok(encode::lea(to, to, index, scale, 0))?;
        return Ok(vec![item(&stack)?, item(&sum)?]);
    }
    let base = memory.base.map_or(Register::None, wide);
    Ok(vec![item(&ok(encode::lea(to, base, index, scale, memory.disp))?)?])
}

/// `to = index × scale`, 64 bits.
fn times(to: Register, index: u8, scale: u8) -> Planned<Vec<Item>> {
    let index = wide(index);
    let bytes = if to == index {
        Instruction::with2(iced_x86::Code::Shl_rm64_imm8, to, scale.trailing_zeros()).and_then(|i| encode::encode(&i))
    } else {
        encode::lea(to, Register::None, index, scale.into(), 0)
    };
    Ok(vec![item(&ok(bytes)?)?])
}

/// The operand of an access of the stack that an index which cannot be negative may lead astray, and the index.
fn on_stack(op: &Op, known: Known) -> Option<(MemoryOperand, u8)> {
    let memory = op.what.memory.filter(|m| m.base == Some(RSP) && m.disp >= LEAST)?;
    let index = memory.index.filter(|index| known.is_extended(*index))?;
    let checked = MemoryOperand { scale: 1, ..memory };
    known.facts.checked(index).allows(&checked, known.esp).then_some((memory, index))
}

/// A register to register move, 64 bits.
pub(super) fn copy(to: Register, from: Register) -> Planned<Item> {
    item(&ok(Instruction::with2(iced_x86::Code::Mov_rm64_r64, to, from).and_then(|i| encode::encode(&i)))?)
}
