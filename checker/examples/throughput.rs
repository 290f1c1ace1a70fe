//! Measures the checker's speed on a realistic mix: this program's own code, with memory operands made window operands.
//!
//! `cargo run --release -p cordon-checker --example throughput`

use cordon_checker::layout::SET_SLOTS;
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, Policy, Protect, check, describe, sample, scratch_len};
use iced_x86::{Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::time::Instant;

/// Contents of the `.text` section of an ELF64 file.
fn text_of(file: &[u8]) -> Option<&[u8]> {
    let word =
        |at: usize, n: usize| file.get(at..at + n).map(|b| b.iter().rev().fold(0_u64, |v, &x| v << 8 | u64::from(x)) as usize);
    let (headers, size, count, names) = (word(40, 8)?, word(58, 2)?, word(60, 2)?, word(62, 2)?);
    let header = |index: usize| headers + index * size;
    let strings = word(header(names) + 24, 8)?;
    let section = (0..count)
        .map(header)
        .find(|&at| word(at, 4).and_then(|name| file.get(strings + name..)).is_some_and(|name| name.starts_with(b".text\0")))?;
    file.get(word(section + 24, 8)?..)?.get(..word(section + 32, 8)?)
}

/// The instruction with its memory operand in the window, as the rewriter would emit it.
fn to_window(mut instruction: Instruction) -> Option<Vec<u8>> {
    let narrow = |r: Register| if r.is_gpr64() { Register::EAX + r.number() as u32 } else { Register::None };
    if (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory) && instruction.mnemonic() != Mnemonic::Lea
    {
        if instruction.is_ip_rel_memory_operand() {
            instruction.set_memory_displacement64(0x12_3456);
        }
        instruction.set_segment_prefix(Register::GS);
        instruction.set_memory_base(narrow(instruction.memory_base()));
        instruction.set_memory_index(narrow(instruction.memory_index()));
        if instruction.memory_base() == Register::None && instruction.memory_index() == Register::None {
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(0x12_3456);
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).ok()?;
    let mut bytes = encoder.take_buffer();
    let prefixes = bytes.iter().take_while(|b| matches!(b, 0x65 | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3)).count();
    let rank = |b: &u8| [0x65, 0x67, 0xf0, 0x66].iter().position(|p| p == b).unwrap_or(9);
    bytes[..prefixes].sort_by_key(rank);
    Some(bytes)
}

/// Accepted text made of the instructions of `code`, control flow made trivial.
fn accepted_text(code: &[u8], length: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let mut pushed = 0;
    while text.len() < length {
        for instruction in Decoder::new(64, code, DecoderOptions::NONE) {
            let bytes = match instruction.flow_control() {
                FlowControl::ConditionalBranch => vec![0x70 | instruction.condition_code() as u8 & 15, 0],
                FlowControl::UnconditionalBranch => vec![0xeb, 0],
                FlowControl::Call => vec![0xe8, 0, 0, 0, 0],
                _ => match to_window(instruction) {
                    Some(bytes) => bytes,
                    None => continue,
                },
            };
            let Ok(description) = describe(&bytes, Host::User) else { continue };
            let next = matches!(description.flow, Flow::Next | Flow::Conditional(_) | Flow::Jump(_) | Flow::Call(_));
            let depth = match instruction.mnemonic() {
                Mnemonic::Call if pushed != 0 => continue,
                Mnemonic::Push if pushed < SET_SLOTS as usize => pushed + 1,
                Mnemonic::Pop if pushed > 0 => pushed - 1,
                Mnemonic::Push | Mnemonic::Pop => continue,
                _ if description.gpr_writes & 1 << 4 != 0 => continue,
                _ => pushed,
            };
            if next {
                text.extend(bytes);
                pushed = depth;
            }
        }
    }
    text.extend(vec![0x58; pushed]);
    text.push(0xc3);
    text
}

/// Seconds that this thread has run (schedstat, so that a busy machine does not count), or of the clock.
fn seconds(since: Instant) -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let run = stat.split_whitespace().next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok());
    run.map_or_else(|| since.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

fn main() {
    let path = std::env::args().nth(1).map_or_else(|| std::env::current_exe().expect("a path"), Into::into);
    let file = std::fs::read(path).expect("readable");
    let text = accepted_text(
        text_of(&file).expect("an ELF file with .text"),
        std::env::args().nth(2).map_or(8 << 20, |s| s.parse().expect("bytes")),
    );
    // Text of a mode has a walk of its own.
    for (name, mode) in [("sandbox", Mode::default()), ("stores only", Mode { protect: Protect::Stores, ..Mode::default() })] {
        print!("{name}: ");
        measure(&text, mode);
    }
}

fn measure(text: &[u8], mode: Mode) {
    let (spec, policy) = (NoteSpec { mode, ..sample::user() }, Policy { mode, ..Policy::USER });
    let mut scratch = vec![0_u64; scratch_len(text.len())];
    let epoch = Instant::now();
    let mut best = f64::MAX;
    let mut summary = None;
    for _ in 0..9 {
        let started = seconds(epoch);
        summary = Some(sample::with_layout(&spec, |layout| check(text, &policy, layout, &mut scratch)));
        best = best.min(seconds(epoch) - started);
    }
    let summary = summary.expect("ran").unwrap_or_else(|reject| panic!("{reject}"));
    let bytes = text.len() as f64;
    let each = bytes / f64::from(summary.instructions);
    println!(
        "{} bytes, {each:.2} a piece, {:.0} MB/s, {:.1} ns each",
        text.len(),
        bytes / best / 1e6,
        best * 1e9 / f64::from(summary.instructions)
    );
}
