//! What each step of a run may do, by the instruction that has run: where control may be, where rsp must be, whose return address is next.

use crate::place::{GATE, GONE, TEXT, TRAP};
use cordon_checker::layout::{Slot, USER_TABLE};
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Description, Flow, describe_in, starts, state_at};

/// What is expected of an instruction start.
#[derive(Clone, Debug)]
struct Start {
    what: Description,
    /// Depth in bytes in front of it.
    depth: u64,
}

/// An activation on the native stack.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Where its return address lies.
    base: u64,
    back: u64,
}

/// Most activations that are followed.
const FRAMES: usize = 256;

/// The steps of one run.
pub struct Watch {
    /// By text offset.
    starts: Vec<Option<Start>>,
    main: Vec<u64>,
    sub: Vec<u64>,
    frames: Vec<Frame>,
    /// Offset of the last start that was stepped to.
    last: Option<usize>,
    in_gate: bool,
    /// Least rsp of the run.
    pub lowest: u64,
    /// Instructions that ran.
    pub steps: u64,
}

impl Watch {
    /// For text that the checker accepted, with its scratch.
    pub fn new(text: &[u8], scratch: &[u64], spec: &NoteSpec) -> Watch {
        let mut all = vec![None; text.len()];
        for at in starts(scratch, text.len()) {
            let what = describe_in(&text[at..], Host::User, spec.mode).expect("accepted");
            let depth = state_at(scratch[at]).map_or(0, |state| 8 * state.units());
            all[at] = Some(Start { what, depth });
        }
        let targets = |slots: &[Slot]| -> Vec<u64> {
            let address = |slot: &Slot| match *slot {
                Slot::Trap => TRAP,
                Slot::Import(_) => GATE,
                Slot::Text(offset) => TEXT + u64::from(offset),
            };
            slots.iter().map(address).chain([TRAP]).collect()
        };
        Watch {
            starts: all,
            main: targets(&spec.slots),
            sub: targets(&spec.sub_tables[0].1),
            frames: Vec::with_capacity(FRAMES),
            last: None,
            in_gate: false,
            lowest: u64::MAX,
            steps: 0,
        }
    }

    /// Before a run that begins with this rsp.
    pub fn begin(&mut self, rsp: u64) {
        self.frames.clear();
        self.frames.push(Frame { base: rsp, back: GONE });
        (self.last, self.in_gate, self.lowest) = (None, false, rsp);
    }

    /// Judges that control is at `rip` with `rsp`. `Ok(false)`: the run is over, or deeper than anybody looks.
    pub fn step(&mut self, rip: u64, rsp: u64) -> Result<bool, &'static str> {
        self.lowest = self.lowest.min(rsp);
        if self.in_gate {
            if (GATE..GATE + 16).contains(&rip) {
                return Ok(true);
            }
            self.in_gate = false;
            self.comes_back(rip, rsp)?;
        } else if let Some(last) = self.last {
            let offset = rip.wrapping_sub(TEXT) as usize;
            let what = self.starts.get(last).and_then(Option::as_ref).map(|start| start.what);
            let Some(what) = what else { return Err("no instruction") };
            if what.len > 1 && (last + 1..last + what.len).contains(&offset) && !self.is_start(offset) {
                // The second half of a unit.
                return Ok(true);
            }
            self.transition(what, TEXT + (last + what.len) as u64, rip, rsp)?;
        }
        self.steps += 1;
        self.arrive(rip, rsp)
    }

    fn is_start(&self, offset: usize) -> bool {
        self.starts.get(offset).is_some_and(Option::is_some)
    }

    /// Control goes from the instruction `what`, which ends at `next`, to `rip`.
    fn transition(&mut self, what: Description, next: u64, rip: u64, rsp: u64) -> Result<(), &'static str> {
        let to = |rel: i32| next.wrapping_add_signed(rel.into());
        let allowed = match what.flow {
            Flow::Next => rip == next,
            Flow::Conditional(rel) => rip == next || rip == to(rel),
            Flow::Check { abort, .. } | Flow::Meter { abort, .. } => rip == next || rip == to(abort),
            Flow::Jump(rel) => rip == to(rel),
            Flow::TableJump { mask: 0, .. } | Flow::TableCall { mask: 0, .. } => rip == GATE,
            Flow::TableJump { disp, .. } if disp != USER_TABLE => self.sub.contains(&rip),
            Flow::TableJump { .. } | Flow::TableCall { .. } => self.main.contains(&rip),
            Flow::Call(rel) => rip == to(rel),
            Flow::Return => return self.comes_back(rip, rsp),
            Flow::Trap => false,
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

    fn arrive(&mut self, rip: u64, rsp: u64) -> Result<bool, &'static str> {
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
        let Some(start) = self.starts.get(offset).and_then(Option::as_ref) else {
            return Err("executes something that is no instruction start");
        };
        let Some(frame) = self.frames.last() else { return Err("runs on after the outermost return") };
        if rsp != frame.base.wrapping_sub(start.depth) {
            return Err("rsp is not where the static depth says");
        }
        self.last = Some(offset);
        Ok(true)
    }

    /// Whether a `ud2` is at `rip`.
    pub fn is_trap(&self, rip: u64) -> bool {
        let start = self.starts.get(rip.wrapping_sub(TEXT) as usize).and_then(Option::as_ref);
        rip == TRAP || start.is_some_and(|start| start.what.flow == Flow::Trap)
    }

    /// Whether `rip` is in an instruction that may be running.
    pub fn is_running(&self, rip: u64) -> bool {
        let offset = rip.wrapping_sub(TEXT) as usize;
        self.last.is_some_and(|last| self.starts[last].as_ref().is_some_and(|s| (last..last + s.what.len).contains(&offset)))
    }

    /// Whether `rip` is at an instruction or the second half of a unit, for runs that nobody stepped through.
    pub fn may_be_running(&self, rip: u64) -> bool {
        let offset = rip.wrapping_sub(TEXT) as usize;
        let unit =
            |start: &Start| matches!(start.what.flow, Flow::TableCall { mask, .. } | Flow::TableJump { mask, .. } if mask != 0);
        let inside = |at: usize| self.starts[at].as_ref().is_some_and(|start| unit(start) && offset < at + start.what.len);
        self.is_start(offset) || offset < self.starts.len() && (offset.saturating_sub(16)..offset).any(inside)
    }

    /// Whether `rip` is in the trap stub or the gate.
    pub fn is_stub(&self, rip: u64) -> bool {
        (TRAP..GATE + 16).contains(&rip)
    }

    /// Whether the processor may refuse the instruction at `rip` for its operand's alignment (#GP).
    pub fn may_be_misaligned(&self, rip: u64, general: &[u64; 16]) -> bool {
        let start = self.starts.get(rip.wrapping_sub(TEXT) as usize).and_then(Option::as_ref);
        let Some(memory) = start.and_then(|start| start.what.memory).filter(|memory| memory.bytes >= 16) else { return false };
        let register = |number: Option<u8>| number.map_or(0, |n| general[usize::from(n)] as u32);
        let index = register(memory.index).wrapping_mul(memory.scale.into());
        let address = register(memory.base).wrapping_add(index).wrapping_add_signed(memory.disp);
        !address.is_multiple_of(memory.bytes.into())
    }
}
