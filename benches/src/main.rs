//! Side-by-side measurements: the same objects, linked natively and rewritten for a window.
//!
//! [`subject`] builds both forms in several code layouts, [`measure`] times them in interleaved rounds, [`stats`] takes medians,
//! [`report`] writes tables and JSON.

mod measure;
mod modes;
mod report;
mod stats;
mod subject;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

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
    Overhead(Overhead),
    /// What each mode costs in a window: flavours, metering, time limits, against native
    Modes(Overhead),
}

#[derive(Debug, clap::Args)]
struct Overhead {
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
    }
}

fn modes(args: &Overhead) -> Result<()> {
    let workshop = subject::Workshop::new()?;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for program in subject::programs(&workshop, &args.program)? {
        eprintln!("measuring {}", program.name);
        match modes::row(&workshop, &program, args.rounds) {
            Ok(row) => rows.push(row),
            Err(error) => failures.push(format!("{}: {error:#}", program.name)),
        }
    }
    let heading = format!("{}, {}, {} interleaved rounds", subject::cpu(), workshop.compiler()?, args.rounds);
    let table = modes::markdown(&heading, &rows);
    println!("{table}");
    ensure!(failures.is_empty(), "not measured:\n{}", failures.join("\n"));
    if let Some(path) = &args.update {
        report::update(path, "modes", &table)?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&modes::json(&heading, &rows))?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn overhead(args: &Overhead) -> Result<()> {
    let workshop = subject::Workshop::new()?;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for program in subject::programs(&workshop, &args.program)? {
        eprintln!("measuring {}", program.name);
        match measure::row(&workshop, &program, args.rounds) {
            Ok(row) => rows.push(row),
            Err(error) => failures.push(format!("{}: {error:#}", program.name)),
        }
    }
    let entry = measure::row(&workshop, &subject::empty_call()?, args.rounds)?;
    let setting = report::Setting { cpu: subject::cpu(), compiler: workshop.compiler()?, rounds: args.rounds, entry };
    let table = report::markdown(&setting, &rows);
    println!("{table}");
    // A table that lacks a program is not for the README.
    ensure!(failures.is_empty(), "not measured:\n{}", failures.join("\n"));
    if let Some(path) = &args.update {
        report::update(path, "overhead", &table)?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report::json(&setting, &rows))?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}
