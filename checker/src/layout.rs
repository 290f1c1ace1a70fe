//! The window layout that an image declares (DESIGN §2, §5, §9), as a view over the image note's words.
//!
//! Everything here is untrusted until [`Layout::validate`] accepted it.

use crate::policy::Mode;

/// First byte after the null zone.
pub const NULL_ZONE_END: u32 = 0x1_0000;
/// Default end of handler memory (exclusive): 2 GiB, so that 32-bit sign extension never matters.
pub const MEMORY_END: u32 = 0x8000_0000;
/// Greatest depth that the checker's state word can hold, in bytes.
pub const DEPTH_LIMIT: u32 = 1 << 20;
/// Number of pushed slots that the state word tracks; slots beyond count as unwritten.
pub const SET_SLOTS: u32 = 16;
/// Pushed slots that an inline hint can name.
pub const HINT_SLOTS: u32 = 12;
/// User mode: low 32 bits of rsp at function entry, where the return address lies (DESIGN §4 S). 8 modulo 16, as the psABI wants.
pub const USER_STACK_LOW: u32 = 0x7000_0000 - 8;
/// User mode: displacement from native to data stack (DESIGN §4 K) of images for the window at base 0; others have 0, and a base with this
/// bit set.
pub const USER_STACK_SHIFT: u32 = 0x10_0000;
/// Bytes of data stack mapped above the entry's return-address hole (stack arguments of an entry).
pub const STACK_HEADROOM: u32 = 0x1000;
/// User mode: window offset of the main table (DESIGN §2 T).
pub const USER_TABLE: i32 = 0x1_0000;
/// Virtual address of the text segment in the image file. Text runs elsewhere; a text offset is an address minus this.
pub const TEXT_VADDR: u64 = 0x2_0000_0000;

/// Little-endian 32-bit words over bytes of the image note.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// A view of `bytes`; a trailing partial word is not visible.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Words(bytes)
    }

    /// Number of whole words.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is no whole word.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Word `index`, or `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u32> {
        let bytes = self.0.get(index.checked_mul(4)?..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Words `start..start + count`, or `None` if they are not all there.
    #[must_use]
    pub fn slice(&self, start: usize, count: usize) -> Option<Words<'a>> {
        let from = start.checked_mul(4)?;
        let to = from.checked_add(count.checked_mul(4)?)?;
        self.0.get(from..to).map(Words)
    }

    /// The words in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let words = *self;
        (0..words.len()).filter_map(move |i| words.get(i))
    }
}

/// What a table slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The trap stub.
    Trap,
    /// An import, by index into the image's imports.
    Import(u32),
    /// A text offset.
    Text(u32),
}

impl Slot {
    /// Note word of the trap stub.
    pub const TRAP_WORD: u32 = u32::MAX;

    /// Decodes a note word: `u32::MAX` = trap, bit 31 = import index, else a text offset.
    #[must_use]
    pub const fn from_word(word: u32) -> Slot {
        match word {
            Slot::TRAP_WORD => Slot::Trap,
            w if w >> 31 == 1 => Slot::Import(w & 0x7fff_ffff),
            w => Slot::Text(w),
        }
    }

    /// The note word of this slot.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        match self {
            Slot::Trap => Slot::TRAP_WORD,
            Slot::Import(i) => i | 0x8000_0000,
            Slot::Text(o) => o,
        }
    }
}

/// A jump table's slots (switch, computed goto): reached by a masked table jump at one state only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubTable {
    /// Displacement of slot 0 from the window base.
    pub base: i32,
    /// The table has `1 << bits` slots.
    pub bits: u32,
    /// Depth in bytes at every target.
    pub depth: u32,
    /// Slots pushed at every target: bit i = the i-th 8-byte slot below the return address.
    pub set: u64,
    /// Index of its first word in [`Layout::sub_slots`].
    pub first: u32,
    /// Number of its words there; the remaining slots of the table are the trap stub.
    pub count: u32,
}

impl SubTable {
    /// Note words per sub-table: base, bits, depth, set low, set high, first, count.
    pub const WORDS: usize = 7;
}

/// What a range of window memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Image constants, read-only.
    Rodata = 0,
    /// Image data and bss, read-write.
    Data = 1,
    /// Where the host places arguments, read-write.
    Argument = 2,
    /// Handler heap, read-write.
    Heap = 3,
    /// Data stack, read-write.
    Stack = 4,
}

/// A range of window memory; all regions of a layout are ordered, disjoint and page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First window offset.
    pub start: u32,
    /// First window offset past it.
    pub end: u32,
    pub kind: RegionKind,
}

impl Region {
    /// Note words per region: start, end, kind.
    pub const WORDS: usize = 3;
}

/// A place where the checker is told to forget what it knows of registers (match mode): the head of a loop that changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    /// Text offset of an instruction.
    pub offset: u32,
    /// General registers that stay known, one bit each.
    pub keep: u16,
}

impl Forget {
    /// Note words per record: offset, mask.
    pub const WORDS: usize = 2;
}

/// The layout of an image's window, tables and entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// Displacement K from native to data stack, bytes.
    pub stack_shift: u32,
    /// Low 32 bits S of rsp at entry.
    pub stack_low: u32,
    /// Displacement T of the main table from the window base: positive (user) or negative (kernel).
    pub table: i32,
    /// End of the table pages (exclusive), same reference as `table`.
    pub table_end: i32,
    /// The main table has `1 << main_bits` slots; MASK = 8·(2^k − 1).
    pub main_bits: u32,
    /// Greatest depth D in bytes that the image claims to need.
    pub max_depth: u32,
    /// Kernel: the constant of LIMIT (`cmp $limit,%esp`).
    pub limit: u32,
    /// Number of imports.
    pub imports: u32,
    /// Main-table slots, one word each ([`Slot::from_word`]); missing ones are the trap stub.
    pub slots: Words<'a>,
    /// Sub-tables, [`SubTable::WORDS`] words each.
    pub sub_tables: Words<'a>,
    /// Words of all sub-tables: a text offset or [`Slot::TRAP_WORD`].
    pub sub_slots: Words<'a>,
    /// Text offsets of the entries.
    pub entries: Words<'a>,
    /// Regions, [`Region::WORDS`] words each.
    pub regions: Words<'a>,
    /// What the text claims to prove beyond the sandbox.
    pub mode: Mode,
    /// Match mode: [`Forget`] records in ascending order, [`Forget::WORDS`] words each.
    pub forgets: Words<'a>,
}

impl<'a> Layout<'a> {
    /// Number of sub-tables.
    #[must_use]
    pub const fn sub_table_count(&self) -> usize {
        self.sub_tables.len() / SubTable::WORDS
    }

    /// Sub-table `index`.
    #[must_use]
    pub fn sub_table(&self, index: usize) -> Option<SubTable> {
        let w = self.sub_tables.slice(index.checked_mul(SubTable::WORDS)?, SubTable::WORDS)?;
        Some(SubTable {
            base: w.get(0)?.cast_signed(),
            bits: w.get(1)?,
            depth: w.get(2)?,
            set: u64::from(w.get(3)?) | u64::from(w.get(4)?) << 32,
            first: w.get(5)?,
            count: w.get(6)?,
        })
    }

    /// Number of [`Forget`] records.
    #[must_use]
    pub const fn forget_count(&self) -> usize {
        self.forgets.len() / Forget::WORDS
    }

    /// Record `index`; `None` past the end or if its mask names more than 16 registers.
    #[must_use]
    pub fn forget(&self, index: usize) -> Option<Forget> {
        let w = self.forgets.slice(index.checked_mul(Forget::WORDS)?, Forget::WORDS)?;
        Some(Forget { offset: w.get(0)?, keep: u16::try_from(w.get(1)?).ok()? })
    }

    /// Number of regions.
    #[must_use]
    pub const fn region_count(&self) -> usize {
        self.regions.len() / Region::WORDS
    }

    /// Region `index`; `None` past the end or for an unknown kind.
    #[must_use]
    pub fn region(&self, index: usize) -> Option<Region> {
        let w = self.regions.slice(index.checked_mul(Region::WORDS)?, Region::WORDS)?;
        let kind = match w.get(2)? {
            0 => RegionKind::Rodata,
            1 => RegionKind::Data,
            2 => RegionKind::Argument,
            3 => RegionKind::Heap,
            4 => RegionKind::Stack,
            _ => return None,
        };
        Some(Region { start: w.get(0)?, end: w.get(1)?, kind })
    }
}
