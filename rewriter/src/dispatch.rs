//! Jump tables whose sub-table holds the entries in their original order: 8 × the index then stands for the entry, and nothing has to be loaded.
//!
//! A load of an entry gives the same number either way, in data and in code, so it does not matter what else the program does with it. Only equal
//! entries differ in their numbers: where the loaded value meets anything but its jump, equal entries need equal numbers, and the table stays as it
//! was. An index that leads out of the table is undefined in the original, since nothing there is an entry of a table of the same jump; here it
//! leads to some case or the trap.

use crate::body::{Body, Flow, Node};
use crate::functions::CodeRef;
use crate::program::{Program, SectionKind};
use crate::tables::{TableId, TableKind};
use crate::transfer::{self, Address};
use crate::values::{State, Value};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use std::collections::BTreeSet;

/// A load of a table's entry: `base + index × scale` is 8 × the entry's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryLoad {
    pub table: TableId,
    pub base: Register,
    pub index: Register,
    pub scale: u32,
}

/// What `insn`, at `at` with `state` before it, loads from a jump table of `body`, if one `lea` can give its number.
#[must_use]
pub fn entry_load(program: &Program, body: &Body, at: CodeRef, insn: &Instruction, state: &State) -> Option<EntryLoad> {
    let table = table_read(program, body, at, insn, state)?;
    let is_table = |r: Register| r.is_ip() || matches!(state.register(r), Value::Address(..));
    let (mut base, mut index, mut scale) = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
    if base.is_ip() || transfer::displacement_target(program, at, insn).is_none() && is_table(base) {
        base = Register::None;
    } else if transfer::displacement_target(program, at, insn).is_none() {
        (index, scale, base) = (base, 1, Register::None);
    }
    let plain = |r: Register| r == Register::None || r.is_gpr64() && r != Register::RSP;
    if !plain(base) || !plain(index) {
        return None;
    }
    // An entry of 4 bytes has a slot of 8.
    let wider = if body.tables[table as usize].kind == TableKind::Relative { 2 } else { 1 };
    if base != Register::None && index == Register::None {
        (index, scale, base) = (base, 1, Register::None);
    }
    scale *= if index == Register::None { 1 } else { wider };
    if scale > 8 || base != Register::None && wider > 1 {
        return None;
    }
    // The canonical form of a lone register is a base.
    if base == Register::None && scale == 1 {
        (base, index) = (index, Register::None);
    }
    Some(EntryLoad { table, base, index, scale })
}

/// The table whose first entry the memory operand of `insn` names, perhaps with an index.
fn table_read(program: &Program, body: &Body, at: CodeRef, insn: &Instruction, state: &State) -> Option<TableId> {
    let kind = match insn.memory_size().size() {
        8 => TableKind::Absolute,
        4 => TableKind::Relative,
        _ => return None,
    };
    if insn.mnemonic() == Mnemonic::Lea || matches!(insn.segment_prefix(), Register::FS | Register::GS) {
        return None;
    }
    let Address::Data { at: (section, offset), .. } = transfer::address(program, at, insn, state) else { return None };
    let fits = |t: &crate::tables::Table| t.section == section && i64::try_from(t.offset) == Ok(offset) && t.kind == kind;
    body.tables.iter().position(fits).map(|id| id as TableId)
}

/// Whether the sub-table of `table`, the only one of its jumps, may have the entries in their order.
#[must_use]
pub fn may_be_in_order(program: &Program, body: &Body, table: TableId) -> bool {
    let found = &body.tables[table as usize];
    let targets: Vec<CodeRef> = found.entries.iter().filter_map(|(_, to)| *to).collect();
    let different: BTreeSet<&CodeRef> = targets.iter().collect();
    program.section(found.section).kind == SectionKind::Rodata
        && (different.len() == targets.len() || only_jumped_through(program, body, table))
}

/// Whether entries of `table` are read into registers only, and nothing reads those but moves, the addition of the table's address (which the
/// analysis of values follows, or the body is refused) and jumps.
fn only_jumped_through(program: &Program, body: &Body, table: TableId) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let holds = |value: Value| matches!(value, Value::Code(set) | Value::Relative(set) if set >> table & 1 == 1);
    body.nodes.iter().all(|node| {
        let jumps = matches!(node.flow, Flow::Switch(Some(set)) if set >> table & 1 == 1);
        let reads_table =
            has_memory(&node.insn) && table_read(program, body, node.key.at, &node.insn, &node.state) == Some(table);
        if reads_table && !jumps && !is_plain_load(&node.insn) {
            return false;
        }
        let used = factory.info(&node.insn).used_registers();
        let mut read = used.iter().filter(|u| !matches!(u.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::None));
        let reads_entry = read.any(|u| u.register().is_gpr() && holds(node.state.register(u.register().full_register())));
        !reads_entry || jumps && node.insn.op0_kind() == OpKind::Register || moves(node) || sums(node)
    })
}

fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// `mov` or `movslq` from memory to a register.
#[must_use]
pub fn is_plain_load(insn: &Instruction) -> bool {
    let to = insn.op0_register();
    matches!(insn.mnemonic(), Mnemonic::Mov | Mnemonic::Movsxd)
        && insn.op1_kind() == OpKind::Memory
        && insn.op0_kind() == OpKind::Register
        && (to.is_gpr64() || to.is_gpr32())
}

/// A move between registers, which the analysis of values follows.
fn moves(node: &Node) -> bool {
    let registers = node.insn.op0_kind() == OpKind::Register && node.insn.op1_kind() == OpKind::Register;
    node.insn.mnemonic() == Mnemonic::Mov && registers && node.insn.op0_register().is_gpr64()
}

/// An addition into a register of 64 bits, or the extension of an entry in front of one.
fn sums(node: &Node) -> bool {
    let to = node.insn.op0_kind() == OpKind::Register && node.insn.op0_register().is_gpr64();
    let from = node.insn.op1_kind() != OpKind::Memory || node.insn.mnemonic() == Mnemonic::Lea;
    match node.insn.mnemonic() {
        Mnemonic::Cdqe => true,
        Mnemonic::Add | Mnemonic::Lea | Mnemonic::Movsxd => to && from,
        _ => false,
    }
}
