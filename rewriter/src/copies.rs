//! Code that is reached at several depths: copied for each of a few, or with a virtual stack pointer from where it allocates.

use crate::body::{Context, Discovery, Flow, Key};
use crate::functions::{CodeRef, decode};
use crate::transfer;
use crate::values::State;
use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, Register};
use std::collections::{BTreeMap, BTreeSet};

/// Instructions between a join of two depths and the one that sets rsp.
const MAX_EPILOGUE: usize = 16;
/// Depths of one function for which its code may be copied.
const MAX_COPIES: usize = 4;

impl Discovery<'_> {
    /// Sends arrivals at another depth than the usual one to their own copy of an instruction that resets rsp.
    pub(crate) fn redirect(&self, flow: Flow, after: &State) -> Flow {
        let to = |key: Key| match self.index.get(&key).map(|&id| &self.nodes[id as usize]) {
            Some(known) if known.state.depth != after.depth && self.may_copy(known.key.at, after.depth) => {
                Key { context: Context { deeper: after.depth, ..key.context }, ..key }
            }
            _ => key,
        };
        match flow {
            Flow::Next(key) => Flow::Next(to(key)),
            Flow::Jump(key) => Flow::Jump(to(key)),
            Flow::Branch(a, b) => Flow::Branch(to(a), to(b)),
            Flow::Call(out, Some(key)) => Flow::Call(out, Some(to(key))),
            Flow::CallIndirect(key) => Flow::CallIndirect(to(key)),
            other => other,
        }
    }

    /// Whether code that is reached at another depth as well gets a copy for `depth`: an epilogue that sets rsp anew, and, at a few depths
    /// for each function, anything (`alloca` of a constant size in one arm of a conditional).
    fn may_copy(&self, at: CodeRef, depth: i32) -> bool {
        self.leads_to_reset(at) || self.copies.contains(&depth) || self.copies.len() < MAX_COPIES
    }

    /// Whether rsp is set anew within a few instructions that do not use it.
    pub(crate) fn leads_to_reset(&self, mut at: CodeRef) -> bool {
        let mut factory = InstructionInfoFactory::new();
        for _ in 0..MAX_EPILOGUE {
            let insn = decode(self.program, at);
            if transfer::resets_rsp(&insn) {
                return true;
            }
            let uses_rsp = factory.info(&insn).used_registers().iter().any(|u| u.register().full_register() == Register::RSP);
            if insn.code() == Code::INVALID || insn.flow_control() != FlowControl::Next || uses_rsp {
                return false;
            }
            at.offset += insn.len() as u64;
        }
        false
    }

    /// Where memory is allocated at several depths, as in a loop: what takes a constant number of bytes from rsp (gcc), else what copies rsp
    /// to count down from there (clang).
    pub(crate) fn growing(&self) -> BTreeSet<CodeRef> {
        let mut depths: BTreeMap<CodeRef, BTreeSet<i32>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|n| !n.state.dynamic) {
            depths.entry(node.key.at).or_default().insert(node.state.depth);
        }
        let several = |wanted: fn(&Instruction) -> bool| -> BTreeSet<CodeRef> {
            let all = depths.iter().filter(|(at, found)| found.len() > 1 && wanted(&decode(self.program, **at)));
            all.map(|(at, _)| *at).collect()
        };
        let taken = several(|i| i.mnemonic() == Mnemonic::Sub && i.op0_register() == Register::RSP);
        let copies =
            || several(|i| i.mnemonic() == Mnemonic::Mov && i.op1_register() == Register::RSP && i.op0_register().is_gpr64());
        if taken.is_empty() { copies() } else { taken }
    }
}
