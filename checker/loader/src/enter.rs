//! Entering a window: argument registers, native stack, segment base, and what comes back.
//!
//! The assembly in `asm/enter.s` switches to the thread's native stack, clears every register that carries no argument, and calls the
//! handler; return, fault and refused gate all leave through the same code, which restores the host's stack, frame and base pointers (the
//! compiler keeps the other registers), control words, segment base and direction flag.

use crate::context::{Context, Frame, HOME, flag, stop};
use crate::error::Error;
use crate::fault::Fault;
use crate::fuel;
use crate::imports::{host_import, plain_ended};
use crate::thread::{self, Invocation, Local, NativeStack};
use crate::time::{Clock, Overrun};
use crate::window::Inner;
use std::arch::{asm, global_asm};
use std::mem::offset_of;
use std::ptr;

/// Entries that may be nested in each other on one thread, through host imports.
pub const NESTING_LIMIT: u32 = 16;

/// Displacement of a context field from the high half of the context's address.
const fn field(offset: usize) -> u64 {
    HOME + offset as u64
}

macro_rules! frame {
    ($field:ident) => {
        field(offset_of!(Context, frame) + offset_of!(crate::context::Frame, $field))
    };
}

global_asm!(
    include_str!("asm/enter.s"),
    FLAGS = const field(offset_of!(Context, flags)),
    BASE = const field(offset_of!(Context, base)),
    LEFT_GS = const field(offset_of!(Context, left_gs)),
    GATE_LIMIT = const field(offset_of!(Context, gate_limit)),
    PLAIN = const field(offset_of!(Context, plain)),
    MARKS = const field(offset_of!(Context, clock) + Clock::MARKS),
    ENDING = const Clock::PENDING | Clock::FAILED,
    MXCSR_MASK = const field(offset_of!(Context, mxcsr_mask)),
    HOST_RSP = const frame!(host_rsp),
    HOST_GS = const frame!(host_gs),
    SHADOW = const frame!(shadow),
    GATE_RSP = const frame!(gate_rsp),
    GATE_MXCSR = const frame!(gate_mxcsr),
    GATE_FCW = const frame!(gate_fcw),
    HOST_FCW = const frame!(host_fcw),
    IMPORT = const frame!(import),
    STOP = const frame!(stop),
    FLOAT_VALUES = const frame!(float_args),
    FLOAT_RESULT = const frame!(float_result),
    FUEL = const frame!(fuel),
    RECORD = const frame!(record),
    POPPED = const frame!(popped),
    AVX = const flag::AVX,
    X87 = const flag::X87,
    NT = const flag::NT,
    SYSTEM_CALLS = const flag::SYSTEM_CALLS,
    KEEP_GS = const flag::KEEP_GS,
    CONTROL = const flag::CONTROL,
    FLOAT_ARGS = const flag::FLOAT_ARGS,
    METERED = const flag::METERED,
    FLOAT_IMPORTS = const flag::FLOAT_IMPORTS,
    RESUME = const flag::RESUME,
    VECTORS = const flag::VECTORS,
    UPPER = const flag::UPPER,
    SHADOWED = const flag::SHADOWED,
    STOP_STACK = const stop::STACK,
    dispatch = sym host_import,
    plain_ended = sym plain_ended,
    options(att_syntax)
);

unsafe extern "C" {
    fn cordon_loader_enter();
    fn cordon_loader_abort();
    fn cordon_loader_host_gate();
    fn cordon_loader_copy(to: *mut u8, from: *const u8, len: usize) -> u32;
    fn cordon_loader_copy_fault();
}

/// Address of the code that ends the running entry; it wants the high half of the context's address in rcx.
pub fn abort_address() -> u64 {
    cordon_loader_abort as *const () as u64
}

/// Address of the gate to host functions; it wants the import index in eax.
pub fn host_gate_address() -> u64 {
    cordon_loader_host_gate as *const () as u64
}

/// Whether `rip` is in the code of entry, exit or the gate to host functions, which runs on a native stack for some instructions.
pub fn is_entry_code(rip: u64) -> bool {
    (cordon_loader_enter as *const () as u64..cordon_loader_copy as *const () as u64).contains(&rip)
}

/// The host's copy routine, and where it goes on when a copy faults.
pub fn copy_routine() -> (std::ops::Range<u64>, u64) {
    let recovery = cordon_loader_copy_fault as *const () as u64;
    (cordon_loader_copy as *const () as u64..recovery, recovery)
}

/// Copies `len` bytes; gives whether every byte could be read and written.
///
/// # Safety
/// Each of the two ranges is host memory valid for the access, or lies wholly inside a window's reservation, where any page may be missing.
pub unsafe fn try_copy(to: *mut u8, from: *const u8, len: usize) -> bool {
    crate::signal::install();
    // SAFETY: the caller's promise; a fault inside the routine is turned into the result 1 by the signal handler.
    unsafe { cordon_loader_copy(to, from, len) == 0 }
}

/// What a call left in rax and xmm0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Returned {
    pub int: u64,
    pub float: f64,
}

/// Calls text address `target` in `window`; what it leaves goes to `returned`, on the caller's stack. (As a part of the result it would be
/// written in words and read in wider pieces at once, for which a processor waits longer than the call takes.)
///
/// # Errors
/// [`Error::Fault`], [`Error::Import`], [`Error::Nesting`], [`Error::SignalStack`], or [`Error::Memory`] or [`Error::Timer`] if this thread
/// gets no native stack or timer.
#[inline(always)]
pub fn enter(
    window: &Inner,
    target: u64,
    ints: &[u64; 6],
    floats: Option<&[f64; 8]>,
    returned: &mut Returned,
) -> Result<(), Error> {
    let local = thread::local()?;
    let outer = local.current.get();
    if local.is_on_signal_stack(ptr::from_mut(returned) as u64) {
        return Err(Error::SignalStack);
    }
    if !outer.is_null() {
        return enter_inside(local, outer, window, target, ints, floats, returned);
    }
    let stack = local.stack(window.image.stack_size())?;
    // SAFETY: nothing runs on this thread, so nothing uses its stack, which stays where it is.
    unsafe { enter_on(stack, local, ptr::null_mut(), window, target, ints, floats, returned) }
}

/// As [`enter`], from a host function that the invocation `outer` called.
#[cold]
fn enter_inside(
    local: &Local,
    outer: *mut Context,
    window: &Inner,
    target: u64,
    ints: &[u64; 6],
    floats: Option<&[f64; 8]>,
    returned: &mut Returned,
) -> Result<(), Error> {
    let nesting = nesting_in(window, outer)?;
    let stack = local.take_stack(window.image.stack_size())?;
    let cx = stack.context();
    // SAFETY: the stack was just taken, so nothing else refers to it or its context until it is given back below.
    let outcome = unsafe {
        ((*cx).nesting, (*cx).outer) = (nesting, outer as u64);
        let outcome = enter_on(&raw const *stack, local, outer, window, target, ints, floats, returned);
        ((*cx).nesting, (*cx).outer) = (0, 0);
        // If the signal handler around this call runs on what was lent, it has not been taken back here.
        crate::signal::take_back(&*cx);
        outcome
    };
    local.give_back(stack);
    outcome
}

/// Calls text address `target` on `stack`, inside the invocation `outer`, which may be null.
///
/// # Errors
/// As [`enter`].
///
/// # Safety
/// `stack` stays mapped, and no running invocation uses it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined")]
unsafe fn enter_on(
    stack: *const NativeStack,
    local: &Local,
    outer: *mut Context,
    window: &Inner,
    target: u64,
    ints: &[u64; 6],
    floats: Option<&[f64; 8]>,
    returned: &mut Returned,
) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let cx = unsafe { (*stack).context() };
    // SAFETY: the context belongs to the native stack, so nothing else refers to it; `outer` is null or an invocation further up this thread's
    // stack.
    let flags = unsafe {
        if (*cx).owner != window.id {
            window.fill(&mut *cx, &*stack);
        }
        (*cx).target = target;
        (*cx).clock.begin();
        // The base that an entry inside another one finds is the outer one's, even if an earlier exit from this stack left the same.
        let flags = (*cx).standing & if outer.is_null() { u32::MAX } else { !flag::KEEP_GS };
        (*cx).flags = flags;
        if flags & flag::METERED != 0 {
            let fuel = window.tank.allowed(outer);
            ((*cx).fuel_limit, (*cx).frame.fuel) = (fuel, fuel);
        }
        flags
    };
    local.arrive(cx);
    let watched = local.timer.watch(window.limit.period);
    if watched.is_err() {
        local.leave(outer);
        return watched;
    }
    // SAFETY: the context is filled in for `window`, whose reservation stays as it is while it is borrowed; `target` is an entry or a
    // depth-0 slot of text that the checker accepted for this layout; the context itself is the top of the native stack.
    let (result, code) = unsafe { run(cx, cx as u64, ints, floats) };
    if flags & flag::METERED != 0 {
        // SAFETY: as above; the context is still this invocation's.
        unsafe { window.tank.settle(outer, (*cx).fuel_limit, (*cx).frame.fuel) };
    }
    if code != stop::NONE || flags & flag::LARGE != 0 {
        // SAFETY: as above; nothing runs on the stack any more.
        let outcome = unsafe { end(stack, window, cx, code) };
        local.leave(outer);
        outcome?;
    } else {
        local.leave(outer);
    }
    *returned = result;
    Ok(())
}

/// What calls do at their end that went wrong, or that ran on a large stack. (As a branch of its own it keeps results out of memory.)
///
/// # Errors
/// As [`enter`].
///
/// # Safety
/// `cx` is the context of an entry into `window` that just ended on `stack`.
#[cold]
unsafe fn end(stack: *const NativeStack, window: &Inner, cx: *mut Context, code: u32) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    unsafe {
        let outcome = if code == stop::NONE { Ok(()) } else { Err(ended(window, cx, code)) };
        (*stack).discard_large();
        outcome
    }
}

/// How many entries a call inside the invocation `outer` is nested in.
///
/// # Errors
/// [`Error::Nesting`], and [`Error::Fault`] if an outer call has met its time limit.
fn nesting_in(window: &Inner, outer: *mut Context) -> Result<u32, Error> {
    // SAFETY: the context of an invocation that is still running further up this thread's stack.
    let outer = unsafe { &*outer };
    if outer.nesting + 1 >= NESTING_LIMIT {
        return Err(Error::Nesting);
    }
    outer_in_time(window, outer)?;
    Ok(outer.nesting + 1)
}

/// Refuses a call from a host function of a call that has met its limit.
#[cold]
fn outer_in_time(window: &Inner, outer: &Context) -> Result<(), Error> {
    match outer.clock.pending() {
        None => Ok(()),
        Some(overrun) => Err(Error::Fault(Box::new(Fault::not_begun(window, Overrun { outer: true, ..overrun })))),
    }
}

/// Calls text address `target` in the window of the invocation `cx`, from a host function which that invocation called; it runs below
/// the handler's frames on the same native stack.
///
/// # Errors
/// As [`enter`].
///
/// # Safety
/// `cx` is the running invocation of this thread and a host function of it is running; `target` is as for [`enter`].
pub unsafe fn enter_again(window: &Inner, cx: *mut Context, target: u64, ints: &[u64; 6]) -> Result<Returned, Error> {
    // SAFETY: the caller's promise: the context is valid and only this thread uses it.
    unsafe {
        let saved = (*cx).frame;
        let flags = (*cx).flags;
        // One word for the target, then the return address at 8 modulo 16, as at any entry.
        let rsp = saved.gate_rsp.wrapping_sub(8) & !15;
        if rsp < (*cx).gate_limit || (*cx).nesting + 1 >= NESTING_LIMIT {
            return Err(Error::Nesting);
        }
        *(rsp as *mut u64) = target;
        (*cx).nesting += 1;
        // What this entry leaves is what the outer one goes on with. Text that is not metered starts with no value of the outer entry.
        let metered = window.flags & flag::METERED != 0;
        (*cx).frame.fuel = if metered { fuel::sound(saved.fuel) } else { 0 };
        (*cx).frame.previous = ptr::from_ref(&saved) as u64;
        (*cx).flags = (*cx).standing;
        let returned = match run(cx, rsp, ints, None) {
            (returned, stop::NONE) => Ok(returned),
            (_, code) => Err(ended(window, cx, code)),
        };
        (*cx).nesting -= 1;
        let left = if metered { fuel::sound((*cx).frame.fuel) } else { saved.fuel };
        (*cx).frame = Frame { fuel: left, ..saved };
        (*cx).flags = flags;
        returned
    }
}

/// Runs the assembly; gives what it returned and the stop code. Where the text is metered, the frame has the fuel.
///
/// # Safety
/// As for [`enter`]: `cx` is filled in, with the flags of this entry, the word at `rsp` is the address to call, and below `rsp` the native
/// stack is free.
#[inline(always)]
unsafe fn run(cx: *mut Context, rsp: u64, ints: &[u64; 6], floats: Option<&[f64; 8]>) -> (Returned, u32) {
    // SAFETY: the caller's promise; the assembly keeps every register that the C calling convention keeps.
    unsafe {
        if let Some(floats) = floats {
            (*cx).frame.float_args = *floats;
            (*cx).flags |= flag::FLOAT_ARGS;
        }
        let returned = if (*cx).flags & flag::SYSTEM_CALLS != 0 {
            run_with_system_calls(cx, rsp, ints)
        } else {
            call(cx as u64 & !0xffff_ffff, rsp, ints)
        };
        (returned, (*cx).frame.stop)
    }
}

/// Calls `cordon_loader_enter`, which keeps rbx, rbp and rsp only: the compiler keeps the others where it needs them.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn call(high_half: u64, native_rsp: u64, ints: &[u64; 6]) -> Returned {
    let (int, float): (u64, f64);
    // SAFETY: the caller's promise; every register that the callee changes is named.
    unsafe {
        asm!(
            "call {enter}",
            enter = sym cordon_loader_enter,
            inout("rdi") high_half => _,
            inout("rsi") native_rsp => _,
            inout("rdx") ints.as_ptr() => _,
            lateout("rax") int,
            lateout("xmm0") float,
            out("r12") _,
            out("r13") _,
            out("r14") _,
            out("r15") _,
            clobber_abi("sysv64"),
        );
    }
    Returned { int, float }
}

/// The way in where user mode may not write the segment base itself (before Linux 5.9).
///
/// # Safety
/// As for [`run`].
#[cold]
unsafe fn run_with_system_calls(cx: *mut Context, rsp: u64, ints: &[u64; 6]) -> Returned {
    // SAFETY: the caller's promise; the segment base found is restored, unless it is nobody's (as in the assembly).
    unsafe {
        let host = thread::segment_base();
        thread::set_segment_base((*cx).base);
        let returned = call(cx as u64 & !0xffff_ffff, rsp, ints);
        if (*cx).flags & flag::KEEP_GS != 0 && (host == 0 || host == (*cx).left_gs) {
            (*cx).left_gs = (*cx).base;
        } else {
            thread::set_segment_base(host);
        }
        returned
    }
}

/// Why the entry that `cx` describes ended.
///
/// # Safety
/// `cx` is this thread's context of an entry into `window` that just ended.
#[cold]
unsafe fn ended(window: &Inner, cx: *mut Context, code: u32) -> Error {
    // SAFETY: the caller's promise; the invocation is that of the stack which the context belongs to.
    let (cx, outcome) = unsafe { (&mut *cx, (*((*cx).invocation as *mut Invocation)).outcome.take()) };
    match code {
        stop::IMPORT => outcome.unwrap_or(Error::Internal("a host function ended the call without a reason")),
        _ => Error::Fault(Box::new(Fault::of(window, cx, code))),
    }
}
