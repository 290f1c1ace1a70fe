//! What the checker will know of the registers before each item: its own rules for one instruction, solved over the jumps of a body.

use super::code::{Code, Item, Op};
use crate::body::Body;
use crate::liveness::written;
use crate::plan::{Piece, Target};
use cordon_checker::policy::Host;
use cordon_checker::{Facts, Flow, Mode, layout, track};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use std::collections::HashMap;

/// The limit that a CHECK compares with: the last byte of handler memory.
const LIMIT: u32 = layout::MEMORY_END - 1;
/// rsp's number.
pub const RSP: u8 = 4;

/// What is known before one item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub facts: Facts,
    /// Registers below 2^8, which the checker does not need to know: they decide how a check may be made.
    pub tiny: u16,
    /// Registers from 0 to 2^32 - 1, of which the checker only knows that they are near.
    pub extended: u16,
    /// Low half of rsp.
    pub esp: u32,
}

/// `cmp $LIMIT,%register`, the first half of a CHECK.
#[must_use]
pub fn limit_compare(register: u8) -> Vec<u8> {
    let mut bytes = vec![0x48 | register >> 3, 0x81, 0xf8 | register & 7];
    bytes.extend(LIMIT.to_le_bytes());
    bytes
}

/// The register of a `cmp` that with `ja` makes a CHECK.
#[must_use]
pub fn compared(op: &Op) -> Option<u8> {
    let insn = &op.insn;
    let fits = insn.mnemonic() == Mnemonic::Cmp && insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr64();
    let register = insn.op0_register().number() as u8;
    (fits && op.bytes == limit_compare(register)).then_some(register)
}

/// The facts of a whole body.
#[derive(Clone, Debug)]
pub struct Solved {
    /// Before each item.
    pub before: Vec<Known>,
    /// Per item: whether the checker joins what several ways bring.
    pub joined: Vec<bool>,
    /// Places (items) where the checker must be told to forget, with what it may keep.
    pub forgets: Vec<(usize, u16)>,
}

/// Solves the facts of `code`. `gain` names a register that will be checked in front of an item if it is not yet known to be low.
#[must_use]
pub fn solve(code: &Code, body: &Body, mode: Mode, gain: impl Fn(&Op, Known) -> Option<u8>) -> Solved {
    let arrivals = code.arrivals();
    let marks = code.marks();
    let esp = stack_pointers(code, body);
    let joined: Vec<bool> = (0..code.items.len()).map(|i| code.is_joined(i, &arrivals)).collect();
    let mut low: Vec<u16> = (0..code.items.len()).map(|i| start_of(code, i, &arrivals)).collect();
    let mut before = vec![Known::default(); code.items.len()];
    loop {
        let mut next = vec![u16::MAX; code.items.len()];
        let mut known = Known::default();
        for (i, item) in code.items.iter().enumerate() {
            known.esp = esp[i];
            if joined[i] {
                next[i] &= known.facts.low() | if falls_into(code, i) { 0 } else { u16::MAX };
                known = Known { facts: Facts::at_label(low[i]), tiny: 0, extended: 0, ..known };
            } else if !falls_into(code, i) {
                known = Known { facts: Facts::NONE, tiny: 0, extended: 0, ..known };
            }
            before[i] = known;
            if let Item::Op(op) = item
                && let Some(register) = gain(op, known)
            {
                known.facts = known.facts.checked(register);
            }
            if let Item::Piece(Piece::Jump(_, to)) = item
                && let Some(&mark) = marks.get(to)
            {
                next[mark] &= known.facts.low();
            }
            known = after(code, i, known, mode);
        }
        let mut changed = false;
        for (low, next) in low.iter_mut().zip(&next) {
            changed |= *low & !next != 0;
            *low &= next;
        }
        if !changed {
            break;
        }
    }
    // A call may come from behind as well as a jump, and bring less than what falls or jumps into the function from before.
    let is_entry = |i: usize| matches!(&code.items[i], Item::Piece(Piece::Node(n)) if code.entered.contains(n));
    let from_behind =
        |&i: &usize| arrivals[i].iter().any(|&from| from > i) || is_entry(i) && (code.tail_called || falls_into(code, i));
    let forgets = (0..code.items.len()).filter(from_behind).map(|i| (i, low[i])).collect();
    Solved { before, joined, forgets }
}

/// The registers that may be low at item `i`: none where the checker starts anew.
fn start_of(code: &Code, i: usize, arrivals: &[Vec<usize>]) -> u16 {
    let entered = matches!(&code.items[i], Item::Piece(Piece::Node(n)) if code.entered.contains(n));
    let forward = falls_into(code, i) || arrivals[i].iter().any(|&from| from < i);
    if entered || !forward { 0 } else { u16::MAX }
}

/// Whether control may come to item `i` from the item before.
fn falls_into(code: &Code, i: usize) -> bool {
    i > 0 && code.items[i - 1].falls()
}

/// What is known after item `i`.
pub(super) fn after(code: &Code, i: usize, known: Known, mode: Mode) -> Known {
    match &code.items[i] {
        Item::Op(op) => {
            let calls = matches!(op.what.flow, Flow::Call(_) | Flow::TableCall { .. });
            let kept = match known.tiny | known.extended {
                0 => 0,
                _ if calls => 0,
                _ => !(op.what.gpr_writes | written(&mut InstructionInfoFactory::new(), &op.insn)),
            };
            let tiny = known.tiny & kept | becomes_tiny(&op.insn);
            // What the checker does not list, it knows nothing after; `Code::read` took nothing of the kind.
            let facts = track(&op.bytes, Host::User, mode, known.facts, known.esp).map_or(Facts::NONE, |t| t.after);
            let extended = known.extended & kept | becomes_extended(op) & facts.near();
            Known { facts, tiny, extended, ..known }
        }
        Item::Piece(Piece::Jump(Some(7), to)) if code.is_stop(*to) => match i.checked_sub(1).map(|i| &code.items[i]) {
            Some(Item::Op(op)) => Known { facts: compared(op).map_or(known.facts, |r| known.facts.checked(r)), ..known },
            _ => known,
        },
        Item::Piece(Piece::Call(_) | Piece::Hint(..)) => Known { facts: Facts::NONE, tiny: 0, extended: 0, ..known },
        Item::Piece(_) => known,
    }
}

/// The register that `insn` leaves below 2^8.
fn becomes_tiny(insn: &Instruction) -> u16 {
    let to = insn.op_register(0);
    let wide = insn.op_count() == 2 && insn.op0_kind() == OpKind::Register && (to.is_gpr32() || to.is_gpr64());
    let small = match insn.mnemonic() {
        Mnemonic::Movzx if insn.op1_kind() == OpKind::Memory => insn.memory_size().size() == 1,
        Mnemonic::Movzx => insn.op1_register().is_gpr8(),
        Mnemonic::And | Mnemonic::Mov => insn.try_immediate(1).is_ok_and(|v| v < 0x100),
        Mnemonic::Xor | Mnemonic::Sub => insn.op1_kind() == OpKind::Register && insn.op1_register() == to,
        _ => false,
    };
    if wide && small { 1 << to.number() } else { 0 }
}

/// The register that `op` writes the lower half of; the upper one is 0 then if the checker knows the result as near.
fn becomes_extended(op: &Op) -> u16 {
    let to = op.insn.op_register(0);
    let narrow = op.insn.op_count() > 0 && op.insn.op0_kind() == OpKind::Register && to.is_gpr32();
    if narrow { op.what.gpr_writes & 1 << to.number() } else { 0 }
}

impl Known {
    /// Whether the register is from 0 to 2^32 - 1.
    #[must_use]
    pub const fn is_extended(&self, register: u8) -> bool {
        (self.extended | self.facts.low()) >> register & 1 == 1
    }
}

/// The low half of rsp before each item.
fn stack_pointers(code: &Code, body: &Body) -> Vec<u32> {
    let mut depth = 0;
    let mut labels: HashMap<u32, i32> = HashMap::new();
    let mut found = Vec::with_capacity(code.items.len());
    for item in &code.items {
        match item {
            Item::Piece(Piece::Node(n)) => depth = body.nodes[*n as usize].state.depth,
            Item::Piece(Piece::Label(label)) => depth = labels.get(label).copied().unwrap_or(depth),
            _ => {}
        }
        found.push(layout::USER_STACK_LOW.wrapping_sub(depth.cast_unsigned()));
        match item {
            Item::Op(op) => depth += deepens(op),
            Item::Piece(Piece::Jump(_, Target::Label(label))) => {
                labels.insert(*label, depth);
            }
            Item::Piece(_) => {}
        }
    }
    found
}

/// By how many bytes an instruction moves rsp down.
fn deepens(op: &Op) -> i32 {
    let insn = &op.insn;
    match insn.mnemonic() {
        Mnemonic::Push => 8,
        Mnemonic::Pop => -8,
        Mnemonic::Lea | Mnemonic::Add | Mnemonic::Sub if insn.op0_register() == Register::RSP => {
            let immediate = || insn.try_immediate(1).unwrap_or(0) as i32;
            match insn.mnemonic() {
                Mnemonic::Lea => -(insn.memory_displacement64() as i32),
                Mnemonic::Add => -immediate(),
                _ => immediate(),
            }
        }
        _ => 0,
    }
}
