//! `cordon run`: loads an image, gives it a window, calls an entry.

use super::Format;
use super::check;
use super::debugger;
use super::demand::Demand;
use super::host::{self, Given};
use super::outcome::{Exit, Failure, Problem, Report};
use super::rewrite::read_file;
use super::size::parse_number;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use cordon_checker::note::{INIT_ENTRY, Note};
use cordon_checker::{LayoutError, Policy};
use cordon_fixtures::pcap;
use cordon_loader::{Entry, Error, FaultKind, Image, Imports, LoadOptions, Memory, Sharing, Window, split};
use serde_json::json;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Integer arguments that a call can have.
const MOST_ARGUMENTS: usize = 6;

/// Check an image, give it a window and call an entry
///
/// The last line is `result = N`, the entry's return value as an unsigned 64-bit number. With --input the file's bytes are placed in the
/// window, and their window address and length are the first two arguments. With --pcap the entry is called so for every packet of a
/// capture, and the result is the sum of all return values (modulo 2^64). Window memory stays as it is between the calls of one run.
///
/// A whole program (an image with the entry `_start` that makes system calls, as `cordon cc` makes them) is started with the arguments behind
/// `--`. It has the standard streams, the folders given with --dir, a heap, clocks and random numbers, no threads, processes or network; its exit
/// status is this command's exit code, or 128 + n if it ended itself by signal n. With --format json the last line of standard error is an
/// object that says how it ended, `exit`, `signal` or `error`: standard output is the program's alone.
///
/// An image that counts its instructions (`rewrite --fuel`) gives a line `fuel = N` too: what all calls used.
///
/// When the handler is stopped, the exit code is 4 and the report says what happened: the place in the source, the original instruction, its
/// 64-bit address and what lies there, the backtrace and the registers.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cordon run handler.cordon --arg 6 --arg 0x2a
  cordon run filter.cordon --entry filt_tcp_port --pcap trace.pcap --arg 443
  cordon run z.cordon --entry checksum --input /etc/hostname --repeat 1000 --fast-window
  cordon run sort.img --dir data --env LC_ALL=C -- -r data/names.txt
  cordon run untrusted.cordon --mode match --time-limit 5ms
  cordon run metered.cordon --fuel 1000000")]
pub struct Args {
    /// The image
    pub image: PathBuf,
    /// Which entry to call (default: the only one, else `handler`)
    #[arg(long, value_name = "NAME")]
    pub entry: Option<String>,
    /// An integer argument, decimal or 0x… (repeatable; behind address and length where there is an input)
    #[arg(long, value_name = "N", value_parser = parse_number, allow_negative_numbers = true)]
    pub arg: Vec<u64>,
    /// Bytes to place in the argument area
    #[arg(long, value_name = "FILE", conflicts_with = "pcap", group = "bytes")]
    pub input: Option<PathBuf>,
    /// A capture file (classic pcap, Ethernet) whose packets are given to the entry one by one
    #[arg(long, value_name = "FILE", group = "bytes")]
    pub pcap: Option<PathBuf>,
    /// Place the bytes of --input or --pcap in front of an unmapped page, so that the first access past their end is reported
    ///
    /// They then begin at any address: code that counts on an aligned input may fault.
    #[arg(long, requires = "bytes")]
    pub exact: bool,
    /// Map a file into the window: its window address and length are arguments, behind those of an input and before --arg (repeatable)
    ///
    /// With `:rw` at the end the handler may change the file. Its last page is filled up with zeros.
    #[arg(long, value_name = "FILE[:ro|:rw]", value_parser = OsStringValueParser::new().try_map(|text| parse_share(&text)))]
    pub share: Vec<Share>,
    /// Do everything N times and report the time of a call
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Stop a call that takes longer: 250us, 5ms, 1s, or none
    ///
    /// Time of one call, in which the process runs or sleeps. The handler is interrupted by a timer, late by at most about half the limit (500 us for limits below
    /// 1 ms, 20 ms for limits above 40 ms).
    #[arg(long, value_name = "TIME", default_value = "10s", default_value_if("gdb", "true", "none"), value_parser = parse_time_limit)]
    pub time_limit: TimeLimit,
    /// Stop a call that would execute more than N instructions, always at the same one; the image must be made with `rewrite --fuel`
    ///
    /// Host calls and built-in functions cost extra: one instruction for 16 bytes or 4 elements.
    #[arg(long, value_name = "N", value_parser = parse_number)]
    pub fuel: Option<u64>,
    #[command(flatten)]
    pub demand: Demand,
    /// Tell gdb where the handler's code lies: functions, lines and calls; implies --time-limit none
    ///
    /// gdb (and lldb) then knows the handler's functions as soon as the image is loaded, `break handler` works before and after. Pointers of the
    /// handler count from the window's base, `$gs_base` in gdb; with --fast-window they are ordinary addresses. The debugger reads the
    /// image's symbols and lines, which nobody has checked.
    #[arg(long)]
    pub gdb: bool,
    /// Put the window at address 0, where memory accesses cost no more than natively
    #[arg(long)]
    pub fast_window: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    #[command(flatten)]
    pub given: Given,
}

/// A file to map, and whether the handler may write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub path: PathBuf,
    pub writable: bool,
}

/// Parses a path that may end in `:ro` or `:rw`.
fn parse_share(text: &OsStr) -> Result<Share, &'static str> {
    let (path, writable) = with_access(text);
    if path.is_empty() { Err("expected a file") } else { Ok(Share { path: path.into(), writable }) }
}

/// Takes a path that may end in `:ro` or `:rw` apart; tells whether it ends in `:rw`.
pub fn with_access(text: &OsStr) -> (&OsStr, bool) {
    let bytes = text.as_bytes();
    match (bytes.strip_suffix(b":rw"), bytes.strip_suffix(b":ro")) {
        (Some(path), _) => (OsStr::from_bytes(path), true),
        (None, path) => (OsStr::from_bytes(path.unwrap_or(bytes)), false),
    }
}

/// Most time of one call, if that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

/// Parses `none`, or a positive decimal number with the unit `us`, `ms` or `s`.
pub fn parse_time_limit(text: &str) -> Result<TimeLimit, String> {
    if text == "none" {
        return Ok(TimeLimit(None));
    }
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().ok().filter(|&n| n > 0).ok_or("expected a time such as 250us, 5ms or 1s, or none")?;
    match unit {
        "us" => Ok(TimeLimit(Some(Duration::from_micros(number)))),
        "ms" => Ok(TimeLimit(Some(Duration::from_millis(number)))),
        "s" => Ok(TimeLimit(Some(Duration::from_secs(number)))),
        _ => Err("expected one of the units us, ms and s".into()),
    }
}

/// What came of all calls.
#[derive(Default)]
struct Totals {
    calls: u64,
    nonzero: u64,
    /// Of the last call, or the sum over a capture.
    result: u64,
    time: Duration,
    /// Instructions of all calls, if the image counts them.
    fuel: Option<u64>,
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    let bytes = args.input.as_ref().or(args.pcap.as_ref()).map(|path| read_file(path)).transpose()?;
    let inputs = inputs(args, bytes.as_deref())?;
    let first = if bytes.is_some() { 2 } else { 0 } + 2 * args.share.len();
    if args.arg.len() + first > MOST_ARGUMENTS {
        let message = match MOST_ARGUMENTS.checked_sub(first) {
            Some(left) => format!(
                "at most {left} --arg are possible here: a call has {MOST_ARGUMENTS} integer arguments, inputs and shared files are two each"
            ),
            None => format!("a call has {MOST_ARGUMENTS} integer arguments, and inputs and shared files are two each"),
        };
        return Err(Failure::usage("usage", message));
    }
    let file = read_file(&args.image)?;
    let policy = Policy { mode: args.demand.mode(), ..Policy::USER };
    let options = LoadOptions { time_limit: args.time_limit.0, fuel: args.fuel, policy, ..LoadOptions::default() };
    let image =
        Image::named(&args.image.display().to_string(), &file, &options).map_err(|e| load_failure(&args.image, &file, &e))?;
    if args.gdb {
        debugger::announce(&file, image.text_address())
            .map_err(|e| Failure::one(Exit::Refused, Problem::with_file(&args.image, "debug-information", e)))?;
    }
    if args.entry.is_none() && cordon_process::is_program(&image) {
        return Err(host::execute(args, &image, &file));
    }
    if !args.given.is_empty() {
        return Err(Failure::usage("usage", "--dir, --env and arguments behind `--` are for whole programs (cordon cc)"));
    }
    let name = entry_name(args, &image)?;
    let entry = image.entry(&name).ok_or_else(|| no_entry(&image, &format!("no entry {name}")))?;
    let make = if args.fast_window { Window::new_fast } else { Window::new };
    let mut window = make(&image, &Imports::new()).map_err(|e| load_failure(&args.image, &file, &e))?;
    let mut arguments = shared(args, &mut window)?;
    arguments.extend(&args.arg);
    let mut totals = Totals::default();
    let called = call_all(args, &inputs, &arguments, &mut window, entry, &mut totals);
    called.map_err(|e| call_failure(&args.image, &name, &e, totals.calls))?;
    Ok(report(&name, args, &totals))
}

/// Maps the files to share; gives window address and length of each.
fn shared(args: &Args, window: &mut Window) -> Result<Vec<u64>, Failure> {
    let mut arguments = Vec::new();
    for Share { path, writable } in &args.share {
        let opened = File::options().read(true).write(*writable).open(path).and_then(|file| match file.metadata()? {
            about if about.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            about => Ok((about.len(), file)),
        });
        let (len, file) = opened.map_err(|e| Failure::file(path, "share", &e))?;
        let sharing = if *writable { Sharing::ReadWrite } else { Sharing::Read };
        let memory = Memory::from_file(&path.display().to_string(), &file, 0, len, *writable);
        let offset = memory.and_then(|memory| window.share(&memory, sharing));
        let offset = offset.map_err(|e| Failure::one(Exit::Usage, Problem::with_file(path, "share", e.to_string())))?;
        arguments.extend([u64::from(offset), len]);
    }
    Ok(arguments)
}

/// What the calls of one repetition are given: nothing, the bytes of a file, or the packets of a capture one by one.
fn inputs<'b>(args: &Args, bytes: Option<&'b [u8]>) -> Result<Vec<Option<&'b [u8]>>, Failure> {
    let (Some(path), Some(file)) = (&args.pcap, bytes) else { return Ok(vec![bytes]) };
    let packets = pcap::read(file);
    let packets = packets.map_err(|e| Failure::one(Exit::Usage, Problem::with_file(path, "pcap", e.to_string())))?;
    Ok(packets.into_iter().map(Some).collect())
}

/// The entry asked for, or the only one, or `handler`.
fn entry_name(args: &Args, image: &Image) -> Result<String, Failure> {
    let names: Vec<&str> = image.entry_names().filter(|n| *n != INIT_ENTRY).collect();
    match (&args.entry, names.as_slice()) {
        (Some(name), names) if names.contains(&name.as_str()) => Ok(name.clone()),
        (Some(name), _) => Err(no_entry(image, &format!("no entry {name}"))),
        (None, [only]) => Ok((*only).into()),
        (None, names) if names.contains(&"handler") => Ok("handler".into()),
        (None, _) => Err(no_entry(image, "several entries and none is called handler; choose one with --entry")),
    }
}

fn no_entry(image: &Image, message: &str) -> Failure {
    let names: Vec<&str> = image.entry_names().filter(|n| *n != INIT_ENTRY).collect();
    Failure::one(Exit::Usage, Problem::new("no-entry", message).detail("entries", names.join(" ")))
}

fn call_all(
    args: &Args,
    inputs: &[Option<&[u8]>],
    arguments: &[u64],
    window: &mut Window,
    entry: Entry,
    totals: &mut Totals,
) -> Result<(), Error> {
    let start = Instant::now();
    for _ in 0..args.repeat {
        for input in inputs {
            let result = call(args.exact, arguments, window, entry, *input)?;
            totals.calls += 1;
            totals.fuel = window.fuel_used().map(|used| totals.fuel.unwrap_or(0).saturating_add(used));
            totals.nonzero += u64::from(result != 0);
            totals.result = if args.pcap.is_some() { totals.result.wrapping_add(result) } else { result };
        }
    }
    totals.time = start.elapsed();
    Ok(())
}

/// One call: window address and length of `bytes` if there are any, then the arguments.
fn call(exact: bool, arguments: &[u64], window: &mut Window, entry: Entry, bytes: Option<&[u8]>) -> Result<u64, Error> {
    let mut ints = [0; MOST_ARGUMENTS];
    let mut at = 0;
    if let Some(bytes) = bytes {
        window.clear_arguments();
        ints[0] = u64::from(if exact { window.place_exact(bytes)? } else { window.place(bytes)? });
        ints[1] = bytes.len() as u64;
        at = 2;
    }
    ints[at..at + arguments.len()].copy_from_slice(arguments);
    window.call_entry(entry, ints)
}

fn report(entry: &str, args: &Args, totals: &Totals) -> Report {
    let nanoseconds = totals.time.as_nanos() as f64 / totals.calls.max(1) as f64;
    let mut text = String::new();
    let mut json = json!({ "entry": entry, "calls": totals.calls });
    if args.pcap.is_some() {
        let _ = writeln!(text, "calls = {}\nnonzero = {}", totals.calls, totals.nonzero);
        json["nonzero"] = json!(totals.nonzero);
    }
    if totals.calls > 1 {
        let _ = writeln!(text, "{nanoseconds:.1} ns per call");
        json["ns_per_call"] = json!(nanoseconds);
    }
    if let Some(fuel) = totals.fuel {
        let _ = writeln!(text, "fuel = {fuel}");
        json["fuel"] = json!(fuel);
    }
    let _ = writeln!(text, "result = {}", totals.result);
    json["result"] = json!(totals.result);
    Report { text, json }
}

/// Why an image was not loaded or got no window.
pub fn load_failure(path: &Path, file: &[u8], error: &Error) -> Failure {
    let one = |exit, code: &str, message: String| Failure::one(exit, Problem::with_file(path, code, message));
    match error {
        Error::Rejected(reject) => match check::parts(path, file) {
            Ok(parts) => check::rejected(path, &parts, *reject, reject.rule.text()),
            Err(failure) => failure,
        },
        Error::Fault(_) | Error::Import { .. } | Error::Timer(_) => call_failure(path, INIT_ENTRY, error, 0),
        Error::Internal(_) => one(Exit::Internal, "internal", error.to_string()),
        Error::Memory { .. } | Error::Mappings { .. } | Error::FastWindow(_) => {
            one(Exit::Usage, "unavailable", error.to_string())
        }
        Error::Layout(LayoutError::Mode) => {
            let note = split(file).ok().and_then(|parts| Note::parse(parts.note).ok());
            one(Exit::Refused, "mode", note.map_or_else(|| error.to_string(), |note| check::proves_less(&note)))
        }
        Error::Host(_) | Error::Layout(LayoutError::Host) => {
            one(Exit::Refused, "wrong-host", format!("{error}; images of the kernel are run by cordon insert"))
        }
        Error::MissingImport(_) => one(
            Exit::Refused,
            "missing-import",
            format!("{error}: cordon run has no host functions; a program that has them uses cordon-loader"),
        ),
        Error::Format { .. } | Error::Note(_) => one(Exit::Refused, "not-an-image", error.to_string()),
        _ => one(Exit::Refused, "refused", error.to_string()),
    }
}

/// Why a call did not return; `before` calls did.
pub fn call_failure(path: &Path, entry: &str, error: &Error, before: u64) -> Failure {
    let one = |exit, code: &str| {
        let problem = Problem::with_file(path, code, error.to_string());
        Failure::one(exit, problem.detail("entry", entry).detail("calls_before", before))
    };
    let mut failure = match error {
        Error::Internal(_) => one(Exit::Internal, "internal"),
        Error::ArgumentArea { .. } => one(Exit::Usage, "argument-area"),
        Error::Timer(_) => one(Exit::Usage, "unavailable"),
        Error::Fault(fault) => match fault.kind {
            FaultKind::TimeLimit | FaultKind::Fuel | FaultKind::StrayAccess | FaultKind::BadJump => {
                one(Exit::Stopped, fault.kind.code())
            }
            _ => one(Exit::Stopped, "fault"),
        },
        _ => one(Exit::Stopped, "stopped"),
    };
    if let (Some(fault), Some(problem)) = (error.fault(), failure.problems.first_mut()) {
        let report = fault.report();
        problem.text = Some(format!("{report}   = calls before this one: {before}\n"));
        problem.details.insert("report".into(), serde_json::to_value(&report).unwrap_or_default());
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::{Args, TimeLimit, parse_time_limit};
    use clap::Parser as _;
    use std::time::Duration;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_handler_under_a_debugger_has_time_unless_a_limit_is_asked_for() {
        let limit = |words: &[&str]| {
            let line = Line::try_parse_from([&["run", "x.cordon"], words].concat()).expect("good words");
            line.args.time_limit.0
        };
        assert_eq!(limit(&[]), Some(Duration::from_secs(10)));
        assert_eq!(limit(&["--gdb"]), None);
        assert_eq!(limit(&["--gdb", "--time-limit", "1s"]), Some(Duration::from_secs(1)));
    }

    #[test]
    fn time_limits_have_a_unit_or_are_none() {
        assert_eq!(parse_time_limit("none"), Ok(TimeLimit(None)));
        assert_eq!(parse_time_limit("250us"), Ok(TimeLimit(Some(Duration::from_micros(250)))));
        assert_eq!(parse_time_limit("5ms"), Ok(TimeLimit(Some(Duration::from_millis(5)))));
        assert_eq!(parse_time_limit("1s"), Ok(TimeLimit(Some(Duration::from_secs(1)))));
        for wrong in ["", "5", "ms", "0ms", "-1s", "+1s", "1.5s", "1 s", "1h", "5msx", "99999999999999999999s", "None"] {
            assert!(parse_time_limit(wrong).is_err(), "{wrong:?}");
        }
    }
}
