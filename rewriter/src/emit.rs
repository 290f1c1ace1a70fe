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
}
