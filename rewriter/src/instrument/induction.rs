//! Accesses of a loop at `base + index`, where one register stays the same and the other counts up: the first is checked in front of the loop, the
//! second in it, and nothing has to be added up.
//!
//! Neither check reports what native code may do. In the first round the counter is below 2^8, so the address is astray if the pointer is. Behind
//! that the pointer is low, and a counter that never was negative and is 2 GiB or more leads past the end of memory.

use super::code::{Code, Item, Op};
use super::known::{Solved, after};
use super::need::{MOST, Need, need};
use crate::liveness::{Live, effect};
use cordon_checker::{Facts, Mode};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

/// Greatest step of a counter, bytes.
const STEP: i64 = 1 << 16;

/// An access of a loop by a pointer that the loop does not change and a counter.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub pointer: u8,
    pub counter: u8,
    /// The item of the access.
    pub access: usize,
}

/// What a loop consists of.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    /// Items that lead into it.
    pub entering: &'a [usize],
    /// Per item: whether it is in the loop.
    pub inside: &'a [bool],
    /// Registers that it writes.
    pub written: u16,
}

/// The accesses among `straight` (items that every round of a loop comes to first) that a pointer and a counter make.
pub fn counted(code: &Code, solved: &Solved, live: &[Live], mode: Mode, straight: &[usize], rounds: Rounds<'_>) -> Vec<Counted> {
    let Rounds { entering, inside, written } = rounds;
    let mut factory = InstructionInfoFactory::new();
    let mut counts = |register: u8| {
        let tiny = |&from: &usize| after(code, from, solved.before[from], mode).tiny >> register & 1 == 1;
        entering.iter().all(tiny) && counts_up(code, &mut factory, inside, register)
    };
    let mut found = Vec::new();
    for &access in straight {
        let Item::Op(op) = &code.items[access] else { continue };
        let Some((a, b)) = pair(op, solved, access, mode).filter(|_| live[access].flags == 0) else { continue };
        let counted = [(a, b), (b, a)].into_iter().find(|&(pointer, counter)| written >> pointer & 1 == 0 && counts(counter));
        found.extend(counted.map(|(pointer, counter)| Counted { pointer, counter, access }));
    }
    found
}

/// Base and index of an access whose sum would have to be checked, and that the checker takes if both are low.
fn pair(op: &Op, solved: &Solved, access: usize, mode: Mode) -> Option<(u8, u8)> {
    let known = solved.before[access];
    let memory = op.what.memory.filter(|_| need(op, known, mode) == Some(Need::Address))?;
    let (base, index) = (memory.base?, memory.index.filter(|_| memory.scale == 1)?);
    let both = Facts::NONE.checked(base).checked(index);
    // A pointer below 0 and the greatest counter of the first round must not meet memory.
    let tells = (-MOST..=MOST - 0xff).contains(&i64::from(memory.disp));
    (tells && base != index && base != super::known::RSP && both.allows(&memory, known.esp)).then_some((base, index))
}

/// Whether all that the loop does to `register` is to add small positive numbers.
fn counts_up(code: &Code, factory: &mut InstructionInfoFactory, inside: &[bool], register: u8) -> bool {
    code.items.iter().zip(inside).filter(|(_, inside)| **inside).all(|(item, _)| match item {
        Item::Op(op) => {
            let writes = (effect(factory, &op.insn).writes | op.what.gpr_writes) >> register & 1 == 1;
            !writes || step(&op.insn, register).is_some_and(|by| (1..=STEP).contains(&by))
        }
        Item::Piece(_) => true,
    })
}

/// How much `insn` adds to `register`, if it does nothing else.
fn step(insn: &Instruction, register: u8) -> Option<i64> {
    let to = insn.op0_register();
    let whole = insn.op0_kind() == OpKind::Register && (to.is_gpr64() || to.is_gpr32()) && to.number() == register.into();
    let immediate = || insn.try_immediate(1).ok().map(u64::cast_signed).filter(|_| insn.op1_kind() != OpKind::Register);
    match insn.mnemonic() {
        _ if !whole => None,
        Mnemonic::Inc => Some(1),
        Mnemonic::Add => immediate(),
        Mnemonic::Sub => immediate().and_then(i64::checked_neg),
        Mnemonic::Lea if insn.memory_base() == to && insn.memory_index() == Register::None => {
            Some(insn.memory_displacement64().cast_signed())
        }
        _ => None,
    }
}
