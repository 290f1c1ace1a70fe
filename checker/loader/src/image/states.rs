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

/// The state at every instruction, as a list of changes: text offset and state from there on.
#[derive(Debug, Default)]
pub struct States(Vec<(u32, State)>);

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
        States(changes)
    }

    /// The state before the instruction that starts at text offset `offset`.
    pub fn at(&self, offset: u32) -> State {
        let after = self.0.partition_point(|(at, _)| *at <= offset);
        after.checked_sub(1).map_or(State::default(), |last| self.0[last].1)
    }
}
