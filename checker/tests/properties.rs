//! The stateful rules against two independent models: what every execution path does, and a naive fixpoint of the rules.

mod assembly;
mod program;

use assembly::{accepts, cases, samples};
use program::{Op, Program, State};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Follows every path of the program with concrete stacks; `Err` tells what went wrong and where.
fn explore(program: &Program) -> Result<(), String> {
    let mut seen: BTreeSet<(usize, Vec<bool>)> = BTreeSet::new();
    let mut work: Vec<(usize, Vec<bool>)> =
        program.entries().chain(program.slots.iter().copied()).map(|at| (at, Vec::new())).collect();
    while let Some((at, stack)) = work.pop() {
        if !seen.insert((at, stack.clone())) {
            continue;
        }
        let Some(op) = program.ops.get(at) else { return Err(format!("runs off at {at}")) };
        let mut after = stack.clone();
        match *op {
            Op::Nop | Op::Hint(_) => {}
            Op::Push => after.push(true),
            Op::Pop => match after.pop() {
                Some(true) => {}
                top => return Err(format!("pops {top:?} at {at}")),
            },
            Op::Down(n) => after.extend(vec![false; n]),
            Op::Up(n) => {
                let Some(kept) = after.len().checked_sub(n) else { return Err(format!("rsp above entry at {at}")) };
                after.truncate(kept);
            }
            Op::Jcc(to) => work.push((to, after.clone())),
            Op::Jmp(to) => {
                work.push((to, after));
                continue;
            }
            // The callee is explored as an entry of its own; it gives the stack back.
            Op::Call(to) => work.push((to, Vec::new())),
            // What the slots lead to is explored from outside.
            Op::TableCall | Op::ImportCall => {}
            Op::TableJump | Op::ImportJump if stack.is_empty() => continue,
            Op::TableJump | Op::ImportJump => return Err(format!("leaves its frame behind at {at}")),
            Op::Switch(table) => {
                work.extend(program.labels[table].iter().map(|&to| (to, after.clone())));
                let State { depth, set } = program::SWITCHES[table];
                if after.len() != depth || after.iter().enumerate().any(|(i, &pushed)| set >> i & 1 == 1 && !pushed) {
                    return Err(format!("switch at {at} with {after:?}"));
                }
                continue;
            }
            Op::Ret if stack.is_empty() => continue,
            Op::Ret => return Err(format!("returns to a frame slot at {at}")),
            Op::Stop => continue,
        }
        if after.len() > program::DEPTH {
            return Err(format!("deeper than D at {at}"));
        }
        work.push((at + 1, after));
    }
    Ok(())
}

/// The rules of SPEC "State", computed the naive way: sweep over the forward edges until nothing changes, then judge every edge.
fn fixpoint(program: &Program) -> bool {
    let count = program.ops.len();
    let mut states: Vec<Option<State>> = vec![None; count];
    let seeds = program.seeds();
    let mut after_flow = vec![true; count];
    let mut padding = vec![false; count];
    // Forward edges only, so what is known of the instructions in front of one is final after as many sweeps.
    for _ in 0..=count {
        for at in 0..count {
            let mut incoming: Vec<State> = seeds.iter().filter(|(to, _)| *to == at).map(|(_, state)| *state).collect();
            for (from, before) in states[..at].iter().enumerate() {
                if let Some(before) = *before {
                    incoming.extend(program.edges(from, before).into_iter().filter(|(to, _)| *to == at).map(|(_, s)| s));
                }
            }
            after_flow[at] = at == 0 || program.ops[at - 1].ends() || padding[at - 1];
            padding[at] = false;
            if after_flow[at] {
                match program.ops[at] {
                    Op::Hint(state) => incoming.push(state),
                    Op::Nop if incoming.is_empty() => padding[at] = true,
                    _ if incoming.is_empty() => incoming.push(State::default()),
                    _ => {}
                }
            }
            let Some(&first) = incoming.first() else { continue };
            if incoming.iter().any(|state| state.depth != first.depth) {
                return false;
            }
            states[at] = Some(State { depth: first.depth, set: incoming.iter().fold(!0, |set, state| set & state.set) });
        }
    }
    (0..count).all(|at| {
        let Some(before) = states[at] else { return padding[at] };
        let hint_placed = !matches!(program.ops[at], Op::Hint(_)) || after_flow[at];
        let edges_agree = program.edges(at, before).iter().all(|&(to, state)| {
            states.get(to).copied().flatten().is_some_and(|s| s.depth == state.depth && state.set & s.set == s.set)
        });
        hint_placed && program.allowed(at, before) && edges_agree
    })
}

fn accepted(program: &Program) -> bool {
    accepts(program.assemble())
}

/// Short programs bent to the linear order, and graphs of blocks.
fn all() -> impl Strategy<Value = Program> {
    prop_oneof![program::programs(), program::graph::graphs()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn accepted_programs_never_break_the_stack(program in all()) {
        if accepted(&program) {
            prop_assert_eq!(explore(&program), Ok(()), "{:?}", program);
        }
    }

    #[test]
    fn one_pass_judges_as_the_naive_fixpoint(program in all()) {
        prop_assert_eq!(accepted(&program), fixpoint(&program), "{:?}", program);
    }
}

#[test]
fn generated_programs_are_often_accepted() {
    let good = |programs: Vec<Program>| programs.iter().filter(|program| accepted(program)).count();
    let short = good(samples(&program::programs(), 2000));
    let graphs = good(samples(&program::graph::graphs(), 2000));
    assert!((300..1900).contains(&short), "{short} of 2000 accepted: the properties say little");
    assert!((500..1500).contains(&graphs), "{graphs} of 2000 accepted: the properties say little");
}

/// Graphs have what reducible, forward code has not: loops that are entered in two places, blocks that only branches back lead to.
#[test]
fn accepted_graphs_are_irreducible_and_entered_backwards() {
    let programs = samples(&program::graph::graphs(), 4000);
    let accepted: Vec<&Program> = programs.iter().filter(|program| accepted(program)).collect();
    let irreducible = accepted.iter().filter(|program| program.is_irreducible()).count();
    let backwards = accepted.iter().filter(|program| program.has_block_entered_only_backwards()).count();
    assert!(irreducible > 100, "{irreducible} of {} irreducible", accepted.len());
    assert!(backwards > 100, "{backwards} of {} with blocks that are entered only backwards", accepted.len());
}
