//! Runs text on this processor: one instruction at a time, asking the [`Watch`] at each, or freely until it ends or a timer has had enough.

use crate::place::{BASE, GONE, Place, secret};
use crate::registers::GENERAL;
use crate::signals;
use crate::watch::Watch;
use std::arch::asm;
use std::cell::UnsafeCell;

const TRAP_FLAG: i64 = 0x100;
/// Bytes of the harness's load.
const LOAD: i64 = 2;
/// Nanoseconds between ticks; a free run ends at the second that it sees. Interrupts are dear in virtual machines, and so are endless loops.
const TICK: i64 = 200_000;
/// Ticks after which a run that must end by itself has not: the machine may be busy with something else for most of them.
const PATIENCE: u32 = 5_000;
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

/// How a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One instruction at a time, at most so many.
    Steps(u32),
    /// Until it ends, or some hundred microseconds.
    Free,
}

/// Where and how a run begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) rip: u64,
    pub(crate) general: [u64; 16],
    pub(crate) pace: Pace,
    /// It must end by itself.
    pub(crate) ends: bool,
}

/// Shared with the signal handler.
struct Shared {
    running: bool,
    start: Start,
    steps: u32,
    /// Ticks that this run has seen.
    ticks: u32,
    watch: *mut Watch<'static>,
    harness: Option<[i64; 23]>,
    end: End,
}

struct Cell(UnsafeCell<Shared>);
// SAFETY: one thread uses it, and its signal handler only while that thread waits in `run`.
unsafe impl Sync for Cell {}

const NO_END: End = End { signal: 0, trap: 0, address: 0, rip: 0, general: [0; 16], wrong: None, vectors: [0; 80] };
static SHARED: Cell = Cell(UnsafeCell::new(Shared {
    running: false,
    start: Start { rip: 0, general: [0; 16], pace: Pace::Free, ends: false },
    steps: 0,
    ticks: 0,
    watch: std::ptr::null_mut(),
    harness: None,
    end: NO_END,
}));

/// Starts at the harness's load, asks the watch at every trap, and goes back to the harness at anything else.
extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: see `Cell`; the kernel gives a valid context.
    let (shared, context) = unsafe { (&mut *SHARED.0.get(), &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext) };
    let (rip, flags) = (libc::REG_RIP as usize, libc::REG_EFL as usize);
    let fpu = context.fpregs.cast::<u8>();
    let g = &mut context.gregs;
    let most = if let Pace::Steps(most) = shared.start.pace { most } else { 0 };
    if signal == libc::SIGALRM {
        shared.ticks += 1;
        if !shared.running || most > 0 || shared.ticks < if shared.start.ends { PATIENCE } else { 2 } {
            return;
        }
    }
    if !shared.running {
        if signal != libc::SIGSEGV || g[libc::REG_CR2 as usize] as u64 != GONE {
            // SAFETY: a fault of the test itself.
            unsafe { libc::_exit(101) };
        }
        shared.harness = Some(*g);
        (shared.running, shared.steps, shared.ticks) = (true, 0, 0);
        for (value, name) in shared.start.general.iter().zip(GENERAL) {
            g[name as usize] = value.cast_signed();
        }
        g[rip] = shared.start.rip.cast_signed();
        g[flags] = if most > 0 { 0x202 | TRAP_FLAG } else { 0x202 };
        // SAFETY: the kernel's floating-point area of this context; its extended part only where the kernel says that there is one.
        unsafe { clear_vectors(fpu) };
    }
    let registers = GENERAL.map(|name| g[name as usize] as u64);
    // SAFETY: `run` holds the watch as long as text runs.
    let watch = unsafe { &mut *shared.watch };
    let first = shared.steps == 0;
    let mut wrong = None;
    if first && most == 0 {
        shared.steps = 1;
        return;
    }
    if most > 0 && (first || signal == libc::SIGTRAP && shared.steps < most) {
        shared.steps += 1;
        match watch.step(g[rip] as u64, &registers) {
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
    g[rip] += LOAD;
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

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Returned,
    Trapped,
    Faulted,
    Divided,
    Misaligned,
    /// At an instruction that this processor does not have.
    Lacking,
    /// By the harness: enough steps, or enough time.
    Long,
}

/// Signal handlers on a stack of their own, a timer, and the window's segment. Once in a process, in the thread that runs text.
pub fn set_up() {
    // A tick waits until the handler of another signal is done: each blocks all.
    signals::install(on_signal, &[&signals::FAULTS[..], &[libc::SIGALRM]].concat());
    signals::set_gs(BASE);
    // SAFETY: a timer of this process.
    unsafe {
        // To this thread, not to a test runner's.
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

/// Runs the loaded text and restores the place; says what it did that it may not. `secrets`: whether any may become visible.
pub(crate) fn run(place: &mut Place, watch: &mut Watch<'_>, start: Start, secrets: bool) -> Result<Outcome, String> {
    let mxcsr = 0x1f80_u32;
    // SAFETY: the signal handler saves and restores every general register; the others are declared. The text has been accepted, so that it
    // reaches only the pages of this place: what a wrong checker would break is for the run to find. The watch outlives the run.
    let end = unsafe {
        let shared = SHARED.0.get();
        (*shared).start = start;
        (*shared).watch = std::ptr::from_mut(watch).cast();
        // A load that faults: where an invalid opcode leaves a virtual machine, a page fault does not.
        asm!("mov al, byte ptr [rax]", inout("rax") GONE => _, clobber_abi("C"));
        asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr);
        (*shared).end
    };
    let outcome = judge(place, watch, &end, start);
    let left = place.inspect(secrets);
    let outcome = outcome?;
    left?;
    if secrets {
        let registers = end.general.iter().enumerate().filter(|(number, _)| *number != 4);
        let mut seen = registers.map(|(_, value)| *value).chain(end.vectors).filter_map(secret);
        if let Some(what) = seen.next() {
            return Err(format!("{what} in a register"));
        }
    }
    Ok(outcome)
}

fn judge(place: &Place, watch: &Watch<'_>, end: &End, start: Start) -> Result<Outcome, String> {
    let stepping = matches!(start.pace, Pace::Steps(_));
    let in_text = if stepping { watch.is_running(end.rip) } else { watch.may_be_running(end.rip) };
    if let Some(wrong) = end.wrong {
        return Err(format!("{wrong}, at {:#x} with rsp {:#x}", end.rip, end.general[4]));
    }
    match (end.signal, end.trap) {
        // Fetching from no address at all; a tick may be first.
        (signal, trap)
            if end.rip == GONE
                && ((signal, trap, end.address) == (libc::SIGSEGV, PAGE_FAULT, GONE) || signal == libc::SIGALRM) =>
        {
            let right = end.general[4] == place.entry_stack() + 8;
            if right { Ok(Outcome::Returned) } else { Err("leaves with a wrong rsp".to_owned()) }
        }
        (libc::SIGTRAP, _) if stepping => Ok(Outcome::Long),
        (libc::SIGALRM, _) if start.ends => Err(format!("runs on without paying, at {:#x}", end.rip)),
        (libc::SIGALRM, _) if in_text || watch.is_stub(end.rip) => Ok(Outcome::Long),
        (libc::SIGFPE, 0) if in_text => Ok(Outcome::Divided),
        (libc::SIGILL, _) if watch.is_trap(end.rip) => Ok(Outcome::Trapped),
        (libc::SIGILL, _) if watch.is_lacking(end.rip) => Ok(Outcome::Lacking),
        (libc::SIGSEGV, PROTECTION) if watch.may_be_misaligned(end.rip, &end.general) => Ok(Outcome::Misaligned),
        (libc::SIGSEGV, PAGE_FAULT) if in_text && place.may_fault_at(end.address) => Ok(Outcome::Faulted),
        (libc::SIGSEGV | libc::SIGBUS, _) if watch.is_free_load(end.rip) => Ok(Outcome::Faulted),
        (signal, trap) => Err(format!("signal {signal}, trap {trap}, address {:#x}, rip {:#x}", end.address, end.rip)),
    }
}
