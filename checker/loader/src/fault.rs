//! Faults of handlers: the signal handler that turns them into the end of a call, and the report.

use crate::context::{Context, RawFault, stop};
use crate::enter;
use crate::fuel::{self, FuelUse};
use crate::gates::{self, Shape};
use crate::image::places::Origin;
use crate::thread;
use crate::time::Overrun;
use crate::window::Inner;
use cordon_checker::layout::NULL_ZONE_END;
use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

/// Signals that a fault of a handler can raise.
pub const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// Exception vectors (SDM volume 3, table 7-1).
mod vector {
    pub const DIVIDE: u64 = 0;
    pub const DEBUG: u64 = 1;
    pub const BREAKPOINT: u64 = 3;
    pub const UNDEFINED: u64 = 6;
    pub const STACK: u64 = 12;
    pub const PROTECTION: u64 = 13;
    pub const PAGE: u64 = 14;
    pub const X87: u64 = 16;
    pub const ALIGNMENT: u64 = 17;
    pub const SIMD: u64 = 19;
}

/// Page-fault error code: the access was a write.
const ERROR_WRITE: u64 = 2;
/// Words of the native stack that are searched for the caller of a gate or stub.
const CALLER_WORDS: u64 = 8;
/// Flags after an abort: the reserved bit and IF.
const CLEAN_FLAGS: i64 = 0x202;
const WINDOW: u64 = 1 << 32;
/// Unmapped bytes above the window.
const EDGE: u64 = 64 << 10;

/// What stopped a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// Access below 64 KiB: a null pointer, most likely.
    NullZone,
    /// Access to a window page that is not mapped.
    Unmapped,
    /// Store to read-only data.
    ReadOnly,
    /// Store to the code-pointer table, or a gate's destination there.
    Table,
    /// Access to the guard below the data stack.
    DataStackOverflow,
    /// Too many nested calls or saved registers for the native stack.
    NativeStackOverflow,
    /// Integer division by zero or with a quotient that does not fit.
    Divide,
    /// `ud2`: abort, an unreachable place, a failed check.
    Trap,
    /// Call or jump through a code pointer that names no function (NULL among them).
    BadCodePointer,
    /// An instruction that this CPU does not have.
    IllegalInstruction,
    /// General protection: a misaligned operand of an aligned vector access.
    Misaligned,
    /// Unmasked floating-point exception.
    FloatingPoint,
    /// A gate's offset and length leave the window.
    GateRange,
    /// The kernel could not provide a page (SIGBUS).
    MemoryError,
    /// A fault outside the window; its address belongs to the host and is not told.
    Outside,
    /// The call took longer than its time limit; [`Fault::overrun`] has the details.
    TimeLimit,
    /// The call would have executed more instructions than its fuel lasts for.
    Fuel,
}

impl FaultKind {
    /// A few words for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            FaultKind::NullZone => "access through a null pointer",
            FaultKind::Unmapped => "access to unmapped memory",
            FaultKind::ReadOnly => "store to read-only data",
            FaultKind::Table => "store to the code-pointer table",
            FaultKind::DataStackOverflow => "data stack overflow",
            FaultKind::NativeStackOverflow => "native stack overflow",
            FaultKind::Divide => "integer division error",
            FaultKind::Trap => "trap instruction",
            FaultKind::BadCodePointer => "call through a bad code pointer",
            FaultKind::IllegalInstruction => "illegal instruction",
            FaultKind::Misaligned => "misaligned vector access",
            FaultKind::FloatingPoint => "floating-point exception",
            FaultKind::GateRange => "range given to a gate leaves the window",
            FaultKind::MemoryError => "memory error",
            FaultKind::Outside => "fault outside the window",
            FaultKind::TimeLimit => "time limit exceeded",
            FaultKind::Fuel => "out of fuel",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A read or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultAccess {
    Read,
    Write,
}

/// The handler's registers at the fault. Every one holds a value of the handler; of rsp only the public low half is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRegisters {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15.
    pub general: [u64; 16],
    pub flags: u32,
}

/// Why and where a handler was stopped. It holds window offsets and text offsets only, no host address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    pub kind: FaultKind,
    /// Text offset of the instruction at which the call ended; in a gate, stub or host function, the return address of its call.
    pub text_offset: Option<u32>,
    /// Function that contains it, with the distance from its start.
    pub function: Option<(String, u32)>,
    /// Where that instruction came from.
    pub origin: Option<Origin>,
    /// The built-in gate in which the fault happened.
    pub gate: Option<&'static str>,
    /// Window offset of the access.
    pub address: Option<u32>,
    pub access: Option<FaultAccess>,
    /// Absent for faults in gates and host functions.
    pub registers: Option<FaultRegisters>,
    /// The host function after which the time limit ended the call.
    pub import: Option<String>,
    /// Which time limit ended the call.
    pub overrun: Option<Overrun>,
    /// The fuel of the call, where the image is metered.
    pub fuel: Option<FuelUse>,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(overrun) = self.overrun {
            let elapsed = Duration::from_micros(overrun.elapsed.as_micros() as u64);
            let whose = if overrun.outer { " of an outer call" } else { "" };
            write!(f, " ({:?}{whose}, ended after {elapsed:?})", overrun.limit)?;
        }
        if let (FaultKind::Fuel, Some(fuel)) = (self.kind, self.fuel) {
            write!(f, " ({} instructions)", fuel.limit)?;
        }
        match self.access {
            Some(FaultAccess::Read) => write!(f, " (read)")?,
            Some(FaultAccess::Write) => write!(f, " (write)")?,
            None => {}
        }
        if let Some(address) = self.address {
            write!(f, " at window address {address:#x}")?;
        }
        if let Some(gate) = self.gate {
            write!(f, " in gate `{gate}`")?;
        }
        if let Some(import) = &self.import {
            write!(f, " in import `{import}`")?;
        }
        match (&self.function, self.text_offset) {
            (Some((name, distance)), Some(offset)) => write!(f, " in {name}+{distance:#x} (text offset {offset:#x})")?,
            (None, Some(offset)) => write!(f, " at text offset {offset:#x}")?,
            _ => {}
        }
        match &self.origin {
            Some(origin) => write!(f, ", from {origin}"),
            None => Ok(()),
        }
    }
}

impl Fault {
    /// Reports how the entry described by `cx` was stopped with `code`.
    pub(crate) fn of(window: &Inner, cx: &Context, code: u32) -> Fault {
        Fault { fuel: fuel_of(window, cx), ..Fault::stopped(window, cx, code) }
    }

    fn stopped(window: &Inner, cx: &Context, code: u32) -> Fault {
        match code {
            stop::FAULT => Fault::from_signal(window, cx, &cx.fault),
            stop::TIME => {
                let overrun = Some(cx.clock.overrun());
                Fault { overrun, ..Fault::interrupted(window, cx, &cx.fault, FaultKind::TimeLimit) }
            }
            stop::GATE_RANGE => {
                let mut fault = Fault::at_gate(window, cx, FaultKind::GateRange);
                if let Some(range) = fault.gate.and_then(gates::shape).and_then(|shape| refused(shape, cx)) {
                    fault.kind = range.kind(cx);
                    fault.address = u32::try_from(range.start).ok();
                    fault.access = Some(range.access);
                }
                fault
            }
            stop::FUEL => Fault::at_gate(window, cx, FaultKind::Fuel),
            stop::STACK => {
                // SAFETY: as above; the host gate pushes nothing before it looks.
                let caller = unsafe { caller_of(cx, cx.frame.gate_rsp) };
                Fault::at(window, FaultKind::NativeStackOverflow, text_offset(cx, caller))
            }
            _ => Fault::at(window, FaultKind::Outside, None),
        }
    }

    fn at_gate(window: &Inner, cx: &Context, kind: FaultKind) -> Fault {
        // SAFETY: the gate's stack pointer lies in the native stack of this context.
        let caller = unsafe { caller_of(cx, cx.frame.gate_rsp) };
        let gate = window.image.import_called_before(caller).and_then(gates::built_in);
        Fault { gate, ..Fault::at(window, kind, text_offset(cx, caller)) }
    }

    /// The end of a call whose host function asked for more fuel than there was.
    pub(crate) fn starved(window: &Inner, cx: &Context) -> Fault {
        // SAFETY: the host gate stored its stack pointer, which lies in the native stack of this context.
        let caller = unsafe { caller_of(cx, cx.frame.gate_rsp) };
        let import = window.image.imports().get(cx.frame.import as usize).map(|i| i.name.clone());
        Fault { import, fuel: fuel_of(window, cx), ..Fault::at(window, FaultKind::Fuel, text_offset(cx, caller)) }
    }

    fn at(window: &Inner, kind: FaultKind, text_offset: Option<u32>) -> Fault {
        let places = window.image.places();
        Fault {
            kind,
            text_offset,
            function: text_offset.and_then(|o| places.function(o)).map(|(name, distance)| (name.to_owned(), distance)),
            origin: text_offset.and_then(|o| places.origin(o)),
            gate: None,
            address: None,
            access: None,
            registers: None,
            import: None,
            overrun: None,
            fuel: None,
        }
    }

    /// The end of a call that met a time limit in its running host function.
    pub(crate) fn in_host_function(window: &Inner, cx: &Context, overrun: Overrun) -> Fault {
        // SAFETY: the host gate stored its stack pointer, which lies in the native stack of this context.
        let caller = unsafe { caller_of(cx, cx.frame.gate_rsp) };
        let import = window.image.imports().get(cx.frame.import as usize).map(|i| i.name.clone());
        Fault { import, overrun: Some(overrun), ..Fault::at(window, FaultKind::TimeLimit, text_offset(cx, caller)) }
    }

    /// A call that was not begun, because a limit around it has passed.
    pub(crate) fn not_begun(window: &Inner, overrun: Overrun) -> Fault {
        Fault { overrun: Some(overrun), ..Fault::at(window, FaultKind::TimeLimit, None) }
    }

    fn from_signal(window: &Inner, cx: &Context, raw: &RawFault) -> Fault {
        let write = raw.error & ERROR_WRITE != 0;
        let mut fault = Fault::interrupted(window, cx, raw, kind_of(window, cx, raw));
        if raw.trap == vector::PAGE && raw.address.wrapping_sub(cx.base) < WINDOW {
            fault.address = u32::try_from(raw.address.wrapping_sub(cx.base)).ok();
            fault.access = Some(if write { FaultAccess::Write } else { FaultAccess::Read });
        }
        fault
    }

    /// The end of a call at an interrupted instruction.
    fn interrupted(window: &Inner, cx: &Context, raw: &RawFault, kind: FaultKind) -> Fault {
        let in_text = window.image.text_range().contains(&raw.rip);
        let place = if in_text { text_offset(cx, raw.rip) } else { text_offset(cx, raw.caller) };
        let mut fault = Fault::at(window, kind, place);
        fault.gate = gates::name_at(raw.rip);
        // A gate's registers hold host values; text and stubs run with the handler's.
        if window.image.code_range().contains(&raw.rip) {
            let mut general = raw.registers;
            general[4] &= 0xffff_ffff;
            fault.registers = Some(FaultRegisters { general, flags: raw.flags as u32 });
        }
        fault
    }
}

/// A range of window memory that a gate was given.
#[derive(Clone, Copy, Debug)]
struct GateRange {
    /// All 64 bits that the handler passed.
    start: u64,
    /// Bytes; at least `u64::MAX` if it is more.
    len: u64,
    access: FaultAccess,
}

impl GateRange {
    /// Whether the gates refuse it.
    fn is_refused(&self, cx: &Context) -> bool {
        let end = self.start.checked_add(self.len);
        end.is_none_or(|end| end > WINDOW)
            || self.start >= WINDOW
            || self.access == FaultAccess::Write && self.start < cx.table_end
    }

    fn kind(&self, cx: &Context) -> FaultKind {
        match (self.access, self.start) {
            (_, start) if start < u64::from(NULL_ZONE_END) => FaultKind::NullZone,
            (FaultAccess::Write, start) if start < cx.table_end => FaultKind::Table,
            _ => FaultKind::GateRange,
        }
    }
}

/// The first of a gate's ranges that it refused, if it is known.
fn refused(shape: Shape, cx: &Context) -> Option<GateRange> {
    let [rdi, rsi, rdx, rcx, ..] = cx.frame.args;
    let range = |start, len, access| Some(GateRange { start, len, access });
    let (read, write) = (FaultAccess::Read, FaultAccess::Write);
    let ranges = match shape {
        Shape::Bytes { reads } => [range(rdi, rdx, write), range(rsi, rdx, read).filter(|_| reads)],
        Shape::Compare => [range(rdi, rdx, read), range(rsi, rdx, read)],
        Shape::Length => [range(rdi, 1, read), None],
        Shape::Elements { size, reads } => {
            let len = rcx.saturating_mul(size);
            [range(rdi, len, write), range(rsi, len, read).filter(|_| reads)]
        }
        Shape::Search { size, both } => [range(rdi, size, read), range(rsi, size, read).filter(|_| both)],
        Shape::Word | Shape::Registers => [None, None],
    };
    ranges.into_iter().flatten().find(|range| range.is_refused(cx))
}

/// The fuel of the call that `cx` describes.
fn fuel_of(window: &Inner, cx: &Context) -> Option<FuelUse> {
    window.image.mode().metered.then(|| FuelUse::new(cx.fuel_limit, cx.frame.fuel))
}

fn text_offset(cx: &Context, address: u64) -> Option<u32> {
    (cx.text_start..cx.text_end).contains(&address).then(|| u32::try_from(address - cx.text_start).ok())?
}

fn kind_of(window: &Inner, cx: &Context, raw: &RawFault) -> FaultKind {
    match raw.trap {
        vector::PAGE => page_fault_kind(window, cx, raw),
        vector::DIVIDE => FaultKind::Divide,
        vector::UNDEFINED if window.image.stub_range().contains(&raw.rip) => FaultKind::BadCodePointer,
        vector::UNDEFINED if window.image.is_trap_instruction(raw.rip) => {
            let below = raw.registers[14] > fuel::MOST;
            if below && window.image.mode().metered { FaultKind::Fuel } else { FaultKind::Trap }
        }
        vector::UNDEFINED => FaultKind::IllegalInstruction,
        vector::BREAKPOINT | vector::DEBUG => FaultKind::Trap,
        vector::PROTECTION | vector::STACK | vector::ALIGNMENT => FaultKind::Misaligned,
        vector::X87 | vector::SIMD => FaultKind::FloatingPoint,
        _ => FaultKind::Outside,
    }
}

fn page_fault_kind(window: &Inner, cx: &Context, raw: &RawFault) -> FaultKind {
    if (cx.guard_start..cx.stack_start).contains(&raw.address) {
        return FaultKind::NativeStackOverflow;
    }
    let offset = raw.address.wrapping_sub(cx.base);
    if offset >= WINDOW {
        return if offset < WINDOW + EDGE { FaultKind::Unmapped } else { FaultKind::Outside };
    }
    if raw.signal == libc::SIGBUS {
        return FaultKind::MemoryError;
    }
    window.image.page_fault_kind(offset as u32)
}

/// The first text address among the words above `rsp`, or 0.
///
/// # Safety
/// `cx` is valid.
unsafe fn caller_of(cx: &Context, rsp: u64) -> u64 {
    let top = ptr::from_ref(cx) as u64;
    if rsp < cx.stack_start || rsp >= top || !rsp.is_multiple_of(8) {
        return 0;
    }
    let words = (rsp..top).step_by(8).take(CALLER_WORDS as usize);
    // SAFETY: every address lies in the mapped part of the native stack.
    words.map(|at| unsafe { *(at as *const u64) }).find(|w| (cx.text_start..cx.text_end).contains(w)).unwrap_or(0)
}

/// Actions found when ours were installed.
struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);

// SAFETY: written once, under `Once`, before the handler that reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); SIGNALS.len()]));

/// Installs the signal handler, once per process. Actions that were there before are called for signals which are not a handler's fault.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: zeroed actions are valid; the previous one is stored before ours can be reached.
            unsafe {
                let previous = &mut (*PREVIOUS.0.get())[index];
                libc::sigaction(signal, ptr::null(), previous.as_mut_ptr());
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
}

unsafe extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo and ucontext to an SA_SIGINFO handler.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        if (*info).si_code > 0 && take_fault(signal, &*info, machine) {
            return;
        }
        chain(signal, info, context);
    }
}

/// Ends the running call, or the running host copy, if the fault is theirs; gives whether it was.
fn take_fault(signal: libc::c_int, info: &libc::siginfo_t, machine: &mut libc::mcontext_t) -> bool {
    let rip = machine.gregs[libc::REG_RIP as usize] as u64;
    let (copy, recovery) = enter::copy_routine();
    if copy.contains(&rip) {
        machine.gregs[libc::REG_RIP as usize] = recovery.cast_signed();
        return true;
    }
    let cx = thread::current();
    // SAFETY: not null means a running invocation of this thread, whose context stays mapped.
    let Some(cx) = (unsafe { cx.as_mut() }) else { return false };
    if !may_end_at(cx, rip) {
        return false;
    }
    record(cx, signal, info, machine);
    redirect(cx, machine, stop::FAULT);
    true
}

/// Whether the running entry may be ended at `rip`: in its text and stubs, or in a built-in gate.
fn may_end_at(cx: &Context, rip: u64) -> bool {
    (cx.text_start..cx.text_end).contains(&rip) || gates::range().contains(&rip)
}

/// Ends the running call, which met a time limit, unless host code is running.
///
/// # Safety
/// `cx` is null or the current context of this thread, and the arguments are those of its signal handler.
pub unsafe fn end_late(cx: *mut Context, signal: libc::c_int, info: &libc::siginfo_t, machine: &mut libc::mcontext_t) {
    // SAFETY: the caller's promise: a running invocation's context stays mapped.
    let Some(cx) = (unsafe { cx.as_mut() }) else { return };
    if may_end_at(cx, machine.gregs[libc::REG_RIP as usize].cast_unsigned()) {
        record(cx, signal, info, machine);
        redirect(cx, machine, stop::TIME);
    }
}

fn record(cx: &mut Context, signal: libc::c_int, info: &libc::siginfo_t, machine: &libc::mcontext_t) {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let register = |r: libc::c_int| machine.gregs[r as usize] as u64;
    // SAFETY: the gate or handler runs on the native stack of `cx`; other values of rsp are refused.
    let caller = unsafe { caller_of(cx, register(libc::REG_RSP)) };
    cx.fault = RawFault {
        signal,
        code: info.si_code,
        trap: register(libc::REG_TRAPNO),
        error: register(libc::REG_ERR),
        address: register(libc::REG_CR2),
        rip: register(libc::REG_RIP),
        flags: register(libc::REG_EFL),
        registers: ORDER.map(register),
        caller,
    };
}

/// Makes the interrupted code go on in the abort path with stop code `code`. The segment base need not be changed: the abort path
/// restores the host's.
fn redirect(cx: &mut Context, machine: &mut libc::mcontext_t, code: u32) {
    cx.frame.stop = code;
    cx.frame.fuel = machine.gregs[libc::REG_R14 as usize].cast_unsigned();
    let mut set = |register: libc::c_int, value: u64| machine.gregs[register as usize] = value.cast_signed();
    set(libc::REG_RIP, enter::abort_address());
    set(libc::REG_RCX, ptr::from_mut(cx) as u64 & !0xffff_ffff);
    set(libc::REG_RSP, cx.frame.host_rsp);
    machine.gregs[libc::REG_EFL as usize] = CLEAN_FLAGS;
}

/// Passes a signal to the action that was there before.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(index) = SIGNALS.iter().position(|&s| s == signal) else { return };
    // SAFETY: written before our handler was installed; the caller's promise.
    unsafe { chain_to((*PREVIOUS.0.get())[index].assume_init_ref(), signal, info, context) }
}

/// Passes a signal to `previous`.
///
/// # Safety
/// The other arguments are those of a signal handler, and `previous` is an action of that signal.
pub unsafe fn chain_to(previous: &libc::sigaction, signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the caller's promise; the action's own signature decides how it is called.
    unsafe {
        match previous.sa_sigaction {
            libc::SIG_IGN if (*info).si_code <= 0 => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                // Returning repeats a fault under the default action; a signal that somebody sent is sent again.
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
            handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
