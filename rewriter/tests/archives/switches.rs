//! Switches through tables in the order of their entries: where an entry was loaded, its number is computed from the index.

use crate::code::narrow;
use crate::compare::{Comparison, Context, Form};
use crate::original::{Meaning, Place};
use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use object::elf;

/// Instructions between the load of an entry and what uses it.
const NEAR: usize = 40;

/// A jump through a table that is said to have the entries of another in their order.
#[derive(Clone, Copy, Debug)]
pub struct Ordered {
    context: Context,
    /// Window offset of the original's table, if the code names it.
    start: Option<i64>,
    /// Bytes of an entry.
    width: usize,
    /// Where the jump's own table is.
    table: i64,
}

/// `index × scale + disp` into a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    to: Register,
    base: Register,
    index: Register,
    scale: u32,
    disp: i64,
}

impl Comparison<'_> {
    /// The form of a load of a table's entry; `None` if it is none.
    pub fn entry_load(&mut self, context: &Context, code: &[Instruction]) -> Option<Form> {
        let insn = &context.insn;
        let loads = matches!(insn.code(), Code::Mov_r64_rm64 | Code::Mov_r32_rm32 | Code::Movsxd_r64_rm32);
        let number = number(code).filter(|_| loads && insn.op1_kind() == OpKind::Memory)?;
        Some(self.judge_number(context, number))
    }

    fn judge_number(&mut self, context: &Context, number: Number) -> Form {
        let insn = &context.insn;
        let (width, to) = (insn.memory_size().size(), insn.op0_register());
        let left_out =
            if width == 4 && number.disp == 0 { Some(self.sum_behind(context).ok_or("nothing adds the table")?) } else { None };
        // A distance counts with its sign, all else has 32 bits.
        let wide = number.disp != 0 && to.is_gpr64();
        if number.to != if wide { to } else { narrow(to) } || width == 8 && number.disp != 0 {
            return Err("the number goes elsewhere".into());
        }
        is_index(insn, number, 8 / width as u32)?;
        let table = self.table_behind(context.entry.end).ok_or("no jump through a table behind it")?;
        let start = (number.disp != 0).then_some(-number.disp);
        self.sums.extend(left_out);
        self.ordered.push(Ordered { context: *context, start, width, table });
        Ok("an entry's number from its index")
    }

    /// The number in front of `jmp *table(…)`: the register that it is in.
    pub fn jump_number(&mut self, context: &Context, code: &[Instruction], transfer: &Instruction) -> Option<Register> {
        let number = number(code).filter(|n| n.disp == 0 && n.to.is_gpr32())?;
        is_index(&context.insn, number, 1).ok()?;
        let table = self.new.table_of(transfer);
        self.ordered.push(Ordered { context: *context, start: None, width: 8, table });
        Some(number.to.full_register())
    }

    /// The original's `add %table,%entry`, if nothing else looks at the entry before and the table's address is what the load used.
    fn sum_behind(&self, context: &Context) -> Option<Place> {
        let (insn, mut at) = (&context.insn, context.entry.old);
        let (to, mut length) = (insn.op0_register(), insn.len());
        let mut factory = InstructionInfoFactory::new();
        for _ in 0..NEAR {
            at.offset += length as i64;
            let next = self.old.decode(at);
            length = next.len();
            if factory.info(&next).used_registers().iter().any(|u| u.register().full_register() == to) {
                // Where the entry takes the place of the table's address, the code has it in another register as well.
                let from = [insn.memory_base(), insn.memory_index()].iter().any(|r| *r == next.op1_register() || *r == to);
                let adds = next.mnemonic() == Mnemonic::Add && next.op0_register() == to && next.op1_kind() == OpKind::Register;
                return (adds && from).then_some(at);
            }
            if next.flow_control() != FlowControl::Next {
                return None;
            }
        }
        None
    }

    /// The table of the next jump through one that control must come to, calls and branches not taken apart.
    fn table_behind(&self, mut at: u32) -> Option<i64> {
        for _ in 0..NEAR {
            let insn = *self.new.decode(at, (at + 16).min(self.new.text.len() as u32)).first()?;
            at = match insn.flow_control() {
                FlowControl::IndirectBranch => return Some(self.new.table_of(&insn)).filter(|t| self.new.tables.contains_key(t)),
                FlowControl::UnconditionalBranch => insn.near_branch_target() as u32,
                FlowControl::Return => return None,
                _ => insn.next_ip() as u32,
            };
        }
        None
    }

    /// Each table in order has the entries of one that code of the same object refers to, and of the named one if there is a name.
    pub fn judge_order(&mut self) {
        for ordered in std::mem::take(&mut self.ordered) {
            let object = ordered.context.entry.old.object;
            let starts =
                self.referred.iter().flat_map(|((o, section), starts)| starts.iter().map(move |start| (*o, *section, *start)));
            let named = |(o, section, start): &(usize, usize, i64)| match ordered.start {
                None => *o == object,
                Some(at) => self.bases.get(&(*o, *section)).is_some_and(|base| base + start == at),
            };
            if !starts.filter(named).any(|(o, section, start)| self.has_entries(ordered, o, section, start)) {
                self.wrong(&ordered.context.entry, "its table has the entries of no table in the data");
            }
        }
    }

    /// Whether the slots of the table are the entries at `start` of the section.
    fn has_entries(&self, ordered: Ordered, object: usize, section: usize, start: i64) -> bool {
        let (Some(original), Some(table)) = (self.old.objects[object].sections.get(section), self.new.tables.get(&ordered.table))
        else {
            return false;
        };
        let kind = if ordered.width == 8 { elf::R_X86_64_64 } else { elf::R_X86_64_PC32 };
        table.slots.iter().enumerate().all(|(i, slot)| {
            let place = start + (i * ordered.width) as i64;
            let Ok(found) = original.relocs.binary_search_by_key(&place, |r| r.offset as i64) else { return false };
            let reloc = &original.relocs[found];
            let back = if ordered.width == 8 { 0 } else { place - start };
            let target = match self.old.meaning(object, reloc, reloc.addend - back) {
                Meaning::Place(target) if reloc.kind == kind.0 => target,
                _ => return false,
            };
            match slot {
                Some(to) => self.lands(*to, target),
                None => self.new.map.iter().all(|e| e.old != target),
            }
        })
    }
}

/// `shl $n,%to`, `mov %from,%to; shl $n,%to`, or `lea`.
fn number(code: &[Instruction]) -> Option<Number> {
    let shifts = |i: &Instruction| i.code() == Code::Shl_rm32_imm8 && i.op0_kind() == OpKind::Register;
    let shifted = |from: Register, i: &Instruction| Number {
        to: i.op0_register(),
        base: Register::None,
        index: from.full_register(),
        scale: 1 << i.immediate8(),
        disp: 0,
    };
    match code {
        [shift] if shifts(shift) => Some(shifted(shift.op0_register(), shift)),
        [copy, shift] if shifts(shift) && copy.code() == Code::Mov_rm32_r32 && copy.op0_register() == shift.op0_register() => {
            Some(shifted(copy.op1_register(), shift))
        }
        [lea] if lea.mnemonic() == Mnemonic::Lea && lea.memory_base() != Register::RSP => Some(Number {
            to: lea.op0_register(),
            base: lea.memory_base(),
            index: lea.memory_index(),
            scale: lea.memory_index_scale(),
            disp: i64::from(lea.memory_displacement64() as i32),
        }),
        _ => None,
    }
}

/// Whether the number is what the original adds to its table's address, `wider` times.
fn is_index(insn: &Instruction, number: Number, wider: u32) -> Result<(), String> {
    let (base, index, scale) = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
    let (base_only, alone) = (number.index == Register::None, number.base == Register::None);
    let one = if base_only { (number.base, 1) } else { (number.index, number.scale) };
    let right = if !alone && !base_only {
        wider == 1 && (number.base, number.index, number.scale) == (base, index, scale)
    } else {
        one == (index, scale * wider) || one == (base, wider)
    };
    if right { Ok(()) } else { Err("another index".into()) }
}
