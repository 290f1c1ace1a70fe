//! `cordon demo`: handlers compiled here and now, fenced, checked, run over generated packets, compared with native code.

mod build;
mod hostile;
mod packets;
mod zlib;

use super::Format;
use super::outcome::{Exit, Failure, Problem, Report};
use clap::ValueEnum;
use cordon_fixtures::{pcap, traffic};
use serde_json::{Value, json};
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;

/// Compile handlers, fence them, run them over packets, compare with native
///
/// Compiles handlers from the literature (packet filters, checksums, parsers, a load balancer, …) with the machine's gcc, rewrites and
/// checks them, and runs each over a generated capture twice: as native code in a process of its own, and in a window of this process.
/// Every return value and every byte of the packet buffers must be the same. Then handlers that are wrong or hostile: each must be
/// stopped or confined. Last the time against native, in an ordinary window and in the fast window at address 0.
///
/// `cordon demo zlib` instead takes Debian's prebuilt libz.a, compresses and restores many megabytes in a window, and compares every
/// call with native.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Exit code 0: everything as it must be; 1: something differs, a fault was missed, or an image was refused; 2: no compiler.")]
pub struct Args {
    /// What to show
    #[arg(value_enum, default_value_t, value_name = "PART")]
    pub part: Part,
    /// How many packets to generate
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    pub packets: u32,
    /// Seed of the packet generator
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many MiB zlib is given
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub mib: u32,
    /// Interleaved rounds of timing
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Write the generated capture to this file
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// The demonstrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Handlers over a generated capture, and hostile ones.
    #[default]
    Packets,
    /// Debian's prebuilt libz.a.
    Zlib,
}

/// Prints progress for people; nothing where JSON is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Console(Format);

impl Console {
    /// One line. A reader that went away changes nothing.
    pub fn line(self, line: fmt::Arguments<'_>) {
        if self.0 == Format::Text {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}

/// What is wrong with a part of the demonstration; empty = nothing.
pub type Wrong = Vec<String>;

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    let console = Console(args.format);
    let workshop = build::Workshop::new().map_err(broken)?;
    match args.part {
        Part::Packets => over_packets(args, &workshop, console),
        Part::Zlib => zlib::show(args, &workshop, console),
    }
}

fn over_packets(args: &Args, workshop: &build::Workshop, console: Console) -> Result<Report, Failure> {
    let capture = pcap::write(&traffic::frames(args.seed, args.packets as usize));
    if let Some(path) = &args.save {
        std::fs::write(path, &capture).map_err(|e| Failure::file(path, "write", &e))?;
    }
    let frames = pcap::read(&capture).map_err(|e| broken(e.into()))?;
    let megabytes = capture.len() as f64 / 1e6;
    console.line(format_args!("{} packets, {megabytes:.1} MB, seed {}", frames.len(), args.seed));
    let packets = packets::show(args, workshop, &frames, console)?;
    let hostile = hostile::show(workshop, console)?;
    let wrong: Wrong = packets.wrong.iter().chain(&hostile.wrong).cloned().collect();
    if !wrong.is_empty() {
        let problem = Problem::new("demo", format!("{} things are not as they must be", wrong.len()));
        return Err(Failure::one(Exit::Refused, problem.detail("wrong", wrong.join("\n"))));
    }
    Ok(Report { text: summary(&packets, &hostile), json: summary_json(&packets, &hostile) })
}

/// A failure of the surroundings: no compiler, no memory, no fast window.
pub fn broken(error: anyhow::Error) -> Failure {
    Failure::usage("demo", format!("{error:#}"))
}

/// The middle value; `NaN` of none.
fn median(mut values: Vec<u64>) -> f64 {
    values.sort_unstable();
    values.get(values.len() / 2).map_or(f64::NAN, |&v| v as f64)
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "not available".into(), |r| format!("{r:.3}"))
}

fn summary(packets: &packets::Shown, hostile: &hostile::Shown) -> String {
    format!(
        "\nSummary\n  \
         {} handlers, {} calls: every result and every byte of the packet buffers as native\n  \
         {} wrong or hostile calls: {} stopped with a report, {} confined to their window; the host went on\n  \
         time against native, with the packet's copy and the entry (geometric mean): {} in a window, {} in the fast window\n  \
         entering and leaving: {}\n  \
         text growth: {:+.1} %\nEverything is as it must be.\n",
        packets.rows.len(),
        packets.calls,
        hostile.stopped + hostile.confined,
        hostile.stopped,
        hostile.confined,
        ratio(packets.ratio()),
        ratio(packets.fast_ratio()),
        packets.entry,
        (packets.growth() - 1.0) * 100.0,
    )
}

fn summary_json(packets: &packets::Shown, hostile: &hostile::Shown) -> Value {
    let rows = packets.rows.iter().map(|r| {
        json!({
            "entry": r.entry,
            "nonzero": r.nonzero,
            "native_ns": r.times.native,
            "window_ns": r.times.window,
            "fast_window_ns": r.times.fast,
        })
    });
    json!({
        "calls": packets.calls,
        "equal": true,
        "handlers": rows.collect::<Vec<_>>(),
        "ratio": packets.ratio(),
        "fast_ratio": packets.fast_ratio(),
        "growth": packets.growth(),
        "empty_call_ns": { "native": packets.entry.native, "window": packets.entry.window, "fast_window": packets.entry.fast },
        "stopped": hostile.stopped,
        "confined": hostile.confined,
    })
}
