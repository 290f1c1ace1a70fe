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
}

impl<'t> Modes<'t> {
    pub(crate) fn new(layout: &'t Layout<'t>) -> Self {
        Modes { mode: layout.mode, layout, facts: Facts::NONE, credit: 0, record: layout.forget(0), passed: 0 }
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
        if let Action::Hint(_) = action {
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
        match usize::try_from(record.offset).unwrap_or(usize::MAX).cmp(&at) {
            core::cmp::Ordering::Greater => Ok(()),
            core::cmp::Ordering::Less => Err(Rule::BadForget),
            core::cmp::Ordering::Equal => {
                self.facts = Facts::at_label(self.facts.low() & record.keep);
                self.passed = self.passed.saturating_add(1);
                self.record = self.layout.forget(self.passed);
                Ok(())
            }
        }
    }

    /// Takes what the instruction costs; gives the credit that edges to it must bring. `entered`: whoever falls in has paid for it.
    fn pay(&mut self, action: Action, entered: bool) -> Result<u16, Rule> {
        match action {
            // Pays for itself; what is left is lost.
            Action::Meter { .. } => {
                self.credit = 0;
                Ok(0)
            }
            Action::Hint(_) => Ok(Extra::UNPAYABLE),
            // Edges come in free, since METER must follow.
            Action::Endbr | Action::Limit { .. } if entered => {
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
            if let Some(memory) = operands.and_then(memory_of)
                && memory.needs_check(self.mode)
                && !self.facts.allows(&memory, esp)
            {
                return Err(Rule::UncheckedAccess);
            }
            self.facts = self.facts.after(insn, operands, window, esp);
        }
        Ok(())
    }

    /// CHECK of `register` has passed.
    pub(crate) fn checked(&mut self, register: u8) {
        self.facts = self.facts.checked(register);
    }

    /// METER has charged for `charge` instructions, itself among them.
    pub(crate) fn charged(&mut self, charge: u16) {
        self.credit = charge.saturating_sub(1);
    }
}

/// Whether an edge that brings `extra` may lead back to `word`.
pub(crate) fn covers(extra: Extra, word: Word) -> Result<(), Rule> {
    let target = word.extra();
    if word.is_closed() || target.low() & !extra.low() != 0 {
        return Err(Rule::FactMismatch);
    }
    if extra.credit() < target.credit() { Err(Rule::Unpaid) } else { Ok(()) }
}
