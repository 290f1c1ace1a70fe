//! What callers rely on: layout validation, scratch, summary, instruction starts, the note.

use cordon_checker::layout::{DEPTH_LIMIT, Forget, MEMORY_END, Region, RegionKind, SET_SLOTS, Slot, SubTable, USER_TABLE, Words};
use cordon_checker::note::{MAGIC, Note, NoteError, NoteSpec, VERSION};
use cordon_checker::{
    Features, Layout, LayoutError, Mode, Policy, Protect, REGION_LIMIT, Rule, State, TABLE_LIMIT, TEXT_LIMIT, check, describe,
    is_start, policy::Host, sample, starts, state_at,
};

fn validate(spec: &NoteSpec, policy: &Policy) -> Result<(), LayoutError> {
    sample::with_layout(spec, |layout| layout.validate(policy))
}

/// A change to a valid layout and what it must give.
type Change = (LayoutError, fn(&mut NoteSpec));

fn sub(base: i32, bits: u32) -> (SubTable, Vec<Slot>) {
    (SubTable { base, bits, depth: 0, set: 0, first: 0, count: 0 }, Vec::new())
}

#[test]
fn lying_user_layouts_are_refused() {
    assert_eq!(validate(&sample::user(), &Policy::USER), Ok(()));
    let changes: &[Change] = &[
        (LayoutError::Depth, |s| s.max_depth = 4097),
        (LayoutError::Depth, |s| s.max_depth = Policy::USER.max_depth + 8),
        (LayoutError::TablePages, |s| s.table = 0xf000),
        (LayoutError::TablePages, |s| s.table += 8),
        (LayoutError::TablePages, |s| s.table_end += 8),
        (LayoutError::TablePages, |s| s.table_end = s.table),
        (LayoutError::TablePages, |s| s.table = -0x2000),
        (LayoutError::MainTable, |s| s.main_bits = 14),
        (LayoutError::MainTable, |s| s.main_bits = 10),
        (LayoutError::MainTable, |s| s.main_bits = u32::MAX),
        (LayoutError::MainSlot, |s| s.slots = vec![Slot::Trap; 17]),
        (LayoutError::MainSlot, |s| s.slots[0] = Slot::Text(0)),
        (LayoutError::MainSlot, |s| s.slots[0] = Slot::Import(0)),
        (LayoutError::MainSlot, |s| s.slots[1] = Slot::Import(2)),
        (LayoutError::Imports, |s| s.imports = vec![(1, String::new()); 17]),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.base = USER_TABLE),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.base = USER_TABLE + 0x78),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.base += 4),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.base = USER_TABLE + 0xfe8),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.base = -0x1000),
        (LayoutError::SubTable, |s| s.sub_tables[0].0.bits = 40),
        (LayoutError::SubTable, |s| s.sub_tables.push(sub(USER_TABLE + 0x98, 0))),
        (LayoutError::SubTable, |s| s.sub_tables.insert(0, sub(USER_TABLE + 0x100, 0))),
        (LayoutError::SubState, |s| s.sub_tables[0].0.depth = 12),
        (LayoutError::SubState, |s| s.sub_tables[0].0.depth = 4104),
        (LayoutError::SubState, |s| s.sub_tables[0].0.set = 4),
        (LayoutError::SubState, |s| s.sub_tables[0].0.set = 1 << 63),
        (LayoutError::SubWords, |s| s.sub_tables[0].1 = vec![Slot::Trap; 5]),
        (LayoutError::SubSlot, |s| s.sub_tables[0].1 = vec![Slot::Import(0)]),
        (LayoutError::Region, |s| s.regions[0].start += 8),
        (LayoutError::Region, |s| s.regions[0].end += 8),
        (LayoutError::Region, |s| s.regions[0].start = 0x1_0000),
        (LayoutError::Region, |s| s.regions[0].end = s.regions[0].start),
        (LayoutError::Region, |s| s.regions.swap(0, 1)),
        (LayoutError::Region, |s| {
            s.regions.push(Region { start: 0x7800_0000, end: MEMORY_END + 0x1000, kind: RegionKind::Heap })
        }),
        (LayoutError::Region, |s| s.regions.insert(1, Region { start: 0x1_f000, end: 0x3_0000, kind: RegionKind::Heap })),
        (LayoutError::Stack, |s| s.regions.truncate(1)),
        (LayoutError::Stack, |s| s.regions.push(Region { start: 0x7800_0000, end: MEMORY_END, kind: RegionKind::Stack })),
        (LayoutError::Stack, |s| s.regions[1].end += 0x1000),
        (LayoutError::Stack, |s| s.stack_shift += 0x1000),
        (LayoutError::Stack, |s| s.stack_shift = u32::MAX),
        (LayoutError::Stack, |s| s.regions[1].start = s.regions[1].end - 0x1000),
        (LayoutError::Guard, |s| s.regions[0].end = s.regions[1].start - 0x1000),
        (LayoutError::StackLow, |s| s.stack_low += 8),
        (LayoutError::StackLow, |s| {
            s.stack_shift = s.stack_low + 8 + s.stack_shift - 0x8000;
            s.stack_low = 0x8000 - 8;
        }),
    ];
    for (index, (expected, change)) in changes.iter().enumerate() {
        let mut spec = sample::user();
        change(&mut spec);
        assert_eq!(validate(&spec, &Policy::USER), Err(*expected), "change {index}");
        assert_eq!(sample::judge(&[0xc3], &Policy::USER, &spec).map_err(|r| (r.offset, r.rule)), Err((0, Rule::Layout)));
    }
}

#[test]
fn near_misses_of_lying_layouts_are_valid() {
    let changes: &[fn(&mut NoteSpec)] = &[
        |s| s.max_depth = Policy::USER.max_depth,
        |s| s.main_bits = 4,
        |s| s.slots = vec![Slot::Trap; 16],
        |s| s.sub_tables[0].0.base = USER_TABLE + 0xfe0,
        |s| s.sub_tables.push(sub(USER_TABLE + 0xa0, 0)),
        |s| s.sub_tables[0].1 = vec![Slot::Trap; 4],
        |s| s.regions[0].end = s.regions[1].start - 0x2000,
        |s| s.regions.push(Region { start: 0x7800_0000, end: MEMORY_END, kind: RegionKind::Heap }),
        |s| s.regions.insert(1, Region { start: 0x2_0000, end: 0x3_0000, kind: RegionKind::Heap }),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut spec = sample::user();
        change(&mut spec);
        assert_eq!(validate(&spec, &Policy::USER), Ok(()), "change {index}");
    }
}

#[test]
fn arrays_of_the_layout_are_whole_records() {
    let longer = |words: Words| words.iter().chain([0]).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    sample::with_layout(&sample::user(), |layout| {
        let (sub_tables, regions) = (longer(layout.sub_tables), longer(layout.regions));
        let layouts = [
            Layout { sub_tables: Words::new(&sub_tables), ..*layout },
            Layout { regions: Words::new(&regions), ..*layout },
            Layout { forgets: Words::new(&[0; 4]), ..*layout },
        ];
        for layout in layouts {
            assert_eq!(layout.validate(&Policy::USER), Err(LayoutError::Records));
        }
    });
}

#[test]
fn kernel_layouts_keep_the_table_below_the_window_and_limit_inside_the_stack() {
    assert_eq!(validate(&sample::kernel(), &Policy::KERNEL), Ok(()));
    let lowest = 0x7fef_8000 + 4096 + 8;
    let changes: &[Change] = &[
        (LayoutError::TablePages, |s| (s.table, s.table_end) = (-0x1000, 0)),
        (LayoutError::TablePages, |s| s.table = -0x2_0000),
        (LayoutError::TablePages, |s| (s.table, s.table_end) = (0x1_0000, 0x1_1000)),
        (LayoutError::Limit, |s| s.limit = 0x7fef_8000 + 4096),
        (LayoutError::Limit, |s| s.limit = s.stack_low + 1),
        (LayoutError::Limit, |s| s.limit = 0),
    ];
    for (index, (expected, change)) in changes.iter().enumerate() {
        let mut spec = sample::kernel();
        change(&mut spec);
        assert_eq!(validate(&spec, &Policy::KERNEL), Err(*expected), "change {index}");
    }
    for limit in [lowest, 0x7fef_fff8] {
        assert_eq!(validate(&NoteSpec { limit, ..sample::kernel() }, &Policy::KERNEL), Ok(()));
    }
}

#[test]
fn a_policy_with_an_impossible_depth_is_refused() {
    for max_depth in [DEPTH_LIMIT + 8, 4] {
        let policy = Policy { max_depth, ..Policy::USER };
        assert_eq!(validate(&sample::user(), &policy), Err(LayoutError::PolicyDepth));
    }
    let policy = Policy { max_depth: DEPTH_LIMIT, ..Policy::USER };
    assert_eq!(validate(&sample::user(), &policy), Ok(()));
}

#[test]
fn a_note_only_narrows_the_policy() {
    let accept = |spec: &NoteSpec, policy: &Policy| Note::parse(&spec.to_bytes()).expect("parses").validate(policy);
    let user = sample::user();
    assert_eq!(accept(&user, &Policy::USER), Ok(()));
    assert_eq!(accept(&user, &Policy::KERNEL), Err(LayoutError::Host));
    assert_eq!(accept(&sample::kernel(), &Policy::USER), Err(LayoutError::Host));
    assert_eq!(accept(&sample::kernel(), &Policy::KERNEL), Ok(()));
    let claims = NoteSpec { features: Features::SSE4A.0, ..sample::user() };
    assert_eq!(accept(&claims, &Policy::USER), Err(LayoutError::Features));
    let swapped = NoteSpec { imports: vec![(2, "one".into()), (1, "two".into())], ..sample::user() };
    assert_eq!(accept(&swapped, &Policy::USER), Err(LayoutError::ImportSlot));
}

#[test]
fn a_note_of_another_format_is_refused() {
    let with = |word: usize, value: u32| {
        let mut bytes = sample::user().to_bytes();
        bytes[4 * word..][..4].copy_from_slice(&value.to_le_bytes());
        Note::parse(&bytes).map(|note| note.flags)
    };
    assert_eq!(with(0, MAGIC), Ok(0));
    assert_eq!(with(0, MAGIC + 1), Err(NoteError::Magic));
    assert_eq!(with(1, VERSION + 1), Err(NoteError::Version));
    assert_eq!(with(2, 16), Err(NoteError::Version), "an unknown flag");
    assert_eq!(with(2, 15), Ok(15));
    assert_eq!(with(12, u32::MAX), Err(NoteError::Truncated));
    assert_eq!(Note::parse(&[]).map(|note| note.flags), Err(NoteError::Truncated));
}

#[test]
fn default_policies_allow_these_extensions() {
    let allowed = |policy: Policy| -> Vec<&str> {
        Features::NAMES.iter().filter(|(feature, _)| policy.features.contains(*feature)).map(|(_, name)| *name).collect()
    };
    assert_eq!(allowed(Policy::KERNEL), ["popcnt", "bmi1", "bmi2", "lzcnt", "adx", "movbe", "prefetchw"]);
    assert_eq!(Policy::KERNEL.features.0.count_ones(), 7);
    let all_but_sse4a: Vec<&str> = Features::NAMES.iter().map(|(_, name)| *name).filter(|name| *name != "sse4a").collect();
    assert_eq!(allowed(Policy::USER), all_but_sse4a);
    assert_eq!(Policy::USER.features.0, 0x1fff_ffff);
    assert_eq!(Features(5).with(Features(6)), Features(7));
    assert!(Features(7).contains(Features(5)) && !Features(5).contains(Features(7)));
}

#[test]
fn extensions_that_nobody_knows_are_refused_in_both_halves() {
    for bit in [30, 31, 32, 63] {
        let bytes = NoteSpec { features: 1 << bit, ..sample::user() }.to_bytes();
        let note = Note::parse(&bytes).expect("parses");
        assert_eq!((note.features, note.validate(&Policy::USER)), (1 << bit, Err(LayoutError::Features)));
    }
}

#[test]
fn scratch_must_be_long_enough() {
    let spec = sample::user();
    let judge = |words: usize| {
        let mut scratch = vec![0; words];
        sample::with_layout(&spec, |layout| check(&[0x90, 0xc3], &Policy::USER, layout, &mut scratch))
    };
    assert_eq!(judge(1).map_err(|r| (r.offset, r.rule)), Err((0, Rule::ScratchLength)));
    assert!(judge(2).is_ok());
    assert!(judge(3).is_ok());
}

#[test]
fn text_has_1_to_2_to_the_30_bytes() {
    // Zeroed memory that nobody looks at, so none of it is there; the scratch is asked for after the length.
    let text = vec![0; TEXT_LIMIT + 1];
    let rule = |len: usize| {
        sample::with_layout(&sample::user(), |layout| check(&text[..len], &Policy::USER, layout, &mut []).map_err(|r| r.rule))
    };
    assert_eq!(rule(0), Err(Rule::TextLength));
    assert_eq!(rule(1), Err(Rule::ScratchLength));
    assert_eq!(rule(TEXT_LIMIT), Err(Rule::ScratchLength));
    assert_eq!(rule(TEXT_LIMIT + 1), Err(Rule::TextLength));
}

#[test]
fn scratch_tells_starts_and_states() {
    // push %rax; and $0x78,%eax; call *%gs:0x10000(%rax); pop %rax; ret
    let text = [0x50, 0x83, 0xe0, 0x78, 0x65, 0xff, 0x90, 0, 0, 1, 0, 0x58, 0xc3];
    let mut scratch = [u64::MAX; 13];
    let summary = sample::with_layout(&sample::user(), |l| check(&text, &Policy::USER, l, &mut scratch)).expect("accepted");
    assert_eq!(summary.instructions, 4);
    assert_eq!(summary.max_depth, 8);
    assert_eq!(summary.features, Features::NONE);
    assert_eq!(starts(&scratch, text.len()).collect::<Vec<_>>(), [0, 1, 11, 12]);
    assert_eq!(state_at(scratch[1]), Some(State::new(1, 1)));
    assert_eq!(state_at(scratch[12]), Some(State::ENTRY));
    assert_eq!(state_at(scratch[2]), None);
    assert!(!is_start(scratch[4]));
}

#[test]
fn the_summary_names_what_the_text_uses() {
    // lock addl $1,%gs:(%eax); vpaddd %ymm; fld1; movntps; ret
    let text = [0x65, 0x67, 0xf0, 0x83, 0x00, 0x01, 0xc5, 0xfd, 0xfe, 0xc0, 0xd9, 0xe8, 0x65, 0x67, 0x0f, 0x2b, 0x00, 0xc3];
    let summary = sample::judge(&text, &Policy::USER, &sample::user()).expect("accepted");
    let expected = [Features::LOCK, Features::AVX, Features::AVX2, Features::X87, Features::SSE2, Features::NT];
    assert_eq!(summary.features, expected.iter().fold(Features::NONE, |all, &f| all.with(f)));
}

#[test]
fn every_rule_has_its_number_and_text() {
    for (index, rule) in Rule::ALL.iter().enumerate() {
        assert_eq!(usize::from(rule.number()), index + 1);
        assert!(!rule.text().is_empty());
    }
}

#[test]
fn a_reject_says_where_and_why() {
    let reject = sample::judge(&[0x50, 0xc3], &Policy::USER, &sample::user()).expect_err("depth 8 at ret");
    assert_eq!(reject.to_string(), "offset 0x1: R12 returns at a depth other than 0");
    assert_eq!((reject.rule.to_string().as_str(), reject.rule.name()), (reject.rule.text(), "RetDepth"));
}

#[test]
fn regions_have_one_of_five_kinds() {
    use RegionKind::{Argument, Data, Heap, Rodata, Stack};
    for (number, kind) in [Rodata, Data, Argument, Heap, Stack].into_iter().enumerate() {
        let words = [0x1_0000, 0x1_1000, number as u32].map(u32::to_le_bytes).concat();
        let layout = Layout { regions: Words::new(&words), ..Layout::default() };
        assert_eq!(layout.region(0), Some(Region { start: 0x1_0000, end: 0x1_1000, kind }));
        assert_eq!(layout.region(1), None);
    }
    let words = [0x1_0000, 0x1_1000, 5].map(u32::to_le_bytes).concat();
    assert_eq!(Layout { regions: Words::new(&words), ..Layout::default() }.region(0), None);
}

#[test]
fn describe_reports_truncation() {
    assert_eq!(describe(&[0xb8, 0, 0], Host::User), Err(Rule::Truncated));
    assert_eq!(describe(&[], Host::User).map(|d| d.len), Err(Rule::Truncated));
    assert_eq!(describe(&[0xb8, 0, 0, 0, 0], Host::User).map(|d| d.len), Ok(5));
}

#[test]
fn describe_tells_sizes_and_writes() {
    let described = |bytes: &[u8]| describe(bytes, Host::User).expect("accepted");
    // mov %gs:(%eax) of three sizes; vmovddup of both lengths.
    let loads: [(&[u8], u8); 5] = [
        (&[0x65, 0x67, 0x66, 0x8b, 0x00], 2),
        (&[0x65, 0x67, 0x8b, 0x00], 4),
        (&[0x65, 0x67, 0x48, 0x8b, 0x00], 8),
        (&[0x65, 0x67, 0xc5, 0xfb, 0x12, 0x00], 8),
        (&[0x65, 0x67, 0xc5, 0xff, 0x12, 0x00], 32),
    ];
    for (bytes, expected) in loads {
        assert_eq!(described(bytes).memory.map(|memory| memory.bytes), Some(expected), "{bytes:02x?}");
    }
    // sub, add and lea to rsp.
    for bytes in [&[0x48, 0x83, 0xec, 0x08][..], &[0x48, 0x83, 0xc4, 0x08], &[0x48, 0x8d, 0x64, 0x24, 0x08]] {
        assert_eq!(described(bytes).gpr_writes, 1 << 4, "{bytes:02x?}");
    }
}

/// `pushes` pushes, `adds` times `add $8,%rsp`, then pops back to depth 0 and `ret`.
fn tower(pushes: usize, adds: usize) -> Vec<u8> {
    let mut text = vec![0x50; pushes];
    text.extend([0x48, 0x83, 0xc4, 8].repeat(adds));
    text.extend(vec![0x58; pushes - adds]);
    text.push(0xc3);
    text
}

#[test]
fn slots_beyond_the_tracked_ones_count_as_unwritten() {
    let slots = SET_SLOTS as usize;
    let judge =
        |text: &[u8]| sample::judge(text, &Policy::USER, &sample::user()).map(|s| s.max_depth).map_err(|r| (r.offset, r.rule));
    assert_eq!(judge(&tower(slots, 0)), Ok(8 * SET_SLOTS));
    assert_eq!(judge(&tower(slots + 1, 0)), Err((SET_SLOTS + 1, Rule::PopUnwritten)));
    assert_eq!(judge(&tower(slots + 1, 1)), Ok(8 * SET_SLOTS + 8));
}

#[test]
fn the_greatest_depth_fits_the_state() {
    let policy = Policy { max_depth: DEPTH_LIMIT, ..Policy::USER };
    let spec = NoteSpec { max_depth: DEPTH_LIMIT, ..sample::user() };
    // sub $DEPTH_LIMIT,%rsp; [push %rax; pop %rax;] add $DEPTH_LIMIT,%rsp; ret
    let [low, mid, high, top] = DEPTH_LIMIT.to_le_bytes();
    let text = |middle: &[u8]| {
        [&[0x48, 0x81, 0xec, low, mid, high, top][..], middle, &[0x48, 0x81, 0xc4, low, mid, high, top, 0xc3]].concat()
    };
    assert_eq!(sample::judge(&text(&[]), &policy, &spec).map(|s| s.max_depth), Ok(DEPTH_LIMIT));
    let deeper = sample::judge(&text(&[0x50, 0x58]), &policy, &spec).map_err(|r| (r.offset, r.rule));
    assert_eq!(deeper, Err((7, Rule::DepthRange)));
}

#[test]
fn many_sub_tables_are_found_by_their_displacement() {
    let mut spec = sample::user();
    spec.table_end = USER_TABLE + 0x1_0000;
    spec.regions[0] = Region { start: 0x2_0000, end: 0x3_0000, kind: RegionKind::Data };
    spec.sub_tables = (0..1000).map(|i| sub(USER_TABLE + 0x80 + 16 * i, 1)).collect();
    let jump = |disp: i32| {
        // and $8,%eax; jmp *%gs:disp(%rax)
        let mut text = vec![0x83, 0xe0, 0x08, 0x65, 0xff, 0xa0];
        text.extend(disp.to_le_bytes());
        sample::judge(&text, &Policy::USER, &spec).map(|_| ()).map_err(|r| r.rule)
    };
    for index in 0..1000 {
        let base = USER_TABLE + 0x80 + 16 * index;
        assert_eq!(jump(base), Ok(()));
        assert_eq!(jump(base + 8), Err(Rule::Table));
    }
    assert_eq!(jump(USER_TABLE + 0x80 + 16 * 1000), Err(Rule::Table));
    assert_eq!(jump(USER_TABLE), Err(Rule::Table));
}

#[test]
fn table_pages_are_at_most_16_mib() {
    let with = |bytes: i64| {
        let mut spec = sample::user();
        spec.table_end = spec.table + bytes as i32;
        spec.regions[0] = Region { start: 0x200_0000, end: 0x200_1000, kind: RegionKind::Data };
        validate(&spec, &Policy::USER)
    };
    assert_eq!(with(TABLE_LIMIT), Ok(()));
    assert_eq!(with(TABLE_LIMIT + 0x1000), Err(LayoutError::TablePages));
}

#[test]
fn regions_are_at_most_64() {
    let with = |count: u32| {
        let mut spec = sample::user();
        let page = |i: u32| Region { start: 0x10_0000 + 0x1000 * i, end: 0x10_1000 + 0x1000 * i, kind: RegionKind::Rodata };
        spec.regions.splice(1..1, (0..count).map(page));
        validate(&spec, &Policy::USER)
    };
    assert_eq!(with(REGION_LIMIT as u32 - 2), Ok(()));
    assert_eq!(with(REGION_LIMIT as u32 - 1), Err(LayoutError::Regions));
}

/// The note of the sample, its entries' and imports' names one behind the other, with its words changed.
fn note_with(change: impl FnOnce(&mut [u32])) -> Result<(), LayoutError> {
    let mut spec = sample::user();
    spec.entries = vec![(0, "first".into()), (0, "second".into())];
    let mut words: Vec<u32> = spec.to_bytes().chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    change(&mut words);
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    Note::parse(&bytes).expect("parses").validate(&Policy::USER)
}

#[test]
fn a_note_names_entries_and_imports() {
    let bytes = NoteSpec { entries: vec![(0, "first".into()), (4, "second".into())], ..sample::user() }.to_bytes();
    let note = Note::parse(&bytes).expect("parses");
    assert_eq!([0, 1, 2].map(|index| note.entry_name(index)), [Ok("first"), Ok("second"), Err(NoteError::Name)]);
    assert_eq!([0, 1, 2].map(|index| note.import(index)), [Ok((1, "one")), Ok((2, "two")), Err(NoteError::Name)]);
}

#[test]
fn names_share_no_bytes() {
    // Header, two regions, three slots, a sub-table, two entries; then the names of entries, the imports.
    let first = 20 + 2 * 3 + 3 + 7 + 2;
    assert_eq!(note_with(|_| ()), Ok(()));
    assert_eq!(note_with(|w| assert_eq!(w[first..first + 6], [0, 6, 1, 13, 2, 17])), Ok(()));
    let refused = Err(LayoutError::Names);
    assert_eq!(note_with(|w| w[first + 1] = 0), refused, "the same name twice");
    assert_eq!(note_with(|w| w[first + 1] = 3), refused, "the end of another name");
    assert_eq!(note_with(|w| w[first + 1] = 5), refused, "the NUL of another name");
    assert_eq!(note_with(|w| w[first + 3] = 6), refused, "an import's name that is an entry's");
    assert_eq!(note_with(|w| w.swap(first, first + 1)), refused, "names out of order");
    assert_eq!(note_with(|w| w[first + 5] = u32::MAX), refused, "a name outside the strings");
    assert_eq!(note_with(|w| w[first + 1] = 7), Ok(()), "a gap is fine");
}

#[test]
fn an_image_proves_at_least_what_the_policy_demands() {
    let mode = |bits: u32| Mode {
        matched: bits & 1 != 0,
        metered: bits & 2 != 0,
        protect: if bits & 4 != 0 { Protect::Stores } else { Protect::All },
    };
    for (claimed, demanded) in (0..64_u32).map(|bits| (bits & 7, bits >> 3)) {
        let spec = NoteSpec { mode: mode(claimed), ..sample::user() };
        let policy = Policy { mode: mode(demanded), ..Policy::USER };
        // Match and metering may be more, unprotected loads only what is demanded.
        let enough = demanded & 3 & !claimed == 0 && claimed & 4 & !demanded == 0;
        assert_eq!(validate(&spec, &policy), if enough { Ok(()) } else { Err(LayoutError::Mode) }, "{claimed} for {demanded}");
        let parsed = Note::parse(&spec.to_bytes()).expect("parses").layout.mode;
        assert_eq!(parsed, mode(claimed));
        let kernel = NoteSpec { mode: mode(claimed), ..sample::kernel() };
        let policy = Policy { mode: mode(demanded), ..Policy::KERNEL };
        let enough = enough && claimed & 4 == 0;
        assert_eq!(validate(&kernel, &policy), if enough { Ok(()) } else { Err(LayoutError::Mode) }, "{claimed} for {demanded}");
    }
}

#[test]
fn forget_records_are_ascending_and_name_16_registers() {
    let matched = Mode { matched: true, ..Mode::default() };
    let with = |mode: Mode, offsets: &[u32]| {
        let forgets = offsets.iter().map(|&offset| Forget { offset, keep: 1 }).collect();
        NoteSpec { mode, forgets, ..sample::user() }
    };
    assert_eq!(validate(&with(matched, &[0, 1, 7, u32::MAX]), &Policy::USER), Ok(()));
    assert_eq!(validate(&with(matched, &[1, 1]), &Policy::USER), Err(LayoutError::Forgets));
    assert_eq!(validate(&with(matched, &[2, 1]), &Policy::USER), Err(LayoutError::Forgets));
    assert_eq!(validate(&with(Mode::default(), &[0]), &Policy::USER), Err(LayoutError::Forgets));
    let mut bytes = with(matched, &[0x4321]).to_bytes();
    let at = bytes.windows(8).position(|w| w == [0x21, 0x43, 0, 0, 1, 0, 0, 0]).expect("the record");
    bytes[at + 6] = 1;
    assert_eq!(Note::parse(&bytes).expect("parses").validate(&Policy::USER), Err(LayoutError::Forgets), "a mask of 17 bits");
}

#[test]
fn starts_are_told_in_every_mode() {
    // movzwl %ax,%eax; clc; cmp $0x7fffffff,%rdi; ja u; ret; u: ud2. Behind movzx more is known than a word can say.
    let text = [0x0f, 0xb7, 0xc0, 0xf8, 0x48, 0x81, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x77, 1, 0xc3, 0x0f, 0x0b];
    for (mode, expected) in [(true, vec![0, 3, 4, 13, 14]), (false, vec![0, 3, 4, 11, 13, 14])] {
        let spec = NoteSpec { mode: Mode { matched: mode, ..Mode::default() }, ..sample::user() };
        let mut scratch = [u64::MAX; 16];
        let summary = sample::with_layout(&spec, |l| check(&text, &Policy::USER, l, &mut scratch)).expect("accepted");
        assert_eq!(starts(&scratch, text.len()).collect::<Vec<_>>(), expected);
        assert_eq!(summary.instructions as usize, expected.len());
        assert!(expected.iter().all(|&at| state_at(scratch[at]) == Some(State::ENTRY)));
    }
}
