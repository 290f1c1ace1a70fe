//! Single operations of the others, where they have them.

use super::{FIXTURE, HOST_CALLS, LENGTHS, Sink, argument, least};
use crate::columns::{COLUMNS, Kind};
use crate::peers::{wasm, wasmi};
use crate::rows::{Amount, Group, Program};
use crate::workshop::Workshop;
use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::compile::run_tool;
use cordon_fixtures::script::Call;
use indicatif::ProgressBar;
use std::path::Path;
use std::process::{Command, Stdio};

/// Names of the runner's lines, figures, and the columns that they go to.
const WASMTIME: [(&str, &str, &str); 9] = [
    ("empty_ns", "empty call", "wasmtime"),
    ("argument_64_ns", "call with 64 bytes", "wasmtime"),
    ("argument_1500_ns", "call with 1500 bytes", "wasmtime"),
    ("host_ns", HOST_CALLS[0], "wasmtime"),
    ("host_plain_ns", HOST_CALLS[1], "wasmtime"),
    ("create_ns", "create and destroy a window or instance", "wasmtime"),
    ("load_ns", "load a small image, or compile and load it", "wasmtime"),
    ("fault_ns", "fault and its report", "wasmtime"),
    ("abort_ns", "late stop of a time limit of 5 ms", "wasmtime-epoch"),
];

/// Calls of a script: their payloads stay in the second-level cache.
const SCRIPT: u32 = 400;
/// Passes over it.
const PASSES: u32 = 200;

/// Everything that the others can be measured by.
///
/// # Errors
/// If a program cannot be built or run.
pub fn measure(workshop: &Workshop, amount: Amount, sink: &mut Sink, bar: &ProgressBar) -> Result<()> {
    scripted(workshop, amount, sink, bar)?;
    bar.set_message("single operations: WebAssembly");
    let module = wasm::module(workshop.folder(), &program(&["micro_empty", "micro_host", "micro_fault", "micro_spin"], 0, 1), 0)?;
    interpreter(&module, amount, sink)?;
    if let Some(runner) = workshop.wasmtime().filter(|_| amount == Amount::Measure) {
        compiled(runner, &module, sink)?;
    }
    let spawn = || {
        let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
        ensure!(status.success(), "/bin/true fails");
        Ok(())
    };
    sink.put("create and destroy a window or instance", "pipe", least(amount, amount.of(1, 20), spawn)?);
    Ok(())
}

/// Calls of these entries with a payload.
fn program(entries: &[&'static str], length: usize, times: usize) -> Program {
    let calls = entries.iter().flat_map(|entry| vec![Call::new(entry).payload(vec![7; length]); times]).collect();
    Program { name: "micro", group: Group::Handlers, fixture: &FIXTURE, calls }
}

/// Empty calls where there is nothing but scripts: the least of several passes.
fn scripted(workshop: &Workshop, amount: Amount, sink: &mut Sink, bar: &ProgressBar) -> Result<()> {
    for column in COLUMNS {
        // BPF has no imports by name, and wasm2c's are not linked here: both have a row of empty calls.
        let times = match column.kind {
            Kind::Native(_) => amount.of(10, SCRIPT),
            Kind::Process(_) => amount.of(10, SCRIPT / 2),
            _ => continue,
        };
        bar.set_message(format!("single operations: {}", column.title));
        let lengths = [0].into_iter().chain(LENGTHS);
        for length in lengths {
            let program = program(&["micro_empty"], length, times as usize);
            let mut built = workshop.build(&program, column, 0, Some(&super::HOST))?;
            let pass = built.runner.time(&program.calls, amount.of(2, PASSES))?.into_iter().min().context("a pass")?;
            let name = if length == 0 { "empty call".to_owned() } else { argument(length) };
            sink.put(&name, column.id, pass as f64 / f64::from(times));
        }
        if matches!(column.kind, Kind::Native(_)) {
            let host = amount.of(10, 100_000);
            let program = Program { calls: vec![Call::new("micro_host").args(&[host.into()])], ..program(&["micro_host"], 0, 1) };
            let mut built = workshop.build(&program, column, 0, Some(&super::HOST))?;
            let pass = built.runner.time(&program.calls, amount.of(2, 12))?.into_iter().min().context("a pass")?;
            HOST_CALLS.iter().for_each(|name| sink.put(name, column.id, pass as f64 / f64::from(host)));
        }
    }
    Ok(())
}

/// wasmi's.
fn interpreter(path: &Path, amount: Amount, sink: &mut Sink) -> Result<()> {
    use ::wasmi::{Caller, Engine, Linker, Module, Store};
    let engine: Engine = wasmi::engine();
    let bytes = std::fs::read(path)?;
    let load = || Ok(Module::new(&engine, &bytes).map(drop)?);
    sink.put("load a small image, or compile and load it", "wasmi", least(amount, 5, load)?);
    let module = Module::new(&engine, &bytes)?;
    let mut linker = Linker::<()>::new(&engine);
    linker.func_wrap("env", "host_add", |_: Caller<'_, ()>, a: i32, b: i32| a.wrapping_add(b))?;
    let create = || Ok(linker.instantiate_and_start(&mut Store::new(&engine, ()), &module).map(drop)?);
    sink.put("create and destroy a window or instance", "wasmi", least(amount, amount.of(1, 20), create)?);
    let mut store = Store::new(&engine, ());
    let instance = linker.instantiate_and_start(&mut store, &module)?;
    let memory = instance.get_memory(&store, "memory").context("no memory")?;
    let buffer = instance.get_typed_func::<(), u32>(&store, "cordon_buffer")?.call(&mut store, ())?;
    let empty = instance.get_typed_func::<(u32, u32), i32>(&store, "micro_empty")?;
    let rounds = amount.of(20, 20_000);
    sink.put("empty call", "wasmi", least(amount, rounds, || Ok(empty.call(&mut store, (0, 0)).map(drop)?))?);
    for length in LENGTHS {
        let data = vec![7u8; length];
        let call = || {
            memory.write(&mut store, buffer as usize, &data)?;
            Ok(empty.call(&mut store, (buffer, length as u32)).map(drop)?)
        };
        sink.put(&argument(length), "wasmi", least(amount, rounds, call)?);
    }
    let times = amount.of(10, 10_000);
    let host = instance.get_typed_func::<(u32, u32, u32), i32>(&store, "micro_host")?;
    let calls = || Ok(host.call(&mut store, (0, 0, times)).map(drop)?);
    sink.put(HOST_CALLS[0], "wasmi", least(amount, 10, calls)? / f64::from(times));
    let mut linker = Linker::<()>::new(&engine);
    linker.func_wrap("env", "host_add", |a: i32, b: i32| a.wrapping_add(b))?;
    let other = linker.instantiate_and_start(&mut store, &module)?;
    let host = other.get_typed_func::<(u32, u32, u32), i32>(&store, "micro_host")?;
    let calls = || Ok(host.call(&mut store, (0, 0, times)).map(drop)?);
    sink.put(HOST_CALLS[1], "wasmi", least(amount, 10, calls)? / f64::from(times));
    let fault = instance.get_typed_func::<(u32, u32), i32>(&store, "micro_fault")?;
    let faulting = || match fault.call(&mut store, (0, 0)) {
        Ok(_) => anyhow::bail!("no fault"),
        Err(error) => {
            ensure!(!format!("{error:?}").is_empty(), "an empty error");
            Ok(())
        }
    };
    sink.put("fault and its report", "wasmi", least(amount, amount.of(2, 1000), faulting)?);
    Ok(())
}

/// wasmtime's, by its runner.
fn compiled(runner: &Path, module: &Path, sink: &mut Sink) -> Result<()> {
    let answer = run_tool(Command::new(runner).arg("micro").arg(module))?;
    let answer = String::from_utf8_lossy(&answer);
    let value = |name: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).with_context(|| format!("the runner says no {name}"))
    };
    for (name, figure, column) in WASMTIME {
        sink.put(figure, column, value(name)?);
    }
    Ok(())
}
