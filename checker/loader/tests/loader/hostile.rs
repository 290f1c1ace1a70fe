//! Image files made to break the loader: every one is an error or a harmless image, never a panic.

use crate::builder::{Builder, Built, DATA, HEAP, Header, RODATA, elf, options, write_header};
use crate::gates::Random;
use cordon_checker::layout::{Region, RegionKind, Slot, TEXT_VADDR};
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{LayoutError, Policy, Rule};
use cordon_loader::{Error, Image, Imports, LoadOptions, Window};

/// Text without loops and recursion, so that anything that is accepted ends.
fn built() -> Built {
    let source = format!(
        ".globl f\nf: mov %gs:{DATA},%rax; add %rdi,%rax; ret
         .globl g\ng: push %rbx; mov %edi,%ebx; sub $8,%rsp; mov ${HEAP},%edi; mov ${RODATA},%esi; mov $8,%edx; IMPORT 0; add $8,%rsp; pop %rbx; ret
         .globl t\nt: push %rbx; call u; pop %rbx; ret\n u: ud2
         h: nop; and $24,%ecx; jmp *%gs:SUB(%rcx)\n one: mov $1,%eax; ret\n two: mov $2,%eax; ret"
    );
    let builder = Builder::new(&source).imports(&["memcpy", "host"]).slots(&["f", "h"]);
    builder.sub_table(2, 0, 0, &["one", "two"]).data(b"12345678").rodata(b"abcdefgh").build()
}

/// Loads, and if that works uses everything.
fn try_all(file: &[u8], run: bool) -> Result<(), Error> {
    let image = Image::from_bytes(file, &options())?;
    let imports = Imports::new().function("host", |_, [a, ..]| a).missing_as_trap();
    if run {
        let mut window = Window::new(&image, &imports)?;
        for name in image.entry_names() {
            // A fault is fine, and so is whatever the file says about it.
            if let Err(Error::Fault(fault)) = window.call(name, &[]) {
                let _ = (fault.to_string(), fault.report().to_string());
            }
        }
        window.reset()?;
    }
    for offset in [0, 5, 100, u32::MAX] {
        let _ = (image.function_at(offset), image.origin_of(offset));
    }
    Ok(())
}

#[test]
fn whole_image_loads() {
    try_all(&built().file, true).expect("loads and runs");
}

#[test]
fn truncated_files_are_refused_or_harmless() {
    let file = built().file;
    let mut refused = 0;
    for len in 0..file.len() {
        refused += usize::from(try_all(&file[..len], true).is_err());
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn mutated_containers_never_panic() {
    let Built { file, .. } = built();
    let text = 288..288 + 216;
    let mut random = Random(7);
    let (mut loaded, mut refused) = (0, 0);
    for _ in 0..12_000 {
        let mut bytes = file.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(file.len() as u64) as usize;
            if text.contains(&at) {
                continue;
            }
            bytes[at] = match random.below(4) {
                0 => random.next() as u8,
                1 => bytes[at] ^ (1 << random.below(8)),
                2 => [0, 0xff, 0x7f, 0x80][random.below(4) as usize],
                _ => bytes[at].wrapping_add(1),
            };
        }
        match try_all(&bytes, true) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(loaded > 1000 && refused > 1000, "{loaded} loaded, {refused} refused");
}

#[test]
fn mutated_texts_never_panic() {
    let Built { file, .. } = built();
    let mut random = Random(8);
    for _ in 0..3000 {
        let mut bytes = file.clone();
        bytes[288 + random.below(150) as usize] = random.next() as u8;
        let _ = try_all(&bytes, false);
    }
}

fn format_error(file: &[u8]) -> &'static str {
    match Image::from_bytes(file, &options()) {
        Err(Error::Format { what, .. }) => what,
        other => panic!("{:?}", other.err()),
    }
}

fn segment(flags: u32, vaddr: u64, filesz: u64, memsz: u64) -> Header {
    Header { kind: 1, flags, vaddr, offset: 288, filesz, memsz }
}

#[test]
fn bad_segments_are_refused() {
    let file = built().file;
    let with = |index: usize, header: Header| {
        let mut bytes = file.clone();
        write_header(&mut bytes, index, &header);
        format_error(&bytes)
    };
    let not_rx = "the executable segment is not exactly readable and executable";
    assert_eq!(with(0, segment(7, TEXT_VADDR, 100, 100)), not_rx);
    assert_eq!(with(0, segment(1, TEXT_VADDR, 100, 100)), not_rx);
    assert_eq!(with(2, segment(7, DATA.into(), 8, 8)), not_rx);
    assert_eq!(with(0, segment(5, TEXT_VADDR + 4096, 100, 100)), "the executable segment is not at the text address");
    assert_eq!(with(1, segment(5, TEXT_VADDR, 100, 100)), "more than one executable segment");
    assert_eq!(with(0, segment(4, RODATA.into(), 8, 8)), "no executable segment");
    assert_eq!(with(0, segment(5, TEXT_VADDR, 100, 101)), "the executable segment is empty or larger than its bytes");
    assert_eq!(with(0, segment(5, TEXT_VADDR, 0, 0)), "the executable segment is empty or larger than its bytes");
    assert_eq!(with(0, segment(5, TEXT_VADDR, 1 << 40, 1 << 40)), "the executable segment lies outside the file");
    assert_eq!(with(0, segment(5, TEXT_VADDR, u64::MAX, u64::MAX)), "the executable segment lies outside the file");
    let misplaced = "a data segment does not lie in a region of its kind";
    for (flags, start, size) in [(4, DATA, 8), (6, 0x1_0000, 8), (6, HEAP, 8), (6, DATA, 0x1001), (6, 0, 8)] {
        assert_eq!(with(2, segment(flags, start.into(), 8, size)), misplaced, "{flags} {start:#x} {size:#x}");
    }
    assert_eq!(with(1, segment(6, RODATA.into(), 8, 8)), misplaced);
    let outside = "a data segment lies outside the window";
    assert_eq!(with(2, segment(6, 1 << 32, 8, 8)), outside);
    assert_eq!(with(2, segment(6, 0xffff_f000, 8, 0x1001)), outside);
    assert_eq!(with(2, segment(6, u64::MAX - 4095, 8, 8)), outside);
    let shape = "a data segment is unreadable, unaligned or larger than its memory";
    assert_eq!(with(2, segment(6, u64::from(DATA) + 8, 8, 8)), shape);
    assert_eq!(with(2, segment(2, DATA.into(), 8, 8)), shape);
    assert_eq!(with(2, segment(6, DATA.into(), 9, 8)), shape);
    assert_eq!(with(1, segment(6, DATA.into(), 8, 8)), "data segments overlap");
    assert_eq!(with(3, segment(4, 0, 0, 0)), "no image note");
}

/// The image with another note.
fn with_note(change: impl FnOnce(&mut NoteSpec)) -> Result<std::sync::Arc<Image>, Error> {
    let Built { file, mut note, labels } = built();
    change(&mut note);
    let len = u64::from_le_bytes(file[64 + 32..64 + 40].try_into().expect("8 bytes")) as usize;
    Image::from_bytes(&elf(&file[288..288 + len], b"abcdefgh", b"12345678", &note, &labels), &options())
}

#[test]
fn notes_that_lie_are_refused() {
    assert!(with_note(|_| ()).is_ok());
    let rejected = |change: fn(&mut NoteSpec)| with_note(change).map(|_| ()).expect_err("refused");
    assert!(matches!(rejected(|n| n.kernel = true), Error::Layout(LayoutError::Host)));
    assert!(matches!(rejected(|n| n.features = u64::MAX), Error::Layout(LayoutError::Features)));
    assert!(matches!(rejected(|n| n.max_depth = 2 << 20), Error::Layout(LayoutError::Depth)));
    assert!(matches!(rejected(|n| n.table_end = 0x1_2000 + 8), Error::Layout(LayoutError::TablePages)));
    assert!(matches!(rejected(|n| n.table_end = 0x3_1000), Error::Layout(LayoutError::Region)));
    assert!(matches!(rejected(|n| n.regions[1].start = 0x1_0000), Error::Layout(LayoutError::Region)));
    assert!(matches!(rejected(|n| n.regions[4].start -= 0x6800_0000), Error::MemoryLimit { .. }));
    assert!(matches!(rejected(|n| n.stack_low -= 0x1000), Error::Layout(LayoutError::Stack)));
    assert!(matches!(
        rejected(|n| {
            n.stack_low -= 0x1000;
            n.stack_shift += 0x1000;
        }),
        Error::Host(_)
    ));
    assert!(matches!(rejected(|n| n.imports[0].0 = 2), Error::Layout(LayoutError::ImportSlot)));
    assert!(matches!(rejected(|n| n.imports[0].0 = 1000), Error::Layout(LayoutError::ImportSlot)));
    assert!(matches!(rejected(|n| n.slots[0] = Slot::Import(0)), Error::Layout(LayoutError::MainSlot)));
    assert!(matches!(rejected(|n| n.slots[3] = Slot::Text(1)), Error::Rejected(r) if r.rule == Rule::TargetNotStart));
    assert!(matches!(rejected(|n| n.slots[3] = Slot::Text(1 << 20)), Error::Rejected(_)));
    assert!(matches!(rejected(|n| n.entries[0].0 = 1), Error::Rejected(r) if r.rule == Rule::TargetNotStart));
    assert!(matches!(rejected(|n| n.sub_tables[0].1[0] = Slot::Import(0)), Error::Layout(LayoutError::SubSlot)));
    assert!(matches!(rejected(|n| n.sub_tables[0].0.depth = 8), Error::Rejected(_)));
    let heap = Region { start: 0x7010_2000, end: 0x7fff_f000, kind: RegionKind::Heap };
    assert!(with_note(|n| n.regions.push(heap)).is_ok(), "a region above the stack is fine");
}

#[test]
fn policies_narrow_what_is_loaded() {
    let file = built().file;
    let load = |policy| Image::from_bytes(&file, &LoadOptions { policy, ..options() });
    assert!(matches!(load(Policy::KERNEL), Err(Error::Host(_))));
    assert!(matches!(load(Policy { host: Host::User, max_depth: 8, ..Policy::USER }), Err(Error::Layout(LayoutError::Depth))));
    let avx = Builder::new(".globl f\nf: vzeroupper; ret").build().file;
    let policy = Policy { features: cordon_checker::Features::SSE2, ..Policy::USER };
    let refused = Image::from_bytes(&avx, &LoadOptions { policy, ..options() });
    assert!(matches!(refused, Err(Error::Rejected(r)) if r.rule == Rule::Feature));
}
