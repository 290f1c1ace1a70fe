//! What registers and frame slots hold at an instruction, as far as stack depth, tables and saved registers need it.

use crate::program::SectionId;
use foldhash::{HashMap, HashMapExt as _};
use iced_x86::Register;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An abstract 64-bit value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Value {
    /// Anything.
    #[default]
    Unknown,
    /// The register still holds what it held at function entry.
    Entry,
    /// What the register of this number held at function entry, in another place.
    Saved(u8),
    /// The data-stack address `rsp at entry + c`: a place in the frame.
    Stack(i32),
    /// The same address as a copy of rsp: perhaps not a place in the frame, but the end of what will be allocated below it.
    Copy(i32),
    /// The stack pointer minus something unknown, computed by the node of this number: memory about to be allocated.
    Below(u32),
    /// What the node of this number subtracted from the stack pointer, and its negative.
    Size(u32),
    Minus(u32),
    /// The address of a place in a data section.
    Address(SectionId, i64),
    /// A code address out of one of the body's absolute tables (bit set of table numbers).
    Code(u64),
    /// Computed by an addition that is not understood: never a function pointer to jump through.
    Computed,
    /// A 32-bit entry out of one of the body's relative tables, before the table's address is added.
    Relative(u64),
}

impl Value {
    /// The offset of a data-stack address from rsp at entry.
    #[must_use]
    pub fn stack(self) -> Option<i32> {
        if let Value::Stack(c) | Value::Copy(c) = self { Some(c) } else { None }
    }

    /// The same when nodes have new numbers.
    #[must_use]
    pub(crate) fn renumbered(self, numbers: &[u32]) -> Value {
        let number = |old: u32| numbers[old as usize];
        match self {
            Value::Below(id) => Value::Below(number(id)),
            Value::Size(id) => Value::Size(number(id)),
            Value::Minus(id) => Value::Minus(number(id)),
            other => other,
        }
    }

    /// What is known when control arrives with either value.
    #[must_use]
    pub fn join(self, other: Value) -> Value {
        match (self, other) {
            (a, b) if a == b => a,
            (Value::Stack(a) | Value::Copy(a), Value::Stack(b) | Value::Copy(b)) if a == b => Value::Copy(a),
            (Value::Code(a), Value::Code(b)) => Value::Code(a | b),
            (Value::Relative(a), Value::Relative(b)) => Value::Relative(a | b),
            (Value::Computed, _) | (_, Value::Computed) => Value::Computed,
            _ => Value::Unknown,
        }
    }
}

/// Marks a frame slot that some path allocated without a push.
pub const NOT_PUSHED: u32 = u32::MAX;

/// What one 8-byte slot of the frame holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slot {
    /// The pushes (node numbers) that may have written it last, ascending; [`NOT_PUSHED`] among them if none on some path.
    pub pushes: Vec<u32>,
    pub value: Value,
}

impl Slot {
    /// What is known when control arrives with either slot.
    fn join(&self, other: &Slot) -> Slot {
        let mut pushes: Vec<u32> = self.pushes.iter().chain(&other.pushes).copied().collect();
        pushes.sort_unstable();
        pushes.dedup();
        Slot { pushes, value: self.value.join(other.value) }
    }
}

/// Slots by offset from rsp at entry (−8 is the first one below the return address).
pub type Frame = BTreeMap<i32, Slot>;

/// The abstract state before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Bytes of native stack below the return address, static at every instruction: rsp at entry − rsp, rounded up to 8.
    pub depth: i32,
    /// Bytes by which the original's rsp lies above that, below 8: clang's leaf functions take as little as 4 bytes (`-mno-red-zone`).
    pub skew: i32,
    /// After `alloca`: rsp stands for the arena word, the native stack stays at `depth`.
    pub dynamic: bool,
    pub registers: [Value; 16],
    /// Shared by the many instructions that change nothing in it.
    pub frame: Arc<Frame>,
}

impl State {
    /// The state at a function's entry.
    #[must_use]
    pub fn entry() -> State {
        let mut registers = [Value::Entry; 16];
        registers[Register::RSP.number()] = Value::Unknown;
        State { depth: 0, skew: 0, dynamic: false, registers, frame: Arc::default() }
    }

    /// The value of a full 64-bit register (rsp included); `Unknown` for anything else.
    #[must_use]
    pub fn register(&self, register: Register) -> Value {
        if register == Register::RSP {
            return if self.dynamic { Value::Unknown } else { Value::Stack(self.skew - self.depth) };
        }
        if register.is_gpr64() { self.registers[register.number()] } else { Value::Unknown }
    }

    /// Records that `register` (any width) was written; a 64-bit one with `value`.
    pub fn set(&mut self, register: Register, value: Value) {
        if register.is_gpr() && register.full_register() != Register::RSP {
            let full = register.full_register();
            let own = Value::Saved(full.number() as u8);
            self.registers[full.number()] = match value {
                _ if !register.is_gpr64() => Value::Unknown,
                value if value == own => Value::Entry,
                value => value,
            };
        }
    }

    /// Records that the registers of `set` (bit = number) were written.
    pub fn forget(&mut self, set: u16) {
        for (number, value) in self.registers.iter_mut().enumerate() {
            if set >> number & 1 == 1 {
                *value = Value::Unknown;
            }
        }
    }

    /// Moves rsp to `depth`, a multiple of 8; slots that are no longer allocated are forgotten.
    pub fn set_depth(&mut self, depth: i32) {
        self.depth = depth;
        self.skew = 0;
        if self.frame.first_key_value().is_some_and(|(lowest, _)| *lowest < -depth) {
            self.frame = Arc::new(self.frame.range(-depth..).map(|(at, slot)| (*at, slot.clone())).collect());
        }
    }

    /// Merges `other` into `self`. `Err` if the depths differ, else whether anything changed.
    ///
    /// # Errors
    /// The two depths.
    pub fn join(&mut self, other: &State) -> Result<bool, (i32, i32)> {
        if self.depth != other.depth || self.skew != other.skew || self.dynamic != other.dynamic {
            return Err((self.depth - self.skew, other.depth - other.skew));
        }
        let mut changed = false;
        for (mine, theirs) in self.registers.iter_mut().zip(&other.registers) {
            let joined = mine.join(*theirs);
            changed |= joined != *mine;
            *mine = joined;
        }
        if self.frame != other.frame {
            changed |= self.join_frame(&other.frame);
        }
        Ok(changed)
    }

    /// Merges the slots of `other`; whether anything changed.
    fn join_frame(&mut self, other: &Frame) -> bool {
        let absent = Slot { pushes: vec![NOT_PUSHED], value: Value::Unknown };
        let offsets: BTreeSet<i32> = self.frame.keys().chain(other.keys()).copied().collect();
        let mut changed = false;
        for offset in offsets {
            let mine = self.frame.get(&offset);
            let joined = mine.unwrap_or(&absent).join(other.get(&offset).unwrap_or(&absent));
            if mine != Some(&joined) {
                Arc::make_mut(&mut self.frame).insert(offset, joined);
                changed = true;
            }
        }
        changed
    }

    /// A store of `size` bytes at frame offset `at` forgets what the slots under it held.
    pub fn overwrite(&mut self, at: i32, size: i32) {
        let under = at - 7..at + size;
        if self.frame.range(under.clone()).any(|(_, slot)| slot.value != Value::Unknown) {
            Arc::make_mut(&mut self.frame).range_mut(under).for_each(|(_, slot)| slot.value = Value::Unknown);
        }
    }
}

/// Gives the nodes that all states name their new numbers; frames that were one stay one.
pub(crate) fn renumber<'a>(states: impl Iterator<Item = &'a mut State>, numbers: &[u32]) {
    // The old frames are kept until the end, so that no new one can take the place of one of them.
    let mut done: HashMap<*const Frame, (Arc<Frame>, Arc<Frame>)> = HashMap::new();
    for state in states {
        let old = &state.frame;
        let (_, new) = done.entry(Arc::as_ptr(old)).or_insert_with(|| {
            let mut new = Frame::clone(old);
            for slot in new.values_mut() {
                for push in slot.pushes.iter_mut().filter(|p| **p != NOT_PUSHED) {
                    *push = numbers[*push as usize];
                }
                slot.pushes.sort_unstable();
                slot.value = slot.value.renumbered(numbers);
            }
            (Arc::clone(old), Arc::new(new))
        });
        state.frame = Arc::clone(new);
        for value in &mut state.registers {
            *value = value.renumbered(numbers);
        }
    }
}
