//! Phase 7b: the checks that the modes ask for, put into the planned code of one body at a time (DESIGN §7, §8), and explicit masks ([`mask`]).
//!
//! The plan's bytes are taken apart into items ([`code`]), liveness is refined to them ([`live`]), the checker's knowledge of registers is solved
//! ([`known`]), checks are put where it does not suffice ([`mod@need`], [`check`], [`hoist`]), and the items become pieces again, with a stub for every
//! check placed where no control passes.

pub mod check;
pub mod code;
pub mod hoist;
pub mod induction;
pub mod known;
pub mod live;
pub mod mask;
pub mod meter;
pub mod need;
pub mod save;
pub mod scratch;

use crate::Masking;
use crate::body::{Body, Flow, Key, Node, Outside};
use crate::diag::Diagnostic;
use crate::functions::CodeRef;
use crate::liveness::Liveness;
use crate::plan::memory::FORCED;
use crate::plan::{Env, Piece, Plan, Planned, encode};
use code::{Code, Item, Op};
use cordon_checker::Mode;
use known::{Known, Solved, compared, solve};
use need::{Need, need};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Rounds after which checks must have settled. Two or three do: a register that was kept on the stack is not known any more when it comes back.
const ROUNDS: usize = 32;

/// Instruments the plan of body `index` for the mode and the masking; the sandbox with its prefixes alone needs nothing.
///
/// # Errors
/// Bugs of the planner or of this phase only.
pub fn instrument(
    env: Env<'_>,
    index: usize,
    mut plan: Plan,
    live: &Liveness,
    tail_called: &HashSet<CodeRef>,
) -> Result<Plan, Vec<Diagnostic>> {
    let mode = env.mode;
    if !mode.matched && !mode.metered && env.masking == Masking::Prefix {
        return Ok(plan);
    }
    let body = &env.chosen.bodies[index];
    let internal =
        |(rule, message)| vec![Diagnostic::new(env.program.place(body.entry.section, body.entry.offset), rule, message)];
    let shift = env.space.stack_shift.cast_signed();
    let mut code = Code::read(&plan, entered(env, index), tail_called.contains(&body.entry), shift)
        .map_err(|bytes| internal(("internal", format!("planned bytes that are no instruction: {bytes:02x?}"))))?;
    if mode.matched {
        matched(&mut code, body, live, mode).map_err(internal)?;
        tell(&code, &mut plan);
    }
    if env.masking == Masking::Explicit {
        let live = live::live(&code, live);
        for node in mask::insert(&mut code, &live, mode).map_err(internal)? {
            if let change @ &mut FORCED = &mut plan.changes[node as usize] {
                *change = "memory: its address is masked in a register first";
            }
        }
    }
    if mode.metered {
        align_hints(&mut code);
        let live = live::live(&code, live);
        meter::insert(&mut code, &live, mode.matched, u32::from(env.space.kernel)).map_err(internal)?;
    }
    code.write(&mut plan);
    Ok(plan)
}

/// Match mode: a check for each access that needs one.
fn matched(code: &mut Code, body: &Body, nodes: &Liveness, mode: Mode) -> Planned<()> {
    part_lookalikes(code);
    let gain = |op: &Op, known: Known| match need(op, known, mode) {
        Some(Need::Base(base)) => Some(base),
        _ => None,
    };
    let mut hoisted = hoist::Hoisted::default();
    let mut solved = solve(code, body, mode, gain);
    while hoist::hoist(code, &solved, &live::live(code, nodes), mode, &mut hoisted)? {
        solved = solve(code, body, mode, gain);
    }
    hoist::remove_redundant(code, &solved, &hoisted);
    for _ in 0..ROUNDS {
        let solved = solve(code, body, mode, gain);
        if !check::insert(code, &solved, &live::live(code, nodes), mode)? {
            forget(code, &solved);
            return Ok(());
        }
    }
    Err(("internal", "the checks do not settle".into()))
}

/// Notes which accesses have a check of their own.
fn tell(code: &Code, plan: &mut Plan) {
    let places: HashSet<u32> = code.stops.values().map(|stop| stop.place).collect();
    let mut node = 0;
    for item in &code.items {
        match item {
            Item::Piece(Piece::Node(n)) => node = *n as usize,
            Item::Piece(Piece::Label(label)) if places.contains(label) && plan.changes[node] == FORCED => {
                plan.changes[node] = "memory: its address is checked, then forced into the window";
            }
            _ => {}
        }
    }
}

/// Nobody pays for what stands between a hint and METER: alignment goes in front.
fn align_hints(code: &mut Code) {
    for i in 1..code.items.len() {
        if let (Item::Piece(Piece::Hint(..)), Item::Piece(Piece::Align)) = (&code.items[i - 1], &code.items[i]) {
            code.items.swap(i - 1, i);
        }
    }
}

/// Tells the checker where to forget: behind each mark that something jumps back to.
fn forget(code: &mut Code, solved: &Solved) {
    let after = |(i, keep): &(usize, u16)| (i + 1, vec![Item::Piece(Piece::Forget(*keep))]);
    code.insert(solved.forgets.iter().map(after).collect());
}

/// The program's own `cmp $LIMIT; ja` is no check. Parted by a no-op it does not look like one, so a branch to its `ja` finds it.
fn part_lookalikes(code: &mut Code) {
    let own = |(i, item): (usize, &Item)| match item {
        Item::Op(op) if compared(op).is_some() => Op::first(&encode::NO_OP).map(|op| (i + 1, vec![Item::Op(op)])),
        _ => None,
    };
    let edits: BTreeMap<usize, Vec<Item>> = code.items.iter().enumerate().filter_map(own).collect();
    code.insert(edits);
}

/// The functions that others end in a jump to.
#[must_use]
pub fn tail_called(bodies: &[Body]) -> HashSet<CodeRef> {
    let target = |node: &Node| match node.flow {
        Flow::TailCall(Outside::Function(at)) | Flow::BranchOut(Outside::Function(at), _) => Some(at),
        _ => None,
    };
    bodies.iter().flat_map(|body| &body.nodes).filter_map(target).collect()
}

/// The nodes of a body that calls or tables lead to.
pub(crate) fn entered(env: Env<'_>, index: usize) -> BTreeSet<u32> {
    let body = &env.chosen.bodies[index];
    let entry = body.node(Key { context: crate::body::Context::default(), at: body.entry });
    let mut found = BTreeSet::from([entry]);
    for group in &env.space.groups[index] {
        for context in group.bases.keys() {
            found.extend(group.slots.iter().flatten().filter_map(|at| body.index.get(&Key { context: *context, at: *at })));
        }
    }
    found
}
