//! Side-by-side measurements: the same objects, linked natively and rewritten for a window.
//!
//! [`subject`] builds both forms in several code layouts, [`measure`] times them in interleaved rounds, [`stats`] takes medians,
//! [`report`] writes tables and JSON. [`archives`] measures the rewriter itself, and with [`workouts`] whole
//! programs in processes of their own.

mod archives;
mod measure;
mod modes;
mod report;
mod stats;
mod subject;
mod workouts;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::path::PathBuf;
use subject::{Program, Workshop};

/// Measures sandboxed handlers against native ones.
#[derive(Debug, Parser)]
#[command(name = "cordon-benches", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time and text size of every fixture and of zlib, in a window and in the fast window, against native
    Overhead(Measurement),
    /// What each mode costs in a window: flavours, metering, time limits, against native
    Modes(Measurement),
    /// What becomes of prebuilt archives, how long the rewriter takes, and what windows cost whole programs around them
    Archives(archives::Args),
}

#[derive(Debug, clap::Args)]
struct Measurement {
    /// Measure only this fixture, or `zlib-deflate`, `zlib-inflate` (repeatable)
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// Interleaved rounds; each times every code layout on both sides
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Write the table between the markers of this document
    #[arg(long, value_name = "FILE")]
    update: Option<PathBuf>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Overhead(args) => overhead(&args),
        Command::Modes(args) => modes(&args),
        Command::Archives(args) => archives::run(&args),
    }
}

fn modes(args: &Measurement) -> Result<()> {
    let workshop = Workshop::new()?;
    let measured = Measured::of(args, &workshop, modes::row)?;
    let heading = format!("{}, {}, {} interleaved rounds", subject::cpu(), workshop.compiler()?, args.rounds);
    measured.deliver(args, "modes", &modes::markdown(&heading, &measured.rows), &modes::json(&heading, &measured.rows))
}

fn overhead(args: &Measurement) -> Result<()> {
    let workshop = Workshop::new()?;
    let measured = Measured::of(args, &workshop, measure::row)?;
    let entry = measure::row(&workshop, &subject::empty_call()?, args.rounds)?;
    let setting = report::Setting { cpu: subject::cpu(), compiler: workshop.compiler()?, rounds: args.rounds, entry };
    measured.deliver(args, "overhead", &report::markdown(&setting, &measured.rows), &report::json(&setting, &measured.rows))
}

/// What came of the programs that were asked for.
struct Measured<R> {
    rows: Vec<R>,
    /// Programs that could not be measured, with the reasons.
    failures: Vec<String>,
}

impl<R> Measured<R> {
    /// Measures every program by `row`; one that cannot be measured does not keep others from it.
    fn of(args: &Measurement, workshop: &Workshop, row: impl Fn(&Workshop, &Program, u32) -> Result<R>) -> Result<Measured<R>> {
        let mut measured = Measured { rows: Vec::new(), failures: Vec::new() };
        for program in subject::programs(workshop, &args.program)? {
            eprintln!("measuring {}", program.name);
            match row(workshop, &program, args.rounds) {
                Ok(row) => measured.rows.push(row),
                Err(error) => measured.failures.push(format!("{}: {error:#}", program.name)),
            }
        }
        Ok(measured)
    }

    /// Prints `table`; if no program is missing, writes it into `section` of the document, and `json` to its file.
    fn deliver(&self, args: &Measurement, section: &str, table: &str, json: &Value) -> Result<()> {
        println!("{table}");
        // A table that lacks a program is not for the README.
        ensure!(self.failures.is_empty(), "not measured:\n{}", self.failures.join("\n"));
        if let Some(path) = &args.update {
            report::update(path, section, table)?;
        }
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(json)?;
            std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}
