//! A body's planned code as single instructions, and back.

use crate::plan::memory::FREE;
use crate::plan::{Piece, Plan, Target};
use cordon_checker::policy::Host;
use cordon_checker::{Description, Flow, describe_in};
use foldhash::HashMap;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::collections::{BTreeMap, BTreeSet};

/// One instruction, or one fused unit of the checker.
#[derive(Clone, Debug)]
pub struct Op {
    pub bytes: Vec<u8>,
    /// What the checker's tables say about it.
    pub what: Description,
    /// The instruction; of a unit the first one.
    pub insn: Instruction,
}

impl Op {
    /// The instruction or unit at the start of `bytes`, if the checker lists it in any mode; parts of units that only modes have are apart.
    #[must_use]
    pub fn first(bytes: &[u8]) -> Option<Op> {
        let what = describe_in(bytes, Host::User, FREE).ok()?;
        let bytes = bytes.get(..what.len)?.to_vec();
        let insn = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        Some(Op { bytes, what, insn })
    }
}

/// What a body's code consists of.
#[derive(Clone, Debug)]
pub enum Item {
    Op(Op),
    /// Everything but [`Piece::Bytes`] and [`Piece::Stub`].
    Piece(Piece),
}

impl Item {
    /// `jcc` (low nibble of its opcode) or `jmp`.
    #[must_use]
    pub fn jump(condition: Option<u8>, to: Target) -> Item {
        Item::Piece(Piece::Jump(condition, to))
    }

    /// Whether control goes on to the next item.
    #[must_use]
    pub fn falls(&self) -> bool {
        match self {
            Item::Op(op) => !matches!(op.what.flow, Flow::Return | Flow::Trap | Flow::Jump(_) | Flow::TableJump { .. }),
            Item::Piece(piece) => !matches!(piece, Piece::Jump(None, _) | Piece::JumpOut(None, _)),
        }
    }

    /// Whether it calls something: a function, through a table, or the host.
    #[must_use]
    pub fn calls(&self) -> bool {
        match self {
            Item::Op(op) => matches!(op.what.flow, Flow::Call(_) | Flow::TableCall { .. }),
            Item::Piece(piece) => matches!(piece, Piece::Call(_)),
        }
    }
}

/// A place that ends the call on purpose: a `ud2` of its own for every check and every meter.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// Label in front of what it reports.
    pub place: u32,
    pub fuel: bool,
}

/// A body's code while it is being instrumented.
#[derive(Clone, Debug)]
pub struct Code {
    pub items: Vec<Item>,
    /// Stubs by the label that branches to them name. They are no items: [`Code::write`] places them.
    pub stops: BTreeMap<u32, Stop>,
    /// Nodes that a table, a call or the host may enter: nothing is known there.
    pub entered: BTreeSet<u32>,
    /// Other functions jump to its entry.
    pub tail_called: bool,
    /// Displacement from native to data stack.
    pub stack_shift: i32,
    labels: u32,
}

impl Code {
    /// Splits a plan's bytes into instructions.
    ///
    /// # Errors
    /// Bytes that the checker does not list (a bug of the planner).
    pub fn read(plan: &Plan, entered: BTreeSet<u32>, tail_called: bool, stack_shift: i32) -> Result<Code, Vec<u8>> {
        let mut items = Vec::with_capacity(plan.pieces.len() * 2);
        for piece in &plan.pieces {
            let Piece::Bytes(bytes) = piece else {
                items.push(Item::Piece(piece.clone()));
                continue;
            };
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let op = Op::first(rest).ok_or_else(|| rest.to_vec())?;
                rest = &rest[op.bytes.len()..];
                items.push(Item::Op(op));
            }
        }
        Ok(Code { items, stops: BTreeMap::new(), entered, tail_called, stack_shift, labels: plan.labels })
    }

    /// A label that nothing uses yet.
    pub fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    /// A new stub that reports `place` (a label); gives the label to branch to.
    pub fn stop(&mut self, place: u32, fuel: bool) -> u32 {
        let label = self.label();
        self.stops.insert(label, Stop { place, fuel });
        label
    }

    /// Whether a branch to `target` ends the call.
    #[must_use]
    pub fn is_stop(&self, target: Target) -> bool {
        matches!(target, Target::Label(label) if self.stops.contains_key(&label))
    }

    /// Index of the item that marks each target.
    #[must_use]
    pub fn marks(&self) -> HashMap<Target, usize> {
        let mark = |(i, item): (usize, &Item)| match item {
            Item::Piece(Piece::Node(n)) => Some((Target::Node(*n), i)),
            Item::Piece(Piece::Label(l)) => Some((Target::Label(*l), i)),
            _ => None,
        };
        self.items.iter().enumerate().filter_map(mark).collect()
    }

    /// Per item: the indices of the jumps that lead to it.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Vec<usize>> {
        let marks = self.marks();
        let mut found = vec![Vec::new(); self.items.len()];
        for (i, item) in self.items.iter().enumerate() {
            if let Item::Piece(Piece::Jump(_, to)) = item
                && let Some(&mark) = marks.get(to)
            {
                found[mark].push(i);
            }
        }
        found
    }

    /// Whether the checker joins states at item `i`: a jump, a table or the host leads there.
    #[must_use]
    pub fn is_joined(&self, i: usize, arrivals: &[Vec<usize>]) -> bool {
        !arrivals[i].is_empty() || matches!(&self.items[i], Item::Piece(Piece::Node(n)) if self.entered.contains(n))
    }

    /// Puts `edits[i]` in front of item `i` (in order of the map).
    pub fn insert(&mut self, mut edits: BTreeMap<usize, Vec<Item>>) {
        if edits.is_empty() {
            return;
        }
        let mut made = Vec::with_capacity(self.items.len() + 4 * edits.len());
        for (i, item) in std::mem::take(&mut self.items).into_iter().enumerate() {
            made.extend(edits.remove(&i).unwrap_or_default());
            made.push(item);
        }
        self.items = made;
    }

    /// The plan's pieces again, with the stubs behind the code that branches to them.
    pub fn write(self, plan: &mut Plan) {
        let mut writer = Writer { code: &self, pieces: Vec::new(), at: 0, open: Vec::new() };
        for item in &self.items {
            writer.item(item);
        }
        writer.place(true);
        plan.pieces = writer.pieces;
        plan.labels = self.labels;
    }
}

/// How far behind its branch a stub may lie for the branch to stay short, estimated bytes.
const NEAR: u32 = 112;

struct Writer<'a> {
    code: &'a Code,
    pieces: Vec<Piece>,
    /// Bytes so far, about.
    at: u32,
    /// Stubs that are not placed yet, with the estimated place of their branch.
    open: Vec<(u32, u32)>,
}

impl Writer<'_> {
    fn item(&mut self, item: &Item) {
        match item {
            Item::Op(op) => {
                self.at += op.bytes.len() as u32;
                match self.pieces.last_mut() {
                    Some(Piece::Bytes(last)) => last.extend_from_slice(&op.bytes),
                    _ => self.pieces.push(Piece::Bytes(op.bytes.clone())),
                }
            }
            Item::Piece(piece) => {
                self.at += match piece {
                    Piece::Node(_) | Piece::Label(_) | Piece::Forget(_) => 0,
                    Piece::Jump(..) => 3,
                    _ => 6,
                };
                if let Piece::Jump(Some(_), Target::Label(label)) = piece
                    && self.code.stops.contains_key(label)
                {
                    self.open.push((*label, self.at));
                }
                self.pieces.push(piece.clone());
            }
        }
        if !item.falls() {
            self.place(false);
        }
    }

    /// Control does not come past here: places the open stubs whose branches reach them short, or all.
    fn place(&mut self, all: bool) {
        let near = |from: u32| all || self.at - from <= NEAR;
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.open).into_iter().partition(|(_, from)| near(*from));
        self.open = later;
        for (label, _) in now {
            let Stop { place, fuel } = self.code.stops[&label];
            self.pieces.push(Piece::Label(label));
            self.pieces.push(Piece::Stub { place: Target::Label(place), fuel });
            self.at += 2;
        }
    }
}
