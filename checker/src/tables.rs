//! What table and import operands may name: the layout's main table, sub-tables and imports (DESIGN §5).

use crate::layout::{Layout, Slot, SubTable};
use crate::state::State;

/// The tables of a validated layout.
pub(crate) struct Tables<'t> {
    layout: &'t Layout<'t>,
}

/// The mask that keeps an index inside a table of `1 << bits` slots.
const fn mask_of(bits: u32) -> u32 {
    8_u32.wrapping_shl(bits).wrapping_sub(8)
}

impl<'t> Tables<'t> {
    pub(crate) const fn new(layout: &'t Layout<'t>) -> Self {
        Tables { layout }
    }

    /// Whether `mask` and `disp` are exactly the main table's.
    pub(crate) fn is_main(&self, mask: u32, disp: i32) -> bool {
        disp == self.layout.table && mask == mask_of(self.layout.main_bits)
    }

    /// The state that targets of the listed table (`mask`, `disp`) start with; `None` if no table is exactly that.
    pub(crate) fn state_of(&self, mask: u32, disp: i32) -> Option<State> {
        if self.is_main(mask, disp) {
            return Some(State::ENTRY);
        }
        let table = self.find(disp)?;
        (mask == mask_of(table.bits)).then(|| State::new(table.depth / 8, table.set))
    }

    /// The sub-table at `disp`; a validated layout has them in ascending order.
    fn find(&self, disp: i32) -> Option<SubTable> {
        let (mut low, mut high) = (0, self.layout.sub_table_count());
        while low < high {
            let middle = usize::midpoint(low, high);
            let table = self.layout.sub_table(middle)?;
            if table.base == disp {
                return Some(table);
            }
            if table.base < disp {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        None
    }

    /// `Some` if the slot at `disp` is in the main table and an import.
    pub(crate) fn import(&self, disp: i32) -> Option<()> {
        let offset = i64::from(disp).checked_sub(i64::from(self.layout.table))?;
        if offset & 7 != 0 {
            return None;
        }
        // Below the table the number is negative, and no index.
        let word = self.layout.slots.get(usize::try_from(offset >> 3).ok()?)?;
        matches!(Slot::from_word(word), Slot::Import(_)).then_some(())
    }

    /// The slot words of a sub-table.
    pub(crate) fn words(&self, table: &SubTable) -> impl Iterator<Item = u32> + use<'t> {
        let first = usize::try_from(table.first).unwrap_or(usize::MAX);
        let count = usize::try_from(table.count).unwrap_or(usize::MAX);
        self.layout.sub_slots.slice(first, count).unwrap_or_default().iter()
    }
}
