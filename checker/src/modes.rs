//! What the walk adds for match, metered and stores-only text (SPEC "Match", "Metered"): facts about registers and credit along the scan.

use crate::decode::{Action, Insn, Operands, Window, writes};
use crate::describe::memory_of;
use crate::facts::Facts;
use crate::layout::{Forget, Layout};
use crate::policy::Mode;
use crate::state::{Extra, Word};
use crate::verdict::Rule;

/// The bit of r14 in a mask of registers.
const COUNT: u16 = 1 << 14;

/// Facts and credit on the way out of the last instruction.
pub(crate) struct Modes<'t> {
    mode: Mode,
    layout: &'t Layout<'t>,
    facts: Facts,
    /// Instructions paid for; 0 in text that is not metered.
    credit: u16,
    /// The first forget record that the scan has not reached, and its index.
    record: Option<Forget>,
    passed: usize,
    /// Its offset, or one past every text.
    record_at: usize,
}

impl<'t> Modes<'t> {
    pub(crate) fn new(layout: &'t Layout<'t>) -> Self {
        let record = layout.forget(0);
        Modes { mode: layout.mode, layout, facts: Facts::NONE, credit: 0, record, passed: 0, record_at: offset_of(record) }
    }

    /// What an edge from the last instruction brings.
    pub(crate) fn edge(&self) -> Extra {
        Extra::new(self.facts.low(), self.credit)
    }

    /// Offset of the forget record that the scan has not reached, if there is one.
    pub(crate) fn unused_record(&self) -> Option<u32> {
        self.record.map(|record| record.offset)
    }

    /// Joins what leads to the instruction at `at`, of which `seen` tells the edges from before; `fell`: control falls into it. Gives what
    /// edges from behind must bring, and whether none may come.
    pub(crate) fn arrive(&mut self, at: usize, action: Action, seen: Word, fell: bool) -> Result<(Extra, bool), Rule> {
        let paid = self.credit;
        if action == Action::Hint {
            // Nobody pays for a hint, so none may run: control comes in behind it.
            if self.mode.metered && seen.is_seeded() {
                return Err(Rule::Hint);
            }
            (self.facts, self.credit) = (Facts::NONE, 0);
        } else if seen.is_seeded() {
            let met = if fell { self.edge().meet(seen.extra()) } else { seen.extra() };
            (self.facts, self.credit) = (Facts::at_label(met.low()), met.credit());
        } else if !fell {
            (self.facts, self.credit) = (Facts::NONE, 0);
        }
        self.forget(at)?;
        if action == Action::Ud2 {
            // Nothing runs behind it.
            return Ok((Extra::NONE, false));
        }
        let credit = if self.mode.metered { self.pay(action, !fell || paid > 0)? } else { 0 };
        Ok((Extra::new(self.facts.low(), credit), self.facts.is_local()))
    }

    /// Applies the forget record for `at`.
    fn forget(&mut self, at: usize) -> Result<(), Rule> {
        let Some(record) = self.record else { return Ok(()) };
        match self.record_at.cmp(&at) {
            core::cmp::Ordering::Greater => Ok(()),
            core::cmp::Ordering::Less => Err(Rule::BadForget),
            core::cmp::Ordering::Equal => {
                self.facts = Facts::at_label(self.facts.low() & record.keep);
                self.passed = self.passed.saturating_add(1);
                self.record = self.layout.forget(self.passed);
                self.record_at = offset_of(self.record);
                Ok(())
            }
        }
    }

    /// Takes what the instruction costs; gives the credit that edges to it must bring. `entered`: whoever falls in has paid for it.
    #[inline(always)]
    fn pay(&mut self, action: Action, entered: bool) -> Result<u16, Rule> {
        match action {
            // Pays for itself; what is left is lost.
            Action::Meter => {
                self.credit = 0;
                Ok(0)
            }
            Action::Hint => Ok(Extra::UNPAYABLE),
            // Edges come in free, since METER must follow.
            Action::Endbr | Action::Limit | Action::EndbrLimit if entered => {
                self.credit = 0;
                Ok(0)
            }
            _ => {
                let credit = self.credit;
                self.credit = credit.checked_sub(1).ok_or(Rule::Unpaid)?;
                Ok(credit)
            }
        }
    }

    /// Judges what the instruction touches by what is known in front of it, and steps over it. `esp`: the greatest low half of rsp in
    /// front of it.
    pub(crate) fn step(&mut self, insn: &Insn, operands: Option<&Operands>, window: &Window, esp: u32) -> Result<(), Rule> {
        if self.mode.metered && operands.is_some_and(|operands| writes(operands) & COUNT != 0) {
            return Err(Rule::CountWritten);
        }
        if self.mode.matched {
            if operands.is_some_and(|operands| !self.allows(operands, esp)) {
                return Err(Rule::UncheckedAccess);
            }
            self.facts = self.facts.after(insn, operands, window, esp);
        }
        Ok(())
    }

    /// Whether nothing but falling through leads to the instruction at `at`, if no edge does.
    #[inline(always)]
    pub(crate) fn is_straight(&self, at: usize) -> bool {
        self.record_at > at
    }

    /// Goes on to an instruction, neither a hint nor `ud2`, to which nothing but falling through leads; gives what edges from behind must
    /// bring, and whether none may come.
    #[inline(always)]
    pub(crate) fn go_on(&mut self, action: Action) -> Result<(Extra, bool), Rule> {
        let entered = self.credit > 0;
        let credit = if self.mode.metered { self.pay(action, entered)? } else { 0 };
        Ok((Extra::new(self.facts.low(), credit), self.facts.is_local()))
    }

    /// Judges an instruction that falls through and writes nothing but its operands, to which nothing but falling through leads; gives what
    /// edges from behind must bring, and whether none may come.
    #[inline(always)]
    pub(crate) fn pass(&mut self, operands: &Operands, window: &Window, len: usize, esp: u32) -> Result<(Extra, bool), Rule> {
        let known = self.go_on(Action::Next)?;
        let written = writes(operands);
        if self.mode.metered && written & COUNT != 0 {
            return Err(Rule::CountWritten);
        }
        if self.mode.matched {
            if let Some(memory) = &operands.memory
                && !self.facts.allows_any(memory)
                && !self.allows(operands, esp)
            {
                return Err(Rule::UncheckedAccess);
            }
            self.facts = self.facts.behind(operands, written, window, len, esp);
        }
        Ok(known)
    }

    /// Whether the memory operand, if there is one, is exact or need not be.
    fn allows(&self, operands: &Operands, esp: u32) -> bool {
        memory_of(operands).is_none_or(|memory| !memory.needs_check(self.mode) || self.facts.allows(&memory, esp))
    }

    /// CHECK of `register` has passed.
    pub(crate) fn checked(&mut self, register: u32) {
        self.facts = self.facts.checked(u8::try_from(register).unwrap_or(u8::MAX));
    }

    /// METER has charged for `charge` instructions, itself among them.
    pub(crate) fn charged(&mut self, charge: u32) {
        self.credit = u16::try_from(charge).unwrap_or(0).saturating_sub(1);
    }
}

/// Where the record is, as an offset past every text if there is none.
fn offset_of(record: Option<Forget>) -> usize {
    record.and_then(|record| usize::try_from(record.offset).ok()).unwrap_or(usize::MAX)
}

/// Whether an edge that brings `extra` may lead back to `word`.
pub(crate) fn covers(extra: Extra, word: Word) -> Result<(), Rule> {
    let target = word.extra();
    if word.is_closed() || target.low() & !extra.low() != 0 {
        return Err(Rule::FactMismatch);
    }
    if extra.credit() < target.credit() { Err(Rule::Unpaid) } else { Ok(()) }
}
