//! Static stack depths of accepted text, for backtraces.

use cordon_checker::layout::Layout;
use cordon_checker::{Policy, check, scratch_len, starts, state_at};

/// The depth at every instruction, as a list of changes.
#[derive(Debug, Default)]
pub struct Depths(Vec<(u32, u32)>);

impl Depths {
    /// Checks `text` once more to learn its depths; none are known if it is not accepted, which cannot be for loaded text.
    pub fn of(text: &[u8], policy: &Policy, layout: &Layout<'_>) -> Depths {
        let mut scratch = vec![0_u64; scratch_len(text.len())];
        if check(text, policy, layout, &mut scratch).is_err() {
            return Depths::default();
        }
        let mut changes: Vec<(u32, u32)> = Vec::new();
        for offset in starts(&scratch, text.len()) {
            let depth = state_at(scratch[offset]).map_or(0, |state| state.units() as u32 * 8);
            if changes.last().is_none_or(|(_, last)| *last != depth) {
                changes.push((offset as u32, depth));
            }
        }
        changes.shrink_to_fit();
        Depths(changes)
    }

    /// Bytes between rsp and the return address before the instruction that starts at text offset `offset`.
    pub fn at(&self, offset: u32) -> u32 {
        let after = self.0.partition_point(|(at, _)| *at <= offset);
        after.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}
