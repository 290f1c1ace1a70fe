//! Scripts: requests are name length, payload length, room, 0 as 32-bit words, four 64-bit arguments, name, payload; answers are signal, result,
//! digest as 64-bit words, or nanoseconds for each pass.

use crate::{HEADROOM, Limit, Live};
use std::collections::BTreeMap;
use wasmtime::{Error, Func, Module, Result, ValRaw, ValType};

/// Bytes of a request before the name.
const HEADER: usize = 48;

struct Step<'a> {
    entry: Func,
    parameters: usize,
    words: [ValRaw; 6],
    payload: &'a [u8],
    room: usize,
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..at + 8).and_then(|b| b.first_chunk()).ok_or_else(|| Error::msg("the script ends early"))?;
    Ok(u64::from_le_bytes(*bytes))
}

fn steps<'a>(live: &mut Live, script: &'a [u8]) -> Result<Vec<Step<'a>>> {
    let mut entries: BTreeMap<String, (Func, Vec<bool>)> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut at = 0;
    while at < script.len() {
        let (lengths, room) = (word(script, at)?, word(script, at + 8)? as u32);
        let (name, payload) = (lengths as u32 as usize, (lengths >> 32) as usize);
        let text = script.get(at + HEADER..at + HEADER + name).ok_or_else(|| Error::msg("the script ends early"))?;
        let text = String::from_utf8_lossy(text).into_owned();
        let bytes =
            script.get(at + HEADER + name..at + HEADER + name + payload).ok_or_else(|| Error::msg("the script ends early"))?;
        if !entries.contains_key(&text) {
            let entry = live.instance.get_func(&mut live.store, &text).ok_or_else(|| Error::msg(format!("no entry {text}")))?;
            let wide = entry.ty(&live.store).params().map(|kind| matches!(kind, ValType::I64)).collect();
            entries.insert(text.clone(), (entry, wide));
        }
        let (entry, wide) = &entries[&text];
        let mut words = [ValRaw::i64(0); 6];
        for (index, (to, wide)) in words.iter_mut().zip(wide).enumerate() {
            let value = match index {
                0 => live.at as u64,
                1 => payload as u64,
                _ => word(script, at + 16 + 8 * (index - 2))?,
            };
            *to = if *wide { ValRaw::u64(value) } else { ValRaw::u32(value as u32) };
        }
        steps.push(Step { entry: *entry, parameters: wide.len(), words, payload: bytes, room: room as usize });
        at += HEADER + name + payload;
    }
    Ok(steps)
}

fn call(live: &mut Live, step: &Step) -> Result<i32> {
    let mut space = step.words;
    // SAFETY: the values have the types of the function's parameters; every entry has one result of 32 bits.
    unsafe { step.entry.call_unchecked(&mut live.store, &raw mut space[..step.parameters.max(1)])? };
    Ok(space[0].get_i32())
}

fn digest(buffer: &[u8]) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325u64 ^ buffer.len() as u64;
    for chunk in buffer.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
    sum
}

/// Processor time of this thread, nanoseconds.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Runs the script once for its answers, or `passes` times for their times.
pub fn perform(module: &Module, limit: Limit, script: &[u8], passes: Option<u32>) -> Result<Vec<u8>> {
    let mut live = Live::new(module, limit)?;
    let steps = steps(&mut live, script)?;
    let mut answer = Vec::new();
    let Some(passes) = passes else {
        for step in &steps {
            let (start, end) = (live.at - HEADROOM, live.at + step.payload.len() + step.room);
            let memory = live.memory.data_mut(&mut live.store);
            memory[start..end].fill(0);
            memory[live.at..live.at + step.payload.len()].copy_from_slice(step.payload);
            let result = i64::from(call(&mut live, step)?);
            let words = [0, result.cast_unsigned(), digest(&live.memory.data(&live.store)[start..end])];
            answer.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        return Ok(answer);
    };
    for _ in 0..passes {
        let start = processor_time();
        for step in &steps {
            live.memory.data_mut(&mut live.store)[live.at..live.at + step.payload.len()].copy_from_slice(step.payload);
            call(&mut live, step)?;
        }
        answer.extend((processor_time() - start).to_le_bytes());
    }
    Ok(answer)
}
