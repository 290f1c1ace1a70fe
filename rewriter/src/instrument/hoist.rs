//! Checks of registers that a loop does not change, in front of the loop instead of in it.
//!
//! Only where entering the loop leads to the access whatever happens: no branch, call or fault of another kind lies between. So nothing is reported
//! that would not have happened, and nothing in another order.

use super::check::check;
use super::code::{Code, Item};
use super::induction::{Counted, Rounds, counted};
use super::known::{Solved, compared};
use super::need::{Need, need};
use crate::liveness::{Live, effect};
use crate::plan::{Piece, Planned, Target};
use cordon_checker::{Flow, Mode};
use iced_x86::{InstructionInfoFactory, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};

/// Tells the checks of counters from others where heads and registers are remembered.
const COUNTER: u8 = 1 << 4;

/// A loop with checks to put in front of it.
struct Loop {
    /// Item that marks its head.
    head: usize,
    /// Jumps that enter it.
    entering: Vec<usize>,
    /// Register and the item that needs it checked.
    wanted: Vec<(u8, usize)>,
    /// Accesses by a pointer, checked in front, and a counter, which is checked at the access.
    counted: Vec<Counted>,
}

/// What earlier rounds did.
#[derive(Debug, Default)]
pub struct Hoisted {
    /// Heads of loops, as nodes, and registers: those that were checked in front, and counters.
    done: BTreeSet<(u32, u8)>,
    /// The stubs of checks in front of loops, with head and register.
    fronts: BTreeMap<u32, (u32, u8)>,
}

/// Puts checks in front of loops; true if there was something to do.
///
/// # Errors
/// Bugs only.
pub fn hoist(code: &mut Code, solved: &Solved, live: &[Live], mode: Mode, hoisted: &mut Hoisted) -> Planned<bool> {
    let Hoisted { done, fronts } = hoisted;
    let flow = Edges::of(code);
    let mut found: Vec<Loop> = Vec::new();
    for head in 0..code.items.len() {
        if let Some(mut one) = candidate(code, &flow, solved, live, mode, head) {
            let Some(node) = node_of(&code.items[head]) else { continue };
            let low = |c: &Counted| solved.before[c.access].facts.low() >> c.pointer & 1 == 1;
            one.wanted.extend(one.counted.iter().filter(|c| !low(c)).map(|c| (c.pointer, c.access)));
            one.wanted.retain(|(register, _)| done.insert((node, *register)));
            // Pointers first: not all that is known in front of a loop is known in it. The first check of a counter serves the others.
            let settled = one.wanted.is_empty();
            one.counted.retain(|c| settled && low(c) && done.insert((node, COUNTER | c.counter)));
            if !one.wanted.is_empty() || !one.counted.is_empty() {
                found.push(one);
            }
        }
    }
    let mut edits: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
    for one in found.iter().flat_map(|one| &one.counted) {
        let place = code.label();
        // In front of the labels of the access, which checks of its pointer name.
        let is_label = |i: &usize| matches!(&code.items[*i], Item::Piece(Piece::Label(_)));
        let front = (0..one.access).rev().take_while(is_label).last().unwrap_or(one.access);
        let edit = edits.entry(front).or_default();
        edit.extend(check(one.counter, code.stop(place, false))?);
        edit.push(Item::Piece(Piece::Label(place)));
    }
    for one in &found {
        let mut front = Vec::new();
        if !one.entering.is_empty() {
            let entry = code.label();
            front.push(Item::Piece(Piece::Label(entry)));
            for &from in &one.entering {
                if let Item::Piece(Piece::Jump(_, to)) = &mut code.items[from] {
                    *to = Target::Label(entry);
                }
            }
        }
        for &(register, access) in &one.wanted {
            // A check that is taken out once more still speaks of the access that it was made for.
            let place = match check_at(code, access) {
                Some(stub) => code.stops[&stub].place,
                None => {
                    let place = code.label();
                    edits.entry(access).or_default().push(Item::Piece(Piece::Label(place)));
                    place
                }
            };
            let stub = code.stop(place, false);
            front.extend(check(register, stub)?);
            fronts.extend(node_of(&code.items[one.head]).map(|node| (stub, (node, register))));
        }
        let aligned = matches!(code.items.get(one.head.wrapping_sub(1)), Some(Item::Piece(Piece::Align)));
        edits.entry(one.head - usize::from(aligned)).or_default().splice(0..0, front);
    }
    code.insert(edits);
    Ok(!found.is_empty())
}

/// Takes hoisted checks out again that a check farther out has made needless, and those that nobody in their loop knows of: what leads back into
/// it may have lost the register.
pub fn remove_redundant(code: &mut Code, solved: &Solved, hoisted: &Hoisted) {
    let low = |i: usize, register: u8| solved.before[i].facts.low() >> register & 1 == 1;
    let heads: BTreeMap<u32, usize> = code.items.iter().enumerate().filter_map(|(i, item)| Some((node_of(item)?, i))).collect();
    let redundant = |i: usize| {
        let (Some(stub), Item::Op(op)) = (check_at(code, i), &code.items[i]) else { return false };
        let lost =
            hoisted.fronts.get(&stub).is_some_and(|(node, register)| heads.get(node).is_some_and(|&head| !low(head, *register)));
        lost || compared(op).is_some_and(|register| low(i, register))
    };
    let remove: BTreeSet<usize> = (0..code.items.len()).filter(|&i| redundant(i)).flat_map(|i| [i, i + 1]).collect();
    for &i in &remove {
        if let Item::Piece(Piece::Jump(_, Target::Label(label))) = &code.items[i] {
            code.stops.remove(label);
        }
    }
    let mut i = 0;
    code.items.retain(|_| {
        i += 1;
        !remove.contains(&(i - 1))
    });
}

/// The node that begins at `item`.
const fn node_of(item: &Item) -> Option<u32> {
    match item {
        Item::Piece(Piece::Node(node)) => Some(*node),
        _ => None,
    }
}

/// Who leads to whom.
struct Edges {
    before: Vec<Vec<usize>>,
    after: Vec<Vec<usize>>,
    entered: Vec<usize>,
}

impl Edges {
    fn of(code: &Code) -> Edges {
        let n = code.items.len();
        let mut edges = Edges { before: code.arrivals(), after: vec![Vec::new(); n], entered: Vec::new() };
        for (to, list) in edges.before.iter().enumerate() {
            for &from in list {
                edges.after[from].push(to);
            }
        }
        for (i, item) in code.items.iter().enumerate() {
            if item.falls() && i + 1 < n {
                edges.after[i].push(i + 1);
                edges.before[i + 1].push(i);
            }
            if node_of(item).is_some_and(|node| code.entered.contains(&node)) {
                edges.entered.push(i);
            }
        }
        edges
    }

    /// What `next` reaches from `from` without going through `stop`.
    fn reach(next: &[Vec<usize>], from: &[usize], stop: usize) -> Vec<bool> {
        let mut seen = vec![false; next.len()];
        seen[stop] = true;
        let mut work: Vec<usize> = from.to_vec();
        while let Some(i) = work.pop() {
            if !std::mem::replace(&mut seen[i], true) {
                work.extend(&next[i]);
            }
        }
        seen
    }
}

/// The loop that `head` begins, if checks in front of it help.
fn candidate(code: &Code, edges: &Edges, solved: &Solved, live: &[Live], mode: Mode, head: usize) -> Option<Loop> {
    let back = edges.before[head].iter().any(|&from| from > head);
    if !back || live[head].flags != 0 || edges.entered.contains(&head) {
        return None;
    }
    let first = straight(code, solved, head);
    let wanted = bases(code, solved, mode, &first);
    let sums = |i: &usize| matches!(&code.items[*i], Item::Op(op) if need(op, solved.before[*i], mode) == Some(Need::Address));
    if wanted.is_empty() && !first.iter().any(sums) {
        return None;
    }
    // What is reached without the head is not in the loop: the head dominates the loop's jumps back.
    let outside = Edges::reach(&edges.after, &edges.entered, head);
    let (entering, back): (Vec<usize>, Vec<usize>) = edges.before[head].iter().partition(|&&from| outside[from]);
    let falls = head.checked_sub(1).filter(|&i| code.items[i].falls());
    if entering.is_empty() || back.is_empty() || falls.is_some_and(|i| back.contains(&i)) {
        return None;
    }
    let body = Edges::reach(&edges.before, &back, head);
    let mut factory = InstructionInfoFactory::new();
    let mut written = 0;
    for (item, _) in code.items.iter().zip(&body).filter(|(_, inside)| **inside) {
        if item.calls() {
            return None;
        }
        if let Item::Op(op) = item {
            written |= effect(&mut factory, &op.insn).writes | op.what.gpr_writes;
        }
    }
    let wanted: Vec<_> = wanted.into_iter().filter(|(register, _)| written >> register & 1 == 0).collect();
    let rounds = Rounds { entering: &entering, inside: &body, written };
    let counted = counted(code, solved, live, mode, &first, rounds);
    let jumps = entering.into_iter().filter(|i| Some(*i) != falls || matches!(code.items[*i], Item::Piece(Piece::Jump(..))));
    let entering =
        jumps.filter(|&i| matches!(&code.items[i], Item::Piece(Piece::Jump(_, to)) if leads(code, *to, head))).collect();
    Some(Loop { head, entering, wanted, counted })
}

/// Whether `to` is the mark at item `head`.
fn leads(code: &Code, to: Target, head: usize) -> bool {
    node_of(&code.items[head]).is_some_and(|node| to == Target::Node(node))
}

/// The instructions behind `head` that come before anything else can happen.
fn straight(code: &Code, solved: &Solved, head: usize) -> Vec<usize> {
    let arrivals_end = |i: usize| matches!(&code.items[i], Item::Piece(Piece::Node(_) | Piece::Label(_))) && solved.joined[i];
    let goes_on = |i: &usize| match &code.items[*i] {
        Item::Op(op) => op.what.flow == Flow::Next && !matches!(op.insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv),
        Item::Piece(Piece::Jump(Some(7), to)) => code.is_stop(*to),
        Item::Piece(Piece::Node(_) | Piece::Label(_) | Piece::Align) => !arrivals_end(*i),
        Item::Piece(_) => false,
    };
    (head + 1..code.items.len()).take_while(goes_on).filter(|i| matches!(code.items[*i], Item::Op(_))).collect()
}

/// The registers that the instructions `first` need checked, with the accesses.
fn bases(code: &Code, solved: &Solved, mode: Mode, first: &[usize]) -> Vec<(u8, usize)> {
    let mut found: Vec<(u8, usize)> = Vec::new();
    for &i in first {
        let Item::Op(op) = &code.items[i] else { continue };
        let register = match need(op, solved.before[i], mode) {
            Some(Need::Base(base)) => Some(base),
            _ => compared(op).filter(|r| check_at(code, i).is_some() && solved.before[i].facts.low() >> r & 1 == 0),
        };
        if let Some(register) = register
            && found.iter().all(|(r, _)| *r != register)
        {
            found.push((register, i));
        }
    }
    found
}

/// The stub's label of the CHECK that begins at item `i`, if one does.
fn check_at(code: &Code, i: usize) -> Option<u32> {
    match (&code.items[i], code.items.get(i + 1)) {
        (Item::Op(op), Some(Item::Piece(Piece::Jump(Some(7), Target::Label(label))))) => {
            (compared(op).is_some() && code.stops.contains_key(label)).then_some(*label)
        }
        _ => None,
    }
}
