//! Arguments, dispatch, and the one place where results, problems and panics become output and exit codes.

mod cc;
mod check;
mod debugger;
mod demand;
mod demo;
mod disasm;
mod host;
mod inspect;
mod kernel;
mod originals;
mod outcome;
mod rewrite;
mod run;
mod size;
mod view;
mod watch;

use clap::{Parser, Subcommand, ValueEnum};
use outcome::{Exit, Failure, Problem, Report};
use std::ffi::OsString;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

const LONG_ABOUT: &str = "\
Runs untrusted native x86-64 code inside a fence that is proved before the code runs.

  cordon rewrite   turns ordinary ELF objects and archives into a sealed image (untrusted, clever)
  cordon cc        compiles a whole C program and turns it into an image
  cordon check     reads the final bytes of an image once and says yes or no (trusted, dull)
  cordon run       checks an image, gives it a window of memory and calls an entry, or hosts a whole program
  cordon insert    checks an image in the running kernel and has packets, probes or timers call it (list, stats, remove)
  cordon inspect   shows original and rewritten code side by side
  cordon demo      compiles handlers, fences them, runs them over 100,000 packets, compares with native

A handler's pointers are 32-bit offsets into its own 4 GiB window. Whatever it computes, it reads and writes only that
window and its own stack frames, and it calls only the imports that the host listed. A fault ends the call with a report.";

const EXIT_CODES: &str = "\
Exit codes:
  0  done: written, accepted, finished
  1  refused by the rewriter or rejected by the checker
  2  usage: wrong arguments, or a file that cannot be read or written
  3  internal error of cordon (please report it)
  4  the handler was stopped (fault, stray access, limit)
cordon run of a whole program that ended by itself: its own status, or 128 + n for signal n.

With --format json every command prints exactly one JSON object on standard output (for a whole program that runs, on
standard error, where it is the last line). A failure has `error` with `code`,
`message` and the fields that the text form shows, and `errors` with all of them.";

#[derive(Debug, Parser)]
#[command(name = "cordon", version, about = "A fence for native x86-64 code", long_about = LONG_ABOUT, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Rewrite(rewrite::Args),
    Cc(cc::Args),
    Check(check::Args),
    Run(run::Args),
    Inspect(inspect::Args),
    Insert(kernel::insert::Args),
    List(kernel::list::ListArgs),
    Stats(kernel::list::StatsArgs),
    Remove(kernel::list::RemoveArgs),
    Demo(demo::Args),
}

/// How results and problems are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for people; problems go to standard error.
    #[default]
    Text,
    /// One JSON object on standard output, problems included.
    Json,
}

impl Command {
    fn format(&self) -> Format {
        match self {
            Command::Rewrite(args) => args.format,
            Command::Cc(args) => args.format(),
            Command::Check(args) => args.format,
            Command::Run(args) => args.format,
            Command::Inspect(args) => args.format,
            Command::Insert(args) => args.format,
            Command::List(args) => args.format,
            Command::Stats(args) => args.format,
            Command::Remove(args) => args.format,
            Command::Demo(args) => args.format,
        }
    }

    fn execute(&self) -> Result<Report, Failure> {
        match self {
            Command::Rewrite(args) => rewrite::execute(args),
            Command::Cc(args) => cc::execute(args),
            Command::Check(args) => check::execute(args),
            Command::Run(args) => run::execute(args),
            Command::Inspect(args) => inspect::execute(args),
            Command::Insert(args) => kernel::insert::execute(args),
            Command::List(args) => kernel::list::list(args),
            Command::Stats(args) => kernel::list::stats(args),
            Command::Remove(args) => kernel::list::remove(args),
            Command::Demo(args) => demo::execute(args),
        }
    }
}

/// The message and place of the last panic, kept by the hook for the report.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = Some(info.to_string());
        }
    }));
    let format = cli.command.format();
    let exit = match panic::catch_unwind(AssertUnwindSafe(|| cli.command.execute())) {
        Ok(Ok(report)) => report.print(format),
        Ok(Err(failure)) => failure.print(format),
        Err(_) => {
            let what = LAST_PANIC.lock().ok().and_then(|mut last| last.take()).unwrap_or_else(|| "panic".into());
            Failure::one(Exit::Internal, Problem::new("internal", format!("cordon failed, please report this: {what}")))
                .print(format)
        }
    };
    exit.into()
}

/// Help and version go to standard output with code 0; everything else that clap says is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !json_wanted(std::env::args_os()) {
        let wanted = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        return error.print().map_or_else(|why| outcome::unwritten(&why, wanted), |()| wanted).into();
    }
    Failure::one(Exit::Usage, Problem::new("usage", usage_text(error))).print(Format::Json).into()
}

/// What clap says of a wrong command line, as a message among others.
fn usage_text(error: &clap::Error) -> String {
    let message = error.render().to_string();
    message.strip_prefix("error: ").unwrap_or(&message).trim_end().to_owned()
}

/// Whether the unparsable command line asked for JSON.
fn json_wanted(mut args: impl Iterator<Item = OsString>) -> bool {
    while let Some(arg) = args.next() {
        if arg == "--format=json" || arg == "--format" && args.next().is_some_and(|value| value == "json") {
            return true;
        }
    }
    false
}
