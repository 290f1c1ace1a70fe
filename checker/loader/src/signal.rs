//! The signal handler that turns faults of handlers into the end of a call.

use crate::context::{Context, RawFault, stop};
use crate::enter;
use crate::gates;
use crate::thread::{self, LENT};
use crate::time;
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::Ordering;

/// Signals that a fault of a handler can raise.
pub const SIGNALS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// Flags after an abort: the reserved bit and IF.
const CLEAN_FLAGS: i64 = 0x202;

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

/// Lets writes that the kernel answers with a signal fail only (`EPIPE`, `EFBIG` for a file above `RLIMIT_FSIZE`), for hosts that write what
/// handlers give them: by default SIGPIPE and SIGXFSZ end the process. Actions that the host has set stay. Ours do nothing; unlike an ignored
/// signal they are not inherited by programs that the host starts.
pub fn survive_failing_writes() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
            // SAFETY: zeroed actions are valid, and a function that does nothing may interrupt anything.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, ptr::null(), &raw mut action) != 0 || action.sa_sigaction != libc::SIG_DFL {
                    continue;
                }
                action.sa_sigaction = nothing as *const () as usize;
                action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
}

unsafe extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo and ucontext to an SA_SIGINFO handler.
    unsafe {
        let context_of = context.cast::<libc::ucontext_t>();
        let (machine, mask) = (&mut (*context_of).uc_mcontext, &raw mut (*context_of).uc_sigmask);
        let taken = match (*info).si_code {
            1.. => take_fault(signal, &*info, machine) || lend_stack(signal, machine, mask),
            libc::SI_TKILL if signal == RETURNED => lender_returned(machine, mask),
            _ => false,
        };
        if !taken {
            chain(signal, info, context);
        }
    }
}

/// Comes when the signal handler that runs on a part of the guard has returned; until then it is blocked.
const RETURNED: libc::c_int = libc::SIGTRAP;
/// Exception number of a page fault, and the bit of its error code that says that the address was to be executed.
const PAGE_FAULT: u64 = 14;
const FETCH: u64 = 16;
/// Bytes below rsp that compiled code may use (psABI x86-64, 3.2.2).
const RED_ZONE: u64 = 128;

/// A signal handler of the host without `SA_ONSTACK` runs on the native stack of the handler that it interrupted, which may have left hardly
/// anything of it. If that runs off it, it is lent a part of the guard. Gives whether it was so.
///
/// # Safety
/// `mask` is the one that the interrupted code goes on with.
unsafe fn lend_stack(signal: libc::c_int, machine: &libc::mcontext_t, mask: *mut libc::sigset_t) -> bool {
    let register = |r: libc::c_int| machine.gregs[r as usize].cast_unsigned();
    let is_access = register(libc::REG_TRAPNO) == PAGE_FAULT && register(libc::REG_ERR) & FETCH == 0;
    if signal != libc::SIGSEGV || !is_access {
        return false;
    }
    let runs_off = |cx: &&Context| register(libc::REG_CR2).wrapping_sub(cx.stack_start.wrapping_sub(LENT)) < LENT;
    // SAFETY: this thread's current context; the pages belong to the native stack of the invocation, on which host code runs.
    unsafe {
        let Some(cx) = time::chain(thread::current()).find(runs_off) else { return false };
        let start = (cx.stack_start - LENT) as *mut libc::c_void;
        if libc::mprotect(start, LENT as usize, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return false;
        }
        cx.lent.store(true, Ordering::Relaxed);
        tell_return(mask);
    }
    true
}

/// Sends this thread [`RETURNED`], blocked for the interrupted code.
///
/// # Safety
/// As for [`lend_stack`].
unsafe fn tell_return(mask: *mut libc::sigset_t) {
    // SAFETY: the caller's promise; of the mask only the word of this signal is touched.
    unsafe {
        libc::sigaddset(mask, RETURNED);
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), RETURNED);
    }
}

/// A signal handler that was lent stack has returned, or one that interrupted it. Takes back what is used no more; gives whether anything was lent.
///
/// # Safety
/// As for [`lend_stack`].
unsafe fn lender_returned(machine: &libc::mcontext_t, mask: *mut libc::sigset_t) -> bool {
    let register = |r: libc::c_int| machine.gregs[r as usize].cast_unsigned();
    let (rip, rsp) = (register(libc::REG_RIP), register(libc::REG_RSP));
    let cx = thread::current();
    // SAFETY: this thread's current context.
    unsafe {
        let is_lent = || time::chain(cx).any(|cx| cx.lent.load(Ordering::Relaxed));
        if !is_lent() {
            return false;
        }
        let stays_above = |cx: &&Context| {
            let below = if may_end_at(cx, rip) || enter::is_entry_code(rip) { 0 } else { RED_ZONE };
            (cx.stack_start + below..ptr::from_ref(*cx) as u64).contains(&rsp)
        };
        if let Some(cx) = cx.as_ref().filter(stays_above) {
            take_back(cx);
        }
        // Another handler, which the one that has returned had interrupted, is still there.
        if is_lent() {
            tell_return(mask);
        }
    }
    true
}

/// Makes what was lent of this native stack, if anything was, a guard again.
///
/// # Safety
/// Nothing runs there.
pub unsafe fn take_back(cx: &Context) {
    if cx.lent.swap(false, Ordering::Relaxed) {
        let start = (cx.stack_start - LENT) as *mut libc::c_void;
        // SAFETY: the pages belong to the native stack, and hold nothing that is needed. Failing, it is only longer than it should be.
        unsafe {
            libc::madvise(start, LENT as usize, libc::MADV_DONTNEED);
            libc::mprotect(start, LENT as usize, libc::PROT_NONE);
        }
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
    // SAFETY: not null means a context that stays mapped, of a running invocation of this thread if it has text at `rip`.
    let Some(cx) = (unsafe { cx.as_ref().filter(|cx| may_end_at(cx, rip)).and(cx.as_mut()) }) else { return false };
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
    let rip = machine.gregs[libc::REG_RIP as usize].cast_unsigned();
    // SAFETY: the caller's promise, and as in `take_fault`.
    if let Some(cx) = unsafe { cx.as_ref().filter(|cx| may_end_at(cx, rip)).and(cx.as_mut()) } {
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
    cx.fault = RawFault {
        signal,
        code: info.si_code,
        trap: register(libc::REG_TRAPNO),
        error: register(libc::REG_ERR),
        address: register(libc::REG_CR2),
        rip: register(libc::REG_RIP),
        flags: register(libc::REG_EFL),
        registers: ORDER.map(register),
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
