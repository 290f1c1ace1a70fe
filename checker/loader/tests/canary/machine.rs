//! Runs text on this processor: one instruction at a time, asking the [`Watch`] at each, or freely until it ends or a timer has had enough.

use crate::place::{GONE, Place, secret};
use crate::registers::GENERAL;
use crate::signals;
use crate::watch::Watch;
use std::arch::asm;
use std::cell::UnsafeCell;

const TRAP_FLAG: i64 = 0x100;
/// Instructions that one run may take.
const STEPS: u32 = 200;
/// Nanoseconds between ticks; a free run ends at the second that it sees.
const TICK: i64 = 1_000_000;
/// `SIGSEGV` by a general-protection fault, by a page fault.
const PROTECTION: i64 = 13;
const PAGE_FAULT: i64 = 14;
/// Offsets in the context's floating-point area: control word, MXCSR, x87 and xmm registers; that of the state bits and of the upper ymm halves.
const CONTROL: usize = 0;
const MXCSR: usize = 24;
const REGISTERS: std::ops::Range<usize> = 32..416;
const MAGIC: usize = 464;
const EXTENDED: u32 = 0x4650_5853;
const STATE_BITS: usize = 512;
const UPPER: std::ops::Range<usize> = 576..832;

/// How a run ended.
#[derive(Clone, Copy, Debug)]
struct End {
    signal: i32,
    trap: i64,
    address: u64,
    rip: u64,
    general: [u64; 16],
    wrong: Option<&'static str>,
    /// The x87 and vector registers.
    vectors: [u64; (REGISTERS.end - REGISTERS.start + UPPER.end - UPPER.start) / 8],
}

/// Shared with the signal handler.
struct Shared {
    running: bool,
    general: [u64; 16],
    rip: u64,
    steps: u32,
    /// The trap flag is set.
    stepping: bool,
    /// The timer has seen this run before.
    seen: bool,
    watch: *mut Watch,
    harness: Option<[i64; 23]>,
    end: End,
}

struct Cell(UnsafeCell<Shared>);
// SAFETY: one thread uses it, and its signal handler only while that thread waits in `run`.
unsafe impl Sync for Cell {}

const NO_END: End = End { signal: 0, trap: 0, address: 0, rip: 0, general: [0; 16], wrong: None, vectors: [0; 80] };
static SHARED: Cell = Cell(UnsafeCell::new(Shared {
    running: false,
    general: [0; 16],
    rip: 0,
    steps: 0,
    stepping: true,
    seen: false,
    watch: std::ptr::null_mut(),
    harness: None,
    end: NO_END,
}));

/// Starts at the harness's `ud2`, asks the watch at every trap, and goes back to the harness at anything else.
extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: see `Cell`; the kernel gives a valid context.
    let (shared, context) = unsafe { (&mut *SHARED.0.get(), &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext) };
    let (rip, flags) = (libc::REG_RIP as usize, libc::REG_EFL as usize);
    let fpu = context.fpregs.cast::<u8>();
    let g = &mut context.gregs;
    if signal == libc::SIGALRM && (!shared.running || shared.stepping || !std::mem::replace(&mut shared.seen, true)) {
        return;
    }
    if !shared.running {
        if signal != libc::SIGILL {
            // SAFETY: a fault of the test itself.
            unsafe { libc::_exit(101) };
        }
        shared.harness = Some(*g);
        (shared.running, shared.steps, shared.seen) = (true, 0, false);
        for (value, name) in shared.general.iter().zip(GENERAL) {
            g[name as usize] = value.cast_signed();
        }
        g[rip] = shared.rip.cast_signed();
        g[flags] = if shared.stepping { 0x202 | TRAP_FLAG } else { 0x202 };
        // SAFETY: the kernel's floating-point area of this context; its extended part only where the kernel says that there is one.
        unsafe { clear_vectors(fpu) };
    }
    let registers = GENERAL.map(|name| g[name as usize] as u64);
    // SAFETY: `run` holds the watch as long as text runs.
    let watch = unsafe { &mut *shared.watch };
    let first = shared.steps == 0;
    let mut wrong = None;
    if first && !shared.stepping {
        shared.steps = 1;
        return;
    }
    if shared.stepping && (first || signal == libc::SIGTRAP && shared.steps < STEPS) {
        shared.steps += 1;
        match watch.step(g[rip] as u64, registers[4]) {
            Ok(true) => return,
            Ok(false) => {}
            Err(what) => wrong = Some(what),
        }
    }
    let (trap, address) = (g[libc::REG_TRAPNO as usize], g[libc::REG_CR2 as usize] as u64);
    // SAFETY: as above.
    let vectors = unsafe { vectors(fpu) };
    shared.end = End { signal, trap, address, rip: g[rip] as u64, general: registers, wrong, vectors };
    shared.running = false;
    *g = shared.harness.take().expect("the harness waits");
    g[rip] += 2;
}

unsafe fn extended(fpu: *const u8) -> bool {
    // SAFETY: the caller's area has at least 512 bytes.
    unsafe { fpu.add(MAGIC).cast::<u32>().read_unaligned() == EXTENDED }
}

/// All x87 and vector registers 0, exceptions masked.
unsafe fn clear_vectors(fpu: *mut u8) {
    // SAFETY: the caller's area.
    unsafe {
        fpu.write_bytes(0, REGISTERS.end);
        fpu.add(CONTROL).cast::<u16>().write_unaligned(0x37f);
        fpu.add(MXCSR).cast::<u32>().write_unaligned(0x1f80);
        fpu.add(MXCSR + 4).cast::<u32>().write_unaligned(0xffff);
        if extended(fpu) {
            let bits = fpu.add(STATE_BITS).cast::<u64>();
            bits.write_unaligned(bits.read_unaligned() & !4 | 3);
        }
    }
}

unsafe fn vectors(fpu: *const u8) -> [u64; 80] {
    let mut all = [0; 80];
    let lower = REGISTERS.len() / 8;
    // SAFETY: the caller's area.
    unsafe {
        for (i, word) in all[..lower].iter_mut().enumerate() {
            *word = fpu.add(REGISTERS.start + 8 * i).cast::<u64>().read_unaligned();
        }
        if extended(fpu) && fpu.add(STATE_BITS).cast::<u64>().read_unaligned() & 4 != 0 {
            for (i, word) in all[lower..].iter_mut().enumerate() {
                *word = fpu.add(UPPER.start + 8 * i).cast::<u64>().read_unaligned();
            }
        }
    }
    all
}

/// What a run was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Returned,
    Trapped,
    Faulted,
    Divided,
    Misaligned,
    Long,
}

/// Signal handlers on a stack of their own, and the window's segment.
pub fn set_up() {
    // A tick waits until the handler of another signal is done: each blocks all.
    signals::install(on_signal, &[&signals::FAULTS[..], &[libc::SIGALRM]].concat());
    signals::set_gs(crate::place::BASE);
    // SAFETY: a timer of this process.
    unsafe {
        // To this thread, not to the test runner's.
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer), 0);
        let tick = libc::timespec { tv_sec: 0, tv_nsec: TICK };
        let ticks = libc::itimerspec { it_interval: tick, it_value: tick };
        assert_eq!(libc::timer_settime(timer, 0, &raw const ticks, std::ptr::null_mut()), 0);
    }
}

/// Runs the loaded text from `rip`, step by step or freely; says what it did that it may not.
pub fn run(place: &Place, watch: &mut Watch, rip: u64, mut general: [u64; 16], stepping: bool) -> Result<Outcome, String> {
    let mxcsr = 0x1f80_u32;
    general[4] = place.entry_stack();
    place.push_return();
    watch.begin(general[4]);
    // SAFETY: the signal handler saves and restores every general register; the others are declared. The text has been accepted, so that it
    // reaches only the pages of this test: what a wrong checker would break is for the test to find.
    let end = unsafe {
        let shared = SHARED.0.get();
        (*shared).stepping = stepping;
        (*shared).watch = watch;
        (*shared).general = general;
        (*shared).rip = rip;
        asm!("ud2", clobber_abi("C"));
        asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr);
        (*shared).end
    };
    let outcome = judge(place, watch, &end, stepping);
    let left = place.inspect(if stepping { watch.lowest } else { 0 });
    let outcome = outcome?;
    left?;
    let registers = end.general.iter().enumerate().filter(|(number, _)| *number != 4);
    let mut seen = registers.map(|(_, value)| *value).chain(end.vectors).filter_map(secret);
    match seen.next() {
        Some(what) => Err(format!("{what} in a register")),
        None => Ok(outcome),
    }
}

fn judge(place: &Place, watch: &Watch, end: &End, stepping: bool) -> Result<Outcome, String> {
    let in_text = if stepping { watch.is_running(end.rip) } else { watch.may_be_running(end.rip) };
    if let Some(wrong) = end.wrong {
        return Err(format!("{wrong}, at {:#x} with rsp {:#x}", end.rip, end.general[4]));
    }
    match (end.signal, end.trap) {
        (libc::SIGTRAP, _) if stepping => Ok(Outcome::Long),
        (libc::SIGALRM, _) if in_text || watch.is_stub(end.rip) => Ok(Outcome::Long),
        (libc::SIGFPE, 0) if in_text => Ok(Outcome::Divided),
        (libc::SIGILL, _) if watch.is_trap(end.rip) => Ok(Outcome::Trapped),
        (libc::SIGSEGV, PROTECTION) if watch.may_be_misaligned(end.rip, &end.general) => Ok(Outcome::Misaligned),
        // Fetching from no address at all.
        (libc::SIGSEGV, PAGE_FAULT) if end.rip == GONE && end.address == GONE => {
            if end.general[4] == place.entry_stack() + 8 {
                Ok(Outcome::Returned)
            } else {
                Err("leaves with a wrong rsp".to_owned())
            }
        }
        (libc::SIGSEGV, PAGE_FAULT) if in_text && place.may_fault_at(end.address) => Ok(Outcome::Faulted),
        (signal, trap) => Err(format!("signal {signal}, trap {trap}, address {:#x}, rip {:#x}", end.address, end.rip)),
    }
}
