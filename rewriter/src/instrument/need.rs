//! Which check, if any, an access needs.

use super::code::Op;
use super::known::{Known, RSP};
use cordon_checker::{MemoryOperand, Mode};

/// A base of 2 GiB or more with a displacement from here on cannot lead back into memory: image and loader leave the last 64 KiB below 2 GiB free.
const LEAST: i64 = -0x1_0000;
/// A negative base with at most so much added stays below the null zone's end.
pub(super) const MOST: i64 = 0x1_0000;

/// The check that makes an access exact and reports nothing that native code may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Of the base register alone.
    Base(u8),
    /// Of the whole address, computed into a scratch register through which the access then goes.
    Address,
}

/// What `op` needs where `known` holds before it; `None` if the checker accepts it as it is.
#[must_use]
pub fn need(op: &Op, known: Known, mode: Mode) -> Option<Need> {
    let memory = op.what.memory?;
    if !memory.needs_check(mode) || known.facts.allows(&memory, known.esp) {
        return None;
    }
    Some(match memory.base {
        Some(base) if base != RSP && base_tells(&memory, known) => Need::Base(base),
        _ => Need::Address,
    })
}

/// Whether an address is astray whenever its base is, so that checking the base reports nothing else.
fn base_tells(memory: &MemoryOperand, known: Known) -> bool {
    let most = match memory.index {
        None => 0,
        Some(index) if known.tiny >> index & 1 == 1 => 0xff,
        Some(index) if known.facts.small() >> index & 1 == 1 => 0xffff,
        Some(_) => return false,
    };
    let disp = i64::from(memory.disp);
    disp >= LEAST && disp + most * i64::from(memory.scale) <= MOST
}
