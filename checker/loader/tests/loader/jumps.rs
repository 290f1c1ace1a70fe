//! `cordon.setjmp` and `cordon.longjmp`: what C defines works, whatever else a record says ends the call and goes nowhere else.

use crate::builder::{Builder, Built, DATA, HEAP, HEAP_END, RODATA, TABLE_END, options};
use crate::random::Random;
use cordon_checker::layout::USER_STACK_LOW;
use cordon_loader::{Arg, BadJump, Error, Fault, FaultKind, Frame, Image, Imports, LoadOptions, Window};
use std::collections::BTreeMap;
use std::time::Duration;

const IMPORTS: [&str; 2] = ["cordon.setjmp", "cordon.longjmp"];

/// `f(value, depth, word, change)` calls setjmp, adds `change` to a word of the record, and jumps from `depth` calls further down. The result
/// is what setjmp returned last; HEAP + 512 gets the callee-saved registers as they are then. `deeper` has a return from setjmp with more
/// pushed, at a greater depth.
const SOURCE: &str = "
    .globl f\nf: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $24,%rsp
    mov %rdi,%gs:0x200800; mov %rsi,%gs:0x200808; mov %rdx,%gs:0x200810; mov %rcx,%gs:0x200818
    mov $0x101,%rbx; mov $0x102,%rbp; mov $0x103,%r12; mov $0x104,%r13; mov $0x105,%r14; mov $-6,%r15
    mov $0x200000,%edi; mov $0x5e7,%eax; IMPORT 0
    landing: mov %rbx,%gs:0x200200; mov %rbp,%gs:0x200208; mov %r12,%gs:0x200210; mov %r13,%gs:0x200218
    mov %r14,%gs:0x200220; mov %r15,%gs:0x200228; test %eax,%eax; jnz 1f
    xor %ebx,%ebx; xor %ebp,%ebp; xor %r12d,%r12d; xor %r13d,%r13d; xor %r14d,%r14d; xor %r15d,%r15d
    mov %gs:0x200810,%rax; mov %gs:0x200818,%rcx; add %rcx,%gs:0x200000(,%eax,8)
    mov %gs:0x200800,%rsi; mov %gs:0x200808,%rdx; call down; ud2
    1: add $24,%rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret
    down: push %rbx; push %rdx; test %edx,%edx; jz 1f; dec %edx; call down
    1: mov $0x200000,%edi; IMPORT 1; ud2
    .globl deeper\ndeeper: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi; sub $48,%rsp
    mov $0x200100,%edi; IMPORT 0
    second: add $48,%rsp; pop %rdi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret
    .globl alike\nalike: push %rbx; push %rbp; mov $0x200180,%edi; IMPORT 0
    third: pop %rbp; pop %rbx; mov $77,%eax; ret";

fn window() -> Window {
    Builder::new(SOURCE).imports(&IMPORTS).window()
}

fn run(w: &mut Window, args: [u64; 4]) -> Result<u64, Error> {
    w.call("f", &args.map(Arg::Int))
}

fn lost(result: Result<u64, Error>) -> Fault {
    match result {
        Err(Error::Fault(fault)) if fault.kind == FaultKind::BadJump => *fault,
        other => panic!("{other:?}"),
    }
}

fn why(result: Result<u64, Error>) -> BadJump {
    lost(result).jump.expect("a reason")
}

fn words(w: &Window, at: u32, count: u32) -> Vec<u64> {
    let bytes = w.bytes(at, 8 * count).expect("reads");
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
}

const SAVED: [u64; 6] = [0x101, 0x102, 0x103, 0x104, 0x105, -6_i64 as u64];

#[test]
fn jumps_come_back_with_value_and_registers() {
    let system_calls = LoadOptions { fsgsbase: false, ..options() };
    let Built { file, labels, .. } = Builder::new(SOURCE).imports(&IMPORTS).build();
    for options in [options(), system_calls] {
        let image = Image::from_bytes(&file, &options).expect("loads");
        let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
        for (value, expected) in [(1, 1), (0, 1), (7, 7), (0xffff_ffff, 0xffff_ffff), (5 << 32, 1), (1 << 63 | 9, 9)] {
            for depth in [0, 1, 2, 1000, 1500] {
                assert_eq!(run(&mut w, [value, depth, 0, 0]).expect("jumps"), expected | 0x5e7 << 32);
                assert_eq!(words(&w, HEAP + 0x200, 6), SAVED);
                let record = words(&w, HEAP, 8);
                assert_eq!((record[..6].to_vec(), record[6] >> 32), (SAVED.to_vec(), 0x5e7));
                assert_eq!(record[7], labels["landing"].into(), "a text offset, no address");
            }
        }
    }
}

#[test]
fn the_fast_window_jumps_too() {
    crate::in_child("jumps::the_fast_window_jumps_too", || {
        let mut w = Window::new_fast(&Builder::new(SOURCE).imports(&IMPORTS).image(), &Imports::new()).expect("makes a window");
        assert_eq!(run(&mut w, [3, 10, 0, 0]).expect("jumps"), 3 | 0x5e7 << 32);
        assert_eq!(why(run(&mut w, [3, 10, 6, 8])), BadJump::NotActive);
    });
}

#[test]
fn only_returns_from_setjmp_are_jumped_to() {
    let Built { labels, .. } = Builder::new(SOURCE).imports(&IMPORTS).build();
    let mut w = window();
    let landing = u64::from(labels["landing"]);
    let others = [u64::from(labels["second"]), labels["third"].into()];
    for to in (0..landing + 400).chain([u64::MAX, 1 << 32 | landing, 1 << 63 | landing, u64::from(u32::MAX), 0x7fff_ffff]) {
        let result = run(&mut w, [1, 1, 7, to.wrapping_sub(landing)]);
        match result {
            Ok(value) => assert_eq!((to, value), (landing, 1 | 0x5e7 << 32)),
            other if others.contains(&to) => assert_eq!(why(other), BadJump::NotActive, "{to:#x}"),
            other => assert_eq!(why(other), BadJump::NoReturnOfSetjmp, "{to:#x}"),
        }
    }
}

#[test]
fn only_the_place_of_an_active_function_is_jumped_to() {
    let mut w = window();
    for by in (-2000_i64..2000).chain([1 << 31, -(1 << 31), 1 << 20]) {
        // Changes that carry into the other half make no difference: it is eax's.
        let result = run(&mut w, [1, 3, 6, by as u64]);
        if by == 0 {
            assert_eq!(result.expect("jumps"), 1 | 0x5e7 << 32);
            continue;
        }
        assert!(matches!(why(result), BadJump::NotActive | BadJump::Popped), "{by}");
    }
}

/// The function that waits where another one called setjmp has pushed less, or as much.
#[test]
fn what_was_pushed_must_still_be_there() {
    let source = format!(
        "{SOURCE}
        .globl less\nless: push %rbx; mov $1,%esi; mov $0x200180,%edi; IMPORT 1; ud2
        .globl equal\nequal: push %rbx; push %rbp; push %r12; mov $1,%esi; mov $0x200180,%edi; IMPORT 1; ud2
        .globl much\nmuch: push %rbx; push %rbp; mov $1,%esi; mov $0x200180,%edi; IMPORT 1; ud2
        .globl room\nroom: sub $40,%rsp; mov $1,%esi; mov $0x200180,%edi; IMPORT 1; ud2
        .globl popped\npopped: push %rbx; mov $0x200000,%edi; IMPORT 0; pop %rbx; mov $0x200000,%edi; mov $1,%esi; IMPORT 1; ud2"
    );
    let mut w = Builder::new(&source).imports(&IMPORTS).window();
    // Every entry's return address lies at the same place.
    w.call("alike", &[]).expect("returns");
    assert_eq!(why(w.call("less", &[])), BadJump::Popped);
    assert_eq!(why(w.call("room", &[])), BadJump::Popped, "room is not pushed");
    assert_eq!(w.call("equal", &[]).expect("as good as a jump there"), 77);
    assert_eq!(w.call("much", &[]).expect("as good as a jump there"), 77);
    assert_eq!(why(w.call("popped", &[])), BadJump::Popped);
}

/// Where setjmp was called deeper than the function waits now, rsp goes down, as far as host functions may be called.
#[test]
fn jumps_go_down_where_there_is_room() {
    let source = "
        .globl f\nf: sub $0xff8,%rsp; dec %edi; jz 1f; call f; add $0xff8,%rsp; ret
        1: sub $8,%rsp; mov $0x200000,%edi; IMPORT 0; test %eax,%eax; jnz 2f
        add $0xff8,%rsp; mov $0x200000,%edi; mov $5,%esi; IMPORT 1; ud2\n2: add $0x1000,%rsp; ret";
    let mut w = Builder::new(source).imports(&IMPORTS).stack(0x1_0000).window();
    for depth in [1, 2, 14] {
        assert_eq!(w.call("f", &[Arg::Int(depth)]).expect("there is room"), 5, "{depth}");
    }
    assert_eq!(why(w.call("f", &[Arg::Int(15)])), BadJump::NoRoom);
}

/// Every return from setjmp, at every place of the stack, in chains of functions with random frames: whatever is popped was pushed.
#[test]
fn no_jump_makes_a_slot_poppable_that_was_not_pushed() {
    const FUNCTIONS: u64 = 5;
    const TAG: u64 = 0x5a5a_0000;
    let mut random = Random(0x1_005e);
    let (mut jumped, mut popped) = (0, 0);
    for _ in 0..40 {
        let mut source =
            String::from(".globl go\ngo: mov %rdi,%gs:0x200838; mov %rsi,%gs:0x200830; movq $0x201000,%gs:0x200900\n");
        for f in 0..=FUNCTIONS {
            source += &format!("f{f}:");
            let frame: Vec<bool> = (0..random.next() % 7).map(|_| !random.next().is_multiple_of(3)).collect();
            for (slot, pushed) in frame.iter().enumerate() {
                source += &if *pushed {
                    format!("mov ${},%ebx; push %rbx\n", TAG + 16 * f + slot as u64)
                } else {
                    "sub $8,%rsp\n".into()
                };
            }
            if f == FUNCTIONS {
                source += "mov $0x200800,%edi; mov $1,%esi; IMPORT 1; ud2\n";
                break;
            }
            source += &format!(
                "mov ${},%edi; xor %eax,%eax; IMPORT 0\nland{f}: test %eax,%eax; jnz 1f; call f{}\n1:",
                HEAP + 64 * f as u32,
                f + 1
            );
            for pushed in frame.iter().rev() {
                source += if *pushed {
                    "pop %rcx; mov %gs:0x200900,%eax; mov %rcx,%gs:(%eax); addq $8,%gs:0x200900\n"
                } else {
                    "add $8,%rsp\n"
                };
            }
            source += "ret\n";
        }
        let builder = Builder::new(&source).imports(&IMPORTS);
        let Built { file, labels, .. } = builder.build();
        let mut w = Window::new(&Image::from_bytes(&file, &options()).expect("loads"), &Imports::new()).expect("makes a window");
        for (landing, rsp) in (0..FUNCTIONS).flat_map(|f| (0..80_u64).map(move |at| (f, u64::from(USER_STACK_LOW) - 8 * at))) {
            let place = u64::from(labels[&format!("land{landing}")]);
            match w.call("go", &[Arg::Int(place), Arg::Int(rsp)]) {
                Ok(_) => {}
                Err(Error::Fault(fault)) if fault.kind == FaultKind::BadJump => continue,
                other => panic!("{other:?}\n{source}"),
            }
            jumped += 1;
            let end = words(&w, HEAP + 0x900, 1)[0] as u32;
            let values = words(&w, 0x20_1000, (end - 0x20_1000) / 8);
            assert!(values.iter().all(|v| (TAG..TAG + 16 * FUNCTIONS + 16).contains(v)), "{values:x?}\n{source}");
            popped += values.len();
        }
    }
    // Each function's own place at least.
    assert!(jumped >= 200 && popped > 400, "{jumped} {popped}");
}

#[test]
fn functions_that_have_returned_are_not_jumped_to() {
    let source = "
        .globl f\nf: sub $8,%rsp; call h; mov $0x200000,%edi; mov $1,%esi; IMPORT 1; ud2
        h: push %rbx; mov $0x200000,%edi; IMPORT 0; pop %rbx; ret
        .globl g\ng: mov $0x200000,%edi; jmp *%gs:T+16
        .globl s\ns: mov $0x200000,%edi; jmp *%gs:T+8
        .globl p\np: push %rbx; mov $0x200000,%edi; mov $8,%ecx; and $MASK,%ecx; call *%gs:T(%rcx); mov $0x200000,%edi; IMPORT 1; ud2";
    let mut w = Builder::new(source).imports(&IMPORTS).window();
    assert_eq!(why(w.call("f", &[])), BadJump::NotActive);
    let fault = lost(w.call("g", &[]));
    assert_eq!((fault.jump, fault.text_offset), (Some(BadJump::NotActive), None), "no function is active");
    // A jump to setjmp at the end of an entry returns to the host: its address is not told.
    assert_eq!(w.call("s", &[]).expect("returns"), 0);
    assert_eq!(words(&w, HEAP, 8)[7], u64::MAX);
    assert_eq!(why(w.call("g", &[])), BadJump::NoReturnOfSetjmp);
    // Through the table it is no direct call of setjmp.
    assert_eq!(why(w.call("p", &[])), BadJump::NoReturnOfSetjmp);
}

/// `outer` calls setjmp, then the host, which calls `inner`: that jumps to its own setjmp, and then, if asked, to the outer one.
const NESTED: &str = "
    .globl outer\nouter: push %rbx; mov %rdi,%rbx; mov $0x200000,%edi; xor %eax,%eax; IMPORT 0; test %eax,%eax; jnz 1f
    mov %rbx,%rdi; IMPORT 2; mov $0x200000,%edi; lea 100(%rax),%esi; IMPORT 1; ud2
    1: pop %rbx; ret
    .globl inner\ninner: push %rbx; mov %rdi,%rbx; mov $0x200100,%edi; xor %eax,%eax; IMPORT 0; test %eax,%eax; jnz 1f
    mov $0x200100,%edi; mov $5,%esi; IMPORT 1; ud2
    1: test %ebx,%ebx; jz 2f; mov $0x200000,%edi; IMPORT 1; ud2
    2: pop %rbx; ret";

#[test]
fn host_functions_are_not_jumped_over() {
    let imports = Imports::new().function("back", |call, [arg, ..]| call.call_entry("inner", [arg, 0, 0, 0, 0, 0]).unwrap_or(0));
    let mut w = Builder::new(NESTED).imports(&[IMPORTS[0], IMPORTS[1], "back"]).window_with(&imports);
    for _ in 0..3 {
        assert_eq!(w.call("outer", &[Arg::Int(0)]).expect("jumps inside and outside"), 105);
        let fault = lost(w.call("outer", &[Arg::Int(1)]));
        assert_eq!((fault.jump, fault.gate), (Some(BadJump::NotActive), Some("cordon.longjmp")));
        let report = fault.report();
        assert!(report.backtrace.contains(&Frame::Import("back".into())), "{:?}", report.backtrace);
    }
}

/// What a jump leaves behind does not change how the next host function returns.
#[test]
fn host_functions_return_to_their_callers_after_a_jump() {
    let source = "
        .globl f\nf: push %rbx; mov $0x200000,%edi; IMPORT 0; test %eax,%eax; jnz 1f; mov $0x200000,%edi; mov $3,%esi; IMPORT 1; ud2
        1: mov %eax,%ebx; IMPORT 2; add %eax,%ebx; IMPORT 2; add %ebx,%eax; pop %rbx; ret";
    let mut w =
        Builder::new(source).imports(&[IMPORTS[0], IMPORTS[1], "ten"]).window_with(&Imports::new().function("ten", |_, _| 10));
    assert_eq!(w.call("f", &[]).expect("returns"), 23);
}

#[test]
fn records_lie_in_memory_of_the_handler() {
    let source = ".globl set\nset: sub $8,%rsp; IMPORT 0; lea 8(%rsp),%rsp; ret\n.globl go\ngo: sub $8,%rsp; IMPORT 1; ud2";
    let mut w = Builder::new(source).imports(&IMPORTS).window();
    let mut kind = |entry: &str, at: u64| match w.call(entry, &[Arg::Int(at), Arg::Int(1)]) {
        Err(Error::Fault(fault)) => {
            if fault.kind != FaultKind::BadJump {
                assert_eq!(fault.gate, Some(if entry == "set" { "cordon.setjmp" } else { "cordon.longjmp" }));
            }
            fault.kind
        }
        Ok(_) => FaultKind::Trap,
        Err(other) => panic!("{other:?}"),
    };
    let cases: BTreeMap<u64, (FaultKind, FaultKind)> = BTreeMap::from([
        (0, (FaultKind::NullZone, FaultKind::NullZone)),
        (0xffff, (FaultKind::NullZone, FaultKind::NullZone)),
        (0x1_0000, (FaultKind::Table, FaultKind::BadJump)),
        (u64::from(TABLE_END) - 8, (FaultKind::Table, FaultKind::Unmapped)),
        (RODATA.into(), (FaultKind::ReadOnly, FaultKind::BadJump)),
        (u64::from(HEAP) - 8, (FaultKind::Unmapped, FaultKind::Unmapped)),
        // `go` waits where `set` did, and nothing was pushed there.
        (u64::from(HEAP_END) - 64, (FaultKind::Trap, FaultKind::Trap)),
        (u64::from(HEAP_END) - 63, (FaultKind::Unmapped, FaultKind::Unmapped)),
        (0xffff_ffc0, (FaultKind::Unmapped, FaultKind::Unmapped)),
        (0xffff_ffc1, (FaultKind::GateRange, FaultKind::GateRange)),
        (1 << 32 | u64::from(HEAP), (FaultKind::GateRange, FaultKind::GateRange)),
        (u64::MAX, (FaultKind::GateRange, FaultKind::GateRange)),
    ]);
    for (at, (set, go)) in cases {
        assert_eq!((kind("set", at), kind("go", at)), (set, go), "{at:#x}");
    }
}

/// The bytes of a call within another instruction are no call.
#[test]
fn a_call_within_an_instruction_is_no_landing() {
    let source = "
        .globl f\nf: push %rbx; movabs $0x000100082514ff65,%rax; nop; call h; 1: ud2
        h: mov $0x200000,%edi; sub $8,%rsp; IMPORT 0; lea 8(%rsp),%rsp; mov %gs:0x200038,%rax; ret";
    // The immediate reads `call *%gs:T+8`; it ends where `nop` begins.
    let built = Builder::new(source).imports(&IMPORTS).build();
    let inside = built.file.windows(8).position(|w| w == [0x65, 0xff, 0x14, 0x25, 8, 0, 1, 0]);
    assert!(inside.is_some(), "the call is there");
    let text = built.labels["f"] + 1 + 10;
    let jump = format!(
        "{source}\n.globl g\ng: push %rbx; mov $0x200000,%edi; IMPORT 0; movq ${text},%gs:0x200038; mov $0x200000,%edi; IMPORT 1; ud2"
    );
    let mut w = Builder::new(&jump).imports(&IMPORTS).window();
    assert_eq!(why(w.call("g", &[])), BadJump::NoReturnOfSetjmp);
}

/// After `count` jumps within one call.
const LOOP: &str = "
    .globl loop\nloop: METER 8, 9f; push %rbx; mov %edi,%ebx; movq $0,%gs:0x200100; mov $0x200000,%edi; xor %eax,%eax; IMPORT 0
    METER 9, 8f; incq %gs:0x200100; cmp %rbx,%gs:0x200100; ja 1f; mov $0x200000,%edi; mov $2,%esi; IMPORT 1; ud2
    1: pop %rbx; ret
    9: ud2
    8: ud2
    .globl unpaid\nunpaid: METER 1023, 9b; push %rbx; mov $0x200000,%edi; IMPORT 0; 1: mov $0x200000,%edi; IMPORT 1; ud2";

#[test]
fn jumps_pay_for_what_they_run_again() {
    let mut w = Builder::new(LOOP).imports(&IMPORTS).metered().window();
    for jumps in [0, 1, 2, 1000] {
        w.call("loop", &[Arg::Int(jumps)]).expect("returns");
        // METERs, setjmp's record, and 1024 and a round for each jump.
        assert_eq!(w.fuel_used(), Some(8 + 4 + 9 + jumps * (1024 + 9)), "{jumps}");
    }
    let used = w.fuel_used().expect("metered");
    w.set_fuel(Some(used)).expect("metered");
    w.call("loop", &[Arg::Int(1000)]).expect("exactly enough");
    w.set_fuel(Some(used - 1)).expect("metered");
    assert!(matches!(w.call("loop", &[Arg::Int(1000)]), Err(Error::Fault(fault)) if fault.kind == FaultKind::Fuel));
    // No METER lies in this cycle: only the jump pays.
    w.set_fuel(Some(1_000_000)).expect("metered");
    for _ in 0..3 {
        match w.call("unpaid", &[]) {
            Err(Error::Fault(fault)) => {
                assert_eq!((fault.kind, fault.gate), (FaultKind::Fuel, Some("cordon.longjmp")));
                assert_eq!(fault.fuel.expect("metered").used, 1_000_000);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_count_is_no_part_of_the_record() {
    let source = "
        .globl f\nf: METER 20, 9f; push %rbx; mov $0x1234,%edx; mov $0x200000,%edi; IMPORT 0; METER 10, 8f; test %eax,%eax; jnz 1f
        movq $-1,%gs:0x200020; mov $0x200000,%edi; mov $2,%esi; IMPORT 1; ud2\n1: mov %rdx,%rax; pop %rbx; ret\n9: ud2\n8: ud2";
    let mut w = Builder::new(source).imports(&IMPORTS).metered().window();
    assert_eq!(w.call("f", &[]).expect("returns"), u64::MAX, "the word is for rdx");
    assert_eq!(w.fuel_used(), Some(20 + 4 + 10 + 1024 + 10), "and not for r14");
}

#[test]
fn the_time_limit_ends_endless_jumps() {
    let source = ".globl f\nf: push %rbx; mov $0x200000,%edi; IMPORT 0; mov $0x200000,%edi; mov $1,%esi; IMPORT 1; ud2";
    let mut w = Builder::new(source).imports(&IMPORTS).window();
    w.set_time_limit(Some(Duration::from_millis(5)));
    for _ in 0..10 {
        match w.call("f", &[]) {
            Err(Error::Fault(fault)) => {
                assert_eq!(fault.kind, FaultKind::TimeLimit);
                assert!(!fault.report().to_string().contains("host function"), "{}", fault.report());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn deep_stacks_are_jumped_out_of() {
    let mut w = Builder::new(SOURCE).imports(&IMPORTS).stack(64 << 20).window();
    for depth in [1_000_000, 10, 2_000_000] {
        assert_eq!(run(&mut w, [3, depth, 0, 0]).expect("jumps"), 3 | 0x5e7 << 32);
    }
}

#[test]
fn matched_text_jumps() {
    let source = "
        .globl f\nf: push %rbx; mov %rdi,%rbx; CHECK %rbx, 9f; mov $0x200000,%edi; xor %eax,%eax; IMPORT 0; test %eax,%eax; jnz 1f
        mov $0x200000,%edi; mov $3,%esi; IMPORT 1; ud2\n1: CHECK %rbx, 9f; add %gs:(%ebx),%eax; pop %rbx; ret\n9: ud2";
    let mut w = Builder::new(source).imports(&IMPORTS).data(&[40]).matched().window();
    assert_eq!(w.call("f", &[Arg::Int(DATA.into())]).expect("returns"), 43);
    // Without the second CHECK nothing is known of rbx behind the call.
    let bare = source.replace("1: CHECK %rbx, 9f; ", "1: ");
    let built = Builder::new(&bare).imports(&IMPORTS).matched().build();
    assert!(matches!(Image::from_bytes(&built.file, &options()), Err(Error::Rejected(_))));
}

#[test]
fn reports_say_why() {
    let mut w = window();
    let fault = lost(run(&mut w, [1, 2, 6, 16]));
    assert_eq!((fault.address, fault.gate), (Some(HEAP.into()), Some("cordon.longjmp")));
    assert!(fault.registers.is_none(), "longjmp's are the host's");
    let report = fault.report();
    assert_eq!(report.jump, Some(BadJump::NotActive));
    let text = report.to_string();
    for part in [
        "error[bad-jump]: longjmp to a place that does not wait for it",
        "gate cordon.longjmp",
        "has returned",
        "down+",
        "landing+",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}
