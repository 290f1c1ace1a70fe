//! A library that nobody here compiled: Debian's `libz.a`, in a window, on many megabytes.

use super::build::Workshop;
use super::{Args, Console, broken, median};
use crate::cli::outcome::{Exit, Failure, Problem, Report};
use cordon_fixtures::native::NativeRunner;
use cordon_fixtures::script::judge;
use cordon_fixtures::window::WindowRunner;
use cordon_fixtures::workload::mixed_data;
use cordon_fixtures::zlib::{self, Recording};
use serde_json::{Value, json};

/// zlib's own default.
const LEVEL: u64 = 6;

/// Times of one direction, milliseconds for the whole of the data.
struct Times {
    native: f64,
    window: f64,
    fast: Option<f64>,
}

/// Compresses and restores in a window, repeats every call natively, compares, times.
pub fn show(args: &Args, workshop: &Workshop, console: Console) -> Result<Report, Failure> {
    let data = mixed_data(args.seed, args.mib as usize * 1024 * 1024);
    let built = workshop.build("zlib_driver")?;
    let (stats, summary) = (built.stats, built.image.summary());
    console.line(format_args!(
        "libz.a as Debian compiled it: {} functions, text {} -> {} bytes ({:+.1} %)\n\
         accepted by the checker: {} instructions, stack depth at most {} bytes",
        stats.functions,
        stats.text_in,
        stats.text_out,
        (stats.text_out as f64 / stats.text_in.max(1) as f64 - 1.0) * 100.0,
        summary.instructions,
        summary.max_depth
    ));
    let mut runner = WindowRunner::new(&built.image, false).map_err(broken)?;
    let packed = zlib::deflate(&mut runner, &data, LEVEL).map_err(broken)?;
    let restored = zlib::inflate(&mut runner, &packed.output).map_err(broken)?;
    console.line(format_args!("{} MiB deflated to {} bytes and inflated again, in a window", args.mib, packed.output.len()));
    if restored.output != data {
        return Err(differs("inflate does not give back what deflate was given".into()));
    }
    for recording in [&packed, &restored] {
        same_as_native(&built.native, recording)?;
    }
    let calls = packed.calls.len() + restored.calls.len();
    console.line(format_args!("restored as it was; all {calls} calls give the same results and the same bytes natively\n"));

    let unsealed = built.unsealed()?;
    let mut fast = WindowRunner::new(&unsealed, true).ok();
    let mut report = json!({ "bytes": data.len(), "compressed": packed.output.len(), "calls": calls, "equal": true });
    let mut text = String::from("Time against native\n");
    for (name, recording) in [("deflate", &packed), ("inflate", &restored)] {
        let times = time(args, &built.native, &mut runner, fast.as_mut(), recording)?;
        report[name] = times.json();
        text += &times.line(name);
    }
    text += "Everything is as it must be.\n";
    Ok(Report { text, json: report })
}

fn differs(what: String) -> Failure {
    Failure::one(Exit::Refused, Problem::new("demo", what))
}

fn same_as_native(native: &NativeRunner, recording: &Recording) -> Result<(), Failure> {
    let outcomes = native.run(&recording.calls).map_err(broken)?;
    let mut pairs = recording.calls.iter().zip(outcomes.iter().zip(&recording.outcomes));
    pairs.try_for_each(|(call, (native, window))| judge(call, native, window)).map_err(differs)
}

fn time(
    args: &Args,
    native: &NativeRunner,
    window: &mut WindowRunner,
    mut fast: Option<&mut WindowRunner>,
    recording: &Recording,
) -> Result<Times, Failure> {
    let calls = &recording.calls;
    let (mut natives, mut windows, mut fasts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        natives.extend(native.time(calls, 1).map_err(broken)?);
        windows.extend(window.time(calls, 1).map_err(broken)?);
        if let Some(fast) = &mut fast {
            fasts.extend(fast.time(calls, 1).map_err(broken)?);
        }
    }
    let milliseconds = |times: Vec<u64>| median(times) / 1e6;
    let fast = fast.map(|_| milliseconds(fasts));
    Ok(Times { native: milliseconds(natives), window: milliseconds(windows), fast })
}

impl Times {
    fn line(&self, name: &str) -> String {
        let fast = self
            .fast
            .map_or_else(|| "no fast window here".into(), |f| format!("fast window {f:.0} ms (x{:.3})", f / self.native));
        let ratio = self.window / self.native;
        format!("  {name}: native {:.0} ms, window {:.0} ms (x{ratio:.3}), {fast}\n", self.native, self.window)
    }

    fn json(&self) -> Value {
        json!({ "native_ms": self.native, "window_ms": self.window, "fast_window_ms": self.fast })
    }
}
