//! wasmi, an interpreter of WebAssembly.

use super::{Runner, processor_time};
use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::script::{Call, HEADROOM, Outcome, digest};
use std::collections::BTreeMap;
use std::path::Path;
use wasmi::{Config, Engine, Func, Instance, Linker, Memory, Module, Store, Val, ValType};

/// More than any script needs: interpreted calls beyond it are refused.
const DEPTH: usize = 100_000;

/// A compiled module; every run has an instance of its own.
pub struct Wasmi {
    module: Module,
}

/// A module in memory and its entries.
pub struct Live {
    pub store: Store<()>,
    pub instance: Instance,
    memory: Memory,
    /// Where payloads go.
    at: usize,
    entries: BTreeMap<&'static str, (Func, Vec<ValType>)>,
}

/// The engine with the limits that deep recursion wants.
pub fn engine() -> Engine {
    let mut config = Config::default();
    config.set_max_recursion_depth(DEPTH).set_max_stack_height(64 << 20);
    Engine::new(&config)
}

impl Wasmi {
    /// Validates and translates the module.
    ///
    /// # Errors
    /// If wasmi refuses it.
    pub fn new(path: &Path) -> Result<Wasmi> {
        Ok(Wasmi { module: Module::new(&engine(), std::fs::read(path)?)? })
    }

    /// A fresh instance.
    ///
    /// # Errors
    /// If it has not the exports of [`super::wasm`].
    pub fn live(&self) -> Result<Live> {
        let mut store = Store::new(self.module.engine(), ());
        let instance = Linker::new(self.module.engine()).instantiate_and_start(&mut store, &self.module)?;
        let memory = instance.get_memory(&store, "memory").context("no memory")?;
        let buffer = instance.get_typed_func::<(), u32>(&store, "cordon_buffer")?.call(&mut store, ())?;
        Ok(Live { store, instance, memory, at: buffer as usize + HEADROOM, entries: BTreeMap::new() })
    }
}

impl Live {
    fn entry(&mut self, name: &'static str) -> Result<(Func, Vec<ValType>)> {
        if let Some(known) = self.entries.get(name) {
            return Ok(known.clone());
        }
        let function = self.instance.get_func(&self.store, name).with_context(|| format!("no entry {name}"))?;
        let types = function.ty(&self.store).params().to_vec();
        self.entries.insert(name, (function, types.clone()));
        Ok((function, types))
    }

    /// Function and arguments of a call.
    fn prepare(&mut self, call: &Call) -> Result<(Func, Vec<Val>)> {
        let (function, types) = self.entry(call.entry)?;
        let words = [self.at as u64, call.payload.len() as u64].into_iter().chain(call.args);
        let value = |(kind, word): (&ValType, u64)| match kind {
            ValType::I64 => Val::I64(word.cast_signed()),
            _ => Val::I32((word as u32).cast_signed()),
        };
        Ok((function, types.iter().zip(words).map(value).collect()))
    }
}

impl Runner for Wasmi {
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>> {
        let mut live = self.live()?;
        let mut outcomes = Vec::new();
        for call in calls {
            let mut buffer = call.buffer();
            let (function, arguments) = live.prepare(call)?;
            live.memory.write(&mut live.store, live.at - HEADROOM, &buffer)?;
            let mut result = [Val::I32(0)];
            function.call(&mut live.store, &arguments, &mut result).with_context(|| call.entry)?;
            live.memory.read(&live.store, live.at - HEADROOM, &mut buffer)?;
            let result = result[0].i32().context("entries return numbers of 32 bits")?;
            outcomes.push(Outcome::Value { result: result.into(), memory: digest(&buffer) });
        }
        Ok(outcomes)
    }

    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>> {
        let mut live = self.live()?;
        let steps: Vec<_> = calls.iter().map(|call| live.prepare(call)).collect::<Result<_>>()?;
        ensure!(steps.len() == calls.len(), "a step for each call");
        let mut result = [Val::I32(0)];
        let mut times = Vec::new();
        for _ in 0..passes {
            let start = processor_time();
            for (call, (function, arguments)) in calls.iter().zip(&steps) {
                live.memory.write(&mut live.store, live.at, &call.payload)?;
                function.call(&mut live.store, arguments, &mut result)?;
            }
            times.push(processor_time() - start);
        }
        Ok(times)
    }
}
