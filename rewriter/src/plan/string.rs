//! String instructions and the few others that become calls of built-in gates (DESIGN §6).

use super::{Borrow, Planned, Planner, encode, ok};
use crate::body::Node;
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

/// Whether `insn` is one of `movs stos lods scas cmps` (SSE's `movsd`/`cmpsd` are not).
#[must_use]
pub fn is_string(insn: &Instruction) -> bool {
    insn.is_string_instruction() && element(insn).is_some()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

fn element(insn: &Instruction) -> Option<(Operation, u32)> {
    Some(match insn.code() {
        Code::Movsb_m8_m8 => (Operation::Movs, 1),
        Code::Movsw_m16_m16 => (Operation::Movs, 2),
        Code::Movsd_m32_m32 => (Operation::Movs, 4),
        Code::Movsq_m64_m64 => (Operation::Movs, 8),
        Code::Stosb_m8_AL => (Operation::Stos, 1),
        Code::Stosw_m16_AX => (Operation::Stos, 2),
        Code::Stosd_m32_EAX => (Operation::Stos, 4),
        Code::Stosq_m64_RAX => (Operation::Stos, 8),
        Code::Lodsb_AL_m8 => (Operation::Lods, 1),
        Code::Lodsw_AX_m16 => (Operation::Lods, 2),
        Code::Lodsd_EAX_m32 => (Operation::Lods, 4),
        Code::Lodsq_RAX_m64 => (Operation::Lods, 8),
        Code::Scasb_AL_m8 => (Operation::Scas, 1),
        Code::Scasw_AX_m16 => (Operation::Scas, 2),
        Code::Scasd_EAX_m32 => (Operation::Scas, 4),
        Code::Scasq_RAX_m64 => (Operation::Scas, 8),
        Code::Cmpsb_m8_m8 => (Operation::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Operation::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Operation::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Operation::Cmps, 8),
        _ => return None,
    })
}

/// The built-in gate that stands for `insn`, if it is one that becomes a gate.
#[must_use]
pub fn gate_name(insn: &Instruction) -> Option<String> {
    match insn.mnemonic() {
        Mnemonic::Cpuid => return Some("cordon.cpuid".into()),
        Mnemonic::Xgetbv => return Some("cordon.xgetbv".into()),
        Mnemonic::Fldcw => return Some("cordon.fldcw".into()),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => return Some("cordon.ldmxcsr".into()),
        _ => {}
    }
    let (operation, size) = element(insn)?;
    let (rep, repne) = (insn.has_rep_prefix(), insn.has_repne_prefix());
    let name = match operation {
        Operation::Movs if rep || repne => "rep_movs",
        Operation::Stos if rep || repne => "rep_stos",
        Operation::Cmps if rep => "repe_cmps",
        Operation::Cmps if repne => "repne_cmps",
        Operation::Scas if rep => "repe_scas",
        Operation::Scas if repne => "repne_scas",
        _ => return None,
    };
    Some(format!("cordon.{name}{size}"))
}

impl Planner<'_> {
    /// A string instruction: a gate when repeated, else loads and stores with the pointers advanced by `lea`.
    pub(crate) fn string(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        let wide = (0..insn.op_count()).all(|i| !matches!(insn.op_kind(i), OpKind::MemoryESEDI | OpKind::MemorySegESI));
        if !wide || matches!(insn.segment_prefix(), Register::FS | Register::GS) {
            return Err(("unsupported-instruction", format!("`{insn}` with 32-bit pointers or a segment")));
        }
        if let Some(gate) = gate_name(insn) {
            self.note("repeated string instruction: a built-in gate");
            return self.gate(&gate);
        }
        let Some((operation, size)) = element(insn) else { return Err(("internal", "not a string instruction".into())) };
        if insn.has_rep_prefix() || insn.has_repne_prefix() {
            return Err(("unsupported-instruction", format!("`{insn}` has no accepted form")));
        }
        self.note("string instruction: load, store, advance");
        let source = encode::window(Register::RSI, 0);
        let target = encode::window(Register::RDI, 0);
        match operation {
            Operation::Stos => self.emit(Instruction::with2(store_code(size), target, accumulator(size)))?,
            Operation::Lods => self.emit(Instruction::with2(load_code(size), accumulator(size), source))?,
            Operation::Scas => self.emit(Instruction::with2(compare_code(size), accumulator(size), target))?,
            Operation::Movs | Operation::Cmps => {
                let scratch = self.borrow(id, insn, &[]);
                let part = sized(scratch.register, size);
                self.keep(scratch, 0)?;
                self.emit(Instruction::with2(load_code(size), part, source))?;
                if operation == Operation::Movs {
                    self.emit(Instruction::with2(store_code(size), target, part))?;
                } else {
                    self.emit(Instruction::with2(compare_code(size), part, target))?;
                }
                self.give_back(scratch, 0)?;
            }
        }
        if matches!(operation, Operation::Movs | Operation::Lods | Operation::Cmps) {
            self.advance(Register::RSI, size)?;
        }
        if operation != Operation::Lods {
            self.advance(Register::RDI, size)?;
        }
        Ok(())
    }

    fn emit(&mut self, insn: Result<Instruction, iced_x86::IcedError>) -> Planned<()> {
        let bytes = ok(insn.and_then(|i| encode::encode(&i)))?;
        self.bytes(bytes);
        Ok(())
    }

    fn advance(&mut self, pointer: Register, by: u32) -> Planned<()> {
        let bytes = ok(encode::lea(pointer, pointer, Register::None, 1, by.cast_signed()))?;
        self.bytes(bytes);
        Ok(())
    }

    fn gate(&mut self, name: &str) -> Planned<()> {
        let slot = self.env.space.import_slots.get(name).copied();
        let slot = slot.ok_or_else(|| ("internal", format!("gate `{name}` has no slot")))?;
        self.import_slot(slot, false);
        Ok(())
    }

    /// `xlat`: al = byte at rbx + al.
    pub(crate) fn table_byte(&mut self, id: u32, node: &Node) -> Planned<()> {
        if node.insn.memory_base() != Register::RBX || matches!(node.insn.segment_prefix(), Register::FS | Register::GS) {
            return Err(("unsupported-instruction", format!("`{}` with a 32-bit pointer or a segment", node.insn)));
        }
        self.note("xlat: a load with an index");
        let scratch = self.borrow(id, &node.insn, &[]);
        let index = encode::narrow(scratch.register);
        let mut place = encode::window(Register::RBX, 0);
        place.index = index;
        self.keep(scratch, 0)?;
        self.emit(Instruction::with2(Code::Movzx_r32_rm8, index, Register::AL))?;
        self.emit(Instruction::with2(Code::Mov_r8_rm8, Register::AL, place))?;
        self.give_back(scratch, 0)
    }

    /// `cpuid`, `xgetbv`, and control-word loads (their operand's window offset goes to the gate in rax).
    pub(crate) fn gate_instruction(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        let Some(name) = gate_name(insn) else { return Err(("internal", "not a gate".into())) };
        self.note("not for handlers to execute: a built-in gate");
        if matches!(insn.mnemonic(), Mnemonic::Cpuid | Mnemonic::Xgetbv) {
            return self.gate(&name);
        }
        // The operand's address, computed as a 32-bit window offset from the same registers.
        let mut access = *insn;
        let mut borrow = Borrow::default();
        self.memory(id, node, &mut access, &mut borrow)?;
        let base = access.memory_base().full_register();
        let index = access.memory_index().full_register();
        let rax = super::Borrowed { register: Register::RAX, keep: self.live.after[id as usize].has(Register::RAX) };
        self.keep(rax, 2)?;
        for (slot, (borrowed, fill)) in borrow.0.iter().enumerate() {
            self.keep(*borrowed, slot as i32)?;
            self.bytes(fill.clone());
        }
        if self.env.mode.matched {
            // The gate is told the low half of the address; this load is for the check of all of it.
            self.note("not for handlers to execute: a load for the check, then a built-in gate");
            let taken: Vec<Register> = borrow.0.iter().map(|(b, _)| b.register).chain([Register::RAX, base, index]).collect();
            let scratch = self.borrow(id, insn, &taken);
            self.keep(scratch, 3)?;
            let size = insn.memory_size().size() as u32;
            let mut load = Instruction::with2(load_code(size), sized(scratch.register, size), encode::window(Register::None, 0));
            if let Ok(load) = &mut load {
                super::branch::copy_memory(&access, load);
                load.set_memory_displacement64(access.memory_displacement64());
                load.set_memory_displ_size(access.memory_displ_size());
            }
            self.emit(load)?;
            self.give_back(scratch, 3)?;
        }
        let disp = access.memory_displacement64() as i32;
        if base == Register::None && index == Register::None {
            let bytes = ok(encode::set(Register::EAX, disp.cast_unsigned()))?;
            self.bytes(bytes);
        } else {
            let memory = MemoryOperand::new(base, index, access.memory_index_scale(), i64::from(disp), 8, false, Register::None);
            self.emit(Instruction::with2(Code::Lea_r32_m, Register::EAX, memory))?;
        }
        self.gate(&name)?;
        for (slot, (borrowed, _)) in borrow.0.iter().enumerate() {
            self.give_back(*borrowed, slot as i32)?;
        }
        self.give_back(rax, 2)
    }
}

fn store_code(size: u32) -> Code {
    [Code::Mov_rm8_r8, Code::Mov_rm16_r16, Code::Mov_rm32_r32, Code::Mov_rm64_r64][size.trailing_zeros() as usize]
}

fn load_code(size: u32) -> Code {
    [Code::Mov_r8_rm8, Code::Mov_r16_rm16, Code::Mov_r32_rm32, Code::Mov_r64_rm64][size.trailing_zeros() as usize]
}

fn compare_code(size: u32) -> Code {
    [Code::Cmp_r8_rm8, Code::Cmp_r16_rm16, Code::Cmp_r32_rm32, Code::Cmp_r64_rm64][size.trailing_zeros() as usize]
}

fn accumulator(size: u32) -> Register {
    sized(Register::RAX, size)
}

/// The low part of `register` with `size` bytes.
pub(crate) fn sized(register: Register, size: u32) -> Register {
    let number = register.number() as u32;
    match size {
        // Numbers 4..8 mean spl..dil here, which iced lists after the high-byte registers.
        1 if number < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => register,
    }
}
