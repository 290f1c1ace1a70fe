//! The ELF container (gABI; psABI for the machine): program headers and the note, nothing else.

use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::{PAGE, note};

macro_rules! format_errors {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// Why a file is no image container.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum FormatError {
            $($(#[$doc])* $name,)*
        }

        impl core::fmt::Display for FormatError {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(FormatError::$name => $text,)* })
            }
        }
    };
}

format_errors! {
    /// Class, byte order, type or machine.
    Header, "not a little-endian x86-64 ET_DYN file";
    /// Program headers of another size, too many of them, or outside the file.
    ProgramHeaders, "program headers have a wrong size, are too many or lie outside the file";
    /// No executable segment, or more than one.
    TextCount, "there is not exactly one executable segment";
    /// Not R+X, not at the text address, empty, larger than its bytes, or outside the file.
    Text, "the executable segment is not R+X at the text address with all its bytes in the file";
    /// Unreadable, unaligned, larger than its memory, outside window or file.
    Segment, "a data segment is unreadable, unaligned, larger than its memory, or outside the window or file";
    /// Data segments overlap or are not in ascending order.
    SegmentOrder, "data segments overlap or are not in ascending order";
    /// A data segment does not lie in a region of its kind.
    SegmentPlace, "a data segment does not lie in a region of its kind";
    /// No image note, or one that leaves its segment.
    NoNote, "there is no image note";
}

/// Most program headers; an image has a handful, and each note segment among them is searched.
const SEGMENT_LIMIT: u16 = 64;
/// Bytes of a program header in ELF64.
const PROGRAM_HEADER: usize = 56;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// Bytes that go to a window range; zeros follow up to `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The data segments in the file's order.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    file: &'a [u8],
    headers: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        loop {
            let (header, rest) = self.headers.split_first_chunk::<PROGRAM_HEADER>()?;
            self.headers = rest;
            let header = ProgramHeader::parse(header)?;
            if header.kind == PT_LOAD && header.flags & PF_X == 0 {
                return data_segment(self.file, &header).ok();
            }
        }
    }
}

/// The parts of an image file.
pub(crate) struct Parts<'a> {
    pub text: &'a [u8],
    pub note: &'a [u8],
    pub segments: Segments<'a>,
}

struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl ProgramHeader {
    fn parse(bytes: &[u8; PROGRAM_HEADER]) -> Option<ProgramHeader> {
        Some(ProgramHeader {
            kind: word(bytes, 0)?,
            flags: word(bytes, 4)?,
            offset: long(bytes, 8)?,
            address: long(bytes, 16)?,
            file_size: long(bytes, 32)?,
            memory_size: long(bytes, 40)?,
        })
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

/// `bytes[offset..offset + len]`.
fn extent(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    let to = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(from..to)
}

/// Splits `file`; its segments are well formed, ascending and disjoint.
pub(crate) fn split(file: &[u8]) -> Result<Parts<'_>, FormatError> {
    let headers = program_headers(file)?;
    let (mut text, mut note, mut past) = (None, None, 0);
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        let header = header.first_chunk().and_then(ProgramHeader::parse).ok_or(FormatError::ProgramHeaders)?;
        match header.kind {
            PT_LOAD if header.flags & PF_X != 0 => {
                let previous = text.replace(text_segment(file, &header)?);
                if previous.is_some() {
                    return Err(FormatError::TextCount);
                }
            }
            PT_LOAD => {
                let segment = data_segment(file, &header)?;
                if segment.size > 0 {
                    if segment.start < past {
                        return Err(FormatError::SegmentOrder);
                    }
                    past = segment.start.saturating_add(segment.size);
                }
            }
            PT_NOTE if note.is_none() => note = find_note(file, &header)?,
            _ => {}
        }
    }
    let segments = Segments { file, headers };
    Ok(Parts { text: text.ok_or(FormatError::TextCount)?, note: note.ok_or(FormatError::NoNote)?, segments })
}

/// The bytes of all program headers.
fn program_headers(file: &[u8]) -> Result<&[u8], FormatError> {
    let machine = (half(file, 16), half(file, 18)) == (Some(ET_DYN), Some(EM_X86_64));
    // Class 64, least significant byte first, version 1.
    if !file.starts_with(b"\x7fELF\x02\x01\x01") || !machine {
        return Err(FormatError::Header);
    }
    let broken = FormatError::ProgramHeaders;
    let (offset, size, count) = (long(file, 32), half(file, 54), half(file, 56));
    let (Some(offset), Some(size), Some(count)) = (offset, size, count) else { return Err(broken) };
    if usize::from(size) != PROGRAM_HEADER || count > SEGMENT_LIMIT {
        return Err(broken);
    }
    extent(file, offset, u64::from(count).saturating_mul(u64::from(size))).ok_or(broken)
}

fn text_segment<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<&'a [u8], FormatError> {
    let exact = header.flags & (PF_R | PF_W | PF_X) == PF_R | PF_X && header.address == TEXT_VADDR;
    let whole = header.file_size == header.memory_size && header.file_size > 0;
    let bytes = extent(file, header.offset, header.file_size);
    bytes.filter(|_| exact && whole).ok_or(FormatError::Text)
}

fn data_segment<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<Segment<'a>, FormatError> {
    let place = u32::try_from(header.address).ok().zip(u32::try_from(header.memory_size).ok());
    let place = place.filter(|(start, size)| start.checked_add(*size).is_some() && start.is_multiple_of(PAGE));
    let good = header.flags & PF_R != 0 && header.file_size <= header.memory_size;
    let bytes = extent(file, header.offset, header.file_size).filter(|_| good);
    let ((start, size), bytes) = place.zip(bytes).ok_or(FormatError::Segment)?;
    Ok(Segment { start, size, bytes, writable: header.flags & PF_W != 0 })
}

/// The descriptor of the image note in a note segment (gABI "Note Section": three words, name, descriptor, each padded to 4 bytes).
fn find_note<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<Option<&'a [u8]>, FormatError> {
    let mut rest = extent(file, header.offset, header.file_size).ok_or(FormatError::NoNote)?;
    while rest.len() >= 12 {
        let (name, descriptor, kind, next) = first_note(rest).ok_or(FormatError::NoNote)?;
        if kind == note::TYPE && name.strip_suffix(b"\0") == Some(note::NAME.as_bytes()) {
            return Ok(Some(descriptor));
        }
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(None)
}

/// Name, descriptor and type of the note at the start of `bytes`, and where the next one begins.
fn first_note(bytes: &[u8]) -> Option<(&[u8], &[u8], u32, usize)> {
    let (name_len, len, kind) = (word(bytes, 0)?, word(bytes, 4)?, word(bytes, 8)?);
    let (name_len, len) = (usize::try_from(name_len).ok()?, usize::try_from(len).ok()?);
    let rest = bytes.get(12..)?;
    let name = rest.get(..name_len)?;
    let descriptor = rest.get(name_len.checked_next_multiple_of(4)?..)?.get(..len)?;
    let next = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?.checked_add(len.checked_next_multiple_of(4)?)?;
    Some((name, descriptor, kind, next))
}
