//! Small programs of the operations that the state rules are about.

pub mod graph;

use crate::assembly::{assemble, branch};
use cordon_checker::layout::{Slot, SubTable, USER_TABLE};
use cordon_checker::note::NoteSpec;
use cordon_checker::sample;
use proptest::prelude::*;

/// D of the programs, in units of 8 bytes.
pub const DEPTH: usize = 6;
/// States of the sub-tables.
pub const SWITCHES: [State; 2] = [State { depth: 2, set: 3 }, State { depth: 1, set: 0 }];
/// Where the second sub-table lies: behind the four slots of the sample layout's one.
const SECOND: i32 = USER_TABLE + 0xa0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// In units of 8 bytes.
    pub depth: usize,
    pub set: u64,
}

/// One instruction; targets are indices into the program.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Nop,
    Push,
    Pop,
    Down(usize),
    Up(usize),
    Jcc(usize),
    Jmp(usize),
    Call(usize),
    /// Jump through a sub-table.
    Switch(usize),
    /// Call and jump through the main table.
    TableCall,
    TableJump,
    ImportCall,
    ImportJump,
    Ret,
    Stop,
    Hint(State),
}

impl Op {
    /// Whether control does not fall through.
    pub fn ends(self) -> bool {
        matches!(self, Op::Jmp(_) | Op::Switch(_) | Op::TableJump | Op::ImportJump | Op::Ret | Op::Stop)
    }
}

#[derive(Clone, Debug)]
pub struct Program {
    pub ops: Vec<Op>,
    /// An entry besides the first instruction.
    pub entry: usize,
    /// Targets of the sub-tables.
    pub labels: [Vec<usize>; 2],
    /// Targets of the main table.
    pub slots: Vec<usize>,
}

impl Program {
    pub fn entries(&self) -> impl Iterator<Item = usize> + use<> {
        [0, self.entry].into_iter()
    }

    /// Where control comes from outside, and with which state.
    pub fn seeds(&self) -> Vec<(usize, State)> {
        let functions = self.entries().chain(self.slots.iter().copied()).map(|at| (at, State::default()));
        let labels = self.labels.iter().zip(SWITCHES).flat_map(|(labels, state)| labels.iter().map(move |&at| (at, state)));
        functions.chain(labels).collect()
    }

    /// Where control goes from `at`, which is entered in `before`, and with which state.
    pub fn edges(&self, at: usize, before: State) -> Vec<(usize, State)> {
        let next = at + 1;
        let below = |depth: usize| (1_u64 << depth) - 1;
        match self.ops[at] {
            Op::Nop | Op::Hint(_) | Op::TableCall | Op::ImportCall => vec![(next, before)],
            Op::Push => vec![(next, State { depth: before.depth + 1, set: before.set | 1 << before.depth })],
            Op::Pop if before.depth == 0 => Vec::new(),
            Op::Pop => vec![(next, State { depth: before.depth - 1, set: before.set & below(before.depth - 1) })],
            Op::Down(n) => vec![(next, State { depth: before.depth + n, set: before.set })],
            Op::Up(n) => {
                let depth = before.depth.saturating_sub(n);
                vec![(next, State { depth, set: before.set & below(depth) })]
            }
            Op::Jcc(to) => vec![(next, before), (to, before)],
            Op::Jmp(to) => vec![(to, before)],
            Op::Call(to) => vec![(next, before), (to, State::default())],
            Op::Switch(_) | Op::TableJump | Op::ImportJump | Op::Ret | Op::Stop => Vec::new(),
        }
    }

    /// Whether the operation itself is allowed in `before`.
    pub fn allowed(&self, at: usize, before: State) -> bool {
        match self.ops[at] {
            Op::Push => before.depth < DEPTH,
            Op::Pop => before.depth > 0 && before.set >> (before.depth - 1) & 1 == 1,
            Op::Down(n) => before.depth + n <= DEPTH,
            Op::Up(n) => n <= before.depth,
            Op::Ret | Op::TableJump | Op::ImportJump => before.depth == 0,
            Op::Hint(state) => state.depth <= DEPTH && state.set < 1 << state.depth,
            Op::Switch(i) => before.depth == SWITCHES[i].depth && before.set & SWITCHES[i].set == SWITCHES[i].set,
            _ => true,
        }
    }

    /// Bytes and layout.
    pub fn assemble(&self) -> (Vec<u8>, NoteSpec) {
        let (text, offsets) = assemble(&self.ops, encode);
        let mut spec = sample::user();
        spec.max_depth = 8 * DEPTH as u32;
        spec.entries = self.entries().map(|at| (offsets[at] as u32, "entry".into())).collect();
        let slots = |places: &[usize]| -> Vec<Slot> { places.iter().map(|&at| Slot::Text(offsets[at] as u32)).collect() };
        spec.slots.extend(slots(&self.slots));
        spec.sub_tables[0].1 = slots(&self.labels[0]);
        let State { depth, set } = SWITCHES[1];
        let second = SubTable { base: SECOND, bits: 2, depth: 8 * depth as u32, set, first: 0, count: 0 };
        spec.sub_tables.push((second, slots(&self.labels[1])));
        (text, spec)
    }
}

fn encode(op: Op, at: usize, offsets: &[usize]) -> Vec<u8> {
    match op {
        Op::Nop => vec![0x90],
        Op::Push => vec![0x50],
        Op::Pop => vec![0x58],
        Op::Down(n) => vec![0x48, 0x83, 0xec, 8 * n as u8],
        Op::Up(n) => vec![0x48, 0x83, 0xc4, 8 * n as u8],
        Op::Jcc(to) => branch(&[0x0f, 0x84], to, at, offsets),
        Op::Jmp(to) => branch(&[0xe9], to, at, offsets),
        Op::Call(to) => branch(&[0xe8], to, at, offsets),
        Op::Switch(i) => vec![0x83, 0xe0, 0x18, 0x65, 0xff, 0xa0, [0x80, 0xa0][i], 0, 1, 0],
        Op::TableCall => vec![0x83, 0xe0, 0x78, 0x65, 0xff, 0x90, 0, 0, 1, 0],
        Op::TableJump => vec![0x83, 0xe0, 0x78, 0x65, 0xff, 0xa0, 0, 0, 1, 0],
        Op::ImportCall => vec![0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0],
        Op::ImportJump => vec![0x65, 0xff, 0x24, 0x25, 8, 0, 1, 0],
        Op::Ret => vec![0xc3],
        Op::Stop => vec![0x0f, 0x0b],
        Op::Hint(state) => {
            let immediate = state.depth as u32 | (state.set as u32) << 20;
            [&[0x0f, 0x1f, 0x84, 0xc0][..], &immediate.to_le_bytes()].concat()
        }
    }
}

/// Programs of up to 12 operations: random choices, bent towards what the linear order allows so that many are accepted.
pub fn programs() -> impl Strategy<Value = Program> {
    let op = (0_u8..16, any::<u8>(), any::<u8>());
    (prop::collection::vec(op, 1..12), any::<u8>(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(
        |(choices, entry, labels)| {
            let count = choices.len() + 1;
            let mut model = State::default();
            let mut before = Vec::new();
            let mut ops = Vec::new();
            for (kind, a, b) in choices {
                before.push(model);
                let op = choose(kind, usize::from(a), usize::from(b), model, &before, count);
                ops.push(op);
                model = follow(op, model, &before, b);
            }
            before.push(model);
            ops.push(if model.depth == 0 { Op::Ret } else { Op::Stop });
            let starting = |state: State| before.iter().enumerate().filter(move |(_, s)| **s == state).map(|(at, _)| at);
            let entries: Vec<usize> = starting(State::default()).collect();
            let labels = SWITCHES.map(|state| {
                let switch: Vec<usize> = starting(state).collect();
                labels.iter().filter_map(|&l| switch.get(usize::from(l) % switch.len().max(1)).copied()).collect()
            });
            Program { entry: entries[usize::from(entry) % entries.len()], ops, labels, slots: Vec::new() }
        },
    )
}

/// An operation that mostly fits `model`.
fn choose(kind: u8, a: usize, b: usize, model: State, before: &[State], count: usize) -> Op {
    let same: Vec<usize> = before.iter().enumerate().filter(|(_, s)| s.depth == model.depth).map(|(at, _)| at).collect();
    let target = if b.is_multiple_of(4) {
        a % count
    } else if b % 4 == 1 {
        (before.len() + a % 3).min(count - 1)
    } else {
        same[a % same.len()]
    };
    match kind {
        0..=2 if model.depth < DEPTH || b == 7 => Op::Push,
        3..=4 if model.depth > 0 || b == 7 => Op::Pop,
        5 => Op::Down(1 + a % 2),
        6 if model.depth > 0 => Op::Up(1 + a % model.depth.min(2)),
        7..=8 => Op::Jcc(target),
        9 => Op::Jmp(target),
        10 => Op::Call(if b.is_multiple_of(3) { target } else { 0 }),
        11 if model.depth == 2 => Op::Switch(0),
        11 if model.depth == 1 => Op::Switch(1),
        12 if b.is_multiple_of(5) => [Op::TableCall, Op::ImportCall, Op::TableJump, Op::ImportJump][a % 4],
        12 if model.depth == 0 || b == 7 => Op::Ret,
        13 if a.is_multiple_of(5) => Op::Hint(State { depth: a % 3, set: b as u64 & 3 }),
        14 => Op::Stop,
        _ => Op::Nop,
    }
}

/// The generator's idea of the state after `op`; after an end of flow any earlier state may come back (through an edge or a hint).
fn follow(op: Op, model: State, before: &[State], pick: u8) -> State {
    let below = |depth: usize| (1_u64 << depth) - 1;
    match op {
        Op::Push => State { depth: model.depth + 1, set: model.set | 1 << model.depth },
        Op::Pop => State { depth: model.depth.saturating_sub(1), set: model.set & below(model.depth.saturating_sub(1)) },
        Op::Down(n) => State { depth: model.depth + n, set: model.set },
        Op::Up(n) => State { depth: model.depth - n, set: model.set & below(model.depth - n) },
        Op::Hint(state) => state,
        _ if op.ends() && pick.is_multiple_of(2) => State::default(),
        _ if op.ends() => before[usize::from(pick) % before.len()],
        _ => model,
    }
}
