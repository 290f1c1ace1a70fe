//! The time limit: a periodic timer per thread whose signal ends calls that run too long. Handlers carry no instrumentation for it.
//!
//! The timer is started by the first call with a limit, not by every call, and its own signal handler stops it when it has seen no such call
//! for a while. A call that finishes in time therefore pays a few stores and one comparison, and never reads a clock: a call begins, for
//! its limit, with the first tick that finds it running. So a call is never ended before its limit, and at most two periods later.
//!
//! Invariants:
//! * The clock of a call lies in its context and is set, or set back, before the context becomes the thread's current one. A late tick, meant
//!   for a call that is over, finds either no call or one that has just begun.
//! * A tick ends the innermost call if it interrupted checked text or a built-in gate, where any instruction is a safe place to stop. Anywhere
//!   else it only sets [`Clock::pending`], which is looked at when a host function returns. That may just have happened; then the next
//!   tick finds the call again, for the timer is periodic.
//! * A pause between two ticks counts as [`MOST_PAUSE`] periods at most. A thread that runs or sleeps gets every tick, so a longer one
//!   means that it had no processor (a busy machine, a debugger, a stopped virtual machine), for which no handler is to blame.
//! * When a call that runs inside the host function of another one meets the other's limit, every call inwards of that one ends.

use crate::context::Context;
use crate::error::Error;
use crate::signal;
use crate::thread;
use std::cell::{Cell, UnsafeCell};
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::time::Duration;

/// The time limit of windows whose host says nothing. Sleep and short waits for a processor count, so it leaves room.
pub const DEFAULT: Duration = Duration::from_secs(10);

/// A limit is this many periods, within the two bounds. More would end calls sooner and cost more.
const PERIODS: u64 = 4;
/// A period is longer by this part of the limit, so that the last of them ends after the limit also when a tick comes a little early.
const SLACK: u64 = 64;
/// Shortest and longest time between two ticks, nanoseconds.
const SHORTEST: u64 = 250_000;
const LONGEST: u64 = 10_000_000;
/// Ticks after which the period is adapted to the calls since the last time, or the timer stopped.
const REVIEW: u32 = 16;
/// Periods that count between one tick and the next.
const MOST_PAUSE: u64 = 2;
/// Period of a timer that does not run.
const STOPPED: u64 = u64::MAX;
/// Kernel identifier of a timer that does not exist.
const NO_TIMER: i32 = -1;

/// A time limit in nanoseconds, 0 for none, with the timer period that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub nanos: u64,
    pub period: u64,
}

impl Limit {
    /// A limit of zero becomes one nanosecond, one of more than 584 years that much.
    pub fn new(limit: Option<Duration>) -> Limit {
        let nanos = limit.map_or(0, |limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1));
        Limit { nanos, period: period(nanos) }
    }

    /// The limit as a duration.
    pub fn duration(self) -> Option<Duration> {
        (self.nanos != 0).then(|| Duration::from_nanos(self.nanos))
    }
}

fn period(nanos: u64) -> u64 {
    if nanos == 0 { STOPPED } else { (nanos / PERIODS + nanos / SLACK).clamp(SHORTEST, LONGEST) }
}

/// Which limit a call met, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun {
    /// The limit that was met.
    pub limit: Duration,
    /// Time since the timer first saw the call that has this limit, without long pauses in which the thread had no processor.
    pub elapsed: Duration,
    /// The limit is that of an outer call, in whose host function this call ran.
    pub outer: bool,
}

/// The time of one call of a window; part of its [`Context`]. All words are zero in a new context. The signal handler writes
/// all but `limit`.
#[derive(Debug)]
#[repr(C)]
pub struct Clock {
    /// Nanoseconds, 0 for none.
    limit: AtomicU64,
    /// [`Clock::SEEN`], [`Clock::PENDING`], [`Clock::FAILED`].
    marks: AtomicU32,
    /// Nanoseconds that count since a tick has first found the call.
    spent: AtomicU64,
    /// See [`Overrun`]; set with [`Clock::PENDING`].
    late_outer: AtomicU32,
    late_limit: AtomicU64,
    late_elapsed: AtomicU64,
}

impl Clock {
    /// A tick has found the call.
    const SEEN: u32 = 1;
    /// The call is to end when its running host function returns.
    pub const PENDING: u32 = 2;
    /// A plain host function has left a reason for the call to end.
    pub const FAILED: u32 = 4;
    /// Where in a clock the marks are, for the gate.
    pub const MARKS: usize = offset_of!(Clock, marks);

    /// Sets the limit of later calls. The context must not be the thread's current one.
    pub fn set(&self, limit: Limit) {
        self.limit.store(limit.nanos, Ordering::Relaxed);
    }

    /// A call begins. The context must not be the thread's current one yet.
    #[inline]
    pub fn begin(&self) {
        self.marks.store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// The limit that the call has met, if it is to end.
    #[inline]
    pub fn pending(&self) -> Option<Overrun> {
        (self.marks.load(Ordering::Relaxed) & Clock::PENDING != 0).then(|| self.overrun())
    }

    /// Makes the gate look for a reason to end the call. The signal handler may interrupt this and set other marks.
    pub fn fail(&self) {
        self.marks.fetch_or(Clock::FAILED, Ordering::Relaxed);
    }

    /// The limit that the call has met; for calls which a tick has ended.
    pub fn overrun(&self) -> Overrun {
        Overrun {
            limit: Duration::from_nanos(self.late_limit.load(Ordering::Relaxed)),
            elapsed: Duration::from_nanos(self.late_elapsed.load(Ordering::Relaxed)),
            outer: self.late_outer.load(Ordering::Relaxed) != 0,
        }
    }

    /// Counts `pause`, the time since the last tick; gives how long the call has been running if that is too long.
    fn tick(&self, pause: u64) -> Option<u64> {
        let first = self.mark(Clock::SEEN) & Clock::SEEN == 0;
        let spent = if first { 0 } else { self.spent.load(Ordering::Relaxed).saturating_add(pause) };
        self.spent.store(spent, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        (limit != 0 && spent >= limit).then_some(spent)
    }

    fn end(&self, limit: u64, elapsed: u64, outer: bool) {
        self.late_limit.store(limit, Ordering::Relaxed);
        self.late_elapsed.store(elapsed, Ordering::Relaxed);
        self.late_outer.store(outer.into(), Ordering::Relaxed);
        self.mark(Clock::PENDING);
    }

    /// Sets a mark; gives those that there were. For the signal handler, which nothing interrupts that does the same.
    fn mark(&self, mark: u32) -> u32 {
        let before = self.marks.load(Ordering::Relaxed);
        self.marks.store(before | mark, Ordering::Relaxed);
        before
    }
}

/// The running invocations of a thread, innermost first.
///
/// # Safety
/// `innermost` is null or the current context of this thread, and the iterator is used before an invocation ends.
pub unsafe fn chain(innermost: *mut Context) -> impl Iterator<Item = &'static Context> {
    // SAFETY: the caller's promise: contexts of running invocations stay mapped, and `outer` is 0 or such a context.
    let valid = |cx: *const Context| unsafe { cx.as_ref() };
    std::iter::successors(valid(innermost), move |cx| valid(cx.outer as *const Context))
}

/// Brings the clocks of all running invocations forward; gives whether the innermost one is to end.
///
/// # Safety
/// As for [`chain`].
unsafe fn advance(innermost: *mut Context, pause: u64) -> bool {
    let mut late = None;
    // SAFETY: the caller's promise.
    for cx in unsafe { chain(innermost) } {
        if let Some(elapsed) = cx.clock.tick(pause) {
            late = Some((ptr::from_ref(cx), cx.clock.limit.load(Ordering::Relaxed), elapsed));
        }
    }
    let Some((outermost, limit, elapsed)) = late else { return false };
    // SAFETY: as above.
    for cx in unsafe { chain(innermost) } {
        let own = ptr::eq(cx, outermost);
        cx.clock.end(limit, elapsed, !own);
        if own {
            break;
        }
    }
    true
}

/// The timer of one thread. Its signal interrupts only this thread, so that words written one by one are enough.
#[derive(Debug)]
pub struct Timer {
    /// The kernel's identifier, or [`NO_TIMER`].
    id: Cell<i32>,
    /// Nanoseconds between ticks, or [`STOPPED`].
    period: Cell<u64>,
    /// Shortest period that a call has wanted since the last review.
    wanted: Cell<u64>,
    /// Ticks since the last review.
    ticks: Cell<u32>,
    /// When the last tick was.
    last: Cell<u64>,
}

impl Timer {
    /// No timer.
    pub const fn new() -> Timer {
        Timer {
            id: Cell::new(NO_TIMER),
            period: Cell::new(STOPPED),
            wanted: Cell::new(STOPPED),
            ticks: Cell::new(0),
            last: Cell::new(0),
        }
    }

    /// Makes sure that the timer ticks at least once in `period`. The call which wants that must be the thread's current one already: a
    /// review that interrupts this function then sees it.
    ///
    /// # Errors
    /// [`Error::Timer`] if the kernel gives no timer.
    #[inline]
    pub fn watch(&self, period: u64) -> Result<(), Error> {
        compiler_fence(Ordering::SeqCst);
        if period < self.wanted.get() {
            self.wanted.set(period);
        }
        if period < self.period.get() { self.start(period) } else { Ok(()) }
    }

    #[cold]
    fn start(&self, period: u64) -> Result<(), Error> {
        thread::unblock(&[SIGNAL.load(Ordering::Relaxed)]);
        if self.id.get() == NO_TIMER {
            self.id.set(create().map_err(Error::Timer)?);
        }
        self.period.set(period);
        compiler_fence(Ordering::SeqCst);
        if !set(self.id.get(), period) {
            self.period.set(STOPPED);
            return Err(Error::Timer(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Notes a tick; gives the time since the last one as far as it counts.
    fn pause(&self) -> u64 {
        let now = now();
        now.saturating_sub(self.last.replace(now)).min(self.period.get().saturating_mul(MOST_PAUSE))
    }

    /// From time to time, fits the period to the calls that there were, or stops the timer if there were none.
    fn review(&self, innermost: *mut Context) {
        self.ticks.set(self.ticks.get() + 1);
        if self.ticks.get() < REVIEW {
            return;
        }
        self.ticks.set(0);
        let wanted = self.wanted.replace(STOPPED).min(shortest(innermost));
        if wanted != self.period.get() && set(self.id.get(), if wanted == STOPPED { 0 } else { wanted }) {
            self.period.set(wanted);
        }
    }

    /// Deletes the timer; the thread ends.
    pub fn delete(&self) {
        self.period.set(STOPPED);
        let id = self.id.replace(NO_TIMER);
        if id != NO_TIMER {
            // SAFETY: the timer is this thread's own.
            unsafe { libc::syscall(libc::SYS_timer_delete, id) };
        }
    }

    /// A child process has no timers. The call in which the fork happened gets a new one.
    fn forked(&self, innermost: *mut Context) {
        self.id.set(NO_TIMER);
        self.period.set(STOPPED);
        let period = shortest(innermost);
        if period != STOPPED {
            // Nobody could be told here; the next call tries again.
            let _ = self.start(period);
        }
    }
}

/// The shortest period that a running invocation wants.
fn shortest(innermost: *mut Context) -> u64 {
    // SAFETY: callers pass this thread's current context.
    let periods = unsafe { chain(innermost) }.map(|cx| period(cx.clock.limit.load(Ordering::Relaxed)));
    periods.min().unwrap_or(STOPPED)
}

/// A timer that signals this thread. By system call: a timer of the C library may be more than its identifier.
fn create() -> io::Result<i32> {
    let mut id: libc::c_int = NO_TIMER;
    // SAFETY: a zeroed sigevent is valid; the kernel reads it and writes the identifier.
    let result = unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL.load(Ordering::Relaxed);
        event.sigev_value = libc::sigval { sival_ptr: token() };
        event.sigev_notify_thread_id = libc::syscall(libc::SYS_gettid) as libc::pid_t;
        libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id)
    };
    if result == 0 { Ok(id) } else { Err(io::Error::last_os_error()) }
}

/// Makes timer `id` tick every `period` nanoseconds from now on, never for 0; gives whether the kernel did.
fn set(id: i32, period: u64) -> bool {
    let every =
        libc::timespec { tv_sec: (period / 1_000_000_000).cast_signed(), tv_nsec: (period % 1_000_000_000).cast_signed() };
    let spec = libc::itimerspec { it_interval: every, it_value: every };
    // SAFETY: the kernel reads `spec` only.
    unsafe { libc::syscall(libc::SYS_timer_settime, id, 0, &raw const spec, ptr::null_mut::<libc::itimerspec>()) == 0 }
}

/// Nanoseconds on the monotonic clock.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time` only; the clock exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// The chosen signal, 0 before [`install`].
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The action found for it.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: written once, under `Once`, before the handler that reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));

/// What our timers' signals carry: an address that nobody else uses.
fn token() -> *mut libc::c_void {
    (&raw const SIGNAL).cast_mut().cast()
}

/// The real-time signal of the time limit, chosen when the process first asks or first calls a window: the last one that has no action.
#[must_use]
pub fn time_signal() -> libc::c_int {
    install();
    SIGNAL.load(Ordering::Relaxed)
}

/// Chooses the signal and installs its handler, once per process.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let action_of = |signal| {
            // SAFETY: a zeroed action is valid and only written.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, ptr::null(), &raw mut action);
                action
            }
        };
        let mut signals = (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev();
        let free = signals.find(|&signal| action_of(signal).sa_sigaction == libc::SIG_DFL);
        let signal = free.unwrap_or_else(|| libc::SIGRTMAX());
        SIGNAL.store(signal, Ordering::Relaxed);
        // SAFETY: the previous action is stored before ours can be reached; both functions do only what signal and fork handlers may.
        unsafe {
            (*PREVIOUS.0.get()).write(action_of(signal));
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_tick as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, ptr::null_mut());
            libc::pthread_atfork(None, None, Some(after_fork));
        }
    });
}

unsafe extern "C" fn after_fork() {
    thread::with_timer(Timer::forked);
}

unsafe extern "C" fn on_tick(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo and ucontext to an SA_SIGINFO handler; errno belongs to the interrupted code.
    unsafe {
        if (*info).si_code != libc::SI_TIMER || (*info).si_value().sival_ptr != token() {
            signal::chain_to((*PREVIOUS.0.get()).assume_init_ref(), signal, info, context);
            return;
        }
        let errno = *libc::__errno_location();
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        thread::with_timer(|timer, innermost| {
            if advance(innermost, timer.pause()) {
                signal::end_late(innermost, signal, &*info, machine);
            }
            timer.review(innermost);
        });
        *libc::__errno_location() = errno;
    }
}
