//! Proves a layout: tables, regions, stacks and limits (SPEC "Layout", DESIGN §2, §4, §5, design-review A4, B13, G1).

use crate::layout::{
    DEPTH_LIMIT, Forget, Layout, MEMORY_END, NULL_ZONE_END, Region, RegionKind, SET_SLOTS, STACK_HEADROOM, Slot, SubTable, Words,
};
use crate::policy::{Host, Policy, Protect};

/// Page size that every region and table boundary is aligned to, bytes.
pub const PAGE: u32 = 4096;
/// Most main-table bits: a code pointer (8 × slot) stays inside the null zone.
pub const MAIN_BITS_LIMIT: u32 = 13;
/// Most regions: each becomes a mapping of the host, which has a limited number of them.
pub const REGION_LIMIT: usize = 64;
/// Most bytes of table pages (2 million slots): a host fills all of them for every window, and may never get them back (`mseal`).
pub const TABLE_LIMIT: i64 = 16 << 20;
/// Kernel: bytes below the window that hold the table.
pub const CONTROL: i64 = 128 << 10;

macro_rules! layout_errors {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// Why a layout was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum LayoutError {
            $($(#[$doc])* $name,)*
        }

        impl core::fmt::Display for LayoutError {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self { $(LayoutError::$name => $text,)* })
            }
        }

        impl core::error::Error for LayoutError {}
    };
}

layout_errors! {
    /// The policy's own depth is not a multiple of 8 or above [`DEPTH_LIMIT`].
    PolicyDepth, "the policy's stack depth is not a multiple of 8 or too great";
    /// The image's depth is not a multiple of 8 or above the policy's.
    Depth, "the image's stack depth is not a multiple of 8 or above the policy's";
    /// An array of the note has a partial record.
    Records, "an array of the layout is not a whole number of records";
    /// Table pages unaligned, empty, more than [`TABLE_LIMIT`], or outside the place that the host reserves for them.
    TablePages, "the table pages are unaligned, empty, too many or out of place";
    /// Main table too large or not inside the table pages.
    MainTable, "the main table is too large or leaves the table pages";
    /// A main slot is beyond the table, names no import, or slot 0 is not the trap.
    MainSlot, "a main-table slot is beyond the table, names no import, or slot 0 is not the trap";
    /// More imports than slots.
    Imports, "there are more imports than table slots";
    /// A sub-table overlaps another or the main table, is unordered, unaligned or leaves the table pages.
    SubTable, "a sub-table is unordered, unaligned, overlapping or outside the table pages";
    /// A sub-table's depth or set is impossible.
    SubState, "a sub-table's state is impossible";
    /// A sub-table's words are not exactly the next ones, or more than it has slots.
    SubWords, "a sub-table's words are not the next ones or too many";
    /// A sub-table slot that is neither a text offset nor the trap.
    SubSlot, "a sub-table slot is neither a text offset nor the trap";
    /// More than [`REGION_LIMIT`] regions.
    Regions, "there are too many regions";
    /// A region is empty, unaligned, unordered, of unknown kind, or outside handler memory.
    Region, "a region is empty, unaligned, out of order, of unknown kind or outside handler memory";
    /// There is not exactly one stack region, or it does not lie where S and K say.
    Stack, "the stack region is missing, doubled or not where S and K say";
    /// Another region or the table lies in the guard of D + 8 bytes below the data stack.
    Guard, "something lies in the guard below the data stack";
    /// S leaves no room for the native stack and its guard below it.
    StackLow, "the native stack and its guard do not fit below S";
    /// Kernel: LIMIT lets a function run off its native stack, or no function could start.
    Limit, "the stack limit lies outside the native stack";
    /// The image does not prove what the policy demands (match, metering, protection of loads), or a kernel image leaves loads alone.
    Mode, "the image does not prove what the policy demands";
    /// Forget records that are not in ascending order, name more than 16 registers, or belong to text that is not in match mode.
    Forgets, "the forget records are malformed, out of order or without match mode";
    /// The note is for another kind of host.
    Host, "the image is for another kind of host";
    /// The note claims extensions that the policy does not allow.
    Features, "the image claims extensions that the policy does not allow";
    /// An import's slot in the note does not hold that import.
    ImportSlot, "an import's slot does not hold that import";
    /// A name of an entry or import is not well formed, or does not lie behind the name before it.
    Names, "the names of entries and imports are malformed or share bytes";
}

type Check = Result<(), LayoutError>;

fn ensure(holds: bool, error: LayoutError) -> Check {
    if holds { Ok(()) } else { Err(error) }
}

const fn page_aligned(offset: i64) -> bool {
    offset & 4095 == 0
}

impl Layout<'_> {
    /// Proves this layout for a host with `policy`. Work is linear in the layout's words.
    ///
    /// # Errors
    /// The first [`LayoutError`] found.
    pub fn validate(&self, policy: &Policy) -> Result<(), LayoutError> {
        ensure(policy.max_depth.is_multiple_of(8) && policy.max_depth <= DEPTH_LIMIT, LayoutError::PolicyDepth)?;
        ensure(self.max_depth.is_multiple_of(8) && self.max_depth <= policy.max_depth, LayoutError::Depth)?;
        ensure(
            self.sub_tables.len().is_multiple_of(SubTable::WORDS)
                && self.regions.len().is_multiple_of(Region::WORDS)
                && self.forgets.len().is_multiple_of(Forget::WORDS),
            LayoutError::Records,
        )?;
        self.validate_mode(policy)?;
        self.validate_table_pages(policy)?;
        self.validate_main_table()?;
        self.validate_sub_tables()?;
        let stack = self.validate_regions(policy)?;
        self.validate_native_stack(policy, stack)
    }

    fn validate_mode(&self, policy: &Policy) -> Check {
        ensure(self.mode.fulfils(policy.mode), LayoutError::Mode)?;
        ensure(policy.host == Host::User || self.mode.protect == Protect::All, LayoutError::Mode)?;
        ensure(self.mode.matched || self.forgets.is_empty(), LayoutError::Forgets)?;
        let mut past = 0_u64;
        for index in 0..self.forget_count() {
            let forget = self.forget(index).ok_or(LayoutError::Forgets)?;
            ensure(u64::from(forget.offset) >= past, LayoutError::Forgets)?;
            past = u64::from(forget.offset).saturating_add(1);
        }
        Ok(())
    }

    fn validate_table_pages(&self, policy: &Policy) -> Check {
        let (start, end) = (i64::from(self.table), i64::from(self.table_end));
        let (low, high) = match policy.host {
            Host::User => (i64::from(NULL_ZONE_END), i64::from(MEMORY_END)),
            Host::Kernel => (i64::from(PAGE).saturating_sub(CONTROL), 0_i64.saturating_sub(i64::from(PAGE))),
        };
        let sized = page_aligned(start) && page_aligned(end) && start < end && end.saturating_sub(start) <= TABLE_LIMIT;
        ensure(sized && low <= start && end <= high, LayoutError::TablePages)
    }

    fn validate_main_table(&self) -> Check {
        ensure(self.main_bits <= MAIN_BITS_LIMIT, LayoutError::MainTable)?;
        ensure(self.main_end() <= i64::from(self.table_end), LayoutError::MainTable)?;
        let capacity = slots_of(self.main_bits);
        ensure(u64::from(self.imports) <= capacity, LayoutError::Imports)?;
        ensure(words_of(self.slots) <= capacity, LayoutError::MainSlot)?;
        for (index, word) in self.slots.iter().enumerate() {
            let fits = match Slot::from_word(word) {
                Slot::Trap => true,
                Slot::Import(import) => index != 0 && import < self.imports,
                Slot::Text(_) => index != 0,
            };
            ensure(fits, LayoutError::MainSlot)?;
        }
        Ok(())
    }

    /// Displacement past the main table's last slot.
    fn main_end(&self) -> i64 {
        i64::from(self.table).saturating_add(extent_of(self.main_bits))
    }

    fn validate_sub_tables(&self) -> Check {
        let (mut past, mut next) = (self.main_end(), 0_u32);
        for index in 0..self.sub_table_count() {
            let table = self.sub_table(index).ok_or(LayoutError::Records)?;
            ensure(table.bits < 28 && table.base & 7 == 0, LayoutError::SubTable)?;
            let start = i64::from(table.base);
            let end = start.saturating_add(extent_of(table.bits));
            ensure(past <= start && end <= i64::from(self.table_end), LayoutError::SubTable)?;
            past = end;
            let units = table.depth / 8;
            ensure(table.depth.is_multiple_of(8) && table.depth <= self.max_depth, LayoutError::SubState)?;
            ensure(table.set & !slots_below(units) == 0, LayoutError::SubState)?;
            ensure(table.first == next && u64::from(table.count) <= slots_of(table.bits), LayoutError::SubWords)?;
            next = next.checked_add(table.count).ok_or(LayoutError::SubWords)?;
        }
        ensure(u64::from(next) == words_of(self.sub_slots), LayoutError::SubWords)?;
        let listed = |word| !matches!(Slot::from_word(word), Slot::Import(_));
        ensure(self.sub_slots.iter().all(listed), LayoutError::SubSlot)
    }

    /// Regions ordered, disjoint, aligned, in handler memory and clear of the stack's guard; gives the stack region.
    fn validate_regions(&self, policy: &Policy) -> Result<Region, LayoutError> {
        let mut past = match policy.host {
            Host::User => u32::try_from(self.table_end).map_err(|_| LayoutError::TablePages)?,
            Host::Kernel => NULL_ZONE_END,
        };
        ensure(self.region_count() <= REGION_LIMIT, LayoutError::Regions)?;
        let mut stack = None;
        for index in 0..self.region_count() {
            let region = self.region(index).ok_or(LayoutError::Region)?;
            let aligned = region.start.is_multiple_of(PAGE) && region.end.is_multiple_of(PAGE);
            ensure(
                aligned && past <= region.start && region.start < region.end && region.end <= MEMORY_END,
                LayoutError::Region,
            )?;
            if region.kind == RegionKind::Stack {
                ensure(stack.is_none(), LayoutError::Stack)?;
                let guard = u64::from(self.max_depth).saturating_add(8);
                ensure(u64::from(past).saturating_add(guard) <= u64::from(region.start), LayoutError::Guard)?;
                stack = Some(region);
            }
            past = region.end;
        }
        stack.ok_or(LayoutError::Stack)
    }

    /// The data stack lies at S + 8 + K, and the native stack of the same size with its guard fits below S + 8.
    fn validate_native_stack(&self, policy: &Policy, stack: Region) -> Check {
        ensure(self.stack_low % 16 == 8, LayoutError::StackLow)?;
        let top = u64::from(self.stack_low).saturating_add(8);
        let data_top = top.saturating_add(u64::from(self.stack_shift));
        ensure(u64::from(stack.end) == data_top.saturating_add(u64::from(STACK_HEADROOM)), LayoutError::Stack)?;
        let size = data_top.checked_sub(u64::from(stack.start)).ok_or(LayoutError::Stack)?;
        ensure(size > 0, LayoutError::Stack)?;
        let below = u64::from(self.max_depth).saturating_add(8);
        ensure(size.saturating_add(below) <= top, LayoutError::StackLow)?;
        if policy.host == Host::Kernel {
            // A function starts only at rsp >= LIMIT and then writes at most D + 8 bytes below; all of that is its own stack.
            let lowest = top.saturating_sub(size).saturating_add(below);
            let limit = u64::from(self.limit);
            ensure(lowest <= limit && limit <= u64::from(self.stack_low), LayoutError::Limit)?;
        }
        Ok(())
    }
}

/// Slots of a table with `bits` (below 32) bits.
const fn slots_of(bits: u32) -> u64 {
    1_u64.wrapping_shl(bits)
}

/// Bytes of a table with `bits` (below 28) bits.
const fn extent_of(bits: u32) -> i64 {
    8_i64.wrapping_shl(bits)
}

/// The set of every tracked slot at a depth of `units` × 8 bytes.
pub(crate) const fn slots_below(units: u32) -> u64 {
    let kept = if units < SET_SLOTS { units } else { SET_SLOTS };
    1_u64.wrapping_shl(kept).wrapping_sub(1)
}

fn words_of(words: Words<'_>) -> u64 {
    u64::try_from(words.len()).unwrap_or(u64::MAX)
}
