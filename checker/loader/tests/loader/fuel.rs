//! Fuel: exact counts, limits, nested calls, host functions, gates.

use crate::builder::{Builder, DATA, HEAP, options};
use crate::gates::{Gates, PAID, State, string_gates};
use cordon_loader::{
    Arg, CallContext, Error, Fault, FaultKind, FuelUse, Image, Imports, LoadOptions, Window, cordon_call_charge,
};
use std::ffi::c_void;

/// `count(n)` pays 2 + 5 n; `host` and `again` pay 8 and call their imports; `load` faults after having paid 2.
const SOURCE: &str = "
    .globl count\ncount: METER 2, 9f; xor %eax,%eax\n1: METER 5, 9f; add $1,%rax; sub $1,%rdi; jnz 1b; ret
    9: ud2
    .globl load\nload: METER 3, 8f; mov %gs:(%edi),%rax; ret
    8: ud2
    .globl host\nhost: METER 8, 7f; push %rbx; IMPORT 0; pop %rbx; ret
    7: ud2
    .globl again\nagain: METER 8, 6f; push %rbx; IMPORT 1; pop %rbx; ret
    6: ud2
    .globl trap\ntrap: METER 2, 5f; ud2
    5: ud2";

fn imports() -> Imports {
    let charge = |call: &mut cordon_loader::CallContext<'_>, [units, ..]: [u64; 6]| {
        let before = call.fuel_left().expect("metered");
        let done = call.charge(units);
        let after = call.fuel_left().expect("metered");
        assert_eq!((done, after), (units <= before, before.saturating_sub(units)));
        before
    };
    // Counts to n in a nested call; what is left before and after, as a difference.
    let again = |call: &mut cordon_loader::CallContext<'_>, [n, ..]: [u64; 6]| {
        let before = call.fuel_left().expect("metered");
        let _ = call.call_entry("count", [n, 0, 0, 0, 0, 0]);
        before - call.fuel_left().expect("metered")
    };
    Imports::new().function("charge", charge).function("again", again)
}

fn window() -> Window {
    Builder::new(SOURCE).imports(&["charge", "again"]).metered().window_with(&imports())
}

fn starves(window: &mut Window, entry: &str, arg: u64) -> Fault {
    match window.call(entry, &[Arg::Int(arg)]) {
        Err(Error::Fault(fault)) if fault.kind == FaultKind::Fuel => *fault,
        other => panic!("{entry}: {other:?}"),
    }
}

#[test]
fn calls_use_exactly_what_they_pay() {
    let mut w = window();
    assert_eq!(w.fuel(), None);
    for n in [1, 2, 100, 12_345] {
        assert_eq!(w.call("count", &[Arg::Int(n)]).expect("returns"), n);
        assert_eq!(w.fuel_used(), Some(2 + 5 * n));
        w.set_fuel(Some(2 + 5 * n)).expect("metered");
        assert_eq!(w.call("count", &[Arg::Int(n)]).expect("exactly enough"), n);
        w.set_fuel(Some(2 + 5 * n - 1)).expect("metered");
        let fault = starves(&mut w, "count", n);
        assert_eq!(fault.fuel, Some(FuelUse { limit: 1 + 5 * n, used: 1 + 5 * n }));
        assert_eq!(w.fuel_used(), Some(1 + 5 * n));
        assert_eq!(fault.registers.expect("of the handler").general[0], n - 1, "stopped before the last round");
        w.set_fuel(None).expect("metered");
    }
    for most in [u64::MAX, 1 << 63, i64::MAX as u64] {
        w.set_fuel(Some(most)).expect("metered");
        assert_eq!(w.call("count", &[Arg::Int(3)]).expect("returns"), 3);
        assert_eq!(w.fuel_used(), Some(17));
    }
    w.set_fuel(Some(0)).expect("metered");
    assert_eq!(starves(&mut w, "count", 1).fuel, Some(FuelUse { limit: 0, used: 0 }));
}

#[test]
fn a_limit_stops_at_the_same_place_every_time() {
    let mut w = window();
    w.set_fuel(Some(1_000_000)).expect("metered");
    let first = starves(&mut w, "count", u64::MAX);
    assert_eq!(first.registers.expect("of the handler").general[0], (1_000_000 - 2) / 5);
    for _ in 0..50 {
        let next = starves(&mut w, "count", u64::MAX);
        assert_eq!((next.registers, next.text_offset), (first.registers, first.text_offset));
    }
}

#[test]
fn other_ends_tell_what_was_used() {
    let mut w = window();
    match w.call("load", &[Arg::Int(0)]) {
        Err(Error::Fault(fault)) => assert_eq!((fault.kind, fault.fuel.expect("metered").used), (FaultKind::NullZone, 3)),
        other => panic!("{other:?}"),
    }
    assert_eq!(w.fuel_used(), Some(3));
    match w.call("trap", &[]) {
        Err(Error::Fault(fault)) => assert_eq!((fault.kind, fault.fuel.expect("metered").used), (FaultKind::Trap, 2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(w.call("load", &[Arg::Int(HEAP.into())]).expect("goes on"), 0);
}

#[test]
fn images_that_do_not_count_cannot_be_limited() {
    let built = Builder::new(".globl f\nf: mov %r14,%rax; ret").build();
    let image = Image::from_bytes(&built.file, &options()).expect("loads");
    let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
    assert!(matches!(w.set_fuel(Some(1000)), Err(Error::NotMetered)));
    w.set_fuel(None).expect("no limit is no demand");
    assert_eq!((w.call("f", &[]).expect("returns"), w.fuel_used()), (0, None), "r14 tells nothing");
    let demanding = LoadOptions { fuel: Some(1), ..options() };
    assert!(matches!(Image::from_bytes(&built.file, &demanding), Err(Error::NotMetered)));
    let mut demanding = options();
    demanding.policy.mode.metered = true;
    assert!(matches!(Image::from_bytes(&built.file, &demanding), Err(Error::Layout(_))));
}

#[test]
fn the_limit_comes_from_the_options_and_holds_for_the_initialisation() {
    let source = ".globl cordon__init\ncordon__init: METER 2, 9f; nop\n1: METER 2, 9f; jmp 1b\n9: ud2";
    let built = Builder::new(source).metered().build();
    let image = Image::from_bytes(&built.file, &LoadOptions { fuel: Some(500), ..options() }).expect("loads");
    match Window::new(&image, &Imports::new()) {
        Err(Error::Fault(fault)) => assert_eq!((fault.kind, fault.fuel.expect("metered").limit), (FaultKind::Fuel, 500)),
        other => panic!("{other:?}"),
    }
}

unsafe extern "C" fn charge_in_c(call: *mut CallContext<'_>, arguments: *const u64, _: *mut c_void) -> u64 {
    // SAFETY: the loader gives the running call and six arguments.
    unsafe { u64::from(cordon_call_charge(call, *arguments)) }
}

#[test]
fn host_functions_charge_the_call() {
    let mut w = window();
    w.set_fuel(Some(1000)).expect("metered");
    assert_eq!(w.call("host", &[Arg::Int(100)]).expect("returns"), 992, "what was left in the host function");
    assert_eq!(w.fuel_used(), Some(108));
    assert_eq!(w.call("host", &[Arg::Int(992)]).expect("returns"), 992);
    assert_eq!(w.fuel_used(), Some(1000));
    for units in [993, u64::MAX] {
        let fault = starves(&mut w, "host", units);
        assert_eq!((fault.import(), fault.fuel), (Some("charge"), Some(FuelUse { limit: 1000, used: 1000 })));
    }
    // SAFETY: the function is this file's and uses no pointer of ours.
    let imports = unsafe { Imports::new().c_function("charge", charge_in_c, std::ptr::null_mut()) };
    let mut w = Builder::new(SOURCE).imports(&["charge", "again"]).metered().window_with(&imports.missing_as_trap());
    w.set_fuel(Some(1000)).expect("metered");
    assert_eq!((w.call("host", &[Arg::Int(992)]).expect("returns"), w.fuel_used()), (1, Some(1000)));
    assert_eq!(starves(&mut w, "host", 993).import(), Some("charge"));
    let plain = Imports::new().function("charge", |call, _| u64::from(call.charge(u64::MAX) && call.fuel_left().is_none()));
    let mut w = Builder::new(".globl f\nf: jmp *%gs:T+8").imports(&["charge"]).window_with(&plain);
    assert_eq!(w.call("f", &[]).expect("nothing to pay"), 1);
}

#[test]
fn callbacks_use_the_fuel_of_the_call() {
    let mut w = window();
    w.set_fuel(Some(1000)).expect("metered");
    assert_eq!(w.call("again", &[Arg::Int(20)]).expect("returns"), 102);
    assert_eq!(w.fuel_used(), Some(110));
    assert_eq!(w.call("again", &[Arg::Int(198)]).expect("returns"), 992);
    assert_eq!(w.fuel_used(), Some(1000));
    let fault = starves(&mut w, "again", 199);
    assert_eq!(fault.fuel, Some(FuelUse { limit: 1000, used: 1000 }));
    assert_eq!(fault.function().map(|(name, _)| name), Some("count"));
}

/// A window called from a host function of another one.
#[test]
fn calls_of_other_windows_are_paid_by_the_outer_call() {
    let inner = std::sync::Mutex::new(window());
    let outer = Imports::new().function("inner", move |call, [n, limit, ..]| {
        let mut inner = inner.lock().expect("lock");
        inner.set_fuel((limit > 0).then_some(limit)).expect("metered");
        let stopped = inner.call("count", &[Arg::Int(n)]).is_err();
        let used = inner.fuel_used().expect("metered");
        used | u64::from(stopped) << 32 | call.fuel_left().unwrap_or(0xffff) << 40
    });
    let source = ".globl f\nf: METER 8, 9f; push %rbx; IMPORT 0; pop %rbx; ret\n9: ud2";
    let mut w = Builder::new(source).imports(&["inner"]).metered().window_with(&outer);
    w.set_fuel(Some(1008)).expect("metered");
    let mut call = |n: u64, limit: u64| {
        let result = w.call("f", &[Arg::Int(n), Arg::Int(limit)]).expect("returns");
        assert_eq!(w.fuel_used(), Some(8 + (result & 0xffff_ffff)));
        (result & 0xffff_ffff, result >> 32 & 1, result >> 40)
    };
    assert_eq!(call(10, 0), (52, 0, 948));
    assert_eq!(call(10, 40), (40, 1, 960), "its own limit is lower");
    assert_eq!(call(1000, 0), (1000, 1, 0), "no more than the outer call has left");
    assert_eq!(call(1000, 5000), (1000, 1, 0));
}

#[test]
fn gates_starve_before_they_work() {
    let names = ["memcpy", "memset", "memcmp", "strlen"];
    let mut gates = Gates::with(&names, true);
    let mut run = |name: &str, fuel: u64, rdi: u32, len: u64| {
        gates.window.write(HEAP, &[7; 4096]).expect("writes");
        gates.window.write(HEAP + 4096, &[0]).expect("writes");
        gates.window.set_fuel(Some(PAID + fuel)).expect("metered");
        let mut state: State = [0; 16];
        (state[6], state[5], state[2]) = (rdi.into(), (HEAP + 16).into(), len);
        match gates.run(name, &state) {
            Ok(_) => None,
            Err(Error::Fault(fault)) => {
                assert_eq!((fault.kind, fault.fuel), (FaultKind::Fuel, Some(FuelUse { limit: PAID + fuel, used: PAID + fuel })));
                assert!(fault.gate.is_some() && fault.address.is_none(), "{fault:?}");
                assert_eq!(gates.window.bytes(HEAP, 4096).expect("reads"), [7; 4096], "{name} did nothing");
                Some(fault.gate.expect("known"))
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    for name in ["memcpy", "memset", "memcmp"] {
        assert_eq!(run(name, 10, HEAP, 175), None);
        assert!(run(name, 10, HEAP, 176).is_some(), "{name}");
        assert!(run(name, 1 << 40, HEAP, u64::MAX).is_some(), "{name}: fuel is looked at first");
    }
    assert_eq!(run("strlen", 256, HEAP, 0), None);
    assert_eq!(run("strlen", 255, HEAP, 0), Some("strlen"));
}

/// Every string gate with exactly enough fuel, and with less: it ends where the fuel ends, whatever the count.
#[test]
fn string_gates_never_work_for_more_than_there_is() {
    let names = string_gates();
    let mut gates = Gates::with(&names, true);
    for name in names {
        let searches = name.contains("cmps") || name.contains("scas");
        // Zeros, in which nothing ends a search before element 41 (counted from 0).
        let size = u64::from(name.as_bytes()[name.len() - 1] - b'0');
        let mut run = |fuel: u64, count: u64| {
            gates.window.write(HEAP, &[0; 4096]).expect("writes");
            let repne = name.contains("repne");
            gates.window.write(HEAP + 1024, &vec![u8::from(repne && name.contains("cmps")); 41 * size as usize]).expect("writes");
            let other = if repne && name.contains("scas") { vec![9; size as usize] } else { vec![1; size as usize] };
            if !(repne && name.contains("cmps")) {
                gates.window.write(HEAP + 41 * size as u32, &other).expect("writes");
            }
            gates.window.set_fuel(Some(PAID + fuel)).expect("metered");
            let mut state: State = [0; 16];
            (state[6], state[5], state[1]) = (HEAP.into(), (HEAP + 1024).into(), count);
            state[0] = if repne { 0x0909_0909_0909_0909 } else { 0 };
            match gates.run(name, &state) {
                Ok(after) => Ok(count - after[1]),
                Err(Error::Fault(fault)) => Err((fault.kind, fault.gate)),
                Err(other) => panic!("{other:?}"),
            }
        };
        let starved = Err((FaultKind::Fuel, Some(name)));
        for count in [0, 1, 3] {
            assert_eq!(run(0, count), Ok(count), "{name} {count}");
        }
        assert_eq!(run(0, 4), starved, "{name}");
        assert_eq!(run(1, 7), Ok(7), "{name}");
        assert_eq!(run(1, 8), starved, "{name}");
        assert_eq!(run(10, 40), Ok(40), "{name}");
        if searches {
            // Element 41 ends it: 42 elements, 10 units.
            for count in [42, 43, 44, 1000, u64::MAX] {
                assert_eq!(run(10, count), Ok(42), "{name} {count}");
                assert_eq!(run(9, count), starved, "{name} {count}");
                assert_eq!(run(1 << 61, count), Ok(42), "{name} {count}");
            }
        } else {
            assert_eq!(run(1 << 40, u64::MAX), starved, "{name}");
        }
    }
}

/// What an entry of unmetered text leaves in r14 survives gates and host functions, and reaches no other call.
#[test]
fn r14_is_preserved() {
    let source = format!(
        ".globl f\nf: push %r14; mov %rdi,%r14; IMPORT 0; mov %r14,%gs:{DATA}; mov ${HEAP},%edi; mov ${HEAP},%esi; mov $64,%edx
         IMPORT 1; mov %r14,%rax; mov %gs:{DATA},%rcx; sub %rcx,%rax; pop %rcx; add %rcx,%rax; ret
         .globl g\ng: mov %r14,%rax; mov $-1,%r14; ret"
    );
    let imports = Imports::new().function("nested", |call, _| {
        assert_eq!(call.call_entry("g", [0; 6]).expect("returns"), 0);
        0
    });
    let mut w = Builder::new(&source).imports(&["nested", "memcpy"]).window_with(&imports);
    for value in [0, 1, 1 << 63, u64::MAX, 0x1234_5678_9abc_def0] {
        assert_eq!(w.call("f", &[Arg::Int(value)]).expect("returns"), 0);
        assert_eq!(w.bytes(DATA, 8).expect("data"), value.to_le_bytes());
        assert_eq!(w.call("g", &[]).expect("returns"), 0);
    }
}

/// Every window of every thread counts alike.
#[test]
fn threads_and_the_fast_window_use_the_same_fuel() {
    crate::in_child("fuel::threads_and_the_fast_window_use_the_same_fuel", || {
        let built = Builder::new(SOURCE).imports(&["charge", "again"]).metered().build();
        let image = Image::from_bytes(&built.file, &LoadOptions { fuel: Some(5_000), ..options() }).expect("loads");
        let run = |mut w: Window| {
            for n in [10, 999, 1000, 2000] {
                let done = w.call("count", &[Arg::Int(n)]).is_ok();
                assert_eq!((done, w.fuel_used()), (2 + 5 * n <= 5000, Some((2 + 5 * n).min(5000))));
                assert_eq!(
                    (w.call("again", &[Arg::Int(n)]).is_ok(), w.fuel_used()),
                    (10 + 5 * n <= 5000, Some((10 + 5 * n).min(5000)))
                );
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| run(Window::new(&image, &imports()).expect("makes a window"))));
            }
            run(Window::new_fast(&image, &imports()).expect("makes the fast window"));
        });
    });
}
