//! Single operations: calls, windows, images, faults and limits, each beside what the others have like it.

mod cordon;
mod peers;

use crate::results::Figure;
use crate::rows::Amount;
use crate::workshop::Workshop;
use anyhow::Result;
use cordon_fixtures::catalog::{Fixture, Language};
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// What everything is measured with.
pub const FIXTURE: Fixture = fixture("micro", include_str!("micro/micro.c"));
/// The host function, for native programs.
pub const HOST: Fixture = fixture("host", "int host_add(int a, int b) { return (int)((unsigned)a + (unsigned)b); }\n");
/// Bytes of arguments.
const LENGTHS: [usize; 2] = [64, 1500];
/// Measurements of which the least counts.
const TRIES: u32 = 15;

const fn fixture(name: &'static str, source: &'static str) -> Fixture {
    Fixture { name, language: Language::C, source, flags: &[], only: None, libraries: &[], script: |_| Vec::new() }
}

/// Figures in the order in which they are asked for first.
#[derive(Default)]
struct Sink {
    figures: Vec<Figure>,
}

impl Sink {
    /// Nanoseconds.
    fn put(&mut self, name: &str, column: &str, value: f64) {
        self.count(name, column, value, "ns", None);
    }

    /// Something else, with a remark.
    fn count(&mut self, name: &str, column: &str, value: f64, unit: &str, note: Option<String>) {
        let index = self.figures.iter().position(|f| f.name == name).unwrap_or_else(|| {
            let figure = Figure { name: name.into(), unit: unit.into(), values: [].into(), note: String::new() };
            self.figures.push(figure);
            self.figures.len() - 1
        });
        let figure = &mut self.figures[index];
        figure.values.insert(column.into(), value);
        figure.note.push_str(&note.unwrap_or_default());
    }
}

impl Amount {
    /// A number for a smoke test or for measuring.
    const fn of(self, smoke: u32, measure: u32) -> u32 {
        match self {
            Amount::Smoke => smoke,
            Amount::Measure => measure,
        }
    }
}

/// The least of several measurements of `rounds` rounds each, nanoseconds of the clock on the wall for one round.
fn least(amount: Amount, rounds: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..amount.of(1, TRIES) {
        let start = Instant::now();
        for _ in 0..rounds {
            work()?;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
    Ok(best)
}

fn micro_seconds(ns: f64) -> f64 {
    ns / 1e3
}

fn argument(length: usize) -> String {
    format!("call with {length} bytes")
}

/// Calls of a host function which may reach the memory of its caller, and of one which gets and gives numbers only.
const HOST_CALLS: [&str; 2] = ["host call", "host call without context"];

fn latency(limit: Duration) -> String {
    format!("late stop of a time limit of {} ms", limit.as_millis())
}

/// Every figure.
///
/// # Errors
/// If something cannot be built, or does not end as it must.
pub fn measure(workshop: &Workshop, amount: Amount, bar: &ProgressBar) -> Result<Vec<Figure>> {
    let mut sink = Sink::default();
    cordon::measure(workshop, amount, &mut sink, bar)?;
    peers::measure(workshop, amount, &mut sink, bar)?;
    Ok(sink.figures)
}
