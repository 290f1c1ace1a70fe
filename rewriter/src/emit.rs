//! Writes the image: an ELF64 ET_DYN file that ordinary tools read (DESIGN §9).

use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::note::{self, NoteSpec};
use object::write::StringId;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, SectionIndex, Sym, Writer};
use object::{Endianness, elf};

/// A symbol of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSymbol {
    pub name: String,
    /// Text offset (for functions) or window offset (for objects).
    pub value: u64,
    pub size: u64,
    pub function: bool,
    pub global: bool,
}

/// One line of `.cordon.map`: the instruction at `new` (text offset) came from `section`+`old` of `object`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapEntry {
    pub new: u32,
    pub object: u32,
    /// ELF section index in that object.
    pub section: u32,
    pub old: u32,
}

/// One line of `.cordon.stubs`: a `ud2` to which a check or a meter jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stub {
    /// Text offset of the `ud2`.
    pub at: u32,
    /// Text offset of the access that the check is for, or of the meter.
    pub place: u32,
    /// The fuel is used up; else an access goes astray.
    pub fuel: bool,
}

/// Bytes that go to a window range; `size > bytes.len()` is zero-filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Window offset, page-aligned.
    pub start: u32,
    pub bytes: Vec<u8>,
    /// Size in memory, bytes.
    pub size: u32,
}

/// Everything that an image consists of.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub text: Vec<u8>,
    pub rodata: Segment,
    pub data: Segment,
    pub symbols: Vec<ImageSymbol>,
    /// Ascending by `new`.
    pub map: Vec<MapEntry>,
    /// The places that end a call on purpose, ascending by [`Stub::at`].
    pub stubs: Vec<Stub>,
    /// The original instructions for `.cordon.orig`: for each entry of `map` a length byte, at most 15, and that many bytes.
    pub originals: Vec<u8>,
    /// Names of the objects that `map` refers to.
    pub objects: Vec<String>,
    pub note: NoteSpec,
    /// Line tables and functions; empty ones are left out.
    pub debug: DebugSections,
}

/// DWARF sections of the image ([`crate::dwarf::lines`]).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugSections {
    pub abbrev: Vec<u8>,
    pub info: Vec<u8>,
    pub line: Vec<u8>,
    pub strings: Vec<u8>,
    /// Call frames ([`crate::dwarf::frames`]).
    pub frame: Vec<u8>,
    /// Debug information that was left out, and why, for people.
    pub warnings: Vec<String>,
}

/// Why an image could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// A part does not fit the 32-bit offsets of the format.
    #[error("{part} is too large for an image")]
    TooLarge { part: &'static str },
    /// A segment that does not start at a page, holds more bytes than its size, or leaves the window.
    #[error("the {part} segment is malformed")]
    Segment { part: &'static str },
    /// A name with a NUL byte in it.
    #[error("the name {name:?} cannot be written")]
    Name { name: String },
    /// The ELF writer refused.
    #[error("cannot write the image: {0}")]
    Writer(String),
}

/// Alignment of segments in the file and in memory, bytes.
const PAGE: u64 = 4096;

/// The bytes of `image`, the same for the same `image`.
///
/// # Errors
/// [`EmitError`] if a part breaks the rules of the format.
pub fn write(image: &Image) -> Result<Vec<u8>, EmitError> {
    check(image)?;
    let parts = Parts { note: note_bytes(image)?, map: map_bytes(image), stubs: stub_bytes(image), objects: object_names(image) };
    let sections = sections(image, &parts);
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut bytes);
    let file = File::reserve(&mut writer, image, &sections)?;
    file.write(&mut writer, image, &sections).map_err(|e| EmitError::Writer(e.to_string()))?;
    Ok(bytes)
}

fn check(image: &Image) -> Result<(), EmitError> {
    let fits = |part, len: usize| match u32::try_from(len) {
        Ok(_) => Ok(()),
        Err(_) => Err(EmitError::TooLarge { part }),
    };
    fits("text", image.text.len())?;
    fits("symbol table", image.symbols.len())?;
    for (part, segment) in [("rodata", &image.rodata), ("data", &image.data)] {
        fits(part, segment.bytes.len())?;
        let aligned = u64::from(segment.start).is_multiple_of(PAGE);
        if !aligned || segment.bytes.len() > segment.size as usize || segment.start.checked_add(segment.size).is_none() {
            return Err(EmitError::Segment { part });
        }
    }
    let mut names = image.symbols.iter().map(|s| &s.name).chain(&image.objects);
    match names.find(|name| name.contains('\0')) {
        Some(name) => Err(EmitError::Name { name: name.clone() }),
        None => Ok(()),
    }
}

/// `.cordon.map`: four little-endian words (new, object, section, old) per entry.
fn map_bytes(image: &Image) -> Vec<u8> {
    image.map.iter().flat_map(|e| [e.new, e.object, e.section, e.old]).flat_map(u32::to_le_bytes).collect()
}

/// `.cordon.stubs`: two little-endian words per entry: at, and place with bit 31 set if the fuel is used up.
fn stub_bytes(image: &Image) -> Vec<u8> {
    image.stubs.iter().flat_map(|s| [s.at, s.place | u32::from(s.fuel) << 31]).flat_map(u32::to_le_bytes).collect()
}

/// `.cordon.objects`: NUL-terminated names.
fn object_names(image: &Image) -> Vec<u8> {
    image.objects.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

/// The ELF note (gABI "Note Section"): name length, descriptor length, type, name, descriptor, padded to words.
fn note_bytes(image: &Image) -> Result<Vec<u8>, EmitError> {
    let descriptor = image.note.to_bytes();
    let size = u32::try_from(descriptor.len()).map_err(|_| EmitError::TooLarge { part: "note" })?;
    let mut name = note::NAME.as_bytes().to_vec();
    name.push(0);
    let mut bytes: Vec<u8> = [name.len() as u32, size, note::TYPE].into_iter().flat_map(u32::to_le_bytes).collect();
    name.resize(name.len().next_multiple_of(4), 0);
    bytes.extend(name);
    bytes.extend(descriptor);
    Ok(bytes)
}

/// A section of the image; symbol and string tables are the writer's.
struct Section<'a> {
    name: &'static str,
    kind: elf::SectionType,
    flags: elf::SectionFlags,
    address: u64,
    align: u64,
    bytes: &'a [u8],
    /// Bytes in memory, or in the file if it is not allocated.
    size: u64,
}

/// Sections made of the image's tables.
struct Parts {
    note: Vec<u8>,
    map: Vec<u8>,
    stubs: Vec<u8>,
    objects: Vec<u8>,
}

/// The sections that are not empty, by address and then by name.
fn sections<'a>(image: &'a Image, parts: &'a Parts) -> Vec<Section<'a>> {
    let allocated = |name, flags, address: u64, bytes: &'a [u8]| Section {
        name,
        kind: elf::SHT_PROGBITS,
        flags: elf::SHF_ALLOC | flags,
        address,
        align: 16,
        bytes,
        size: bytes.len() as u64,
    };
    let other = |name, kind, align, bytes: &'a [u8]| Section {
        name,
        kind,
        flags: elf::SectionFlags(0),
        address: 0,
        align,
        bytes,
        size: bytes.len() as u64,
    };
    let zeroed = |name, flags, segment: &Segment| Section {
        kind: elf::SHT_NOBITS,
        align: 1,
        size: u64::from(segment.size) - segment.bytes.len() as u64,
        ..allocated(name, flags, u64::from(segment.start) + segment.bytes.len() as u64, &[])
    };
    let debug = &image.debug;
    let all = [
        allocated(".rodata", elf::SectionFlags(0), u64::from(image.rodata.start), &image.rodata.bytes),
        zeroed(".rodata.zero", elf::SectionFlags(0), &image.rodata),
        allocated(".data", elf::SHF_WRITE, u64::from(image.data.start), &image.data.bytes),
        zeroed(".bss", elf::SHF_WRITE, &image.data),
        allocated(".text", elf::SHF_EXECINSTR, TEXT_VADDR, &image.text),
        other(".note.cordon", elf::SHT_NOTE, 4, &parts.note),
        other(".cordon.map", elf::SHT_PROGBITS, 4, &parts.map),
        other(".cordon.stubs", elf::SHT_PROGBITS, 4, &parts.stubs),
        other(".cordon.orig", elf::SHT_PROGBITS, 1, &image.originals),
        other(".cordon.objects", elf::SHT_PROGBITS, 1, &parts.objects),
        other(".debug_abbrev", elf::SHT_PROGBITS, 1, &debug.abbrev),
        other(".debug_info", elf::SHT_PROGBITS, 1, &debug.info),
        other(".debug_line", elf::SHT_PROGBITS, 1, &debug.line),
        other(".debug_str", elf::SHT_PROGBITS, 1, &debug.strings),
        other(".debug_frame", elf::SHT_PROGBITS, 8, &debug.frame),
    ];
    all.into_iter().filter(|section| section.size > 0).collect()
}

/// What was reserved in the file for each part.
struct File {
    /// By section: name, ELF index, file offset.
    sections: Vec<(StringId, SectionIndex, u64)>,
    /// Indices into [`Image::symbols`], locals first, with their names.
    symbols: Vec<(usize, StringId)>,
    locals: u32,
}

impl File {
    fn reserve<'a>(writer: &mut Writer<'a>, image: &'a Image, sections: &[Section<'a>]) -> Result<File, EmitError> {
        let failed = |e: object::write::Error| EmitError::Writer(e.to_string());
        writer.reserve_file_header();
        // One for each segment with memory, the note, the stack.
        let loads = [image.rodata.size > 0, image.data.size > 0, !image.text.is_empty()];
        writer.reserve_program_headers(2 + loads.into_iter().map(u32::from).sum::<u32>());
        let mut file = File { sections: Vec::new(), symbols: Vec::new(), locals: 1 };
        for section in sections {
            let starts_segment = section.flags.0 & elf::SHF_ALLOC.0 != 0 && section.address.is_multiple_of(PAGE);
            let align = if starts_segment { PAGE } else { section.align };
            let offset = writer.reserve(section.bytes.len() as u64, align);
            file.sections.push((writer.add_section_name(section.name.as_bytes()), writer.reserve_section_index(), offset));
        }
        let (locals, globals): (Vec<_>, Vec<_>) = (0..image.symbols.len()).partition(|i| !image.symbols[*i].global);
        file.locals += u32::try_from(locals.len()).map_err(|_| EmitError::TooLarge { part: "symbol table" })?;
        writer.reserve_null_symbol_index();
        for i in locals.into_iter().chain(globals) {
            file.symbols.push((i, writer.add_string(image.symbols[i].name.as_bytes())));
            writer.reserve_symbol_index(None);
        }
        writer.reserve_symtab_section_index();
        writer.reserve_symtab();
        writer.reserve_strtab_section_index();
        writer.reserve_strtab().map_err(failed)?;
        writer.reserve_shstrtab_section_index();
        writer.reserve_shstrtab().map_err(failed)?;
        writer.reserve_section_headers();
        Ok(file)
    }

    fn write(&self, writer: &mut Writer, image: &Image, sections: &[Section]) -> object::write::Result<()> {
        writer.write_file_header(&FileHeader {
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            e_type: elf::ET_DYN,
            e_machine: elf::EM_X86_64,
            e_entry: 0,
            e_flags: elf::FileFlags(0),
        })?;
        writer.write_align_program_headers();
        self.program_headers(image, sections).iter().for_each(|header| writer.write_program_header(header));
        for (section, (_, _, offset)) in sections.iter().zip(&self.sections) {
            writer.pad_until(*offset);
            writer.write(section.bytes);
        }
        writer.write_null_symbol();
        for &(i, name) in &self.symbols {
            let symbol = self.symbol(&image.symbols[i], writer.string_offset(Some(name)), sections);
            writer.write_symbol(&symbol);
        }
        writer.write_strtab();
        writer.write_shstrtab();
        writer.write_null_section_header();
        for (section, (name, _, offset)) in sections.iter().zip(&self.sections) {
            let sh_name = writer.section_name_offset(Some(*name));
            writer.write_section_header(&SectionHeader {
                sh_name,
                sh_type: section.kind,
                sh_flags: section.flags,
                sh_addr: section.address,
                sh_offset: *offset,
                sh_size: section.size,
                sh_link: 0,
                sh_info: 0,
                sh_addralign: section.align,
                sh_entsize: 0,
            });
        }
        writer.write_symtab_section_header(self.locals);
        writer.write_strtab_section_header();
        writer.write_shstrtab_section_header();
        Ok(())
    }

    /// PT_LOAD by ascending address, PT_NOTE, PT_GNU_STACK.
    fn program_headers(&self, image: &Image, sections: &[Section]) -> Vec<ProgramHeader> {
        let offset = |wanted: &dyn Fn(&Section) -> bool| {
            sections.iter().zip(&self.sections).find(|(s, _)| wanted(s)).map_or(0, |(_, (_, _, offset))| *offset)
        };
        let header = |p_type, p_flags, p_offset, p_vaddr, p_filesz: usize, p_memsz, p_align| ProgramHeader {
            p_type,
            p_flags,
            p_offset,
            p_vaddr,
            p_paddr: p_vaddr,
            p_filesz: p_filesz as u64,
            p_memsz,
            p_align,
        };
        let load = |flags, start: u64, bytes: &[u8], size: u64| {
            let at = offset(&|s| s.flags.0 & elf::SHF_ALLOC.0 != 0 && s.address == start);
            (size > 0).then(|| header(elf::PT_LOAD, flags, at, start, bytes.len(), size, PAGE))
        };
        let segment = |flags, s: &Segment| load(flags, u64::from(s.start), &s.bytes, u64::from(s.size));
        let mut headers: Vec<_> = [
            segment(elf::PF_R, &image.rodata),
            segment(elf::PF_R | elf::PF_W, &image.data),
            load(elf::PF_R | elf::PF_X, TEXT_VADDR, &image.text, image.text.len() as u64),
        ]
        .into_iter()
        .flatten()
        .collect();
        headers.sort_by_key(|h| h.p_vaddr);
        let note = sections.iter().find(|s| s.kind == elf::SHT_NOTE).map_or(0, |s| s.bytes.len());
        headers.push(header(elf::PT_NOTE, elf::PF_R, offset(&|s| s.kind == elf::SHT_NOTE), 0, note, 0, 4));
        headers.push(header(elf::PT_GNU_STACK, elf::PF_R | elf::PF_W, 0, 0, 0, 0, 16));
        headers
    }

    fn symbol(&self, symbol: &ImageSymbol, st_name: u32, sections: &[Section]) -> Sym {
        let st_value = if symbol.function { TEXT_VADDR.wrapping_add(symbol.value) } else { symbol.value };
        // The end of a section belongs to it too, but the section that starts there comes first.
        let holds = |s: &Section, end: u64| {
            s.flags.0 & elf::SHF_ALLOC.0 != 0 && (s.address..s.address + s.size + end).contains(&st_value)
        };
        let home = [0, 1].into_iter().find_map(|end| sections.iter().position(|s| holds(s, end)));
        let bind = if symbol.global { elf::STB_GLOBAL } else { elf::STB_LOCAL };
        let kind = if symbol.function { elf::STT_FUNC } else { elf::STT_OBJECT };
        Sym {
            section: home.map(|i| self.sections[i].1.0),
            st_name,
            st_info: elf::SymbolInfo::new(bind, kind),
            st_other: elf::SymbolOther(0),
            st_shndx: elf::SHN_ABS,
            st_value,
            st_size: symbol.size,
        }
    }
}
