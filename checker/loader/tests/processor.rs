//! Runs accepted instructions on this processor, one at a time, and compares what they do with what the checker's table says: length,
//! memory operand (its segment, address size, place, size and direction), registers written, stack pointer.
//!
//! Each instruction ends where its page ends, the next page cannot be executed, and the trap flag stops after it. General registers hold
//! a window offset in the low half and garbage in the high half, so an address that is not truncated, or not relative to gs, faults.

#[path = "common/features.rs"]
mod features;
#[path = "common/random.rs"]
mod random;
#[path = "common/registers.rs"]
mod registers;
#[path = "common/signals.rs"]
mod signals;

use cordon_checker::policy::Host;
use cordon_checker::{Description, Flow, describe};
use random::Random;
use registers::GENERAL;
use std::arch::asm;
use std::cell::UnsafeCell;
use std::ptr;

const PAGE: u64 = 4096;
/// The window's address: 4 GiB and 64 KiB on both sides, nothing mapped but what a case maps.
const BASE: u64 = 0x1234_0000_0000;
/// Window pages around the operands: `MIDDLE` on both sides of `PLACE`.
const PLACE: u32 = 0x3000_0000;
const MIDDLE: u32 = 0x8000;
/// Where an instruction's page ends.
const CODE_END: u64 = 0x5678_9000_0000;
/// Stack pointer; its low half is a window offset too.
const STACK: u64 = 0x2345_0000_0000 | PLACE as u64;
const TRAP_FLAG: i64 = 0x100;
/// What `ud2` in [`switch`] is long.
const UD2_LEN: i64 = 2;

/// Registers to start with, then those at the stop.
#[derive(Clone, Copy, Default)]
struct Machine {
    general: [u64; 16],
    rip: u64,
}

#[derive(Clone, Copy, Default)]
struct Stop {
    signal: i32,
    trap: i64,
    address: u64,
    machine: Machine,
}

/// Shared with the signal handler.
struct Shared {
    running: bool,
    start: Machine,
    stop: Stop,
    harness: Option<[i64; 23]>,
}

struct Cell(UnsafeCell<Shared>);
// SAFETY: one thread uses it, and its signal handler only while that thread waits in `switch`.
unsafe impl Sync for Cell {}

const ZERO: Machine = Machine { general: [0; 16], rip: 0 };
static SHARED: Cell = Cell(UnsafeCell::new(Shared {
    running: false,
    start: ZERO,
    stop: Stop { signal: 0, trap: 0, address: 0, machine: ZERO },
    harness: None,
}));

extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: see `Cell`; the kernel gives a valid context.
    let (shared, g) = unsafe { (&mut *SHARED.0.get(), &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    let reg = |r: libc::c_int| r as usize;
    if shared.running {
        let mut machine = Machine { rip: g[reg(libc::REG_RIP)] as u64, ..ZERO };
        for (value, name) in machine.general.iter_mut().zip(GENERAL) {
            *value = g[reg(name)] as u64;
        }
        shared.stop = Stop { signal, trap: g[reg(libc::REG_TRAPNO)], address: g[reg(libc::REG_CR2)] as u64, machine };
        shared.running = false;
        *g = shared.harness.take().expect("the harness waits");
        g[reg(libc::REG_RIP)] += UD2_LEN;
    } else if signal == libc::SIGILL {
        shared.harness = Some(*g);
        shared.running = true;
        for (value, name) in shared.start.general.iter().zip(GENERAL) {
            g[reg(name)] = value.cast_signed();
        }
        g[reg(libc::REG_RIP)] = shared.start.rip.cast_signed();
        g[reg(libc::REG_EFL)] = 0x202 | TRAP_FLAG;
    } else {
        // SAFETY: a fault of the test itself.
        unsafe { libc::_exit(101) };
    }
}

/// Runs the instruction that `start` points at.
fn switch(start: Machine) -> Stop {
    let mxcsr = 0x1f80_u32;
    // SAFETY: the signal handler saves and restores every general register; the others are declared. The instruction itself has been
    // accepted by the checker, so that it reaches only the pages of this test: what a wrong table would break is for the test to find.
    unsafe {
        (*SHARED.0.get()).start = start;
        asm!("ud2", "fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr, clobber_abi("C"));
        (*SHARED.0.get()).stop
    }
}

fn map(start: u64, len: u64, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got = unsafe { libc::mmap(start as *mut libc::c_void, len as usize, protection, flags, -1, 0) };
    assert_eq!(got as u64, start, "the address is free");
}

fn protect(start: u64, len: u64, protection: libc::c_int) {
    // SAFETY: pages of this test.
    assert_eq!(unsafe { libc::mprotect(start as *mut libc::c_void, len as usize, protection) }, 0);
}

fn set_up() {
    const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    map(BASE - 0x1_0000, (1 << 32) + 0x2_0000, libc::PROT_NONE);
    protect(BASE + u64::from(PLACE - MIDDLE), 2 * u64::from(MIDDLE), RW);
    map(CODE_END - PAGE, PAGE, RW | libc::PROT_EXEC);
    map(CODE_END, PAGE, libc::PROT_NONE);
    map(STACK - PAGE, 2 * PAGE, RW);
    signals::install(on_signal, &signals::FAULTS);
    signals::set_gs(BASE);
}

impl Random {
    fn pick(&mut self, choices: &[&[u8]]) -> Vec<u8> {
        choices[self.next() as usize % choices.len()].to_vec()
    }
}

/// Bytes that begin like an instruction: prefixes, map, opcode, ModRM, SIB, displacements and immediates of small bytes.
fn candidate(random: &mut Random) -> [u8; 24] {
    let mut bytes = Vec::new();
    let memory = random.next().is_multiple_of(2);
    bytes.extend(if memory { random.pick(&[&[0x65, 0x67], &[0x65, 0x67], &[0x65], &[]]) } else { Vec::new() });
    if random.next().is_multiple_of(3) {
        let [fields, opcode, extensions] = [random.next() as u8, random.next() as u8, random.next() as u8];
        // Mostly VEX.vvvv = 1111, which many instructions need.
        let fields = if random.next().is_multiple_of(2) { fields | 0x78 } else { fields };
        let map = (random.next() % 3 + 1) as u8;
        bytes.extend(if random.next().is_multiple_of(3) {
            vec![0xc5, fields | 0x80, opcode]
        } else {
            vec![0xc4, extensions & 0xe0 | map, fields, opcode]
        });
    } else {
        bytes.extend(random.pick(&[&[], &[], &[], &[0xf0]]));
        bytes.extend(random.pick(&[&[], &[], &[0x66]]));
        bytes.extend(random.pick(&[&[], &[], &[], &[0xf3], &[0xf2]]));
        let rex = 0x40 | (random.next() % 16) as u8;
        bytes.extend(random.pick(&[&[], &[], &[0x48], &[rex]]));
        bytes.extend(random.pick(&[&[], &[0x0f], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]]));
        bytes.push(random.next() as u8);
    }
    bytes.extend([random.next() as u8, random.next() as u8]);
    let mut window = [0; 24];
    for (i, byte) in window.iter_mut().enumerate() {
        // Small positive displacements and immediates.
        *byte = bytes.get(i).copied().unwrap_or(if random.next().is_multiple_of(2) { 0 } else { 0x20 });
    }
    window
}

/// Start registers which make the memory operand begin at window offset `place`; `None` if its form cannot reach it.
fn registers(what: &Description, place: u32, random: &mut Random) -> Option<[u64; 16]> {
    let mut general = [0; 16];
    for value in &mut general {
        *value = random.next() & 0xffff_ffff_0000_0000 | u64::from(PLACE) | random.next() & 0x3f0;
    }
    general[4] = STACK;
    let Some(memory) = what.memory else { return Some(general) };
    let mut low = |register: u8, value: u32| {
        let register = usize::from(register);
        if register != 4 {
            general[register] = general[register] & 0xffff_ffff_0000_0000 | u64::from(value);
        }
    };
    let wanted = place.wrapping_sub(memory.disp.cast_unsigned());
    match (memory.base, memory.index) {
        (Some(4), _) | (None, None) => return None,
        (Some(base), Some(index)) if base == index => return None,
        (Some(base), Some(index)) => {
            let part = random.next() as u32;
            low(index, part);
            low(base, wanted.wrapping_sub(part.wrapping_mul(memory.scale.into())));
        }
        (Some(base), None) => low(base, wanted),
        (None, Some(index)) => {
            // Any solution of index · scale = wanted modulo 2^32; the garbage above must not count either.
            if !wanted.is_multiple_of(memory.scale.into()) {
                return None;
            }
            low(index, wanted / u32::from(memory.scale));
        }
    }
    Some(general)
}

const PATTERN: u8 = 0xa5;

fn window(offset: u32, len: u32) -> &'static mut [u8] {
    // SAFETY: mapped pages of the window; each slice is dropped before the next is made.
    unsafe { std::slice::from_raw_parts_mut((BASE + u64::from(offset)) as *mut u8, len as usize) }
}

/// Runs `bytes` once with its operand at `place`; says what differs from `what`.
fn run(bytes: &[u8], what: &Description, place: u32, random: &mut Random) -> Result<Option<Stop>, String> {
    let Some(general) = registers(what, place, random) else { return Ok(None) };
    let start = CODE_END - bytes.len() as u64;
    // SAFETY: the last bytes of the code page.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, bytes.len()) };
    window(PLACE - 256, 512).fill(PATTERN);
    let stop = switch(Machine { general, rip: start });
    let ends = match what.flow {
        Flow::Conditional(rel) => vec![CODE_END, CODE_END.wrapping_add_signed(rel.into())],
        Flow::Jump(rel) | Flow::Call(rel) => vec![CODE_END.wrapping_add_signed(rel.into())],
        _ => vec![CODE_END],
    };
    let fault = match (stop.signal, stop.trap) {
        (libc::SIGTRAP, _) => false,
        // A quotient that does not fit, or a misaligned vector operand.
        (libc::SIGFPE, 0) | (libc::SIGSEGV, 13) | (libc::SIGSEGV, 14) => true,
        (signal, trap) => return Err(format!("signal {signal}, trap {trap}")),
    };
    if fault && stop.machine.rip != start || !fault && !ends.contains(&stop.machine.rip) {
        return Err(format!("stopped {:+} from its end", stop.machine.rip.wrapping_sub(CODE_END).cast_signed()));
    }
    for (number, (before, after)) in general.iter().zip(stop.machine.general).enumerate() {
        let written = what.gpr_writes >> number & 1 == 1 || number == 4 && what.memory.is_none();
        if *before != after && (fault || !written) {
            return Err(format!("register {number} changed from {before:#x} to {after:#x}"));
        }
    }
    if stop.machine.general[4].abs_diff(STACK) > 0x7fff_ffff {
        return Err("the stack pointer is gone".to_owned());
    }
    let changed: Vec<usize> =
        window(PLACE - 256, 512).iter().enumerate().filter(|(_, b)| **b != PATTERN).map(|(i, _)| i).collect();
    let operand = what.memory.filter(|m| m.write).map_or(0..0, |m| {
        let from = 256 + place.wrapping_sub(PLACE) as usize;
        from..from + usize::from(m.bytes)
    });
    if let Some(i) = changed.iter().find(|i| !operand.contains(i)) {
        return Err(format!("wrote {:+} from the place", *i as i64 - 256));
    }
    Ok(Some(stop))
}

/// Instructions that may leave an access out: masked moves (VEX.66.0F38 2C-2F, 8C, 8E) and prefetches (0F 18, 0F 0D).
fn may_not_access(bytes: &[u8]) -> bool {
    let masked =
        |i: usize| bytes.get(i) == Some(&0xc4) && bytes[i + 1] & 0x1f == 2 && matches!(bytes[i + 3], 0x2c..=0x2f | 0x8c | 0x8e);
    let prefetch = bytes.windows(2).take(5).any(|w| matches!(w, [0x0f, 0x18 | 0x0d]));
    masked(1) || masked(2) || prefetch
}

/// The operand at four places: aligned, ending with the mapped pages, beginning with them, and one byte over each edge.
fn probe(bytes: &[u8], what: &Description, random: &mut Random) -> Result<u32, String> {
    let mut runs = u32::from(run(bytes, what, PLACE, random)?.is_some());
    let Some(memory) = what.memory else { return Ok(runs) };
    let (low, high) = (PLACE - MIDDLE, PLACE + MIDDLE);
    let len = u32::from(memory.bytes);
    let page_fault = |stop: &Stop| stop.signal == libc::SIGSEGV && stop.trap == 14;
    for (place, inside) in [(high - len, true), (low, true), (high - len + 1, false), (low - 1, false)] {
        let Some(stop) = run(bytes, what, place, random)? else { continue };
        runs += 1;
        if page_fault(&stop) && inside {
            return Err(format!("accesses more than {len} bytes: fault at {:#x}, operand at {place:#x}", stop.address));
        }
        if page_fault(&stop) && stop.address.wrapping_sub(BASE) >> 32 != 0 {
            return Err(format!("fault at {:#x}, outside the window", stop.address));
        }
        let did_not_fault = stop.signal == libc::SIGTRAP;
        if !inside && did_not_fault && !may_not_access(bytes) {
            return Err(format!("accesses fewer than {len} bytes at {place:#x}"));
        }
    }
    Ok(runs)
}

#[test]
fn accepted_instructions_do_what_the_table_says() {
    set_up();
    let lacking = features::lacking();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut runs) = (0, 0);
    let mut wrong = std::collections::BTreeMap::new();
    // More in a soak run.
    let tries = std::env::var("CORDON_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_500_000_u64);
    for _ in 0..tries {
        let bytes = candidate(&mut random);
        let Ok(what) = describe(&bytes, Host::User) else { continue };
        let unit = matches!(what.flow, Flow::TableCall { .. } | Flow::TableJump { .. } | Flow::Return | Flow::Trap);
        if unit || what.features.0 & lacking != 0 {
            continue;
        }
        accepted += 1;
        match probe(&bytes[..what.len], &what, &mut random) {
            Ok(count) => runs += count,
            Err(difference) => {
                wrong
                    .entry(difference.split(':').next().unwrap_or_default().to_owned())
                    .or_insert_with(Vec::new)
                    .push(bytes[..what.len].to_vec());
            }
        }
    }
    let examples: Vec<String> = wrong
        .iter()
        .flat_map(|(difference, all)| all.iter().take(4).map(move |bytes| format!("{difference}: {bytes:02x?} ({})", all.len())))
        .take(60)
        .collect();
    assert!(wrong.is_empty(), "{}", examples.join("\n"));
    println!("{accepted} accepted, {runs} runs");
    assert!(accepted > tries / 50 && runs > accepted as u32, "{accepted} accepted, {runs} runs");
}
