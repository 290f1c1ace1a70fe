//! Random accepted text, with calls of every gate at any depth, run under host signals: a call ends with a value or a report, nothing
//! outside the window is ever touched, no instruction is unknown to the processor, and the host goes on.

use crate::builder::{Builder, Built, HEAP, HEAP_END, elf, options};
use crate::gates::control_words;
use crate::in_child;
use crate::random::Random;
use cordon_checker::policy::Host;
use cordon_checker::{Flow, MemoryOperand, Mode, describe_in};
use cordon_loader::{Arg, BUILT_IN_GATES, Error, FaultKind, Image, Imports, Window};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the meter in front of metered text.
const METER: u32 = 13;

impl Random {
    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    /// An accepted instruction that only falls through, and whether it pushes; in match mode with what lets most accesses through.
    fn instruction(&mut self, mode: Mode) -> (Vec<u8>, bool) {
        const HEADS: [&[u8]; 16] = [
            &[],
            &[],
            &[0x48],
            &[0x41],
            &[0x4d],
            &[0x66],
            &[0x0f],
            &[0x66, 0x0f],
            &[0xf3, 0x0f],
            &[0xf2, 0x0f],
            &[0x0f, 0x38],
            &[0x66, 0x0f, 0x38],
            &[0x66, 0x0f, 0x3a],
            &[0xc5],
            &[0xc4],
            &[0xf0],
        ];
        loop {
            let mut bytes = if self.one_in(4) { vec![0x65, 0x67] } else { Vec::new() };
            bytes.extend(HEADS[self.next() as usize % HEADS.len()]);
            bytes.extend(self.next().to_le_bytes());
            bytes.extend([0; 8]);
            let Ok(what) = describe_in(&bytes, Host::User, mode) else { continue };
            bytes.truncate(what.len);
            let opcode = bytes[usize::from(bytes[0] & 0xf0 == 0x40).min(bytes.len() - 1)];
            let legacy = bytes.len() <= 2 && matches!(opcode, 0x50..=0x5f);
            let pops = legacy && opcode >= 0x58;
            let hint = bytes.starts_with(&[0x0f, 0x1f, 0x84, 0xc0]);
            let counts = mode.metered && what.gpr_writes & 1 << 14 != 0;
            if what.flow == Flow::Next && what.gpr_writes & 1 << 4 == 0 && !pops && !hint && !counts {
                let checks = what.memory.filter(|_| mode.matched).map(checks).unwrap_or_default();
                return ([checks, bytes].concat(), legacy);
            }
        }
    }
}

/// What a window operand needs in match mode: a check of its base, with a `ud2` of its own, and an index of 16 bits.
fn checks(operand: MemoryOperand) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(base) = operand.base.filter(|base| *base != 4) {
        // cmp $0x7fffffff,%r64; ja 1f; jmp 2f; 1: ud2; 2:
        text.extend([0x48 | base >> 3, 0x81, 0xf8 | base & 7, 0xff, 0xff, 0xff, 0x7f, 0x77, 2, 0xeb, 2, 0x0f, 0x0b]);
    }
    if let Some(index) = operand.index.filter(|index| Some(*index) != operand.base) {
        // movzwl %r16,%r32
        text.extend([0x40 | ((index >> 3) * 5), 0x0f, 0xb7, 0xc0 | ((index & 7) * 9)].into_iter().skip(usize::from(index < 8)));
    }
    text
}

/// One function of random items; forward branches only, so it ends.
fn function(random: &mut Random, mode: Mode) -> Vec<u8> {
    let mut text = Vec::new();
    let mut depth = 0_u8;
    if mode.metered {
        // sub $1023,%r14; jb to the ud2 at the end, once that is known.
        text.extend([0x49, 0x81, 0xee, 0xff, 3, 0, 0, 0x0f, 0x82, 0, 0, 0, 0]);
    }
    // Every register in the heap's middle to begin with.
    for register in (0..16_u8).filter(|register| *register != 4 && !(mode.metered && *register == 14)) {
        if register >= 8 {
            text.push(0x41);
        }
        text.push(0xb8 | register & 7);
        text.extend((HEAP + 0x20_0000 + 64 * u32::from(register)).to_le_bytes());
    }
    for _ in 0..1 + random.next() % 24 {
        match random.next() % 16 {
            // mov $offset,%r32: somewhere in the heap or near its ends.
            0..=3 => {
                let register = (random.next() % 8) as u8;
                let near = [HEAP, HEAP, HEAP, HEAP_END - 64, HEAP_END - 64, 0, 0xffff_ffc0, 0x1_0000][random.next() as usize % 8];
                let value = near.wrapping_add(64 * (random.next() as u32 % 128) * u32::from(random.one_in(2)));
                text.push(if register == 4 { 0xb9 } else { 0xb8 | register });
                text.extend(value.to_le_bytes());
            }
            // call of an import; a small count for the gates that have one.
            4..=5 => {
                text.extend([0xb9, (random.next() % 100) as u8, 0, 0, 0, 0xba, (random.next() % 100) as u8, 0, 0, 0]);
                let slot = 1 + random.next() as usize % (BUILT_IN_GATES.len() + 1);
                text.extend([0x65, 0xff, 0x14, 0x25]);
                text.extend((0x1_0000 + 8 * slot as u32).to_le_bytes());
            }
            6 => {
                // jcc over the next instruction.
                let (bytes, pushes) = random.instruction(mode);
                if !pushes {
                    text.extend([0x70 | (random.next() % 16) as u8, bytes.len() as u8]);
                    text.extend(bytes);
                }
            }
            7 if depth < 100 => {
                text.extend([0x48, 0x83, 0xec, 8]);
                depth += 8;
            }
            _ => {
                let (bytes, pushes) = random.instruction(mode);
                if !pushes || depth < 100 {
                    text.extend(bytes);
                    depth += 8 * u8::from(pushes);
                }
            }
        }
    }
    text.extend([0x48, 0x83, 0xc4, depth, 0xc3]);
    if mode.metered {
        let distance = text.len() as u32 - METER;
        text[METER as usize - 4..METER as usize].copy_from_slice(&distance.to_le_bytes());
        text.extend([0x0f, 0x0b]);
    }
    text
}

static SIGNALS_SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_timer(_: libc::c_int) {
    SIGNALS_SEEN.fetch_add(1, Ordering::Relaxed);
}

/// A signal every 200 µs of processor time.
fn start_timer() {
    // SAFETY: a handler that only counts.
    unsafe {
        crate::handle(libc::SIGPROF, libc::SA_ONSTACK | libc::SA_RESTART, on_timer);
        let tick = libc::timeval { tv_sec: 0, tv_usec: 200 };
        libc::setitimer(libc::ITIMER_PROF, &libc::itimerval { it_interval: tick, it_value: tick }, std::ptr::null_mut());
    }
}

#[test]
fn random_accepted_text_stays_inside() {
    in_child("soup::random_accepted_text_stays_inside", || run_text(Mode::default(), 2));
}

#[test]
fn random_matched_text_stays_inside() {
    in_child("soup::random_matched_text_stays_inside", || run_text(Mode { matched: true, ..Mode::default() }, 3));
}

#[test]
fn random_matched_and_metered_text_stays_inside() {
    let mode = Mode { matched: true, metered: true, ..Mode::default() };
    in_child("soup::random_matched_and_metered_text_stays_inside", || run_text(mode, 3));
}

/// Runs random text of `mode`, of which one in `few` must be accepted.
fn run_text(mode: Mode, few: u32) {
    start_timer();
    let imports = Imports::new().function("host", |call, [a, b, ..]| {
        let _ = call.write(a & 0xffff_ffff, &b.to_le_bytes());
        a ^ b
    });
    let names: Vec<&'static str> = BUILT_IN_GATES.iter().copied().chain(["host"]).collect();
    let Built { mut note, .. } = Builder::new(".globl f\nf: ret").imports(&names).build();
    note.mode = mode;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let words = control_words();
    let (mut accepted, mut returned) = (0, 0);
    let mut kinds = BTreeMap::new();
    let tries = std::env::var("CORDON_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    for _ in 0..tries {
        let text = function(&mut random, mode);
        let image = match Image::from_bytes(&elf(&text, b"", b"", &note, &BTreeMap::new()), &options()) {
            Ok(image) => image,
            Err(Error::Rejected(_) | Error::Cpu(_)) => continue,
            Err(other) => panic!("{other}: {text:02x?}"),
        };
        accepted += 1;
        let mut window = Window::new(&image, &imports).expect("makes a window");
        for _ in 0..4 {
            let args = [random.next(), random.next(), random.next(), u64::from(HEAP)].map(Arg::Int);
            match window.call("f", &args) {
                Ok(_) => returned += 1,
                Err(Error::Fault(fault)) => {
                    let odd = matches!(fault.kind, FaultKind::Outside | FaultKind::IllegalInstruction | FaultKind::MemoryError);
                    assert!(!odd, "{fault}: {text:02x?}");
                    assert!(fault.report().to_string().starts_with("error["));
                    *kinds.entry(format!("{:?}", fault.kind)).or_insert(0) += 1;
                }
                Err(other) => panic!("{other}: {text:02x?}"),
            }
            assert_eq!(control_words(), words, "{text:02x?}");
            assert!(window.fuel_used().is_none_or(|used| used >= 1023), "{text:02x?}");
        }
    }
    println!("{accepted} accepted, {returned} calls returned, {kinds:?}, {} signals", SIGNALS_SEEN.load(Ordering::Relaxed));
    assert!(accepted > tries / few && returned > 0 && SIGNALS_SEEN.load(Ordering::Relaxed) > 0);
}
