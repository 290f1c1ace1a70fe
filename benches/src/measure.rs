//! Interleaved timing: every round times every column of every code layout, each from fresh state.

use crate::columns::{BASELINE, COLUMNS, Column};
use crate::results::{Cell, Layout, RowResult};
use crate::rows::{Amount, Program};
use crate::stats::median;
use crate::workshop::{Built, LAYOUTS, Workshop};
use anyhow::{Context as _, Result, bail, ensure};
use cordon_fixtures::script::{Call, Expect, Outcome};
use indicatif::ProgressBar;

/// Passes over a script in one run; the first warms caches and is not counted.
const PASSES: u32 = 3;
/// The same where a pass takes many times native.
const SLOW_PASSES: u32 = 2;
/// Such columns take part in every so many-th round.
const SLOW_EVERY: u32 = 3;

/// How a comparison is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub amount: Amount,
    /// Interleaved rounds.
    pub rounds: u32,
    /// Only these columns, all if empty; the baseline is always there.
    pub columns: &'a [String],
}

impl Plan<'_> {
    fn wants(&self, column: &Column) -> bool {
        column.id == BASELINE || self.columns.is_empty() || self.columns.iter().any(|c| c == column.id)
    }

    fn layouts(&self, column: &Column) -> usize {
        if self.amount == Amount::Smoke || column.has_one_layout() { 1 } else { LAYOUTS.len() }
    }
}

/// One cell while it is measured.
struct Work {
    column: &'static Column,
    layout: usize,
    built: Built,
    times: Vec<u64>,
}

/// Measures one program in every column.
///
/// # Errors
/// If it cannot be built, or computes something else than natively: times of wrong code mean nothing.
pub fn row(workshop: &Workshop, program: &Program, plan: Plan, bar: &ProgressBar) -> Result<RowResult> {
    let mut cells = Vec::new();
    let mut work = Vec::new();
    for column in COLUMNS.iter().filter(|column| plan.wants(column)) {
        match program.impossible(column).or_else(|| workshop.lacks(column)) {
            Some(reason) => cells.push((column.id.to_owned(), Cell::None(reason.into()))),
            None => {
                for (layout, (padding, front)) in LAYOUTS.iter().enumerate().take(plan.layouts(column)) {
                    bar.set_message(format!("{}: building {}", program.name, column.title));
                    let built = workshop.build(program, column, *padding, front.as_ref());
                    let built = built.with_context(|| format!("{} in {}", program.name, column.title))?;
                    work.push(Work { column, layout, built, times: Vec::new() });
                }
            }
        }
    }
    verify(program, &mut work, bar)?;
    for round in 0..plan.rounds {
        // Nothing is always first.
        let start = round as usize * 7 % work.len().max(1);
        for index in 0..work.len() {
            let at = (start + index) % work.len();
            let one = &mut work[at];
            if one.column.is_slow() && round % SLOW_EVERY != 0 {
                continue;
            }
            bar.set_message(format!("{}, round {} of {}: {}", program.name, round + 1, plan.rounds, one.column.title));
            let passes = if one.column.is_slow() { SLOW_PASSES } else { PASSES };
            let times = one.built.runner.time(&program.calls, passes);
            let times = times.with_context(|| format!("{} in {}", program.name, one.column.title))?;
            one.times.extend(times.into_iter().skip(1));
        }
    }
    cells.extend(timed(&work)?);
    Ok(RowResult {
        name: program.name.into(),
        group: program.group.name().into(),
        calls: program.calls.len(),
        cells: cells.into_iter().collect(),
    })
}

/// The cells of what was timed.
fn timed(work: &[Work]) -> Result<Vec<(String, Cell)>> {
    let mut cells: Vec<(String, Cell)> = Vec::new();
    for one in work {
        let (least, middle) = (one.times.iter().min().copied(), median(&one.times));
        let layout = least.zip(middle).map(|(least, median)| Layout {
            padding: LAYOUTS[one.layout].0,
            least,
            median,
            passes: one.times.len(),
        });
        let layout = layout.context("no time was measured")?;
        match cells.iter_mut().find(|(id, _)| id == one.column.id) {
            Some((_, Cell::Times { layouts, .. })) => layouts.push(layout),
            _ => {
                let text = one.built.stats.map(|stats| (stats.text_in, stats.text_out));
                cells.push((one.column.id.into(), Cell::Times { layouts: vec![layout], text }));
            }
        }
    }
    Ok(cells)
}

/// Compares every result and buffer of one pass with the baseline's, in every column and layout.
fn verify(program: &Program, work: &mut [Work], bar: &ProgressBar) -> Result<()> {
    let Some((base, others)) = work.split_first_mut() else { bail!("nothing to measure") };
    ensure!(base.column.id == BASELINE, "the baseline comes first");
    let native = base.built.runner.run(&program.calls)?;
    for (call, outcome) in program.calls.iter().zip(&native) {
        ensure!(matches!(outcome, Outcome::Value { .. }), "{}: natively {outcome:?}", call.entry);
    }
    for other in others {
        bar.set_message(format!("{}: comparing {}", program.name, other.column.title));
        let name = || format!("{} in {}", program.name, other.column.title);
        let outcomes = other.built.runner.run(&program.calls).with_context(name)?;
        ensure!(outcomes.len() == native.len(), "{}: {} outcomes of {}", name(), outcomes.len(), native.len());
        for (call, (native, outcome)) in program.calls.iter().zip(native.iter().zip(&outcomes)) {
            ensure!(
                agree(call, native, outcome, other.column.is_narrow()),
                "{}: {}({} bytes, {:x?}): natively {native:x?}, there {outcome:x?}",
                name(),
                call.entry,
                call.payload.len(),
                call.args
            );
        }
    }
    Ok(())
}

/// Whether result and memory are the same; of a narrow result, the lower 32 bits count.
fn agree(call: &Call, native: &Outcome, other: &Outcome, narrow: bool) -> bool {
    let (Outcome::Value { result, memory }, Outcome::Value { result: found, memory: left }) = (native, other) else {
        return false;
    };
    let same = |a: i64, b: i64| if narrow { a as i32 == b as i32 } else { a == b };
    let known = match call.expect {
        Expect::Known(value) => same(value, *found),
        _ => true,
    };
    memory == left && same(*result, *found) && known
}

#[cfg(test)]
mod tests {
    use super::agree;
    use cordon_fixtures::script::{Call, Expect, Outcome};

    #[test]
    fn outcomes_agree_in_result_and_memory() {
        let value = |result, memory| Outcome::Value { result, memory };
        let call = Call::new("f");
        assert!(agree(&call, &value(1, 2), &value(1, 2), false));
        assert!(!agree(&call, &value(1, 2), &value(1, 3), false));
        assert!(!agree(&call, &value(1 << 32, 2), &value(0, 2), false));
        assert!(agree(&call, &value(1 << 32, 2), &value(0, 2), true));
        assert!(!agree(&call, &value(1, 2), &Outcome::Stopped, false));
        let known = call.expect(Expect::Known(5));
        assert!(!agree(&known, &value(1, 2), &value(1, 2), false));
    }
}
