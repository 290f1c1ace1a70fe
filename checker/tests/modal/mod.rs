//! Small programs of the operations that the rules of match and metered text are about.

use crate::assembly::{assemble, branch};
use cordon_checker::Mode;
use cordon_checker::layout::Forget;
use cordon_checker::note::NoteSpec;
use cordon_checker::sample;
use proptest::prelude::*;

/// What is known of a register, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// 0 to 2^16 - 1.
    Small,
    /// 0 to 2^31 - 1.
    Low,
    /// -2^30 to 2^32 - 1.
    Near,
    Any,
}

/// What a register holds: the least level that has the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Small,
    Low,
    Near,
    Wild,
}

impl Class {
    pub const ALL: [Class; 4] = [Class::Small, Class::Low, Class::Near, Class::Wild];

    /// Whether the value has that level.
    pub fn is(self, level: Level) -> bool {
        (self as u8) <= level as u8
    }
}

/// One instruction; registers are 0 (rdi) and 1 (rsi), targets are indices into the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `clc`
    Clear,
    /// An access that is exact for this level only.
    Access(usize, Level),
    /// Gives the register that level: `movzwl`, `and $0x7fffffff`, `mov %r32,%r32`.
    Gain(usize, Level),
    /// Any 64 bits.
    Load(usize),
    /// From the other register.
    Copy(usize),
    /// `add $8,%r64`
    Add(usize),
    Check(usize, usize),
    Meter(u32, usize),
    WriteCount,
    Endbr,
    Jcc(usize),
    Jmp(usize),
    Call(usize),
    Ret,
    Stop,
    Hint,
}

impl Op {
    pub fn ends(self) -> bool {
        matches!(self, Op::Jmp(_) | Op::Ret | Op::Stop)
    }
}

#[derive(Clone, Debug)]
pub struct Program {
    pub ops: Vec<Op>,
    pub mode: Mode,
    /// An entry besides the first instruction.
    pub entry: usize,
    /// Index, and which registers stay known.
    pub forgets: Vec<(usize, [bool; 2])>,
}

/// The classes that the registers may be of after `op`.
pub fn values_after(op: Op, classes: [Class; 2]) -> Vec<[Class; 2]> {
    use Class::{Low, Near, Small, Wild};
    let (register, results) = match op {
        Op::Gain(r, Level::Small) => (r, vec![Small]),
        Op::Gain(r, Level::Low) => (r, if classes[r] == Small { vec![Small] } else { vec![Small, Low] }),
        Op::Gain(r, _) => (r, if classes[r].is(Level::Low) { vec![classes[r]] } else { vec![Small, Low, Near] }),
        Op::Load(r) => (r, Class::ALL.to_vec()),
        Op::Copy(r) => (r, vec![classes[1 - r]]),
        Op::Add(r) => (
            r,
            match classes[r] {
                Small => vec![Small, Low],
                Low => vec![Low, Near],
                Near => vec![Small, Low, Near, Wild],
                Wild => Class::ALL.to_vec(),
            },
        ),
        _ => return vec![classes],
    };
    let with = |class: Class| {
        let mut after = classes;
        after[register] = class;
        after
    };
    results.into_iter().map(with).collect()
}

impl Program {
    pub fn entries(&self) -> impl Iterator<Item = usize> + use<> {
        [0, self.entry].into_iter()
    }

    /// Where branches and calls go from `at`, and what they bring.
    pub fn branches(&self, at: usize, known: ([Level; 2], u32)) -> Vec<(usize, ([Level; 2], u32))> {
        let (levels, credit) = known;
        let left = (levels, credit.saturating_sub(1));
        match self.ops[at] {
            Op::Check(_, to) | Op::Jcc(to) | Op::Jmp(to) => vec![(to, left)],
            Op::Meter(_, to) => vec![(to, (levels, 0))],
            Op::Call(to) => vec![(to, ([Level::Any; 2], 0))],
            _ => Vec::new(),
        }
    }

    /// What is known behind the instruction at `at` when it falls through.
    pub fn falls(&self, at: usize, known: ([Level; 2], u32)) -> ([Level; 2], u32) {
        let (mut levels, credit) = known;
        let old = levels;
        match self.ops[at] {
            Op::Gain(r, Level::Near) => levels[r] = levels[r].min(Level::Near),
            Op::Gain(r, level) => levels[r] = old[r].min(level),
            Op::Load(r) => levels[r] = Level::Any,
            Op::Copy(r) => levels[r] = levels[1 - r],
            Op::Add(r) => levels[r] = if old[r] <= Level::Low { Level::Near } else { Level::Any },
            // While a program grows, a target that is not there yet is the ud2 at its end.
            Op::Check(r, to) if self.ops.get(to).is_none_or(|op| *op == Op::Stop) => levels[r] = old[r].min(Level::Low),
            Op::Call(_) => levels = [Level::Any; 2],
            _ => {}
        }
        let credit = match self.ops[at] {
            Op::Meter(charge, _) => charge - 1,
            Op::Endbr | Op::Hint => 0,
            _ => credit.saturating_sub(1),
        };
        (levels, credit)
    }

    /// Bytes and layout.
    pub fn assemble(&self) -> (Vec<u8>, NoteSpec) {
        let (text, offsets) = assemble(&self.ops, encode);
        let mut spec = sample::user();
        spec.mode = self.mode;
        spec.entries = self.entries().map(|at| (offsets[at] as u32, "entry".into())).collect();
        let mask = |keep: [bool; 2]| u16::from(keep[0]) << 7 | u16::from(keep[1]) << 6;
        spec.forgets = self.forgets.iter().map(|&(at, keep)| Forget { offset: offsets[at] as u32, keep: mask(keep) }).collect();
        (text, spec)
    }
}

/// An instruction that gives the register (by number, 0 to 7) the level.
pub fn gain(level: Level, register: u8) -> Option<Vec<u8>> {
    match level {
        Level::Small => Some(vec![0x0f, 0xb7, 0xc0 | (register * 9)]),
        Level::Low => Some(vec![0x48, 0x81, 0xe0 | register, 0xff, 0xff, 0xff, 0x7f]),
        Level::Near => Some(vec![0x89, 0xc0 | (register * 9)]),
        Level::Any => None,
    }
}

fn encode(op: Op, at: usize, offsets: &[usize]) -> Vec<u8> {
    let number = |r: usize| 7 - r as u8;
    match op {
        Op::Clear => vec![0xf8],
        // Stores, since they leave all registers: mov %eax,%gs:0x20000(%r32); %gs:0(,%r32,8); %gs:(%r32)
        Op::Access(r, Level::Low) => vec![0x65, 0x67, 0x89, 0x80 | number(r), 0, 0, 2, 0],
        Op::Access(r, Level::Small) => vec![0x65, 0x67, 0x89, 0x04, 0xc5 | number(r) << 3, 0, 0, 0, 0],
        Op::Access(r, _) => vec![0x65, 0x67, 0x89, number(r)],
        Op::Gain(r, level) => gain(level, number(r)).expect("a level that an instruction gives"),
        Op::Load(r) => vec![0x65, 0x48, 0x8b, 0x04 | number(r) << 3, 0x25, 0, 0, 2, 0],
        Op::Copy(r) => vec![0x48, 0x89, 0xc0 | number(1 - r) << 3 | number(r)],
        Op::Add(r) => vec![0x48, 0x83, 0xc0 | number(r), 8],
        Op::Check(r, to) => branch(&[0x48, 0x81, 0xf8 | number(r), 0xff, 0xff, 0xff, 0x7f, 0x0f, 0x87], to, at, offsets),
        Op::Meter(charge, to) => branch(&[0x49, 0x83, 0xee, charge as u8, 0x0f, 0x82], to, at, offsets),
        Op::WriteCount => vec![0x49, 0x89, 0xc6],
        Op::Endbr => vec![0xf3, 0x0f, 0x1e, 0xfa],
        Op::Jcc(to) => branch(&[0x0f, 0x84], to, at, offsets),
        Op::Jmp(to) => branch(&[0xe9], to, at, offsets),
        Op::Call(to) => branch(&[0xe8], to, at, offsets),
        Op::Ret => vec![0xc3],
        Op::Stop => vec![0x0f, 0x0b],
        Op::Hint => vec![0x0f, 0x1f, 0x84, 0xc0, 0, 0, 0, 0],
    }
}

/// Programs of up to 14 operations, bent towards what is accepted: CHECK often leads to the `ud2` at the end, accesses and charges fit what is
/// known in a straight line, entries lie at METER.
pub fn programs() -> impl Strategy<Value = Program> {
    let op = (0_u8..20, any::<u8>(), any::<u8>());
    let forget = (any::<u8>(), any::<[bool; 2]>());
    (prop::collection::vec(op, 1..12), 0_u8..3, any::<u8>(), prop::collection::vec(forget, 0..3)).prop_map(
        |(choices, mode, entry, forgets)| {
            let mode = Mode { matched: mode != 1, metered: mode != 0, ..Mode::default() };
            let count = choices.len() + 3;
            let mut program = Program {
                ops: vec![if mode.metered { Op::Meter(9, count - 1) } else { Op::Clear }],
                mode,
                entry: 0,
                forgets: Vec::new(),
            };
            let mut known = vec![([Level::Any; 2], 0)];
            for (kind, a, b) in choices {
                let last = program.ops.len() - 1;
                let now = program.falls(last, known[last]);
                known.push(now);
                let op = choose(kind, usize::from(a), usize::from(b), now, &program, count);
                program.ops.push(op);
            }
            program.ops.push(Op::Ret);
            program.ops.push(Op::Stop);
            let heads: Vec<usize> =
                (0..count).filter(|&at| at == 0 || matches!(program.ops[at], Op::Meter(..) | Op::Endbr)).collect();
            program.entry = heads[usize::from(entry) % heads.len()];
            if mode.matched {
                let mut places: Vec<(usize, [bool; 2])> =
                    forgets.into_iter().map(|(at, keep)| (usize::from(at) % count, keep)).collect();
                places.sort_by_key(|(at, _)| *at);
                places.dedup_by_key(|(at, _)| *at);
                program.forgets = places;
            }
            program
        },
    )
}

/// An operation that mostly fits what is known.
fn choose(kind: u8, a: usize, b: usize, known: ([Level; 2], u32), program: &Program, count: usize) -> Op {
    let (at, register) = (program.ops.len(), a % 2);
    let stop = count - 1;
    let target = match b % 8 {
        0 => a % count,
        1..=2 => (at + a % 3).min(stop),
        3..=4 => a / 2 % at,
        _ => stop,
    };
    let meter = Op::Meter(1 + (a % 6) as u32, stop);
    if program.mode.metered && known.1 == 0 && b != 7 {
        return meter;
    }
    let wanted = [Level::Small, Level::Low, Level::Near][b % 3];
    match kind {
        0..=4 if known.0[register] <= wanted || b.is_multiple_of(16) => Op::Access(register, wanted),
        0..=4 if known.0[register] != Level::Any => Op::Access(register, known.0[register]),
        // Two instructions where it is no unit.
        0..=6 if !program.mode.matched => Op::Clear,
        0..=6 => Op::Check(register, if b.is_multiple_of(8) { target } else { stop }),
        7 => Op::Gain(register, wanted),
        8 => Op::Load(register),
        9 => Op::Copy(register),
        10 => Op::Add(register),
        11..=12 => Op::Jcc(target),
        13 => Op::Jmp(target),
        14 => Op::Call(if b.is_multiple_of(3) { target } else { 0 }),
        15 if b.is_multiple_of(8) => [Op::WriteCount, Op::Endbr, Op::Hint, Op::Meter(2, target)][a % 4],
        16 if b.is_multiple_of(2) => [Op::Ret, Op::Stop, Op::Endbr][a % 3],
        17 if program.mode.metered => meter,
        18 if program.ops[at - 1].ends() => Op::Hint,
        _ => Op::Clear,
    }
}
