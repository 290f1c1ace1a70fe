//! `setjmp` and `longjmp`, exact: the gates `cordon.setjmp` and `cordon.longjmp`.
//!
//! setjmp's gate writes the callee-saved registers, the low half of rsp and the text offset of its return address to a record in the window.
//! The record is the handler's to forge; nothing in it is believed. longjmp goes to text offset R with depth d and pushed set p, as the checker
//! knows them there, only if all of this holds:
//!
//! 1. R follows a call of `cordon.setjmp`.
//! 2. A function of the running entry is active whose return address lies at (record's rsp) + d. The native stack is walked from longjmp's own
//!    return address: each return address has a static depth, which gives the place of the next one, up to the host's.
//! 3. The call that this function waits in returns to a place whose pushed set contains p, and there is native stack down to depth d.
//!
//! Then the jump is one that the checker would have accepted there: the call returns to where 3 says, `add` or `sub $n,%rsp` brings rsp to depth
//! d, which drops slots or makes unwritten ones (R10) and so keeps those of p, and a direct jump goes to R (R13 to R16: R is an instruction
//! start, the depth is equal, the set a superset). The slots that p names hold what was pushed, for callees only write below. Match mode: R
//! follows a call, which ends all that is known (R25), and where more leads to R only what all bring is kept: nothing is known there. Metered:
//! the code behind R may run on what the METER before it paid, at most 1022 units (R29); they are paid again here, by [`FUEL`]. The registers
//! come from the record: values of the handler's own. r14 does not, where it counts; rdx takes its word there, for the rewriter's use.
//!
//! A walk costs a short search for each frame. Frames that it passes are gone afterwards, so all walks together cost no more than the calls that
//! made these frames.

use crate::context::{Context, HOME, flag};
use crate::image::states::State;
use crate::window::Inner;
use std::fmt;
use std::ptr;

/// What one longjmp takes in metered text: more than any credit that may be left where it goes.
pub const FUEL: u64 = 1024;

/// Words of [`crate::context::Frame::record`] that are not registers which the gate restores.
const R14: usize = 4;
const STACK: usize = 6;
const RETURN: usize = 7;

/// Why a `longjmp` could not go where its record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum BadJump {
    /// The record names no place behind a call of `setjmp`.
    NoReturnOfSetjmp,
    /// No function of this call waits where the record says: it has returned, it was called outside of a host function that called back, or the
    /// record was changed.
    NotActive,
    /// The function is there, but has popped what the code behind `setjmp` counts on.
    Popped,
    /// The native stack is too full for the depth at which `setjmp` was called.
    NoRoom,
}

impl fmt::Display for BadJump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadJump::NoReturnOfSetjmp => "the record names no return from setjmp",
            BadJump::NotActive => {
                "the function that called setjmp has returned or is not within this entry, or the record was changed"
            }
            BadJump::Popped => "the function that called setjmp has popped what it had pushed then",
            BadJump::NoRoom => "there is no native stack left to where it was at setjmp",
        })
    }
}

/// What longjmp makes setjmp return: the value in esi, or 1 for 0, and above it what eax was at setjmp.
pub fn result(cx: &Context) -> u64 {
    let value = (cx.frame.args[1] as u32).max(1);
    cx.frame.record[STACK] & !0xffff_ffff | u64::from(value)
}

/// A place to which a running longjmp may go.
#[derive(Clone, Copy, Debug)]
pub struct Landing {
    /// Address at which the code goes on.
    target: u64,
    /// rsp there.
    rsp: u64,
    /// Return addresses between rsp now and the function's own: those whose calls end here.
    popped: u64,
}

impl Landing {
    /// Where the record that longjmp's gate has read leads, from the gate's stack pointer.
    ///
    /// # Errors
    /// The first of the conditions above that does not hold.
    pub fn find(window: &Inner, cx: &Context) -> Result<Landing, BadJump> {
        let record = &cx.frame.record;
        let place = u32::try_from(record[RETURN]).ok().filter(|at| window.image.is_landing(*at));
        let place = place.ok_or(BadJump::NoReturnOfSetjmp)?;
        let wanted = window.image.states().at(place);
        let (base, popped, state) = waiting(window, cx, (record[STACK] as u32).wrapping_add(wanted.depth))?;
        if !state.reaches(wanted) {
            return Err(BadJump::Popped);
        }
        let rsp = base - u64::from(wanted.depth);
        if rsp < cx.gate_limit {
            return Err(BadJump::NoRoom);
        }
        Ok(Landing { target: cx.text_start + u64::from(place), rsp, popped })
    }

    /// Makes the running gate go there.
    ///
    /// # Safety
    /// `cx` is the context that the landing was found in, its native stack is as it was then, and the gate is about to be returned to.
    pub unsafe fn go(self, cx: &mut Context) {
        // SAFETY: mapped native stack below rsp after the jump, which nothing needs any more.
        unsafe { *((self.rsp - 8) as *mut u64) = self.target };
        cx.frame.gate_rsp = self.rsp;
        cx.frame.popped = self.popped;
        if cx.flags & flag::METERED == 0 {
            cx.frame.fuel = cx.frame.record[R14];
        }
        cx.flags |= flag::RESUME;
    }
}

/// The active function whose return address lies where the low half of an address says: that address, the return addresses below it, and
/// the state to which the call returns that it waits in.
fn waiting(window: &Inner, cx: &Context, base_low: u32) -> Result<(u64, u64, State), BadJump> {
    let states = window.image.states();
    let text = window.image.text_range();
    let top = ptr::from_ref(cx) as u64;
    let high = top - HOME;
    let (mut at, mut popped) = (cx.frame.gate_rsp, 0);
    while at < top {
        // SAFETY: at or above the stack pointer of the gate, below the context: mapped native stack on which nothing runs now.
        let word = unsafe { *(at as *const u64) };
        if !text.contains(&word) {
            break;
        }
        let state = states.at((word - text.start) as u32);
        popped += 1;
        at += 8 + u64::from(state.depth);
        if at >= high + u64::from(base_low) {
            let found = at == high + u64::from(base_low);
            return if found { Ok((at, popped, state)) } else { Err(BadJump::NotActive) };
        }
    }
    Err(BadJump::NotActive)
}
