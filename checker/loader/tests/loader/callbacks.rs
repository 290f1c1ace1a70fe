//! Host functions that call back, stop or panic.

use crate::builder::{Builder, DATA, HEAP, RODATA, TABLE_END};
use cordon_loader::{Arg, CallContext, Error, FaultKind, Imports, Window, cordon_call_read, cordon_call_write};
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn imports_reach_window_memory_by_copies_only() {
    let source = ".globl f\nf: jmp *%gs:T+8";
    let imports = Imports::new().function("probe", |call, [at, len, ..]| {
        let mut bytes = vec![0; len as usize];
        let read = call.read(at, &mut bytes).is_ok();
        let written = call.write(at, &bytes).is_ok();
        u64::from(read) | u64::from(written) << 1
    });
    let mut w = Builder::new(source).imports(&["probe"]).window_with(&imports);
    let mut probe = |at: u64, len: u64| w.call("f", &[Arg::Int(at), Arg::Int(len)]).expect("returns");
    assert_eq!(probe(HEAP.into(), 100), 3);
    assert_eq!(probe(HEAP.into(), 0x40_0000), 3, "to the end of the heap");
    assert_eq!(probe(HEAP.into(), 0x40_0001), 0, "one byte more");
    assert_eq!(probe(RODATA.into(), 8), 1);
    assert_eq!(probe(0x1_0000, 8), 1, "the table is readable and no destination");
    assert_eq!(probe(u64::from(TABLE_END) - 1, 1), 1);
    assert_eq!(probe(0, 8), 0);
    assert_eq!(probe(0xffff_ffff, 1), 0);
    assert_eq!(probe(0xffff_ffff, 2), 0);
    assert_eq!(probe(1 << 32, 1), 0, "no pointer beyond 32 bits");
    assert_eq!(probe(u64::MAX, 8), 0);
}

/// Doubles every byte of a window range; the sum of `user`'s count and the bytes, or the count alone if the range is bad.
unsafe extern "C" fn double_bytes(call: *mut CallContext<'_>, arguments: *const u64, user: *mut c_void) -> u64 {
    // SAFETY: the loader gives six arguments; the test gives a counter.
    let (at, len, count) = unsafe { (*arguments, *arguments.add(1) as usize, &*user.cast::<AtomicU64>()) };
    let calls = count.fetch_add(1, Ordering::Relaxed) + 1;
    let mut bytes = vec![0; len];
    // SAFETY: the call is the one we were given; the buffer has `len` bytes.
    if !unsafe { cordon_call_read(call, at, bytes.as_mut_ptr(), len) } {
        return calls;
    }
    let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
    bytes.iter_mut().for_each(|b| *b *= 2);
    // SAFETY: as above.
    calls + sum * u64::from(unsafe { cordon_call_write(call, at, bytes.as_ptr(), len) })
}

#[test]
fn c_functions_reach_window_memory_by_copies_only() {
    let count = AtomicU64::new(0);
    let user = std::ptr::from_ref(&count).cast_mut().cast();
    // SAFETY: the function is this file's; the counter outlives the window.
    let imports = unsafe { Imports::new().c_function("double", double_bytes, user) };
    let mut w = Builder::new(".globl f\nf: jmp *%gs:T+8").imports(&["double"]).window_with(&imports);
    w.write(HEAP, &[1, 2, 3]).expect("writes");
    assert_eq!(w.call("f", &[Arg::Int(HEAP.into()), Arg::Int(3)]).expect("returns"), 1 + 6);
    assert_eq!(w.bytes(HEAP, 3).expect("in the window"), [2, 4, 6]);
    assert_eq!(w.call("f", &[Arg::Int(0), Arg::Int(3)]).expect("returns"), 2, "the null zone is neither read nor written");
    assert_eq!(w.call("f", &[Arg::Int(RODATA.into()), Arg::Int(3)]).expect("returns"), 3, "constants are read, not written");
    assert_eq!(count.into_inner(), 3);
}

#[test]
fn strings_are_read_up_to_their_end_or_the_limit() {
    let imports = Imports::new()
        .function("length", |call, [at, limit, ..]| call.read_c_string(at, limit as usize).map_or(u64::MAX, |s| s.len() as u64));
    let mut w = Builder::new(".globl f\nf: jmp *%gs:T+8").imports(&["length"]).window_with(&imports);
    w.write(HEAP + 1000, &[b'a'; 600]).expect("writes");
    let mut length = |limit| w.call("f", &[Arg::Int((HEAP + 1000).into()), Arg::Int(limit)]).expect("returns");
    assert_eq!(length(10_000), 600);
    assert_eq!(length(601), 600);
    assert_eq!(length(600), u64::MAX);
}

/// `f(n)` calls `again(pointer to f, n - 1)` and adds n, until n is 0.
const SUM: &str = ".globl f\nf: test %rdi,%rdi; jz 1f; push %rbx; mov %rdi,%rbx; lea -1(%rdi),%rsi; mov $8*S0,%edi; IMPORT 0; add %rbx,%rax; pop %rbx; ret
                   1: xor %eax,%eax; ret\n.globl other\nother: sub $8,%rsp; mov $8*S0,%edi; IMPORT 0; add $8,%rsp; ret
                   fail: ud2\n.globl deep\ndeep: push %rbx; pop %rbx; ret";

#[test]
fn callbacks_nest_and_return() {
    let imports = Imports::new()
        .function("again", |call, [pointer, n, ..]| call.call_back(pointer, [n, 0, 0, 0, 0, 0]).unwrap_or(1_000_000));
    let mut w = Builder::new(SUM).imports(&["again"]).slots(&["f"]).window_with(&imports);
    for n in [0, 1, 2, 10, 15] {
        assert_eq!(w.call("f", &[Arg::Int(n)]).expect("returns"), n * (n + 1) / 2);
    }
    // Deeper nesting is refused, and the host function goes on.
    assert_eq!(w.call("f", &[Arg::Int(16)]).expect("returns"), 1_000_000 + (1..=16).sum::<u64>());
}

#[test]
fn only_functions_are_called_back() {
    static SEEN: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let imports = Imports::new().function("again", |call, _| {
        for value in [0, 8, 24, 7, 16 + (1 << 32), u64::MAX, 63 * 8, 64 * 8] {
            if let Err(Error::BadCodePointer(v)) = call.call_back(value, [0; 6]) {
                SEEN.lock().expect("lock").push(v);
            }
        }
        assert!(matches!(call.call_entry("nothing", [0; 6]), Err(Error::NoEntry(_))));
        call.call_entry("deep", [0; 6]).expect("returns");
        call.call_back(16, [0; 6]).expect("returns")
    });
    let mut w = Builder::new(SUM).imports(&["again"]).slots(&["f"]).window_with(&imports);
    assert_eq!(w.call("other", &[]).expect("returns"), 0);
    let seen = SEEN.lock().expect("lock");
    assert_eq!(*seen, [0, 8, 24, 7, 16 + (1 << 32), u64::MAX, 63 * 8, 64 * 8]);
}

#[test]
fn a_fault_in_a_callback_ends_the_whole_call() {
    let imports = Imports::new().function("again", |call, [pointer, ..]| {
        let error = call.call_back(pointer, [0; 6]).expect_err("faults");
        assert!(matches!(error, Error::Import { .. }));
        assert!(call.call_back(pointer, [0; 6]).is_err(), "nothing more runs");
        5
    });
    let mut w = Builder::new(SUM).imports(&["again"]).slots(&["fail"]).window_with(&imports);
    for _ in 0..50 {
        let error = w.call("other", &[]).expect_err("ends");
        let fault = error.fault().expect("a fault");
        assert_eq!((fault.kind, fault.function().map(|(n, _)| n)), (FaultKind::Trap, Some("fail")));
        assert_eq!(w.call("deep", &[]).expect("returns"), 0);
    }
}

#[test]
fn stops_and_panics_of_imports_end_the_call() {
    let imports = Imports::new()
        .function("again", |call, _| {
            call.stop("enough");
            1
        })
        .function("panics", |_, [n, ..]| panic!("number {n}"));
    let source = format!("{SUM}\n.globl panics\npanics: push %rbx; IMPORT 1; pop %rbx; ret");
    let mut w = Builder::new(&source).imports(&["again", "panics"]).slots(&["f"]).window_with(&imports);
    for n in 0..20 {
        let error = w.call("other", &[]).expect_err("ends");
        assert!(matches!(&error, Error::Import { import, message } if import == "again" && message == "enough"), "{error}");
        let error = w.call("panics", &[Arg::Int(n)]).expect_err("ends");
        assert!(
            matches!(&error, Error::Import { import, message } if import == "panics" && *message == format!("panicked: number {n}"))
        );
    }
}

#[test]
fn a_panic_in_a_nested_import_ends_everything() {
    let imports = Imports::new().function("again", |call, [pointer, n, ..]| {
        assert!(n != 3, "three");
        call.call_back(pointer, [n, 0, 0, 0, 0, 0]).unwrap_or(0)
    });
    let mut w = Builder::new(SUM).imports(&["again"]).slots(&["f"]).window_with(&imports);
    assert_eq!(w.call("f", &[Arg::Int(3)]).expect("returns"), 6);
    let error = w.call("f", &[Arg::Int(6)]).expect_err("ends");
    assert!(matches!(&error, Error::Import { message, .. } if message == "panicked: three"), "{error}");
    assert_eq!(w.call("f", &[Arg::Int(2)]).expect("returns"), 3);
}

/// A host function that calls another window, whose handler faults: only that call ends.
#[test]
fn another_window_can_be_called_from_an_import() {
    let inner = Builder::new(&format!(".globl g\ng: mov %gs:{DATA},%rax; add %rdi,%rax; ret\n.globl fail\nfail: ud2"))
        .data(&[40])
        .window();
    let inner = Mutex::new(inner);
    let imports = Imports::new().function("other", move |_, [n, ..]| {
        let mut inner = inner.lock().expect("lock");
        assert!(matches!(inner.call("fail", &[]), Err(Error::Fault(_))));
        inner.call("g", &[Arg::Int(n)]).expect("returns")
    });
    let source = format!(".globl f\nf: push %rbx; IMPORT 0; add %gs:{DATA},%rax; pop %rbx; ret");
    let mut w = Builder::new(&source).imports(&["other"]).data(&[100]).window_with(&imports);
    for _ in 0..20 {
        assert_eq!(w.call("f", &[Arg::Int(2)]).expect("returns"), 142);
    }
}

#[test]
fn float_imports_and_callbacks_mix() {
    let source = format!(
        ".globl f\nf: push %rbx; movsd %xmm0,%gs:{HEAP}; IMPORT 0; addsd %gs:{HEAP},%xmm0; pop %rbx; ret
         .globl half\nhalf: mov $3,%eax; ret"
    );
    let imports = Imports::new().float_function("pow", |call, [x, y, ..]| {
        let three = call.call_entry("half", [0; 6]).expect("returns");
        x.powf(y) + three as f64
    });
    let mut w = Builder::new(&source).imports(&["pow"]).window_with(&imports);
    assert_eq!(w.call_float("f", &[2.0.into(), 10.0.into()]).expect("returns"), 1024.0 + 3.0 + 2.0);
}

#[test]
fn windows_are_made_and_dropped_by_the_thousand() {
    let image = Builder::new(&format!(".globl f\nf: mov %rdi,%gs:{HEAP}; mov %gs:{HEAP},%rax; ret")).image();
    let mut kept: Vec<Window> = Vec::new();
    for round in 0..1000 {
        let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
        assert_eq!(w.bytes(HEAP, 8).expect("reads"), [0; 8]);
        assert_eq!(w.call("f", &[Arg::Int(round)]).expect("returns"), round);
        if round % 50 == 0 {
            kept.push(w);
        }
    }
    for (i, w) in kept.iter().enumerate() {
        assert_eq!(w.bytes(HEAP, 8).expect("reads"), (i as u64 * 50).to_le_bytes());
    }
}
