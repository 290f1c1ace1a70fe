//! Faults of every kind end the call with a report, and the window goes on.

use crate::builder::{Builder, DATA, HEAP, HEAP_END, RODATA, TABLE_END};
use crate::handle;
use cordon_checker::layout::{USER_STACK_LOW, USER_STACK_SHIFT};
use cordon_loader::{Arg, Error, Fault, FaultAccess, FaultKind, Imports, Memory, SIGNALS, Sharing, Window};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SOURCE: &str = "
    .globl load\nload: mov %gs:(%edi),%rax; ret
    .globl store\nstore: mov %rsi,%gs:(%edi); xor %eax,%eax; ret
    .globl wide\nwide: movdqu %gs:(%edi),%xmm0; ret
    .globl aligned\naligned: movaps %gs:(%edi),%xmm0; ret
    .globl divide\ndivide: mov %rdi,%rax; xor %edx,%edx; divq %rsi; ret
    .globl trap\ntrap: ud2
    .globl call_pointer\ncall_pointer: and $MASK,%edi; call *%gs:T(%rdi); ret
    .globl jump_pointer\njump_pointer: and $MASK,%edi; jmp *%gs:T(%rdi)
    .globl recurse\nrecurse: call recurse; ret
    .globl recurse_data\nrecurse_data: sub $72,%rsp; movl $1,%gs:K(%esp); call recurse_data; add $72,%rsp; ret
    .globl frames\nframes: sub $0x1000-8,%rsp; call frames; add $0x1000-8,%rsp; ret
    .globl push\npush: push %rax; call push; pop %rax; ret
    .globl import\nimport: IMPORT 0; call import; ret
    .globl gate\ngate: mov %edi,%eax; IMPORT 1; call gate; ret
    .globl deep\ndeep: sub $24,%rsp; call load; add $24,%rsp; ret";

fn window() -> Window {
    Builder::new(SOURCE).imports(&["nothing", "cordon.fldcw"]).window_with(&Imports::new().function("nothing", |_, _| 0))
}

fn fault(window: &mut Window, entry: &str, args: [u64; 2]) -> Fault {
    match window.call(entry, &args.map(Arg::Int)) {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("{entry}: no fault: {other:?}"),
    }
}

#[test]
fn every_kind_of_fault_is_told() {
    use FaultAccess::{Read, Write};
    let mut w = window();
    let stack = USER_STACK_LOW + 8 + USER_STACK_SHIFT - 0x10_000;
    let cases = [
        ("load", 0, FaultKind::NullZone, Some(0), Some(Read)),
        ("load", 0xffff, FaultKind::NullZone, Some(0xffff), Some(Read)),
        ("store", 8, FaultKind::NullZone, Some(8), Some(Write)),
        ("store", 0x1_0000, FaultKind::Table, Some(0x1_0000), Some(Write)),
        ("store", TABLE_END - 8, FaultKind::Table, Some(TABLE_END - 8), Some(Write)),
        ("store", RODATA, FaultKind::ReadOnly, Some(RODATA), Some(Write)),
        ("load", TABLE_END, FaultKind::Unmapped, Some(TABLE_END), Some(Read)),
        ("store", HEAP_END, FaultKind::Unmapped, Some(HEAP_END), Some(Write)),
        ("load", 0x8000_0000, FaultKind::Unmapped, Some(0x8000_0000), Some(Read)),
        ("load", 0xffff_ffff, FaultKind::Unmapped, Some(0xffff_ffff), Some(Read)),
        ("wide", 0xffff_fff1, FaultKind::Unmapped, Some(0xffff_fff1), Some(Read)),
        ("store", stack - 8, FaultKind::DataStackOverflow, Some(stack - 8), Some(Write)),
        ("aligned", DATA + 1, FaultKind::Misaligned, Some(DATA + 1), Some(Read)),
    ];
    for (entry, address, kind, at, access) in cases {
        let fault = fault(&mut w, entry, [address.into(), 0]);
        assert_eq!((fault.kind, fault.window_offset, fault.access), (kind, at, access), "{entry} {address:#x}");
        assert_eq!(fault.address, Some(address.into()), "{entry} {address:#x}");
        assert_eq!(fault.function(), Some((entry, 0)), "{address:#x}");
        let registers = fault.registers.expect("registers");
        assert_eq!(registers.general[7], address.into(), "rdi");
        assert_eq!(registers.general[4], USER_STACK_LOW.into(), "only the public half of rsp");
        assert!(fault.origin().expect("has a map").object == "test.o");
    }
    assert_eq!(fault(&mut w, "divide", [1, 0]).kind, FaultKind::Divide);
    assert_eq!(fault(&mut w, "trap", [0, 0]).kind, FaultKind::Trap);
    assert_eq!(fault(&mut w, "trap", [0, 0]).function(), Some(("trap", 0)));
}

#[test]
fn faults_below_the_entry_name_the_function() {
    let mut w = window();
    let fault = fault(&mut w, "deep", [0x44, 0]);
    assert_eq!(fault.function(), Some(("load", 0)));
    let text = fault.to_string();
    assert!(text.starts_with("access through a null pointer (read) at 0x44 in load+0x0"), "{text}");
}

#[test]
fn bad_code_pointers_are_told_for_calls_and_jumps() {
    let mut w = window();
    let called = fault(&mut w, "call_pointer", [0, 0]);
    assert_eq!((called.kind, called.function().map(|(n, _)| n)), (FaultKind::BadCodePointer, Some("call_pointer")));
    let jumped = fault(&mut w, "jump_pointer", [63 * 8, 0]);
    assert_eq!((jumped.kind, jumped.address), (FaultKind::BadCodePointer, None));
}

#[test]
fn stack_overflows_are_told_and_survived() {
    let mut w = window();
    for (entry, kind) in [
        ("recurse", FaultKind::NativeStackOverflow),
        ("recurse_data", FaultKind::DataStackOverflow),
        ("frames", FaultKind::NativeStackOverflow),
        ("push", FaultKind::NativeStackOverflow),
        ("import", FaultKind::NativeStackOverflow),
        ("gate", FaultKind::NativeStackOverflow),
    ] {
        for _ in 0..3 {
            let fault = fault(&mut w, entry, [HEAP.into(), 0]);
            assert_eq!(fault.kind, kind, "{entry}");
            assert!(kind == FaultKind::DataStackOverflow || fault.address.is_none(), "{entry}");
            // The host gate refuses before its stack is used up; the others run into the guard.
            assert_eq!(fault.registers.is_none(), entry == "import" || entry == "gate", "{entry}");
            assert_eq!(fault.function().map(|(n, _)| n), Some(entry));
        }
        assert_eq!(w.call("load", &[Arg::Int(HEAP.into())]).expect("goes on"), 0);
    }
}

static HOST_SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Takes 8 KiB of the stack that it runs on.
extern "C" fn on_host_signal(_: libc::c_int) {
    let bytes = [1_u8; 8 << 10];
    HOST_SIGNALS.fetch_add(std::hint::black_box(&bytes).len() >> 13, Ordering::SeqCst);
}

/// `fill(at, n)` pushes n times 16 bytes, then says so at `at`, and waits.
const FILL: &str = ".globl fill\nfill: push %rdi; dec %esi; jz 1f; call fill; pop %rdi; ret
    1: movl $1,%gs:(%edi)\n2: jmp 2b
    .globl divide\ndivide: xor %edx,%edx; div %edx; ret
    .globl load\nload: mov %gs:0,%eax; ret";

/// How `fill` ends if a signal of the host, whose handler runs on the native stack, comes when it waits.
fn interrupted(w: &mut Window, rounds: u64) -> Fault {
    let full = Memory::new("full", 4).expect("memory");
    let at = w.share(&full, Sharing::ReadWrite).expect("shared");
    // SAFETY: this thread's own name.
    let thread = unsafe { libc::pthread_self() };
    let signaller = std::thread::spawn(move || {
        let mut word = [0; 4];
        while word == [0; 4] {
            full.read(0, &mut word).expect("readable");
            std::thread::yield_now();
        }
        // SAFETY: the thread waits for this one.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
    });
    let fault = fault(w, "fill", [at.into(), rounds]);
    signaller.join().expect("it ends");
    w.unshare(at).expect("shared");
    fault
}

/// Without `SA_ONSTACK` a signal of the host needs room on the native stack; the kernel's word for its want of room is that of the fault before.
#[test]
fn a_signal_without_room_on_the_native_stack_ends_the_call() {
    crate::in_child("faults::a_signal_without_room_on_the_native_stack_ends_the_call", || {
        let mut w = Builder::new(FILL).window();
        // SAFETY: the handler only counts.
        unsafe { handle(libc::SIGUSR1, 0, on_host_signal) };
        for earlier in ["divide", "load"] {
            fault(&mut w, earlier, [0, 0]);
            // 16 bytes a round of 64 KiB.
            let fault = interrupted(&mut w, 4095);
            assert_eq!((fault.kind, fault.address, fault.access), (FaultKind::NativeStackOverflow, None, None), "{earlier}");
        }
    });
}

/// Where there is room for the signal but not for its handler, the handler is lent more, whatever is left.
#[test]
fn handlers_that_fill_the_native_stack_do_not_end_a_host_whose_signal_handlers_run_there() {
    crate::in_child("faults::handlers_that_fill_the_native_stack_do_not_end_a_host_whose_signal_handlers_run_there", || {
        let mut w = Builder::new(FILL).window();
        w.set_time_limit(Some(Duration::from_millis(40)));
        // SAFETY: the handler only counts.
        unsafe { handle(libc::SIGUSR1, 0, on_host_signal) };
        let mut ran = 0;
        for rounds in (2900..4096).step_by(13) {
            let before = HOST_SIGNALS.load(Ordering::SeqCst);
            let kind = interrupted(&mut w, rounds).kind;
            let now = HOST_SIGNALS.load(Ordering::SeqCst) - before;
            // The handler goes on where the signal was told, and ends where it was lost.
            assert_eq!(kind, if now == 1 { FaultKind::TimeLimit } else { FaultKind::NativeStackOverflow }, "{rounds}");
            ran += usize::from(now == 1 && 16 * rounds > (64 << 10) - (8 << 10));
            // The guard is where it was, and faults are told as ever.
            assert_eq!(fault(&mut w, "fill", [HEAP.into(), 4097]).kind, FaultKind::NativeStackOverflow);
            assert_eq!(fault(&mut w, "divide", [0, 0]).kind, FaultKind::Divide);
        }
        assert!(ran > 10, "{ran}");
    });
}

#[test]
fn a_thousand_faults_in_a_row() {
    let mut w = window();
    for round in 0..1000_u64 {
        assert_eq!(fault(&mut w, "store", [round, round]).kind, FaultKind::NullZone);
        w.call("store", &[Arg::Int(HEAP.into()), Arg::Int(round)]).expect("stores");
        assert_eq!(w.call("load", &[Arg::Int(HEAP.into())]).expect("loads"), round);
    }
}

static CHAINED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    CHAINED.fetch_add(1, Ordering::Relaxed);
}

/// Runs in a process of its own: it replaces signal actions.
#[test]
fn signals_that_are_not_a_handlers_go_to_the_previous_action() {
    crate::in_child("faults::signals_that_are_not_a_handlers_go_to_the_previous_action", || {
        for signal in SIGNALS {
            // SAFETY: the action only counts.
            unsafe { libc::signal(signal, count as *const () as libc::sighandler_t) };
        }
        let mut w = window();
        assert_eq!(fault(&mut w, "trap", [0, 0]).kind, FaultKind::Trap);
        assert_eq!(CHAINED.load(Ordering::Relaxed), 0);
        for signal in SIGNALS {
            // SAFETY: raises a signal for which there is an action.
            unsafe { libc::raise(signal) };
        }
        assert_eq!(CHAINED.load(Ordering::Relaxed), SIGNALS.len());
        assert_eq!(fault(&mut w, "load", [0, 0]).kind, FaultKind::NullZone);
    });
}

/// A fault of the host itself still kills it, with the right signal, also within an import.
#[test]
fn host_faults_are_not_swallowed() {
    let status = crate::child_status("faults::host_faults_are_not_swallowed", || {
        let source = ".globl f\nf: sub $8,%rsp; IMPORT 0; add $8,%rsp; ret";
        let imports = Imports::new().function("crash", |_, _| {
            // SAFETY: the read is not allowed at all; that is the point.
            u64::from(unsafe { std::ptr::without_provenance::<u8>(0x100).read_volatile() })
        });
        let _ = Builder::new(source).imports(&["crash"]).window_with(&imports).call("f", &[]);
    });
    if let Some(status) = status {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status:?}");
    }
}

/// Signal handlers of the host, with and without SA_ONSTACK, interrupt a handler without harm.
#[test]
fn host_signals_interrupt_handlers() {
    crate::in_child("faults::host_signals_interrupt_handlers", || {
        let source = ".globl spin\nspin: xor %eax,%eax\n1: add $1,%rax; mov %rax,%gs:K-64(%esp); sub $1,%rdi; jnz 1b; ret
                      .globl copy\ncopy: push %rbx; mov %edi,%ebx\n1: mov $0x200000,%edi; mov $0x300000,%esi; mov $5000,%edx
                      IMPORT 0; sub $1,%ebx; jnz 1b; pop %rbx; ret";
        let mut w = Builder::new(source).imports(&["memcpy"]).window();
        for flags in [0, libc::SA_ONSTACK] {
            CHAINED.store(0, Ordering::Relaxed);
            // SAFETY: the action only counts; the timer belongs to this process alone.
            unsafe {
                handle(libc::SIGALRM, flags | libc::SA_RESTART, count);
                let every = libc::timeval { tv_sec: 0, tv_usec: 200 };
                let timer = libc::itimerval { it_interval: every, it_value: every };
                libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
            }
            while CHAINED.load(Ordering::Relaxed) < 200 {
                assert_eq!(w.call("spin", &[Arg::Int(1_000_000)]).expect("returns"), 1_000_000);
                w.call("copy", &[Arg::Int(1000)]).expect("returns");
            }
        }
    });
}
