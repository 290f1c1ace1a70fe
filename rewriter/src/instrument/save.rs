//! Registers and flags kept for the length of a check or of a masked access where nothing is free.

use super::check::{copy, item, wide};
use super::code::Item;
use super::live::free;
use crate::liveness::Live;
use crate::plan::{Planned, encode, ok};
use iced_x86::{Register, RflagsBits};

/// From the data stack pointer, where a register waits: below the data stack's red zone, and below what the planner keeps there for the same instruction.
const SLOT: i32 = -128 - 8 * 8;
/// rax, which holds the flags: all but overflow in ah, that in al.
const RAX: u8 = 0;
const LAHF: [u8; 1] = [0x9f];
const SAHF: [u8; 1] = [0x9e];
const SETO_AL: [u8; 3] = [0x0f, 0x90, 0xc0];
const ADD_127_AL: [u8; 2] = [0x04, 0x7f];

/// What must survive a check at one place.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    live: Live,
    /// Registers that the access or the check names, or that nobody may write.
    taken: u16,
    /// Displacement from native to data stack.
    stack_shift: i32,
}

/// Instructions in front and behind.
type Around = (Vec<Item>, Vec<Item>);

impl Keeping {
    /// At a place where `live` is live, for an access and a check that need the registers of `taken`.
    #[must_use]
    pub fn new(live: Live, taken: u16, stack_shift: i32) -> Keeping {
        Keeping { live, taken, stack_shift }
    }

    /// A register for an address: a dead one, else one of the others with the code to keep it and to put it back. Never rax, which is wanted for
    /// the flags.
    ///
    /// # Errors
    /// Bugs only.
    pub fn scratch(&self) -> Planned<(Register, Vec<Item>, Vec<Item>)> {
        let taken = self.taken | 1 << RAX;
        if let Some(register) = free(self.live, taken).next() {
            return Ok((register, Vec::new(), Vec::new()));
        }
        let register = other(taken)?;
        Ok((register, vec![self.store(register, 0)?], vec![self.load(register, 0)?]))
    }

    /// Flags into rax in front of a check and back behind it; rax itself survives if it is live.
    ///
    /// # Errors
    /// Bugs only.
    pub fn flags(&self) -> Planned<Around> {
        let (mut before, mut after) = (vec![item(&LAHF)?], vec![item(&SAHF)?]);
        if u32::from(self.live.flags) & RflagsBits::OF != 0 {
            before.push(item(&SETO_AL)?);
            // 1 + 127 overflows a signed byte, 0 + 127 does not.
            after.insert(0, item(&ADD_127_AL)?);
        }
        if self.live.has(Register::RAX) {
            let taken = self.taken | 1 << RAX;
            let dead = free(self.live, taken).next();
            let copy_of_rax = dead.map_or_else(|| other(taken), Ok)?;
            before.insert(0, copy(copy_of_rax, Register::RAX)?);
            after.push(copy(Register::RAX, copy_of_rax)?);
            if dead.is_none() {
                before.insert(0, self.store(copy_of_rax, 1)?);
                after.push(self.load(copy_of_rax, 1)?);
            }
        }
        Ok((before, after))
    }

    fn place(&self, slot: i32) -> i32 {
        self.stack_shift + SLOT - 8 * slot
    }

    fn store(&self, register: Register, slot: i32) -> Planned<Item> {
        item(&ok(encode::store(register, Register::RSP, self.place(slot)))?)
    }

    fn load(&self, register: Register, slot: i32) -> Planned<Item> {
        item(&ok(encode::load(register, Register::RSP, self.place(slot)))?)
    }
}

/// A register that is none of `taken`.
fn other(taken: u16) -> Planned<Register> {
    let usable = |n: &u8| taken >> n & 1 == 0 && *n != super::known::RSP;
    (0..16).rev().find(usable).map(wide).ok_or_else(|| ("internal", "no register is left for a check".to_owned()))
}
