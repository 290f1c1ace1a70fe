//! Metered images: METER, the fused `sub $charge,%r14; jb stub`, wherever the checker wants instructions paid for (DESIGN §8).
//!
//! METER stands at every place that calls, tables or the host enter, behind every hint and at every target of a backward branch; so no cycle is
//! without one, and between them control only goes forward. It charges for the longest way from there to the next METER or out of the function,
//! by the checker's own accounting. A way that leaves early has paid too much: where the longer side of a branch costs more than
//! `SLACK` beyond twice the shorter one, it gets a METER of its own.

use super::code::{Code, Item, Op};
use super::known::compared;
use super::save::Keeping;
use crate::count::COUNT_BIT;
use crate::liveness::Live;
use crate::plan::{Piece, Planned};
use cordon_checker::Flow;
use std::collections::{BTreeMap, BTreeSet};

/// Instructions that the longer side of a branch may cost beyond twice the shorter one before it is charged for by itself.
const SLACK: u32 = 64;
/// Highest charge of one METER (checker, rule Meter).
const MOST: u32 = 1023;
/// From here on a METER is put wherever flags are dead.
const LONG: u32 = 800;
/// Room in a charge for saving flags and for what branches back must bring.
const RESERVE: u32 = 100;
/// No-ops that alignment may take.
const PADDING: u32 = 2;
/// Rounds in which what backward branches must bring settles; one does unless flags are live at loop heads.
const ROUNDS: usize = 8;
/// Condition `b`: the count went below 0.
const BELOW: u8 = 2;
/// Condition `a`: a check's address is out of bounds.
const ABOVE: u8 = 7;

/// A METER in front of an item.
#[derive(Clone, Debug, Default)]
struct Meter {
    /// Instructions in front that save the flags, and behind that restore them.
    around: (Vec<Item>, Vec<Item>),
}

impl Meter {
    /// A METER where `live` is live.
    fn keeping(live: Live, stack_shift: i32) -> Planned<Meter> {
        let around = if live.flags == 0 { Default::default() } else { Keeping::new(live, COUNT_BIT, stack_shift).flags()? };
        Ok(Meter { around })
    }
}

/// Where METERs go, by item index.
type Meters = BTreeMap<usize, Meter>;

/// What the credit must be in front of each item, and what each METER charges.
#[derive(Debug)]
struct Charges {
    need: Vec<u32>,
    charge: BTreeMap<usize, u32>,
}

/// Puts METERs into `code`; `live` tells what is live before each item, `matched` whether the checker takes checks for units.
/// `extra` is charged besides: for `endbr64` and LIMIT, which take all credit of what falls into them and want it to be 1 at least.
///
/// # Errors
/// Bugs only.
pub fn insert(code: &mut Code, live: &[Live], matched: bool, extra: u32) -> Planned<()> {
    let mut ways = Ways::new(code, matched);
    let mut meters = ways.required(code, live)?;
    ways.drop_padding(code, &meters);
    ways.balance(live, &mut meters)?;
    let charges = ways.settle(live, &mut meters)?;
    let mut edits = ways.align(code, &meters);
    for (at, meter) in meters {
        let charge = charges.charge[&at];
        let mut items = meter.around.0;
        items.extend(unit(code, charge + extra)?);
        items.extend(meter.around.1);
        edits.entry(at).or_default().extend(items);
    }
    code.insert(edits);
    Ok(())
}

/// METER.
fn unit(code: &mut Code, charge: u32) -> Planned<[Item; 3]> {
    let subtract = subtract(charge);
    let op = Op::first(&subtract).filter(|_| (1..=MOST).contains(&charge));
    let op = op.ok_or_else(|| ("internal", format!("a charge of {charge}")))?;
    let place = code.label();
    let stop = code.stop(place, true);
    Ok([Item::Piece(Piece::Label(place)), Item::Op(op), Item::jump(Some(BELOW), crate::plan::Target::Label(stop))])
}

/// `sub $charge,%r14`
pub(crate) fn subtract(charge: u32) -> Vec<u8> {
    let mut bytes = vec![0x49];
    match u8::try_from(charge) {
        Ok(small @ 0..=127) => bytes.extend([0x83, 0xee, small]),
        _ => {
            bytes.extend([0x81, 0xee]);
            bytes.extend(charge.to_le_bytes());
        }
    }
    bytes
}

/// The control flow between items as far as payment is concerned.
struct Ways {
    /// What an item costs.
    cost: Vec<u32>,
    /// Control falls into the next item.
    falls: Vec<bool>,
    /// The item that a jump leads to: the first behind the mark that takes room.
    jump: Vec<Option<usize>>,
    /// Places whose credit is 0 whatever leads there.
    entered: BTreeSet<usize>,
    /// Marks and forget records take no room.
    empty: Vec<bool>,
    /// Displacement from native to data stack.
    stack_shift: i32,
}

impl Ways {
    fn new(code: &Code, matched: bool) -> Ways {
        let items = &code.items;
        let is_empty = |item: &Item| matches!(item, Item::Piece(Piece::Node(_) | Piece::Label(_) | Piece::Forget(_)));
        let empty: Vec<bool> = items.iter().map(is_empty).collect();
        let marks = code.marks();
        let jump = |item: &Item| match item {
            Item::Piece(Piece::Jump(_, to)) => marks.get(to).map(|&mark| behind(&empty, mark)),
            _ => None,
        };
        let node = |(i, item): (usize, &Item)| match item {
            Item::Piece(Piece::Node(n)) if code.entered.contains(n) => Some(behind(&empty, i)),
            _ => None,
        };
        Ways {
            cost: (0..items.len()).map(|i| if matched && ends_check(items, i) { 0 } else { cost(&items[i]) }).collect(),
            falls: items.iter().map(Item::falls).collect(),
            jump: items.iter().map(jump).collect(),
            entered: items.iter().enumerate().filter_map(node).collect(),
            empty,
            stack_shift: code.stack_shift,
        }
    }

    /// The METERs without which the checker would refuse.
    fn required(&self, code: &Code, live: &[Live]) -> Planned<Meters> {
        let n = self.cost.len();
        let mut places = self.entered.clone();
        self.cut(live, &mut places);
        let unreached = self.unreached(code);
        places.extend(unreached.iter().map(|at| at.1));
        let mut meters = Meters::new();
        for at in places.into_iter().filter(|at| *at < n) {
            let meter = if self.entered.contains(&at) { Meter::default() } else { Meter::keeping(live[at], self.stack_shift)? };
            meters.insert(at, meter);
        }
        // Where the flags must be saved first, a METER that never runs gives the credit for that.
        for (start, at) in unreached {
            if meters.get(&at).is_some_and(|m| !m.around.0.is_empty()) {
                meters.entry(start).or_default();
            }
        }
        Ok(meters)
    }

    /// Loops that nothing falls into are aligned for nothing, and METER makes them longer, so that more would cross a line of the cache.
    fn align(&self, code: &mut Code, meters: &Meters) -> BTreeMap<usize, Vec<Item>> {
        let loops: BTreeSet<usize> = self.jump.iter().enumerate().filter_map(|(i, to)| to.filter(|to| *to <= i)).collect();
        let mut edits: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
        for (start, at) in self.unreached(code) {
            if !loops.contains(&at) || !meters.contains_key(&at) || meters.contains_key(&start) && start != at {
                continue;
            }
            let hint = start > 0 && matches!(code.items[start - 1], Item::Piece(Piece::Hint(..)));
            let first = if hint { start - 1 } else { start };
            let old = (first.saturating_sub(1)..at).find(|&i| matches!(code.items[i], Item::Piece(Piece::Align)));
            match old {
                Some(old) => code.items[old] = Item::Piece(Piece::AlignFree),
                None => edits.entry(first).or_default().push(Item::Piece(Piece::AlignFree)),
            }
        }
        edits
    }

    /// Only in front of METER nobody has to know how many no-ops an alignment takes; elsewhere it begins no loop.
    fn drop_padding(&mut self, code: &mut Code, meters: &Meters) {
        for i in 0..self.cost.len() {
            let padding = matches!(code.items[i], Item::Piece(Piece::Align));
            if padding && !meters.get(&behind(&self.empty, i)).is_some_and(|m| m.around.0.is_empty()) {
                self.cost[i] = 0;
                code.items[i] = Item::Piece(Piece::Label(code.label()));
            }
        }
    }

    /// One place in each cycle; and for a branch back that closes none (out of a rare block), one in front of the branch instead of at its
    /// target, which may be in frequent code.
    fn cut(&self, live: &[Live], places: &mut BTreeSet<usize>) {
        let mut back: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, to) in self.jump.iter().enumerate() {
            if let Some(to) = to.filter(|to| *to <= i && !self.entered.contains(to)) {
                back.entry(to).or_default().push(i);
            }
        }
        let targets: BTreeSet<usize> = self.jump.iter().flatten().copied().collect();
        for (to, from) in back {
            let reached = self.reached(to);
            let mut before = Vec::new();
            for &at in &from {
                let start = self.block_start(at, &targets, places);
                before.extend([start, at].into_iter().find(|at| places.contains(at) || live[*at].flags == 0));
            }
            if before.len() < from.len() || from.iter().any(|at| reached[*at]) {
                places.insert(to);
            } else {
                places.extend(before);
            }
        }
    }

    /// What control reaches from `from` without an entered place.
    fn reached(&self, from: usize) -> Vec<bool> {
        let n = self.cost.len();
        let mut reached = vec![false; n];
        let mut work = vec![from];
        while let Some(i) = work.pop() {
            if i < n && !self.entered.contains(&i) && !std::mem::replace(&mut reached[i], true) {
                work.extend(self.jump[i]);
                work.extend(self.falls[i].then_some(i + 1));
            }
        }
        reached
    }

    /// From where control can only come to `i` straight on.
    fn block_start(&self, mut i: usize, targets: &BTreeSet<usize>, places: &BTreeSet<usize>) -> usize {
        while i > 0 && self.falls[i - 1] && !targets.contains(&i) && !places.contains(&i) {
            i -= 1;
        }
        behind_or_at(&self.empty, i)
    }

    /// Places in front of which the flow ends and to which no earlier branch leads: the checker begins there with nothing. Each with the item
    /// behind the end, or behind the hint.
    fn unreached(&self, code: &Code) -> Vec<(usize, usize)> {
        let forward: BTreeSet<usize> = self.jump.iter().enumerate().filter_map(|(i, to)| to.filter(|to| *to > i)).collect();
        let mut found = Vec::new();
        let mut start = Some(0);
        for (i, item) in code.items.iter().enumerate() {
            match item {
                Item::Piece(Piece::Hint(..)) => {
                    found.push((i + 1, behind(&self.empty, i)));
                    start = None;
                }
                Item::Piece(Piece::Align | Piece::AlignFree) if !forward.contains(&i) => {}
                _ if self.empty[i] => {}
                _ => {
                    if let Some(first) = start.filter(|_| !forward.contains(&i)) {
                        found.push((first, i));
                    }
                    start = None;
                }
            }
            if !self.falls[i] {
                start = Some(i + 1);
            }
        }
        found
    }

    /// METERs at the longer side of unequal branches and within long stretches.
    fn balance(&self, live: &[Live], meters: &mut Meters) -> Planned<()> {
        let n = self.cost.len();
        let ahead = self.charges(meters, &BTreeMap::new()).need;
        let mut need = vec![0; n + 1];
        let mut least = vec![0; n + 1];
        for i in (0..n).rev() {
            let dead = |at: usize| at < n && live[at].flags == 0;
            if let (Some(to), true) = (self.jump[i].filter(|to| *to > i), self.falls[i]) {
                let (long, short) = if need[to] > need[i + 1] { (to, i + 1) } else { (i + 1, to) };
                let at = behind_or_at(&self.empty, long);
                if need[long] > 2 * least[short] + SLACK && dead(at) && !meters.contains_key(&at) {
                    meters.insert(at, Meter::default());
                    (need[long], need[at]) = (0, 0);
                }
            }
            let jump = self.jump[i].map(|to| if to > i { (need[to], least[to]) } else { (ahead[to], 0) });
            let fall = self.falls[i].then_some((need[i + 1], least[i + 1]));
            let ways = || [jump, fall].into_iter().flatten();
            need[i] = self.cost[i] + ways().map(|way| way.0).max().unwrap_or(0);
            least[i] = self.cost[i] + ways().map(|way| way.1).min().unwrap_or(0);
            if !self.empty[i] && (need[i] > LONG && dead(i) || need[i] > MOST - RESERVE) && !meters.contains_key(&i) {
                meters.insert(i, Meter::keeping(live[i], self.stack_shift)?);
            }
            if let Some(meter) = meters.get(&i) {
                need[i] = meter.around.0.len() as u32;
            }
        }
        Ok(())
    }

    /// Charges such that backward branches to places without METER in front bring what the checker has seen there.
    ///
    /// What a METER in front of such a place charges for the way back it also charges for the way straight on, and then the way back must bring that as
    /// well: where the way back is the longer one, this goes on for ever. Ways on to such places get METERs of their own.
    fn settle(&self, live: &[Live], meters: &mut Meters) -> Planned<Charges> {
        loop {
            let mut recorded: BTreeMap<usize, u32> = BTreeMap::new();
            let mut growing = BTreeSet::new();
            for _ in 0..ROUNDS {
                let charges = self.charges(meters, &recorded);
                let seen = self.seen(meters, &charges);
                growing = self.jump.iter().enumerate().filter_map(|(i, to)| to.filter(|to| *to <= i)).collect();
                growing.retain(|to| seen[*to] > recorded.get(to).copied().unwrap_or(0));
                recorded.extend(growing.iter().map(|to| (*to, seen[*to])));
                if growing.is_empty() {
                    return Ok(charges);
                }
            }
            let before = meters.len();
            for to in growing {
                for at in self.ways_on(to) {
                    let meter = Meter::keeping(live[at], self.stack_shift)?;
                    meters.entry(at).or_insert(meter);
                }
            }
            if meters.len() == before {
                return Err(("internal", "the charges do not settle".into()));
            }
        }
    }

    /// Where METERs bound what comes to `to` from in front: between the item before and the marks at `to`, at each jump there, and behind it if it
    /// is conditional.
    fn ways_on(&self, to: usize) -> Vec<usize> {
        let marks = (0..to).rev().take_while(|&i| self.empty[i]).last().unwrap_or(to);
        let falls = marks > 0 && self.falls[marks - 1];
        let jumps = (0..to).filter(|&i| self.jump[i] == Some(to)).flat_map(|i| [Some(i), self.falls[i].then_some(i + 1)]);
        falls.then_some(marks).into_iter().chain(jumps.flatten()).collect()
    }

    /// The longest ways, backwards; branches back need what is `recorded`.
    fn charges(&self, meters: &Meters, recorded: &BTreeMap<usize, u32>) -> Charges {
        let n = self.cost.len();
        let mut need = vec![0; n + 1];
        let mut charge = BTreeMap::new();
        for i in (0..n).rev() {
            let jump = self.jump[i].map_or(0, |to| if to > i { need[to] } else { recorded.get(&to).copied().unwrap_or(0) });
            let fall = if self.falls[i] { need[i + 1] } else { 0 };
            need[i] = self.cost[i] + jump.max(fall);
            if let Some(Meter { around: (before, after) }) = meters.get(&i) {
                charge.insert(i, 1 + after.len() as u32 + need[i]);
                need[i] = before.len() as u32;
            }
        }
        Charges { need, charge }
    }

    /// What the checker sees in front of each item (0 at METER).
    fn seen(&self, meters: &Meters, charges: &Charges) -> Vec<u32> {
        let n = self.cost.len();
        let mut brought: Vec<Option<u32>> = vec![None; n + 1];
        let mut seen = vec![0; n + 1];
        let mut falling = None;
        for i in 0..n {
            let met = [falling, brought[i], self.entered.contains(&i).then_some(0)].into_iter().flatten().min();
            let meter = meters.get(&i);
            seen[i] = if meter.is_some_and(|m| m.around.0.is_empty()) { 0 } else { met.unwrap_or(0) };
            let credit = meter.map_or(met, |m| Some(charges.charge[&i] - 1 - m.around.1.len() as u32));
            // Nothing leads here: a mark behind the end of the flow.
            let Some(credit) = credit else { continue };
            let left = credit.saturating_sub(self.cost[i]);
            if let Some(to) = self.jump[i].filter(|to| *to > i) {
                brought[to] = Some(brought[to].map_or(left, |b| b.min(left)));
            }
            falling = self.falls[i].then_some(left);
        }
        seen
    }
}

/// The first item behind `i` that takes room.
fn behind(empty: &[bool], i: usize) -> usize {
    behind_or_at(empty, i + 1)
}

fn behind_or_at(empty: &[bool], i: usize) -> usize {
    (i..empty.len()).find(|&i| !empty[i]).unwrap_or(empty.len())
}

/// Whether item `i` is the branch of a check, which the comparison has paid for.
fn ends_check(items: &[Item], i: usize) -> bool {
    let branch = matches!(items[i], Item::Piece(Piece::Jump(Some(ABOVE), _)));
    branch && matches!(&items[i.max(1) - 1], Item::Op(op) if compared(op).is_some())
}

/// What the checker takes for an item.
fn cost(item: &Item) -> u32 {
    match item {
        Item::Op(op) => u32::from(op.what.flow != Flow::Trap),
        Item::Piece(
            Piece::Node(_)
            | Piece::Label(_)
            | Piece::Forget(_)
            | Piece::Hint(..)
            | Piece::Stub { .. }
            | Piece::Bytes(_)
            | Piece::Limit { .. },
        ) => 0,
        Item::Piece(Piece::Align | Piece::AlignFree) => PADDING,
        Item::Piece(Piece::Jump(..) | Piece::Call(_) | Piece::JumpOut(..)) => 1,
    }
}
