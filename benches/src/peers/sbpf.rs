//! solana-sbpf: an interpreter and a compiler of BPF that translate and check every address and count every instruction.

use super::bpf::Object;
use super::{Runner, processor_time};
use anyhow::{Context as _, Result, anyhow};
use cordon_fixtures::script::{Call, HEADROOM, Outcome, PAYLOAD_LIMIT, digest};
use solana_sbpf::ebpf::{MM_HEAP_START, MM_INPUT_START, MM_STACK_START};
use solana_sbpf::elf::Executable;
use solana_sbpf::error::ProgramResult;
use solana_sbpf::memory_region::{MemoryMapping, MemoryRegion};
use solana_sbpf::program::{BuiltinProgram, FunctionRegistry, SBPFVersion};
use solana_sbpf::verifier::RequisiteVerifier;
use solana_sbpf::vm::{CallFrame, Config, ContextObject, EbpfVm, ExecutionMode};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

/// Has the 32-bit jumps and the calls by distance that clang makes.
const VERSION: SBPFVersion = SBPFVersion::V3;
/// What each call may use, instructions: counted as in a metered window, never reached.
const FUEL: u64 = 1 << 40;
const INSTRUCTION: usize = 8;

/// A program in one of the two machines.
pub struct Sbpf {
    object: Object,
    compiled: bool,
}

/// What the machine asks its host for.
struct Host {
    left: u64,
    mapping: MemoryMapping,
}

impl ContextObject for Host {
    fn consume(&mut self, amount: u64) {
        self.left = self.left.saturating_sub(amount);
    }

    fn get_remaining(&self) -> u64 {
        self.left
    }

    fn active_mapping_ptr(&mut self) -> NonNull<MemoryMapping> {
        NonNull::from_mut(&mut self.mapping)
    }
}

impl Sbpf {
    /// A runner for the object; `compiled` chooses the machine.
    pub fn new(object: Object, compiled: bool) -> Sbpf {
        Sbpf { object, compiled }
    }

    fn executables(&self, calls: &[Call]) -> Result<BTreeMap<&'static str, Executable<Host>>> {
        let loader = Arc::new(BuiltinProgram::new_loader(Config::default()));
        let text = self.object.text_at(MM_HEAP_START);
        let mut all = BTreeMap::new();
        for name in calls.iter().map(|call| call.entry) {
            if all.contains_key(name) {
                continue;
            }
            let start = self.object.functions.get(name).with_context(|| format!("no function {name}"))?;
            let mut functions = FunctionRegistry::default();
            let register = |functions: &mut FunctionRegistry<usize>, name: &str, at: usize| {
                functions.register_function(at as u32, name, at).map_err(|e| anyhow!("{name}: {e}"))
            };
            register(&mut functions, "entrypoint", start / INSTRUCTION)?;
            for (name, at) in self.object.functions.iter().filter(|(_, at)| *at != start) {
                register(&mut functions, name, at / INSTRUCTION)?;
            }
            let made = Executable::from_text_bytes(&text, Arc::clone(&loader), VERSION, functions);
            let executable = made.map_err(|e| anyhow!("{name}: {e}"))?;
            executable.verify::<RequisiteVerifier>().map_err(|e| anyhow!("{name}: {e}"))?;
            if self.compiled {
                executable.jit_compile().map_err(|e| anyhow!("{name}: {e}"))?;
            }
            all.insert(name, executable);
        }
        Ok(all)
    }

    /// Runs `passes` passes and tells `after` of each call's result and buffer; gives their times.
    fn passes(
        &self,
        calls: &[Call],
        passes: u32,
        mut before: impl FnMut(&mut [u8], &Call),
        mut after: impl FnMut(u64, &[u8], &Call),
    ) -> Result<Vec<u64>> {
        let executables = self.executables(calls)?;
        let each: Vec<&Executable<Host>> = calls.iter().filter_map(|call| executables.get(call.entry)).collect();
        let Some(loader) = each.first().map(|e| Arc::clone(e.get_loader())) else { return Ok(Vec::new()) };
        let stack_size = loader.get_config().stack_size();
        let (mut buffer, mut data, mut stack) =
            (vec![0u8; PAYLOAD_LIMIT + HEADROOM], self.object.data.clone(), vec![0u8; stack_size]);
        let regions = vec![
            MemoryRegion::new(&mut stack[..] as *mut [u8], MM_STACK_START),
            MemoryRegion::new(&mut data[..] as *mut [u8], MM_HEAP_START),
            MemoryRegion::new(&mut buffer[..] as *mut [u8], MM_INPUT_START),
        ];
        // SAFETY: the regions outlive the mapping.
        let mapping = unsafe { MemoryMapping::new(regions, loader.get_config(), VERSION) }.map_err(|e| anyhow!("{e}"))?;
        let mut host = Host { left: FUEL, mapping };
        let mut machine = EbpfVm::new(loader, VERSION, &mut host, stack_size);
        let registers = machine.registers;
        let mut frames = vec![CallFrame::default(); Config::default().max_call_depth];
        let mut times = Vec::new();
        let base = buffer.as_mut_ptr();
        for _ in 0..passes {
            let start = processor_time();
            for (call, executable) in calls.iter().zip(&each) {
                // SAFETY: the machine uses the buffer only while it executes.
                before(unsafe { std::slice::from_raw_parts_mut(base, PAYLOAD_LIMIT + HEADROOM) }, call);
                machine.registers = registers;
                machine.registers[1] = MM_INPUT_START + HEADROOM as u64;
                machine.registers[2] = call.payload.len() as u64;
                machine.registers[3..6].copy_from_slice(&call.args[..3]);
                machine.call_depth = 0;
                machine.context().left = FUEL;
                let mut mode = if self.compiled { ExecutionMode::Jit } else { ExecutionMode::Interpreted };
                let (_, result) = machine.execute_program(executable, &mut mode, &mut frames);
                let ProgramResult::Ok(result) = result else { return Err(anyhow!("{}: {result:?}", call.entry)) };
                // SAFETY: as above.
                after(result, unsafe { std::slice::from_raw_parts(base, PAYLOAD_LIMIT + HEADROOM) }, call);
            }
            times.push(processor_time() - start);
        }
        Ok(times)
    }
}

impl Runner for Sbpf {
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        let before = |buffer: &mut [u8], call: &Call| {
            let start = call.buffer();
            buffer[..start.len()].copy_from_slice(&start);
        };
        self.passes(calls, 1, before, |result, buffer, call| {
            let memory = digest(&buffer[..call.buffer().len()]);
            outcomes.push(Outcome::Value { result: result.cast_signed(), memory });
        })?;
        Ok(outcomes)
    }

    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>> {
        let before =
            |buffer: &mut [u8], call: &Call| buffer[HEADROOM..HEADROOM + call.payload.len()].copy_from_slice(&call.payload);
        self.passes(calls, passes, before, |_, _, _| {})
    }
}
