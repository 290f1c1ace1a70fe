//! Side-by-side measurements: the same sources natively, in windows of every mode, and in what people would use instead.
//!
//! [`rows`] and [`columns`] say what is compared, [`workshop`] builds each cell, [`peers`] run it, [`measure`] times it in interleaved rounds;
//! [`micro`] measures single operations, [`archives`] the rewriter, and with [`workouts`] whole programs in processes of their own.
//! [`results`] are what all of that leaves, and [`report`] makes pages and tables of them.

mod archives;
mod columns;
mod count;
mod machine;
mod measure;
mod micro;
mod peers;
mod report;
mod results;
mod rows;
mod stats;
mod workouts;
mod workshop;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use columns::COLUMNS;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use machine::Machine;
use measure::Plan;
use results::Results;
use rows::{Amount, Program};
use std::path::PathBuf;
use std::time::Duration;
use workshop::Workshop;

/// Measures Cordon side by side with native code and with what people would use instead.
#[derive(Debug, Parser)]
#[command(name = "cordon-benches", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and write the results and a report
    Run(Run),
    /// Compare every row in every column with native, once, without any verdict on time
    Smoke(Choice),
    /// Count the instructions of every row, natively and in windows, by valgrind
    Count {
        /// Only this program (repeatable)
        #[arg(long, value_name = "NAME")]
        program: Vec<String>,
    },
    /// Make a report, or a document's tables, of results
    Report(Report),
    #[command(hide = true)]
    Pass(count::Pass),
    /// Rewrite the files of a folder and say what that takes (what the command starts itself with)
    #[command(hide = true)]
    Together {
        folder: PathBuf,
        #[arg(long, value_name = "NAME")]
        import: Vec<String>,
    },
}

/// Some rows and columns.
#[derive(Debug, clap::Args)]
struct Choice {
    /// Only this program (repeatable)
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// Only this column, and native by gcc (repeatable)
    #[arg(long, value_name = "ID")]
    column: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    choice: Choice,
    /// Interleaved rounds; each times every column in every code layout
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Interleaved rounds of the programs around archives; 0 leaves them out
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    program_rounds: u32,
    /// Leave out single operations
    #[arg(long)]
    no_micro: bool,
    /// Leave out counts of instructions
    #[arg(long)]
    no_count: bool,
    /// Leave out archives and the programs around them
    #[arg(long)]
    no_archives: bool,
    /// Why these numbers are not to be quoted; it stands in the results and on top of the report
    #[arg(long, value_name = "REASON")]
    preliminary: Option<String>,
    /// Write the results here, and the report beside them with `.html`
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Report {
    /// What `run` wrote
    results: PathBuf,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the tables between the markers of this document
    #[arg(long, value_name = "FILE")]
    update: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Smoke(choice) => smoke(&choice),
        Command::Count { program } => {
            println!("{}", report::markdown::instructions(&count(&Workshop::new()?, &program)?));
            Ok(())
        }
        Command::Report(args) => make_report(&args),
        Command::Pass(args) => count::pass(&args),
        Command::Together { folder, import } => archives::rewrite_folder(&folder, &import),
    }
}

fn run(args: &Run) -> Result<()> {
    let workshop = Workshop::new()?;
    let mut results = Results::new(Machine::this()?, args.rounds, args.preliminary.clone());
    let plan = Plan { amount: Amount::Measure, rounds: args.rounds, columns: &args.choice.column };
    let failures = compare(&workshop, &args.choice, plan, &mut results)?;
    let bar = progress(1, "other measurements");
    if !args.no_micro {
        results.micro = micro::measure(&workshop, Amount::Measure, &bar)?;
    }
    if !args.no_archives {
        results.archives = Some(archives::measure(args.program_rounds, &bar)?);
    }
    bar.finish_and_clear();
    if !args.no_count {
        results.instructions = count(&workshop, &args.choice.program)?;
    }
    results.machine.finish();
    results.date = report::now();
    results.write(&args.output)?;
    let page = args.output.with_extension("html");
    std::fs::write(&page, report::html::page(&results)).with_context(|| page.display().to_string())?;
    println!("{}\n{} and {}", report::markdown::comparison(&results), args.output.display(), page.display());
    missing(&failures)
}

fn smoke(choice: &Choice) -> Result<()> {
    let workshop = Workshop::new()?;
    let mut results = Results::new(Machine::this()?, 1, Some("a smoke test".into()));
    let plan = Plan { amount: Amount::Smoke, rounds: 1, columns: &choice.column };
    let failures = compare(&workshop, choice, plan, &mut results)?;
    missing(&failures)?;
    if choice.program.is_empty() && choice.column.is_empty() {
        results.micro = micro::measure(&workshop, Amount::Smoke, &ProgressBar::hidden())?;
    }
    let page = report::html::page(&results);
    let filled =
        results.rows.iter().flat_map(|row| row.cells.values()).filter(|cell| cell.pass(results::Pick::Least).is_some()).count();
    println!(
        "{} rows, {filled} cells as natively, {} figures, a report of {} bytes",
        results.rows.len(),
        results.micro.len(),
        page.len()
    );
    Ok(())
}

/// Measures every program; one that cannot be measured does not keep others from it. Gives what went wrong.
fn compare(workshop: &Workshop, choice: &Choice, plan: Plan, results: &mut Results) -> Result<Vec<String>> {
    if let Some(unknown) = choice.column.iter().find(|id| COLUMNS.iter().all(|column| column.id != **id)) {
        let known: Vec<&str> = COLUMNS.iter().map(|column| column.id).collect();
        bail!("no column {unknown}; there are: {}", known.join(", "));
    }
    let programs: Vec<Program> = rows::programs(plan.amount, &choice.program, |driver| workshop.window(driver))?;
    let bar = progress(programs.len() as u64, "programs");
    let mut failures = Vec::new();
    for program in &programs {
        match measure::row(workshop, program, plan, &bar) {
            Ok(row) => results.rows.push(row),
            Err(error) => failures.push(format!("{}: {error:#}", program.name)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(failures)
}

/// Instructions of every program.
fn count(workshop: &Workshop, names: &[String]) -> Result<Vec<results::Count>> {
    let mut programs: Vec<Program> = rows::programs(Amount::Smoke, names, |driver| workshop.window(driver))?;
    programs.retain(|program| program.fixture.libraries.is_empty());
    let bar = progress(programs.len() as u64, "programs counted");
    let mut counts = Vec::new();
    for program in &programs {
        counts.extend(count::row(workshop, program, &bar)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(counts)
}

/// A report that lacks a program is not complete, and says so by the exit code.
fn missing(failures: &[String]) -> Result<()> {
    if failures.is_empty() { Ok(()) } else { bail!("not measured:\n{}", failures.join("\n")) }
}

fn make_report(args: &Report) -> Result<()> {
    let results = Results::read(&args.results)?;
    if let Some(path) = &args.html {
        std::fs::write(path, report::html::page(&results)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.update {
        report::update(path, &results)?;
    }
    if args.html.is_none() && args.update.is_none() {
        println!("{}", report::markdown::comparison(&results));
    }
    Ok(())
}

/// A bar on standard error, which says what is being done; nothing if that is no terminal.
fn progress(length: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&format!("{{bar:24}} {{pos}}/{{len}} {unit}, {{elapsed}}, {{eta}} left: {{msg}}"));
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
