//! What the checker says it knows of registers behind an instruction ([`cordon_checker::Facts`]) against this processor: accepted
//! instructions run with registers that have the levels known before, and the results must have those known after.
//!
//! A page of code loads all registers but rsp, runs the instruction, stores them and returns. A fault (a quotient that does not fit, an
//! aligned operand) goes straight to the storing part and proves nothing.

#[path = "common/features.rs"]
mod features;
#[path = "common/random.rs"]
mod random;

use cordon_checker::policy::Host;
use cordon_checker::{Description, Facts, Flow, Mode, track};
use random::Random;
use std::arch::{asm, global_asm};
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

const MODE: Mode = Mode { matched: true, metered: false, protect: cordon_checker::Protect::All };
/// Status flags: CF, PF, AF, ZF, SF, OF.
const FLAGS: u64 = 0x8d5;
const PAGE: usize = 4096;
/// Where instructions find their memory operand: a displacement from the segment's base.
const PLACE: u8 = 0x40;

/// What the page of code reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Frame {
    /// By register number; rsp's is written only.
    before: [u64; 16],
    after: [u64; 16],
    flags: u64,
}

// rdi = frame. Six registers and the frame's address are kept on the stack; `before[4]` gets rsp as the instruction sees it.
global_asm!(
    ".globl facts_load",
    "facts_load:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    "mov [rdi+32], rsp",
    "push [rdi+256]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi+8]",
    "mov rdx, [rdi+16]",
    "mov rbx, [rdi+24]",
    "mov rbp, [rdi+40]",
    "mov rsi, [rdi+48]",
    "mov r8, [rdi+64]",
    "mov r9, [rdi+72]",
    "mov r10, [rdi+80]",
    "mov r11, [rdi+88]",
    "mov r12, [rdi+96]",
    "mov r13, [rdi+104]",
    "mov r14, [rdi+112]",
    "mov r15, [rdi+120]",
    "mov rdi, [rdi+56]",
    ".globl facts_store",
    "facts_store:",
    "push rdi",
    "mov rdi, [rsp+8]",
    "mov [rdi+128], rax",
    "mov [rdi+136], rcx",
    "mov [rdi+144], rdx",
    "mov [rdi+152], rbx",
    "mov [rdi+168], rbp",
    "mov [rdi+176], rsi",
    "pop rax",
    "mov [rdi+184], rax",
    "mov [rdi+160], rsp",
    "mov [rdi+192], r8",
    "mov [rdi+200], r9",
    "mov [rdi+208], r10",
    "mov [rdi+216], r11",
    "mov [rdi+224], r12",
    "mov [rdi+232], r13",
    "mov [rdi+240], r14",
    "mov [rdi+248], r15",
    "pop rdi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".globl facts_end",
    "facts_end:",
);

unsafe extern "C" {
    static facts_load: u8;
    static facts_store: u8;
    static facts_end: u8;
}

/// Where a fault in the page of code goes on; 0 while none may happen.
static STORE: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_fault(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let store = STORE.load(Ordering::Relaxed);
    FAULTS.fetch_add(1, Ordering::Relaxed);
    if store == 0 {
        // SAFETY: a fault of the test itself.
        unsafe { libc::_exit(101) };
    }
    // SAFETY: the kernel gives a valid context; the instruction has written nothing that matters.
    unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] = store.cast_signed() };
}

/// The page of code and the words that memory operands reach.
struct Processor {
    page: *mut u8,
    load: &'static [u8],
    store: &'static [u8],
    memory: Box<UnsafeCell<[u64; 64]>>,
}

impl Processor {
    fn new() -> Processor {
        let memory = Box::new(UnsafeCell::new([0_u64; 64]));
        // SAFETY: labels in order in one piece of code; a fresh mapping; handlers for faults that only this test raises; a segment that
        // Rust does not use.
        unsafe {
            let part = |from: *const u8, to: *const u8| std::slice::from_raw_parts(from, to.offset_from_unsigned(from));
            let (load, store) =
                (part(&raw const facts_load, &raw const facts_store), part(&raw const facts_store, &raw const facts_end));
            let page = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGBUS] {
                assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
            }
            assert_eq!(libc::syscall(libc::SYS_arch_prctl, 0x1001, memory.get() as u64), 0);
            Processor { page: page.cast(), load, store, memory }
        }
    }

    /// Puts `bytes` between loading and storing.
    fn place(&self, bytes: &[u8]) {
        let mut at = 0;
        for part in [self.load, bytes, self.store] {
            // SAFETY: all of it is far less than a page.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), self.page.add(at), part.len()) };
            at += part.len();
        }
        STORE.store(self.page as u64 + (self.load.len() + bytes.len()) as u64, Ordering::Relaxed);
    }

    /// Runs the page; false after a fault.
    fn run(&self, frame: &mut Frame, random: &mut Random) -> bool {
        // SAFETY: nothing else holds the words.
        unsafe { &mut *self.memory.get() }.iter_mut().for_each(|word| *word = random.value());
        let faults = FAULTS.load(Ordering::Relaxed);
        let mxcsr = 0x1f80_u32;
        // SAFETY: the page keeps what the convention preserves; the instruction, which the checker accepted, reaches registers and the
        // words of `memory` only.
        unsafe {
            asm!("call {page}", page = in(reg) self.page, inout("rdi") std::ptr::from_mut(frame) => _, clobber_abi("C"));
            asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr);
        }
        FAULTS.load(Ordering::Relaxed) == faults
    }
}

impl Random {
    /// Any value, the ends of the levels more often than others.
    fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 63, u64::MAX];
        let value = match self.next() % 4 {
            0 => self.next(),
            1 => self.next() >> (self.next() % 64),
            2 => edges[self.next() as usize % edges.len()],
            _ => edges[self.next() as usize % edges.len()].wrapping_add(self.next() % 5).wrapping_sub(2),
        };
        if self.next().is_multiple_of(8) { value.wrapping_neg() } else { value }
    }

    /// A value of the level: 0 to 2^16 - 1, 0 to 2^31 - 1, -2^30 to 2^32 - 1, any.
    fn of_level(&mut self, level: u8) -> u64 {
        let value = self.value();
        match level {
            0 => value & 0xffff,
            1 => value & 0x7fff_ffff,
            2 if value >> 63 == 1 => (value | 0xffff_ffff_c000_0000).max((-1_i64 << 30).cast_unsigned()),
            2 => value & 0xffff_ffff,
            _ => value,
        }
    }
}

fn has_level(value: u64, level: u8) -> bool {
    let value = value.cast_signed();
    match level {
        0 => (0..1 << 16).contains(&value),
        1 => (0..1 << 31).contains(&value),
        2 => (-1 << 30..1 << 32).contains(&value),
        _ => true,
    }
}

/// Facts with random levels of registers, made by the instructions that give them, and those levels.
fn random_facts(random: &mut Random) -> (Facts, [u8; 16]) {
    let mut levels = [3; 16];
    let mut facts = Facts::NONE;
    for register in (0..16_u8).filter(|&register| register != 4) {
        let level = (random.next() % 4) as u8;
        levels[usize::from(register)] = level;
        let rex = 0x40 | ((register >> 3) * 5);
        let modrm = 0xc0 | ((register & 7) * 9);
        let bytes = match level {
            // movzx of 16 bits, CHECK, mov of 32 bits, each of the register itself.
            0 => vec![rex, 0x0f, 0xb7, modrm],
            1 => vec![0x48 | register >> 3, 0x81, 0xf8 | register & 7, 0xff, 0xff, 0xff, 0x7f, 0x77, 0],
            2 => vec![rex, 0x89, modrm],
            _ => continue,
        };
        let bytes = if rex == 0x40 && level != 1 { bytes[1..].to_vec() } else { bytes };
        facts = track(&bytes, Host::User, MODE, facts, 0).expect("accepted").after;
    }
    (facts, levels)
}

/// Runs one accepted instruction and compares; `Ok(false)` if it faulted.
fn compare(processor: &Processor, bytes: &[u8], random: &mut Random) -> Result<bool, String> {
    let (facts, levels) = random_facts(random);
    let mut frame = Frame { flags: random.next() & FLAGS | 2, ..Frame::default() };
    for (value, level) in frame.before.iter_mut().zip(levels) {
        *value = random.of_level(level);
    }
    // Now and then registers that hold the same.
    if random.next().is_multiple_of(4) {
        frame.before[0] = frame.before[1];
    }
    let known = |facts: Facts, register: usize| {
        [facts.small(), facts.low(), facts.near()]
            .iter()
            .position(|mask| mask >> register & 1 == 1)
            .map_or(3, |level| level as u8)
    };
    for (register, &level) in levels.iter().enumerate() {
        assert_eq!(known(facts, register), level, "levels are given as meant");
    }
    if !has_level(frame.before[0], levels[0]) {
        return Ok(false);
    }
    if !processor.run(&mut frame, random) {
        return Ok(false);
    }
    // The checker knows only the greatest value of rsp's low half.
    let esp = frame.before[4] as u32;
    let greatest = esp + (random.next() % (u64::from(u32::MAX - esp) + 1)) as u32;
    let tracked =
        track(bytes, Host::User, MODE, facts, if random.next().is_multiple_of(2) { esp } else { greatest }).expect("accepted");
    for register in (0..16).filter(|&register| register != 4) {
        let (before, after) = (frame.before[register], frame.after[register]);
        if tracked.description.gpr_writes >> register & 1 == 0 && before != after {
            return Err(format!("register {register} changed from {before:#x} to {after:#x}"));
        }
        let level = known(tracked.after, register);
        if !has_level(after, level) {
            return Err(format!("register {register} is {after:#x}, not of level {level} (before {before:#x})"));
        }
    }
    Ok(true)
}

/// Whether the instruction writes registers and can run here: no branch, no stack, its operand (if any) at the segment's own bytes.
fn can_run(bytes: &[u8], what: &Description) -> bool {
    let opcode = bytes.iter().find(|byte| !matches!(byte, 0x40..=0x4f | 0x65..=0x67 | 0xf0)).copied().unwrap_or(0);
    let stack = matches!(opcode, 0x50..=0x5f) || what.gpr_writes >> 4 & 1 == 1;
    let memory = what.memory.is_none_or(|m| m.base.is_none() && m.index.is_none() && m.disp == i32::from(PLACE));
    what.flow == Flow::Next && what.gpr_writes != 0 && !stack && memory
}

/// Everything in front of ModRM: legacy and VEX, as far as general registers can be written.
fn heads() -> Vec<Vec<u8>> {
    let mut heads = Vec::new();
    for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2]] {
        for rex in [&[][..], &[0x40], &[0x41], &[0x44], &[0x45], &[0x48], &[0x4d]] {
            for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                heads.extend((0..=255).map(|opcode| [prefix, rex, map, &[opcode]].concat()));
            }
        }
    }
    for opcode in 0..=255 {
        for fields in (0..=255).step_by(5).chain([0x78, 0x79, 0x7a, 0x7b, 0xf8, 0xf9, 0xfa, 0xfb]) {
            heads.push(vec![0xc5, fields, opcode]);
            for map in [0xe1, 0xe2, 0xe3, 0x42, 0x43] {
                heads.push(vec![0xc4, map, fields, opcode]);
            }
        }
    }
    heads
}

/// `lea` with all its forms of address; the last bytes are a displacement or nothing.
fn addresses() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 7] = [&[0x8d], &[0x48, 0x8d], &[0x4a, 0x8d], &[0x49, 0x8d], &[0x41, 0x8d], &[0x42, 0x8d], &[0x66, 0x8d]];
    let forms =
        (0..0xc0_u8).flat_map(|modrm| (0..=255_u8).step_by(if modrm & 7 == 4 { 1 } else { 256 }).map(move |sib| (modrm, sib)));
    let with = |head: &[u8], (modrm, sib): (u8, u8)| {
        if modrm & 7 == 4 { [head, &[modrm, sib]].concat() } else { [head, &[modrm]].concat() }
    };
    heads.iter().flat_map(|head| forms.clone().map(|form| with(head, form))).collect()
}

#[test]
fn registers_have_the_levels_that_the_checker_says() {
    let processor = Processor::new();
    let lacking = features::lacking();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let rounds = std::env::var("CORDON_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_u32);
    let (mut encodings, mut runs) = (0_u32, 0_u32);
    let mut wrong: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // An operand in memory is `%gs:PLACE`.
    let forms = (0xc0..=0xff_u8)
        .map(|modrm| (false, vec![modrm]))
        .chain((0..8).map(|reg| (true, vec![reg << 3 | 4, 0x25, PLACE, 0, 0, 0])));
    let forms: Vec<(bool, Vec<u8>)> = forms.collect();
    let segment = |memory: bool| if memory { &[0x65][..] } else { &[] };
    let with_form =
        |head: &Vec<u8>| -> Vec<Vec<u8>> { forms.iter().map(|(memory, form)| [segment(*memory), head, form].concat()).collect() };
    for all in heads().iter().map(with_form).chain([addresses()]) {
        for bytes in all {
            let bytes = [bytes, random.value().to_le_bytes().to_vec()].concat();
            let Ok(tracked) = track(&bytes, Host::User, MODE, Facts::NONE, 0) else { continue };
            let what = tracked.description;
            let bytes = &bytes[..what.len];
            if !can_run(bytes, &what) || what.features.0 & lacking != 0 {
                continue;
            }
            encodings += 1;
            processor.place(bytes);
            for _ in 0..rounds {
                match compare(&processor, bytes, &mut random) {
                    Ok(ran) => runs += u32::from(ran),
                    Err(difference) => {
                        let kind = difference.split(" is ").next().unwrap_or_default().to_owned();
                        wrong.entry(kind).or_default().push(format!("{bytes:02x?}: {difference}"));
                    }
                }
            }
        }
    }
    STORE.store(0, Ordering::Relaxed);
    let examples: Vec<&str> = wrong.values().flat_map(|all| all.iter().take(5)).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{}", examples.join("\n"));
    println!("{encodings} encodings, {runs} runs");
    assert!(encodings > 20_000 && runs > encodings * rounds / 2, "{encodings} encodings, {runs} runs");
}
