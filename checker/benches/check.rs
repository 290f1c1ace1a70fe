//! Measures the checker beside iced-x86's plain decoding of the same bytes, by the processor time of this thread, so that a busy machine
//! counts less.
//!
//! `cargo bench -p cordon-checker [NAME]`; `CORDON_IMAGES=a.img:b.img` for the texts of images. Without it a mix (this program's own code with
//! memory operands made window operands), of 1 KiB to 256 MiB (2 GiB of scratch memory), and webs of branches.

use cordon_checker::layout::SET_SLOTS;
use cordon_checker::note::{Note, NoteSpec};
use cordon_checker::policy::Host;
use cordon_checker::{Flow, Mode, Policy, Protect, check, describe, sample, scratch_len};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use iced_x86::{Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::Duration;

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
                // `syscall` too becomes a call.
                _ if matches!(description.flow, Flow::Call(_)) && pushed != 0 => continue,
                Mnemonic::Push if pushed < SET_SLOTS as usize => pushed + 1,
                Mnemonic::Pop if pushed > 0 => pushed - 1,
                Mnemonic::Push | Mnemonic::Pop => continue,
                _ if description.gpr_writes & 1 << 4 != 0 => continue,
                _ => pushed,
            };
            if text.len() >= length {
                break;
            }
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

/// A text and what the host and its note say about it.
struct Case {
    name: String,
    text: Vec<u8>,
    /// Descriptor of the image note.
    note: Vec<u8>,
}

impl Case {
    fn new(name: impl Into<String>, text: Vec<u8>, spec: &NoteSpec) -> Case {
        Case { name: name.into(), text, note: spec.to_bytes() }
    }

    /// An image file.
    fn of_image(path: &Path) -> Option<Case> {
        let file = std::fs::read(path).ok()?;
        let word = |at: usize, n: usize| Some(file.get(at..at + n)?.iter().rev().fold(0_usize, |v, &x| v << 8 | usize::from(x)));
        let (mut text, mut note) = (None, None);
        for at in (0..word(56, 2)?).map(|index| Some(word(32, 8)? + 56 * index)) {
            let at = at?;
            let segment = file.get(word(at + 8, 8)?..)?.get(..word(at + 32, 8)?)?;
            match (word(at, 4)?, word(at + 4, 4)? & 1) {
                (1, 1) => text = Some(segment.to_vec()),
                (4, _) => {
                    let number = |at: usize| Some(u32::from_le_bytes(*segment.get(at..)?.first_chunk::<4>()?) as usize);
                    let from = 12 + number(0)?.next_multiple_of(4);
                    note = Some(segment.get(from..from + number(4)?)?.to_vec());
                }
                _ => {}
            }
        }
        let name = path.file_stem()?.to_string_lossy().into_owned();
        Some(Case { name, text: text?, note: note? })
    }

    /// Checks the text, and decodes it.
    fn measure(&self, group: &mut BenchmarkGroup<'_, ProcessorTime>) {
        let note = Note::parse(&self.note).expect("a note");
        let policy = Policy { mode: note.layout.mode, ..Policy::USER };
        let mut scratch = vec![0_u64; scratch_len(self.text.len())];
        let mut judge =
            || check(&self.text, &policy, &note.layout, &mut scratch).unwrap_or_else(|reject| panic!("{}: {reject}", self.name));
        let instructions = judge().instructions;
        let bytes = self.text.len();
        println!(
            "{}: {bytes} bytes, {instructions} instructions, {} bytes of scratch for each",
            self.name,
            8 * scratch_len(bytes) / bytes
        );
        group.throughput(Throughput::Bytes(bytes as u64)).sample_size(if bytes > 1 << 22 { 10 } else { 40 });
        group.bench_function(BenchmarkId::new("check", &self.name), |bencher| bencher.iter(&mut judge));
        group.bench_function(BenchmarkId::new("iced-x86", &self.name), |bencher| bencher.iter(|| decode(&self.text)));
    }
}

/// Bytes that iced-x86 decodes: all.
fn decode(text: &[u8]) -> usize {
    let mut decoder = Decoder::new(64, text, DecoderOptions::NONE);
    let (mut instruction, mut bytes) = (Instruction::default(), 0);
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        bytes += instruction.len();
    }
    assert_eq!(bytes, text.len());
    bytes
}

/// Time that this thread has run.
struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }

    fn end(&self, started: Duration) -> Duration {
        self.start() - started
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// `len` bytes of branches to where `target` says, as seen from offset `at`; then `ret`.
fn web(len: usize, target: impl Fn(usize) -> usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(len + 6);
    while text.len() + 6 < len {
        let relative = target(text.len()) as i64 - (text.len() as i64 + 6);
        // jz
        text.extend([0x0f, 0x84]);
        text.extend((relative as i32).to_le_bytes());
    }
    text.push(0xc3);
    text
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(ProcessorTime).configure_from_args();
    let mut group = criterion.benchmark_group("text");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    if let Some(paths) = std::env::var_os("CORDON_IMAGES") {
        for path in std::env::split_paths(&paths) {
            Case::of_image(&path).unwrap_or_else(|| panic!("{}: no image", path.display())).measure(&mut group);
        }
        return;
    }
    let path = std::env::current_exe().expect("a path");
    let file = std::fs::read(path).expect("readable");
    let code = text_of(&file).expect("an ELF file with .text");
    let sandbox = sample::user();
    let mib = 1 << 20;
    let unit = accepted_text(code, mib);
    // Text of a mode has a walk of its own.
    let stores = NoteSpec { mode: Mode { protect: Protect::Stores, ..Mode::default() }, ..sample::user() };
    Case::new("1 MiB, stores only", unit.clone(), &stores).measure(&mut group);
    for (name, len) in [("1 KiB", 1 << 10), ("16 KiB", 16 << 10), ("128 KiB", 128 << 10)] {
        Case::new(name, accepted_text(code, len), &sandbox).measure(&mut group);
    }
    for count in [1, 4, 16, 64, 256] {
        Case::new(format!("{count} MiB"), unit.repeat(count), &sandbox).measure(&mut group);
    }
    let len = 12 * mib;
    let end = (len - 1) / 6 * 6;
    Case::new("branches to the first", web(len, |_| 0), &sandbox).measure(&mut group);
    Case::new("branches to the last", web(len, |_| end), &sandbox).measure(&mut group);
    Case::new("branches halfway back", web(len, |at| at / 12 * 6), &sandbox).measure(&mut group);
    Case::new("branches halfway on", web(len, |at| (at + end) / 12 * 6), &sandbox).measure(&mut group);
    Case::new("branches anywhere", web(len, |at| at.wrapping_mul(0x9e37_79b9) % end / 6 * 6), &sandbox).measure(&mut group);
}
