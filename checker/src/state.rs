//! The abstract state (DESIGN §4) and the scratch word that keeps it for one text byte.
//!
//! | bits | meaning |
//! | --- | --- |
//! | 0..=15 | pushed set: bit i = the slot at depth 8·(i+1), counted from the return address |
//! | 16..=33 | depth in units of 8 bytes |
//! | 34..=49 | match: registers known to hold 0 to 2^31 - 1 |
//! | 50..=59 | metered: instructions that are paid for |
//! | 60 | before the scan reaches the byte: must begin with `endbr64`; after: does (kernel only) |
//! | 61 | before: must carry LIMIT; after: does (kernel only) |
//! | 62 | before: seeded, some forward branch, call, slot or entry leads here; after (match): more is known than bits 34..=49 can say |
//! | 63 | an instruction or fused unit starts here |

use crate::layout::SET_SLOTS;
use crate::validate::slots_below;
use crate::verdict::Rule;

/// Depth and pushed set, packed as in the scratch word's bits 0..=33.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(u64);

/// [`SET_SLOTS`] in the type of the state's fields.
#[allow(clippy::as_conversions, reason = "a constant, 16")]
const SLOTS: u64 = SET_SLOTS as u64;
const SET_MASK: u64 = slots_below(SET_SLOTS);
const DEPTH_SHIFT: u32 = SET_SLOTS;
const STATE_MASK: u64 = (1 << LOW_SHIFT) - 1;
const LOW_SHIFT: u32 = 34;
const EXTRA_MASK: u64 = (1 << 60) - (1 << LOW_SHIFT);
const CREDIT_SHIFT: u32 = 50;
const CREDIT_MASK: u64 = 0x3ff;

impl State {
    /// The state at a function entry: depth 0, nothing pushed.
    pub const ENTRY: State = State(0);

    /// The state at `units` × 8 bytes of depth with the slots of `set` pushed.
    #[must_use]
    pub fn new(units: u32, set: u64) -> State {
        State((u64::from(units) << DEPTH_SHIFT | set & SET_MASK) & STATE_MASK)
    }

    /// Depth in units of 8 bytes.
    #[must_use]
    pub const fn units(self) -> u64 {
        self.0 >> DEPTH_SHIFT
    }

    /// The pushed set.
    #[must_use]
    pub const fn set(self) -> u64 {
        self.0 & SET_MASK
    }

    /// The state of two paths that meet: equal depth (else `None`), the intersection of the sets.
    #[inline]
    pub(crate) const fn meet(self, other: State) -> Option<State> {
        if self.units() == other.units() { Some(State(self.0 & other.0)) } else { None }
    }

    /// Whether code that counts on `other` may run in this state.
    #[inline]
    pub(crate) const fn covers(self, other: State) -> Option<bool> {
        if self.units() == other.units() { Some(other.0 & !self.0 == 0) } else { None }
    }

    /// After `push`: one unit deeper, the new slot pushed if it is tracked. The caller bounds the depth.
    #[inline]
    pub(crate) const fn push(self) -> State {
        let slot = self.units();
        let bit = if slot < SLOTS { 1_u64 << slot } else { 0 };
        State(self.0.wrapping_add(1 << DEPTH_SHIFT) | bit)
    }

    /// After `pop`, if the top slot was pushed.
    #[inline]
    pub(crate) const fn pop(self) -> Option<State> {
        let Some(slot) = self.units().checked_sub(1) else { return None };
        if slot >= SLOTS {
            return None;
        }
        let bit = 1_u64 << slot;
        if self.0 & bit == 0 { None } else { Some(State((self.0 & !bit).wrapping_sub(1 << DEPTH_SHIFT))) }
    }

    /// After the depth became `units`: slots that no longer exist leave the set, new ones are not in it.
    #[inline]
    pub(crate) fn resized(self, units: u32) -> State {
        State::new(units, self.set() & slots_below(units))
    }
}

/// What the modes know besides the state, packed as in the scratch word's bits 34..=59: registers that hold at most 2^31 - 1, and the
/// number of instructions paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extra(u64);

impl Extra {
    /// Nothing is known and nothing paid: the least.
    pub(crate) const NONE: Extra = Extra(0);
    /// More credit than METER gives: no edge brings as much.
    pub(crate) const UNPAYABLE: u16 = 0x3ff;

    /// `credit` is at most [`Extra::UNPAYABLE`].
    #[inline]
    pub(crate) fn new(low: u16, credit: u16) -> Extra {
        Extra(u64::from(low) << LOW_SHIFT | (u64::from(credit) & CREDIT_MASK) << CREDIT_SHIFT)
    }

    const fn of(word: u64) -> Extra {
        Extra(word & EXTRA_MASK)
    }

    /// Mask of the registers.
    #[inline]
    pub(crate) fn low(self) -> u16 {
        u16::try_from(self.0 >> LOW_SHIFT & 0xffff).unwrap_or(0)
    }

    /// Instructions paid for.
    #[inline]
    pub(crate) fn credit(self) -> u16 {
        u16::try_from(self.0 >> CREDIT_SHIFT & CREDIT_MASK).unwrap_or(0)
    }

    /// What holds on two paths that meet.
    #[inline]
    pub(crate) fn meet(self, other: Extra) -> Extra {
        Extra::new(self.low() & other.low(), self.credit().min(other.credit()))
    }
}

/// One scratch word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

/// What a target must offer, or what a place offers (kernel host; user text needs and offers nothing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traits(u64);

impl Traits {
    pub(crate) const NONE: Traits = Traits(0);
    pub(crate) const ENDBR: Traits = Traits(1 << 60);
    pub(crate) const LIMIT: Traits = Traits(1 << 61);
    pub(crate) const BOTH: Traits = Traits(3 << 60);

    /// Both sets of wishes.
    #[inline]
    pub(crate) const fn with(self, other: Traits) -> Traits {
        Traits(self.0 | other.0)
    }

    /// Whether a place that offers `offered` will do.
    #[inline]
    pub(crate) const fn satisfied_by(self, offered: Traits) -> Result<(), Rule> {
        let lacking = self.0 & !offered.0;
        if lacking == 0 {
            Ok(())
        } else if lacking & Traits::LIMIT.0 != 0 {
            Err(Rule::Limit)
        } else {
            Err(Rule::Endbr)
        }
    }
}

impl Word {
    const SEEDED: u64 = 1 << 62;
    const START: u64 = 1 << 63;

    /// A byte that something leads to but that the scan has not reached.
    #[inline]
    pub(crate) const fn seeded(state: State, extra: Extra, wants: Traits) -> Word {
        Word(Word::SEEDED | state.0 | extra.0 | wants.0)
    }

    /// An instruction start. `closed`: the code behind it counts on more than the word says, so no edge may lead back here.
    #[inline]
    pub(crate) const fn start(state: State, extra: Extra, offers: Traits, closed: bool) -> Word {
        let closed = if closed { Word::SEEDED } else { 0 };
        Word(Word::START | state.0 | extra.0 | offers.0 | closed)
    }

    /// Whether something leads to this byte, which the scan has not reached.
    #[inline]
    pub(crate) const fn is_seeded(self) -> bool {
        self.0 & (Word::SEEDED | Word::START) == Word::SEEDED
    }

    #[inline]
    pub(crate) const fn is_closed(self) -> bool {
        self.0 & Word::SEEDED != 0
    }

    #[inline]
    pub(crate) const fn extra(self) -> Extra {
        Extra::of(self.0)
    }

    #[inline]
    pub(crate) const fn is_start(self) -> bool {
        self.0 & Word::START != 0
    }

    #[inline]
    pub(crate) const fn state(self) -> State {
        State(self.0 & STATE_MASK)
    }

    #[inline]
    pub(crate) const fn traits(self) -> Traits {
        Traits(self.0 & Traits::BOTH.0)
    }
}

/// Whether an instruction (or fused unit) starts at the byte of this scratch word, after [`crate::check`] accepted.
#[must_use]
pub const fn is_start(word: u64) -> bool {
    Word(word).is_start()
}

/// State before the instruction that starts at the byte of this scratch word, or `None` if none starts there.
#[must_use]
pub const fn state_at(word: u64) -> Option<State> {
    if is_start(word) { Some(Word(word).state()) } else { None }
}

/// Text offsets of all instruction starts, in order, from the scratch that [`crate::check`] filled for accepted text of `text_len` bytes.
pub fn starts(scratch: &[u64], text_len: usize) -> impl Iterator<Item = usize> + '_ {
    scratch.iter().take(text_len).enumerate().filter(|(_, word)| is_start(**word)).map(|(offset, _)| offset)
}
