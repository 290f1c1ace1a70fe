//! Random programs that the checker accepts, in all modes, and damaged ones that it still accepts, run in a canary process.
//!
//! Millions, each known by its number and the seed: `scripts/canary programs [TRIES [SEED]]`.

use cordon_canary::grammar::{self, Pool};
use cordon_canary::{
    Counts, Outcome, Pace, Place, Program, Random, Subject, lacking, modes, mutate, run_from, set_up, start_before,
};
use cordon_checker::note::NoteSpec;
use cordon_checker::{Mode, Protect, sample};
use std::process::Command;

/// Set in the process that runs programs.
const CHILD: &str = "CORDON_CANARY_CHILD";
/// Damaged programs for each accepted one.
const MUTANTS: usize = 8;
/// Runs of each, from other registers and places.
const RUNS: usize = 2;
/// One run in so many goes step by step, for so many steps.
const STEPPED: usize = 8;
const STEPS: u32 = 64;
/// Most bytes of a program.
const ROOM: usize = 0x4000;
/// Most items of a program.
const ITEMS: usize = 40;

/// Counts of all runs.
#[derive(Debug, Default)]
struct Tally {
    programs: u64,
    accepted: u64,
    mutants: u64,
    mutants_accepted: u64,
    /// Accepted texts by [`modes`].
    by_mode: [u64; 8],
    counts: Counts,
}

/// What programs of one mode are made of.
struct Maker {
    base: NoteSpec,
    pool: usize,
}

/// A run of each accepted program from its beginning, and the others from anywhere.
fn run(place: &mut Place, program: &Program, scratch: &[u64], random: &mut Random, counts: &mut Counts) -> Result<(), String> {
    let subject = Subject { text: &program.text, scratch, spec: &program.spec };
    for nth in 0..RUNS {
        let from = if nth == 0 { Some(0) } else { start_before(&subject, random.below(program.text.len()), 0) };
        // A mutant may begin with something else than an instruction.
        let Some(from) = from.and_then(|from| start_before(&subject, from, 0)) else { continue };
        let pace = if random.one_in(STEPPED) { Pace::Steps(STEPS) } else { Pace::Free };
        run_from(place, &subject, from, pace, random, counts)?;
    }
    Ok(())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Everything; in a process of its own.
fn soak(tries: u64, seed: u64) -> Tally {
    let mut place = Place::new(&sample::user(), &[], ROOM);
    set_up();
    let stores = Mode { protect: Protect::Stores, ..Mode::default() };
    let pools = [Mode::default(), stores].map(|mode| Pool::new(mode, lacking(), 4000));
    let makers = modes()
        .map(|mode| Maker { base: NoteSpec { mode, ..sample::user() }, pool: usize::from(mode.protect == Protect::Stores) });
    let mut tally = Tally::default();
    for index in 0..tries {
        // Each program by its number alone.
        let mut random = Random((seed << 40 ^ index).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        for _ in 0..4 {
            random.next();
        }
        // Half of them plain sandbox.
        let which = if random.one_in(2) { 0 } else { random.below(8) };
        let maker = &makers[which];
        let program = grammar::program(&pools[maker.pool], &maker.base, ITEMS, &mut random);
        tally.programs += 1;
        let Some(scratch) = program.judge().filter(|_| program.text.len() <= ROOM) else { continue };
        tally.accepted += 1;
        tally.by_mode[which] += 1;
        let fail = |what: &str, text: &[u8], wrong: String| {
            panic!("seed {seed}, program {index}, {:?}, {what}: {wrong}: {text:02x?}", maker.base.mode)
        };
        if let Err(wrong) = run(&mut place, &program, &scratch, &mut random, &mut tally.counts) {
            fail("as generated", &program.text, wrong);
        }
        for _ in 0..MUTANTS {
            let (mutant, what) = mutate::damage(&program, &scratch, &mut random);
            tally.mutants += 1;
            if let Some(scratch) = mutant.judge().filter(|_| mutant.text.len() <= ROOM) {
                tally.mutants_accepted += 1;
                tally.by_mode[which] += 1;
                if let Err(wrong) = run(&mut place, &mutant, &scratch, &mut random, &mut tally.counts) {
                    fail(what, &mutant.text, wrong);
                }
            }
        }
    }
    tally
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
    let tally = soak(tries, seed);
    println!(
        "seed {seed}: {} programs, {} accepted; {} mutants, {} accepted; accepted by mode {:?}; {:?}",
        tally.programs, tally.accepted, tally.mutants, tally.mutants_accepted, tally.by_mode, tally.counts
    );
    assert!(tally.accepted > tries / 4 && tally.mutants_accepted > tally.accepted, "the generator fits the checker no more");
    assert!(tally.by_mode.iter().all(|accepted| *accepted > tries / 50), "a mode is hardly tried: {:?}", tally.by_mode);
    assert!(tally.counts.outcomes.get(&Outcome::Returned).is_some_and(|returned| *returned > tries / 8), "few programs return");
}
