//! rbpf: an interpreter of BPF that checks every access against a list of ranges, and a compiler that checks none.

use super::bpf::{Context, Object, wrapper};
use super::{Runner, processor_time};
use anyhow::{Context as _, Result, anyhow};
use cordon_fixtures::script::{Call, HEADROOM, Outcome, PAYLOAD_LIMIT, digest};
use std::collections::BTreeMap;
use std::ops::Range;

/// `ja`, a jump by the 16-bit offset in bytes 2 and 3.
const JUMP: u8 = 0x05;
const INSTRUCTION: usize = 8;

/// A program in one of the two machines.
pub struct Rbpf {
    object: Object,
    compiled: bool,
}

/// Memory of one run; its address does not change.
struct Arena {
    buffer: Vec<u8>,
    /// What the programs get: a [`Context`] as bytes.
    context: Vec<u8>,
    data: Vec<u8>,
}

impl Arena {
    fn new(data: &[u8]) -> Arena {
        Arena { buffer: vec![0; PAYLOAD_LIMIT + HEADROOM], context: vec![0; size_of::<Context>()], data: data.into() }
    }

    /// Address ranges that programs may use: buffer and data.
    fn ranges(&self) -> [Range<u64>; 2] {
        [&self.buffer, &self.data].map(|m| m.as_ptr_range()).map(|r| r.start as u64..r.end as u64)
    }

    /// The context for a call, for as long as the machines want it.
    fn context(&mut self, call: &Call) -> &'static mut [u8] {
        let words = [self.buffer.as_ptr() as u64 + HEADROOM as u64, call.payload.len() as u64];
        for (to, word) in self.context.chunks_exact_mut(8).zip(words.iter().chain(&call.args)) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        // SAFETY: the bytes are neither moved nor freed before the machines are, and nothing reads them while a program runs.
        unsafe { std::slice::from_raw_parts_mut(self.context.as_mut_ptr(), self.context.len()) }
    }
}

impl Rbpf {
    /// A runner for the object; `compiled` chooses the machine.
    pub fn new(object: Object, compiled: bool) -> Rbpf {
        Rbpf { object, compiled }
    }

    /// The functions as programs that start with a jump to them.
    fn programs(&self, calls: &[Call], data: u64) -> Result<BTreeMap<String, Vec<u8>>> {
        let text = self.object.text_at(data);
        let mut programs = BTreeMap::new();
        for call in calls {
            let name = wrapper(call.entry);
            let start = self.object.functions.get(&name).with_context(|| format!("no function {name}"))?;
            let distance = i16::try_from(start / INSTRUCTION)?.to_le_bytes();
            let jump = [JUMP, 0, distance[0], distance[1], 0, 0, 0, 0];
            programs.entry(call.entry.to_owned()).or_insert_with(|| [&jump[..], &text].concat());
        }
        Ok(programs)
    }

    /// Gives `work` every call's machine and memory.
    fn with<R>(&self, calls: &[Call], work: impl FnOnce(&[&rbpf::EbpfVmRaw], &mut Arena) -> Result<R>) -> Result<R> {
        let mut arena = Arena::new(&self.object.data);
        let ranges = arena.ranges();
        let programs = self.programs(calls, ranges[1].start)?;
        let mut machines = BTreeMap::new();
        for (name, program) in &programs {
            let mut machine = rbpf::EbpfVmRaw::new(Some(program)).map_err(|e| anyhow!("{name}: {e}"))?;
            ranges.iter().for_each(|range| machine.register_allowed_memory(range.clone()));
            if self.compiled {
                machine.jit_compile().map_err(|e| anyhow!("{name}: {e}"))?;
            }
            machines.insert(name.as_str(), machine);
        }
        let each: Vec<&rbpf::EbpfVmRaw> = calls.iter().filter_map(|call| machines.get(call.entry)).collect();
        work(&each, &mut arena)
    }

    fn execute(&self, machine: &rbpf::EbpfVmRaw, context: &'static mut [u8]) -> Result<u64> {
        let result = if self.compiled {
            // SAFETY: unchecked code of this project, whose results the interpreter's were compared with.
            unsafe { machine.execute_program_jit(context) }
        } else {
            machine.execute_program(context)
        };
        result.map_err(|e| anyhow!("{e}"))
    }
}

impl Runner for Rbpf {
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>> {
        self.with(calls, |machines, arena| {
            let one = |(call, machine): (&Call, &&rbpf::EbpfVmRaw)| {
                let start = call.buffer();
                arena.buffer[..start.len()].copy_from_slice(&start);
                let result = self.execute(machine, arena.context(call)).with_context(|| call.entry)?;
                Ok(Outcome::Value { result: result.cast_signed(), memory: digest(&arena.buffer[..start.len()]) })
            };
            calls.iter().zip(machines).map(one).collect()
        })
    }

    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>> {
        self.with(calls, |machines, arena| {
            let mut times = Vec::new();
            for _ in 0..passes {
                let start = processor_time();
                for (call, machine) in calls.iter().zip(machines) {
                    arena.buffer[HEADROOM..HEADROOM + call.payload.len()].copy_from_slice(&call.payload);
                    self.execute(machine, arena.context(call))?;
                }
                times.push(processor_time() - start);
            }
            Ok(times)
        })
    }
}
