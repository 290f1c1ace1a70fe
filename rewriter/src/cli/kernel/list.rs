//! `cordon list`, `cordon stats`, `cordon remove`.

use super::stop::Stop;
use super::{Node, counts, no_handler, refused, words};
use crate::cli::Format;
use crate::cli::outcome::{Failure, Report};
use crate::cli::rewrite::read_file;
use cordon_kernel::abi::{self, About, EventStats, Totals, text_of};
use cordon_kernel::{Event, Places};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// List the handlers in the kernel
///
/// Without CAP_SYS_MODULE one sees the unprivileged handlers of one's own.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub node: Node,
    /// How to print the list
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Show what a handler in the kernel has done, or what the module holds
///
/// With a number: calls, events with their counts, and for each event the last call that was stopped. Without: the module's sums.
#[derive(Debug, clap::Args)]
pub struct StatsArgs {
    /// The handler's number
    pub id: Option<u32>,
    /// The image file, for the names of functions
    #[arg(long, value_name = "FILE", requires = "id")]
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub node: Node,
    /// How to print the counts
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Remove handlers from the kernel, pinned ones and others
///
/// Ends a handler's events first: when the command is done, none of them calls it any more. A program that has the handler open keeps its
/// memory, and gets errors for further calls.
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// The handlers' numbers
    #[arg(required = true)]
    pub id: Vec<u32>,
    #[command(flatten)]
    pub node: Node,
    /// How to print the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Runs `cordon list`.
pub fn list(args: &ListArgs) -> Result<Report, Failure> {
    let device = args.node.open()?;
    let handlers = device.list().map_err(|e| refused(&args.node, "list handlers", &e))?;
    let mut text = String::new();
    if handlers.is_empty() {
        text.push_str("no handlers\n");
    } else {
        let _ = writeln!(
            text,
            "{:>4} {:24} {:>6} {:22} {:>6} {:>12} {:>8} state",
            "id", "name", "user", "process", "events", "calls", "stopped"
        );
    }
    for about in &handlers {
        let process = format!("{} ({})", text_of(&about.process).escape_debug(), about.pid);
        let name = text_of(&about.name).escape_debug().to_string();
        let (calls, stopped) = (about.stats.calls, about.stats.stopped);
        let _ = writeln!(
            text,
            "{:>4} {name:24} {:>6} {process:22} {:>6} {calls:>12} {stopped:>8} {}",
            about.id,
            about.uid,
            about.events,
            state(about)
        );
    }
    Ok(Report { text, json: json!({ "handlers": handlers.iter().map(handler).collect::<Vec<_>>() }) })
}

fn state(about: &About) -> String {
    let pinned = if about.flags & abi::PINNED != 0 { "pinned" } else { "held" };
    let rights = if about.flags & abi::UNPRIVILEGED != 0 { ", unprivileged" } else { "" };
    format!("{pinned}{rights}")
}

/// A handler for machines.
pub fn handler(about: &About) -> Value {
    let mut object = json!({
        "id": about.id,
        "name": text_of(&about.name),
        "uid": about.uid,
        "pid": about.pid,
        "process": text_of(&about.process),
        "pinned": about.flags & abi::PINNED != 0,
        "unprivileged": about.flags & abi::UNPRIVILEGED != 0,
        "events": about.events,
    });
    object["stats"] = counts(&about.stats);
    object
}

/// Runs `cordon stats`.
pub fn stats(args: &StatsArgs) -> Result<Report, Failure> {
    let places = args.image.as_ref().map(|path| read_file(path)).transpose()?.map(|file| Places::of(&file));
    let device = args.node.open()?;
    let Some(id) = args.id else {
        let totals = device.totals().map_err(|e| refused(&args.node, "ask for sums", &e))?;
        return Ok(sums(&totals));
    };
    let handler = device.handler(id).map_err(|e| no_handler(&args.node, id, &e))?;
    let failed = |e| refused(&args.node, "ask for counts", &e);
    let (about, events) = (handler.about().map_err(failed)?, handler.events().map_err(failed)?);
    Ok(one(&about, &events, places.as_ref()))
}

fn sums(totals: &Totals) -> Report {
    let json = json!({
        "handlers": totals.handlers,
        "inserted": totals.inserted,
        "removed": totals.removed,
        "text_pages": totals.arena_pages,
        "window_pages": totals.window_pages,
        "exception_table_entries": totals.table_entries,
    });
    let text = json.as_object().into_iter().flatten().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{} = {value}", name.replace('_', " "));
        text
    });
    Report { text, json }
}

/// Everything about a handler; names of functions only with its image file.
pub fn one(about: &About, events: &[EventStats], places: Option<&Places>) -> Report {
    let stats = &about.stats;
    let mut json = handler(about);
    let mut text = format!("handler {} {}: {}\n", about.id, text_of(&about.name).escape_debug(), state(about));
    let _ = writeln!(
        text,
        "  calls {}, returned {}, stopped {}, busy {}, refused {}; memory {} KiB, text {} bytes",
        stats.calls,
        stats.returned,
        stats.stopped,
        stats.busy,
        stats.refused,
        stats.pages * 4,
        stats.text_bytes
    );
    let events: Vec<Value> = events
        .iter()
        .map(|event| {
            let entry = text_of(&event.attach.entry);
            let name = Event::of(&event.attach).map_or_else(|| format!("kind {}", event.attach.kind), |event| event.to_string());
            let _ = writeln!(text, "  event {} {name} -> {}: {}", event.number, entry.escape_debug(), words(event));
            let last = (event.stopped > 0).then(|| Stop { run: &event.last, entry: &entry, places });
            text.push_str(&last.as_ref().map_or(String::new(), Stop::text));
            json!({
                "number": event.number,
                "event": name,
                "entry": entry,
                "fired": event.fired,
                "returned": event.returned,
                "zero": event.zero,
                "changed": event.changed,
                "unchanged": event.unchanged,
                "stopped": event.stopped,
                "missed": event.missed,
                "last_stop": last.as_ref().map(Stop::json),
            })
        })
        .collect();
    json["events"] = json!(events);
    Report { text, json }
}

/// Runs `cordon remove`.
pub fn remove(args: &RemoveArgs) -> Result<Report, Failure> {
    let device = args.node.open()?;
    for &id in &args.id {
        device.remove(id).map_err(|e| no_handler(&args.node, id, &e))?;
    }
    let text = args.id.iter().map(|id| format!("handler {id} removed\n")).collect();
    Ok(Report { text, json: json!({ "removed": args.id }) })
}
