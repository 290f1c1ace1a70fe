//! Prebuilt archives, rewritten whole: what becomes of them, and how long the rewriter takes.

use crate::report;
use crate::stats::median;
use anyhow::{Context as _, Result, anyhow, ensure};
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_rewriter::accounts::{Accounts, member_of, members, settle};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use std::fmt::Write as _;
use std::path::PathBuf;
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
    /// Only measure the rewriter, on everything but these members (what the command starts itself with)
    #[arg(long, hide = true, value_name = "MEMBER")]
    without: Vec<String>,
    /// With these imports
    #[arg(long, hide = true, value_name = "NAME")]
    import: Vec<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if !args.without.is_empty() || !args.import.is_empty() {
        return speed(args);
    }
    let accounts: Vec<(&Archive, Accounts)> =
        ARCHIVES.iter().map(|archive| Ok((archive, account(archive)?))).collect::<Result<_>>()?;
    let mut table =
        String::from("| archive | functions | instructions | refused | text |\n| --- | ---: | ---: | ---: | ---: |\n");
    let (mut text_in, mut text_out) = (0, 0);
    for (archive, found) in &accounts {
        let stats = &found.made.stats;
        let refused = found.refused.iter().map(|d| (&d.place.object, &d.place.symbol)).collect::<std::collections::BTreeSet<_>>();
        (text_in, text_out) = (text_in + stats.text_in, text_out + stats.text_out);
        writeln!(
            table,
            "| {} | {} | {} | {} | {:+.1} % |",
            archive.name,
            stats.functions,
            stats.instructions,
            refused.len(),
            growth(stats.text_in, stats.text_out)
        )?;
    }
    writeln!(table, "| all | | | | {:+.1} % |\n", growth(text_in, text_out))?;
    table.push_str(&together(&accounts)?);
    println!("{table}");
    args.update.as_ref().map_or(Ok(()), |path| report::update(path, "archives", &table))
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

/// Measures in a process of its own, so that nothing but the rewriter's memory counts.
fn together(accounts: &[(&Archive, Accounts)]) -> Result<String> {
    let refused = accounts.iter().flat_map(|(_, found)| &found.refused).map(|d| member_of(d).to_owned());
    let without: Vec<String> = refused.collect();
    let mut all = Vec::new();
    for archive in ARCHIVES.iter().filter(|a| TOGETHER.contains(&a.name)) {
        all.extend(parts(archive)?.into_iter().filter(|part| !without.contains(&part.name)));
    }
    let options = Options { syscalls: true, ..Options::default() };
    let imports = settle(all, &options).map_err(|refusals| anyhow!("{refusals}"))?.imports;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("archives");
    command.args(without.iter().flat_map(|name| ["--without", name])).args(imports.iter().flat_map(|name| ["--import", name]));
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Rewrites the archives of [`TOGETHER`] into one image and says how long that takes and how much memory.
fn speed(args: &Args) -> Result<()> {
    let mut all = Vec::new();
    for archive in ARCHIVES.iter().filter(|a| TOGETHER.contains(&a.name)) {
        all.extend(parts(archive)?.into_iter().filter(|part| !args.without.contains(&part.name)));
    }
    let options = Options { syscalls: true, whole_archive: true, imports: args.import.clone(), ..Options::default() };
    let (mut times, mut instructions) = (Vec::new(), 0);
    for _ in 0..RUNS {
        let start = Instant::now();
        let made = rewrite(&all, &options).map_err(|refusals| anyhow!("{refusals}"))?;
        times.push(start.elapsed().as_secs_f64());
        instructions = made.stats.instructions;
    }
    let time = median(&times).context("no run")?;
    println!(
        "{} together, {instructions} instructions: {:.1} s on {} processors, {} MiB at most",
        TOGETHER.join(" + "),
        time,
        std::thread::available_parallelism()?,
        peak()?
    );
    Ok(())
}

/// The most memory that this process has had, MiB.
fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib.div_ceil(1024))
}
