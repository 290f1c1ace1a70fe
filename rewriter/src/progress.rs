//! How far a run of the rewriter is, for whoever watches it from another thread. It changes nothing in the result.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What the rewriter is doing, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading objects, resolving symbols.
    Reading,
    /// Following the code of every function that is reached; more are found on the way.
    Analysing,
    /// Deciding what each instruction becomes.
    Planning,
    /// Placing code and data.
    Placing,
    /// Waiting for the checker's verdict.
    Checking,
    /// Making the image file.
    Writing,
}

const PHASES: [Phase; 6] = [Phase::Reading, Phase::Analysing, Phase::Planning, Phase::Placing, Phase::Checking, Phase::Writing];

/// Phase, and functions done in it.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicUsize,
    done: AtomicUsize,
    total: AtomicUsize,
}

impl Progress {
    /// The phase, the functions that are done in it, and those that are known; 0 of 0 in phases that are not about functions.
    #[must_use]
    pub fn now(&self) -> (Phase, usize, usize) {
        let phase = PHASES[self.phase.load(Ordering::Relaxed).min(PHASES.len() - 1)];
        (phase, self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Begins `phase`, in which `functions` are known so far.
    pub(crate) fn enter(&self, phase: Phase, functions: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(functions, Ordering::Relaxed);
        self.phase.store(phase as usize, Ordering::Relaxed);
    }

    /// `functions` more are known.
    pub(crate) fn found(&self, functions: usize) {
        self.total.fetch_add(functions, Ordering::Relaxed);
    }

    /// One function is done.
    pub(crate) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}
