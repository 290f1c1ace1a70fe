//! Memory of the host in windows: placing, access, exact ends, sharing between windows and threads.

use crate::builder::{ARGUMENT, Builder, HEAP, options};
use cordon_loader::{
    Area, Arg, Error, Fault, FaultAccess, FaultKind, Image, Imports, LoadOptions, Memory, Relation, Sharing, Window,
};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

const SOURCE: &str = "
    .globl get\nget: movzbl %gs:(%edi),%eax; ret
    .globl put\nput: mov %sil,%gs:(%edi); xor %eax,%eax; ret
    .globl wide\nwide: movdqu %gs:(%edi),%xmm0; ret
    .globl add\nadd: mov $1,%eax; lock xadd %rax,%gs:(%edi); sub $1,%rsi; jnz add; ret
    .globl copy\ncopy: sub $8,%rsp; IMPORT 0; xor %eax,%eax; add $8,%rsp; ret
    .globl host\nhost: sub $8,%rsp; IMPORT 1; add $8,%rsp; ret";

const PAGE: u32 = 4096;
const GAP: u32 = 64 << 10;

fn builder() -> Builder {
    Builder::new(SOURCE).imports(&["memcpy", "host"])
}

fn imports() -> Imports {
    Imports::new().function("host", |call, [at, ..]| {
        let byte = call.read_vec(at, 1).map_or(0x100, |bytes| u64::from(bytes[0]));
        byte | u64::from(call.write(at, &[99]).is_ok()) << 16
    })
}

fn window() -> Window {
    builder().window_with(&imports())
}

fn get(window: &mut Window, at: u32) -> u64 {
    window.call("get", &[Arg::Int(at.into())]).expect("readable")
}

fn fault(window: &mut Window, entry: &str, args: &[Arg<'_>]) -> Fault {
    match window.call(entry, args) {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("{entry}: no fault: {other:?}"),
    }
}

/// Kind, access and region of the fault of `entry` at `at`.
fn told(window: &mut Window, entry: &str, at: u32) -> (FaultKind, Option<FaultAccess>, String) {
    let fault = fault(window, entry, &[Arg::Int(at.into()), Arg::Int(1)]);
    let region = fault.report().region.map(|r| r.to_string());
    (fault.kind, fault.access, region.expect("near to something"))
}

#[test]
fn host_and_windows_see_the_same_bytes() {
    let memory = Memory::new("packets", 10_000).expect("makes a memory");
    assert_eq!((memory.name(), memory.len()), ("packets", 10_000));
    let (mut a, mut b) = (window(), window());
    let at = a.share(&memory, Sharing::ReadWrite).expect("shares");
    let seen = b.share(&memory, Sharing::Read).expect("shares");
    memory.write(77, &[5, 6]).expect("inside");
    assert_eq!((get(&mut a, at + 77), get(&mut b, seen + 78)), (5, 6));
    a.call("put", &[Arg::Int((at + 77).into()), Arg::Int(9)]).expect("writable");
    assert_eq!(get(&mut b, seen + 77), 9);
    let mut bytes = [0; 2];
    memory.read(77, &mut bytes).expect("inside");
    assert_eq!(bytes, [9, 6]);
    // The other ways of the host.
    a.write(at + 9_999, &[1]).expect("the last byte");
    b.read(seen + 9_999, &mut bytes[..1]).expect("the last byte");
    assert_eq!(bytes[0], 1);
    assert!(b.write(seen, &[1]).is_err() && a.write(at + 9_999, &[1, 2]).is_err() && a.bytes(at, 1).is_err());
    assert_eq!(b.call("host", &[Arg::Int((seen + 78).into())]).expect("returns"), 6, "a host function reads but does not write");
    assert_eq!(a.call("host", &[Arg::Int((at + 78).into())]).expect("returns"), 6 | 1 << 16);
    assert!(memory.read(9_999, &mut bytes).is_err() && memory.write(u64::MAX, &[1]).is_err());
}

#[test]
fn read_only_memory_is_not_written() {
    let memory = Memory::new("table", 100).expect("makes a memory");
    let mut w = window();
    let at = w.share(&memory, Sharing::Read).expect("shares");
    let expected = (FaultKind::ReadOnly, Some(FaultAccess::Write), "in the memory table".to_owned());
    assert_eq!(told(&mut w, "put", at + 50), expected);
    let copied = fault(&mut w, "copy", &[Arg::Int(at.into()), Arg::Int(HEAP.into()), Arg::Int(8)]);
    assert_eq!((copied.kind, copied.gate), (FaultKind::ReadOnly, Some("memcpy")));
    w.call("copy", &[Arg::Int(HEAP.into()), Arg::Int(at.into()), Arg::Int(8)]).expect("readable");
    assert_eq!(get(&mut w, at + 50), 0);
}

#[test]
fn memories_keep_away_from_everything_else() {
    let mut w = window();
    let mut taken: Vec<(u32, u32)> = w.image().regions().iter().map(|r| (r.start, r.end)).collect();
    taken.extend([(0, 0x1_0000), (0x1_0000, 0x1_1000)]);
    let stack = w.region(cordon_loader::RegionKind::Stack).expect("a stack");
    taken.push((stack.start - 0x1008, stack.start));
    for len in [1, 4096, 5000, 1 << 20, 300 << 20, 1 << 16, 600 << 20] {
        let memory = Memory::new("m", len).expect("makes a memory");
        let at = w.share(&memory, Sharing::ReadWrite).expect("there is room");
        let end = at + (len as u32).next_multiple_of(PAGE);
        assert!(at.is_multiple_of(PAGE) && end <= 0x8000_0000 - GAP);
        assert!(taken.iter().all(|(start, stop)| end + GAP <= *start || stop + GAP <= at), "{at:#x} {len:#x}: {taken:x?}");
        taken.push((at, end));
        w.call("put", &[Arg::Int((end - 1).into()), Arg::Int(1)]).expect("all of it is there");
        assert_eq!(told(&mut w, "get", end).0, FaultKind::Unmapped);
        assert_eq!(told(&mut w, "get", at - 1).0, FaultKind::Unmapped);
    }
    let large = Memory::new("large", 1 << 30).expect("makes a memory");
    assert!(matches!(w.share(&large, Sharing::Read), Err(Error::SharedMemory(_))), "two gigabytes are used up");
    assert!(matches!(Memory::new("none", 0), Err(Error::SharedMemory(_))));
    assert!(matches!(Memory::new("huge", 1 << 31), Err(Error::SharedMemory(_))));
}

#[test]
fn the_first_byte_past_an_exact_memory_is_reported() {
    for len in [1_u32, 15, 16, 4095, 4096, 4097, 100_001] {
        let memory = Memory::exact("packet", len as usize).expect("makes a memory");
        let mut w = window();
        let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
        memory.write(u64::from(len) - 1, &[7]).expect("the last byte");
        assert_eq!(get(&mut w, at + len - 1), 7);
        assert_eq!((at + len) % PAGE, 0);
        let past = |n| (FaultKind::Unmapped, Some(FaultAccess::Read), format!("{n} past the end of the memory packet"));
        assert_eq!(told(&mut w, "get", at + len), past("1 byte"));
        assert_eq!(told(&mut w, "get", at + len + 4), past("5 bytes"));
        let wide = fault(&mut w, "wide", &[Arg::Int((at + len - 3).into())]);
        let report = wide.report();
        assert_eq!((wide.window_offset, wide.bytes, wide.address), (Some(at + len - 3), Some(16), Some((at + len - 3).into())));
        let nearest = report.region.expect("near");
        assert_eq!(nearest.relation, Relation::Past(1), "its fourth byte is the first bad one");
        assert_eq!(nearest.area, Area { name: "memory packet".into(), start: at, end: at + len });
    }
}

#[test]
fn exact_arguments_end_at_an_unmapped_page() {
    let mut w = window();
    for len in [1_usize, 7, 64, 5000] {
        let bytes = vec![3; len];
        assert_eq!(w.call("get", &[Arg::Exact(&bytes)]).expect("readable"), 3);
        let at = w.place_exact(&bytes).expect("fits");
        assert_eq!(at, ARGUMENT + 0x1_0000 - len as u32);
        assert_eq!(get(&mut w, at + len as u32 - 1), 3);
        assert_eq!(told(&mut w, "get", at + len as u32).2, "1 byte past the end of the argument area");
        assert!(matches!(w.place_exact(&bytes), Err(Error::Exact(_))));
        assert!(matches!(w.call("get", &[Arg::Exact(&bytes)]), Err(Error::Exact(_))));
        let left = 0x1_0000 - len;
        assert!(matches!(w.place(&vec![0; left + 1]), Err(Error::ArgumentArea { .. })));
        w.place(&vec![1; left & !15]).expect("up to it");
        assert_eq!(get(&mut w, at), 3, "not written over");
        w.clear_arguments();
    }
    assert_eq!(w.call("get", &[Arg::Exact(&[8]), Arg::Bytes(&[1; 16])]).expect("readable"), 8);
    assert!(matches!(w.place_exact(&vec![0; 0x1_0001]), Err(Error::ArgumentArea { .. })));
    w.place(&[0; 17]).expect("fits");
    assert!(matches!(w.place_exact(&vec![0; 0x1_0000 - 31]), Err(Error::ArgumentArea { .. })));
    w.place_exact(&vec![0; 0x1_0000 - 32]).expect("just fits");
    let mut close = builder();
    close.heap = ARGUMENT + 0x1_0000;
    assert!(matches!(close.window_with(&imports()).place_exact(&[1]), Err(Error::Exact(_))), "the heap follows at once");
}

#[test]
fn memories_stay_through_a_reset_and_go_when_taken_out() {
    let memory = Memory::new("kept", 4096).expect("makes a memory");
    let mut w = window();
    let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
    w.call("put", &[Arg::Int(at.into()), Arg::Int(4)]).expect("writable");
    w.reset().expect("resets");
    assert_eq!(get(&mut w, at), 4);
    let twice = w.share(&memory, Sharing::Read).expect("shares");
    assert!(twice != at && get(&mut w, twice) == 4);
    let before = fault(&mut w, "put", &[Arg::Int(twice.into()), Arg::Int(1)]);
    w.unshare(twice).expect("there");
    assert!(matches!(w.unshare(twice), Err(Error::SharedMemory(_))) && w.unshare(at + 1).is_err());
    assert_eq!(told(&mut w, "get", twice).0, FaultKind::Unmapped);
    assert_eq!(before.report().region.expect("known").to_string(), "in the memory kept", "as it was at the fault");
    assert_eq!(w.share(&memory, Sharing::Read).expect("shares"), twice, "the place is free again");
    assert_eq!(get(&mut w, at), 4);
    assert_eq!(Arc::strong_count(&memory), 3);
    drop(w);
    assert_eq!(Arc::strong_count(&memory), 1, "the window let go of it");
}

#[test]
fn the_next_window_of_a_sealed_reservation_has_no_memory_of_the_last() {
    let image = Image::from_bytes(&builder().build().file, &LoadOptions { seal: true, ..options() }).expect("loads");
    let memory = Memory::new("old", 4096).expect("makes a memory");
    let mut first = Window::new(&image, &imports()).expect("makes a window");
    let at = first.share(&memory, Sharing::ReadWrite).expect("shares");
    drop(first);
    let mut second = Window::new(&image, &imports()).expect("makes a window");
    assert_eq!(told(&mut second, "get", at).0, FaultKind::Unmapped);
    assert_eq!(Arc::strong_count(&memory), 1);
}

fn file_of(len: usize) -> File {
    let mut file = tempfile::tempfile().expect("temporary file");
    file.write_all(&vec![b'x'; len]).expect("written");
    file
}

#[test]
fn ranges_of_files_are_shared_if_nothing_else_would_be() {
    let file = file_of(10_000);
    let refused = |offset, len| matches!(Memory::from_file("f", &file, offset, len, false), Err(Error::SharedMemory(_)));
    assert!(
        refused(1, 4096)
            && refused(0, 5000)
            && refused(0, 10_001)
            && refused(0, 0)
            && refused(8192, 1807)
            && refused(u64::MAX, 2)
    );
    let memory = Memory::from_file("f", &file, 4096, 5904, true).expect("to the end of the file");
    let mut w = window();
    let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
    assert_eq!((get(&mut w, at + 5903), get(&mut w, at + 5904)), (b'x'.into(), 0), "the rest of the last page is zero");
    w.call("put", &[Arg::Int(at.into()), Arg::Int(b'y'.into())]).expect("writable");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_at(&file, &mut byte, 4096).expect("readable");
    assert_eq!(byte, *b"y");
    assert_eq!(memory.file_offset(), 4096);
    let page = Memory::from_file("f", &file, 0, 4096, false).expect("one page");
    assert!(matches!(w.share(&page, Sharing::ReadWrite), Err(Error::SharedMemory(_))));
    assert!(page.write(0, &[1]).is_err());
    assert_eq!(w.share(&page, Sharing::Read).map(|at| get(&mut w, at)).expect("shares"), b'x'.into());
}

#[test]
fn a_file_that_shrinks_costs_the_handler_a_fault_and_the_host_an_error() {
    let file = file_of(8192);
    let memory = Memory::from_file("shrinks", &file, 0, 8192, true).expect("makes a memory");
    let mut w = window();
    let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
    assert_eq!(get(&mut w, at + 8191), b'x'.into());
    file.set_len(4096).expect("shrinks");
    let fault = fault(&mut w, "get", &[Arg::Int((at + 8191).into())]);
    assert_eq!(
        (fault.kind, fault.report().region.expect("known").to_string()),
        (FaultKind::MemoryError, "in the memory shrinks".into())
    );
    let mut bytes = [0; 8];
    assert!(memory.read(8000, &mut bytes).is_err() && memory.write(8000, &bytes).is_err());
    assert!(w.read(at + 8000, &mut bytes).is_err() && w.write(at + 8000, &bytes).is_err());
    assert_eq!(w.call("host", &[Arg::Int((at + 8000).into())]).expect("returns"), 0x100);
    assert_eq!(get(&mut w, at), b'x'.into());
}

#[test]
fn whoever_gets_the_file_of_a_memory_cannot_seal_it() {
    let memory = Memory::new("sealed", 4096).expect("makes a memory");
    // SAFETY: only adds a seal, or does not.
    let sealed = unsafe { libc::fcntl(memory.file().as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
    assert_eq!(sealed, -1);
    let mut w = window();
    let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
    w.call("put", &[Arg::Int(at.into()), Arg::Int(1)]).expect("writable");
}

#[test]
fn handlers_of_several_threads_count_in_one_memory() {
    let image = builder().image();
    let memory = Memory::new("counter", 8).expect("makes a memory");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut w = Window::new(&image, &imports()).expect("makes a window");
                let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
                w.call("add", &[Arg::Int(at.into()), Arg::Int(100_000)]).expect("returns");
            });
        }
    });
    let mut bytes = [0; 8];
    memory.read(0, &mut bytes).expect("inside");
    assert_eq!(u64::from_le_bytes(bytes), 400_000);
}

/// Runs in a process of its own: base 0 is there once.
#[test]
fn the_fast_window_shares_as_well() {
    crate::in_child("memory::the_fast_window_shares_as_well", || {
        let memory = Memory::exact("fast", 33).expect("makes a memory");
        let mut w = Window::new_fast(&builder().image(), &imports()).expect("makes the fast window");
        let at = w.share(&memory, Sharing::ReadWrite).expect("shares");
        w.call("put", &[Arg::Int((at + 32).into()), Arg::Int(2)]).expect("writable");
        let mut byte = [0];
        memory.read(32, &mut byte).expect("inside");
        assert_eq!(byte, [2]);
        assert_eq!(told(&mut w, "get", at + 33).2, "1 byte past the end of the memory fast");
    });
}
