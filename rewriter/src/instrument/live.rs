//! Which registers and flags matter before each item: backwards through the sequences of the nodes, from what [`crate::liveness`] knows
//! where a node ends.

use super::code::{Code, Item};
use crate::liveness::{ARGUMENTS, Live, Liveness, STATUS, effect};
use crate::plan::{Piece, Target};
use cordon_checker::Flow;
use iced_x86::{InstructionInfoFactory, Register, RflagsBits};
use std::collections::HashMap;

/// Everything may be read.
const ALL: Live = Live { registers: u16::MAX, flags: STATUS as u16 };

/// What is live before each item; a call keeps everything alive that is live after it.
#[must_use]
pub fn live(code: &Code, nodes: &Liveness) -> Vec<Live> {
    let owners = owners(code);
    let mut factory = InstructionInfoFactory::new();
    let mut found = vec![Live::default(); code.items.len()];
    let mut labels: HashMap<u32, Live> = HashMap::new();
    let mut next = Live::default();
    for (i, item) in code.items.iter().enumerate().rev() {
        let leaving = owners[i].map_or(ALL, |n| nodes.after[n as usize]);
        let at_target = |to: &Target, labels: &HashMap<u32, Live>| match to {
            Target::Node(n) => nodes.before[*n as usize],
            _ if code.is_stop(*to) => Live::default(),
            Target::Label(label) => labels.get(label).copied().unwrap_or(ALL),
        };
        let before = match item {
            Item::Op(op) => {
                let after = match op.what.flow {
                    Flow::Trap => Live::default(),
                    Flow::Return | Flow::TableJump { .. } => leaving,
                    _ => next,
                };
                let e = effect(&mut factory, &op.insn);
                let called = if item.calls() { ARGUMENTS } else { 0 };
                let kept = Live { registers: after.registers & !e.kills.registers | called, flags: after.flags & !e.kills.flags };
                kept.or(e.reads)
            }
            // What the plan computed with is at most what the original read here.
            Item::Piece(Piece::Node(n)) => nodes.before[*n as usize].or(next),
            Item::Piece(Piece::Jump(condition, to)) => {
                let fall = if condition.is_some() { next } else { Live::default() };
                let flags = condition.map_or(0, flags_of);
                at_target(to, &labels).or(fall).or(Live { registers: 0, flags })
            }
            Item::Piece(Piece::Call(_)) => Live { registers: next.registers | ARGUMENTS, flags: 0 },
            Item::Piece(Piece::JumpOut(condition, _)) => {
                let fall = if condition.is_some() { next } else { Live::default() };
                leaving.or(fall).or(Live { registers: 0, flags: condition.map_or(0, flags_of) })
            }
            Item::Piece(_) => next,
        };
        if let Item::Piece(Piece::Label(label)) = item {
            labels.insert(*label, before);
        }
        found[i] = before;
        next = before;
    }
    found
}

/// The node that each item belongs to.
fn owners(code: &Code) -> Vec<Option<u32>> {
    let mut node = None;
    let mut owner = |item: &Item| {
        if let Item::Piece(Piece::Node(n)) = item {
            node = Some(*n);
        }
        node
    };
    code.items.iter().map(&mut owner).collect()
}

/// The flags that condition `cc` (low nibble of the opcode) reads.
fn flags_of(cc: u8) -> u16 {
    let flags = match cc >> 1 {
        0 => RflagsBits::OF,
        1 => RflagsBits::CF,
        2 => RflagsBits::ZF,
        3 => RflagsBits::CF | RflagsBits::ZF,
        4 => RflagsBits::SF,
        5 => RflagsBits::PF,
        6 => RflagsBits::SF | RflagsBits::OF,
        _ => RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF,
    };
    flags as u16
}

/// The order in which scratch registers are tried: short encodings first, rsp never.
const SCRATCH: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::RBX,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBP,
    Register::R14,
    Register::R15,
    Register::R12,
    Register::R13,
];

/// Registers to choose a scratch from that are neither live (`live`) nor in `taken` (one bit each).
pub fn free(live: Live, taken: u16) -> impl Iterator<Item = Register> {
    SCRATCH.into_iter().filter(move |r| !live.has(*r) && taken >> r.number() & 1 == 0)
}
