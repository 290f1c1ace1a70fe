//! Runs the benches' scripts in wasmtime, in the formats of the fixtures' native half (`fixtures/src/native.rs`).
//!
//! * `cordon-wasmtime compile LIMIT MODULE COMPILED` compiles ahead of time;
//! * `cordon-wasmtime SCRIPT ANSWERS [PASSES]` runs or times the calls of a script, with `CORDON_WASMTIME_MODULE` and `CORDON_WASMTIME_LIMIT`;
//! * `cordon-wasmtime micro MODULE` prints what single operations take.

mod micro;
mod script;

use std::path::Path;
use wasmtime::{Config, Engine, Error, Instance, Memory, Module, Result, Store};

/// Headroom in front of payloads, as in `fixtures/src/script.rs`.
const HEADROOM: usize = 256;
/// As much as the defaults of the other limits allow, bytes.
const STACK: usize = 3 << 19;

/// What stops a module that runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    None,
    Epoch,
    Fuel,
}

impl Limit {
    fn parse(word: &str) -> Result<Limit> {
        match word {
            "none" => Ok(Limit::None),
            "epoch" => Ok(Limit::Epoch),
            "fuel" => Ok(Limit::Fuel),
            other => Err(Error::msg(format!("no limit {other}"))),
        }
    }
}

/// The engine: the defaults, which replace bounds checks by guard pages, and the limit.
pub fn engine(limit: Limit) -> Result<Engine> {
    let mut config = Config::new();
    config.max_wasm_stack(STACK);
    config.epoch_interruption(limit == Limit::Epoch);
    config.consume_fuel(limit == Limit::Fuel);
    Engine::new(&config)
}

/// An instance with its memory and the payload's place in it.
pub struct Live {
    pub store: Store<()>,
    pub instance: Instance,
    pub memory: Memory,
    pub at: usize,
}

impl Live {
    /// A fresh instance; its limit is never reached.
    pub fn new(module: &Module, limit: Limit) -> Result<Live> {
        let mut store = Store::new(module.engine(), ());
        match limit {
            Limit::None => {}
            Limit::Epoch => store.set_epoch_deadline(1 << 40),
            Limit::Fuel => store.set_fuel(1 << 60)?,
        }
        let instance = Instance::new(&mut store, module, &[])?;
        let memory = instance.get_memory(&mut store, "memory").ok_or_else(|| Error::msg("no memory"))?;
        let buffer = instance.get_typed_func::<(), u32>(&mut store, "cordon_buffer")?.call(&mut store, ())?;
        Ok(Live { store, instance, memory, at: buffer as usize + HEADROOM })
    }
}

fn compile(limit: &str, module: &str, compiled: &str) -> Result<()> {
    let bytes = engine(Limit::parse(limit)?)?.precompile_module(&std::fs::read(module)?)?;
    Ok(std::fs::write(compiled, bytes)?)
}

/// Loads what [`compile`] wrote.
fn load(path: &Path, limit: Limit) -> Result<Module> {
    // SAFETY: the file was written by this program.
    unsafe { Module::deserialize_file(&engine(limit)?, path) }
}

fn run(words: &[&str]) -> Result<()> {
    let variable = |name: &str| std::env::var(name).map_err(|e| Error::msg(format!("{name}: {e}")));
    match words {
        ["compile", limit, module, compiled] => compile(limit, module, compiled),
        ["micro", module] => micro::run(Path::new(module)),
        [script, answers, passes @ ..] => {
            let limit = Limit::parse(&variable("CORDON_WASMTIME_LIMIT")?)?;
            let module = load(Path::new(&variable("CORDON_WASMTIME_MODULE")?), limit)?;
            let passes = passes.first().map(|word| word.parse()).transpose()?;
            let bytes = std::fs::read(script)?;
            let answer = script::perform(&module, limit, &bytes, passes)?;
            Ok(std::fs::write(answers, answer)?)
        }
        _ => Err(Error::msg("usage: cordon-wasmtime SCRIPT ANSWERS [PASSES]")),
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // A thread with a stack that holds the module's.
    let worker = std::thread::Builder::new().stack_size(2 * STACK);
    let worker = worker.spawn(move || run(&words.iter().map(String::as_str).collect::<Vec<_>>()))?;
    worker.join().map_err(|_| Error::msg("the worker panicked"))?
}
