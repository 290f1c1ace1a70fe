//! Signals that a program sends itself. None comes from outside, so blocking one changes nothing.

use crate::guest::{Answer, Guest};
use rustix::io::Errno;

/// Numbers 1 … 64.
const SIGNALS: usize = 64;
/// Bytes of the kernel's `struct sigaction`: handler, flags, restorer, mask.
const ACTION: usize = 32;
/// The handler wants three arguments.
const SA_SIGINFO: u64 = 4;
/// Handler words that are none.
const DEFAULT: u64 = 0;
const IGNORE: u64 = 1;
pub const SIGPIPE: i32 = 13;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
/// SIGCHLD, SIGCONT, SIGURG, SIGWINCH: nothing happens by default.
const HARMLESS: [i32; 4] = [17, 18, 23, 28];

/// What a signal does to the program that sends it to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// It ends.
    End,
    /// The function of this code pointer is called.
    Call(u64),
}

/// The actions that the program set.
#[derive(Debug)]
pub struct Signals {
    actions: [[u8; ACTION]; SIGNALS],
}

impl Default for Signals {
    fn default() -> Self {
        Signals { actions: [[0; ACTION]; SIGNALS] }
    }
}

fn index(signal: i32) -> Result<usize, Errno> {
    usize::try_from(signal).ok().and_then(|s| s.checked_sub(1)).filter(|s| *s < SIGNALS).ok_or(Errno::INVAL)
}

impl Signals {
    /// `rt_sigaction`.
    pub fn action(&mut self, guest: &mut Guest<'_, '_>, signal: i32, new: u64, old: u64) -> Answer {
        let at = index(signal)?;
        let before = self.actions[at];
        if new != 0 {
            if signal == SIGKILL || signal == SIGSTOP {
                return Err(Errno::INVAL);
            }
            self.actions[at] = guest.get(new)?;
        }
        if old != 0 {
            guest.write(old, &before)?;
        }
        Ok(0)
    }

    /// What `signal` does.
    ///
    /// # Errors
    /// `EINVAL` for a number that is none, `ENOSYS` for a handler that wants more than the signal's number.
    pub fn effect(&self, signal: i32) -> Result<Effect, Errno> {
        if signal == 0 {
            return Ok(Effect::Nothing);
        }
        let action = &self.actions[index(signal)?];
        let word = |at: usize| action[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match word(0) {
            DEFAULT if HARMLESS.contains(&signal) => Ok(Effect::Nothing),
            DEFAULT => Ok(Effect::End),
            IGNORE => Ok(Effect::Nothing),
            _ if word(8) & SA_SIGINFO != 0 => Err(Errno::NOSYS),
            handler => Ok(Effect::Call(handler)),
        }
    }
}
