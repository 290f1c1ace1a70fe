//! Prebuilt archives, rewritten whole: what becomes of them, how long the rewriter takes, and what windows cost the programs around them.

use crate::stats::median;
use crate::{report, subject, workouts};
use anyhow::{Context as _, Result, anyhow, ensure};
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_fixtures::program::WORKOUTS;
use cordon_rewriter::accounts::{Accounts, members, settle};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Those that are rewritten together to measure the rewriter.
const TOGETHER: [&str; 3] = ["sqlite3", "zstd", "musl"];
/// Runs, of which the median counts.
const RUNS: usize = 5;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the table between the markers of this document
    #[arg(long, value_name = "FILE")]
    update: Option<PathBuf>,
    /// Write the measured times to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Interleaved rounds of the programs around the archives; 0 leaves them out
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rounds: u32,
    /// Only measure the rewriter, on the files of this folder (what the command starts itself with)
    #[arg(long, hide = true, value_name = "FOLDER")]
    measure: Option<PathBuf>,
    /// With these imports
    #[arg(long, hide = true, value_name = "NAME")]
    import: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if let Some(folder) = &args.measure {
        return measure(folder, &args.import);
    }
    let accounts: Vec<(&Archive, Accounts)> =
        ARCHIVES.iter().map(|archive| Ok((archive, account(archive)?))).collect::<Result<_>>()?;
    let programs = programs(args.rounds)?;
    let mut table = heading(args.rounds)?;
    writeln!(table, "| archive | functions | instructions | refused | text | {}", workouts::titles())?;
    writeln!(table, "| --- | ---: | ---: | ---: | ---: |{}", workouts::ALIGNMENT)?;
    let (mut text_in, mut text_out) = (0, 0);
    for (archive, found) in &accounts {
        let stats = &found.made.stats;
        (text_in, text_out) = (text_in + stats.text_in, text_out + stats.text_out);
        writeln!(
            table,
            "| {} | {} | {} | {} | {:+.1} % | {}",
            archive.name,
            stats.functions,
            stats.instructions,
            found.functions_refused().len(),
            growth(stats.text_in, stats.text_out),
            workouts::cells(programs.iter().find(|row| row.archive == archive.name))
        )?;
    }
    writeln!(table, "| all, geometric mean | | | | {:+.1} % |{}\n", growth(text_in, text_out), workouts::means(&programs))?;
    table.push_str(&together()?);
    println!("{table}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&workouts::json(&programs))?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    args.update.as_ref().map_or(Ok(()), |path| report::update(path, "archives", &table))
}

/// What the columns of [`workouts`] mean.
fn heading(rounds: u32) -> Result<String> {
    Ok(format!(
        "{}, {} and musl. Each archive in a program of `fixtures/programs/`, natively and under `cordon run`: processor time of the whole process, \
         load and check of the image included, medians of {rounds} interleaved rounds; ratios to native.\n\n",
        subject::cpu(),
        subject::gcc()?
    ))
}

/// Times of the programs around the archives.
fn programs(rounds: u32) -> Result<Vec<workouts::Row>> {
    if rounds == 0 {
        return Ok(Vec::new());
    }
    let cordon = workouts::cordon()?;
    let measured = WORKOUTS.iter().map(|workout| {
        eprintln!("measuring {}", workout.archive);
        workouts::row(workout, &cordon, rounds).context(workout.archive)
    });
    measured.collect()
}

fn growth(text_in: usize, text_out: usize) -> f64 {
    (text_out as f64 / text_in as f64 - 1.0) * 100.0
}

fn account(archive: &Archive) -> Result<Accounts> {
    let options = Options { syscalls: archive.syscalls, ..Options::default() };
    settle(parts(archive)?, &options).map_err(|refusals| anyhow!("{}: {refusals}", archive.name))
}

/// The members, with the archive in their names.
fn parts(archive: &Archive) -> Result<Vec<Input>> {
    let parts = members(&archive.read()?).with_context(|| archive.path)?;
    Ok(parts.into_iter().map(|part| Input { name: format!("{}:{}", archive.name, part.name), ..part }).collect())
}

/// Rewrites the archives of [`TOGETHER`] into one image, in a process of its own, so that nothing but the rewriter's memory counts.
fn together() -> Result<String> {
    let all: Vec<Vec<Input>> = ARCHIVES.iter().filter(|a| TOGETHER.contains(&a.name)).map(parts).collect::<Result<_>>()?;
    let options = Options { syscalls: true, ..Options::default() };
    let found = settle(all.concat(), &options).map_err(|refusals| anyhow!("{refusals}"))?;
    let folder = tempfile::tempdir()?;
    for (number, member) in found.members.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number:05}.a")), &member.bytes)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["archives", "--measure"]).arg(folder.path());
    let output = command.args(found.imports.iter().flat_map(|name| ["--import", name])).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Rewrites the files of `folder` and says how long that takes and how much memory.
fn measure(folder: &Path, imports: &[String]) -> Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let input = |path: &PathBuf| Ok(Input { name: path.display().to_string(), bytes: std::fs::read(path)? });
    let all: Vec<Input> = paths.iter().map(input).collect::<Result<_>>()?;
    let options = Options { syscalls: true, whole_archive: true, imports: imports.to_vec(), ..Options::default() };
    let (mut times, mut instructions) = (Vec::new(), 0);
    let before = processor_time()?;
    for _ in 0..RUNS {
        let start = Instant::now();
        let made = rewrite(&all, &options).map_err(|refusals| anyhow!("{refusals}"))?;
        times.push(start.elapsed().as_secs_f64());
        instructions = made.stats.instructions;
    }
    let time = median(&times).context("no run")?;
    let processor = (processor_time()? - before) / RUNS as f64;
    println!(
        "{} together, {instructions} instructions: {:.1} s on {} processors ({processor:.1} s of processor time), {} MiB at most",
        TOGETHER.join(" + "),
        time,
        std::thread::available_parallelism()?,
        peak()?
    );
    Ok(())
}

/// Seconds of processor time that this process has had.
fn processor_time() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the command's name: the state is field 3, user and system time are fields 14 and 15, in hundredths (proc(5)).
    let behind = stat.rsplit_once(')').context("no name")?.1;
    let ticks = behind.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}

/// The most memory that this process has had, MiB.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib.div_ceil(1024))
}
