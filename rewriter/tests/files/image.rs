//! Image files are what ordinary tools expect.

use crate::toolchain::output;
use cordon_checker::layout::{Region, RegionKind, Slot, TEXT_VADDR};
use cordon_checker::note::{self, Note, NoteSpec};
use cordon_rewriter::emit::{EmitError, Image, ImageSymbol, MapEntry, Segment, Stub, write};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectKind, ObjectSection, ObjectSymbol};

fn symbol(name: &str, value: u64, size: u64, function: bool, global: bool) -> ImageSymbol {
    ImageSymbol { name: name.to_owned(), value, size, function, global }
}

fn sample() -> Image {
    Image {
        // Two functions: `lea 1(%rdi),%eax; ret` and `ret`.
        text: vec![0x8d, 0x47, 0x01, 0xc3, 0xc3],
        rodata: Segment { start: 0x11000, bytes: b"constant".to_vec(), size: 8 },
        data: Segment { start: 0x12000, bytes: vec![7; 24], size: 0x3000 },
        symbols: vec![
            symbol("entry", 0, 4, true, true),
            symbol("helper", 4, 1, true, false),
            symbol("constant", 0x11000, 8, false, false),
            symbol("variable", 0x12010, 8, false, true),
            symbol("zeroed", 0x13000, 0x100, false, true),
            symbol("end", 0x15000, 0, false, true),
        ],
        map: vec![MapEntry { new: 0, object: 0, section: 1, old: 0x40 }, MapEntry { new: 3, object: 1, section: 5, old: 9 }],
        originals: vec![3, 0x8d, 0x47, 0x01, 0],
        stubs: vec![Stub { at: 3, place: 0, fuel: false }, Stub { at: 4, place: 2, fuel: true }],
        objects: vec!["a.o".to_owned(), "lib.a(b.o)".to_owned()],
        note: NoteSpec {
            main_bits: 1,
            slots: vec![Slot::Trap, Slot::Text(4)],
            regions: vec![Region { start: 0x11000, end: 0x12000, kind: RegionKind::Rodata }],
            entries: vec![(0, "entry".to_owned())],
            ..NoteSpec::default()
        },
        ..Image::default()
    }
}

#[test]
fn segments_lie_where_the_loader_maps_them() {
    let bytes = write(&sample()).expect("an image");
    let file = ElfFile64::<LittleEndian>::parse(&*bytes).expect("readable");
    assert_eq!(file.kind(), ObjectKind::Dynamic);
    let headers: Vec<_> = file
        .elf_program_headers()
        .iter()
        .map(|h| {
            let e = LittleEndian;
            let at = h.p_offset.get(e);
            assert!(h.p_type.get(e) != object::elf::PT_LOAD || at % 4096 == 0);
            (h.p_type.get(e).0, h.p_flags.get(e).0, h.p_vaddr.get(e), h.p_filesz.get(e), h.p_memsz.get(e))
        })
        .collect();
    assert_eq!(headers[0], (1, 4, 0x11000, 8, 8));
    assert_eq!(headers[1], (1, 6, 0x12000, 24, 0x3000));
    assert_eq!(headers[2], (1, 5, TEXT_VADDR, 5, 5));
    assert_eq!((headers[3].0, headers[4].0, headers[4].1, headers.len()), (4, 0x6474_e551, 6, 5));
    let at = file.elf_program_headers()[2].p_offset.get(LittleEndian) as usize;
    assert_eq!(bytes[at..at + 5], sample().text);
}

#[test]
fn note_and_map_can_be_read_back() {
    let image = sample();
    let bytes = write(&image).expect("an image");
    let file = ElfFile64::<LittleEndian>::parse(&*bytes).expect("readable");
    let section = |name| file.section_by_name(name).expect("the section exists").data().expect("it has bytes");
    let header = &section(".note.cordon")[..20];
    assert_eq!(&header[12..20], b"Cordon\0\0");
    let note = Note::parse(&section(".note.cordon")[20..]).expect("a note");
    assert_eq!((note.entry_name(0), note.layout.main_bits), (Ok("entry"), 1));
    assert_eq!(u32::from_le_bytes([header[8], header[9], header[10], header[11]]), note::TYPE);
    let words = |name| section(name).chunks(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect::<Vec<u32>>();
    assert_eq!(words(".cordon.map"), [0, 0, 1, 0x40, 3, 1, 5, 9]);
    assert_eq!(words(".cordon.stubs"), [3, 0, 4, 2 | 1 << 31]);
    assert_eq!(section(".cordon.orig"), [3, 0x8d, 0x47, 0x01, 0]);
    assert_eq!(section(".cordon.objects"), b"a.o\0lib.a(b.o)\0");
}

#[test]
fn symbols_belong_to_their_sections() {
    let bytes = write(&sample()).expect("an image");
    let file = ElfFile64::<LittleEndian>::parse(&*bytes).expect("readable");
    let find = |name: &str| {
        let symbol = file.symbols().find(|s| s.name() == Ok(name)).expect("the symbol exists");
        let section = symbol.section_index().map(|i| file.section_by_index(i).expect("a section").name().expect("a name"));
        (symbol.address(), symbol.size(), symbol.is_global(), section.unwrap_or("none"))
    };
    assert_eq!(find("entry"), (TEXT_VADDR, 4, true, ".text"));
    assert_eq!(find("helper"), (TEXT_VADDR + 4, 1, false, ".text"));
    assert_eq!(find("constant"), (0x11000, 8, false, ".rodata"));
    assert_eq!(find("variable"), (0x12010, 8, true, ".data"));
    assert_eq!(find("zeroed"), (0x13000, 0x100, true, ".bss"));
    assert_eq!(find("end"), (0x15000, 0, true, ".bss"));
}

#[test]
fn equal_images_are_equal_bytes() {
    assert_eq!(write(&sample()), write(&sample()));
}

#[test]
fn binutils_have_no_complaints() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("image");
    let no_data = Image { rodata: Segment::default(), data: Segment::default(), symbols: Vec::new(), ..sample() };
    let only_bss = Image { data: Segment { start: 0x12000, bytes: Vec::new(), size: 0x1000 }, ..sample() };
    for image in [sample(), no_data, only_bss] {
        std::fs::write(&path, write(&image).expect("an image")).expect("written");
        let text = output("readelf", &["-aW"], &path);
        assert!(text.contains("DYN (") && text.contains("  NOTE "), "{text}");
        for word in ["warning", "Warning", "Error", "error", "<corrupt"] {
            assert!(!text.contains(word), "{text}");
        }
        let text = output("objdump", &["-d"], &path);
        assert!(text.contains("lea    0x1(%rdi),%eax"), "{text}");
        assert!(image.symbols.is_empty() || text.contains("<helper>:"), "{text}");
    }
}

#[test]
fn refuses_segments_that_do_not_fit() {
    let data = |start, len, size| write(&Image { data: Segment { start, bytes: vec![0; len], size }, ..sample() }).map(|_| ());
    let malformed = Err(EmitError::Segment { part: "data" });
    assert_eq!(data(0x12001, 0, 1), malformed);
    assert_eq!(data(0x12000, 2, 1), malformed);
    assert_eq!(data(0xffff_f000, 0, 0x1001), malformed);
    assert_eq!(data(0xffff_e000, 0, 0x1000), Ok(()));
    let named = Image { symbols: vec![symbol("a\0b", 0, 0, true, true)], ..sample() };
    assert_eq!(write(&named), Err(EmitError::Name { name: "a\0b".to_owned() }));
}
