//! Loads of entries of jump tables whose slots are in order: a number out of the index instead (see [`crate::dispatch`]).

use super::{Env, Planned, Planner, encode, ok};
use crate::body::{Body, Flow, Node};
use crate::count::{COUNT, names};
use crate::dispatch::{EntryLoad, entry_load, is_plain_load};
use crate::liveness::Liveness;
use crate::space::Group;
use crate::tables::TableKind;
use crate::values::Value;
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use std::collections::BTreeMap;

/// How far behind a load the addition of the table's address is looked for, instructions.
const NEAR: usize = 16;

/// The loads of `body` whose entry is a number but for the table's address, which an addition without another effect adds: the additions by load.
#[must_use]
pub fn needless_sums(env: Env<'_>, index: usize, live: &Liveness) -> BTreeMap<u32, u32> {
    let body = &env.chosen.bodies[index];
    if env.space.groups[index].iter().all(|group| !group.in_order) {
        return BTreeMap::new();
    }
    let mut arrivals = vec![0_u32; body.nodes.len()];
    for to in body.nodes.iter().flat_map(|node| body.successors(node)) {
        arrivals[to as usize] += 1;
    }
    let sum = |(id, node): (usize, &Node)| {
        let (_, load) = in_order(env, index, node)?;
        let relative = body.tables[load.table as usize].kind == TableKind::Relative;
        let behind = || sum_behind(body, live, &arrivals, id as u32, load);
        let sum = if relative && node.insn.mnemonic() == Mnemonic::Movsxd { behind() } else { None };
        sum.map(|sum| (id as u32, sum))
    };
    body.nodes.iter().enumerate().filter_map(sum).collect()
}

/// What `node` loads from a table whose slots are in order.
fn in_order<'a>(env: Env<'a>, index: usize, node: &Node) -> Option<(&'a Group, EntryLoad)> {
    let body = &env.chosen.bodies[index];
    if !is_plain_load(&node.insn) && !matches!(node.flow, Flow::Switch(_)) || node.insn.memory_size().size() < 4 {
        return None;
    }
    let load = entry_load(env.program, body, node.key.at, &node.insn, &node.state)?;
    env.space.group_of_table(index, load.table).filter(|group| group.in_order).map(|group| (group, load))
}

/// The addition of the table's address to what node `load` has loaded, if the way there is straight and nothing else looks at the value.
fn sum_behind(body: &Body, live: &Liveness, arrivals: &[u32], load: u32, what: EntryLoad) -> Option<u32> {
    let table = &body.tables[what.table as usize];
    let address = Value::Address(table.section, i64::try_from(table.offset).ok()?);
    let to = body.nodes[load as usize].insn.op0_register();
    let mut factory = InstructionInfoFactory::new();
    let mut at = load;
    for _ in 0..NEAR {
        let Flow::Next(next) = body.nodes[at as usize].flow else { return None };
        at = body.node(next);
        let node = &body.nodes[at as usize];
        let named = factory.info(&node.insn).used_registers().iter().any(|u| u.register().full_register() == to);
        let evicted = body.evicted.is_some() && names(&node.insn, COUNT);
        if arrivals[at as usize] != 1 || evicted {
            return None;
        }
        if named {
            let adds = node.insn.code() == Code::Add_rm64_r64 || node.insn.code() == Code::Add_r64_rm64;
            let registers = node.insn.op0_register() == to && node.insn.op1_kind() == OpKind::Register;
            let sum = adds && registers && node.state.register(node.insn.op1_register()) == address;
            return (sum && live.after[at as usize].flags == 0).then_some(at);
        }
    }
    None
}

impl Planner<'_> {
    /// Plans node `id` if it loads an entry of a table whose slots are in order; false if it does not.
    pub(crate) fn entry_load(&mut self, id: u32, node: &Node) -> Planned<bool> {
        if !is_plain_load(&node.insn) {
            return Ok(false);
        }
        self.entry_number(id, node, node.insn.op0_register())
    }

    /// The number of the entry that `node` loads into `to`, as the program has it before it adds the table's address; false if its slots are in no
    /// order.
    pub(crate) fn entry_number(&mut self, id: u32, node: &Node, to: Register) -> Planned<bool> {
        let Some((_, load)) = in_order(self.env, self.index, node) else { return Ok(false) };
        let table = &self.body.tables[load.table as usize];
        let start = self.env.space.start_of_table(table).ok_or_else(|| ("internal", "a table without a place".to_owned()))?;
        let summed = table.kind == TableKind::Relative && !self.sums.contains_key(&id);
        let disp = if summed { -start } else { 0 };
        let disp = i32::try_from(disp).map_err(|_| ("address-range", format!("{disp:#x} does not fit 32 bits")))?;
        self.note("switch: its case's number computed from the index, not loaded");
        if load.base == Register::None && load.index == Register::None {
            self.constant(to, disp.into())?;
            return Ok(true);
        }
        let to = if summed { to } else { encode::narrow(to) };
        if disp == 0 && load.base == Register::None && self.live.after[id as usize].flags == 0 {
            self.shifted(to, encode::narrow(load.index), load.scale)?;
        } else {
            let bytes = ok(encode::lea(to, load.base, load.index, load.scale, disp))?;
            self.bytes(bytes);
        }
        Ok(true)
    }

    /// `to = from × scale`, 32 bits: shorter than `lea`, which has no form without 4 bytes of displacement, and a cycle faster.
    fn shifted(&mut self, to: Register, from: Register, scale: u32) -> Planned<()> {
        if to != from {
            let copy = ok(Instruction::with2(Code::Mov_rm32_r32, to, from).and_then(|i| encode::encode(&i)))?;
            self.bytes(copy);
        }
        let shift = Instruction::with2(Code::Shl_rm32_imm8, to, scale.trailing_zeros()).and_then(|i| encode::encode(&i));
        self.bytes(ok(shift)?);
        Ok(())
    }

    /// Whether node `id` only adds the address of a table to an entry that is a number without it.
    pub(crate) fn is_needless_sum(&self, id: u32) -> bool {
        self.sums.values().any(|sum| *sum == id)
    }
}
