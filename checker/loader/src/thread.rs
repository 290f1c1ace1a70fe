//! What each thread has: native stacks, an alternate signal stack, and the running invocation.

use crate::context::{Context, HOME, flag};
use crate::error::Error;
use crate::pages::{Access, PAGE, Pages};
use crate::time::Timer;
use cordon_checker::layout::DEPTH_LIMIT;
use std::arch::asm;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

/// Unmapped bytes below a native stack: more than any accepted frame can step over (design-review A6).
const GUARD: u64 = DEPTH_LIMIT as u64 + (64 << 10);
/// Bytes at the guard's upper end that signal handlers of the host are given to run on where the handler has left them too little. The rest of
/// the guard is one still.
pub const LENT: u64 = 60 << 10;
const _: () = assert!(GUARD - LENT >= DEPTH_LIMIT as u64 + 8 && LENT.is_multiple_of(PAGE));
/// Bytes of native stack that must be left when a host function is called; its callbacks run there.
const GATE_RESERVE: u64 = 4 << 10;
/// Size of the alternate signal stack, bytes; the frame of a CPU with AMX takes 11 KiB.
const SIGNAL_STACK: u64 = 64 << 10;
/// A native stack above this size gives its pages back after each call: a handler may have touched all of them, and they would stay with
/// the thread when the window is gone.
const KEPT_SIZE: u64 = 8 << 20;
/// Idle native stacks that a thread keeps.
const IDLE_LIMIT: usize = 4;

const _: () = assert!(size_of::<Context>() <= PAGE as usize);

/// A native stack with the context above it.
#[derive(Debug)]
pub struct NativeStack {
    pages: Pages,
    size: u64,
    /// Of the call that runs on it. Contexts point to it: it is reached through them alone.
    invocation: UnsafeCell<Invocation>,
}

/// What the host functions of one outermost call leave for its end.
#[derive(Debug, Default)]
pub struct Invocation {
    /// Why the call ends when the running host function returns; `None` between calls.
    pub outcome: Option<Error>,
}

impl NativeStack {
    fn new(size: u64) -> Result<NativeStack, Error> {
        let top = HOME.checked_sub(size + GUARD).ok_or(Error::Host("its stack does not fit below the entry stack pointer"))?;
        let pages = Pages::reserve_random(GUARD + size + 2 * PAGE, 1 << 32, top, Access::None)?;
        pages.map_zero(pages.start() + GUARD, size + PAGE, Access::ReadWrite)?;
        Ok(NativeStack { pages, size, invocation: UnsafeCell::default() })
    }

    /// The context; zero until an entry fills it in.
    pub fn context(&self) -> *mut Context {
        (self.pages.start() + GUARD + self.size) as *mut Context
    }

    /// What the context's `invocation` points to.
    pub fn invocation(&self) -> *mut Invocation {
        self.invocation.get()
    }

    /// First address of the guard.
    pub fn guard(&self) -> u64 {
        self.pages.start()
    }

    /// First mapped address.
    pub fn start(&self) -> u64 {
        self.pages.start() + GUARD
    }

    /// Gives the pages of a large stack back. The context is above and stays as it is.
    pub fn discard_large(&self) {
        if self.size > KEPT_SIZE {
            // Failing, they only stay in memory.
            let _ = self.pages.discard(self.start(), self.size);
        }
    }

    /// Host imports are refused when rsp is below this address.
    pub fn gate_limit(&self) -> u64 {
        self.start() + GATE_RESERVE.min(self.size / 8)
    }
}

/// Per-thread state. Only `current` and `timer` are read by the signal handlers.
#[derive(Debug)]
pub struct Local {
    /// Innermost running invocation of this thread, or null.
    pub current: Cell<*mut Context>,
    pub timer: Timer,
    /// The native stack of the last outermost invocation, owned, or null. It runs on it while `current` is not null.
    last: Cell<*mut NativeStack>,
    ready: Cell<bool>,
    /// First address of the alternate signal stack, 0 if there is none.
    signal_stack: Cell<u64>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            current: Cell::new(ptr::null_mut()),
            timer: Timer::new(),
            last: Cell::new(ptr::null_mut()),
            ready: Cell::new(false),
            signal_stack: Cell::new(0),
        }
    };
    static OWNED: RefCell<Owned> = const { RefCell::new(Owned { idle: Vec::new(), signal_stack: None }) };
}

/// What runs while a call picks its native stack: nothing that a signal could end, but what a signal handler of the host calls meanwhile takes
/// another stack.
struct Picking(UnsafeCell<Context>);

// SAFETY: nobody writes it but ticks its clock, of which every word is atomic.
unsafe impl Sync for Picking {}

// SAFETY: all bytes zero are a context: numbers and atomics. It has no text, no limit and no outer one.
static PICKING: Picking = Picking(UnsafeCell::new(unsafe { std::mem::zeroed() }));

/// What is unmapped when the thread ends.
struct Owned {
    #[expect(clippy::vec_box, reason = "boxes move to and from `Local::last` as they are")]
    idle: Vec<Box<NativeStack>>,
    signal_stack: Option<Pages>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        LOCAL.with(|local| local.timer.delete());
        // If a host function ends the process, the call around it still has its native stack.
        drop(LOCAL.with(|local| if local.current.get().is_null() { local.take_last() } else { None }));
        let Some(pages) = &self.signal_stack else { return };
        // SAFETY: a zeroed stack_t is valid; the calls read and write only it. Our stack is taken out of use before it is unmapped.
        unsafe {
            let mut stack: libc::stack_t = std::mem::zeroed();
            if libc::sigaltstack(ptr::null(), &raw mut stack) == 0 && stack.ss_sp as u64 == pages.start() + PAGE {
                stack.ss_flags = libc::SS_DISABLE;
                libc::sigaltstack(&raw const stack, ptr::null_mut());
            }
        }
        LOCAL.with(|local| {
            local.ready.set(false);
            local.signal_stack.set(0);
        });
    }
}

/// The innermost running invocation of this thread, or null. Safe in a signal handler: the variable needs no initialisation.
pub fn current() -> *mut Context {
    LOCAL.with(|local| local.current.get())
}

/// Gives `f` this thread's timer and innermost running invocation (or null). Safe in a signal handler, as [`current`].
pub fn with_timer(f: impl FnOnce(&Timer, *mut Context)) {
    LOCAL.with(|local| f(&local.timer, local.current.get()));
}

/// This thread's state, set up on first use.
///
/// # Errors
/// [`Error::Memory`] if the alternate signal stack cannot be made.
#[inline]
pub fn local() -> Result<&'static Local, Error> {
    // SAFETY: the variable has no destructor and lives as long as the thread; `Local` is neither `Send` nor `Sync`, so the reference
    // stays on this thread.
    let local = LOCAL.with(|local| unsafe { &*ptr::from_ref(local) });
    if !local.ready.get() {
        set_up(local)?;
    }
    Ok(local)
}

/// Without signals meanwhile: the handler of one could call a window, and would set up everything as well.
#[cold]
fn set_up(local: &Local) -> Result<(), Error> {
    // SAFETY: the sets are valid for both calls; the mask that is found comes back.
    unsafe {
        let (mut all, mut found): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut found);
        let done = if local.ready.get() { Ok(()) } else { set_up_quietly(local) };
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const found, ptr::null_mut());
        if done.is_ok() {
            unblock(&crate::signal::SIGNALS);
        }
        done
    }
}

fn set_up_quietly(local: &Local) -> Result<(), Error> {
    crate::signal::install();
    clear_segment_selector();
    crate::time::install();
    // A destructor of a thread variable may call a window when ours is gone already; nothing could then own what is set up here.
    if OWNED.try_with(|_| ()).is_err() {
        return Err(Error::Internal("a window was entered while its thread ends"));
    }
    let pages = Pages::reserve_random(SIGNAL_STACK + PAGE, PAGE, 0, Access::None)?;
    let start = pages.start() + PAGE;
    pages.map_zero(start, SIGNAL_STACK, Access::ReadWrite)?;
    let stack = libc::stack_t { ss_sp: start as *mut libc::c_void, ss_flags: 0, ss_size: SIGNAL_STACK as usize };
    // SAFETY: the stack is mapped and owned until the thread ends.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } != 0 {
        return Err(Error::Memory { what: "set the alternate signal stack", error: io::Error::last_os_error() });
    }
    OWNED.with(|owned| owned.borrow_mut().signal_stack = Some(pages));
    local.signal_stack.set(start);
    local.ready.set(true);
    Ok(())
}

/// Without FSGSBASE a context switch restores the base from a selector that is not 0, so there must be none (design-review C1).
fn clear_segment_selector() {
    let selector: u16;
    // SAFETY: reads the selector; loading 0 changes it only where the host had one.
    unsafe {
        asm!("mov {0:x}, gs", out(reg) selector, options(nomem, nostack, preserves_flags));
        if selector != 0 {
            asm!("mov gs, {0:x}", in(reg) 0_u16, options(nomem, nostack, preserves_flags));
        }
    }
}

/// Whether this thread has a shadow stack (SDM volume 1, 17.2): without, `rdsspq` changes nothing. Threads have one from their start or
/// never.
pub fn has_shadow_stack() -> bool {
    let pointer: u64;
    // SAFETY: reads the shadow stack pointer, or does nothing.
    unsafe { asm!("xor {0:e}, {0:e}", "rdsspq {0}", out(reg) pointer, options(nomem, nostack)) };
    pointer != 0
}

/// Unblocks `signals` for this thread: a blocked SIGSEGV would kill the process at a handler's fault, and there would be no time limit
/// (design-review B11).
pub fn unblock(signals: &[libc::c_int]) {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
    }
}

impl Local {
    /// Whether stack address `at` lies on the alternate signal stack. The kernel starts each signal at that stack's top unless rsp is on it,
    /// and a handler's rsp is not: its fault would overwrite the frames that are there.
    #[inline]
    pub fn is_on_signal_stack(&self, at: u64) -> bool {
        at.wrapping_sub(self.signal_stack.get()) < SIGNAL_STACK
    }

    /// Says which invocation runs, when its context is filled in: its limits hold for what a signal handler of the host calls from now on.
    #[inline]
    pub fn arrive(&self, innermost: *mut Context) {
        compiler_fence(Ordering::SeqCst);
        self.current.set(innermost);
        compiler_fence(Ordering::SeqCst);
    }

    /// As [`Local::arrive`], after everything that concerns the context of the invocation that ends.
    #[inline]
    pub fn leave(&self, outer: *mut Context) {
        compiler_fence(Ordering::SeqCst);
        self.current.set(outer);
    }

    fn take_last(&self) -> Option<Box<NativeStack>> {
        let last = self.last.replace(ptr::null_mut());
        // SAFETY: not null means a box that `give_back` left here, taken out exactly once.
        (!last.is_null()).then(|| unsafe { Box::from_raw(last) })
    }

    /// The native stack of `size` bytes for an outermost invocation. It stays the thread's: whoever runs on it says so in `current`, and from
    /// here until then something else is said there: a call that came in between could give the stack away.
    ///
    /// # Errors
    /// [`Error::Memory`] if a new one cannot be mapped.
    #[inline]
    pub fn stack(&self, size: u64) -> Result<*const NativeStack, Error> {
        self.arrive(PICKING.0.get());
        let last = self.last.get();
        // SAFETY: not null means a box that lives until it is taken out.
        match unsafe { last.as_ref() } {
            Some(stack) if stack.size == size => Ok(last),
            _ => self.change_stack(size),
        }
    }

    #[cold]
    fn change_stack(&self, size: u64) -> Result<*const NativeStack, Error> {
        match self.take_other(size, self.take_last()) {
            Ok(stack) => {
                self.last.set(Box::into_raw(stack));
                Ok(self.last.get())
            }
            Err(error) => {
                self.leave(ptr::null_mut());
                Err(error)
            }
        }
    }

    /// A native stack of `size` bytes that no running invocation uses, for a nested one.
    ///
    /// # Errors
    /// [`Error::Memory`] if a new one cannot be mapped.
    pub fn take_stack(&self, size: u64) -> Result<Box<NativeStack>, Error> {
        self.take_other(size, None)
    }

    fn take_other(&self, size: u64, unfit: Option<Box<NativeStack>>) -> Result<Box<NativeStack>, Error> {
        // The thread that was interrupted may be right here, or may be ending: then a stack is mapped for this call only.
        let found = OWNED.try_with(|owned| {
            let idle = &mut owned.try_borrow_mut().ok()?.idle;
            idle.extend(unfit);
            let found = idle.iter().rposition(|stack| stack.size == size).map(|at| idle.remove(at));
            let surplus = idle.len().saturating_sub(IDLE_LIMIT);
            idle.drain(..surplus);
            found
        });
        match found {
            Ok(Some(stack)) => Ok(stack),
            _ => Ok(Box::new(NativeStack::new(size)?)),
        }
    }

    /// Keeps the stack of a nested invocation for the next one.
    pub fn give_back(&self, stack: Box<NativeStack>) {
        // A thread that is ending, or was interrupted in `take_other`, just unmaps it.
        let _ = OWNED.try_with(|owned| owned.try_borrow_mut().map(|mut owned| owned.idle.push(stack)));
    }
}

/// The flags of calls on a native stack of `size` bytes.
pub const fn stack_flags(size: u64) -> u32 {
    if size > KEPT_SIZE { flag::LARGE } else { 0 }
}

/// `ARCH_SET_GS` and `ARCH_GET_GS` of `arch_prctl(2)`.
const ARCH_SET_GS: libc::c_int = 0x1001;
const ARCH_GET_GS: libc::c_int = 0x1004;

/// The base of segment gs, by system call.
pub fn segment_base() -> u64 {
    let mut base = 0_u64;
    // SAFETY: writes only `base`; the call cannot fail for this operation.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut base) };
    base
}

/// Sets the base of segment gs, by system call.
///
/// # Safety
/// No code of this thread relies on the present base.
pub unsafe fn set_segment_base(base: u64) {
    // SAFETY: the caller's promise; a canonical user address is always taken.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
}
