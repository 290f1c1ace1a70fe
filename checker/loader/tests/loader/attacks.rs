//! Attacks that once worked, or that only the text of a rule keeps from working.

use crate::builder::{Builder, Built, HEAP, HEAP_END, Header, options, write_header};
use crate::{handle, in_child};
use cordon_checker::LayoutError;
use cordon_checker::layout::{Region, RegionKind, Slot};
use cordon_checker::note::{NoteError, NoteSpec};
use cordon_loader::{Arg, Error, FaultKind, Image, Imports, LoadOptions, Window};
use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a small file may cost at most; each of these attacks took minutes, or all memory, before.
const QUICK: Duration = Duration::from_secs(10);

fn small() -> Built {
    Builder::new(".globl f\nf: xor %eax,%eax; ret").build()
}

fn refusal(file: &[u8]) -> Error {
    let started = Instant::now();
    let error = Image::from_bytes(file, &options()).expect_err("refused");
    assert!(started.elapsed() < QUICK, "{error}");
    error
}

/// The file of `small` with another note.
fn with_note(change: impl FnOnce(&mut NoteSpec)) -> Vec<u8> {
    let Built { mut note, labels, .. } = small();
    change(&mut note);
    crate::builder::elf(&[0x31, 0xc0, 0xc3], b"", b"", &note, &labels)
}

#[test]
fn names_that_share_bytes_do_not_multiply_memory() {
    // Names are copied once each; 20,000 names of one string of 1 MiB would take 20 GB.
    let mut file = with_note(|n| {
        n.entries = vec![(0, String::new()); 20_000];
        n.entries[0].1 = "x".repeat(1 << 20);
    });
    let first = file.windows(8).position(|w| w == b"xxxxxxxx").expect("the long name");
    // Entry names come right before imports (none) and strings.
    let names = first - 4 * 20_000;
    file[names..first].fill(0);
    assert!(matches!(refusal(&file), Error::Layout(LayoutError::Names)));
}

#[test]
fn names_do_not_act_on_a_terminal() {
    for name in ["\u{1b}[2J", "a\nb", "\u{202e}evil"] {
        let entry = with_note(|n| n.entries[0].1 = name.to_owned());
        assert!(matches!(refusal(&entry), Error::Note(NoteError::Name)), "{name:?}");
        let import = with_note(|n| {
            n.imports.push((1, name.to_owned()));
            n.slots.push(Slot::Import(0));
        });
        assert!(matches!(refusal(&import), Error::Note(NoteError::Name)), "{name:?}");
    }
    assert!(Image::from_bytes(&with_note(|n| n.entries[0].1 = "été.0$x@V1".to_owned()), &options()).is_ok());
}

#[test]
fn regions_are_few() {
    // Each region is a mapping, each read-only one also a file descriptor: the host has not many of either.
    let many = |count: u32| {
        with_note(|n| {
            let stack = n.regions.pop().expect("a stack");
            n.regions.truncate(4);
            let start = |i: u32| 0x100_0000 + 0x2000 * i;
            n.regions.extend((0..count).map(|i| Region { start: start(i), end: start(i) + 0x1000, kind: RegionKind::Rodata }));
            n.regions.push(stack);
        })
    };
    assert!(Image::from_bytes(&many(59), &options()).is_ok());
    assert!(matches!(refusal(&many(60)), Error::Layout(LayoutError::Regions)));
    assert!(matches!(refusal(&many(60_000)), Error::Layout(LayoutError::Regions)));
}

#[test]
fn program_headers_are_few() {
    const COUNT: usize = 60_000;
    let mut file = small().file;
    let table = file.len().next_multiple_of(8);
    let notes = table + 56 * COUNT;
    file.resize(notes + (8 << 20), 0);
    file[32..40].copy_from_slice(&(table as u64).to_le_bytes());
    file[56..58].copy_from_slice(&(COUNT as u16).to_le_bytes());
    // Every header is a note segment over 8 MiB of empty notes.
    let mut header: Vec<u8> = [4_u32, 4].iter().flat_map(|w| w.to_le_bytes()).collect();
    header.extend([notes as u64, 0, 0, 8 << 20, 0, 4].iter().flat_map(|w| w.to_le_bytes()));
    file[table..notes].copy_from_slice(&header.repeat(COUNT));
    assert!(matches!(refusal(&file), Error::Format { what: "too many program headers", .. }));
    // A count that is fine.
    let mut few = small().file;
    write_header(&mut few, 2, &Header { kind: 0x6474_e551, flags: 6, vaddr: 0, offset: 0, filesz: 0, memsz: 0 });
    assert!(Image::from_bytes(&few, &options()).is_ok());
}

#[test]
fn long_symbol_names_are_not_searched_again_and_again() {
    let Built { note, .. } = small();
    // 100,000 symbols whose names are the ends of one string of 4 MiB.
    let labels = (0..100_000_u32).map(|i| (format!("{i:07}"), 0)).collect();
    let mut file = crate::builder::elf(&[0x31, 0xc0, 0xc3], b"", b"", &note, &labels);
    let strings = file.windows(9).position(|w| w == b"\x000000000\0").expect("symbol names");
    file[strings + 1..strings + 1 + 8 * 100_000 - 1].fill(b'y');
    let started = Instant::now();
    assert!(Image::from_bytes(&file, &options()).is_ok());
    assert!(started.elapsed() < QUICK, "{:?}", started.elapsed());
}

/// Pages of this process that are in memory, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("readable");
    4096 * text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number")
}

#[test]
fn a_native_stack_that_was_filled_does_not_stay_in_memory() {
    in_child("attacks::a_native_stack_that_was_filled_does_not_stay_in_memory", || {
        const SOURCE: &str = ".globl f\nf: push %rdi; dec %edi; jz 1f; call f\n1: pop %rdi; ret";
        let mut w = Builder::new(SOURCE).stack(256 << 20).window();
        w.call("f", &[Arg::Int(1)]).expect("returns");
        let before = resident();
        w.call("f", &[Arg::Int(10 << 20)]).expect("returns");
        assert!(resident() < before + (16 << 20), "{} before, {} after", before, resident());
        assert!(w.call("f", &[Arg::Int(20 << 20)]).expect_err("overflows").fault().is_some());
        assert!(resident() < before + (16 << 20), "{} before, {} after", before, resident());
    });
}

#[test]
fn the_native_stack_counts_as_memory() {
    let limits = |memory_limit| {
        Image::from_bytes(
            &Builder::new(".globl f\nf: ret").stack(64 << 20).build().file,
            &LoadOptions { memory_limit, ..options() },
        )
    };
    assert!(limits(140 << 20).is_ok());
    assert!(matches!(limits(120 << 20), Err(Error::MemoryLimit { .. })));
}

thread_local! {
    static TARGET: RefCell<Option<Window>> = const { RefCell::new(None) };
}

fn call(entry: &str) -> Result<u64, Error> {
    TARGET.with(|w| w.borrow_mut().as_mut().expect("a window").call(entry, &[]))
}

extern "C" fn on_user_signal(_: libc::c_int) {
    // A fault of the handler would come on the same alternate stack, from its top, over this frame.
    let refused = matches!(call("trap"), Err(Error::SignalStack));
    TARGET.with(|_| assert!(refused, "entered on the alternate signal stack"));
}

#[test]
fn windows_are_not_entered_on_the_alternate_signal_stack() {
    in_child("attacks::windows_are_not_entered_on_the_alternate_signal_stack", || {
        let window = Builder::new(".globl trap\ntrap: ud2\n.globl ok\nok: mov $7,%eax; ret").window();
        TARGET.with(|w| *w.borrow_mut() = Some(window));
        assert_eq!(call("ok").expect("returns"), 7);
        // SAFETY: the handler does on purpose what hosts should not; nothing else runs in this process.
        unsafe {
            handle(libc::SIGUSR1, libc::SA_ONSTACK, on_user_signal);
            assert_eq!(libc::raise(libc::SIGUSR1), 0);
        }
        assert!(call("trap").expect_err("traps").fault().is_some());
        assert_eq!(call("ok").expect("returns"), 7);
    });
}

static INTERRUPTIONS: AtomicU64 = AtomicU64::new(0);

/// Calls a window, on the stack of whatever was interrupted.
extern "C" fn on_interruption(_: libc::c_int) {
    let count = INTERRUPTIONS.fetch_add(1, Ordering::Relaxed);
    let called = TARGET.with(|w| w.borrow_mut().as_mut().expect("a window").call("add", &[Arg::Int(count)]));
    // It may have interrupted the handler of the time limit.
    assert!(matches!(called, Ok(sum) if sum == count + 1000) || matches!(called, Err(Error::SignalStack)), "{called:?}");
}

/// Does rounds, numbered from 1, for two seconds, while SIGUSR2 interrupts them all the time; `handler`, which calls a window, has run once before.
fn under_interruptions(handler: extern "C" fn(libc::c_int), mut round: impl FnMut(u64)) {
    // SAFETY: the handler calls nothing that a round may have left half done; nothing else uses the signal.
    let thread = unsafe {
        handle(libc::SIGUSR2, 0, handler);
        assert_eq!(libc::raise(libc::SIGUSR2), 0);
        libc::pthread_self()
    };
    let started = Instant::now();
    let running = || started.elapsed() < Duration::from_secs(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while running() {
                // SAFETY: the thread waits for this one at the end of the scope.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        for number in (1..).take_while(|_| running()) {
            round(number);
        }
    });
}

/// Windows that a signal handler calls change nothing for the call that it interrupts, wherever that is: its native stack, target and
/// segment base stay its own.
#[test]
fn calls_inside_signal_handlers_change_no_call_that_they_interrupt() {
    in_child("attacks::calls_inside_signal_handlers_change_no_call_that_they_interrupt", || {
        // The sum of data that only its own window has, again and again.
        let source = ".globl add\nadd: mov %gs:0x200000,%rax; add %rdi,%rax; ret
            .globl sum\nsum: mov $64,%ecx; xor %eax,%eax\n1: add %gs:0x200000,%rax; dec %ecx; jnz 1b; ret";
        let window = |value: u64, fast: bool| {
            let kept = LoadOptions { host_uses_gs: false, ..options() };
            let image = Image::from_bytes(&Builder::new(source).build().file, &kept).expect("loads");
            let new = if fast { Window::new_fast } else { Window::new };
            let mut window = new(&image, &Imports::new()).expect("a window");
            window.write(HEAP, &value.to_le_bytes()).expect("writes");
            window
        };
        // In the fast window a segment base of 0 is somebody's.
        let (mut first, mut second, inner) = (window(3, true), window(5, false), window(1000, false));
        TARGET.with(|w| *w.borrow_mut() = Some(inner));
        under_interruptions(on_interruption, |round| {
            assert_eq!(first.call("add", &[Arg::Int(round)]).expect("returns"), round + 3);
            assert_eq!(first.call("sum", &[]).expect("returns"), 3 * 64);
            assert_eq!(second.call("sum", &[]).expect("returns"), 5 * 64);
        });
        assert!(INTERRUPTIONS.load(Ordering::Relaxed) > 100, "hardly interrupted");
    });
}

/// The same where every call changes the native stack for one of another size: a stack is never given to two calls at a time.
#[test]
fn calls_inside_signal_handlers_take_native_stacks_of_their_own() {
    in_child("attacks::calls_inside_signal_handlers_take_native_stacks_of_their_own", || {
        const SOURCE: &str = ".globl add\nadd: mov %gs:0x200000,%rax; add %rdi,%rax; ret
            .globl f\nf: push %rdi; push %rbx; mov $3,%ebx; IMPORT 0; add %rbx,%rax; pop %rbx; pop %rdi; add %rdi,%rax; ret";
        let window = |stack: u32, imports: &Imports| {
            let mut window = Builder::new(SOURCE).imports(&["again"]).stack(stack).window_with(imports);
            window.write(HEAP, &1000_u64.to_le_bytes()).expect("writes");
            window
        };
        let none = Imports::new().function("again", |_, _| 0);
        TARGET.with(|w| *w.borrow_mut() = Some(window(0x2_0000, &none)));
        // Another window of the same stack size as the one that the signal handler calls.
        let inner = Mutex::new(window(0x2_0000, &none));
        let imports = Imports::new().function("again", move |_, [n, ..]| {
            inner.lock().expect("nothing panics").call("f", &[Arg::Int(n)]).expect("returns")
        });
        let mut windows = [0x1_0000, 0x2_0000, 0x3_0000].map(|stack| window(stack, &imports));
        // The signal interrupts what has the window of the host function, but calls another one.
        under_interruptions(on_interruption, |round| {
            for window in &mut windows {
                assert_eq!(window.call("f", &[Arg::Int(round)]).expect("returns"), 2 * (round + 3));
            }
        });
    });
}

/// A call that has limits is running.
static LIMITED: AtomicBool = AtomicBool::new(true);

extern "C" fn on_metered_interruption(_: libc::c_int) {
    if LIMITED.load(Ordering::SeqCst) {
        return;
    }
    let called = call("pay");
    INTERRUPTIONS.fetch_add(1, Ordering::Relaxed);
    assert!(matches!(called, Ok(5) | Err(Error::SignalStack)), "{called:?}");
}

/// What an earlier call on the same native stack had met is nothing to a call from a signal handler: the one that it interrupts has not.
#[test]
fn calls_inside_signal_handlers_meet_no_limit_of_a_call_that_is_over() {
    in_child("attacks::calls_inside_signal_handlers_meet_no_limit_of_a_call_that_is_over", || {
        let metered = Builder::new(".globl pay\npay: METER 4, 9f; mov $5,%eax; ret\n9: ud2").metered();
        let mut starving = metered.window();
        starving.set_fuel(Some(3)).expect("metered");
        TARGET.with(|w| *w.borrow_mut() = Some(metered.window()));
        let mut plain = Builder::new(".globl f\nf: mov $7,%eax; ret").window();
        assert_eq!(plain.call("f", &[]).expect("returns"), 7);
        under_interruptions(on_metered_interruption, |_| {
            LIMITED.store(true, Ordering::SeqCst);
            let fault = starving.call("pay", &[]).expect_err("out of fuel");
            assert_eq!(fault.fault().map(|fault| fault.kind), Some(FaultKind::Fuel), "{fault}");
            LIMITED.store(false, Ordering::SeqCst);
            assert_eq!(plain.call("f", &[]).expect("returns"), 7);
        });
        assert!(INTERRUPTIONS.load(Ordering::Relaxed) > 0, "never interrupted");
    });
}

extern "C" fn at_exit() {
    // A fault of the host's own, for the actions that the windows found.
    // SAFETY: meant to fault; the action for that ends the process.
    unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
}

extern "C" fn on_host_fault(_: libc::c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(9) };
}

/// Thread variables go while the call around the host function still runs.
#[test]
fn host_functions_may_end_the_process() {
    let name = "attacks::host_functions_may_end_the_process";
    let status = crate::child_status(name, || {
        // SAFETY: both functions do what such functions may.
        unsafe {
            handle(libc::SIGSEGV, 0, on_host_fault);
            assert_eq!(libc::atexit(at_exit), 0);
        }
        let imports = Imports::new().function("end", |_, _| std::process::exit(7));
        let mut window = Builder::new(".globl f\nf: jmp *%gs:T+8").imports(&["end"]).window_with(&imports);
        let _ = window.call("f", &[]);
    });
    assert!(status.is_none_or(|status| status.code() == Some(9)), "{status:?}");
}

/// Lane masks: rdi = window offset, rsi = bit per lane of eight.
const MASKED: &str = "
    .macro MASK
    vmovd %esi,%xmm1; vpbroadcastd %xmm1,%ymm1; vpsllvd %gs:0x20000,%ymm1,%ymm1; vpcmpeqd %ymm2,%ymm2,%ymm2
    .endm
    .globl load\nload: MASK; vmaskmovps %gs:(%edi),%ymm1,%ymm0; vmovdqu %ymm0,%gs:0x200000; xor %eax,%eax; ret
    .globl load_d\nload_d: MASK; vpmaskmovd %gs:(%edi),%ymm1,%ymm0; vmovdqu %ymm0,%gs:0x200000; xor %eax,%eax; ret
    .globl store\nstore: MASK; vmaskmovps %ymm2,%ymm1,%gs:(%edi); xor %eax,%eax; ret
    .globl store_d\nstore_d: MASK; vpmaskmovd %ymm2,%ymm1,%gs:(%edi); xor %eax,%eax; ret";

/// B1: lanes that are off do not fault, lanes that are on fault at every edge, and nothing outside is read or written.
#[test]
fn masked_moves_stay_in_the_window() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    let shifts: Vec<u8> = (0..8_u32).flat_map(|i| (31 - i).to_le_bytes()).collect();
    let mut w = Builder::new(MASKED).rodata(&shifts).window();
    for (load, store) in [("load", "store"), ("load_d", "store_d")] {
        // The first lane on the last mapped word, the others beyond.
        w.write(HEAP_END - 32, &[0x5a; 32]).expect("writes");
        for (offset, lanes) in
            [(HEAP_END - 4, 0x01_u64), (HEAP_END - 16, 0x0f), (HEAP - 28, 0x80), (0xffff_fffc, 0), (0, 0), (8, 0)]
        {
            w.call(load, &[Arg::Int(offset.into()), Arg::Int(lanes)]).expect("only mapped lanes are on");
            w.call(store, &[Arg::Int(offset.into()), Arg::Int(lanes)]).expect("only mapped lanes are on");
        }
        assert_eq!(w.bytes(HEAP_END - 20, 20).expect("reads"), [vec![0x5a; 4], vec![0xff; 16]].concat());
        // One lane on where nothing is: beyond the region, across 4 GiB (the guard above or the null zone), in the null zone.
        for (offset, lanes) in [(HEAP_END - 4, 0x02_u64), (HEAP - 28, 0x40), (0xffff_fffc, 0x02), (0xffff_fff0, 0x80), (0, 0x80)]
        {
            for entry in [load, store] {
                let error = w.call(entry, &[Arg::Int(offset.into()), Arg::Int(lanes)]).expect_err("a lane is on");
                let kind = error.fault().expect("a fault").kind;
                assert!(matches!(kind, FaultKind::Unmapped | FaultKind::NullZone), "{entry} {offset:#x} {lanes:#x}: {kind:?}");
            }
        }
    }
}
