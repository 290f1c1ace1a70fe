//! What each step of a run may do, by the instruction that has run: where control may be, where rsp must be, whose return address is next;
//! and what the text's mode promises of the step to come.

use crate::features::lacking;
use crate::place::{GATE, GONE, TEXT, TRAP, address};
use crate::run::{Known, Subject};
use cordon_checker::layout::{MEMORY_END, Slot};
use cordon_checker::policy::Host;
use cordon_checker::{Description, Flow, describe_in, is_start, state_at};

/// An activation on the native stack.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its return address lies.
    base: u64,
    back: u64,
}

/// Most activations that are followed.
const FRAMES: usize = 256;
/// `endbr64`.
const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// Number of the register that counts.
const COUNT: usize = 14;

/// The steps of one run.
pub(crate) struct Watch<'a> {
    subject: &'a Subject<'a>,
    frames: Vec<Frame>,
    /// Offset of the last start that was stepped to.
    last: Option<usize>,
    in_gate: bool,
    /// Count at the beginning, and instructions that are paid for besides.
    fuel: u64,
    credit: u64,
    /// Instructions that ran and are not free.
    executed: u64,
    /// Instructions that ran, and accesses whose address was looked at.
    pub(crate) steps: u64,
    pub(crate) accesses: u64,
}

impl<'a> Watch<'a> {
    /// For a run from a place of which `known` holds, with the outermost return address at `base`.
    pub(crate) fn new(subject: &'a Subject<'a>, known: Known, base: u64, fuel: u64) -> Watch<'a> {
        let mut frames = Vec::with_capacity(FRAMES);
        frames.push(Frame { base, back: GONE });
        let credit = known.credit.into();
        Watch { subject, frames, last: None, in_gate: false, fuel, credit, executed: 0, steps: 0, accesses: 0 }
    }

    /// The instruction that starts at `offset`.
    fn at(&self, offset: usize) -> Option<Description> {
        let bytes = self.subject.text.get(offset..).filter(|_| self.is_start(offset))?;
        describe_in(bytes, Host::User, self.subject.spec.mode).ok()
    }

    fn is_start(&self, offset: usize) -> bool {
        self.subject.scratch.get(offset).is_some_and(|word| is_start(*word))
    }

    /// Judges that control is at `rip` with these registers. `Ok(false)`: the run is over, or deeper than anybody looks.
    pub(crate) fn step(&mut self, rip: u64, general: &[u64; 16]) -> Result<bool, &'static str> {
        let rsp = general[4];
        if self.in_gate {
            if (GATE..GATE + 16).contains(&rip) {
                return Ok(true);
            }
            self.in_gate = false;
            self.comes_back(rip, rsp)?;
        } else if let Some(last) = self.last {
            let offset = rip.wrapping_sub(TEXT) as usize;
            let Some(what) = self.at(last) else { return Err("no instruction") };
            if what.len > 1 && (last + 1..last + what.len).contains(&offset) && !self.is_start(offset) {
                // The second half of a unit.
                return Ok(true);
            }
            self.transition(what, TEXT + (last + what.len) as u64, rip, rsp)?;
        }
        self.steps += 1;
        self.arrive(rip, general)
    }

    /// Control goes from the instruction `what`, which ends at `next`, to `rip`.
    fn transition(&mut self, what: Description, next: u64, rip: u64, rsp: u64) -> Result<(), &'static str> {
        let to = |rel: i32| next.wrapping_add_signed(rel.into());
        let slot = |slots: &[Slot]| rip == TRAP || slots.iter().any(|slot| address(slot) == rip);
        let spec = &self.subject.spec;
        let allowed = match what.flow {
            Flow::Next => rip == next,
            Flow::Conditional(rel) => rip == next || rip == to(rel),
            Flow::Check { abort, .. } | Flow::Meter { abort, .. } => rip == next || rip == to(abort),
            Flow::Jump(rel) => rip == to(rel),
            Flow::TableJump { mask: 0, .. } | Flow::TableCall { mask: 0, .. } => rip == GATE,
            Flow::TableJump { disp, .. } | Flow::TableCall { disp, .. } if disp == spec.table => slot(&spec.slots),
            Flow::TableJump { disp, .. } => spec.sub_tables.iter().any(|(sub, slots)| sub.base == disp && slot(slots)),
            Flow::TableCall { .. } | Flow::Trap => false,
            Flow::Call(rel) => rip == to(rel),
            Flow::Return => return self.comes_back(rip, rsp),
        };
        if matches!(what.flow, Flow::Call(_) | Flow::TableCall { .. }) && self.frames.len() < FRAMES {
            self.frames.push(Frame { base: rsp, back: next });
        }
        if allowed { Ok(()) } else { Err("control goes where its instruction does not lead") }
    }

    fn comes_back(&mut self, rip: u64, rsp: u64) -> Result<(), &'static str> {
        let Some(frame) = self.frames.pop() else { return Err("returns from the outermost activation twice") };
        if rip != frame.back {
            return Err("returns to where nothing called");
        }
        if rsp == frame.base.wrapping_add(8) { Ok(()) } else { Err("returns with a wrong rsp") }
    }

    fn arrive(&mut self, rip: u64, general: &[u64; 16]) -> Result<bool, &'static str> {
        self.last = None;
        if self.frames.len() == FRAMES || rip == TRAP {
            return Ok(rip == TRAP);
        }
        if rip == GONE {
            return if self.frames.is_empty() { Ok(true) } else { Err("is gone with activations left") };
        }
        if rip == GATE {
            self.in_gate = true;
            return Ok(true);
        }
        let offset = rip.wrapping_sub(TEXT) as usize;
        let Some(what) = self.at(offset) else { return Err("executes something that is no instruction start") };
        let depth = self.subject.scratch.get(offset).and_then(|word| state_at(*word)).map_or(0, |state| 8 * state.units());
        let Some(frame) = self.frames.last() else { return Err("runs on after the outermost return") };
        if general[4] != frame.base.wrapping_sub(depth) {
            return Err("rsp is not where the static depth says");
        }
        self.keeps_promises(offset, what, general)?;
        self.last = Some(offset);
        Ok(true)
    }

    /// Holds the instruction that is about to run to the text's mode.
    fn keeps_promises(&mut self, offset: usize, what: Description, general: &[u64; 16]) -> Result<(), &'static str> {
        let mode = self.subject.spec.mode;
        if mode.metered && what.flow != Flow::Trap {
            let paid = self.fuel.checked_sub(general[COUNT]).map(|used| used + self.credit);
            if paid.is_none_or(|paid| paid < self.executed) {
                return Err("runs more instructions than are paid for");
            }
            self.executed += u64::from(!self.subject.text[offset..].starts_with(&ENDBR));
        }
        let Some(memory) = what.memory.filter(|memory| memory.needs_check(mode)) else { return Ok(()) };
        self.accesses += 1;
        let register = |number: u8| match number {
            4 => general[4] & 0xffff_ffff,
            number => general[usize::from(number)],
        };
        let index = memory.index.map_or(0, register).wrapping_mul(memory.scale.into());
        let address = memory.base.map_or(0, register).wrapping_add(index).wrapping_add_signed(memory.disp.into());
        // SPEC "Match", for an access of 64 bytes.
        let truncated = address & 0xffff_ffff;
        let exact = truncated == address || truncated >= u64::from(MEMORY_END) || truncated <= 0xffc0;
        if exact { Ok(()) } else { Err("an address is not exact") }
    }

    /// Whether a `ud2` is at `rip`.
    pub(crate) fn is_trap(&self, rip: u64) -> bool {
        rip == TRAP || self.at(rip.wrapping_sub(TEXT) as usize).is_some_and(|what| what.flow == Flow::Trap)
    }

    /// Whether the instruction at `rip` needs an extension that this processor lacks.
    pub(crate) fn is_lacking(&self, rip: u64) -> bool {
        self.at(rip.wrapping_sub(TEXT) as usize).is_some_and(|what| what.features.0 & lacking() != 0)
    }

    /// Whether `rip` is in an instruction that may be running.
    pub(crate) fn is_running(&self, rip: u64) -> bool {
        let offset = rip.wrapping_sub(TEXT) as usize;
        self.last.is_some_and(|last| self.at(last).is_some_and(|what| (last..last + what.len).contains(&offset)))
    }

    /// Whether `rip` is at an instruction or the second half of a unit, for runs that nobody stepped through.
    pub(crate) fn may_be_running(&self, rip: u64) -> bool {
        let offset = rip.wrapping_sub(TEXT) as usize;
        let unit = |what: Description| match what.flow {
            Flow::TableCall { mask, .. } | Flow::TableJump { mask, .. } => mask != 0,
            Flow::Check { .. } | Flow::Meter { .. } => true,
            _ => false,
        };
        let inside = |at: usize| self.at(at).is_some_and(|what| unit(what) && offset < at + what.len);
        self.is_start(offset) || offset < self.subject.text.len() && (offset.saturating_sub(16)..offset).any(inside)
    }

    /// Whether `rip` is in the trap stub or the gate.
    pub(crate) fn is_stub(&self, rip: u64) -> bool {
        (TRAP..GATE + 16).contains(&rip)
    }

    /// Whether the instruction at `rip` is a load that the mode leaves alone: it may go anywhere.
    pub(crate) fn is_free_load(&self, rip: u64) -> bool {
        let memory = self.at(rip.wrapping_sub(TEXT) as usize).and_then(|what| what.memory);
        memory.is_some_and(|memory| memory.read && !memory.write && memory.wide)
    }

    /// Whether the processor may refuse the instruction at `rip` for its operand's alignment (#GP).
    pub(crate) fn may_be_misaligned(&self, rip: u64, general: &[u64; 16]) -> bool {
        let memory = self.at(rip.wrapping_sub(TEXT) as usize).and_then(|what| what.memory);
        let Some(memory) = memory.filter(|memory| memory.bytes >= 16) else { return false };
        let register = |number: Option<u8>| number.map_or(0, |n| general[usize::from(n)] as u32);
        let index = register(memory.index).wrapping_mul(memory.scale.into());
        let address = register(memory.base).wrapping_add(index).wrapping_add_signed(memory.disp);
        !address.is_multiple_of(memory.bytes.into())
    }
}
