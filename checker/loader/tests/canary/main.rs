//! Canary process: accepted programs run in a process of their own whose memory around the window, the native stack and the text is
//! unmapped or poisoned. At the end control must be where it may be, nothing outside has changed, and no address or poison has become visible.
//! One run in eight goes one instruction at a time: after each, control must be at an instruction start that its predecessor leads to, and rsp
//! where the checker's static depth says.
//!
//! The programs come from a grammar, and from damaging those that were accepted. Millions, each known by its number and the seed:
//! `CORDON_TRIES=1000000 CORDON_SEED=1 cargo test --release -p cordon-loader --test canary`.

#[path = "../common/features.rs"]
mod features;
mod grammar;
mod machine;
mod mutate;
mod place;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/registers.rs"]
mod registers;
#[path = "../common/signals.rs"]
mod signals;
mod watch;

use cordon_checker::{Policy, check, sample};
use grammar::{Pool, Program};
use machine::Outcome;
use place::{Place, TEXT, TEXT_LEN};
use random::Random;
use std::collections::BTreeMap;
use std::process::Command;
use watch::Watch;

/// Set in the process that runs programs.
const CHILD: &str = "CORDON_CANARY_CHILD";
/// Damaged programs for each accepted one.
const MUTANTS: usize = 8;
/// Runs of each, from other registers.
const RUNS: usize = 2;

/// One run in so many goes step by step.
const STEPPED: usize = 8;

/// Counts of a run.
#[derive(Default)]
struct Counts {
    programs: u64,
    accepted: u64,
    mutants: u64,
    mutants_accepted: u64,
    /// Runs step by step, and their steps.
    stepped: u64,
    steps: u64,
    outcomes: BTreeMap<Outcome, u64>,
}

/// The scratch of the check, if the program is accepted.
fn judge(program: &Program) -> Option<Vec<u64>> {
    let mut scratch = vec![0; program.text.len()];
    let accepted = program.text.len() < TEXT_LEN
        && sample::with_layout(&program.spec, |layout| check(&program.text, &Policy::USER, layout, &mut scratch)).is_ok();
    accepted.then_some(scratch)
}

/// Runs an accepted program; `Err` tells what it did that it may not.
fn run(place: &Place, program: &Program, scratch: &[u64], random: &mut Random, counts: &mut Counts) -> Result<(), String> {
    place.load(&program.text, &program.spec);
    let mut watch = Watch::new(&program.text, scratch, &program.spec);
    for _ in 0..RUNS {
        let mut general = [0; 16];
        for value in &mut general {
            // Offsets of mapped memory with garbage above, or anything.
            let offset = 0x1_2000 + random.next() % 0xc000;
            let garbage = if random.one_in(2) { random.next() & 0xffff_ffff_0000_0000 } else { 0 };
            *value = if random.one_in(4) { random.next() } else { garbage | offset };
            if place::secret(*value).is_some() {
                *value = 0;
            }
        }
        let stepping = random.one_in(STEPPED);
        counts.stepped += u64::from(stepping);
        let outcome = machine::run(place, &mut watch, TEXT, general, stepping)?;
        *counts.outcomes.entry(outcome).or_default() += 1;
    }
    counts.steps += watch.steps;
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Everything; in a process of its own.
fn soak(tries: u64, seed: u64) -> Counts {
    let place = Place::new();
    machine::set_up();
    let mut counts = Counts::default();
    let pool = Pool::new(&mut Random(0x9e37_79b9_7f4a_7c15), features::lacking(), 4000);
    for index in 0..tries {
        // Each program by its number alone.
        let mut random = Random((seed << 40 ^ index).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        for _ in 0..4 {
            random.next();
        }
        let program = grammar::program(&pool, place.spec(), 40, &mut random);
        counts.programs += 1;
        let Some(scratch) = judge(&program) else { continue };
        counts.accepted += 1;
        let fail = |what: &str, text: &[u8], wrong: String| panic!("seed {seed}, program {index}, {what}: {wrong}: {text:02x?}");
        if let Err(wrong) = run(&place, &program, &scratch, &mut random, &mut counts) {
            fail("as generated", &program.text, wrong);
        }
        for _ in 0..MUTANTS {
            let (mutant, what) = mutate::damage(&program, &scratch, &mut random);
            counts.mutants += 1;
            if let Some(scratch) = judge(&mutant) {
                counts.mutants_accepted += 1;
                if let Err(wrong) = run(&place, &mutant, &scratch, &mut random, &mut counts) {
                    fail(what, &mutant.text, wrong);
                }
            }
        }
    }
    counts
}

#[test]
fn accepted_programs_and_their_mutants_harm_nothing() {
    if std::env::var_os(CHILD).is_none() {
        let name = "accepted_programs_and_their_mutants_harm_nothing";
        let mut child = Command::new(std::env::current_exe().expect("this program has a path"));
        let status = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").status().expect("starts");
        assert!(status.success(), "{status}");
        return;
    }
    let (tries, seed) = (number("CORDON_TRIES", 2000), number("CORDON_SEED", 1));
    let counts = soak(tries, seed);
    println!(
        "seed {seed}: {} programs, {} accepted; {} mutants, {} accepted; {} runs step by step with {} steps; runs {:?}",
        counts.programs, counts.accepted, counts.mutants, counts.mutants_accepted, counts.stepped, counts.steps, counts.outcomes
    );
    assert!(counts.accepted > tries / 4 && counts.mutants_accepted > counts.accepted, "the generator fits the checker no more");
    assert!(counts.outcomes.get(&Outcome::Returned).is_some_and(|returned| *returned > tries / 8), "few programs return");
}
