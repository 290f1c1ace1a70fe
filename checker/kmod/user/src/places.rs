//! Names for text offsets, from the image file that was inserted. The module looks at none of it.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// Virtual address of the text segment in image files.
const TEXT: u64 = 0x2_0000_0000;

/// Functions and stubs of an image.
#[derive(Debug, Default)]
pub struct Places {
    /// Offset, size, name; ascending.
    functions: Vec<(u64, u64, String)>,
    /// `.cordon.stubs`: a `ud2`, what it is about, whether that is a meter.
    stubs: Vec<(u32, u32, bool)>,
}

impl Places {
    /// Reads what the image tells; nothing if it is broken.
    #[must_use]
    pub fn of(image: &[u8]) -> Places {
        let Ok(file) = object::File::parse(image) else { return Places::default() };
        let function = |s: object::Symbol<'_, '_>| {
            let offset = s.address().checked_sub(TEXT).filter(|_| s.kind() == object::SymbolKind::Text)?;
            Some((offset, s.size(), s.name().ok()?.to_owned()))
        };
        let mut functions: Vec<_> = file.symbols().filter_map(function).collect();
        functions.sort();
        let bytes = file.section_by_name(".cordon.stubs").and_then(|s| s.data().ok()).unwrap_or_default();
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let stubs = bytes.chunks_exact(8).map(|b| (word(b), word(&b[4..]) & 0x7fff_ffff, b[7] >> 7 == 1)).collect();
        Places { functions, stubs }
    }

    /// The function that covers a text offset.
    #[must_use]
    pub fn function(&self, offset: u32) -> Option<&str> {
        let after = self.functions.partition_point(|(start, ..)| *start <= offset.into());
        let (start, size, name) = self.functions.get(after.checked_sub(1)?)?;
        (u64::from(offset) - start < *size).then_some(name)
    }

    /// The access whose check ends in the `ud2` at `offset`: an access that went astray, as the text offset of the access itself.
    #[must_use]
    pub fn stray_access(&self, offset: u32) -> Option<u32> {
        self.stubs.iter().find(|(at, _, fuel)| *at == offset && !fuel).map(|(_, place, _)| *place)
    }
}
