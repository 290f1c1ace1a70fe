//! Prebuilt archives, rewritten whole: what becomes of them, how long the rewriter takes, and what windows cost the programs around them.

use crate::stats::median;
use crate::workouts;
use anyhow::{Context as _, Result, anyhow, ensure};
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_fixtures::program::{Effort, WORKOUTS};
use cordon_rewriter::accounts::{members, settle};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Those that are rewritten together to measure the rewriter.
const TOGETHER: [&str; 3] = ["sqlite3", "zstd", "musl"];
/// Runs, of which the median counts.
const RUNS: usize = 5;

/// What was measured of the archives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Archives {
    pub accounts: Vec<Account>,
    pub programs: Vec<workouts::Row>,
    pub together: Together,
}

/// What became of one archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    pub name: String,
    pub functions: usize,
    pub instructions: usize,
    /// Functions that the rewriter refuses.
    pub refused: usize,
    /// Bytes of code before and after.
    pub text_in: usize,
    pub text_out: usize,
}

/// Some archives rewritten into one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Together {
    pub names: Vec<String>,
    pub instructions: usize,
    /// Bytes of code that went in.
    pub text_in: usize,
    pub seconds: f64,
    pub processors: usize,
    pub processor_seconds: f64,
    pub peak_mib: u64,
}

/// Measures all of it; the programs around the archives in `rounds` interleaved rounds, 0 leaves them out.
///
/// # Errors
/// If an archive is missing or a program prints something else in a window than natively.
pub fn measure(rounds: u32, bar: &ProgressBar) -> Result<Archives> {
    let mut accounts = Vec::new();
    for archive in &ARCHIVES {
        bar.set_message(format!("rewriting {}", archive.name));
        accounts.push(account(archive)?);
    }
    let mut programs = Vec::new();
    if rounds > 0 {
        let cordon = workouts::cordon()?;
        for workout in &WORKOUTS {
            bar.set_message(format!("the program around {}", workout.archive));
            programs.push(workouts::row(workout, &cordon, Effort::Bench, rounds).context(workout.archive)?);
        }
    }
    bar.set_message("rewriting several archives together");
    Ok(Archives { accounts, programs, together: together()? })
}

fn account(archive: &Archive) -> Result<Account> {
    let options = Options { syscalls: archive.syscalls, ..Options::default() };
    let found = settle(parts(archive)?, &options).map_err(|refusals| anyhow!("{}: {refusals}", archive.name))?;
    let stats = &found.made.stats;
    Ok(Account {
        name: archive.name.into(),
        functions: stats.functions,
        instructions: stats.instructions,
        refused: found.functions_refused().len(),
        text_in: stats.text_in,
        text_out: stats.text_out,
    })
}

/// The members, with the archive in their names.
fn parts(archive: &Archive) -> Result<Vec<Input>> {
    let parts = members(&archive.read()?).with_context(|| archive.path)?;
    Ok(parts.into_iter().map(|part| Input { name: format!("{}:{}", archive.name, part.name), ..part }).collect())
}

/// Rewrites the archives of [`TOGETHER`] into one image, in a process of its own, so that nothing but the rewriter's memory counts.
fn together() -> Result<Together> {
    let all: Vec<Vec<Input>> = ARCHIVES.iter().filter(|a| TOGETHER.contains(&a.name)).map(parts).collect::<Result<_>>()?;
    let options = Options { syscalls: true, ..Options::default() };
    let found = settle(all.concat(), &options).map_err(|refusals| anyhow!("{refusals}"))?;
    let folder = tempfile::tempdir()?;
    for (number, member) in found.members.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number:05}.a")), &member.bytes)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("together").arg(folder.path());
    let output = command.args(found.imports.iter().flat_map(|name| ["--import", name])).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Rewrites the files of `folder` and prints how long that takes and how much memory.
///
/// # Errors
/// If they cannot be rewritten.
pub fn rewrite_folder(folder: &Path, imports: &[String]) -> Result<()> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let input = |path: &PathBuf| Ok(Input { name: path.display().to_string(), bytes: std::fs::read(path)? });
    let all: Vec<Input> = paths.iter().map(input).collect::<Result<_>>()?;
    let options = Options { syscalls: true, whole_archive: true, imports: imports.to_vec(), ..Options::default() };
    let (mut times, mut stats) = (Vec::new(), None);
    let before = processor_time()?;
    for _ in 0..RUNS {
        let start = Instant::now();
        let made = rewrite(&all, &options).map_err(|refusals| anyhow!("{refusals}"))?;
        times.push(start.elapsed().as_secs_f64());
        stats = Some(made.stats);
    }
    let stats = stats.context("no run")?;
    let together = Together {
        names: TOGETHER.map(str::to_owned).into(),
        instructions: stats.instructions,
        text_in: stats.text_in,
        seconds: median(&times).context("no run")?,
        processors: std::thread::available_parallelism()?.get(),
        processor_seconds: (processor_time()? - before) / RUNS as f64,
        peak_mib: peak()?,
    };
    println!("{}", serde_json::to_string(&together)?);
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
