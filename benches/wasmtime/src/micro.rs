//! What single operations take: each line a name, a number and its unit.

use crate::{HEADROOM, Limit, engine};
use std::path::Path;
use std::time::{Duration, Instant};
use wasmtime::{Caller, Error, Linker, Module, Result, Store};

/// The least of several measurements of `rounds` rounds each, nanoseconds a round.
fn least(rounds: u32, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..15 {
        let start = Instant::now();
        for _ in 0..rounds {
            work()?;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
    Ok(best)
}

fn say(name: &str, value: f64) {
    println!("{name} {value:.3}");
}

/// Measures everything with the module of `benches/src/micro`.
pub fn run(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path)?;
    let plain = engine(Limit::None)?;
    let start = Instant::now();
    let compiled = plain.precompile_module(&bytes)?;
    say("compile_ns", start.elapsed().as_nanos() as f64);
    say("module_bytes", bytes.len() as f64);
    // SAFETY: the bytes come from the same engine.
    let load = || unsafe { Module::deserialize(&plain, &compiled) };
    say("load_ns", least(20, || load().map(drop))?);
    let module = load()?;
    let mut linker = Linker::new(&plain);
    linker.func_wrap("env", "host_add", |_: Caller<'_, ()>, a: i32, b: i32| a.wrapping_add(b))?;
    say("create_ns", least(50, || linker.instantiate(&mut Store::new(&plain, ()), &module).map(drop))?);
    let mut store = Store::new(&plain, ());
    let instance = linker.instantiate(&mut store, &module)?;
    let memory = instance.get_memory(&mut store, "memory").ok_or_else(|| Error::msg("no memory"))?;
    let buffer = instance.get_typed_func::<(), u32>(&mut store, "cordon_buffer")?.call(&mut store, ())? as usize + HEADROOM;
    let empty = instance.get_typed_func::<(u32, u32), i32>(&mut store, "micro_empty")?;
    say("empty_ns", least(100_000, || empty.call(&mut store, (0, 0)).map(drop))?);
    for len in [64, 1500] {
        let data = vec![7u8; len];
        let call = || {
            memory.data_mut(&mut store)[buffer..buffer + len].copy_from_slice(&data);
            empty.call(&mut store, (buffer as u32, len as u32)).map(drop)
        };
        say(&format!("argument_{len}_ns"), least(50_000, call)?);
    }
    let import = instance.get_typed_func::<(u32, u32, u32), i32>(&mut store, "micro_host")?;
    say("host_ns", least(20, || import.call(&mut store, (0, 0, 10_000)).map(drop))? / 10_000.0);
    let mut linker = Linker::new(&plain);
    linker.func_wrap("env", "host_add", |a: i32, b: i32| a.wrapping_add(b))?;
    let other = linker.instantiate(&mut store, &module)?;
    let import = other.get_typed_func::<(u32, u32, u32), i32>(&mut store, "micro_host")?;
    say("host_plain_ns", least(20, || import.call(&mut store, (0, 0, 10_000)).map(drop))? / 10_000.0);
    let fault = instance.get_typed_func::<(u32, u32), i32>(&mut store, "micro_fault")?;
    let faulting = || match fault.call(&mut store, (0, 0)) {
        Ok(_) => Err(Error::msg("no fault")),
        Err(error) if format!("{error:?}").is_empty() => Err(Error::msg("an empty error")),
        Err(_) => Ok(()),
    };
    say("fault_ns", least(200, faulting)?);
    abort(&bytes)
}

/// How long after its deadline a spinning module ends, with a thread that counts milliseconds.
fn abort(bytes: &[u8]) -> Result<()> {
    let engine = engine(Limit::Epoch)?;
    let module = Module::new(&engine, bytes)?;
    let mut linker = Linker::new(&engine);
    linker.func_wrap("env", "host_add", |_: Caller<'_, ()>, a: i32, b: i32| a.wrapping_add(b))?;
    let ticker = engine.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(1));
            ticker.increment_epoch();
        }
    });
    let mut late: Vec<f64> = Vec::new();
    for _ in 0..20 {
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1000);
        let instance = linker.instantiate(&mut store, &module)?;
        let spin = instance.get_typed_func::<(u32, u32), i32>(&mut store, "micro_spin")?;
        store.set_epoch_deadline(5);
        let start = Instant::now();
        if spin.call(&mut store, (0, 0)).is_ok() {
            return Err(Error::msg("it was not stopped"));
        }
        late.push(start.elapsed().as_nanos() as f64 - 5e6);
    }
    late.sort_by(f64::total_cmp);
    say("abort_ns", late[late.len() / 2].max(0.0));
    Ok(())
}
