//! Static stack states of accepted text (SPEC R10 to R17), for backtraces and for `longjmp`.

use cordon_checker::layout::Layout;
use cordon_checker::{Policy, check, scratch_len, starts, state_at};

/// Depth and pushed set before an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Bytes between rsp and the return address.
    pub depth: u32,
    /// Bit i: the slot at depth 8·(i+1) was written by a push.
    pub set: u16,
}

impl State {
    /// Whether a jump to code that counts on `other` is accepted when rsp has been moved to its depth: slots that the move makes are in no set.
    pub const fn reaches(self, other: State) -> bool {
        other.set & !self.set == 0
    }
}

/// Bytes of text for which one search begins.
const BLOCK: u32 = 128;

/// The state at every instruction.
#[derive(Debug, Default)]
pub struct States {
    /// Text offset and state from there on, ascending.
    changes: Vec<(u32, State)>,
    /// For every block of text, how many changes lie before it; and for the end.
    blocks: Vec<u32>,
}

impl States {
    /// Checks `text` once more to learn its states; none are known if it is not accepted, which cannot be for loaded text.
    pub fn of(text: &[u8], policy: &Policy, layout: &Layout<'_>) -> States {
        let mut scratch = vec![0_u64; scratch_len(text.len())];
        match check(text, policy, layout, &mut scratch) {
            Ok(_) => States::from_scratch(&scratch, text.len()),
            Err(_) => States::default(),
        }
    }

    /// The states that the checker left in `scratch` when it accepted `text_len` bytes.
    pub fn from_scratch(scratch: &[u64], text_len: usize) -> States {
        let mut changes: Vec<(u32, State)> = Vec::new();
        for offset in starts(scratch, text_len) {
            let state = state_at(scratch[offset])
                .map_or(State::default(), |s| State { depth: s.units() as u32 * 8, set: s.set() as u16 });
            if changes.last().is_none_or(|(_, last)| *last != state) {
                changes.push((offset as u32, state));
            }
        }
        changes.shrink_to_fit();
        let mut before = 0;
        let blocks = (0..=text_len.div_ceil(BLOCK as usize) as u32).map(|block| {
            before += changes[before..].partition_point(|(at, _)| at / BLOCK < block);
            before as u32
        });
        States { blocks: blocks.collect(), changes }
    }

    /// The state before the instruction that starts at text offset `offset`.
    pub fn at(&self, offset: u32) -> State {
        let block = (offset / BLOCK) as usize;
        let (Some(&from), Some(&to)) = (self.blocks.get(block), self.blocks.get(block + 1)) else { return State::default() };
        let (from, to) = (from as usize, to as usize);
        let after = from + self.changes[from..to].partition_point(|(at, _)| *at <= offset);
        after.checked_sub(1).map_or(State::default(), |last| self.changes[last].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scratch word of an instruction start, by the layout that `cordon_checker::state` documents.
    const fn start(units: u64, set: u64) -> u64 {
        1 << 63 | units << 16 | set
    }

    #[test]
    fn the_state_of_an_instruction_is_that_of_the_last_change() {
        let mut scratch = vec![0; 1000];
        let mut expected = Vec::new();
        for (index, at) in (0..1000).step_by(3).enumerate() {
            // Nothing changes for whole blocks, then everything.
            let units = if (300..700).contains(&at) { 5 } else { index as u64 % 7 };
            scratch[at] = start(units, (1 << units) - 1);
            expected.push((at as u32, State { depth: units as u32 * 8, set: (1 << units) - 1 }));
        }
        let states = States::from_scratch(&scratch, scratch.len());
        for (at, state) in expected {
            assert_eq!(states.at(at), state, "{at}");
        }
        assert_eq!(states.at(5000), State::default());
        assert_eq!(States::default().at(0), State::default());
    }
}
