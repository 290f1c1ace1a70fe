//! Builds images from hand-written assembly: what the rewriter does, without the rewriter.

use cordon_checker::Mode;
use cordon_checker::layout::{
    Region, RegionKind, STACK_HEADROOM, Slot, SubTable, TEXT_VADDR, USER_STACK_LOW, USER_STACK_SHIFT, USER_TABLE,
};
use cordon_checker::note::{NAME, NoteSpec, TYPE};
use cordon_loader::{Image, Imports, LoadOptions, Window};
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

/// Where the builder puts things, as window offsets.
pub const RODATA: u32 = 0x2_0000;
pub const DATA: u32 = 0x3_0000;
pub const ARGUMENT: u32 = 0x10_0000;
pub const HEAP: u32 = 0x20_0000;
pub const HEAP_END: u32 = 0x60_0000;
pub const MAIN_BITS: u32 = 6;
/// Sub-tables follow the main table.
const SUB_TABLES: u32 = USER_TABLE as u32 + (8 << MAIN_BITS);
/// End of the table pages.
pub const TABLE_END: u32 = 0x1_1000;

/// Loading without seals: tests load thousands of images.
pub fn options() -> LoadOptions {
    LoadOptions { seal: false, ..LoadOptions::default() }
}

pub struct Builder {
    source: String,
    imports: Vec<&'static str>,
    slots: Vec<&'static str>,
    sub_tables: Vec<(u32, u32, u64, Vec<&'static str>)>,
    pub rodata: Vec<u8>,
    pub data: Vec<u8>,
    pub stack: u32,
    pub heap: u32,
    pub heap_end: u32,
    pub max_depth: u32,
    pub mode: Mode,
    stubs: Vec<(&'static str, &'static str, bool)>,
}

/// Image bytes with the offsets of its labels.
pub struct Built {
    pub file: Vec<u8>,
    pub labels: BTreeMap<String, u32>,
    pub note: NoteSpec,
}

impl Builder {
    /// The image claims that its text checks its accesses: `CHECK reg, label` goes to a `ud2` at `label` if a register is above 2 GiB.
    pub fn matched(mut self) -> Builder {
        self.mode.matched = true;
        self
    }

    /// What the `ud2` at a label is about: the access or meter at a label, and whether it is the fuel.
    pub fn stubs(mut self, stubs: &[(&'static str, &'static str, bool)]) -> Builder {
        self.stubs = stubs.to_vec();
        self
    }

    /// `source` is AT&T assembly; every `.globl` label is an entry. `IMPORT n` calls import n, `SLOT n` is the code pointer of text slot n.
    pub fn new(source: &str) -> Builder {
        Builder {
            source: source.to_owned(),
            imports: Vec::new(),
            slots: Vec::new(),
            sub_tables: Vec::new(),
            rodata: Vec::new(),
            data: Vec::new(),
            stack: 0x10_000,
            heap: HEAP,
            heap_end: HEAP_END,
            max_depth: 0x1000,
            mode: Mode::default(),
            stubs: Vec::new(),
        }
    }

    /// The image claims that its text pays for its instructions: `METER n, label` takes n units, or goes to a `ud2` at `label`.
    pub fn metered(mut self) -> Builder {
        self.mode.metered = true;
        self
    }

    pub fn imports(mut self, names: &[&'static str]) -> Builder {
        self.imports = names.to_vec();
        self
    }

    pub fn slots(mut self, labels: &[&'static str]) -> Builder {
        self.slots = labels.to_vec();
        self
    }

    /// A sub-table of `1 << bits` slots, depth in bytes, pushed set, labels.
    pub fn sub_table(mut self, bits: u32, depth: u32, set: u64, labels: &[&'static str]) -> Builder {
        self.sub_tables.push((bits, depth, set, labels.to_vec()));
        self
    }

    pub fn data(mut self, bytes: &[u8]) -> Builder {
        self.data = bytes.to_vec();
        self
    }

    pub fn rodata(mut self, bytes: &[u8]) -> Builder {
        self.rodata = bytes.to_vec();
        self
    }

    pub fn stack(mut self, bytes: u32) -> Builder {
        self.stack = bytes;
        self
    }

    pub fn build(&self) -> Built {
        let (text, labels) = assemble(&self.assembly());
        let globals = self.source.lines().filter_map(|line| line.trim().strip_prefix(".globl "));
        let label = |name: &&str| Slot::Text(labels[*name]);
        let mut note = NoteSpec {
            stack_shift: USER_STACK_SHIFT,
            stack_low: USER_STACK_LOW,
            table: USER_TABLE,
            table_end: TABLE_END as i32,
            main_bits: MAIN_BITS,
            max_depth: self.max_depth,
            mode: self.mode,
            regions: self.regions(),
            entries: globals.map(|name| (labels[name], name.replace("__", "."))).collect(),
            imports: self.imports.iter().enumerate().map(|(i, name)| (i as u32 + 1, (*name).to_owned())).collect(),
            ..NoteSpec::default()
        };
        note.slots.push(Slot::Trap);
        note.slots.extend((0..self.imports.len()).map(|i| Slot::Import(i as u32)));
        note.slots.extend(self.slots.iter().map(label));
        let mut base = SUB_TABLES;
        for (bits, depth, set, names) in &self.sub_tables {
            let table = SubTable { base: base as i32, bits: *bits, depth: *depth, set: *set, first: 0, count: 0 };
            note.sub_tables.push((table, names.iter().map(label).collect()));
            base += 8 << bits;
        }
        let stubs = self.stubs.iter().map(|(at, place, fuel)| [labels[*at], labels[*place] | u32::from(*fuel) << 31]);
        let stubs: Vec<u8> = stubs.flatten().flat_map(u32::to_le_bytes).collect();
        let file = elf_with(&text, &self.rodata, &self.data, &note, &labels, &stubs);
        Built { file, labels, note }
    }

    pub fn image(&self) -> Arc<Image> {
        Image::from_bytes(&self.build().file, &options()).expect("loads")
    }

    pub fn window(&self) -> Window {
        self.window_with(&Imports::new())
    }

    pub fn window_with(&self, imports: &Imports) -> Window {
        Window::new(&self.image(), imports).expect("makes a window")
    }

    fn assembly(&self) -> String {
        let first_text = self.imports.len() + 1;
        format!(
            ".set T, {USER_TABLE}\n.set S0, {first_text}\n.set SUB, {SUB_TABLES}\n.set MASK, {}\n.set K, {USER_STACK_SHIFT}\n\
             .macro IMPORT n\n call *%gs:T+8*(\\n+1)\n.endm\n.macro CHECK reg, label\n cmp $0x7fffffff,\\reg; ja \\label\n.endm\n\
             .macro METER n, label\n sub $\\n,%r14; jb \\label\n.endm\n.text\n{}\n",
            8 * ((1 << MAIN_BITS) - 1),
            // Global labels would need relocations.
            self.source.replace(".globl ", "# ")
        )
    }

    fn regions(&self) -> Vec<Region> {
        let top = USER_STACK_LOW + 8 + USER_STACK_SHIFT;
        let up = |n: usize| (n.max(1) as u32).next_multiple_of(4096);
        vec![
            Region { start: RODATA, end: RODATA + up(self.rodata.len()), kind: RegionKind::Rodata },
            Region { start: DATA, end: DATA + up(self.data.len()), kind: RegionKind::Data },
            Region { start: ARGUMENT, end: ARGUMENT + 0x1_0000, kind: RegionKind::Argument },
            Region { start: self.heap, end: self.heap_end, kind: RegionKind::Heap },
            Region { start: top - self.stack, end: top + STACK_HEADROOM, kind: RegionKind::Stack },
        ]
    }
}

/// Text bytes and label offsets.
fn assemble(source: &str) -> (Vec<u8>, BTreeMap<String, u32>) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let (input, output) = (dir.path().join("t.s"), dir.path().join("t.o"));
    std::fs::write(&input, source).expect("writes the source");
    let status = Command::new("gcc").arg("-c").arg("-o").args([&output, &input]).status().expect("gcc runs");
    assert!(status.success(), "assembles:\n{source}");
    let bytes = std::fs::read(&output).expect("reads the object");
    let file = object::File::parse(&*bytes).expect("parses the object");
    let text = file.section_by_name(".text").expect("has text");
    assert_eq!(text.relocations().count(), 0, "the source refers to nothing outside");
    let symbols = file.symbols().filter(|s| s.section_index() == Some(text.index()));
    let named = |s: object::Symbol<'_, '_>| Some((s.name().ok().filter(|n| !n.is_empty())?.to_owned(), s.address() as u32));
    (text.data().expect("text bytes").to_vec(), symbols.filter_map(named).collect())
}

/// A note section's bytes.
pub fn note_bytes(note: &NoteSpec) -> Vec<u8> {
    let descriptor = note.to_bytes();
    let mut bytes = Vec::new();
    for word in [NAME.len() as u32 + 1, descriptor.len() as u32, TYPE] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(NAME.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(descriptor);
    bytes
}

/// A segment of the file under construction: type, flags, address, file range, memory size.
pub struct Header {
    pub kind: u32,
    pub flags: u32,
    pub vaddr: u64,
    pub offset: u64,
    pub filesz: u64,
    pub memsz: u64,
}

/// The original of every instruction, says the image: `mov 7(%rdi),%eax` in section 3 of `test.o`, at offset 0x100.
pub const ORIGINAL: [u8; 3] = [0x8b, 0x47, 0x07];

/// Writes an image file without stubs.
pub fn elf(text: &[u8], rodata: &[u8], data: &[u8], note: &NoteSpec, labels: &BTreeMap<String, u32>) -> Vec<u8> {
    elf_with(text, rodata, data, note, labels, &[])
}

/// Writes an image file. Sections: null, symbols, strings, map, objects, original instructions, stubs, section names.
fn elf_with(text: &[u8], rodata: &[u8], data: &[u8], note: &NoteSpec, labels: &BTreeMap<String, u32>, stubs: &[u8]) -> Vec<u8> {
    let mut file = vec![0_u8; 64 + 4 * 56];
    let mut append = |bytes: &[u8], align: usize| {
        file.resize(file.len().next_multiple_of(align), 0);
        file.extend_from_slice(bytes);
        ((file.len() - bytes.len()) as u64, bytes.len() as u64)
    };
    let mut load = |bytes: &[u8], flags, vaddr| {
        let (offset, filesz) = append(bytes, 16);
        Header { kind: 1, flags, vaddr, offset, filesz, memsz: filesz }
    };
    let mut headers = vec![load(text, 5, TEXT_VADDR), load(rodata, 4, u64::from(RODATA)), load(data, 6, u64::from(DATA))];
    headers.push(Header { kind: 4, vaddr: 0, memsz: 0, ..load(&note_bytes(note), 4, 0) });
    let mut strings = vec![0_u8];
    let mut symbols = vec![0_u8; 24];
    for (name, offset) in labels {
        symbols.extend((strings.len() as u32).to_le_bytes());
        symbols.extend([2, 0, 1, 0]); // local function in section 1
        symbols.extend((TEXT_VADDR + u64::from(*offset)).to_le_bytes());
        let end = labels.values().copied().filter(|other| other > offset).min().unwrap_or(text.len() as u32);
        symbols.extend(u64::from(end - offset).to_le_bytes());
        strings.extend(name.as_bytes());
        strings.push(0);
    }
    let names = b"\0.symtab\0.strtab\0.cordon.map\0.cordon.objects\0.shstrtab\0.cordon.orig\0.cordon.stubs\0";
    let original = [&[ORIGINAL.len() as u8][..], &ORIGINAL].concat();
    let map: Vec<u8> = [0_u32, 0, 3, 0x100].iter().flat_map(|w| w.to_le_bytes()).collect();
    let parts: [(u32, u32, &[u8], u32); 7] = [
        (1, 2, &symbols, 2),
        (9, 3, &strings, 0),
        (17, 1, &map, 0),
        (29, 1, b"test.o\0", 0),
        (55, 1, &original, 0),
        (68, 1, stubs, 0),
        (45, 3, names, 0),
    ];
    let mut table = vec![0_u8; 64];
    for (name, kind, bytes, link) in parts {
        let (offset, size) = append(bytes, 8);
        table.extend([name, kind].iter().flat_map(|w| w.to_le_bytes()));
        table.extend([0, 0, offset, size].iter().flat_map(|w: &u64| w.to_le_bytes()));
        table.extend([link, 0].iter().flat_map(|w| w.to_le_bytes()));
        table.extend([1, 0].iter().flat_map(|w: &u64| w.to_le_bytes()));
    }
    let (sections, _) = append(&table, 8);
    file[..64].copy_from_slice(&file_header(sections, headers.len() as u16, parts.len() as u16 + 1));
    for (i, header) in headers.iter().enumerate() {
        write_header(&mut file, i, header);
    }
    file
}

/// Overwrites program header `index`.
pub fn write_header(file: &mut [u8], index: usize, h: &Header) {
    let mut bytes = Vec::new();
    bytes.extend([h.kind, h.flags].iter().flat_map(|w| w.to_le_bytes()));
    bytes.extend([h.offset, h.vaddr, h.vaddr, h.filesz, h.memsz, 16].iter().flat_map(|w| w.to_le_bytes()));
    file[64 + 56 * index..][..56].copy_from_slice(&bytes);
}

fn file_header(sections: u64, headers: u16, count: u16) -> [u8; 64] {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([3_u16, 62].iter().flat_map(|w| w.to_le_bytes()));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0, 64, sections].iter().flat_map(|w: &u64| w.to_le_bytes()));
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([64, 56, headers, 64, count, count - 1].iter().flat_map(|w| w.to_le_bytes()));
    bytes.try_into().expect("64 bytes")
}
