//! The rules of match and metered text against independent models: which addresses are exact, what every execution path does, and a naive
//! reference of the rules.

mod assembly;
mod modal;

use assembly::{accepts, cases, samples};
use cordon_checker::layout::MEMORY_END;
use cordon_checker::policy::Host;
use cordon_checker::{Facts, Flow, MemoryOperand, Mode, Protect, describe, describe_in, track};
use modal::{Class, Level, Op, Program};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Bytes on both sides of the window that nobody maps; an access of up to [`WIDEST`] bytes may wrap at 2^32 or not.
const NULL_ZONE: i64 = 0x1_0000;
const WIDEST: i64 = 64;
const WINDOW: i64 = 1 << 32;

/// Whether an access whose 64-bit address is `address` either goes exactly there or faults with all its bytes, each by itself.
fn is_exact(address: i64) -> bool {
    let truncated = address & (WINDOW - 1);
    let nothing_there = |from: i64, to: i64| to <= NULL_ZONE || from >= i64::from(MEMORY_END) && to <= WINDOW + NULL_ZONE;
    truncated == address || nothing_there(truncated, truncated + WIDEST)
}

/// The ends of each level, and of 64 bits.
fn ends(level: Level) -> Vec<i64> {
    match level {
        Level::Small => vec![0, 1, 0xffff],
        Level::Low => vec![0, 0xffff, 0x1_0000, 0x7fff_ffff],
        Level::Near => vec![-(1 << 30), -1, 0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff],
        Level::Any => vec![i64::MIN, -(1 << 31), -1, 0, 0xffff_ffff, WINDOW, WINDOW + 0x2_0000, i64::MAX],
    }
}

const LEVELS: [Level; 4] = [Level::Small, Level::Low, Level::Near, Level::Any];

/// Facts that give rdi and rsi these levels.
fn facts(levels: [Level; 2]) -> Facts {
    let mode = Mode { matched: true, ..Mode::default() };
    levels.iter().zip([7, 6]).fold(Facts::NONE, |facts, (&level, register)| match modal::gain(level, register) {
        Some(bytes) => track(&bytes, Host::User, mode, facts, 0).expect("accepted").after,
        None => facts,
    })
}

#[test]
fn allowed_addresses_are_exact_or_fault() {
    let near_ends = |end: i64| (end - 2..=end + 2).filter_map(|disp| i32::try_from(disp).ok());
    let interesting = [i64::from(i32::MIN), -(1 << 30), 0, 0xffc0, 0x1_0000, 1 << 30, i64::from(i32::MAX)];
    let disps: Vec<i32> = interesting.into_iter().flat_map(near_ends).collect();
    let (mut allowed, mut refused) = (0, 0);
    for base in [None, Some(4), Some(7)] {
        for index in [None, Some(6)] {
            for (levels, scale) in
                LEVELS.iter().flat_map(|&b| LEVELS.iter().map(move |&i| [b, i])).zip([1, 2, 4, 8].into_iter().cycle())
            {
                for (&disp, esp) in disps.iter().flat_map(|disp| [8_u32, 0x6fff_fff8, 0x7fff_fff8].map(|esp| (disp, esp))) {
                    for scale in [scale, 8] {
                        let memory = MemoryOperand {
                            base,
                            index,
                            scale,
                            disp,
                            bytes: 4,
                            read: true,
                            write: true,
                            prefetch: false,
                            wide: false,
                        };
                        // Without base and index the decoder takes no negative displacement.
                        if base.is_none() && index.is_none() && disp < 0 {
                            continue;
                        }
                        let (bases, indices) = match (base, index) {
                            (Some(4), _) => (vec![i64::from(esp)], index.map_or(vec![0], |_| ends(levels[1]))),
                            _ => (base.map_or(vec![0], |_| ends(levels[0])), index.map_or(vec![0], |_| ends(levels[1]))),
                        };
                        if !facts(levels).allows(&memory, esp) {
                            refused += 1;
                            continue;
                        }
                        allowed += 1;
                        for (&b, &i) in bases.iter().flat_map(|b| indices.iter().map(move |i| (b, i))) {
                            let address = b.wrapping_add(i.wrapping_mul(scale.into())).wrapping_add(disp.into());
                            assert!(is_exact(address), "{memory:?}, {levels:?}: {address:#x}");
                        }
                    }
                }
            }
        }
    }
    assert!(allowed > 500 && refused > 500, "{allowed} allowed, {refused} refused");
}

/// A callee's rsp lies anywhere below that of the entry: what is known of `lea disp(%rsp),%r32` holds for all of them.
#[test]
fn stack_addresses_have_their_level_at_every_depth_of_calls() {
    let mode = Mode { matched: true, ..Mode::default() };
    let greatest = 0x6fff_fff8_u32;
    let disps = [i32::MIN, -0x6fff_fff8, -0x1000, -16, -8, -1, 0, 1, 8, 0x10_0000, 0x1000_0007, 0x1000_0008, i32::MAX];
    let mut low = 0;
    for disp in disps {
        // lea disp(%rsp),%esi
        let bytes = [&[0x8d, 0xb4, 0x24][..], &disp.to_le_bytes()].concat();
        let after = track(&bytes, Host::User, mode, Facts::NONE, greatest).expect("accepted").after;
        let known = |mask: u16| mask >> 6 & 1 == 1;
        assert!(known(after.near()));
        low += u32::from(known(after.low()));
        for esp in [8, 16, 0x1000, 0x10_0000, greatest - 8, greatest] {
            let value = esp.wrapping_add_signed(disp);
            assert!(!known(after.low()) || value < 1 << 31, "{disp:#x} from {esp:#x}");
            assert!(!known(after.small()) || value < 1 << 16, "{disp:#x} from {esp:#x}");
        }
    }
    assert!(low >= 4, "{low}");
}

/// What is refused is refused for a reason: some value of the levels makes the address inexact, at the displacements next to the limits.
#[test]
fn limits_of_displacements_are_tight() {
    let allows = |levels: [Level; 2], index: Option<u8>, disp: i64| {
        let disp = i32::try_from(disp).expect("32 bits");
        let memory = MemoryOperand {
            base: Some(7),
            index,
            scale: 8,
            disp,
            bytes: 4,
            read: true,
            write: false,
            prefetch: false,
            wide: false,
        };
        facts(levels).allows(&memory, 8)
    };
    let near = [Level::Near, Level::Any];
    assert!(allows(near, None, 0xffc1) && !allows(near, None, 0xffc2));
    assert!(allows(near, None, -(1 << 30)) && !allows(near, None, -(1 << 30) - 1));
    let scaled = [Level::Low, Level::Small];
    let greatest = (1 << 32) + 0xffc0 - (0x7fff_ffff + 8 * 0xffff);
    assert!(allows(scaled, Some(6), greatest) && !allows(scaled, Some(6), greatest + 1));
    assert!(!is_exact(WINDOW + 0xffc1), "the last lanes of an access of 64 bytes lie behind the null zone");
    assert!(!is_exact(-(1 << 31) - 1));
}

/// Follows every path with every class of value; `Err` tells what went wrong.
fn explore(program: &Program) -> Result<(), String> {
    type Place = (usize, [Class; 2], u32);
    let mut seen: BTreeSet<Place> = BTreeSet::new();
    let unknown = || Class::ALL.into_iter().flat_map(|a| Class::ALL.map(|b| [a, b]));
    let mut work: Vec<Place> = program.entries().flat_map(|at| unknown().map(move |classes| (at, classes, 0))).collect();
    while let Some(place) = work.pop() {
        if !seen.insert(place) {
            continue;
        }
        let (at, classes, mut paid) = place;
        let Some(&op) = program.ops.get(at) else { return Err(format!("runs off at {at}")) };
        if program.mode.metered {
            match op {
                Op::Meter(charge, _) => paid = charge - 1,
                Op::Stop => {}
                // Free where an edge leads, and then METER follows at once.
                Op::Endbr => paid = 0,
                Op::Hint => return Err(format!("a hint runs at {at}")),
                _ => paid = paid.checked_sub(1).ok_or_else(|| format!("unpaid at {at}"))?,
            }
            if op == Op::WriteCount {
                return Err(format!("r14 written at {at}"));
            }
        }
        let (next, class) = (at + 1, |r: usize| classes[r]);
        let mut to = |at: usize, classes: [Class; 2]| work.push((at, classes, paid));
        match op {
            Op::Stop | Op::Ret => {}
            Op::Clear | Op::Endbr | Op::Hint | Op::Meter(..) | Op::WriteCount => to(next, classes),
            Op::Access(r, level) if program.mode.matched && !class(r).is(level) => return Err(format!("stray access at {at}")),
            Op::Access(..) => to(next, classes),
            Op::Check(r, target) => to(if class(r).is(Level::Low) { next } else { target }, classes),
            Op::Jcc(target) => {
                to(next, classes);
                to(target, classes);
            }
            Op::Jmp(target) => to(target, classes),
            Op::Call(target) => {
                unknown().for_each(|classes| to(next, classes));
                work.extend(unknown().map(|classes| (target, classes, 0)));
            }
            Op::Gain(..) | Op::Load(_) | Op::Copy(_) | Op::Add(_) => {
                modal::values_after(op, classes).into_iter().for_each(|classes| to(next, classes));
            }
        }
    }
    Ok(())
}

/// What a place knows: levels of the two registers, credit.
type Known = ([Level; 2], u32);

/// The rules of SPEC "Match" and "Metered", the naive way: sweep over forward edges until nothing changes, then judge every instruction
/// and edge.
fn reference(program: &Program) -> bool {
    let count = program.ops.len();
    let mut known: Vec<Option<Known>> = vec![None; count];
    let label = |level: Level| if level <= Level::Low { Level::Low } else { Level::Any };
    let nothing: Known = ([Level::Any; 2], 0);
    for _ in 0..=count {
        for at in 0..count {
            let op = program.ops[at];
            // From labels: entries and forward edges; what falls in comes apart.
            let mut edges: Vec<Known> = program.entries().filter(|&to| to == at).map(|_| nothing).collect();
            for (from, state) in known[..at].iter().enumerate() {
                let Some(state) = *state else { continue };
                edges.extend(program.branches(from, state).into_iter().filter(|(to, _)| *to == at).map(|(_, known)| known));
            }
            let falling = at
                .checked_sub(1)
                .filter(|&before| !program.ops[before].ends())
                .and_then(|before| known[before].map(|k| (before, k)));
            let mut state = falling.map(|(before, k)| program.falls(before, k));
            for (levels, credit) in &edges {
                let met = state.unwrap_or((levels.map(label), *credit));
                let levels = [0, 1].map(|r| label(met.0[r]).max(label(levels[r])));
                state = Some((levels, met.1.min(*credit)));
            }
            let mut state = state.unwrap_or(nothing);
            if op == Op::Hint {
                if falling.is_some() || program.mode.metered && !edges.is_empty() {
                    return false;
                }
                state = nothing;
            }
            if op == Op::Endbr && program.mode.metered {
                if falling.is_some_and(|(before, k)| program.falls(before, k).1 == 0) {
                    return false;
                }
                state.1 = 0;
            }
            if let Some(&(_, keep)) = program.forgets.iter().find(|(to, _)| *to == at) {
                state.0 = [0, 1].map(|r| if keep[r] { label(state.0[r]) } else { Level::Any });
            }
            known[at] = Some(state);
        }
    }
    let known: Vec<Known> = known.into_iter().map(|k| k.unwrap_or(nothing)).collect();
    program.ops[count - 1].ends() && (0..count).all(|at| judged(program, &known, at))
}

/// Whether the instruction at `at` and the edges from it obey the rules.
fn judged(program: &Program, known: &[Known], at: usize) -> bool {
    let (levels, credit) = known[at];
    let allowed = match program.ops[at] {
        Op::Access(r, needs) => !program.mode.matched || levels[r] <= needs,
        Op::WriteCount => !program.mode.metered,
        Op::Meter(_, target) => !program.mode.metered || program.ops[target] == Op::Stop,
        _ => true,
    };
    let free = matches!(program.ops[at], Op::Meter(..) | Op::Stop | Op::Hint | Op::Endbr);
    let paid = !program.mode.metered || free || credit > 0;
    let edges = program.branches(at, known[at]).into_iter().all(|(to, (brings, credit))| {
        if to > at {
            return true;
        }
        let target = program.ops[to];
        let (counts_on, needs) = known[to];
        // A level that no label can say closes the target; behind a ud2 nothing counts.
        let closed = counts_on.iter().any(|&level| level == Level::Small || level == Level::Near);
        let knows = (0..2).all(|r| counts_on[r] != Level::Low || brings[r] <= Level::Low);
        let facts = !program.mode.matched || target == Op::Stop || !closed && knows;
        let needs = if matches!(target, Op::Meter(..) | Op::Stop | Op::Endbr) { 0 } else { needs };
        facts && (!program.mode.metered || target != Op::Hint && credit >= needs)
    });
    allowed && paid && edges
}

fn accepted(program: &Program) -> bool {
    accepts(program.assemble())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn accepted_programs_neither_stray_nor_run_unpaid(program in modal::programs()) {
        if accepted(&program) {
            prop_assert_eq!(explore(&program), Ok(()), "{:?}", program);
        }
    }

    #[test]
    fn one_pass_judges_as_the_naive_reference(program in modal::programs()) {
        prop_assert_eq!(accepted(&program), reference(&program), "{:?}", program);
    }
}

#[test]
fn generated_programs_are_often_accepted() {
    let programs = samples(&modal::programs(), 4000);
    for (name, of_mode) in [("match", true), ("metered", false)] {
        let mine = |p: &&Program| if of_mode { p.mode.matched } else { p.mode.metered };
        let (all, good) = (programs.iter().filter(mine).count(), programs.iter().filter(mine).filter(|p| accepted(p)).count());
        assert!((all / 12..all * 19 / 20).contains(&good), "{name}: {good} of {all} accepted: the properties say little");
    }
}

/// The units are units only in their mode, and each instruction is decoded alike in all modes but for them.
#[test]
fn units_exist_in_their_mode_only() {
    let check = [0x49, 0x81, 0xf9, 0xff, 0xff, 0xff, 0x7f, 0x77, 5];
    let meter = [0x49, 0x83, 0xee, 9, 0x72, 5];
    let modes = |bits: u32| Mode {
        matched: bits & 1 != 0,
        metered: bits & 2 != 0,
        protect: if bits & 4 != 0 { Protect::Stores } else { Protect::All },
    };
    for mode in (0..8).map(modes) {
        let of_check = describe_in(&check, Host::User, mode).expect("accepted");
        let of_meter = describe_in(&meter, Host::User, mode).expect("accepted");
        let expected = if mode.matched { Flow::Check { register: 9, abort: 5 } } else { Flow::Next };
        assert_eq!((of_check.flow, of_check.len), (expected, if mode.matched { 9 } else { 7 }));
        let expected = if mode.metered { Flow::Meter { charge: 9, abort: 5 } } else { Flow::Next };
        assert_eq!((of_meter.flow, of_meter.len), (expected, if mode.metered { 6 } else { 4 }));
        assert_eq!((of_check.gpr_writes, of_meter.gpr_writes), (0, 1 << 14));
        let wide = [0x65, 0x8b, 0x07];
        assert_eq!(describe_in(&wide, Host::User, mode).is_ok(), mode.protect == Protect::Stores);
        assert_eq!(describe_in(&[0x65, 0x67, 0x8b, 0x07], Host::User, mode), describe(&[0x65, 0x67, 0x8b, 0x07], Host::User));
    }
}

#[test]
fn facts_tell_what_they_were_made_of() {
    // rsp is never among them.
    let label = Facts::at_label(0xffff);
    assert_eq!((label.small(), label.low(), label.near()), (0, 0xffef, 0xffef));
    let all = facts([Level::Small, Level::Near]);
    assert_eq!((all.small(), all.low(), all.near()), (1 << 7, 1 << 7, 1 << 7 | 1 << 6));
    assert_eq!(all.checked(6).low(), 1 << 7 | 1 << 6);
}

#[test]
fn track_judges_and_learns_as_the_checker_does() {
    let matched = Mode { matched: true, ..Mode::default() };
    let known = facts([Level::Low, Level::Any]);
    // mov %gs:(%edi),%eax
    let load = [0x65, 0x67, 0x8b, 0x07];
    let allowed = |mode: Mode, facts: Facts| track(&load, Host::User, mode, facts, 8).expect("accepted").allowed;
    assert!(allowed(matched, known) && !allowed(matched, Facts::NONE) && allowed(Mode::default(), Facts::NONE));
    assert!(!allowed(matched, facts([Level::Any, Level::Low])));
    // CHECK of rdi, then something that names no memory.
    let check = [0x48, 0x81, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x77, 0];
    assert_eq!(track(&check, Host::User, matched, Facts::NONE, 8).expect("accepted").after, Facts::at_label(1 << 7));
    assert!(track(&[0xf8], Host::User, matched, Facts::NONE, 8).expect("accepted").allowed);
}
