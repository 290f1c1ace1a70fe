//! Takes an image file apart: segments, note, symbols, old→new map. Everything is untrusted.

use crate::error::Error;
use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::{PAGE, note};
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE, ProgramHeader};
use goblin::elf::section_header::{SHN_UNDEF, SHT_NOBITS, SHT_SYMTAB, SectionHeader};
use goblin::elf::{Header, Symtab, header, sym};

const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };
/// Size of a section header in ELF64.
const SECTION_HEADER: usize = 64;
/// Size of a symbol in ELF64.
const SYMBOL: usize = 24;
/// Most program headers; an image has a handful, and each note segment among them is searched.
const SEGMENT_LIMIT: u16 = 64;
/// Most bytes of a section's or symbol's name; longer ones are left out. Names may share their bytes, so this bounds the search for the NUL.
const STRING_LIMIT: usize = 4096;

/// Bytes that go to a window range; zeros follow up to `size`.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Window offset, page-aligned.
    pub start: u32,
    /// Size in memory, bytes; `start + size` does not overflow.
    pub size: u32,
    /// At most `size` bytes of the file.
    pub bytes: &'a [u8],
    /// Whether handlers may write there.
    pub writable: bool,
}

/// The parts of an image file.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Unchecked text.
    pub text: &'a [u8],
    /// In the file's order, with unchecked places.
    pub segments: Vec<Segment<'a>>,
    /// Descriptor of the image note.
    pub note: &'a [u8],
    /// Text symbols: offset, size, name.
    pub symbols: Vec<(u32, u32, &'a str)>,
    /// `.cordon.map`, empty if the image has none.
    pub map: &'a [u8],
    /// `.cordon.objects`.
    pub objects: &'a [u8],
    /// `.cordon.orig`: the original instructions of `map`'s records.
    pub originals: &'a [u8],
    /// `.cordon.stubs`: what each `ud2` of a check or meter is about.
    pub stubs: &'a [u8],
    /// Line tables.
    pub debug: DebugSections<'a>,
}

/// The DWARF sections that lead to source lines; each one empty if the image has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugSections<'a> {
    /// `.debug_abbrev`.
    pub abbrev: &'a [u8],
    /// `.debug_info`.
    pub info: &'a [u8],
    /// `.debug_line`.
    pub line: &'a [u8],
    /// `.debug_str`.
    pub strings: &'a [u8],
    /// `.debug_line_str`.
    pub line_strings: &'a [u8],
}

fn format(what: &'static str, offset: u64) -> Error {
    Error::Format { what, offset }
}

/// `bytes[offset..offset + len]` of the file.
fn extent<'a>(file: &'a [u8], offset: u64, len: u64, what: &'static str) -> Result<&'a [u8], Error> {
    let range = usize::try_from(offset).ok().zip(offset.checked_add(len).and_then(|end| usize::try_from(end).ok()));
    range.and_then(|(from, to)| file.get(from..to)).ok_or(format(what, offset))
}

/// Splits `file`.
///
/// # Errors
/// [`Error::Format`] for the first rule of the container that it breaks. Symbols and map are for reports only: bad ones are left out.
pub fn split(file: &[u8]) -> Result<Parts<'_>, Error> {
    let header = parse_header(file)?;
    let mut text = None;
    let mut segments = Vec::new();
    let mut descriptor = None;
    let table = usize::try_from(header.e_phoff).map_err(|_| format("program headers lie outside the file", header.e_phoff))?;
    if usize::from(header.e_phentsize) != ProgramHeader::size(CTX) {
        return Err(format("program headers have a wrong size", header.e_phoff));
    }
    if header.e_phnum > SEGMENT_LIMIT {
        return Err(format("too many program headers", header.e_phoff));
    }
    let headers = ProgramHeader::parse(file, table, usize::from(header.e_phnum), CTX)
        .map_err(|_| format("program headers lie outside the file", header.e_phoff))?;
    for segment in &headers {
        match segment.p_type {
            PT_LOAD if segment.p_flags & PF_X != 0 => {
                let previous = text.replace(text_segment(file, segment)?);
                if previous.is_some() {
                    return Err(format("more than one executable segment", segment.p_offset));
                }
            }
            PT_LOAD => segments.push(data_segment(file, segment)?),
            PT_NOTE if descriptor.is_none() => descriptor = find_note(file, segment)?,
            _ => {}
        }
    }
    let sections = Sections::parse(file, &header).unwrap_or_default();
    Ok(Parts {
        text: text.ok_or(format("no executable segment", 0))?,
        segments,
        note: descriptor.ok_or(format("no image note", 0))?,
        symbols: sections.symbols(file),
        map: sections.bytes(file, ".cordon.map"),
        objects: sections.bytes(file, ".cordon.objects"),
        originals: sections.bytes(file, ".cordon.orig"),
        stubs: sections.bytes(file, ".cordon.stubs"),
        debug: DebugSections {
            abbrev: sections.bytes(file, ".debug_abbrev"),
            info: sections.bytes(file, ".debug_info"),
            line: sections.bytes(file, ".debug_line"),
            strings: sections.bytes(file, ".debug_str"),
            line_strings: sections.bytes(file, ".debug_line_str"),
        },
    })
}

fn parse_header(file: &[u8]) -> Result<Header, Error> {
    // goblin picks the class and byte order from the identification, so that is judged first.
    let ident = file.get(..header::SIZEOF_IDENT).ok_or(format("no ELF header", 0))?;
    let wanted = [0x7f, b'E', b'L', b'F', header::ELFCLASS64, header::ELFDATA2LSB, header::EV_CURRENT];
    if !ident.starts_with(&wanted) {
        return Err(format("not a little-endian ELF64 file", 0));
    }
    let parsed = goblin::elf::Elf::parse_header(file).map_err(|_| format("no ELF header", 0))?;
    if parsed.e_type != header::ET_DYN || parsed.e_machine != header::EM_X86_64 {
        return Err(format("not an x86-64 ET_DYN file", 0));
    }
    Ok(parsed)
}

fn text_segment<'a>(file: &'a [u8], segment: &ProgramHeader) -> Result<&'a [u8], Error> {
    let at = segment.p_offset;
    if segment.p_flags & (PF_R | PF_W | PF_X) != PF_R | PF_X {
        return Err(format("the executable segment is not exactly readable and executable", at));
    }
    if segment.p_vaddr != TEXT_VADDR {
        return Err(format("the executable segment is not at the text address", at));
    }
    if segment.p_filesz != segment.p_memsz || segment.p_filesz == 0 {
        return Err(format("the executable segment is empty or larger than its bytes", at));
    }
    extent(file, at, segment.p_filesz, "the executable segment lies outside the file")
}

fn data_segment<'a>(file: &'a [u8], segment: &ProgramHeader) -> Result<Segment<'a>, Error> {
    let at = segment.p_offset;
    let place = u32::try_from(segment.p_vaddr).ok().zip(u32::try_from(segment.p_memsz).ok());
    let Some((start, size)) = place.filter(|(start, size)| start.checked_add(*size).is_some()) else {
        return Err(format("a data segment lies outside the window", at));
    };
    if segment.p_flags & PF_R == 0 || !start.is_multiple_of(PAGE) || segment.p_filesz > segment.p_memsz {
        return Err(format("a data segment is unreadable, unaligned or larger than its memory", at));
    }
    let bytes = extent(file, at, segment.p_filesz, "a data segment lies outside the file")?;
    Ok(Segment { start, size, bytes, writable: segment.p_flags & PF_W != 0 })
}

/// The descriptor of the image note in a note segment (gABI "Note Section": three words, name, descriptor, each padded to 4 bytes).
fn find_note<'a>(file: &'a [u8], segment: &ProgramHeader) -> Result<Option<&'a [u8]>, Error> {
    let mut rest = extent(file, segment.p_offset, segment.p_filesz, "a note segment lies outside the file")?;
    let broken = || format("a note leaves its segment", segment.p_offset);
    while rest.len() >= 12 {
        let word = |i: usize| u32::from_le_bytes([rest[i], rest[i + 1], rest[i + 2], rest[i + 3]]) as usize;
        let (name_len, len, kind) = (word(0), word(4), word(8));
        let name = rest.get(12..12 + name_len).ok_or_else(broken)?;
        let from = 12 + name_len.next_multiple_of(4);
        let descriptor = rest.get(from..from + len).ok_or_else(broken)?;
        if kind == note::TYPE as usize && name.strip_suffix(b"\0") == Some(note::NAME.as_bytes()) {
            return Ok(Some(descriptor));
        }
        rest = rest.get(from + len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// Section headers with their names; only reports need them.
#[derive(Default)]
struct Sections {
    headers: Vec<SectionHeader>,
    names: Option<(u64, u64)>,
}

impl Sections {
    fn parse(file: &[u8], header: &Header) -> Option<Sections> {
        let table = usize::try_from(header.e_shoff).ok()?;
        let count = usize::from(header.e_shnum);
        let end = table.checked_add(count.checked_mul(SECTION_HEADER)?)?;
        if count == 0 || usize::from(header.e_shentsize) != SECTION_HEADER || end > file.len() {
            return None;
        }
        let headers = SectionHeader::parse(file, table, count, CTX).ok()?;
        let names = headers.get(usize::from(header.e_shstrndx)).map(|s| (s.sh_offset, s.sh_size));
        Some(Sections { headers, names })
    }

    fn content<'a>(file: &'a [u8], section: &SectionHeader) -> &'a [u8] {
        if section.sh_type == SHT_NOBITS {
            return &[];
        }
        extent(file, section.sh_offset, section.sh_size, "section").unwrap_or_default()
    }

    fn bytes<'a>(&self, file: &'a [u8], name: &str) -> &'a [u8] {
        let Some((offset, size)) = self.names else { return &[] };
        let names = extent(file, offset, size, "section names").unwrap_or_default();
        let named = |s: &&SectionHeader| string(names, s.sh_name) == Some(name);
        self.headers.iter().find(named).map(|s| Sections::content(file, s)).unwrap_or_default()
    }

    fn symbols<'a>(&self, file: &'a [u8]) -> Vec<(u32, u32, &'a str)> {
        let Some(table) = self.headers.iter().find(|s| s.sh_type == SHT_SYMTAB) else { return Vec::new() };
        let Some(names) = self.headers.get(table.sh_link as usize).map(|s| Sections::content(file, s)) else { return Vec::new() };
        let content = Sections::content(file, table);
        let Ok(symbols) = Symtab::parse(content, 0, content.len() / SYMBOL, CTX) else { return Vec::new() };
        let text = |s: sym::Sym| {
            let wanted = s.st_type() == sym::STT_FUNC && s.st_shndx != SHN_UNDEF as usize;
            let start = u32::try_from(s.st_value.checked_sub(TEXT_VADDR).filter(|_| wanted)?).ok()?;
            let name = string(names, s.st_name).filter(|n| !n.is_empty())?;
            Some((start, u32::try_from(s.st_size).unwrap_or(u32::MAX), name))
        };
        symbols.iter().filter_map(text).collect()
    }
}

/// The NUL-terminated UTF-8 string at `offset`, if it is shorter than [`STRING_LIMIT`].
fn string(strings: &[u8], offset: usize) -> Option<&str> {
    let rest = strings.get(offset..)?;
    let rest = &rest[..rest.len().min(STRING_LIMIT)];
    std::str::from_utf8(rest.get(..rest.iter().position(|&b| b == 0)?)?).ok()
}
