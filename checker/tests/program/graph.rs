//! Programs as graphs of blocks: any block may lead to any whose state fits, forward or back, so that there are loops with two entries and
//! blocks that only branches back, tables or hints lead to. Half of them are damaged.

use super::{DEPTH, Op, Program, SWITCHES, State};
use proptest::prelude::*;

/// States at the beginnings of blocks.
const STATES: [State; 6] = [
    State { depth: 0, set: 0 },
    State { depth: 0, set: 0 },
    State { depth: 1, set: 1 },
    State { depth: 1, set: 0 },
    State { depth: 2, set: 3 },
    State { depth: 3, set: 5 },
];

/// A source of small numbers.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: usize) -> usize {
        // Knuth's constants for 64 bits.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

pub fn graphs() -> impl Strategy<Value = Program> {
    any::<u64>().prop_map(|seed| graph(&mut Choices(seed)))
}

fn graph(choices: &mut Choices) -> Program {
    let count = 2 + choices.below(6);
    let states: Vec<State> = (0..count).map(|i| if i == 0 { STATES[0] } else { STATES[choices.below(STATES.len())] }).collect();
    // Targets are blocks until all blocks are there.
    let (mut ops, mut starts): (Vec<Op>, Vec<usize>) = (Vec::new(), Vec::new());
    for block in 0..count {
        if choices.one_in(5) {
            ops.push(Op::Nop);
        }
        let hint = block > 0 && ops[..].last().is_none_or(|op| op.ends() || matches!(op, Op::Nop)) && choices.one_in(2);
        starts.push(ops.len());
        if hint && (states[block] != STATES[0] || choices.one_in(4)) {
            ops.push(Op::Hint(states[block]));
            if choices.one_in(2) {
                *starts.last_mut().expect("this block's") += 1;
            }
        }
        body(&mut ops, block, &states, choices);
    }
    let resolve = |to: usize| starts[to];
    for op in &mut ops {
        match op {
            Op::Jcc(to) | Op::Jmp(to) | Op::Call(to) => *to = resolve(*to),
            _ => {}
        }
    }
    let with =
        |state: State| -> Vec<usize> { (0..count).filter(|&block| states[block] == state).map(|block| starts[block]).collect() };
    let mut some = |places: Vec<usize>| -> Vec<usize> { places.into_iter().filter(|_| choices.one_in(2)).take(3).collect() };
    let functions = with(STATES[0]);
    let labels = SWITCHES.map(|state| some(with(state)));
    let slots = some(functions.clone());
    let mut program = Program { ops, entry: functions[choices.below(functions.len())], labels, slots };
    if choices.one_in(2) {
        damage(&mut program, choices);
    }
    program
}

/// From the block's state to that of a block it may lead to, and there.
fn body(ops: &mut Vec<Op>, block: usize, states: &[State], choices: &mut Choices) {
    let target = choices.below(states.len());
    let mut state = states[block];
    for _ in 0..choices.below(3) {
        match choices.below(5) {
            0 => ops.push(Op::TableCall),
            1 => ops.push(Op::ImportCall),
            2 => {
                let functions: Vec<usize> = (0..states.len()).filter(|&to| states[to] == STATES[0]).collect();
                ops.push(Op::Call(functions[choices.below(functions.len())]));
            }
            3 if state.depth < DEPTH => ops.extend([Op::Push, Op::Pop]),
            _ => ops.push(Op::Nop),
        }
    }
    if let Some(to) = (0..states.len()).find(|&to| to != block && states[to] == state && choices.one_in(2)) {
        ops.push(Op::Jcc(to));
    }
    let to = states[target];
    // Down to what both have in common, then up to the target's.
    let below = |depth: usize| (1_u64 << depth) - 1;
    while state.depth > to.depth || (state.set ^ to.set) & below(state.depth) != 0 {
        let top = state.set >> (state.depth - 1) & 1 == 1;
        ops.push(if top && !choices.one_in(3) { Op::Pop } else { Op::Up(1) });
        state = State { depth: state.depth - 1, set: state.set & below(state.depth - 1) };
    }
    while state.depth < to.depth {
        let pushed = to.set >> state.depth & 1 == 1;
        ops.push(if pushed { Op::Push } else { Op::Down(1) });
        state = State { depth: state.depth + 1, set: state.set | u64::from(pushed) << state.depth };
    }
    finish(ops, block, target, states, choices);
}

fn finish(ops: &mut Vec<Op>, block: usize, target: usize, states: &[State], choices: &mut Choices) {
    let state = states[target];
    let others: Vec<usize> = (0..states.len()).filter(|&to| states[to] == state).collect();
    let table = SWITCHES.iter().position(|switch| *switch == state);
    match choices.below(8) {
        0..=1 if block + 1 == target => {}
        0 if state.depth == 0 => ops.push(Op::Ret),
        1 if state.depth == 0 => ops.push([Op::TableJump, Op::ImportJump][choices.below(2)]),
        2 if table.is_some() => ops.push(Op::Switch(table.unwrap_or(0))),
        3 => ops.push(Op::Stop),
        4..=5 => ops.extend([Op::Jcc(others[choices.below(others.len())]), Op::Jmp(target)]),
        _ => ops.push(Op::Jmp(target)),
    }
    if block + 1 == states.len() && !ops.last().is_some_and(|op| op.ends()) {
        ops.push(Op::Stop);
    }
}

/// Changes one operation, one target, or an entry.
fn damage(program: &mut Program, choices: &mut Choices) {
    let count = program.ops.len();
    let (at, other) = (choices.below(count), choices.below(count));
    match (choices.below(4), &mut program.ops[at]) {
        (0 | 1, Op::Jcc(to) | Op::Jmp(to) | Op::Call(to)) => *to = other,
        (0 | 1, op) => *op = [Op::Nop, Op::Push, Op::Pop, Op::Down(1), Op::Up(1), Op::Ret, Op::Stop][choices.below(7)],
        (2, Op::Hint(state)) => *state = STATES[choices.below(STATES.len())],
        (2, _) => program.ops.swap(at, other),
        _ => program.slots.push(other),
    }
}

impl Program {
    /// Edges between operations, those of calls left out; tables lead to their labels.
    fn successors(&self, at: usize) -> Vec<usize> {
        match self.ops[at] {
            Op::Jcc(to) => vec![at + 1, to],
            Op::Jmp(to) => vec![to],
            Op::Switch(table) => self.labels[table].clone(),
            op if op.ends() => Vec::new(),
            _ => vec![at + 1],
        }
    }

    fn reached(&self, from: impl IntoIterator<Item = usize>, without: Option<usize>) -> Vec<bool> {
        let mut seen = vec![false; self.ops.len()];
        let mut work: Vec<usize> = from.into_iter().collect();
        while let Some(at) = work.pop() {
            if at < seen.len() && Some(at) != without && !std::mem::replace(&mut seen[at], true) {
                work.extend(self.successors(at));
            }
        }
        seen
    }

    /// Whether an edge leads back (in depth-first order from the entries) to what does not dominate its source.
    pub fn is_irreducible(&self) -> bool {
        let roots: Vec<usize> = self.seeds().into_iter().map(|(at, _)| at).collect();
        let dominates = |a: usize, b: usize| a == b || !self.reached(roots.iter().copied(), Some(a))[b];
        let live = self.reached(roots.iter().copied(), None);
        // A cycle whose every node can be avoided on the way to some other of its nodes has no head.
        (0..self.ops.len()).filter(|&at| live[at]).any(|at| {
            let from_here = self.reached(self.successors(at), None);
            let cycle: Vec<usize> = (0..self.ops.len()).filter(|&to| from_here[to] && self.reached([to], None)[at]).collect();
            from_here[at] && !cycle.iter().any(|&head| cycle.iter().all(|&node| dominates(head, node)))
        })
    }

    /// Whether some operation that no entry or slot names is reached, but from behind only.
    pub fn has_block_entered_only_backwards(&self) -> bool {
        let roots: Vec<usize> = self.seeds().into_iter().map(|(at, _)| at).collect();
        let live = self.reached(roots.iter().copied(), None);
        (1..self.ops.len()).filter(|at| live[*at] && !roots.contains(at)).any(|at| {
            let sources: Vec<usize> =
                (0..self.ops.len()).filter(|&from| live[from] && self.successors(from).contains(&at)).collect();
            !sources.is_empty() && sources.iter().all(|from| *from > at)
        })
    }
}
