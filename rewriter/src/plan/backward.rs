//! `std; rep movs; cld`, the copy from high to low addresses of hand-written `memmove`s: a loop. The direction flag itself does not exist in
//! rewritten code, so `std` is only carried over where this is all that it is for.

use super::{Piece, Planned, Planner, Target, encode, ok};
use crate::body::{Flow, Key, Node};
use iced_x86::{Code, Instruction, Mnemonic, Register};

impl Planner<'_> {
    /// The only node behind `node`, if nothing else leads there.
    fn only_next(&self, node: &Node) -> Option<(u32, &Node)> {
        let Flow::Next(next) = &node.flow else { return None };
        let id = self.body.node(*next);
        let before = self.body.nodes.iter().filter(|n| self.body.successors(n).contains(&id)).count();
        (before == 1).then(|| (id, &self.body.nodes[id as usize]))
    }

    /// Whether `node` is the `std` of the idiom.
    fn begins_backward(&self, node: &Node) -> bool {
        let Some((_, copy)) = self.only_next(node) else { return false };
        let clears = self.only_next(copy).is_some_and(|(_, after)| after.insn.mnemonic() == Mnemonic::Cld);
        node.insn.mnemonic() == Mnemonic::Std && clears && unit(&copy.insn).is_some()
    }

    /// `std`: nothing is left of it.
    pub(crate) fn set_direction(&mut self, node: &Node) -> Planned<()> {
        if !self.begins_backward(node) {
            return Err(("unsupported-instruction", format!("`{}` has a form only around one `rep movs`", node.insn)));
        }
        self.note("copies from high to low addresses: a loop");
        Ok(())
    }

    /// Whether `node` runs with the direction flag set.
    pub(crate) fn is_backward(&self, node: &Node) -> bool {
        let Some(offset) = node.key.at.offset.checked_sub(1) else { return false };
        let before = Key { at: crate::functions::CodeRef { offset, ..node.key.at }, ..node.key };
        let before = self.body.index.get(&before).map(|&id| &self.body.nodes[id as usize]);
        before.is_some_and(|std| self.begins_backward(std))
    }

    /// `rep movs` towards lower addresses.
    pub(crate) fn copy_backward(&mut self, id: u32, node: &Node) -> Planned<()> {
        let Some((load, store, size)) = unit(&node.insn) else { return Err(("internal", "not a copy".into())) };
        if self.live.after[id as usize].flags != 0 {
            return Err(("unsupported-instruction", format!("`{}` backwards with live flags", node.insn)));
        }
        self.note("copies from high to low addresses: a loop");
        let scratch = self.borrow(id, &node.insn, &[]);
        let part = super::string::sized(scratch.register, size);
        let (again, done) = (self.label(), self.label());
        let code = |insn: Result<Instruction, iced_x86::IcedError>| ok(insn.and_then(|i| encode::encode(&i)));
        self.keep(scratch, 0)?;
        self.piece(Piece::Label(again));
        self.bytes(code(Instruction::with2(Code::Test_rm64_r64, Register::RCX, Register::RCX))?);
        self.piece(Piece::Jump(Some(4), Target::Label(done)));
        self.bytes(code(Instruction::with2(load, part, encode::window(Register::RSI, 0)))?);
        self.bytes(code(Instruction::with2(store, encode::window(Register::RDI, 0), part))?);
        for (register, by) in [(Register::RSI, size), (Register::RDI, size), (Register::RCX, 1)] {
            self.bytes(ok(encode::lea(register, register, Register::None, 1, -by.cast_signed()))?);
        }
        self.piece(Piece::Jump(None, Target::Label(again)));
        self.piece(Piece::Label(done));
        self.give_back(scratch, 0)
    }
}

/// Load, store and bytes of a step of `rep movs` with 64-bit pointers.
fn unit(insn: &Instruction) -> Option<(Code, Code, u32)> {
    let plain = insn.has_rep_prefix() && !matches!(insn.segment_prefix(), Register::FS | Register::GS);
    let wide = insn.op_count() == 2 && insn.op0_kind() == iced_x86::OpKind::MemoryESRDI;
    match insn.code() {
        _ if !plain || !wide => None,
        Code::Movsb_m8_m8 => Some((Code::Mov_r8_rm8, Code::Mov_rm8_r8, 1)),
        Code::Movsw_m16_m16 => Some((Code::Mov_r16_rm16, Code::Mov_rm16_r16, 2)),
        Code::Movsd_m32_m32 => Some((Code::Mov_r32_rm32, Code::Mov_rm32_r32, 4)),
        Code::Movsq_m64_m64 => Some((Code::Mov_r64_rm64, Code::Mov_rm64_r64, 8)),
        _ => None,
    }
}
