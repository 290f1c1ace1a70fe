//! Reports of every kind of fault, field by field; backtraces; many faults in a row.

use crate::builder::{Builder, DATA, HEAP, HEAP_END, RODATA, TABLE_END, options};
use cordon_checker::layout::{USER_STACK_LOW, USER_STACK_SHIFT};
use cordon_loader::{Arg, Error, FaultKind, Frame, Image, Imports, Protect, Report, Window};
use std::time::{Duration, Instant};

/// What the host function takes that is to take too long.
const SLEEP: Duration = Duration::from_millis(400);

const SOURCE: &str = "
    .globl load\nload: mov %gs:(%edi),%rax; ret
    .globl store\nstore: mov %rsi,%gs:(%edi); ret
    .globl scaled\nscaled: addl $1,%gs:-16(%edi,%esi,4); ret
    .globl absolute\nabsolute: movb $1,%gs:0x7ff0; ret
    .globl wide\nwide: movdqu %gs:(%edi),%xmm0; ret
    .globl aligned\naligned: movaps %xmm0,%gs:(%edi); ret
    .globl local\nlocal: mov %gs:K+8(%esp,%edi,8),%eax; ret
    .globl divide\ndivide: mov %rdi,%rax; xor %edx,%edx; divq %rsi; ret
    .globl trap\ntrap: ud2
    .globl pointer\npointer: sub $8,%rsp; and $MASK,%edi; call *%gs:T(%rdi); add $8,%rsp; ret
    .globl recurse\nrecurse: call recurse; ret
    .globl frames\nframes: sub $72,%rsp; movl $1,%gs:K(%esp); call frames; add $72,%rsp; ret
    .globl spin\nspin: jmp spin
    .globl sleep\nsleep: push %rbx; IMPORT 0; pop %rbx; ret
    .globl copy\ncopy: sub $8,%rsp; IMPORT 1; add $8,%rsp; ret
    .globl byname\nbyname: sub $8,%rsp; mov $16,%ecx; and $MASK,%ecx; call *%gs:T(%rcx); add $8,%rsp; ret
    .globl scan\nscan: push %rbx; mov %rsi,%rcx; xor %eax,%eax; IMPORT 2; pop %rbx; ret
    .globl word\nword: mov %edi,%eax; push %rbp; IMPORT 3; pop %rbp; ret
    .globl back\nback: push %rbx; mov $8*S0,%edi; IMPORT 4; pop %rbx; ret
    inner: push %rbp; push %r12; call leaf; pop %r12; pop %rbp; ret
    leaf: sub $40,%rsp; mov %gs:8,%rax; add $40,%rsp; ret";

fn builder() -> Builder {
    Builder::new(SOURCE).imports(&["sleep", "memcpy", "cordon.repne_scas1", "cordon.ldmxcsr", "again"]).slots(&["inner"])
}

fn imports() -> Imports {
    let imports = Imports::new().function("again", |call, [pointer, ..]| call.call_back(pointer, [0; 6]).unwrap_or(0));
    imports.function("sleep", |_, _| {
        std::thread::sleep(SLEEP);
        0
    })
}

fn window(builder: &Builder) -> Window {
    let image = Image::named("demo", &builder.build().file, &options()).expect("loads");
    Window::new(&image, &imports()).expect("makes a window")
}

fn report(window: &mut Window, entry: &str, args: &[u64]) -> Report {
    let args: Vec<Arg<'_>> = args.iter().map(|a| Arg::Int(*a)).collect();
    match window.call(entry, &args) {
        Err(Error::Fault(fault)) => fault.report(),
        other => panic!("{entry}: no fault: {other:?}"),
    }
}

/// One line with what tells kinds of faults apart; all of a report's fields are in it or are compared by [`common`].
fn line(report: &Report) -> String {
    let mut text = report.kind.code().to_owned();
    if let Some(access) = report.access {
        text += &format!(" {}", if access == cordon_loader::FaultAccess::Read { "read" } else { "write" });
    }
    text += &report.bytes.map_or(String::new(), |bytes| format!(" {bytes}"));
    text += &report.address.map_or(String::new(), |at| format!(" at {at:#x}"));
    text += &report.window_offset.map_or(String::new(), |at| format!(" = {at:#x}"));
    text += &report.region.as_ref().map_or(String::new(), |region| format!(", {region}"));
    text += &report.gate.as_ref().map_or(String::new(), |gate| format!(", gate {gate}"));
    text += &report.import.as_ref().map_or(String::new(), |import| format!(", import {import}"));
    text += if report.registers.is_some() { "" } else { ", no registers" };
    text + " | " + &frames(report)
}

fn frames(report: &Report) -> String {
    let frame = |frame: &Frame| match frame {
        Frame::Gate(name) => format!("gate {name}"),
        Frame::Import(name) => format!("import {name}"),
        Frame::Code(place) => format!("{}+{}", place.function.as_deref().unwrap_or("?"), place.function_offset.unwrap_or(9999)),
    };
    report.backtrace.iter().map(frame).collect::<Vec<_>>().join(" < ")
}

/// What all reports of faults in `entry` have.
fn common(report: &Report, entry: &str) {
    assert_eq!((report.handler.as_deref(), report.entry.as_deref()), (Some("demo"), Some(entry)));
    assert_eq!(report.message, report.kind.text());
    let place = report.place.as_ref().expect("a place");
    let origin = place.origin.as_ref().expect("an origin");
    assert_eq!((origin.object.as_str(), origin.section, origin.offset), ("test.o", 3, 0x100));
    assert_eq!(report.instruction.as_deref(), Some("mov 7(%rdi),%eax"));
    assert!(place.source.is_none() && report.fuel.is_none());
    let text = report.to_string();
    assert!(text.starts_with(&format!("error[{}]: {}\n  --> ", report.kind.code(), report.message)), "{text}");
    for part in
        ["mov 7(%rdi),%eax", "= handler: demo", &format!("= entry: {entry}"), "test.o section 3 offset 0x100", "= backtrace"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(report.notes.iter().all(|note| text.contains(note.as_str())), "{text}");
    assert_eq!(text.contains("     rax "), report.registers.is_some(), "{text}");
}

#[test]
fn every_kind_is_reported_with_all_its_fields() {
    let mut w = window(&builder());
    let (rodata, table_end) = (u64::from(RODATA), u64::from(TABLE_END));
    let heap = u64::from(HEAP);
    let cases: &[(&str, &[u64], String)] = &[
        ("load", &[8], "null-zone read 8 at 0x8 = 0x8, in the null zone | load+0".into()),
        ("absolute", &[], "null-zone write 1 at 0x7ff0 = 0x7ff0, in the null zone | absolute+0".into()),
        ("load", &[5 << 32 | 8], "null-zone read 8 at 0x500000008 = 0x8, in the null zone | load+0".into()),
        ("store", &[rodata], "read-only write 8 at 0x20000 = 0x20000, in the read-only data | store+0".into()),
        ("store", &[table_end - 8], "table write 8 at 0x10ff8 = 0x10ff8, in the code-pointer table | store+0".into()),
        ("load", &[table_end], "unmapped read 8 at 0x11000 = 0x11000, 1 byte past the end of the code-pointer table | load+0".into()),
        ("load", &[u64::from(DATA) - 100], "unmapped read 8 at 0x2ff9c = 0x2ff9c, 100 bytes before the data | load+0".into()),
        ("wide", &[u64::from(HEAP_END) + 4], "unmapped read 16 at 0x600004 = 0x600004, 5 bytes past the end of the heap | wide+0".into()),
        ("wide", &[u64::from(HEAP_END) - 1], "unmapped read 16 at 0x5fffff = 0x5fffff, 1 byte past the end of the heap | wide+0".into()),
        ("scaled", &[heap, u64::MAX << 18], "unmapped write 4 at 0xffff0 = 0xffff0, 16 bytes before the argument area | scaled+0".into()),
        ("scaled", &[heap, 1 << 40], "unmapped write 4 at 0x400001ffff0 = 0x1ffff0, 16 bytes before the heap | scaled+0".into()),
        ("load", &[0x9000_0000], "unmapped read 8 at 0x90000000 = 0x90000000 | load+0".into()),
        ("load", &[u64::MAX], "unmapped read 8 at 0xffffffffffffffff = 0xffffffff | load+0".into()),
        ("aligned", &[heap + 8], "misaligned write 16 at 0x200008 = 0x200008, in the heap | aligned+0".into()),
        ("divide", &[1, 0], "divide | divide+5".into()),
        ("trap", &[], "trap | trap+0".into()),
        ("pointer", &[0], "bad-code-pointer | pointer+17".into()),
        ("copy", &[heap, heap, 1 << 33], "gate-range write 8589934592 at 0x200000 = 0x200000, in the heap, gate memcpy, no registers | gate memcpy < copy+12".into()),
        ("copy", &[heap, 0xfff8 + (1 << 50), 8], "gate-range read 8 at 0x400000000fff8 = 0xfff8, gate memcpy, no registers | gate memcpy < copy+12".into()),
        ("copy", &[0x1_0000, heap, 8], "table write 8 at 0x10000 = 0x10000, in the code-pointer table, gate memcpy, no registers | gate memcpy < copy+12".into()),
        ("copy", &[heap, 0x8000, 8], "null-zone read at 0x8000 = 0x8000, in the null zone, gate memcpy, no registers | gate memcpy < copy+12".into()),
        ("byname", &[heap, heap + (1 << 40), 8], "gate-range read 8 at 0x10000200000 = 0x200000, gate memmove, no registers | gate memmove < byname+22".into()),
        ("scan", &[u64::from(HEAP_END), 5], "unmapped read at 0x600000 = 0x600000, 1 byte past the end of the heap, gate cordon.repne_scas1, no registers | gate cordon.repne_scas1 < scan+14".into()),
        ("word", &[0xfffe], "null-zone read at 0xfffe = 0xfffe, in the null zone, gate cordon.ldmxcsr, no registers | gate cordon.ldmxcsr < word+11".into()),
    ];
    for (entry, args, expected) in cases {
        let report = report(&mut w, entry, args);
        common(&report, entry);
        let got = line(&report);
        assert_eq!(got, *expected, "{entry} {args:x?}");
        assert!(report.backtrace_complete && report.time.is_none());
        let past = report.kind == FaultKind::GateRange && report.address < Some(1 << 32);
        assert_eq!(report.notes == ["the range ends at 0x200200000, past the window's 4 GiB"], past, "{:?}", report.notes);
    }
}

#[test]
fn stack_overflows_are_told_with_the_frames_that_fit() {
    let mut w = window(&builder());
    let deep = report(&mut w, "recurse", &[]);
    common(&deep, "recurse");
    assert!(line(&deep).starts_with("native-stack-overflow | recurse+0 < recurse+5 < recurse+5"), "{}", line(&deep));
    assert_eq!((deep.backtrace.len(), deep.backtrace_complete), (256, false));
    assert!(deep.to_string().contains("… 232 more\n"));
    let frames = report(&mut w, "frames", &[]);
    let low = u64::from(USER_STACK_LOW) + 8 + u64::from(USER_STACK_SHIFT) - 0x1_0000;
    let told = format!(
        "data-stack-overflow write 4 at {0:#x} = {0:#x}, in the guard below the data stack | frames+4 < ",
        frames.address.expect("told")
    );
    assert!(line(&frames).starts_with(&told), "{}", line(&frames));
    assert!(frames.address.is_some_and(|at| at < low && at >= low - 80));
    // 80 bytes a frame in 64 KiB.
    assert!(frames.backtrace_complete == (frames.backtrace.len() < 256) && frames.backtrace.len() == 256);
}

/// A local access with an index that went wild: the base is the stack, whose address is told without its secret half.
#[test]
fn accesses_through_the_stack_pointer_tell_window_addresses() {
    let mut w = window(&builder());
    let report = report(&mut w, "local", &[0x1_0000]);
    let at = u64::from(USER_STACK_LOW) + u64::from(USER_STACK_SHIFT) + 8 + 0x8_0000;
    assert_eq!((report.address, report.window_offset), (Some(at), Some(at as u32)));
    assert_eq!(report.region.expect("near").to_string(), "520193 bytes past the end of the data stack");
}

#[test]
fn time_and_fuel_are_reported_with_their_details() {
    let mut w = window(&builder());
    w.set_time_limit(Some(Duration::from_millis(2)));
    let spun = report(&mut w, "spin", &[]);
    common(&spun, "spin");
    assert_eq!(line(&spun), "time-limit | spin+0");
    let time = spun.time.expect("told");
    assert!(time.limit_ns == 2_000_000 && time.elapsed_ns >= time.limit_ns && !time.outer);
    // Long enough to come to the host function however busy the machine is.
    w.set_time_limit(Some(SLEEP / 2));
    let slept = report(&mut w, "sleep", &[]);
    common(&slept, "sleep");
    assert_eq!(line(&slept), "time-limit, import sleep, no registers | import sleep < sleep+9");
    assert_eq!(slept.notes, ["the call ended when the host function returned"]);
    let source = ".globl loop\nloop: METER 2, out; nop\nhead: METER 2, out; jmp head\nout: ud2
        .globl copy\ncopy: METER 5, 9f; sub $8,%rsp; IMPORT 0; add $8,%rsp; ret\n9: ud2";
    let metered = Builder::new(source).imports(&["memcpy"]).metered().stubs(&[("out", "head", true)]);
    let mut w = window(&metered);
    w.set_fuel(Some(101)).expect("metered");
    let starved = report(&mut w, "loop", &[]);
    assert_eq!(line(&starved), "fuel | head+0", "the meter, not the trap");
    let fuel = starved.fuel.expect("metered");
    assert_eq!((fuel.limit, fuel.used), (101, 101));
    assert!(starved.to_string().contains("= fuel: all of 101 instructions used"));
    let copied = report(&mut w, "copy", &[HEAP.into(), HEAP.into(), 16 * 97]);
    assert_eq!(line(&copied), "fuel, gate memcpy, no registers | gate memcpy < copy+18");
    assert_eq!(copied.notes, ["the gate would have cost more than was left"]);
}

#[test]
fn callbacks_show_both_sides_of_the_host_function() {
    let mut w = window(&builder());
    let report = report(&mut w, "back", &[]);
    assert_eq!(line(&report), "null-zone read 8 at 0x8 = 0x8, in the null zone | leaf+4 < inner+8 < import again < back+14");
    assert_eq!(report.entry.as_deref(), Some("back"), "what the host called");
}

/// Values that look like return addresses, pushed by a handler that read them from its table, deceive nobody.
#[test]
fn backtraces_are_exact_whatever_is_pushed() {
    let source = ".globl outer\nouter: mov %gs:T+8*S0,%rax; push %rax; push %rax; call middle; pop %rax; pop %rax; ret
        middle: mov %gs:T+8*S0,%rbx; push %rbx; sub $24,%rsp; call fail; add $24,%rsp; pop %rbx; ret
        .globl gated\ngated: mov %gs:T+8*S0,%rax; mov %rax,%r8; mov %rax,%r9; mov %rax,%r10; mov $8,%ecx; mov %esi,%esi; mov $8,%edi; IMPORT 0; ret
        fail: push %rax; ud2
        other: ret";
    let mut w = window(&Builder::new(source).imports(&["cordon.repe_cmps8"]).slots(&["other"]));
    assert_eq!(frames(&report(&mut w, "outer", &[])), "fail+1 < middle+19 < outer+16");
    let gated = report(&mut w, "gated", &[0, HEAP.into()]);
    assert!(line(&gated).ends_with("| gate cordon.repe_cmps8 < gated+38"), "{}", line(&gated));
}

/// Match mode: entries `NAME` with a check of rdi in front of an access at `NAME_at`, and the stub that belongs to it.
const ACCESSES: [(&str, &str, u64, bool); 9] = [
    ("read1", "movzbl %gs:0x7fff(%edi),%eax", 1, false),
    ("read2", "movzwl %gs:-8(%edi),%eax", 2, false),
    ("read4", "mov %gs:(%edi),%eax", 4, false),
    ("write8", "mov %rsi,%gs:16(%edi)", 8, true),
    ("change8", "addq $1,%gs:16(%edi)", 8, true),
    ("read10", "fldt %gs:(%edi)", 10, false),
    ("read16", "movdqu %gs:(%edi),%xmm0", 16, false),
    ("write32", "vmovdqu %ymm0,%gs:(%edi)", 32, true),
    ("write1", "movb $7,%gs:(%edi)", 1, true),
];

fn matched() -> Builder {
    let mut source = String::new();
    let mut stubs = Vec::new();
    for (name, access, ..) in ACCESSES {
        source += &format!(
            ".globl {name}\n{name}: push %rbx; CHECK %rdi, {name}_stub\n{name}_at: {access}; pop %rbx; ret\n{name}_stub: ud2\n"
        );
        let label = |suffix: &str| -> &'static str { format!("{name}{suffix}").leak() };
        stubs.push((label("_stub"), label("_at"), false));
    }
    source += ".globl unlisted\nunlisted: CHECK %rdi, 9f; mov %gs:(%edi),%eax; ret\n9: ud2\n.globl abort\nabort: ud2\n";
    Builder::new(&source).matched().stubs(&stubs)
}

#[test]
fn stray_accesses_do_not_happen_and_are_told() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return;
    }
    let mut w = window(&matched());
    let displacement = |name: &str| match name {
        "read1" => 0x7fff,
        "read2" => -8,
        "write8" | "change8" => 16,
        _ => 0_i64,
    };
    for (name, _, bytes, write) in ACCESSES {
        w.write(HEAP, &[0x55; 0x100]).expect("heap");
        assert!(w.call(name, &[Arg::Int(u64::from(HEAP) + 64)]).is_ok(), "{name}");
        for base in [0x8000_0000, u64::MAX, 7 << 32 | u64::from(HEAP), 1 << 63] {
            let before = w.bytes(HEAP, 0x100).expect("heap").to_vec();
            let report = report(&mut w, name, &[base, 1]);
            common(&report, name);
            let address = base.wrapping_add_signed(displacement(name));
            assert_eq!(
                (report.kind, report.address, report.window_offset),
                (FaultKind::StrayAccess, Some(address), Some(address as u32))
            );
            assert_eq!((report.bytes, report.access == Some(cordon_loader::FaultAccess::Write)), (Some(bytes), write), "{name}");
            // The place is the access, which lies behind the push and the check.
            let place = report.place.as_ref().expect("a place");
            assert_eq!(place.function.as_deref(), Some(format!("{name}_at").as_str()));
            assert_eq!((place.function_offset, frames(&report)), (Some(0), format!("{name}_at+0")), "depth of the check");
            assert_eq!(report.registers.expect("the handler's").general[7], base);
            assert!(report.rewritten.as_ref().is_some_and(|text| text.contains("%gs:")), "{report:?}");
            let told = report.notes.iter().any(|note| note.contains("would have gone to"));
            assert!(told == (address != u64::from(address as u32)), "{name} {base:#x}: {:?}", report.notes);
            assert_eq!(w.bytes(HEAP, 0x100).expect("heap"), before, "nothing was written");
        }
    }
    assert_eq!(report(&mut w, "unlisted", &[1 << 40]).kind, FaultKind::Trap, "the image does not say what it is");
    assert_eq!(report(&mut w, "abort", &[]).kind, FaultKind::Trap);
}

/// Loads that are not protected go where they point: to the host's memory, of which a report tells nothing, or to no address at all.
#[test]
fn loads_that_are_not_protected_are_reported_with_their_own_address() {
    let source = ".globl load\nload: mov %gs:8(%rdi),%eax; ret\n.globl store\nstore: mov %eax,%gs:8(%edi); ret";
    let mut builder = Builder::new(source);
    builder.mode.protect = Protect::Stores;
    let mut options = options();
    assert!(matches!(Image::from_bytes(&builder.build().file, &options), Err(Error::Layout(_))), "the host must say so");
    options.policy.mode.protect = Protect::Stores;
    let image = Image::from_bytes(&builder.build().file, &options).expect("loads");
    let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
    assert_eq!(w.call("load", &[Arg::Int(HEAP.into())]).expect("returns"), 0);
    // 2^62 is no address; the processor raises a protection fault there.
    for address in [1_u64 << 62, 8] {
        let report = report(&mut w, "load", &[address - 8]);
        let kind = if address == 8 { FaultKind::NullZone } else { FaultKind::Outside };
        assert_eq!((report.kind, report.address, report.bytes), (kind, Some(address), Some(4)));
        assert_eq!(report.window_offset, (address == 8).then_some(8));
    }
    let stored = report(&mut w, "store", &[5 << 32]);
    assert_eq!((stored.kind, stored.address, stored.window_offset), (FaultKind::NullZone, Some((5 << 32) + 8), Some(8)));
}

/// Stubs of an image that does not claim match mode mean nothing, and stubs that lead nowhere are left out.
#[test]
fn stubs_are_believed_only_as_far_as_the_checker_looked() {
    let source = ".globl f\nf: ud2\n.globl g\ng: ud2\nend: ret";
    let mut w = window(&Builder::new(source).stubs(&[("f", "end", false), ("g", "end", true)]));
    assert_eq!(line(&report(&mut w, "f", &[])), "trap | f+0");
    assert_eq!(line(&report(&mut w, "g", &[])), "trap | g+0");
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("reads the memory use");
    text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number")
}

/// Runs in a process of its own, whose memory is measured.
#[test]
fn faults_in_a_row_leak_nothing_and_slow_nothing() {
    crate::in_child("report::faults_in_a_row_leak_nothing_and_slow_nothing", || {
        let mut w = window(&builder());
        let mut round = |count: u32, told: bool| {
            let start = Instant::now();
            for n in 0..count {
                let fault = w.call("back", &[]).expect_err("faults");
                if told {
                    assert_eq!(fault.fault().expect("a fault").report().backtrace.len(), 4);
                }
                if n % 100 == 0 {
                    let deep = w.call("recurse", &[]).expect_err("faults");
                    assert_eq!(deep.fault().map(|f| f.kind), Some(FaultKind::NativeStackOverflow));
                }
            }
            start.elapsed()
        };
        round(1000, true);
        let before = resident();
        let first = round(1000, false);
        let told = round(1000, true);
        for _ in 0..10 {
            round(1000, false);
        }
        let last = round(1000, false);
        assert!(resident() < before + 256, "{} pages, {before} before", resident());
        assert!(last < 10 * first + Duration::from_millis(100), "{last:?} after {first:?}");
        assert!(told < Duration::from_secs(5), "{told:?}");
    });
}

#[test]
fn threads_and_the_fast_window_report_alike() {
    crate::in_child("report::threads_and_the_fast_window_report_alike", || {
        let image = Image::named("demo", &builder().build().file, &options()).expect("loads");
        let mut fast = Window::new_fast(&image, &imports()).expect("makes the fast window");
        let expected = report(&mut fast, "back", &[]);
        let wide = report(&mut fast, "wide", &[u64::from(HEAP_END) - 4]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut w = Window::new(&image, &imports()).expect("makes a window");
                    for _ in 0..100 {
                        let got = report(&mut w, "back", &[]);
                        assert_eq!(got, expected);
                        assert_eq!(report(&mut w, "wide", &[u64::from(HEAP_END) - 4]), wide);
                    }
                });
            }
        });
    });
}

/// What a host logs: `unwrap`, or an error that `main` returns.
#[test]
fn debug_forms_are_short_and_have_no_host_address() {
    let image = Image::named("demo", &builder().build().file, &options()).expect("loads");
    let mut window = Window::new(&image, &imports()).expect("window");
    let error = window.call("load", &[Arg::Int(0)]).expect_err("a null pointer");
    let base = window.bytes(DATA, 1).expect("data").as_ptr() as u64 - u64::from(DATA);
    let hidden = [image.text_address(), base].map(|address| address.to_string());
    for shown in [format!("{image:?}"), format!("{window:?}"), format!("{error:?}")] {
        assert!(shown.len() < 1500 && shown.contains("Image {"), "{shown}");
        assert!(!hidden.iter().any(|address| shown.contains(address)), "{shown}");
    }
}
