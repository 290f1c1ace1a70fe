//! The time limit: loops of every shape end, calls that finish do not, and no tick of one call ends another.

use crate::builder::{Builder, DATA, HEAP, options};
use cordon_loader::{Arg, Error, Fault, FaultKind, Image, Imports, LoadOptions, Overrun, Window, time_signal};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
/// Nothing here may take longer, however busy the machine is.
const GENEROUS: Duration = Duration::from_secs(20);

/// `loop N` entries never end; `add` does at once, `count(n)` after n rounds.
const SOURCE: &str = "
    .globl empty\nempty: jmp empty
    .globl counting\ncounting: xor %eax,%eax\n1: add $1,%rax; mov %rax,%gs:K-64(%esp); jmp 1b
    .globl ping\nping: mov $8*S0,%ecx; and $MASK,%ecx; call *%gs:T(%rcx); jmp ping
    .globl bounce\nbounce: mov $8*(S0+2),%ecx; and $MASK,%ecx; jmp *%gs:T(%rcx)
    ponged: ret
    back: mov $8*(S0+1),%ecx; and $MASK,%ecx; jmp *%gs:T(%rcx)
    .globl recursion\nrecursion: call tree; jmp recursion
    tree: push %rbx; mov $30,%ebx; call branch; pop %rbx; ret
    branch: push %rbx; sub $1,%ebx; jz 1f; call branch; call branch\n1: pop %rbx; ret
    .globl hosted\nhosted: push %rbx\n1: IMPORT 0; jmp 1b
    .globl gated\ngated: push %rbx\n1: mov $0x200000,%edi; mov $0x300000,%esi; mov $0x80000,%edx; IMPORT 1; jmp 1b
    .globl rep\nrep: push %rbx\n1: mov $0x200000,%edi; mov $0x400000,%ecx; IMPORT 2; jmp 1b
    .globl add\nadd: lea (%rdi,%rsi),%rax; ret
    .globl count\ncount: xor %eax,%eax\n1: add $1,%rax; sub $1,%rdi; jnz 1b; ret
    .globl once\nonce: push %rbx; IMPORT 0; pop %rbx; ret
    .globl again\nagain: push %rbx; mov $8*(S0+3),%edi; IMPORT 3; mov $8*(S0+3),%edi; IMPORT 3; pop %rbx; ret";

const ENDLESS: [&str; 8] = ["empty", "counting", "ping", "bounce", "recursion", "hosted", "gated", "rep"];

fn builder() -> Builder {
    Builder::new(SOURCE)
        .imports(&["nothing", "memcpy", "cordon.rep_stos1", "callback"])
        .slots(&["ponged", "bounce", "back", "empty"])
}

fn imports() -> Imports {
    let imports = Imports::new().function("nothing", |_, _| 0);
    imports.function("callback", |call, [pointer, ..]| call.call_back(pointer, [0; 6]).unwrap_or(77))
}

fn window(limit: Option<Duration>) -> Window {
    let mut window = builder().window_with(&imports());
    window.set_time_limit(limit);
    window
}

/// The end of a call that met its limit, which cannot be before the limit or long after it.
fn late(window: &mut Window, entry: &str, args: &[Arg<'_>]) -> (Fault, Overrun) {
    let start = Instant::now();
    let fault = match window.call(entry, args) {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("{entry}: {other:?}"),
    };
    let elapsed = start.elapsed();
    assert_eq!(fault.kind, FaultKind::TimeLimit, "{entry}: {fault}");
    let overrun = fault.overrun.expect("says which limit");
    assert!(overrun.elapsed >= overrun.limit && elapsed >= overrun.elapsed, "{entry}: {elapsed:?} {overrun:?}");
    assert!(elapsed < GENEROUS, "{entry}: {elapsed:?}");
    (fault, overrun)
}

fn adds(window: &mut Window) {
    assert_eq!(window.call("add", &[Arg::Int(40), Arg::Int(2)]).expect("returns"), 42);
}

#[test]
fn endless_loops_of_every_shape_end_at_the_limit() {
    let mut w = window(None);
    for limit in [MS, 5 * MS, 40 * MS] {
        w.set_time_limit(Some(limit));
        for entry in ENDLESS {
            let (fault, overrun) = late(&mut w, entry, &[]);
            assert_eq!((overrun.limit, overrun.outer), (limit, false), "{entry}");
            assert!(fault.text_offset.is_some() && fault.address.is_none() && fault.access.is_none(), "{entry}: {fault:?}");
            adds(&mut w);
        }
    }
}

#[test]
fn loops_end_within_twice_the_limit() {
    let mut w = window(None);
    for limit in [MS, 5 * MS, 40 * MS] {
        w.set_time_limit(Some(limit));
        for entry in ENDLESS {
            // A busy machine may take the processor away at any time, but not every time.
            let kept = (0..100).any(|_| late(&mut w, entry, &[]).1.elapsed <= 2 * limit);
            assert!(kept, "{entry} always runs on for more than twice {limit:?}");
        }
    }
}

#[test]
fn the_report_names_the_place() {
    let mut w = window(Some(2 * MS));
    let (fault, _) = late(&mut w, "empty", &[]);
    assert_eq!(fault.function(), Some(("empty", 0)));
    assert_eq!(fault.origin().map(|o| o.object).as_deref(), Some("test.o"));
    assert!(fault.registers.is_some());
    let text = fault.to_string();
    assert!(text.starts_with("time limit exceeded (2ms, ended after ") && text.contains(") in empty+0x0"), "{text}");
    let (mut in_gate, labels) = (0, builder().build().labels);
    for _ in 0..20 {
        let (fault, _) = late(&mut w, "rep", &[]);
        let place = fault.text_offset.expect("a place, also in the gate");
        assert!((labels["rep"]..labels["add"]).contains(&place), "{place:#x}");
        assert_eq!(fault.gate.is_some(), fault.registers.is_none(), "no host values in the report");
        in_gate += usize::from(fault.gate == Some("cordon.rep_stos1"));
    }
    assert!(in_gate > 0, "nearly all the time is spent in the gate");
}

#[test]
fn a_count_that_is_huge_is_stopped_inside_the_gate() {
    // One gate call which runs for long: a heap of 1 GiB, touched for the first time.
    let source = format!(".globl f\nf: push %rbx; mov ${HEAP},%edi; mov $0x3ff00000,%ecx; IMPORT 0; pop %rbx; ret");
    let mut builder = Builder::new(&source).imports(&["cordon.rep_stos1"]);
    builder.heap_end = HEAP + 0x3ff0_0000;
    let image = Image::from_bytes(&builder.build().file, &LoadOptions { memory_limit: 2 << 30, ..options() }).expect("loads");
    let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
    w.set_time_limit(Some(MS));
    let (fault, _) = late(&mut w, "f", &[]);
    assert_eq!(fault.gate, Some("cordon.rep_stos1"));
}

#[test]
fn calls_that_finish_are_not_stopped() {
    let mut w = window(Some(GENEROUS));
    assert_eq!(w.time_limit(), Some(GENEROUS));
    let start = Instant::now();
    while start.elapsed() < 100 * MS {
        assert_eq!(w.call("count", &[Arg::Int(1_000_000)]).expect("returns"), 1_000_000);
        adds(&mut w);
    }
}

#[test]
fn without_limit_a_call_runs_to_its_end() {
    let mut w = window(Some(MS));
    late(&mut w, "empty", &[]);
    w.set_time_limit(None);
    assert_eq!(w.time_limit(), None);
    // Ticks for the call before go on meanwhile.
    assert_eq!(w.call("count", &[Arg::Int(60_000_000)]).expect("returns"), 60_000_000);
}

#[test]
fn the_limit_comes_from_the_options_and_holds_for_the_initialisation() {
    let default = builder().window_with(&imports());
    assert_eq!(default.time_limit(), Some(cordon_loader::DEFAULT_TIME_LIMIT));
    let built = Builder::new(".globl cordon__init\ncordon__init: jmp cordon__init").build();
    let image = Image::from_bytes(&built.file, &LoadOptions { time_limit: Some(3 * MS), ..options() }).expect("loads");
    match Window::new(&image, &Imports::new()) {
        Err(Error::Fault(fault)) => assert_eq!((fault.kind, fault.overrun.expect("limit").limit), (FaultKind::TimeLimit, 3 * MS)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_of_any_size_are_taken() {
    let mut w = window(Some(Duration::MAX));
    adds(&mut w);
    w.set_time_limit(Some(Duration::ZERO));
    late(&mut w, "empty", &[]);
}

#[test]
fn a_host_function_that_sleeps_past_the_limit_ends_the_call_when_it_returns() {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let imports = Imports::new().function("nothing", |_, _| {
        std::thread::sleep(60 * MS);
        DONE.fetch_add(1, Ordering::Relaxed);
        0
    });
    let mut w = builder().window_with(&imports.missing_as_trap());
    w.set_time_limit(Some(5 * MS));
    for round in 1..4 {
        let (fault, overrun) = late(&mut w, "once", &[]);
        assert_eq!(DONE.load(Ordering::Relaxed), round, "it ran to its end");
        assert_eq!((fault.import(), fault.registers), (Some("nothing"), None));
        assert_eq!(fault.function().map(|(name, _)| name), Some("once"));
        assert!(overrun.limit == 5 * MS && !overrun.outer);
        adds(&mut w);
    }
}

#[test]
fn a_callback_that_loops_ends_the_whole_call() {
    static LAST: Mutex<Option<u64>> = Mutex::new(None);
    let imports = Imports::new().function("nothing", |_, _| 0).function("callback", |call, [pointer, ..]| {
        let result = call.call_back(pointer, [0; 6]);
        assert!(matches!(&result, Err(Error::Import { .. })), "{result:?}");
        // The next one is refused at once.
        assert!(call.call_back(pointer, [0; 6]).is_err());
        *LAST.lock().expect("lock") = Some(1);
        7
    });
    let mut w = builder().window_with(&imports);
    w.set_time_limit(Some(5 * MS));
    for _ in 0..5 {
        let (fault, overrun) = late(&mut w, "again", &[]);
        assert_eq!(fault.function(), Some(("empty", 0)), "where it looped");
        assert!(!overrun.outer);
        assert_eq!(LAST.lock().expect("lock").take(), Some(1));
        adds(&mut w);
    }
}

/// Calls `inner` from a host function of a call with limit `outer`; gives the inner call's errors and how the outer call ended.
fn nested(
    outer: Option<Duration>,
    inner: Option<Duration>,
    entry: &'static str,
    times: usize,
) -> (Vec<Fault>, Result<u64, Error>) {
    let faults = std::sync::Arc::new(Mutex::new(Vec::new()));
    let (kept, inside) = (std::sync::Arc::clone(&faults), Mutex::new(window(inner)));
    let imports = imports().function("nothing", move |_, _| {
        let mut inside = inside.lock().expect("lock");
        for _ in 0..times {
            match inside.call(entry, &[]) {
                Err(Error::Fault(fault)) => kept.lock().expect("lock").push(*fault),
                other => panic!("{other:?}"),
            }
        }
        5
    });
    let mut w = builder().window_with(&imports);
    w.set_time_limit(outer);
    let ended = w.call("once", &[]);
    let result = std::mem::take(&mut *faults.lock().expect("lock"));
    w.set_time_limit(Some(GENEROUS));
    adds(&mut w);
    (result, ended)
}

#[test]
fn an_inner_limit_ends_the_inner_call_only() {
    for outer in [None, Some(GENEROUS)] {
        let (faults, ended) = nested(outer, Some(2 * MS), "empty", 3);
        assert_eq!(ended.expect("the outer call goes on"), 5);
        assert_eq!(faults.len(), 3);
        for fault in faults {
            let overrun = fault.overrun.expect("limit");
            assert_eq!((overrun.limit, overrun.outer), (2 * MS, false));
        }
    }
}

#[test]
fn an_outer_limit_ends_inner_calls_and_the_outer_one() {
    for inner in [None, Some(GENEROUS)] {
        let (faults, ended) = nested(Some(5 * MS), inner, "empty", 3);
        assert_eq!(faults.len(), 3);
        for fault in &faults {
            let overrun = fault.overrun.expect("limit");
            assert_eq!((fault.kind, overrun.limit, overrun.outer), (FaultKind::TimeLimit, 5 * MS, true), "{fault}");
        }
        assert!(faults[0].text_offset.is_some() && faults[1].text_offset.is_none(), "the others are not begun");
        let Err(Error::Fault(fault)) = ended else { panic!("{ended:?}") };
        assert_eq!((fault.kind, fault.import()), (FaultKind::TimeLimit, Some("nothing")));
        assert!(!fault.overrun.expect("limit").outer);
    }
}

#[test]
fn threads_in_parallel_have_limits_each() {
    let image = builder().image();
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let image = &image;
            scope.spawn(move || {
                let mut w = Window::new(image, &imports()).expect("makes a window");
                for round in 0..6 {
                    let limit = MS * (1 + (thread + round) % 5);
                    w.set_time_limit(Some(limit));
                    let (_, overrun) = late(&mut w, ENDLESS[(thread + round) as usize % ENDLESS.len()], &[]);
                    assert_eq!(overrun.limit, limit);
                    w.set_time_limit(None);
                    adds(&mut w);
                }
            });
        }
    });
}

/// Aborted calls in a row, 20,000 of them or as many as `CORDON_TEST_LATE_CALLS` says, with calls that finish in between.
#[test]
fn thousands_of_calls_end_at_their_limits_and_none_by_a_stale_tick() {
    const THREADS: usize = 2;
    let asked = std::env::var("CORDON_TEST_LATE_CALLS").ok().and_then(|n| n.parse().ok());
    let total: usize = asked.unwrap_or(20_000);
    let image = builder().image();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let image = &image;
            scope.spawn(move || {
                let mut w = Window::new(image, &imports()).expect("makes a window");
                for round in 0..total.div_ceil(THREADS) as u64 {
                    // The shortest limit for the calls that loop, a generous one for those that do not.
                    w.set_time_limit(Some(Duration::from_micros(1)));
                    let entry = ENDLESS[(round as usize + thread) % ENDLESS.len()];
                    match w.call(entry, &[]) {
                        Err(Error::Fault(fault)) => assert_eq!(fault.kind, FaultKind::TimeLimit),
                        other => panic!("{entry}: {other:?}"),
                    }
                    w.set_time_limit(Some(GENEROUS));
                    for n in 0..4 {
                        let sum = w.call("add", &[Arg::Int(round), Arg::Int(n)]).expect("is not ended by a late tick");
                        assert_eq!(sum, round + n);
                    }
                    if round % 64 == 0 {
                        assert_eq!(w.call("count", &[Arg::Int(100_000)]).expect("returns"), 100_000);
                    }
                }
            });
        }
    });
}

/// Ticks interrupt handlers, gates and host functions everywhere; results stay right.
#[test]
fn ticks_change_nothing_in_calls_that_go_on() {
    let source = format!(
        ".globl f\nf: push %rbx; push %rbp; mov %edi,%ebx; xor %ebp,%ebp
         1: mov %ebx,%edi; IMPORT 0; add %rax,%rbp; movq %rbp,%xmm3; mov ${HEAP},%edi; mov ${DATA},%esi; mov $64,%edx; IMPORT 1
         movq %rbp,%xmm3; movq %xmm3,%rbp; sub $1,%ebx; jnz 1b; mov %rbp,%rax; pop %rbp; pop %rbx; ret"
    );
    let imports = Imports::new().function("twice", |_, [n, ..]| 2 * n);
    let mut w = Builder::new(&source).imports(&["twice", "memcpy"]).window_with(&imports);
    // The endless call keeps the period short, a limit of its own does not end the other one.
    let mut short = window(Some(Duration::from_micros(1)));
    let start = Instant::now();
    while start.elapsed() < 300 * MS {
        late(&mut short, "empty", &[]);
        w.set_time_limit(Some(GENEROUS));
        assert_eq!(w.call("f", &[Arg::Int(20_000)]).expect("returns"), 20_000 * 20_001);
    }
}

/// After a fork the child has a limit again, for the call in which the fork happened and for later ones.
#[test]
fn a_forked_child_has_a_time_limit() {
    crate::in_child("time::a_forked_child_has_a_time_limit", || {
        let imports = Imports::new().function("nothing", |_, _| {
            // SAFETY: this process has no other thread that matters to the child.
            u64::from(unsafe { libc::fork() } == 0)
        });
        let source = ".globl f\nf: push %rbx; IMPORT 0; test %eax,%eax; jz 2f\n1: jmp 1b\n2: pop %rbx; ret\n.globl empty\nempty: jmp empty";
        let mut w = Builder::new(source).imports(&["nothing"]).window_with(&imports);
        w.set_time_limit(Some(5 * MS));
        late(&mut w, "empty", &[]);
        match w.call("f", &[]) {
            // The parent: a child that never ends is found by the time it takes.
            Ok(_) => {
                let (start, mut status) = (Instant::now(), 0);
                // SAFETY: waits for the only child.
                while unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } == 0 {
                    assert!(start.elapsed() < GENEROUS, "the child does not end");
                    std::thread::sleep(MS);
                }
                assert_eq!(status, 0);
            }
            Err(Error::Fault(fault)) if fault.kind == FaultKind::TimeLimit => {
                late(&mut w, "empty", &[]);
                // SAFETY: ends the child without running the test harness's end.
                unsafe { libc::_exit(0) };
            }
            other => panic!("{other:?}"),
        }
    });
}

/// The timer stops by itself when there are no more calls, and starts again.
#[test]
fn an_idle_thread_gets_no_ticks() {
    let mut w = window(Some(MS));
    late(&mut w, "empty", &[]);
    let start = Instant::now();
    // A sleep that no signal interrupts shows that the timer has stopped.
    let quiet = || {
        let time = libc::timespec { tv_sec: 0, tv_nsec: 30_000_000 };
        // SAFETY: reads `time` only.
        unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) == 0 }
    };
    while !quiet() {
        assert!(start.elapsed() < GENEROUS, "the timer does not stop");
    }
    late(&mut w, "empty", &[]);
}

static OTHERS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    OTHERS.fetch_add(1, Ordering::Relaxed);
}

/// A signal of a host that uses every real-time signal goes to the host; ours does not.
#[test]
fn signals_of_others_go_to_the_previous_action() {
    crate::in_child("time::signals_of_others_go_to_the_previous_action", || {
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            // SAFETY: the action only counts.
            unsafe { libc::signal(signal, count as *const () as libc::sighandler_t) };
        }
        let mut w = window(Some(2 * MS));
        late(&mut w, "empty", &[]);
        assert_eq!(OTHERS.load(Ordering::Relaxed), 0);
        // SAFETY: raises a signal for which there is an action.
        unsafe { libc::raise(time_signal()) };
        assert_eq!(OTHERS.load(Ordering::Relaxed), 1);
        late(&mut w, "empty", &[]);
    });
}

/// A host that has the signal blocked before its first call, or had it blocked when the timer last stopped, still has the limit.
#[test]
fn a_blocked_signal_is_unblocked() {
    std::thread::spawn(|| {
        // SAFETY: the set is initialised before use.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        let mut w = window(Some(2 * MS));
        late(&mut w, "empty", &[]);
    })
    .join()
    .expect("ends");
}
