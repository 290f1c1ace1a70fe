//! How many instructions programs execute, by valgrind: the companion of times, the same on a busy machine as on a quiet one.
//!
//! Both sides run their script once and then three times; half the difference is one pass, whatever starting takes.

use crate::columns::{BASELINE, COLUMNS, Column, Kind, Rewriting};
use crate::results::Count;
use crate::rows::{self, Amount, Program};
use crate::workshop::{Workshop, loading};
use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::compile::{Compiler, run_tool};
use cordon_fixtures::window::WindowRunner;
use cordon_loader::Image;
use indicatif::ProgressBar;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Passes of the two runs.
const PASSES: [u32; 2] = [1, 3];

/// One of the runs in a window, which the command starts itself with under valgrind.
#[derive(Debug, clap::Args)]
pub struct Pass {
    #[arg(long)]
    program: String,
    #[arg(long)]
    column: String,
    #[arg(long)]
    passes: u32,
    image: PathBuf,
}

/// Whether its instructions can be counted: those of native code and of windows.
fn counted(column: &Column) -> bool {
    column.id == BASELINE || matches!(column.kind, Kind::Window(Rewriting { compiler: Compiler::Gcc, .. }))
}

/// Counts the instructions of a program in every column that has any; none for programs whose calls are recorded, not scripted.
///
/// # Errors
/// If valgrind is missing, or a program cannot be built or run.
pub fn row(workshop: &Workshop, program: &Program, bar: &ProgressBar) -> Result<Option<Count>> {
    if !program.fixture.libraries.is_empty() {
        return Ok(None);
    }
    let mut count = Count { name: program.name.into(), columns: [].into() };
    for column in COLUMNS.iter().filter(|column| counted(column)) {
        bar.set_message(format!("{}: counting {}", program.name, column.title));
        let log = workshop.folder().join("valgrind.log");
        let pass = match column.kind {
            Kind::Window(rewriting) => {
                let file = workshop.folder().join("counted.cordon");
                std::fs::write(&file, workshop.image_file(program, rewriting.compiler, &rewriting.options())?)?;
                difference(&log, |passes| {
                    let mut command = Command::new(VALGRIND);
                    command.args(words(&log)).arg(std::env::current_exe()?).args([
                        "pass",
                        "--program",
                        program.name,
                        "--column",
                        column.id,
                    ]);
                    run_tool(command.arg("--passes").arg(passes.to_string()).arg(&file)).map(drop)
                })
            }
            _ => {
                let under = [VALGRIND.into()].into_iter().chain(words(&log));
                let runner = workshop.native(program, Compiler::Gcc)?.under(under);
                difference(&log, |passes| runner.time(&program.calls, passes).map(drop))
            }
        };
        let pass = pass.with_context(|| format!("{} in {}", program.name, column.title))?;
        count.columns.insert(column.id.into(), pass / program.calls.len() as f64);
    }
    Ok(Some(count))
}

const VALGRIND: &str = "valgrind";

fn words(log: &Path) -> [OsString; 4] {
    let mut log_file = OsString::from("--log-file=");
    log_file.push(log);
    ["--tool=cachegrind".into(), "--cache-sim=no".into(), "--cachegrind-out-file=/dev/null".into(), log_file]
}

/// Instructions of one pass.
fn difference(log: &Path, run: impl Fn(u32) -> Result<()>) -> Result<f64> {
    let mut counts = [0u64; 2];
    for (count, passes) in counts.iter_mut().zip(PASSES) {
        run(passes)?;
        *count = total(&std::fs::read_to_string(log)?)?;
    }
    ensure!(counts[0] < counts[1], "more passes took {} instructions, fewer {}", counts[1], counts[0]);
    Ok((counts[1] - counts[0]) as f64 / f64::from(PASSES[1] - PASSES[0]))
}

/// The number behind `I refs:` in what valgrind says.
fn total(log: &str) -> Result<u64> {
    let line = log.lines().find(|line| line.contains("refs:")).context("valgrind counted nothing")?;
    let digits: String = line.rsplit(':').next().unwrap_or("").chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// Runs the script of a program in a window of an image.
///
/// # Errors
/// If the image cannot be loaded, or a call does not return.
pub fn pass(args: &Pass) -> Result<()> {
    let column = COLUMNS.iter().find(|column| column.id == args.column).context("a column")?;
    let Kind::Window(rewriting) = column.kind else { anyhow::bail!("no window") };
    let recorded = |_: &Program| anyhow::bail!("recorded calls");
    let programs = rows::programs(Amount::Smoke, std::slice::from_ref(&args.program), recorded)?;
    let image = Image::from_bytes(&std::fs::read(&args.image)?, &loading(&rewriting.options()))?;
    // valgrind lies where the fast window would: its images run in an ordinary one. And it is slow.
    let mut runner = WindowRunner::new(&image, false)?;
    runner.set_time_limit(None);
    runner.time(&programs.first().context("a program")?.calls, args.passes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::total;

    #[test]
    fn the_total_is_read_without_its_commas() {
        assert_eq!(total("==1== x\n==1== I   refs:      1,234,567\n").expect("a number"), 1_234_567);
        assert!(total("==1== nothing").is_err());
    }
}
