//! `cordon insert`: puts a checked handler into the kernel, attaches it to events, and holds it there or pins it.

use super::list::one;
use super::stop::Stop;
use super::{Node, refused, words};
use crate::cli::Format;
use crate::cli::check;
use crate::cli::outcome::{Exit, Failure, Problem, Report};
use crate::cli::rewrite::read_file;
use crate::cli::run::{TimeLimit, parse_time_limit};
use crate::cli::size::parse_number;
use cordon_checker::note::{INIT_ENTRY, Note};
use cordon_checker::{Reject, Rule};
use cordon_kernel::abi::{self, Attach, Insert, verdict};
use cordon_kernel::{Event, Handler, InsertError, Interrupts, Places};
use cordon_loader::split;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Insert a handler into the running kernel and have events call it
///
/// The kernel module checks the image again, places it and attaches it. Without --pin this command stays and prints a line of counts whenever
/// they have changed; the handler ends with it (Ctrl-C). With --pin it ends at once and the handler stays until `cordon remove`.
///
/// Events:
///   netfilter:HOOK          IPv4 packets of this network namespace at pre_routing, local_in, forward, local_out or post_routing; the
///                           entry gets (packet, bytes, hook, whole length) and drops the packet by returning 0
///   netfilter6:HOOK         the same for IPv6
///   kprobe:FUNCTION[+BYTES] a function of the kernel is called, or an instruction in it is reached
///   tracepoint:SYSTEM:NAME  a tracepoint (as in /sys/kernel/tracing/events)
///   timer:PERIOD            every 250us, 10ms, 1s …; at least 100us
/// All but packets give the entry (count, CPU, process, time in ns). Kprobes and tracepoints take metered images only (rewrite --fuel).
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Examples:
  cordon insert filter.cordon --event netfilter:pre_routing
  cordon insert count.cordon --event kprobe:do_sys_openat2 --entry opened --pin
  cordon insert tick.cordon --event timer:10ms --time-limit 1ms

Exit code 0: inserted (and with --pin still there); 1: refused by the kernel's checker; 2: no module, no permission, no such event."
)]
pub struct Args {
    /// The image, made with `rewrite --host kernel`
    pub image: PathBuf,
    /// What calls the entry (repeatable)
    #[arg(long, value_name = "EVENT")]
    pub event: Vec<Event>,
    /// Which entry is called (default: the only one, else `handler`)
    #[arg(long, value_name = "NAME", requires = "event")]
    pub entry: Option<String>,
    /// Give each CPU a window of its own, with its own data, so that calls on several at once do not miss
    #[arg(long)]
    pub per_cpu: bool,
    /// Let the handler change packets, but for what the kernel has measured them by (`cordon_handler.h`)
    #[arg(long, requires = "event")]
    pub writable: bool,
    /// Leave the handler in the kernel when this command ends; needs CAP_SYS_MODULE, and keeps the module from being unloaded
    #[arg(long)]
    pub pin: bool,
    /// Refuse an image that does not count its instructions
    #[arg(long)]
    pub metered: bool,
    /// Stop a call that takes longer: 250us, 5ms (default: the module's, 100ms unless changed)
    #[arg(long, value_name = "TIME", value_parser = parse_time_limit, requires = "event")]
    pub time_limit: Option<TimeLimit>,
    /// Stop a call that would execute more than N instructions; for images made with `rewrite --fuel`
    #[arg(long, value_name = "N", value_parser = parse_number, requires = "event")]
    pub fuel: Option<u64>,
    /// How often to look for new counts
    #[arg(long, value_name = "TIME", value_parser = parse_time_limit, default_value = "1s", conflicts_with = "pin")]
    pub interval: TimeLimit,
    #[command(flatten)]
    pub node: Node,
    /// How to print the result; the counts of a handler that is held come as one object at the end
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    if args.event.is_empty() && !args.pin {
        return Err(Failure::usage(
            "usage",
            "nothing would call the handler: give --event, or --pin to insert it for other programs",
        ));
    }
    let file = read_file(&args.image)?;
    let device = args.node.open()?;
    // From here on Ctrl-C ends the command in an orderly way.
    let interrupts = Interrupts::hold().map_err(|e| Failure::one(Exit::Internal, Problem::new("internal", e.to_string())))?;
    let flags = if args.metered { abi::DEMAND_METERED } else { 0 } | if args.per_cpu { abi::PER_CPU } else { 0 };
    let name = args.image.file_name().unwrap_or_default().to_string_lossy();
    let inserted = device.insert_named(&name, &file, flags);
    let (handler, _) = inserted.map_err(|error| not_inserted(args, &file, &error))?;
    if !args.event.is_empty() {
        let entry = entry_name(args, &file)?;
        for event in &args.event {
            attach(args, &file, &handler, event, &entry)?;
        }
    }
    let places = Places::of(&file);
    if args.pin {
        handler.pin().map_err(|e| refused(&args.node, "pin the handler", &e))?;
    } else {
        hold(args, &handler, &interrupts)?;
    }
    let failed = |e| refused(&args.node, "ask for counts", &e);
    Ok(one(&handler.about().map_err(failed)?, &handler.events().map_err(failed)?, Some(&places)))
}

/// Prints counts that have changed until somebody wants the command, or has the handler, to end.
fn hold(args: &Args, handler: &Handler, interrupts: &Interrupts) -> Result<(), Failure> {
    let failed = |e: &io::Error| refused(&args.node, "ask for counts", e);
    let about = handler.about().map_err(|e| failed(&e))?;
    say(args, &format!("handler {} is in the kernel; Ctrl-C removes it", about.id));
    let interval = args.interval.0.unwrap_or(Duration::from_secs(1));
    let mut before = String::new();
    while !interrupts.wait(interval) {
        // Removed by somebody else, its events with it.
        if handler.about().map_err(|e| failed(&e))?.flags & abi::ENDED != 0 {
            say(args, "removed by another process");
            break;
        }
        let now: Vec<String> = handler.events().map_err(|e| failed(&e))?.iter().map(words).collect();
        let now = now.join("; ");
        if now != before {
            say(args, &now);
            before = now;
        }
    }
    Ok(())
}

/// A line at once, for people. Nobody who listens is no reason to end.
fn say(args: &Args, line: &str) {
    if args.format == Format::Text {
        let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
    }
}

/// The entry asked for, or the only one, or `handler`. The kernel looks for itself whether it is there.
fn entry_name(args: &Args, file: &[u8]) -> Result<String, Failure> {
    if let Some(name) = &args.entry {
        return Ok(name.clone());
    }
    let names = entries(file);
    match names.as_slice() {
        [only] => Ok(only.clone()),
        names if names.iter().any(|name| name == "handler") => Ok("handler".into()),
        _ => Err(no_entry(file, "several entries and none is called handler; choose one with --entry")),
    }
}

fn entries(file: &[u8]) -> Vec<String> {
    let Some(note) = split(file).ok().and_then(|parts| Note::parse(parts.note).ok()) else { return Vec::new() };
    let names = (0..note.layout.entries.len()).filter_map(|index| note.entry_name(index).ok());
    names.filter(|name| *name != INIT_ENTRY).map(str::to_owned).collect()
}

fn no_entry(file: &[u8], message: &str) -> Failure {
    Failure::one(Exit::Usage, Problem::new("no-entry", message).detail("entries", entries(file).join(" ")))
}

fn attach(args: &Args, file: &[u8], handler: &Handler, event: &Event, entry: &str) -> Result<(), Failure> {
    let limit = args.time_limit.and_then(|limit| limit.0).map_or(0, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
    let packets = matches!(event, Event::Netfilter(_) | Event::Netfilter6(_));
    let flags = if args.writable && packets { abi::WRITABLE } else { 0 };
    let wanted = Attach { time_limit_ns: limit, fuel: args.fuel.unwrap_or(0), flags, ..event.attach(entry) };
    let error = match handler.attach(&wanted) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::NotFound && !entries(file).iter().any(|name| name == entry) {
        return Err(no_entry(file, &format!("no entry {entry}")));
    }
    let metered = split(file).ok().and_then(|parts| Note::parse(parts.note).ok().map(|note| note.layout.mode.metered));
    let probe = matches!(event, Event::Kprobe(..) | Event::Tracepoint(_));
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound if probe => ("no-event", "the kernel has none of that name".to_owned()),
        io::ErrorKind::PermissionDenied if probe && metered == Some(false) => {
            ("not-metered", "interrupts may be off there, so that only fuel ends a loop: rewrite --fuel".to_owned())
        }
        io::ErrorKind::PermissionDenied => ("not-permitted", "events need CAP_SYS_MODULE".to_owned()),
        _ => ("no-event", error.to_string()),
    };
    let problem = Problem::with_file(&args.image, code, format!("cannot attach to {event}: {why}"));
    Err(Failure::one(Exit::Usage, problem.detail("event", event.to_string())))
}

fn not_inserted(args: &Args, file: &[u8], error: &InsertError) -> Failure {
    match error {
        InsertError::Refused(insert) => verdict_failure(&args.image, file, insert),
        InsertError::System(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let message = "inserting needs CAP_SYS_MODULE, or the module's option unprivileged=1";
            Failure::one(Exit::Usage, Problem::with_file(&args.node.device, "not-permitted", message))
        }
        InsertError::System(error) => refused(&args.node, "insert the image", error),
    }
}

/// What the kernel says of the image, with the code around the place where there is one.
fn verdict_failure(path: &Path, file: &[u8], insert: &Insert) -> Failure {
    if insert.verdict == verdict::REJECTED {
        let rule = Rule::ALL.iter().find(|rule| u32::from(rule.number()) == insert.rule);
        if let (Some(rule), Ok(parts)) = (rule, check::parts(path, file)) {
            let reject = Reject { offset: insert.offset, rule: *rule };
            return check::rejected(path, &parts, reject, reject.rule.text());
        }
    }
    let code = match insert.verdict {
        verdict::REJECTED => "rejected",
        verdict::BAD_FORMAT | verdict::BAD_NOTE => "not-an-image",
        verdict::BAD_LAYOUT => "wrong-host",
        verdict::NOT_METERED => "not-metered",
        verdict::OVER_QUOTA => "over-quota",
        verdict::INIT_STOPPED => "stopped",
        _ => "refused",
    };
    let mut problem = Problem::with_file(path, code, format!("refused by the kernel: {}", verdict::text(insert.verdict)));
    match insert.verdict {
        verdict::REJECTED => problem = problem.detail("rule", insert.rule).detail("text_offset", insert.offset),
        verdict::NO_CPU => problem = problem.detail("feature", insert.offset),
        verdict::INIT_STOPPED => {
            let places = Places::of(file);
            let stop = Stop { run: &insert.run, entry: INIT_ENTRY, places: Some(&places) };
            problem.text = Some(format!("error: {}: constructors were stopped\n{}", path.display(), stop.text()));
            problem = problem.detail("report", stop.json());
        }
        _ => {}
    }
    Failure::one(Exit::Refused, problem)
}
