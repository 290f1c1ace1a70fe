//! AVX2 gathers: a vector of addresses has no accepted form, so each element is loaded by itself (SDM, VGATHER*).
//!
//! Index, mask and destination wait in memory below the red zone; elements whose mask bit is clear are not touched, neither here nor there.

use super::{Borrow, Piece, Planned, Planner, Target, encode, ok};
use crate::body::Node;
use iced_x86::{Code, Instruction, OpKind, Register};

/// Where the three vectors wait, counted from the data stack's pointer: below everything that planning and instrumenting put there.
const INDEX: i32 = -640;
const MASK: i32 = INDEX + 32;
const DATA: i32 = MASK + 32;
/// Condition code of `jns`.
const NOT_SIGN: u8 = 9;

/// The parts of a gather.
struct Gather {
    to: Register,
    mask: Register,
    index: Register,
    /// Bytes of one index and of one element.
    index_size: i32,
    size: i32,
    count: i32,
}

impl Gather {
    /// The parts of `insn`, if it is an AVX2 gather.
    fn of(insn: &Instruction) -> Option<Gather> {
        let vex = insn.is_vsib() && insn.op_count() == 3 && insn.op2_kind() == OpKind::Register;
        let (to, index) = (insn.op0_register(), insn.memory_index());
        if !vex || !(to.is_xmm() || to.is_ymm()) || !(index.is_xmm() || index.is_ymm()) {
            return None;
        }
        let index_size = if insn.is_vsib64() { 8 } else { 4 };
        let size = i32::try_from(insn.memory_size().size()).ok().filter(|s| matches!(s, 4 | 8))?;
        let count = (bytes(to) / size).min(bytes(index) / index_size);
        Some(Gather { to, mask: insn.op2_register(), index, index_size, size, count })
    }
}

/// Bytes of a vector register.
fn bytes(register: Register) -> i32 {
    if register.is_ymm() { 32 } else { 16 }
}

impl Planner<'_> {
    /// Plans a gather; false for anything else.
    pub(crate) fn gather(&mut self, id: u32, node: &Node) -> Planned<bool> {
        let insn = &node.insn;
        let Some(g) = Gather::of(insn) else { return Ok(false) };
        if self.live.after[id as usize].flags != 0 {
            return Err(("unsupported-instruction", format!("`{insn}` with live flags")));
        }
        let index = self.borrow(id, insn, &[]);
        let value = self.borrow(id, insn, &[index.register]);
        let value_part = if g.size == 4 { encode::narrow(value.register) } else { value.register };
        let load = self.element(id, node, index.register, value_part)?;
        self.note("gather: one load for each element");
        self.keep(index, 0)?;
        self.keep(value, 1)?;
        for (register, at) in [(g.index, INDEX), (g.mask, MASK), (g.to, DATA)] {
            self.vector(register, at, true)?;
        }
        for i in 0..g.count {
            let skip = self.label();
            let sign = encode::window(Register::RSP, self.k() + MASK + i * g.size);
            let compare = if g.size == 4 { Code::Cmp_rm32_imm8 } else { Code::Cmp_rm64_imm8 };
            let widen = if g.index_size == 4 { Code::Movsxd_r64_rm32 } else { Code::Mov_r64_rm64 };
            let own = encode::window(Register::RSP, self.k() + INDEX + i * g.index_size);
            let test = ok(Instruction::with2(compare, sign, 0).and_then(|t| encode::encode(&t)))?;
            let number = ok(Instruction::with2(widen, index.register, own).and_then(|n| encode::encode(&n)))?;
            let store = ok(encode::store(value_part, Register::RSP, self.k() + DATA + i * g.size))?;
            self.bytes(test);
            self.piece(Piece::Jump(Some(NOT_SIGN), Target::Label(skip)));
            self.bytes(number);
            self.bytes(load.clone());
            self.bytes(store);
            self.piece(Piece::Label(skip));
        }
        if g.count * g.size < 16 {
            let place = encode::window(Register::RSP, self.k() + DATA + g.count * g.size);
            let clear = ok(Instruction::with2(Code::Mov_rm64_imm32, place, 0).and_then(|c| encode::encode(&c)))?;
            self.bytes(clear);
        }
        self.vector(g.to, DATA, false)?;
        let clear = Instruction::with3(Code::VEX_Vpxor_xmm_xmm_xmmm128, low(g.mask), low(g.mask), low(g.mask));
        let clear = ok(clear.and_then(|c| encode::encode(&c)))?;
        self.bytes(clear);
        self.give_back(value, 1)?;
        self.give_back(index, 0)?;
        Ok(true)
    }

    /// The load of one element, whose index is in `index`.
    fn element(&mut self, id: u32, node: &Node, index: Register, to: Register) -> Planned<Vec<u8>> {
        let code = if to.is_gpr32() { Code::Mov_r32_rm32 } else { Code::Mov_r64_rm64 };
        let mut load = ok(Instruction::with2(code, to, encode::window(Register::None, 0)))?;
        super::branch::copy_memory(&node.insn, &mut load);
        load.set_memory_index(index);
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut load, &mut borrow)?;
        if !borrow.0.is_empty() {
            return Err(("unsupported-instruction", format!("`{}` with a 32-bit address or after alloca", node.insn)));
        }
        ok(encode::encode(&load))
    }

    /// Stores a vector register at `at` below rsp, or loads it from there.
    fn vector(&mut self, register: Register, at: i32, store: bool) -> Planned<()> {
        let place = encode::window(Register::RSP, self.k() + at);
        let made = match (register.is_ymm(), store) {
            (true, true) => Instruction::with2(Code::VEX_Vmovdqu_ymmm256_ymm, place, register),
            (true, false) => Instruction::with2(Code::VEX_Vmovdqu_ymm_ymmm256, register, place),
            (false, true) => Instruction::with2(Code::VEX_Vmovdqu_xmmm128_xmm, place, register),
            (false, false) => Instruction::with2(Code::VEX_Vmovdqu_xmm_xmmm128, register, place),
        };
        let bytes = ok(made.and_then(|m| encode::encode(&m)))?;
        self.bytes(bytes);
        Ok(())
    }
}

/// The low half of a vector register.
fn low(register: Register) -> Register {
    Register::XMM0 + register.number() as u32
}
