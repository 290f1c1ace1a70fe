//! The image note: an ELF note named `Cordon`, type 1, whose descriptor is little-endian 32-bit words.
//!
//! | word | meaning |
//! | --- | --- |
//! | 0 | magic `CRD1` |
//! | 1 | format version, 2 |
//! | 2 | flags: bit 0 = kernel host, 1 = match, 2 = metered, 3 = only stores protected |
//! | 3, 4 | feature set that the image claims to need, low and high half (informational) |
//! | 5..=11 | K, S, T, T end, main-table bits, greatest depth, LIMIT constant |
//! | 12..=19 | counts: regions, slots, sub-tables, sub-table slots, entries, imports, string bytes, forget records |
//! | then | regions (3 words each), slots (1), sub-tables (7), sub-table slots (1), entry text offsets (1), entry names (1: string offset), imports (2: slot number, name), forget records (2: text offset, mask of registers kept) and the NUL-terminated strings, padded to a word |

use crate::layout::{Forget, Layout, Region, Slot, SubTable, Words};
use crate::policy::{Features, Host, Mode, Policy, Protect};
use crate::validate::LayoutError;

/// First word of the descriptor.
pub const MAGIC: u32 = u32::from_le_bytes(*b"CRD1");
/// Format version that this crate reads and writes.
pub const VERSION: u32 = 2;
/// Flag: the image is for a kernel host.
pub const FLAG_KERNEL: u32 = 1;
/// Flag: every access is checked ([`Mode::matched`]).
pub const FLAG_MATCH: u32 = 2;
/// Flag: instructions are paid for ([`Mode::metered`]).
pub const FLAG_METERED: u32 = 4;
/// Flag: plain loads are left alone ([`Protect::Stores`]).
pub const FLAG_STORES: u32 = 8;
/// ELF note name (without its NUL).
pub const NAME: &str = "Cordon";
/// ELF note type.
pub const TYPE: u32 = 1;
/// Name of the entry that runs `.init_array`, if the image has one.
pub const INIT_ENTRY: &str = "cordon.init";

const FLAGS: u32 = FLAG_KERNEL | FLAG_MATCH | FLAG_METERED | FLAG_STORES;
const HEADER_WORDS: usize = 20;

/// The mode that a note's flags claim.
#[must_use]
pub const fn mode_of(flags: u32) -> Mode {
    Mode {
        matched: flags & FLAG_MATCH != 0,
        metered: flags & FLAG_METERED != 0,
        protect: if flags & FLAG_STORES != 0 { Protect::Stores } else { Protect::All },
    }
}

/// Why a note could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteError {
    /// Shorter than its header or its arrays.
    Truncated,
    /// Wrong magic word.
    Magic,
    /// A version or flag this crate does not know.
    Version,
    /// A name that lies outside the strings, is not terminated, or is not UTF-8.
    Name,
}

/// A note split into its parts; nothing of it is validated but its extents.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// Flag bits of word 2.
    pub flags: u32,
    /// Claimed feature bits.
    pub features: u64,
    /// Layout, still to be validated.
    pub layout: Layout<'a>,
    entry_names: Words<'a>,
    imports: Words<'a>,
    strings: &'a [u8],
}

impl<'a> Note<'a> {
    /// Splits a note descriptor.
    ///
    /// # Errors
    /// [`NoteError`] if the words do not have the stated form; names are checked when asked for.
    pub fn parse(descriptor: &'a [u8]) -> Result<Note<'a>, NoteError> {
        let all = Words::new(descriptor);
        let head = |i| all.get(i).ok_or(NoteError::Truncated);
        if head(0)? != MAGIC {
            return Err(NoteError::Magic);
        }
        if head(1)? != VERSION || head(2)? & !FLAGS != 0 {
            return Err(NoteError::Version);
        }
        let mut at = HEADER_WORDS;
        let mut take = |count: u32, each: usize| {
            let count = usize::try_from(count).ok().and_then(|c| c.checked_mul(each)).ok_or(NoteError::Truncated)?;
            let part = all.slice(at, count).ok_or(NoteError::Truncated)?;
            at = at.checked_add(count).ok_or(NoteError::Truncated)?;
            Ok(part)
        };
        let regions = take(head(12)?, Region::WORDS)?;
        let slots = take(head(13)?, 1)?;
        let sub_tables = take(head(14)?, SubTable::WORDS)?;
        let sub_slots = take(head(15)?, 1)?;
        let entries = take(head(16)?, 1)?;
        let entry_names = take(head(16)?, 1)?;
        let imports = take(head(17)?, 2)?;
        let forgets = take(head(19)?, Forget::WORDS)?;
        let from = at.checked_mul(4).ok_or(NoteError::Truncated)?;
        let length = usize::try_from(head(18)?).map_err(|_| NoteError::Truncated)?;
        let to = from.checked_add(length).ok_or(NoteError::Truncated)?;
        let strings = descriptor.get(from..to).ok_or(NoteError::Truncated)?;
        let flags = head(2)?;
        Ok(Note {
            flags,
            features: u64::from(head(3)?) | u64::from(head(4)?) << 32,
            layout: Layout {
                stack_shift: head(5)?,
                stack_low: head(6)?,
                table: head(7)?.cast_signed(),
                table_end: head(8)?.cast_signed(),
                main_bits: head(9)?,
                max_depth: head(10)?,
                limit: head(11)?,
                imports: head(17)?,
                slots,
                sub_tables,
                sub_slots,
                entries,
                regions,
                mode: mode_of(flags),
                forgets,
            },
            entry_names,
            imports,
            strings,
        })
    }

    /// Proves that the note narrows the host's terms: made for this kind of host, no extension beyond the policy's, each import in the
    /// slot it names, a valid [`Layout`], and well-formed names that share no bytes (so that all names together are no longer than the note).
    ///
    /// # Errors
    /// The first [`LayoutError`] found.
    pub fn validate(&self, policy: &Policy) -> Result<(), LayoutError> {
        if (self.flags & FLAG_KERNEL != 0) != (policy.host == Host::Kernel) {
            return Err(LayoutError::Host);
        }
        if !policy.features.contains(Features(self.features)) {
            return Err(LayoutError::Features);
        }
        self.layout.validate(policy)?;
        for (import, pair) in (0..self.layout.imports).zip((0..self.imports.len()).step_by(2)) {
            let slot = self.imports.get(pair).and_then(|slot| usize::try_from(slot).ok());
            let word = slot.and_then(|slot| self.layout.slots.get(slot));
            if word.map(Slot::from_word) != Some(Slot::Import(import)) {
                return Err(LayoutError::ImportSlot);
            }
        }
        self.validate_names()
    }

    /// Names of entries, then of imports: each begins behind the one before it, so reading them all is linear in the note.
    fn validate_names(&self) -> Result<(), LayoutError> {
        let of_imports = (0..self.imports.len()).skip(1).step_by(2).filter_map(|at| self.imports.get(at));
        let mut past = 0_usize;
        for offset in self.entry_names.iter().chain(of_imports) {
            let from = usize::try_from(offset).map_err(|_| LayoutError::Names)?;
            if from < past {
                return Err(LayoutError::Names);
            }
            let name = self.string(offset).map_err(|_| LayoutError::Names)?;
            past = from.saturating_add(name.len()).saturating_add(1);
        }
        Ok(())
    }

    /// Name of entry `index` (same order as [`Layout::entries`]).
    ///
    /// # Errors
    /// [`NoteError::Name`] if there is no such well-formed name.
    pub fn entry_name(&self, index: usize) -> Result<&'a str, NoteError> {
        self.string(self.entry_names.get(index).ok_or(NoteError::Name)?)
    }

    /// Slot number and name of import `index`.
    ///
    /// # Errors
    /// [`NoteError::Name`] if there is no such import or its name is not well formed.
    pub fn import(&self, index: usize) -> Result<(u32, &'a str), NoteError> {
        let at = index.checked_mul(2).ok_or(NoteError::Name)?;
        let slot = self.imports.get(at).ok_or(NoteError::Name)?;
        let name = self.imports.get(at.saturating_add(1)).ok_or(NoteError::Name)?;
        Ok((slot, self.string(name)?))
    }

    fn string(&self, offset: u32) -> Result<&'a str, NoteError> {
        let from = usize::try_from(offset).map_err(|_| NoteError::Name)?;
        let rest = self.strings.get(from..).ok_or(NoteError::Name)?;
        let end = rest.iter().position(|&b| b == 0).ok_or(NoteError::Name)?;
        core::str::from_utf8(rest.get(..end).ok_or(NoteError::Name)?).map_err(|_| NoteError::Name)
    }
}

#[cfg(any(test, feature = "writer"))]
pub use writer::NoteSpec;

#[cfg(any(test, feature = "writer"))]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    reason = "for the rewriter and tests; not part of the checker"
)]
mod writer {
    use super::{FLAG_KERNEL, FLAG_MATCH, FLAG_METERED, FLAG_STORES, MAGIC, VERSION};
    use crate::layout::{Forget, Region, Slot, SubTable};
    use crate::policy::{Mode, Protect};
    use alloc::string::String;
    use alloc::vec::Vec;

    /// Everything that goes into a note; what the rewriter fills in and tests build layouts from.
    #[derive(Clone, Debug, Default)]
    pub struct NoteSpec {
        /// For a kernel host.
        pub kernel: bool,
        pub features: u64,
        pub stack_shift: u32,
        pub stack_low: u32,
        pub table: i32,
        pub table_end: i32,
        pub main_bits: u32,
        pub max_depth: u32,
        pub limit: u32,
        pub regions: Vec<Region>,
        pub slots: Vec<Slot>,
        /// Sub-tables with their slots; `first` and `count` are filled in when written.
        pub sub_tables: Vec<(SubTable, Vec<Slot>)>,
        /// Text offset and name.
        pub entries: Vec<(u32, String)>,
        /// Slot number and name.
        pub imports: Vec<(u32, String)>,
        /// What the text proves beyond the sandbox.
        pub mode: Mode,
        /// In ascending order of their offsets.
        pub forgets: Vec<Forget>,
    }

    impl NoteSpec {
        fn flags(&self) -> u32 {
            let flag = |set: bool, bit: u32| if set { bit } else { 0 };
            flag(self.kernel, FLAG_KERNEL)
                | flag(self.mode.matched, FLAG_MATCH)
                | flag(self.mode.metered, FLAG_METERED)
                | flag(self.mode.protect == Protect::Stores, FLAG_STORES)
        }

        /// The descriptor bytes. Counts beyond 2^32 cannot occur in an image that fits its window.
        ///
        /// # Panics
        /// If a count does not fit 32 bits.
        #[must_use]
        pub fn to_bytes(&self) -> Vec<u8> {
            let count = |n: usize| u32::try_from(n).expect("count fits the note");
            let mut strings: Vec<u8> = Vec::new();
            let mut name = |text: &str| {
                let at = count(strings.len());
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                at
            };
            let entry_names: Vec<u32> = self.entries.iter().map(|(_, n)| name(n)).collect();
            let import_names: Vec<u32> = self.imports.iter().map(|(_, n)| name(n)).collect();
            let sub_slots: usize = self.sub_tables.iter().map(|(_, s)| s.len()).sum();
            let mut words: Vec<u32> = Vec::new();
            words.extend([MAGIC, VERSION, self.flags()]);
            words.extend([self.features as u32, (self.features >> 32) as u32, self.stack_shift, self.stack_low]);
            words.extend([
                self.table.cast_unsigned(),
                self.table_end.cast_unsigned(),
                self.main_bits,
                self.max_depth,
                self.limit,
            ]);
            words.extend([self.regions.len(), self.slots.len(), self.sub_tables.len(), sub_slots].map(count));
            words.extend([self.entries.len(), self.imports.len(), strings.len(), self.forgets.len()].map(count));
            words.extend(self.regions.iter().flat_map(|r| [r.start, r.end, r.kind as u32]));
            words.extend(self.slots.iter().map(|s| s.to_word()));
            let mut first = 0;
            for (table, slots) in &self.sub_tables {
                words.extend([table.base.cast_unsigned(), table.bits, table.depth, table.set as u32, (table.set >> 32) as u32]);
                words.extend([first, count(slots.len())]);
                first += count(slots.len());
            }
            words.extend(self.sub_tables.iter().flat_map(|(_, slots)| slots.iter().map(|s| s.to_word())));
            words.extend(self.entries.iter().map(|(offset, _)| offset));
            words.extend(entry_names);
            words.extend(self.imports.iter().zip(import_names).flat_map(|((slot, _), name)| [*slot, name]));
            words.extend(self.forgets.iter().flat_map(|f| [f.offset, f.keep.into()]));
            let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.extend_from_slice(&strings);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        }
    }
}
