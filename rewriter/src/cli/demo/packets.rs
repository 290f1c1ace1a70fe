//! Honest handlers over the capture: same results, same memory, how much slower.

use super::build::{Built, Workshop};
use super::{Args, Console, Wrong, broken, median};
use crate::cli::outcome::Failure;
use cordon_fixtures::script::{Call, HEADROOM, Outcome, judge};
use cordon_fixtures::window::WindowRunner;
use std::fmt;

/// Fixture, entry, further arguments, and whether the handler wants as much room behind the packet as the packet is long.
const HANDLERS: &[(&str, &str, [u64; 4], bool)] = &[
    ("filters", "filt_ip", [0; 4], false),
    ("filters", "filt_net", [0; 4], false),
    ("filters", "filt_arp_pair", [0; 4], false),
    ("filters", "filt_tcp_port", [443, 0, 0, 0], false),
    ("tcpdump_expr", "tcpdump_expr", [0; 4], false),
    ("http_host", "http_host", [0; 4], false),
    ("dns_names", "dns_names", [0; 4], false),
    ("cksum16", "cksum16", [0; 4], false),
    ("dilp", "dilp", [0; 4], true),
    ("crc32", "crc32_ieee", [0; 4], false),
    ("fsm", "fsm_switch", [0; 4], false),
    ("lb_katran_lite", "lb_katran_lite", [0; 4], false),
];

/// Passes of one round of timing; the first warms caches and is not counted.
const PASSES: u32 = 4;

/// Differences of one handler that are told.
const MOST_DIFFERENCES: usize = 3;
/// Calls in the measurement of the least possible call.
const EMPTY_CALLS: usize = 100_000;

/// Median times of one call, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub native: f64,
    pub window: f64,
    /// Where the process can have a fast window.
    pub fast: Option<f64>,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ns natively, {:.1} ns in a window", self.native, self.window)?;
        self.fast.map_or(Ok(()), |fast| write!(f, ", {fast:.1} ns in the fast window"))
    }
}

/// One handler's results.
#[derive(Clone, Debug)]
pub struct Row {
    pub entry: &'static str,
    pub nonzero: usize,
    same: bool,
    pub times: Times,
}

/// What was shown.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub rows: Vec<Row>,
    pub calls: usize,
    /// A handler that returns at once.
    pub entry: Times,
    /// Bytes of text of all images, before and after.
    text: (usize, usize),
    pub wrong: Wrong,
}

impl Shown {
    /// Geometric mean of the times in a window against native.
    pub fn ratio(&self) -> Option<f64> {
        geomean(self.rows.iter().map(|r| Some(r.times.window / r.times.native)))
    }

    /// The same for the fast window, if it was to be had.
    pub fn fast_ratio(&self) -> Option<f64> {
        geomean(self.rows.iter().map(|r| Some(r.times.fast? / r.times.native)))
    }

    /// Bytes of text after against before.
    pub fn growth(&self) -> f64 {
        self.text.1 as f64 / self.text.0.max(1) as f64
    }
}

fn geomean(ratios: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let logarithms: Vec<f64> = ratios.map(|r| r.map(f64::ln)).collect::<Option<_>>()?;
    (!logarithms.is_empty()).then(|| (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
}

/// Runs every handler over `frames`.
pub fn show(args: &Args, workshop: &Workshop, frames: &[&[u8]], console: Console) -> Result<Shown, Failure> {
    let mut shown = Shown::default();
    let mut built: Vec<(&str, Built)> = Vec::new();
    console.line(format_args!("\nCompiled with gcc -O2, rewritten, checked"));
    for &(fixture, ..) in HANDLERS {
        if built.iter().any(|(name, _)| *name == fixture) {
            continue;
        }
        let image = workshop.build(fixture)?;
        let (stats, summary) = (image.stats, image.image.summary());
        console.line(format_args!(
            "  {fixture:<16} {:>3} functions, text {:>5} -> {:>5} bytes; accepted: {:>4} instructions, stack depth at most {}",
            stats.functions, stats.text_in, stats.text_out, summary.instructions, summary.max_depth
        ));
        shown.text = (shown.text.0 + stats.text_in, shown.text.1 + stats.text_out);
        built.push((fixture, image));
    }
    console
        .line(format_args!("\nOver the packets, natively and in a window (nanoseconds a packet, copy of the packet included)"));
    console.line(format_args!(
        "  {:<16} {:>8}  {:<15} {:>8} {:>8} {:>6} {:>8}",
        "handler", "nonzero", "same as native", "native", "window", "", "fast"
    ));
    let mut calls: Vec<Call> = frames.iter().map(|f| Call::new("").payload(*f)).collect();
    for (fixture, entry, arguments, room) in HANDLERS {
        let Some((_, image)) = built.iter().find(|(name, _)| name == fixture) else { continue };
        for call in &mut calls {
            call.entry = entry;
            call.args = *arguments;
            call.room = if *room { call.payload.len() + HEADROOM } else { HEADROOM };
        }
        let row = one(args, image, entry, &calls, &mut shown.wrong)?;
        let Times { native, window, fast } = row.times;
        let fast = fast.map_or_else(String::new, |fast| format!("{fast:8.1} x{:.3}", fast / native));
        console.line(format_args!(
            "  {entry:<16} {:>8}  {:<15} {native:>8.1} {window:>8.1} x{:.3} {fast}",
            row.nonzero,
            if row.same { "yes" } else { "NO" },
            window / native
        ));
        shown.calls += calls.len();
        shown.rows.push(row);
    }
    if let Some((_, image)) = built.first() {
        // Without a packet the filters return after one comparison.
        let empty = vec![Call::new("filt_ip"); EMPTY_CALLS];
        shown.entry = time(args, image, &mut WindowRunner::new(&image.image, false).map_err(broken)?, &empty)?;
    }
    Ok(shown)
}

/// Compares and times one handler.
fn one(args: &Args, built: &Built, entry: &'static str, calls: &[Call], wrong: &mut Wrong) -> Result<Row, Failure> {
    let native = built.native.run(calls).map_err(broken)?;
    let mut runner = WindowRunner::new(&built.image, false).map_err(broken)?;
    let window = runner.run(calls).map_err(broken)?;
    let differences = calls.iter().zip(native.iter().zip(&window)).filter_map(|(call, (n, w))| judge(call, n, w).err());
    let before = wrong.len();
    wrong.extend(differences.take(MOST_DIFFERENCES));
    let nonzero = window.iter().filter(|o| matches!(o, Outcome::Value { result, .. } if *result != 0)).count();
    Ok(Row { entry, nonzero, same: wrong.len() == before, times: time(args, built, &mut runner, calls)? })
}

/// Times `calls` in interleaved rounds.
fn time(args: &Args, built: &Built, runner: &mut WindowRunner, calls: &[Call]) -> Result<Times, Failure> {
    let unsealed = built.unsealed()?;
    // Something else of this process may lie below 4 GiB; then there is no fast window to show.
    let mut fast_runner = WindowRunner::new(&unsealed, true).ok();
    let (mut natives, mut windows, mut fasts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let counted = |times: Vec<u64>| times.into_iter().skip(1);
        natives.extend(counted(built.native.time(calls, PASSES).map_err(broken)?));
        windows.extend(counted(runner.time(calls, PASSES).map_err(broken)?));
        if let Some(fast) = &mut fast_runner {
            fasts.extend(counted(fast.time(calls, PASSES).map_err(broken)?));
        }
    }
    let each = |times: Vec<u64>| median(times) / calls.len().max(1) as f64;
    Ok(Times { native: each(natives), window: each(windows), fast: fast_runner.is_some().then(|| each(fasts)) })
}
