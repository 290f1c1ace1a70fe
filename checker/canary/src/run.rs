//! One run: from where, with which registers, and what is counted.

use crate::machine::{self, Outcome, Pace};
use crate::place::{Place, TEXT, secret};
use crate::random::Random;
use crate::watch::Watch;
use cordon_checker::note::{Note, NoteSpec, mode_of};
use cordon_checker::{Mode, Policy, Protect, State, check, is_start, sample, starts, state_at};
use std::collections::BTreeMap;

/// A program: its text, and the layout with its slots.
#[derive(Clone, Debug)]
pub struct Program {
    pub text: Vec<u8>,
    pub spec: NoteSpec,
}

/// Accepted text.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub text: &'a [u8],
    /// As the check left it.
    pub scratch: &'a [u64],
    pub spec: &'a NoteSpec,
}

/// What the checker knows in front of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) state: State,
    /// Registers that hold less than 2^31, by number.
    low: u16,
    /// Instructions that are paid for.
    pub(crate) credit: u16,
}

impl Known {
    /// From the scratch word (`state.rs` of the checker has its bits); `None` if no instruction starts there, or if more is known than the
    /// word says, or if it is a hint of metered text, which never runs.
    fn at(word: u64) -> Option<Known> {
        const MORE: u64 = 1 << 62;
        const UNPAYABLE: u16 = 0x3ff;
        let (low, credit) = ((word >> 34) as u16, (word >> 50) as u16 & 0x3ff);
        let state = state_at(word).filter(|_| word & MORE == 0 && credit != UNPAYABLE)?;
        Some(Known { state, low, credit })
    }
}

/// What happened.
#[derive(Debug, Default)]
pub struct Counts {
    pub runs: u64,
    /// Runs step by step, their steps, and accesses that were held to match mode's promise.
    pub stepped: u64,
    pub steps: u64,
    pub accesses: u64,
    pub outcomes: BTreeMap<Outcome, u64>,
}

/// All combinations of modes that an image may claim.
#[must_use]
pub fn modes() -> [Mode; 8] {
    std::array::from_fn(|bits| mode_of(2 * bits as u32))
}

/// Whether the checker accepts `text` under `note` for a host that demands what the note claims. `scratch` is made as long as the text.
#[must_use]
pub fn judge(text: &[u8], note: &Note<'_>, scratch: &mut Vec<u64>) -> bool {
    scratch.resize(text.len(), 0);
    check(text, &Policy { mode: note.layout.mode, ..Policy::USER }, &note.layout, scratch).is_ok()
}

impl Program {
    /// The scratch of the check, if the checker accepts the program.
    #[must_use]
    pub fn judge(&self) -> Option<Vec<u64>> {
        let mut scratch = vec![0; self.text.len()];
        let policy = Policy { mode: self.spec.mode, ..Policy::USER };
        let accepted = sample::with_layout(&self.spec, |layout| check(&self.text, &policy, layout, &mut scratch)).is_ok();
        accepted.then_some(scratch)
    }
}

/// The place, at most `back` instructions before the last one that starts at or before `at`, from which a run can begin.
#[must_use]
pub fn start_before(subject: &Subject<'_>, at: usize, back: usize) -> Option<usize> {
    let words = subject.scratch.get(..subject.text.len().min(at + 1))?;
    let backwards = words.iter().enumerate().rev().filter(|(_, word)| is_start(**word));
    let usable = |(at, word): (usize, &u64)| Known::at(*word).map(|_| at);
    backwards
        .clone()
        .skip(back)
        .find_map(usable)
        .or_else(|| backwards.clone().find_map(usable))
        .or_else(|| starts(subject.scratch, subject.text.len()).find(|start| Known::at(subject.scratch[*start]).is_some()))
}

/// Runs accepted text from the instruction at `from`, in a state that the checker counts on there, else random.
///
/// # Errors
/// What it did that it may not.
///
/// # Panics
/// If no run can begin at `from` ([`start_before`]), or the text does not fit the place.
pub fn run_from(
    place: &mut Place,
    subject: &Subject<'_>,
    from: usize,
    pace: Pace,
    random: &mut Random,
    counts: &mut Counts,
) -> Result<Outcome, String> {
    let known = Known::at(subject.scratch[from]).expect("a run can begin here");
    let mode = subject.spec.mode;
    let mut general: [u64; 16] = std::array::from_fn(|_| value(place, random));
    for (_, value) in general.iter_mut().enumerate().filter(|(number, _)| known.low >> number & 1 == 1) {
        *value &= 0x7fff_ffff;
    }
    // Now and then not even enough for what is paid for here.
    let fuel = if mode.metered { random.next() % 3000 } else { general[14] };
    general[14] = fuel;
    general[4] = place.entry_stack() - 8 * known.state.units();
    place.load(subject.text, subject.spec);
    let slots: [u64; 16] = std::array::from_fn(|_| value(place, random));
    let mut slots = slots.into_iter();
    place.push(known.state.set(), || slots.next().unwrap_or(0));
    let mut watch = Watch::new(subject, known, place.entry_stack(), fuel);
    let start = machine::Start { rip: TEXT + from as u64, general, pace, ends: mode.metered };
    let outcome = machine::run(place, &mut watch, start, mode.protect == Protect::All);
    counts.runs += 1;
    counts.stepped += u64::from(matches!(pace, Pace::Steps(_)));
    counts.steps += watch.steps;
    counts.accesses += watch.accesses;
    if let Ok(outcome) = &outcome {
        *counts.outcomes.entry(*outcome).or_default() += 1;
    }
    outcome
}

/// An offset of mapped memory, with garbage above or not, or anything; no secret.
fn value(place: &Place, random: &mut Random) -> u64 {
    let value = match random.below(8) {
        0 => random.next(),
        1 => random.next() >> random.below(64),
        2..=4 => place.offset(random) | random.next() & 0xffff_ffff_0000_0000,
        _ => place.offset(random),
    };
    if secret(value).is_some() { 0 } else { value }
}
