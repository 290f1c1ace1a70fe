//! A progress bar on standard error, for people who wait: only on a terminal, and only for what takes its time.

use cordon_rewriter::progress::{Phase, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal as _, stderr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Nobody waits for less than this.
const SHORT: Duration = Duration::from_millis(400);
const REDRAW: Duration = Duration::from_millis(80);

/// Does `work` and shows how far it is.
pub fn watched<R>(progress: &Progress, quiet: bool, work: impl FnOnce() -> R) -> R {
    if quiet || !stderr().is_terminal() {
        return work();
    }
    std::thread::scope(|scope| {
        let (running, ended) = channel();
        scope.spawn(move || show(progress, &ended));
        let result = work();
        drop(running);
        result
    })
}

/// Draws until the other end of `ended` is gone.
fn show(progress: &Progress, ended: &Receiver<()>) {
    let goes_on = |wait| ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout);
    if !goes_on(SHORT) {
        return;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = |form| ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    let (counted, plain) = (style("{msg:10} [{bar:40}] {pos}/{len} functions"), style("{msg}"));
    loop {
        let (phase, done, total) = progress.now();
        bar.set_style(if total == 0 { plain.clone() } else { counted.clone() });
        bar.set_message(name(phase));
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if !goes_on(REDRAW) {
            break;
        }
    }
    bar.finish_and_clear();
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Reading => "reading",
        Phase::Analysing => "analysing",
        Phase::Planning => "planning",
        Phase::Placing => "placing",
        Phase::Checking => "checking",
        Phase::Writing => "writing",
    }
}
