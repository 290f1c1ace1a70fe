//! Honest handlers over the capture: same results, same memory, how much slower.

use super::build::{Built, Workshop};
use super::{Args, Console, Wrong, broken};
use crate::cli::outcome::Failure;
use cordon_fixtures::script::{Call, HEADROOM, Outcome, judge};
use cordon_fixtures::window::WindowRunner;

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

/// One handler's results. Times are medians in nanoseconds a packet.
#[derive(Clone, Debug)]
pub struct Row {
    pub entry: &'static str,
    pub nonzero: usize,
    pub native: f64,
    pub window: f64,
    pub fast: Option<f64>,
}

/// What was shown.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    pub rows: Vec<Row>,
    pub calls: usize,
    /// Bytes of text of all images, before and after.
    text: (usize, usize),
    pub wrong: Wrong,
}

impl Shown {
    /// Geometric mean of the times in a window against native.
    pub fn ratio(&self) -> Option<f64> {
        geomean(self.rows.iter().map(|r| Some(r.window / r.native)))
    }

    /// The same for the fast window, if it was to be had.
    pub fn fast_ratio(&self) -> Option<f64> {
        geomean(self.rows.iter().map(|r| Some(r.fast? / r.native)))
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

fn median(mut values: Vec<u64>, packets: usize) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |&ns| ns as f64 / packets.max(1) as f64)
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
        "  {:<16} {:>8}  {:<15} {:>8} {:>8} {:>7} {:>8} {:>7}",
        "handler", "nonzero", "same as native", "native", "window", "", "fast", ""
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
        let fast = row.fast.map_or_else(|| (String::new(), String::new()), |f| (format!("{f:.1}"), factor(f, &row)));
        console.line(format_args!(
            "  {entry:<16} {:>8}  {:<15} {:>8.1} {:>8.1} {:>7} {:>8} {:>7}",
            row.nonzero,
            if shown.wrong.is_empty() { "yes" } else { "NO" },
            row.native,
            row.window,
            factor(row.window, &row),
            fast.0,
            fast.1
        ));
        shown.calls += calls.len();
        shown.rows.push(row);
    }
    Ok(shown)
}

fn factor(ns: f64, row: &Row) -> String {
    format!("x{:.3}", ns / row.native)
}

/// Compares and times one handler.
fn one(args: &Args, built: &Built, entry: &'static str, calls: &[Call], wrong: &mut Wrong) -> Result<Row, Failure> {
    let native = built.native.run(calls).map_err(broken)?;
    let mut runner = WindowRunner::new(&built.image, false).map_err(broken)?;
    let window = runner.run(calls).map_err(broken)?;
    let differences = calls.iter().zip(native.iter().zip(&window)).filter_map(|(call, (n, w))| judge(call, n, w).err());
    wrong.extend(differences.take(3));
    let nonzero = window.iter().filter(|o| matches!(o, Outcome::Value { result, .. } if *result != 0)).count();

    let unsealed = built.unsealed()?;
    // Something else of this process may lie below 4 GiB; then there is no fast window to show.
    let mut fast_runner = WindowRunner::new(&unsealed, true).ok();
    let (mut native_times, mut window_times, mut fast_times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        let counted = |times: Vec<u64>| times.into_iter().skip(1);
        native_times.extend(counted(built.native.time(calls, PASSES).map_err(broken)?));
        window_times.extend(counted(runner.time(calls, PASSES).map_err(broken)?));
        if let Some(fast) = &mut fast_runner {
            fast_times.extend(counted(fast.time(calls, PASSES).map_err(broken)?));
        }
    }
    Ok(Row {
        entry,
        nonzero,
        native: median(native_times, calls.len()),
        window: median(window_times, calls.len()),
        fast: fast_runner.is_some().then(|| median(fast_times, calls.len())),
    })
}
