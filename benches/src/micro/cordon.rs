//! Single operations of Cordon.

use super::{Sink, least, micro_seconds};
use crate::columns::{COLUMNS, Kind};
use crate::rows::Amount;
use crate::stats::median;
use crate::workshop::{Workshop, loading};
use anyhow::{Context as _, Result, bail, ensure};
use cordon_checker::layout::RegionKind;
use cordon_checker::note::Note;
use cordon_checker::{Policy, check, scratch_len};
use cordon_fixtures::archives::ARCHIVES;
use cordon_fixtures::compile::Compiler;
use cordon_loader::{Error, FaultKind, Image, Imports, Window, split};
use cordon_rewriter::accounts::{members, settle};
use cordon_rewriter::{Options, rewrite};
use indicatif::ProgressBar;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time limits whose latency is measured, milliseconds.
const LIMITS: [u64; 3] = [1, 5, 10];

/// The host's side of a host call.
pub fn imports() -> Imports {
    Imports::new().function("host_add", |_, [a, b, ..]| u64::from((a as u32).wrapping_add(b as u32)))
}

/// The same, without context.
fn plain_imports() -> Imports {
    Imports::new().plain_function("host_add", |[a, b, ..]| u64::from((a as u32).wrapping_add(b as u32)))
}

/// Everything that Cordon can be measured by.
///
/// # Errors
/// If an image cannot be made, or a call ends otherwise than it must.
pub fn measure(workshop: &Workshop, amount: Amount, sink: &mut Sink, bar: &ProgressBar) -> Result<()> {
    for column in COLUMNS {
        let Kind::Window(rewriting) = column.kind else { continue };
        bar.set_message(format!("single operations: {}", column.title));
        let options = Options { imports: vec!["host_add".into()], ..rewriting.options() };
        let file = rewritten(workshop, rewriting.compiler, &options)?;
        calls(&Image::from_bytes(&file, &loading(&options))?, rewriting.fast, column.id, amount, sink)?;
        if column.id == "window" {
            life(&file, &options, amount, sink)?;
        }
    }
    bar.set_message("single operations: a large image");
    large(amount, sink)
}

fn rewritten(workshop: &Workshop, compiler: Compiler, options: &Options) -> Result<Vec<u8>> {
    let object = workshop.object(&super::FIXTURE, compiler)?;
    let input = cordon_rewriter::object::Input { name: "micro.o".into(), bytes: std::fs::read(object)? };
    Ok(rewrite(&[input], options)?.image)
}

/// Calls into a window and out of it, and what ends them early.
fn calls(image: &Arc<Image>, fast: bool, column: &str, amount: Amount, sink: &mut Sink) -> Result<()> {
    let make = |imports: &Imports| if fast { Window::new_fast(image, imports) } else { Window::new(image, imports) };
    host_calls(make(&plain_imports())?, super::HOST_CALLS[1], column, amount, sink)?;
    host_calls(make(&imports())?, super::HOST_CALLS[0], column, amount, sink)?;
    let mut window = make(&imports())?;
    let entry = |name: &str| image.entry(name).with_context(|| format!("no entry {name}"));
    let empty = entry("micro_empty")?;
    let rounds = amount.of(20, 100_000);
    sink.put("empty call", column, least(amount, rounds, || Ok(window.call_entry(empty, [0; 6]).map(drop)?))?);
    for length in super::LENGTHS {
        let data = vec![7u8; length];
        window.clear_arguments();
        let at = window.place(&data)?;
        let call = || {
            window.write(at, &data)?;
            Ok(window.call_entry(empty, [at.into(), length as u64, 0, 0, 0, 0]).map(drop)?)
        };
        sink.put(&super::argument(length), column, least(amount, rounds / 2, call)?);
    }
    if !fast {
        let mut other = make(&imports())?;
        let both = || {
            window.call_entry(empty, [0; 6])?;
            Ok(other.call_entry(empty, [0; 6]).map(drop)?)
        };
        sink.put("empty call, two windows in turn", column, least(amount, rounds / 2, both)? / 2.0);
    }
    let fault = entry("micro_fault")?;
    let faulting = || match window.call_entry(fault, [0; 6]) {
        Err(Error::Fault(fault)) => {
            ensure!(!fault.report().to_string().is_empty(), "an empty report");
            Ok(())
        }
        other => bail!("no fault: {other:?}"),
    };
    sink.put("fault and its report", column, least(amount, amount.of(2, 100), faulting)?);
    let spin = entry("micro_spin")?;
    for limit in LIMITS {
        let limit = Duration::from_millis(limit);
        window.set_time_limit(Some(limit));
        let mut late = Vec::new();
        for _ in 0..amount.of(1, 15) {
            let start = Instant::now();
            match window.call_entry(spin, [0; 6]) {
                Err(Error::Fault(fault)) if fault.kind == FaultKind::TimeLimit => {}
                other => bail!("not stopped by the time limit: {other:?}"),
            }
            late.push(start.elapsed().saturating_sub(limit).as_nanos() as f64);
        }
        sink.put(&super::latency(limit), column, median(&late).context("no time")?);
    }
    Ok(())
}

/// Many calls of the host's function from one of the handler's.
fn host_calls(mut window: Window, name: &str, column: &str, amount: Amount, sink: &mut Sink) -> Result<()> {
    let host = window.image().entry("micro_host").context("no entry micro_host")?;
    let times = amount.of(10, 10_000);
    let calls = || {
        let sum = window.call_entry(host, [0, 0, times.into(), 0, 0, 0])?;
        ensure!(sum == u64::from(3 * times), "the host's sum is {sum}");
        Ok(())
    };
    sink.put(name, column, least(amount, 20, calls)? / f64::from(times));
    Ok(())
}

/// Windows and images as they come and go.
fn life(file: &[u8], options: &Options, amount: Amount, sink: &mut Sink) -> Result<()> {
    let load = || Ok(Image::from_bytes(file, &loading(options)).map(drop)?);
    sink.put("load a small image, or compile and load it", "window", least(amount, 5, load)?);
    let image = Image::from_bytes(file, &loading(options))?;
    let functions = imports();
    let create = || Ok(Window::new(&image, &functions).map(drop)?);
    sink.put("create and destroy a window or instance", "window", least(amount, amount.of(2, 50), create)?);
    let mut window = Window::new(&image, &functions)?;
    let heap = window.region(RegionKind::Heap).context("a heap")?.start;
    let mut reset = |dirty: usize| {
        least(amount, amount.of(2, 50), || {
            for page in 0..dirty as u32 {
                window.write(heap + page * 4096, &[1])?;
            }
            Ok(window.reset()?)
        })
    };
    let clean = reset(0)?;
    sink.put("reset a window", "window", clean);
    sink.put("reset a window with 64 dirty pages, dirtying included", "window", reset(64)?);
    many(&image, &functions, amount, sink)
}

/// As many windows as asked for, all at once: with the kernel's limit of mappings as it is, and if that is too low, with a greater one, where
/// this process may set it.
fn many(image: &Arc<Image>, functions: &Imports, amount: Amount, sink: &mut Sink) -> Result<()> {
    let count = amount.of(50, 30_000);
    let mut crowd = Crowd::new(image, functions, count)?;
    let note = crowd.refused.as_ref().map(|error| format!("of {count}, then: {error}"));
    sink.count("windows at once", "window", crowd.windows.len() as f64, "", note);
    let raised = crowd.refused.as_ref().and_then(|_| MappingLimit::raise(ENOUGH_MAPPINGS));
    if raised.is_some() {
        drop(crowd);
        crowd = Crowd::new(image, functions, count)?;
        let note = format!("vm.max_map_count is {ENOUGH_MAPPINGS} for these and the next figures");
        sink.count("windows at once, with more mappings", "window", crowd.windows.len() as f64, "", Some(note));
    }
    sink.put("create one of them", "window", crowd.nanoseconds / crowd.windows.len().max(1) as f64);
    let created = resident()?;
    if crowd.refused.is_some() {
        // A call may want a mapping or two.
        crowd.windows.pop();
    }
    let entry = image.entry("micro_empty").context("an entry")?;
    crowd.windows.iter_mut().try_for_each(|window| window.call_entry(entry, [0; 6]).map(drop))?;
    let called = resident()?;
    let per = |after: u64| after.saturating_sub(crowd.before) as f64 / crowd.windows.len().max(1) as f64;
    sink.count("memory of a window, page tables included", "window", per(created), "KiB", None);
    sink.count("the same, called once", "window", per(called), "KiB", None);
    Ok(())
}

/// Mappings that 30,000 windows fit in.
const ENOUGH_MAPPINGS: u64 = 400_000;

/// Many windows at once.
struct Crowd {
    windows: Vec<Window>,
    /// Why there are not more.
    refused: Option<Error>,
    /// Memory of this process without them, KiB.
    before: u64,
    /// Time that making them took.
    nanoseconds: f64,
}

impl Crowd {
    fn new(image: &Arc<Image>, functions: &Imports, count: u32) -> Result<Crowd> {
        let mut crowd = Crowd { windows: Vec::new(), refused: None, before: resident()?, nanoseconds: 0.0 };
        let start = Instant::now();
        while crowd.windows.len() < count as usize && crowd.refused.is_none() {
            match Window::new(image, functions) {
                Ok(window) => crowd.windows.push(window),
                Err(error) => crowd.refused = Some(error),
            }
        }
        crowd.nanoseconds = start.elapsed().as_nanos() as f64;
        Ok(crowd)
    }
}

/// The kernel's limit of mappings, raised until this is dropped.
struct MappingLimit {
    before: String,
}

impl MappingLimit {
    const FILE: &str = "/proc/sys/vm/max_map_count";

    /// `None` if this process may not.
    fn raise(limit: u64) -> Option<MappingLimit> {
        let before = std::fs::read_to_string(MappingLimit::FILE).ok()?;
        std::fs::write(MappingLimit::FILE, limit.to_string()).ok()?;
        Some(MappingLimit { before })
    }
}

impl Drop for MappingLimit {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(MappingLimit::FILE, &self.before) {
            eprintln!("{} stays as it is: {error}", MappingLimit::FILE);
        }
    }
}

/// Memory of this process and its page tables, KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok::<u64, anyhow::Error>(line.trim().trim_end_matches("kB").trim().parse()?)
    };
    Ok(field("VmRSS:")? + field("VmPTE:")?)
}

/// An image of a megabyte: the rewriter, the loader, and the checker alone.
fn large(amount: Amount, sink: &mut Sink) -> Result<()> {
    let name = if amount == Amount::Smoke { "bzip2" } else { "sqlite3" };
    let archive = ARCHIVES.iter().find(|a| a.name == name).context("the archive is listed")?;
    let found = settle(members(&archive.read()?)?, &Options::default()).map_err(|refusals| anyhow::anyhow!("{refusals}"))?;
    let options = Options { whole_archive: true, imports: found.imports.clone(), ..Options::default() };
    let start = Instant::now();
    let made = rewrite(&found.members, &options)?;
    let rate = |bytes: usize, ns: f64| bytes as f64 / ns * 1e3;
    sink.count(
        "rewrite or compile, code a second",
        "window",
        rate(made.stats.text_in, start.elapsed().as_nanos() as f64),
        "MB/s",
        None,
    );
    let parts = split(&made.image)?;
    let note = Note::parse(parts.note).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let mut scratch = vec![0; scratch_len(parts.text.len())];
    let checking =
        || check(parts.text, &Policy::USER, &note.layout, &mut scratch).map(drop).map_err(|reject| anyhow::anyhow!("{reject:?}"));
    let time = least(amount, 1, checking)?;
    sink.count("check, code a second", "window", rate(parts.text.len(), time), "MB/s", None);
    sink.count(
        "check, a MiB of code",
        "window",
        micro_seconds(time) / (parts.text.len() as f64 / f64::from(1 << 20)),
        "µs",
        None,
    );
    let load = || Ok(Image::from_bytes(&made.image, &loading(&options)).map(drop)?);
    let time = least(amount, 1, load)?;
    sink.count("load a large image, code a second", "window", rate(parts.text.len(), time), "MB/s", None);
    Ok(())
}
