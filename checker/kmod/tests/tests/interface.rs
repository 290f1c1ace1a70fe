//! The module's Rust half, called as C calls it, on the host: what it tells of files, also of hostile ones, and of faults.

#[path = "../../rust/src/explain.rs"]
mod explain;
#[path = "../../rust/src/interface.rs"]
mod interface;

use cordon_checker::Mode;
use cordon_checker::layout::{NULL_ZONE_END, Region, RegionKind, STACK_HEADROOM, Slot, TEXT_VADDR, USER_STACK_LOW};
use cordon_checker::note::NoteSpec;
use cordon_checker::sample::{self, container as file, note_record};
use explain::{CFacts, cordon_rs_explain};
use interface::*;
use std::mem::MaybeUninit;

/// `enum cordon_verdict` and `enum cordon_kind` of ../include/cordon.h.
use cordon_kernel::abi::{kind, verdict};

const PAGE: u64 = 4096;
/// endbr64 and LIMIT to the last instruction (one unit), `mov $1,%eax`, ret, ud2.
const TEXT: [u8; 24] =
    [0xf3, 0x0f, 0x1e, 0xfa, 0x81, 0xfc, 0x10, 0x20, 0xff, 0x6f, 0x0f, 0x82, 0x06, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0xc3, 0x0f, 0x0b];
const LIMIT: u32 = 0x6fff_2010;

/// Read-only data, data with a guard above, heap, the data stack; the module's own native stack.
fn spec() -> NoteSpec {
    let region = |start, end, kind| Region { start, end, kind };
    let base = sample::kernel();
    let top = USER_STACK_LOW + 8 + base.stack_shift;
    NoteSpec {
        stack_low: USER_STACK_LOW,
        max_depth: 4096,
        limit: LIMIT,
        regions: vec![
            region(NULL_ZONE_END, 0x1_1000, RegionKind::Rodata),
            region(0x1_2000, 0x1_4000, RegionKind::Data),
            region(0x2_0000, 0x3_0000, RegionKind::Heap),
            region(top - 0x1_0000, top + STACK_HEADROOM, RegionKind::Stack),
        ],
        slots: vec![Slot::Trap, Slot::Import(0), Slot::Text(0), Slot::Import(1)],
        imports: vec![(1, "memcpy".into()), (3, "two".into())],
        sub_tables: Vec::new(),
        entries: vec![(0, "first".into()), (0, "second".into())],
        ..base
    }
}

type Load = sample::Load<Vec<u8>>;

fn loads(spec: &NoteSpec) -> Vec<Load> {
    let note = note_record(&spec.to_bytes());
    let length = note.len() as u64;
    vec![
        (1, 4, NULL_ZONE_END.into(), b"constants".to_vec(), PAGE),
        (1, 6, 0x1_2000, b"data".to_vec(), 2 * PAGE),
        (1, 5, TEXT_VADDR, TEXT.to_vec(), TEXT.len() as u64),
        (4, 4, 0, note, length),
    ]
}

fn good() -> Vec<u8> {
    file(&loads(&spec()))
}

/// As the kernel calls it: the result may hold anything before, and holds what counts afterwards only if the file is accepted.
fn read(file: &[u8], metered: bool) -> (u32, Option<CImage>) {
    let mut out = MaybeUninit::<CImage>::uninit();
    // SAFETY: the structure is plain numbers, so any bytes are one.
    unsafe { out.as_mut_ptr().cast::<u8>().write_bytes(0xaa, size_of::<CImage>()) };
    // SAFETY: the pointers are valid for their lengths.
    let verdict = unsafe { cordon_rs_read(file.as_ptr(), file.len(), metered.into(), out.as_mut_ptr()) };
    // SAFETY: filled above.
    (verdict, (verdict == verdict::ACCEPTED).then(|| unsafe { out.assume_init() }))
}

/// What C relies on without looking again: extents inside the file, segments inside a region of the window.
fn holds(file: &[u8], image: &CImage) -> bool {
    let inside = |offset: u64, length: u64| offset.checked_add(length).is_some_and(|end| end <= file.len() as u64);
    let regions = &image.region[..image.regions as usize];
    let segments = &image.segment[..image.segments as usize];
    let ordered = regions.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let aligned = |value: u32| u64::from(value).is_multiple_of(PAGE);
    inside(image.text_offset, image.text_length)
        && image.text_length > 0
        && inside(image.note_offset, image.note_length)
        && ordered
        && regions.iter().all(|r| r.kind <= 4 && r.start < r.end && r.end <= 1 << 31 && aligned(r.start) && aligned(r.end))
        && regions.iter().all(|r| r.start >= NULL_ZONE_END)
        && image.table < image.table_end
        && [image.table, image.table_end].iter().all(|at| (-0x1f000..=-0x1000).contains(at))
        && segments.iter().all(|s| {
            let end = u64::from(s.start) + u64::from(s.length);
            inside(s.offset, s.length.into()) && regions.iter().any(|r| r.start <= s.start && end <= r.end.into() && r.kind <= 1)
        })
        && image.limit >= USER_STACK_LOW + 8 - (64 << 10) + image.max_depth + 8
}

#[test]
fn a_good_file_is_told_as_it_is() {
    let file = good();
    let (verdict, image) = read(&file, false);
    let image = image.unwrap_or_else(|| panic!("{}", verdict::text(verdict)));
    assert!(holds(&file, &image));
    assert_eq!(file[image.text_offset as usize..][..image.text_length as usize], TEXT);
    assert_eq!(file[image.note_offset as usize..][..image.note_length as usize], spec().to_bytes());
    assert_eq!((image.table, image.table_end, image.max_depth, image.limit), (-0x2000, -0x1000, 4096, LIMIT));
    assert_eq!((image.imports, image.metered, image.regions, image.segments), (2, 0, 4, 2));
    let regions: Vec<_> = image.region[..4].iter().map(|r| (r.start, r.end, r.kind)).collect();
    let expected: Vec<_> = spec().regions.iter().map(|r| (r.start, r.end, r.kind as u32)).collect();
    assert_eq!(regions, expected);
    for (segment, (start, bytes)) in image.segment.iter().zip([(NULL_ZONE_END, &b"constants"[..]), (0x1_2000, b"data")]) {
        assert_eq!(segment.start, start);
        assert_eq!(&file[segment.offset as usize..][..segment.length as usize], bytes);
    }
    assert_eq!(read(&file, true).0, verdict::NOT_METERED);
    let metered = NoteSpec { mode: Mode { metered: true, ..Mode::default() }, ..spec() };
    assert_eq!(read(&self::file(&loads(&metered)), true).1.map(|image| image.metered), Some(1));
}

/// A change of the file that must come to a verdict.
fn refused(what: &str, expected: u32, change: impl FnOnce(&mut NoteSpec, &mut Vec<Load>)) {
    let mut spec = spec();
    let (mut loads, note) = (loads(&spec), spec.to_bytes());
    change(&mut spec, &mut loads);
    if spec.to_bytes() != note {
        loads[3] = self::loads(&spec).remove(3);
    }
    let verdict = read(&file(&loads), false).0;
    assert_eq!(verdict, expected, "{what}: {}", verdict::text(verdict));
}

#[test]
fn hostile_files_are_refused_for_what_they_do() {
    use verdict::{ACCEPTED, BAD_FORMAT, BAD_LAYOUT, BAD_NOTE, BAD_PLACE};
    refused("nothing is changed", ACCEPTED, |_, _| {});
    // Segments.
    refused("text that can be written", BAD_FORMAT, |_, l| l[2].1 = 7);
    refused("data that can be executed", BAD_FORMAT, |_, l| l[1].1 = 7);
    refused("constants that can be executed", BAD_FORMAT, |_, l| l[0].1 = 5);
    refused("two texts", BAD_FORMAT, |_, l| l.push(l[2].clone()));
    refused("no text", BAD_FORMAT, |_, l| l[2].0 = 2);
    refused("empty text", BAD_FORMAT, |_, l| (l[2].3, l[2].4) = (Vec::new(), 0));
    refused("text with memory that is not in the file", BAD_FORMAT, |_, l| l[2].4 += PAGE);
    refused("text in the window", BAD_FORMAT, |_, l| l[2].2 = 0x2_0000);
    refused("data in the null zone", BAD_FORMAT, |_, l| l[0].2 = 0);
    refused("data over the table", BAD_FORMAT, |_, l| l[0].2 = u64::from(u32::MAX) - 0x1fff);
    refused("data on the guard above its region", BAD_FORMAT, |_, l| l[1].4 = 3 * PAGE);
    refused("data in a region of constants", BAD_FORMAT, |_, l| l[0].1 = 6);
    refused("constants in a region of data", BAD_FORMAT, |_, l| l[1].1 = 4);
    refused("data in the heap", BAD_FORMAT, |_, l| l[1].2 = 0x2_0000);
    refused("data on the stack", BAD_FORMAT, |s, l| l[1].2 = s.regions[3].start.into());
    refused("data that overlap", BAD_FORMAT, |_, l| l.insert(1, l[0].clone()));
    refused("data out of order", BAD_FORMAT, |_, l| l.swap(0, 1));
    refused("data that wrap", BAD_FORMAT, |_, l| l[1].4 = u64::MAX - 0xfff);
    refused("more in the file than in memory", BAD_FORMAT, |_, l| l[1].4 = 3);
    refused("too many segments", BAD_FORMAT, |_, l| l.extend(vec![(2, 4, 0, Vec::new(), 0); 61]));
    // The note.
    refused("no note", BAD_FORMAT, |_, l| l[3].0 = 2);
    refused("a note of another type", BAD_FORMAT, |_, l| l[3].3[8] = 2);
    refused("a note of another name", BAD_FORMAT, |_, l| l[3].3[12] = b'c');
    refused("a note longer than its segment", BAD_FORMAT, |_, l| l[3].3[7] = 0x7f);
    refused("a name longer than its segment", BAD_FORMAT, |_, l| l[3].3[3] = 0xff);
    refused("another magic word", BAD_NOTE, |_, l| l[3].3[20] ^= 1);
    refused("another version", BAD_NOTE, |_, l| l[3].3[24] ^= 1);
    refused("an unknown flag", BAD_NOTE, |_, l| l[3].3[28] |= 0x80);
    refused("more regions than there are bytes", BAD_NOTE, |_, l| l[3].3[20 + 12 * 4 + 3] = 0xff);
    refused("as many slots as overflow a sum", BAD_NOTE, |_, l| l[3].3[20 + 13 * 4..][..4].fill(0xff));
    // The layout.
    refused("for a user host", BAD_LAYOUT, |s, _| s.kernel = false);
    refused("unprotected loads", BAD_LAYOUT, |s, _| s.mode.protect = cordon_checker::Protect::Stores);
    refused("a table in the window", BAD_LAYOUT, |s, _| (s.table, s.table_end) = (0x1_4000, 0x1_5000));
    refused("a table beyond the control pages", BAD_LAYOUT, |s, _| s.table -= 0x2_0000);
    refused("a table that ends in the window", BAD_LAYOUT, |s, _| s.table_end = 0x1000);
    refused("regions that overlap", BAD_LAYOUT, |s, _| s.regions[1].start = 0x1_0000);
    refused("a region in the null zone", BAD_LAYOUT, |s, _| s.regions[0].start = 0xf000);
    refused("a region that is not whole pages", BAD_LAYOUT, |s, _| s.regions[2].end += 1);
    refused("a region from behind", BAD_LAYOUT, |s, _| s.regions[2].end = s.regions[2].start - 0x1000);
    refused("a region beyond 2 GiB", BAD_LAYOUT, |s, _| s.regions[3].end = 0x8000_1000);
    refused("a region in the stack's guard", BAD_LAYOUT, |s, _| s.regions[2].end = s.regions[3].start);
    refused("65 regions", BAD_LAYOUT, |s, _| {
        let small = |n: u32| Region { start: 0x4_0000 + 0x2000 * n, end: 0x4_1000 + 0x2000 * n, kind: RegionKind::Heap };
        let stack = s.regions.pop();
        s.regions.extend((0..61).map(small).chain(stack));
    });
    refused("no stack", BAD_LAYOUT, |s, _| s.regions.truncate(3));
    refused("a limit that lets both stacks overflow", BAD_LAYOUT, |s, _| s.limit -= 0x2000);
    refused("a limit that only a longer native stack has room for", BAD_PLACE, |s, _| {
        (s.limit, s.regions[3].start) = (s.limit - 0x2000, s.regions[3].start - 0x2000);
    });
    refused("a native stack elsewhere", BAD_PLACE, |s, _| {
        *s = NoteSpec { stack_low: s.stack_low - 0x1000, limit: s.limit - 0x1000, ..s.clone() };
        let last = s.regions.len() - 1;
        s.regions[last].end -= 0x1000;
        s.regions[last].start -= 0x1000;
    });
    refused("deeper frames than the limit leaves room for", BAD_LAYOUT, |s, _| s.max_depth = 0xe000);
    refused("more main slots than the table has room for", BAD_LAYOUT, |s, _| s.main_bits = 10);
}

/// Byte for byte of the header, the program headers and the note: whatever they say, nothing is told that does not hold.
#[test]
fn whatever_is_accepted_holds() {
    let good = good();
    for length in 0..good.len() {
        assert!(read(&good[..length], false).1.is_none(), "cut to {length}");
    }
    let (mut accepted, mut tried) = (0, 0);
    for at in 0..good.len() {
        for value in [0, 1, 2, 5, 7, 0x10, 0x7f, 0x80, 0xf0, 0xff, good[at] ^ 1, good[at] ^ 0x10, good[at].wrapping_add(1)] {
            let mut bad = good.clone();
            bad[at] = value;
            tried += 1;
            if let (_, Some(image)) = read(&bad, false) {
                accepted += 1;
                assert!(holds(&bad, &image), "byte {at:#x} = {value:#x}");
            }
        }
    }
    // Text and data are most of what may be anything.
    assert!(accepted * 8 > tried && accepted < tried, "{accepted} of {tried}");
}

#[test]
fn text_is_judged_with_the_note_alone() {
    let note = spec().to_bytes();
    let judge = |text: &[u8], metered: u32| {
        let mut scratch = vec![u64::MAX; text.len()];
        let mut out = CJudgement { rule: 0, offset: 0, instructions: 0, max_depth: 0, features: 0 };
        // SAFETY: the pointers are valid for their lengths.
        let verdict = unsafe {
            cordon_rs_check(text.as_ptr(), text.len(), note.as_ptr(), note.len(), metered, scratch.as_mut_ptr(), &raw mut out)
        };
        (verdict, out, scratch)
    };
    let (verdict, out, scratch) = judge(&TEXT, 0);
    assert_eq!((verdict, out.instructions, out.max_depth, out.features), (verdict::ACCEPTED, 4, 0, 0), "rule {}", out.rule);
    // SAFETY: as long as the text.
    let next = |from| unsafe { cordon_rs_next_start(scratch.as_ptr(), scratch.len(), from) };
    assert_eq!([0, 1, 5, 17, 22, 23, 24, 99].map(next), [0, 16, 16, 21, 22, 24, 24, 24]);
    let mut bad = TEXT;
    bad[16..18].copy_from_slice(&[0x0f, 0x30]);
    let (verdict, out, _) = judge(&bad, 0);
    assert_eq!((verdict, out.rule, out.offset), (verdict::REJECTED, 4, 16));
    assert_eq!(judge(&TEXT, 1).0, verdict::BAD_LAYOUT);
}

#[test]
fn names_and_slots_are_found() {
    let note = spec().to_bytes();
    // SAFETY: the pointers are valid for their lengths.
    let entry = |name: &[u8]| unsafe { cordon_rs_entry(note.as_ptr(), note.len(), name.as_ptr(), name.len()) };
    assert_eq!([entry(b"first"), entry(b"second"), entry(b"firs"), entry(b"first\0"), entry(b"")], [0, 0, -1, -1, -1]);
    let import = |index| {
        let mut at = std::ptr::null();
        // SAFETY: the note is valid for its length, `at` for a write.
        let length = unsafe { cordon_rs_import(note.as_ptr(), note.len(), index, &raw mut at) };
        // SAFETY: the name lies in the note.
        if length == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(at, length) } }
    };
    assert_eq!([import(0), import(1), import(2), import(u32::MAX)], [&b"memcpy"[..], b"two", b"", b""]);
    let mut table = [0; 512];
    let gates = [0x1111, 0x2222];
    // SAFETY: as many words and gates as there are.
    unsafe { cordon_rs_tables(note.as_ptr(), note.len(), table.as_mut_ptr(), table.len(), 0x70_0000, 0xdead, gates.as_ptr()) };
    assert_eq!(table[..5], [0xdead, 0x1111, 0x70_0000, 0x2222, 0xdead]);
    assert!(table[5..].iter().all(|&word| word == 0xdead), "every other slot traps");
}

const RAX: usize = 0;
const RCX: usize = 1;
const RSP: usize = 4;
const R14: usize = 14;

/// What is told of the instruction at the start of `text` with these registers.
fn explain_in(spec: &NoteSpec, text: &[u8], registers: &[(usize, u64)]) -> CFacts {
    let (note, mut words) = (spec.to_bytes(), [0_u64; 16]);
    words[RSP] = USER_STACK_LOW.into();
    registers.iter().for_each(|(number, value)| words[*number] = *value);
    let mut out = CFacts { kind: 99, has_address: 99, is_write: 99, bytes: 99, address: 99, offset: 99 };
    // SAFETY: the pointers are valid for their lengths.
    unsafe {
        cordon_rs_explain(text.as_ptr(), text.len(), note.as_ptr(), note.len(), 0, words.as_ptr(), &raw mut out);
    }
    out
}

/// The same in the sample's layout: kind, and (write, bytes, address, offset) if there is an access.
fn explain(text: &[u8], registers: &[(usize, u64)]) -> (u32, Option<(u32, u32, u64, u64)>) {
    let facts = explain_in(&spec(), text, registers);
    (facts.kind, (facts.has_address == 1).then_some((facts.is_write, facts.bytes, facts.address, facts.offset)))
}

/// `mov %fs:(%eax,%ecx,8),%rdx` and the store, `movzbl %fs:8(%eax),%edx`.
const LOAD: [u8; 6] = [0x64, 0x67, 0x48, 0x8b, 0x14, 0xc8];
const STORE: [u8; 6] = [0x64, 0x67, 0x48, 0x89, 0x14, 0xc8];
const BYTE: [u8; 6] = [0x64, 0x67, 0x0f, 0xb6, 0x50, 0x08];

#[test]
fn faulting_accesses_are_told_with_their_64_bit_address() {
    assert_eq!(explain(&LOAD, &[(RAX, 0x40)]), (kind::NULL_ZONE, Some((0, 8, 0x40, 0x40))));
    assert_eq!(explain(&STORE, &[(RAX, 0x1_0ff8)]), (kind::READ_ONLY, Some((1, 8, 0x1_0ff8, 0x1_0ff8))));
    assert_eq!(explain(&STORE, &[(RAX, 0x1_1000)]), (kind::UNMAPPED, Some((1, 8, 0x1_1000, 0x1_1000))));
    // The address is what the registers say, the offset where the access went: its low half.
    assert_eq!(explain(&LOAD, &[(RAX, 0x7_0000_0010), (RCX, 1)]), (kind::NULL_ZONE, Some((0, 8, 0x7_0000_0018, 0x18))));
    let wrapped = (kind::UNMAPPED, Some((0, 8, u64::MAX - 7, 0xffff_fff8)));
    assert_eq!(explain(&LOAD, &[(RAX, 0), (RCX, u64::MAX)]), wrapped);
    assert_eq!(explain(&LOAD, &[(RAX, u64::MAX), (RCX, 1 << 61)]), (kind::UNMAPPED, Some((0, 8, u64::MAX, 0xffff_ffff))));
    assert_eq!(explain(&BYTE, &[(RAX, 0x1_3ff8)]), (kind::UNMAPPED, Some((0, 1, 0x1_4000, 0x1_4000))));
    // An access that begins well counts by its first bad byte: here the page behind the data.
    assert_eq!(explain(&LOAD, &[(RAX, 0x1_3ffc)]), (kind::UNMAPPED, Some((0, 8, 0x1_3ffc, 0x1_3ffc))));
    assert_eq!(explain(&STORE, &[(RAX, 0x1_3ffc)]).0, kind::UNMAPPED);
    // All of it is there: nothing that the window explains.
    assert_eq!(explain(&LOAD, &[(RAX, 0x1_3ff8)]).0, kind::OTHER);
    let stack = u64::from(spec().regions[3].start);
    assert_eq!(explain(&STORE, &[(RAX, stack - 8)]).0, kind::DATA_STACK_OVERFLOW);
    assert_eq!(explain(&STORE, &[(RAX, stack - 4096 - 8)]).0, kind::DATA_STACK_OVERFLOW);
    assert_eq!(explain(&STORE, &[(RAX, stack - 4096 - 9)]).0, kind::UNMAPPED, "its first byte lies below the guard");
    // `mov %fs:0x20,%eax`: no register.
    assert_eq!(explain(&[0x64, 0x8b, 0x04, 0x25, 0x20, 0, 0, 0], &[]), (kind::NULL_ZONE, Some((0, 4, 0x20, 0x20))));
}

#[test]
fn divisions_are_told_from_the_accesses_that_they_make() {
    let quotient = |text: &[u8], rax| explain(text, &[(RAX, rax)]);
    assert_eq!(quotient(&[0xf7, 0xf1], 5), (kind::DIVIDE, None));
    assert_eq!(quotient(&[0x48, 0xf7, 0xf9], 5), (kind::DIVIDE, None));
    assert_eq!(quotient(&[0x40, 0xf6, 0xf6], 5), (kind::DIVIDE, None));
    // `divq %fs:(%eax)`: of what is there, or a missing page.
    let memory = [0x64, 0x67, 0x48, 0xf7, 0x30];
    assert_eq!(quotient(&memory, 0x1_2000), (kind::DIVIDE, None));
    assert_eq!(quotient(&memory, 0x1_4000), (kind::UNMAPPED, Some((0, 8, 0x1_4000, 0x1_4000))));
    // `mul` is no division: nothing explains that it faults.
    assert_eq!(quotient(&[0xf7, 0xe1], 5), (kind::OTHER, None));
    assert_eq!(quotient(&[0xf7, 0xe9], 5), (kind::OTHER, None));
    assert_eq!(quotient(&[0x64, 0x67, 0x48, 0xf7, 0x20], 0x1_2000).0, kind::OTHER);
}

#[test]
fn traps_are_told_by_what_leads_there() {
    let trap = |text: &[u8], registers: &[(usize, u64)]| explain(text, registers).0;
    let (last, inner) = ([0x0f, 0x0b], [0x0f, 0x0b, 0x0f, 0x0b]);
    assert_eq!(trap(&last, &[(RSP, u64::from(LIMIT) - 1)]), kind::NATIVE_STACK_OVERFLOW);
    assert_eq!(trap(&last, &[(RSP, LIMIT.into())]), kind::TRAP, "LIMIT lets pass what is not below");
    assert_eq!(trap(&inner, &[(RSP, u64::from(LIMIT) - 1)]), kind::TRAP, "LIMIT leads to the last one");
    let metered = NoteSpec { mode: Mode { metered: true, ..Mode::default() }, ..spec() };
    let fuel = |spec: &NoteSpec, count: i64| explain_in(spec, &inner, &[(R14, count.cast_unsigned())]).kind;
    assert_eq!([fuel(&metered, -1), fuel(&metered, 0), fuel(&spec(), -1)], [kind::FUEL, kind::TRAP, kind::TRAP]);
}

#[test]
fn what_cannot_be_explained_is_told_as_such() {
    let other = (kind::OTHER, None);
    assert_eq!(explain(&[], &[]), other);
    assert_eq!(explain(&[0x0f], &[]), other);
    assert_eq!(explain(&[0x0f, 0x30], &[]), other);
    assert_eq!(explain(&[0xc3], &[]), other);
    let (text, registers, broken) = ([0x0f, 0x0b], [0; 16], [0; 3]);
    let mut out = CFacts { kind: 99, has_address: 99, is_write: 99, bytes: 99, address: 99, offset: 99 };
    // SAFETY: the pointers are valid for their lengths. The place lies behind the text; the note is none.
    unsafe { cordon_rs_explain(text.as_ptr(), 2, broken.as_ptr(), 3, 7, registers.as_ptr(), &raw mut out) };
    assert_eq!((out.kind, out.has_address), (kind::OTHER, 0));
    // SAFETY: as above, with a place.
    unsafe { cordon_rs_explain(text.as_ptr(), 2, broken.as_ptr(), 3, 0, registers.as_ptr(), &raw mut out) };
    assert_eq!((out.kind, out.has_address), (kind::OTHER, 0));
}

#[test]
fn gates_learn_why_a_range_is_none() {
    let note = spec().to_bytes();
    // SAFETY: the note is valid for its length.
    let at = |offset, write: bool| unsafe { cordon_rs_kind_at(note.as_ptr(), note.len(), offset, write.into()) };
    assert_eq!([at(0xffff, false), at(0x1_0000, false), at(0x1_0000, true)], [kind::NULL_ZONE, kind::RETURNED, kind::READ_ONLY]);
    assert_eq!([at(0x1_2000, true), at(0x1_4000, true), at(u64::MAX, false)], [kind::RETURNED, kind::UNMAPPED, kind::UNMAPPED]);
    // SAFETY: as above.
    assert_eq!(unsafe { cordon_rs_kind_at(note.as_ptr(), 3, 0, 0) }, kind::OTHER, "half a note");
}
