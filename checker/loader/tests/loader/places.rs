//! Where things lie: windows, text, the fast window, seals, threads.

use crate::builder::{Builder, DATA, HEAP, RODATA};
use cordon_loader::{Arg, Error, FaultKind, Image, Imports, LoadOptions, Window};
use std::fs;
use std::sync::Arc;

const SOURCE: &str = ".globl put\nput: mov %rsi,%gs:(%edi); xor %eax,%eax; ret
    .globl get\nget: mov %gs:(%edi),%rax; ret
    .globl slot\nslot: mov %gs:T+8*S0,%rax; ret
    .globl stub\nstub: mov %gs:T+8,%rax; ret
    .globl trap\ntrap: mov %gs:T,%rax; ret";

fn builder() -> Builder {
    Builder::new(SOURCE).imports(&["memcpy"]).slots(&["get"]).rodata(b"read-only").data(b"data")
}

/// Lines of the process's memory map: start, end, permissions.
fn maps() -> Vec<(u64, u64, String)> {
    let text = fs::read_to_string("/proc/self/maps").expect("reads the memory map");
    let parse = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?, rest[..4].to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

fn at(maps: &[(u64, u64, String)], address: u64) -> Option<&(u64, u64, String)> {
    maps.iter().find(|(start, end, _)| (*start..*end).contains(&address))
}

fn check_layout(w: &mut Window) {
    let heap = w.bytes(HEAP, 1).expect("heap").as_ptr() as u64;
    let base = heap - u64::from(HEAP);
    let maps = maps();
    let access = |offset: u64| at(&maps, base + offset).map(|(_, _, p)| p[..3].to_owned());
    let inaccessible = |offset: u64| access(offset).is_none_or(|p| p == "---");
    assert!(inaccessible(0x8000) && inaccessible(0xffff) && (base == 0 || inaccessible(0)));
    assert_eq!(access(0x1_0000).as_deref(), Some("r--"), "table");
    assert_eq!(access(u64::from(RODATA)).as_deref(), Some("r--"));
    assert_eq!(access(u64::from(DATA)).as_deref(), Some("rw-"));
    assert_eq!(access(u64::from(HEAP)).as_deref(), Some("rw-"));
    assert!(inaccessible(0xffff_ffff) && access(0xffff_ffff).is_some());
    assert!(inaccessible(0x1_0000_ffff) && access(0x1_0000_ffff).is_some(), "64 KiB above the window are reserved");
    assert!(maps.iter().all(|(_, _, p)| !(p.contains('w') && p.contains('x'))), "nothing is writable and executable");
    for name in ["slot", "stub", "trap"] {
        let address = w.call(name, &[]).expect("returns");
        assert_eq!(at(&maps, address).map(|(_, _, p)| &p[..3]), Some("r-x"), "{name} leads into text");
        assert!(address >= (1 << 32) + 0x1_0000 && !(base..base + (1 << 32)).contains(&address));
        let host = crate::builder::options as *const () as u64;
        assert!(at(&maps, host).map(|m| m.0) != at(&maps, address).map(|m| m.0), "not into the host's text");
    }
}

#[test]
fn window_layout_is_as_designed() {
    for seal in [false, true] {
        let image = Image::from_bytes(&builder().build().file, &LoadOptions { seal, ..LoadOptions::default() }).expect("loads");
        let mut windows: Vec<Window> = (0..4).map(|_| Window::new(&image, &Imports::new()).expect("makes a window")).collect();
        windows.iter_mut().for_each(check_layout);
        let bases: std::collections::BTreeSet<_> = windows.iter().map(|w| w.bytes(HEAP, 1).expect("heap").as_ptr()).collect();
        assert_eq!(bases.len(), 4);
        let shared: std::collections::BTreeSet<_> = windows.iter_mut().map(|w| w.call("slot", &[]).expect("returns")).collect();
        assert_eq!(shared.len(), 1, "text is shared");
    }
}

/// Whether the kernel has `mseal` (Linux 6.10).
fn has_mseal() -> bool {
    // SAFETY: sealing nothing changes nothing.
    unsafe { libc::syscall(462, 0, 0, 0) == 0 }
}

#[test]
fn sealed_reservations_serve_the_next_windows() {
    let image = Image::from_bytes(&builder().build().file, &LoadOptions::default()).expect("loads");
    let first = Window::new(&image, &Imports::new()).expect("makes a window");
    let base = first.bytes(HEAP, 1).expect("heap").as_ptr() as u64 - u64::from(HEAP);
    drop(first);
    for _ in 0..3 {
        let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
        if has_mseal() {
            assert_eq!(w.bytes(HEAP, 1).expect("heap").as_ptr() as u64 - u64::from(HEAP), base);
            let table = (base + 0x1_0000) as *mut libc::c_void;
            // SAFETY: the kernel refuses it; that is what is tested.
            let changed = unsafe { libc::mprotect(table, 4096, libc::PROT_READ | libc::PROT_WRITE) };
            assert_eq!(changed, -1, "the table cannot be made writable");
        }
        assert_eq!(w.bytes(HEAP, 8).expect("heap"), [0; 8]);
        assert_eq!(w.bytes(DATA, 4).expect("data"), b"data");
        w.call("put", &[Arg::Int(HEAP.into()), Arg::Int(1)]).expect("returns");
        w.call("put", &[Arg::Int(DATA.into()), Arg::Int(1)]).expect("returns");
        check_layout(&mut w);
    }
}

/// The heap, a stack and libraries of a position-independent program lie high, so base 0 is free in a process of its own.
#[test]
fn fast_window_is_there_once_and_behaves_like_any_other() {
    crate::in_child("places::fast_window_is_there_once_and_behaves_like_any_other", || {
        for seal in [false, true] {
            let options = LoadOptions { seal, ..LoadOptions::default() };
            let image = Image::from_bytes(&builder().build().file, &options).expect("loads");
            for _ in 0..3 {
                let mut w = Window::new_fast(&image, &Imports::new()).expect("makes the fast window");
                assert!(w.is_fast());
                assert!(matches!(Window::new_fast(&image, &Imports::new()), Err(Error::FastWindow(_))));
                check_layout(&mut w);
                w.call("put", &[Arg::Int(HEAP.into()), Arg::Int(77)]).expect("returns");
                assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), 77);
                let fault = w.call("get", &[Arg::Int(8)]).expect_err("faults");
                assert_eq!(fault.fault().map(|f| (f.kind, f.window_offset)), Some((FaultKind::NullZone, Some(8))));
                let mut other = Window::new(&image, &Imports::new()).expect("makes a window");
                assert_eq!(other.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), 0);
                assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), 77);
            }
        }
    });
}

#[test]
fn fast_window_is_refused_where_something_lies_low() {
    crate::in_child("places::fast_window_is_refused_where_something_lies_low", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping at a free place.
        let low = unsafe { libc::mmap(0x7000_0000 as *mut _, 4096, libc::PROT_READ, flags, -1, 0) };
        assert_ne!(low, libc::MAP_FAILED);
        let image = builder().image();
        assert!(matches!(Window::new_fast(&image, &Imports::new()), Err(Error::FastWindow(_))));
        // SAFETY: our own mapping.
        unsafe { libc::munmap(low, 4096) };
        assert!(Window::new_fast(&image, &Imports::new()).is_ok(), "a refusal leaves nothing behind");
    });
}

#[test]
fn threads_have_windows_each() {
    let image = builder().image();
    let threads: Vec<_> = (0..4_u64)
        .map(|n| {
            let image = Arc::clone(&image);
            std::thread::spawn(move || {
                let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
                for round in 0..2000 {
                    let value = n << 32 | round;
                    w.call("put", &[Arg::Int(HEAP.into()), Arg::Int(value)]).expect("returns");
                    if round % 16 == 0 {
                        assert!(matches!(w.call("get", &[Arg::Int(n)]), Err(Error::Fault(_))));
                    }
                    assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), value);
                }
                w
            })
        })
        .collect();
    // A window goes on on another thread.
    for (n, thread) in threads.into_iter().enumerate() {
        let mut w = thread.join().expect("thread ends");
        assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), (n as u64) << 32 | 1999);
        assert!(matches!(w.call("get", &[Arg::Int(0)]), Err(Error::Fault(_))));
    }
}

#[test]
fn nothing_is_left_behind() {
    crate::in_child("places::nothing_is_left_behind", || {
        let file = builder().build().file;
        let round = || {
            let image = Image::from_bytes(&file, &crate::builder::options()).expect("loads");
            let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
            w.call("put", &[Arg::Int(HEAP.into()), Arg::Int(1)]).expect("returns");
            std::thread::spawn(move || w.call("get", &[Arg::Int(0)]).is_err()).join().expect("thread ends");
        };
        round();
        let before = maps().len();
        (0..50).for_each(|_| round());
        assert!(maps().len() < before + 10, "{} mappings, {before} before", maps().len());
    });
}

#[test]
fn fast_window_needs_no_privileges() {
    crate::in_child("places::fast_window_needs_no_privileges", || {
        // As root, become nobody: page 0 can then be neither mapped nor reserved.
        // SAFETY: changes only this process's identity.
        let root = unsafe { libc::geteuid() } == 0;
        let file = builder().build().file;
        // SAFETY: as above.
        assert!(!root || unsafe { libc::setuid(65534) } == 0);
        let image = Image::from_bytes(&file, &crate::builder::options()).expect("loads");
        let mut w = Window::new_fast(&image, &Imports::new()).expect("makes the fast window");
        check_layout(&mut w);
        let fault = w.call("get", &[Arg::Int(8)]).expect_err("faults");
        assert_eq!(fault.fault().map(|f| (f.kind, f.window_offset)), Some((FaultKind::NullZone, Some(8))));
    });
}

#[test]
fn read_only_data_is_shared_and_writable_data_is_not() {
    let image = builder().image();
    let windows: Vec<Window> = (0..3).map(|_| Window::new(&image, &Imports::new()).expect("makes a window")).collect();
    let text = fs::read_to_string("/proc/self/maps").expect("reads the memory map");
    let inode = |address: u64| {
        let line = text.lines().find(|line| {
            let range = line.split([' ', '-']).take(2).map(|n| u64::from_str_radix(n, 16).unwrap_or(0)).collect::<Vec<_>>();
            (range[0]..range[1]).contains(&address)
        });
        line.and_then(|line| line.split_whitespace().nth(4)).expect("mapped").to_owned()
    };
    let files: std::collections::BTreeSet<_> =
        windows.iter().map(|w| inode(w.bytes(RODATA, 1).expect("rodata").as_ptr() as u64)).collect();
    assert!(files.len() == 1 && !files.contains("0"), "one memory file: {files:?}");
    assert!(windows.iter().all(|w| inode(w.bytes(DATA, 1).expect("data").as_ptr() as u64) == "0"), "anonymous");
}

/// A window that a thread-local variable calls in its destructor, when the loader's own thread state may be gone.
struct Late(Option<Window>);

impl Drop for Late {
    fn drop(&mut self) {
        if let Some(mut w) = self.0.take() {
            // Works or is refused.
            let result = w.call("get", &[Arg::Int(HEAP.into())]);
            assert!(matches!(result, Ok(0) | Err(Error::Internal(_))), "{result:?}");
        }
    }
}

#[test]
fn windows_called_by_ending_threads_do_no_harm() {
    thread_local! {
        static LATE: std::cell::RefCell<Late> = const { std::cell::RefCell::new(Late(None)) };
    }
    let image = builder().image();
    for late_first in [true, false] {
        let image = Arc::clone(&image);
        let thread = std::thread::spawn(move || {
            if late_first {
                LATE.with(|late| late.borrow_mut().0 = None);
            }
            let mut w = Window::new(&image, &Imports::new()).expect("makes a window");
            assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), 0);
            LATE.with(|late| late.borrow_mut().0 = Some(w));
        });
        thread.join().expect("thread ends");
    }
}

/// As many windows as the kernel's limit of mappings lets there be: the next one is refused with the reason, the others work, and each one that
/// goes makes room for another.
#[test]
fn windows_without_mappings_are_refused_with_the_reason() {
    crate::in_child("places::windows_without_mappings_are_refused_with_the_reason", || {
        let limit: u64 =
            fs::read_to_string("/proc/sys/vm/max_map_count").map_or(0, |text| text.trim().parse().expect("a number"));
        if !(1..=100_000).contains(&limit) {
            return;
        }
        let image = builder().image();
        let mut windows = Vec::new();
        let error = loop {
            match Window::new(&image, &Imports::new()) {
                Ok(window) => windows.push(window),
                Err(error) => break error,
            }
            assert!(windows.len() < 100_000);
        };
        match &error {
            Error::Mappings { mappings, limit: told, .. } => assert!(*told == limit && mappings + 12 > limit, "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        let value = |n: usize| n as u64 ^ 0x5555;
        for _ in 0..3 {
            windows.swap_remove(windows.len() / 2);
            windows.push(Window::new(&image, &Imports::new()).expect("there is room for one again"));
        }
        windows.truncate(windows.len() - 2);
        for (n, w) in windows.iter_mut().enumerate() {
            w.call("put", &[Arg::Int(HEAP.into()), Arg::Int(value(n))]).expect("returns");
        }
        for (n, w) in windows.iter_mut().enumerate() {
            assert_eq!(w.call("get", &[Arg::Int(HEAP.into())]).expect("returns"), value(n));
        }
    });
}
