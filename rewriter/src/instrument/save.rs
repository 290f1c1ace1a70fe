//! Registers and flags kept for the length of a check where nothing is free.

use super::check::{copy, item, wide};
use super::code::Item;
use super::live::free;
use crate::count::COUNT_BIT;
use crate::liveness::Live;
use crate::plan::{K, Planned, encode, ok};
use iced_x86::{Register, RflagsBits};

/// Where a register waits: below the data stack's red zone, and below what the planner keeps there for the same instruction.
const SLOT: i32 = K - 128 - 8 * 8;
/// rax, which `lahf` and `seto` write.
const RAX: u8 = 0;

/// What must survive a check at one place.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    live: Live,
    /// Registers that the access names.
    named: u16,
    /// Registers that the check itself reads.
    read: u16,
}

/// Instructions in front and behind.
type Around = (Vec<Item>, Vec<Item>);

impl Keeping {
    /// At a place where `live` is live, for an access that names `named` and a check that reads `read` (masks of registers).
    #[must_use]
    pub fn new(live: Live, named: u16, read: u16) -> Keeping {
        Keeping { live, named, read }
    }

    /// A register for an address: a dead one, else one that the access does not name, with the code to keep it and to put it back.
    ///
    /// # Errors
    /// Bugs only.
    pub fn scratch(&self) -> Planned<(Register, Vec<Item>, Vec<Item>)> {
        // rax is wanted for the flags.
        let rax = 1 << RAX;
        if let Some(register) = free(self.live, rax | self.named).next() {
            return Ok((register, Vec::new(), Vec::new()));
        }
        let register = self.other(rax | self.named)?;
        Ok((register, vec![store(register, 0)?], vec![load(register, 0)?]))
    }

    /// The register to compare where `register` is to be checked while the flags lie in rax.
    #[must_use]
    pub fn checked(&self, register: u8) -> u8 {
        if register == RAX { self.copy_of_rax().number() as u8 } else { register }
    }

    /// Flags into rax in front of a check of `register` and back behind it; rax itself survives if it is live.
    ///
    /// # Errors
    /// Bugs only.
    pub fn flags(&self, register: u8) -> Planned<Around> {
        let overflow = u32::from(self.live.flags) & RflagsBits::OF != 0;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let needed = register == RAX || self.live.has(Register::RAX);
        let other = self.copy_of_rax();
        let spilled = self.live.has(other) || self.read >> other.number() & 1 == 1;
        if needed {
            if spilled {
                before.push(store(other, 1)?);
            }
            before.push(copy(other, Register::RAX)?);
        }
        before.push(item(&[0x9f])?);
        if overflow {
            before.push(item(&[0x0f, 0x90, 0xc0])?);
            // 1 + 127 overflows a signed byte, 0 + 127 does not.
            after.push(item(&[0x04, 0x7f])?);
        }
        after.push(item(&[0x9e])?);
        if needed {
            after.push(copy(Register::RAX, other)?);
            if spilled {
                after.push(load(other, 1)?);
            }
        }
        Ok((before, after))
    }

    /// Where rax waits: a dead register, else one whose own value waits on the stack.
    fn copy_of_rax(&self) -> Register {
        let taken = self.named | self.read | 1 << RAX;
        free(self.live, taken).next().or_else(|| self.other(taken).ok()).unwrap_or(Register::R11)
    }

    /// A register that is none of `taken`.
    fn other(&self, taken: u16) -> Planned<Register> {
        // Not r14 either: in metered text it counts.
        let usable = |n: &u8| (taken | COUNT_BIT) >> n & 1 == 0 && *n != super::known::RSP;
        (0..16).rev().find(usable).map(wide).ok_or_else(|| ("internal", "no register is left for a check".to_owned()))
    }
}

fn store(register: Register, slot: i32) -> Planned<Item> {
    item(&ok(encode::store(register, Register::RSP, SLOT - 8 * slot))?)
}

fn load(register: Register, slot: i32) -> Planned<Item> {
    item(&ok(encode::load(register, Register::RSP, SLOT - 8 * slot))?)
}
