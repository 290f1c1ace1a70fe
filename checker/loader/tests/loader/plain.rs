//! Plain host functions, which the gate calls itself: what they get and give, what they leave behind, and what ends a call in one.

use crate::builder::{Builder, HEAP, options};
use cordon_loader::{Arg, Error, FaultKind, Image, Imports, LoadOptions, Window};
use std::arch::{asm, global_asm};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const GENERAL: [&str; 15] =
    ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
/// What the text keeps in the registers that a call keeps: rbx, rbp, r12, r13, r14, r15.
const KEPT: [(usize, u64); 6] = [(3, 0xb0b1), (4, 0xb2b3), (11, 0xb4b5), (12, 0xb6b7), (13, 0xb8b9), (14, 0xbabb)];

/// Which code of the gate calls the function.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Text {
    /// The text has general registers only.
    General,
    Vectors,
    Metered,
    /// The text may change control words: the function is called as one with a context.
    Control,
    /// The segment base is written by system calls: as above.
    SystemCalls,
}

const TEXTS: [Text; 5] = [Text::General, Text::Vectors, Text::Metered, Text::Control, Text::SystemCalls];

/// The entry `f`: fills the kept registers, calls import 0, and stores every register at [`HEAP`].
fn window(text: Text, imports: &Imports) -> Option<Window> {
    if text != Text::General && !std::arch::is_x86_feature_detected!("avx") {
        return None;
    }
    let metered = text == Text::Metered;
    let mut source = String::from(".globl f\nf: ");
    source += if metered { "METER 120, 9f\n" } else { "" };
    source += "push %rbx; push %rbp; push %r12; push %r13; push %r15\n";
    source += if metered { "sub $8,%rsp\n" } else { "push %r14\n" };
    for (at, value) in KEPT.iter().filter(|(at, _)| !metered || GENERAL[*at] != "r14") {
        source += &format!("mov ${value:#x},%{}\n", GENERAL[*at]);
    }
    source += "sub $8,%rsp; IMPORT 0; lea 8(%rsp),%rsp\n";
    for (at, name) in GENERAL.iter().enumerate() {
        source += &format!("mov %{name},%gs:{}\n", HEAP as usize + 8 * at);
    }
    source += &format!("lahf\nseto %al\nmov %rax,%gs:{}\n", HEAP + 120);
    if text != Text::General {
        (0..16).for_each(|n| source += &format!("vmovdqu %ymm{n},%gs:{}\n", HEAP + 128 + 32 * n));
    }
    if text == Text::Control {
        source += &format!("stmxcsr %gs:{}\nfnstcw %gs:{}\n", HEAP + 640, HEAP + 648);
    }
    source += &format!("mov %gs:{HEAP},%rax\n");
    source += if metered { "lea 8(%rsp),%rsp\n" } else { "pop %r14\n" };
    source += "pop %r15; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n9: ud2\n.globl deep\ndeep: ";
    source += if metered { "METER 20, 8f; " } else { "" };
    source += "push %rbx; IMPORT 0; call deep; pop %rbx; ret\n8: ud2";
    let mut builder = Builder::new(&source).imports(&["plain"]);
    builder.mode.metered = metered;
    let options = LoadOptions { fsgsbase: text != Text::SystemCalls, ..options() };
    let image = Image::from_bytes(&builder.build().file, &options).expect("loads");
    Some(Window::new(&image, imports).expect("makes a window"))
}

fn dumped(w: &Window) -> Vec<u64> {
    let bytes = w.bytes(HEAP, 656).expect("reads");
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
}

fn call(w: &mut Window, args: &[u64]) -> Result<u64, Error> {
    let args: Vec<Arg<'_>> = args.iter().map(|a| Arg::Int(*a)).collect();
    w.call("f", &args)
}

/// Each text with a window that offers `imports` to it.
fn windows(imports: &Imports) -> impl Iterator<Item = (Text, Window)> + '_ {
    TEXTS.into_iter().filter_map(|text| Some((text, window(text, imports)?)))
}

unsafe extern "C" fn digits(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64 {
    [a, b, c, d, e, f].iter().fold(0, |sum, n| sum.wrapping_mul(16).wrapping_add(*n))
}

#[test]
fn six_arguments_and_the_result_are_whole() {
    let closure =
        Imports::new().plain_function("plain", |args| args.iter().fold(0, |sum, n| sum.wrapping_mul(16).wrapping_add(*n)));
    // SAFETY: the function takes any integers.
    let in_c = unsafe { Imports::new().c_plain_function("plain", digits) };
    for imports in [closure, in_c] {
        for (text, mut w) in windows(&imports) {
            assert_eq!(call(&mut w, &[1, 2, 3, 4, 5, 6]).expect("returns"), 0x12_3456, "{text:?}");
            assert_eq!(call(&mut w, &[0, 0, 0, 0, u64::MAX, 0]).expect("returns"), u64::MAX - 15, "all 64 bits");
        }
    }
}

// Leaves a pattern in every register that a call may change, and in the flags.
global_asm!(
    ".globl cordon_test_soil",
    "cordon_test_soil:",
    "movabs $0x5ec2e7aa5ec2e7aa, %rax",
    "mov %rax, %rcx; mov %rax, %rdx; mov %rax, %rsi; mov %rax, %rdi; mov %rax, %r8; mov %rax, %r9; mov %rax, %r10; mov %rax, %r11",
    "cmpb $0, cordon_test_has_avx(%rip)",
    "je 1f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovq %rax, %xmm\\n; vinsertf128 $1, %xmm\\n, %ymm\\n, %ymm\\n",
    ".endr",
    "1: mov $0x77, %eax",
    "cmp $-1, %rcx",
    "stc",
    "ret",
    ".bss",
    "cordon_test_has_avx: .byte 0",
    ".text",
    options(att_syntax)
);

unsafe extern "C" {
    fn cordon_test_soil(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64;
    static mut cordon_test_has_avx: u8;
}

/// ZF and PF as `cmp %reg,%reg` leaves them, in lahf's layout with the always-one bit; no overflow.
const CONSTANT_FLAGS: u64 = 0x46 << 8;

#[test]
fn nothing_of_the_host_is_left_in_a_register_and_what_a_call_keeps_is_kept() {
    // SAFETY: nothing else uses the variable.
    unsafe { (&raw mut cordon_test_has_avx).write(std::arch::is_x86_feature_detected!("avx").into()) };
    // SAFETY: the function keeps to the calling convention.
    let imports = unsafe { Imports::new().c_plain_function("plain", cordon_test_soil) };
    for (text, mut w) in windows(&imports) {
        for _ in 0..3 {
            assert_eq!(call(&mut w, &[9, 9, 9, 9, 9, 9]).expect("returns"), 0x77);
            let words = dumped(&w);
            let mut expected = [0; 15];
            expected[0] = 0x77;
            KEPT.iter().for_each(|(at, value)| expected[*at] = *value);
            if text == Text::Metered {
                expected[13] = words[13];
                assert_eq!(words[13], i64::MAX as u64 - 120, "the count");
            }
            assert_eq!(words[..15], expected, "{text:?}");
            assert_eq!(words[15] & 0xffff, CONSTANT_FLAGS, "{text:?}");
            assert!(words[16..80].iter().all(|w| *w == 0), "{text:?}: {words:x?}");
        }
    }
}

#[test]
fn a_host_with_control_words_of_its_own_keeps_them() {
    let imports = Imports::new().plain_function("plain", |_| u64::from(crate::gates::control_words().0));
    let set = |value: u32| {
        // SAFETY: loads a valid value with exceptions masked.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value) }
    };
    for (text, mut w) in windows(&imports) {
        set(0x3f80);
        let seen = call(&mut w, &[]);
        let after = crate::gates::control_words().0;
        set(0x1f80);
        assert_eq!((seen.expect("returns"), after), (0x3f80, 0x3f80), "{text:?}");
        if text == Text::Control {
            assert_eq!((dumped(&w)[80] as u32, dumped(&w)[81] as u16), (0x1f80, 0x037f), "the handler's are the default");
        }
    }
}

#[test]
fn the_segment_base_is_the_windows_again_afterwards() {
    let imports = Imports::new().plain_function("plain", |_| {
        // SAFETY: this thread does not use gs; ARCH_SET_GS.
        unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, 0x1234_5000_u64) };
        5
    });
    for (text, mut w) in windows(&imports) {
        for _ in 0..3 {
            assert_eq!(call(&mut w, &[]).expect("returns"), 5, "{text:?}");
            assert_eq!(dumped(&w)[0], 5, "{text:?}");
        }
    }
}

#[test]
fn a_panic_ends_the_call_and_nothing_else() {
    let imports = Imports::new().plain_function("plain", |[n, ..]| {
        assert!(n < 3, "number {n}");
        n
    });
    for (text, mut w) in windows(&imports) {
        for n in 0..10 {
            match call(&mut w, &[n]) {
                Ok(result) => assert_eq!((result, n < 3), (n, true), "{text:?}"),
                Err(Error::Import { import, message }) => {
                    assert_eq!((import.as_str(), message, n >= 3), ("plain", format!("panicked: number {n}"), true), "{text:?}");
                }
                Err(other) => panic!("{text:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_function_that_takes_too_long_ends_the_call_when_it_returns() {
    static DONE: AtomicU64 = AtomicU64::new(0);
    let imports = Imports::new().plain_function("plain", |[ms, ..]| {
        std::thread::sleep(Duration::from_millis(ms));
        DONE.fetch_add(1, Ordering::Relaxed)
    });
    for (text, mut w) in windows(&imports) {
        w.set_time_limit(Some(5 * MS));
        let done = DONE.load(Ordering::Relaxed);
        let fault = match call(&mut w, &[60]) {
            Err(Error::Fault(fault)) => *fault,
            other => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(DONE.load(Ordering::Relaxed), done + 1, "it ran to its end");
        assert_eq!((fault.kind, fault.import(), fault.registers), (FaultKind::TimeLimit, Some("plain"), None), "{text:?}");
        assert_eq!(fault.function().map(|(name, _)| name), Some("f"), "{text:?}");
        assert_eq!(fault.fuel.map(|fuel| fuel.used), (text == Text::Metered).then_some(120), "{text:?}");
        let frames = fault.report().backtrace;
        assert_eq!(frames.len(), 2, "{text:?}: the function and its caller: {frames:?}");
        w.set_time_limit(None);
        assert_eq!(call(&mut w, &[0]).expect("goes on"), done + 1);
    }
}

#[test]
fn a_loop_of_calls_ends_at_the_limit() {
    let source = ".globl f\nf: push %rbx\n1: IMPORT 0; jmp 1b\n.globl g\ng: mov $7,%eax; ret";
    let mut w = Builder::new(source).imports(&["plain"]).window_with(&Imports::new().plain_function("plain", |[n, ..]| n + 1));
    for limit in [MS, 5 * MS, 20 * MS] {
        w.set_time_limit(Some(limit));
        for _ in 0..5 {
            let fault = match call(&mut w, &[]) {
                Err(Error::Fault(fault)) => *fault,
                other => panic!("{other:?}"),
            };
            assert_eq!((fault.kind, fault.function().map(|(name, _)| name)), (FaultKind::TimeLimit, Some("f")));
            assert_eq!(w.call("g", &[]).expect("returns"), 7);
        }
    }
}

/// Another window that plain functions call; they capture nothing.
static INNER: Mutex<Option<Window>> = Mutex::new(None);

#[test]
fn another_window_can_be_called_from_a_plain_function() {
    let source = ".globl g\ng: METER 4, 9f; lea 1(%rdi),%rax; ret\n9: ud2\n.globl fail\nfail: METER 2, 8f; ud2\n8: ud2";
    *INNER.lock().expect("lock") = Some(Builder::new(source).metered().window());
    let imports = Imports::new().plain_function("plain", |[n, ..]| {
        let mut inner = INNER.lock().expect("lock");
        let inner = inner.as_mut().expect("a window");
        assert!(matches!(inner.call("fail", &[]), Err(Error::Fault(_))));
        inner.call("g", &[Arg::Int(n)]).expect("returns")
    });
    for (text, mut w) in windows(&imports) {
        for n in 0..20 {
            assert_eq!(call(&mut w, &[n]).expect("returns"), n + 1, "{text:?}");
        }
        if text == Text::Metered {
            let used = w.fuel_used().expect("metered");
            assert!(used > 120, "the inner calls pay from the same tank: {used}");
            w.set_fuel(Some(used)).expect("metered");
            assert_eq!(call(&mut w, &[1]).expect("exactly enough"), 2);
        }
    }
}

#[test]
fn a_panic_below_a_callback_ends_the_whole_call() {
    let source =
        ".globl f\nf: sub $8,%rsp; mov $8*S0,%edi; IMPORT 1; add $8,%rsp; ret\ninner: sub $8,%rsp; IMPORT 0; add $8,%rsp; ret
                  .globl g\ng: mov $7,%eax; ret";
    let imports = Imports::new().plain_function("plain", |_| panic!("below")).function("again", |call, [pointer, ..]| {
        assert!(matches!(call.call_back(pointer, [0; 6]), Err(Error::Import { .. })));
        assert!(call.call_back(pointer, [0; 6]).is_err(), "nothing more runs");
        3
    });
    let mut w = Builder::new(source).imports(&["plain", "again"]).slots(&["inner"]).window_with(&imports);
    for _ in 0..10 {
        match call(&mut w, &[]) {
            Err(Error::Import { import, message }) => {
                assert_eq!((import.as_str(), message.as_str()), ("plain", "panicked: below"))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(w.call("g", &[]).expect("returns"), 7);
    }
}

#[test]
fn a_full_native_stack_is_told_before_the_host_runs() {
    let imports = Imports::new().plain_function("plain", |_| 0);
    for (text, mut w) in windows(&imports) {
        for _ in 0..3 {
            match w.call("deep", &[]) {
                Err(Error::Fault(fault)) => {
                    assert_eq!(fault.kind, FaultKind::NativeStackOverflow, "{text:?}: {fault}");
                    assert!(fault.registers.is_none(), "{text:?}: the gate refuses; the stack itself lasts for longer");
                }
                other => panic!("{text:?}: {other:?}"),
            }
            assert_eq!(call(&mut w, &[]).expect("goes on"), 0);
        }
    }
}

/// A fault of a plain function is the host's, as in any other.
#[test]
fn faults_are_the_hosts() {
    let status = crate::child_status("plain::faults_are_the_hosts", || {
        let imports = Imports::new().plain_function("plain", |_| {
            // SAFETY: the read is not allowed at all; that is the point.
            u64::from(unsafe { std::ptr::without_provenance::<u8>(0x100).read_volatile() })
        });
        let _ = call(&mut window(Text::General, &imports).expect("a window"), &[]);
    });
    if let Some(status) = status {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status:?}");
    }
}

/// Functions of both kinds, missing ones and built-in gates keep their places; a stack that served one window serves the next.
#[test]
fn kinds_of_imports_mix() {
    let source =
        ".globl f\nf: sub $8,%rsp; mov %edi,%edi; IMPORT 0; mov %eax,%edi; IMPORT 2; mov %eax,%edi; IMPORT 3; add $8,%rsp; ret
                  .globl missing\nmissing: sub $8,%rsp; IMPORT 1; add $8,%rsp; ret";
    let image = Builder::new(source).imports(&["double", "missing", "strange", "add"]).image();
    let with = |plain: bool| {
        let some = Imports::new().plain_function("double", |[n, ..]| 2 * n).missing_as_trap();
        if plain {
            some.plain_function("strange", |[n, ..]| n ^ 1).function("add", |_, [n, ..]| n + 100)
        } else {
            some.function("strange", |_, [n, ..]| n ^ 3).plain_function("add", |[n, ..]| n + 1000)
        }
    };
    let mut windows = [true, false].map(|plain| Window::new(&image, &with(plain)).expect("makes a window"));
    for _ in 0..10 {
        assert_eq!(call(&mut windows[0], &[10]).expect("returns"), (20 ^ 1) + 100);
        assert_eq!(call(&mut windows[1], &[10]).expect("returns"), (20 ^ 3) + 1000);
        for w in &mut windows {
            let error = w.call("missing", &[]).expect_err("is not offered");
            assert_eq!(error.fault().map(|fault| fault.kind), Some(FaultKind::BadCodePointer));
        }
    }
}
