//! The stateful rules against two independent models: what every execution path does, and a naive fixpoint of the rules.

mod program;

use cordon_checker::{Policy, sample};
use program::{Op, Program, State};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Follows every path of the program with concrete stacks; `Err` tells what went wrong and where.
fn explore(program: &Program) -> Result<(), String> {
    let mut seen: BTreeSet<(usize, Vec<bool>)> = BTreeSet::new();
    let mut work: Vec<(usize, Vec<bool>)> = program.entries().map(|at| (at, Vec::new())).collect();
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
            Op::Switch => {
                work.extend(program.labels.iter().map(|&to| (to, after.clone())));
                let expected = program::SWITCH;
                if after.len() != expected.depth || !after.iter().take(2).all(|&pushed| pushed) {
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
    let seeds: Vec<(usize, State)> = program
        .entries()
        .map(|at| (at, State::default()))
        .chain(program.labels.iter().map(|&at| (at, program::SWITCH)))
        .collect();
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
            let ends = |before: usize| matches!(program.ops[before], Op::Jmp(_) | Op::Ret | Op::Stop | Op::Switch);
            after_flow[at] = at == 0 || ends(at - 1) || padding[at - 1];
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
    let (text, spec) = program.assemble();
    sample::judge(&text, &Policy::USER, &spec).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40_000, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn accepted_programs_never_break_the_stack(program in program::programs()) {
        if accepted(&program) {
            prop_assert_eq!(explore(&program), Ok(()), "{:?}", program);
        }
    }

    #[test]
    fn one_pass_judges_as_the_naive_fixpoint(program in program::programs()) {
        prop_assert_eq!(accepted(&program), fixpoint(&program), "{:?}", program);
    }
}

#[test]
fn generated_programs_are_often_accepted() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = program::programs();
    let good = (0..2000).filter(|_| accepted(&strategy.new_tree(&mut runner).expect("a program").current())).count();
    assert!((300..1900).contains(&good), "{good} of 2000 accepted: the properties say little");
}
