//! Uses of r14 where r14 counts: its value lies in a slot of the data stack (see [`crate::count`]).
//!
//! The slot takes the register's place in the instruction where an encoding allows that; else a register is borrowed, loaded before the
//! instruction if that reads r14, and stored behind it if that writes r14.

use super::{Borrowed, Env, Planned, Planner, accepted, encode, names_stack_pointer, ok, strip_prefixes};
use crate::body::{Flow, Node};
use crate::count::{COUNT, Evicted, names, rename};
use crate::functions::relocs_at;
use iced_x86::{
    Code, ConditionCode, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register,
};

/// From the data stack pointer, where a borrowed register waits that the planned instruction's own borrowing (slots 0 to 2, perhaps 8 bytes further down) leaves alone.
const WAIT: i32 = -128 - 8 - 8 * 6;

impl Planner<'_> {
    /// Plans node `id` if it names an evicted r14; false if it does not.
    pub(crate) fn evicted(&mut self, id: u32, node: &Node) -> Planned<bool> {
        let Some(evicted) = &self.body.evicted else { return Ok(false) };
        if evicted.is_room(id) {
            self.note("r14 counts: its caller keeps no value in it, room is enough");
            let down = node.insn.mnemonic() == Mnemonic::Push;
            self.move_by(if down { -8 } else { 8 })?;
            if let Flow::Next(to) = node.flow {
                self.fall_through(id, to);
            }
            return Ok(true);
        }
        if !names(&node.insn, COUNT) {
            return Ok(false);
        }
        let slot = self.k() + evicted.slot(id).ok_or_else(|| ("internal", "r14 without a slot".to_owned()))?;
        match &node.flow {
            Flow::Next(to) => {
                let to = *to;
                // Where memory to allocate is computed the arena takes the place of the operand's old value.
                let arena = self.body.arena_bases.contains(&node.key) || self.counted_from(node, &node.insn)?.is_some();
                let direct = || direct(self.env, evicted, node, slot, self.live.after[id as usize].flags);
                match if arena { None } else { direct() } {
                    Some(bytes) => self.bytes(bytes),
                    None => self.through_scratch(id, node, slot)?,
                }
                self.note("r14 counts: its value lies in the frame");
                self.fall_through(id, to);
            }
            _ => self.transfer(id, node, slot)?,
        }
        Ok(true)
    }

    /// Loads what an indirect transfer needs of r14 into a register that is dead there.
    fn transfer(&mut self, id: u32, node: &Node, slot: i32) -> Planned<()> {
        let borrowed = match node.flow {
            // As for the target of `call *mem`: no compiler keeps a value in r11 across an indirect transfer.
            Flow::CallIndirect(_) | Flow::TailIndirect => Borrowed { register: Register::R11, keep: false },
            _ => self.borrow(id, &node.insn, &[]),
        };
        if borrowed.keep || names(&node.insn, borrowed.register) {
            return Err(("unsupported-instruction", format!("`{}`: no register is free to hold r14", node.insn)));
        }
        let load = ok(encode::load(borrowed.register, Register::RSP, place(node, slot)))?;
        self.bytes(load);
        let mut renamed = node.clone();
        rename(&mut renamed.insn, |r| if r == COUNT { borrowed.register } else { r });
        renamed.state.registers[borrowed.register.number()] = node.state.registers[COUNT.number()];
        self.branch(id, &renamed)
    }

    fn through_scratch(&mut self, id: u32, node: &Node, slot: i32) -> Planned<()> {
        let Flow::Next(next) = &node.flow else { return Err(("internal", "a transfer that writes r14".into())) };
        let after = self.body.nodes[self.body.node(*next) as usize].state.depth;
        let (reads, writes) = access(&node.insn);
        let scratch = self.scratch(id, node, reads, writes);
        if scratch.keep && after - node.state.depth > 8 {
            return Err(("unsupported-instruction", format!("`{}`: no register is free to hold r14", node.insn)));
        }
        if scratch.keep {
            let bytes = ok(encode::store(scratch.register, Register::RSP, self.k() + WAIT))?;
            self.bytes(bytes);
        }
        // Loads as wide as the stores that they forward from.
        let wide = self.body.evicted.as_ref().is_none_or(|e| !e.narrow);
        let part = if wide { scratch.register } else { encode::narrow(scratch.register) };
        if reads {
            let load = ok(encode::load(part, Register::RSP, place(node, slot)))?;
            self.bytes(load);
        }
        let mut renamed = node.clone();
        rename(&mut renamed.insn, |r| if r == COUNT { scratch.register } else { r });
        if reads {
            renamed.state.registers[scratch.register.number()] = node.state.registers[COUNT.number()];
        }
        self.straight(id, &renamed)?;
        if writes {
            let store = ok(encode::store(part, Register::RSP, after + slot))?;
            self.bytes(store);
        }
        if scratch.keep {
            let bytes = ok(encode::load(scratch.register, Register::RSP, self.k() + WAIT + after - node.state.depth))?;
            self.bytes(bytes);
        }
        Ok(())
    }

    /// The register that stands for r14 in node `id`.
    fn scratch(&self, id: u32, node: &Node, reads: bool, writes: bool) -> Borrowed {
        let borrowed = self.borrow(id, &node.insn, &[]);
        if !borrowed.keep {
            return borrowed;
        }
        let insn = &node.insn;
        let to = insn.op0_register();
        let plain =
            matches!(insn.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Lea);
        let whole = to.is_gpr64() || to.is_gpr32();
        let addressed = [insn.memory_base(), insn.memory_index()].iter().any(|r| r.full_register() == to.full_register());
        if plain && whole && reads && !writes && !addressed && !node.state.dynamic && to.full_register() != Register::RSP {
            return Borrowed { register: to.full_register(), keep: false };
        }
        let mut factory = InstructionInfoFactory::new();
        let after = self.live.after[id as usize];
        let spent = factory.info(insn).used_registers().iter().find(|u| {
            let full = u.register().full_register();
            u.register().is_gpr() && full != Register::RSP && full != COUNT && !after.has(full)
        });
        match spent {
            // It is only read, for the last time, before the result is written.
            Some(used) if plain && writes && !reads && used.access() == OpAccess::Read && !node.state.dynamic => {
                Borrowed { register: used.register().full_register(), keep: false }
            }
            _ => borrowed,
        }
    }
}

/// Displacement from esp before `node`; `slot` is that from esp at function entry.
fn place(node: &Node, slot: i32) -> i32 {
    node.state.depth + slot
}

/// Whether `insn` needs the old value of r14, and whether it changes it. A partial write keeps the rest of the old value.
fn access(insn: &Instruction) -> (bool, bool) {
    let mut factory = InstructionInfoFactory::new();
    let (mut reads, mut writes) = (false, false);
    for used in factory.info(insn).used_registers().iter().filter(|u| u.register().is_gpr()) {
        if used.register().full_register() == COUNT {
            let whole = used.register().is_gpr64() || used.register().is_gpr32();
            let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
            reads |= used.access() != OpAccess::Write || !whole;
            writes |= written;
        }
    }
    (reads, writes)
}

/// The instruction with the slot in the place of r14, if there is such a form that means the same.
fn direct(env: Env<'_>, evicted: &Evicted, node: &Node, slot: i32, flags: u16) -> Option<Vec<u8>> {
    let mut insn = node.insn;
    let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
    if memory || names_stack_pointer(&insn) || !relocs_at(env.program, node.key.at, insn.len()).is_empty() {
        return None;
    }
    let same = twice(&insn);
    match insn.mnemonic() {
        Mnemonic::Test if same => {
            // Flags as of `test`: no carry, no overflow, sign, zero and parity of the value.
            let code = [Code::Cmp_rm8_imm8, Code::Cmp_rm16_imm8, Code::Cmp_rm32_imm8, Code::Cmp_rm64_imm8];
            let size = insn.op0_register().size();
            insn = Instruction::with2(code[size.trailing_zeros() as usize], insn.op0_register(), 0).ok()?;
        }
        Mnemonic::Xor | Mnemonic::Sub if same && flags == 0 && insn.op0_register().size() >= 4 => {
            insn = Instruction::with2(Code::Mov_rm64_imm32, COUNT, 0).ok()?;
        }
        _ if same => return None,
        Mnemonic::Mov => constant(&mut insn)?,
        _ => {}
    }
    let operand = (0..insn.op_count()).find(|&i| is_count(&insn, i))?;
    let (_, writes) = access(&insn);
    let halves = insn.op_register(operand).is_gpr32() && writes && !evicted.narrow;
    if halves {
        // A 32-bit write clears the upper half as well, a 32-bit store does not.
        return None;
    }
    let operand = in_memory(&mut insn, operand)?;
    strip_prefixes(&mut insn);
    insn.set_op_kind(operand, OpKind::Memory);
    insn.set_memory_base(Register::ESP);
    insn.set_memory_index(Register::None);
    insn.set_memory_index_scale(1);
    insn.set_segment_prefix(Register::GS);
    let disp = place(node, slot);
    insn.set_memory_displacement64(i64::from(disp).cast_unsigned());
    insn.set_memory_displ_size(encode::displacement_size(disp, Register::RSP));
    let bytes = encode::encode(&insn).ok()?;
    accepted(&bytes, &env.space.policy()).ok()?;
    Some(bytes)
}

fn is_count(insn: &Instruction, i: u32) -> bool {
    insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr() && insn.op_register(i).full_register() == COUNT
}

/// Whether two operands are r14.
fn twice(insn: &Instruction) -> bool {
    (0..insn.op_count()).filter(|&i| is_count(insn, i)).count() > 1
}

/// Gives `mov $imm,%r14` a form with a ModRM byte; a zero-extended constant becomes a sign-extended one that is the same.
fn constant(insn: &mut Instruction) -> Option<()> {
    let value = match insn.code() {
        Code::Mov_r32_imm32 | Code::Mov_rm32_imm32 => i64::from(insn.immediate32()),
        Code::Mov_r64_imm64 => insn.immediate64().cast_signed(),
        _ => return Some(()),
    };
    *insn = Instruction::with2(Code::Mov_rm64_imm32, COUNT, i32::try_from(value).ok()?).ok()?;
    Some(())
}

/// Chooses the encoding in which operand `i` may be memory; the operand's new number.
fn in_memory(insn: &mut Instruction, i: u32) -> Option<u32> {
    use Mnemonic as M;
    let kind = |insn: &Instruction, i| insn.code().op_code().op_kind(i);
    let general = |k| {
        use OpCodeOperandKind as O;
        matches!(k, O::r8_or_mem | O::r16_or_mem | O::r32_or_mem | O::r64_or_mem)
    };
    let listed = matches!(
        insn.mnemonic(),
        M::Mov
            | M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Imul
            | M::Mul
            | M::Div
            | M::Idiv
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movd
            | M::Movq
            | M::Vmovd
            | M::Vmovq
            | M::Cvtsi2sd
            | M::Cvtsi2ss
            | M::Popcnt
            | M::Bsf
            | M::Bsr
            | M::Lzcnt
            | M::Tzcnt
    ) || insn.condition_code() != ConditionCode::None;
    if !listed {
        return None;
    }
    if general(kind(insn, i)) {
        return Some(i);
    }
    if insn.op_count() != 2 || insn.op_kind(1 - i) != OpKind::Register || !insn.op_register(1 - i).is_gpr() {
        return None;
    }
    if insn.mnemonic() == M::Test {
        let other = insn.op0_register();
        insn.set_op0_register(insn.op1_register());
        insn.set_op1_register(other);
        return Some(0);
    }
    let turned = turned(insn.code())?;
    let (to, from) = (insn.op0_register(), insn.op1_register());
    insn.set_code(turned);
    insn.set_op0_register(to);
    insn.set_op1_register(from);
    Some(i)
}

/// The same operation with the other operand in the ModRM byte's memory field.
fn turned(code: Code) -> Option<Code> {
    let pairs = [
        (Code::Mov_r8_rm8, Code::Mov_rm8_r8),
        (Code::Mov_r16_rm16, Code::Mov_rm16_r16),
        (Code::Mov_r32_rm32, Code::Mov_rm32_r32),
        (Code::Mov_r64_rm64, Code::Mov_rm64_r64),
        (Code::Add_r8_rm8, Code::Add_rm8_r8),
        (Code::Add_r16_rm16, Code::Add_rm16_r16),
        (Code::Add_r32_rm32, Code::Add_rm32_r32),
        (Code::Add_r64_rm64, Code::Add_rm64_r64),
        (Code::Or_r8_rm8, Code::Or_rm8_r8),
        (Code::Or_r16_rm16, Code::Or_rm16_r16),
        (Code::Or_r32_rm32, Code::Or_rm32_r32),
        (Code::Or_r64_rm64, Code::Or_rm64_r64),
        (Code::Adc_r32_rm32, Code::Adc_rm32_r32),
        (Code::Adc_r64_rm64, Code::Adc_rm64_r64),
        (Code::Sbb_r32_rm32, Code::Sbb_rm32_r32),
        (Code::Sbb_r64_rm64, Code::Sbb_rm64_r64),
        (Code::And_r8_rm8, Code::And_rm8_r8),
        (Code::And_r16_rm16, Code::And_rm16_r16),
        (Code::And_r32_rm32, Code::And_rm32_r32),
        (Code::And_r64_rm64, Code::And_rm64_r64),
        (Code::Sub_r8_rm8, Code::Sub_rm8_r8),
        (Code::Sub_r16_rm16, Code::Sub_rm16_r16),
        (Code::Sub_r32_rm32, Code::Sub_rm32_r32),
        (Code::Sub_r64_rm64, Code::Sub_rm64_r64),
        (Code::Xor_r8_rm8, Code::Xor_rm8_r8),
        (Code::Xor_r16_rm16, Code::Xor_rm16_r16),
        (Code::Xor_r32_rm32, Code::Xor_rm32_r32),
        (Code::Xor_r64_rm64, Code::Xor_rm64_r64),
        (Code::Cmp_r8_rm8, Code::Cmp_rm8_r8),
        (Code::Cmp_r16_rm16, Code::Cmp_rm16_r16),
        (Code::Cmp_r32_rm32, Code::Cmp_rm32_r32),
        (Code::Cmp_r64_rm64, Code::Cmp_rm64_r64),
    ];
    pairs.iter().find_map(|&(a, b)| if a == code { Some(b) } else { (b == code).then_some(a) })
}
