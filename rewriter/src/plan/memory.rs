//! Memory operands become window operands; addresses of symbols become window offsets and slots (DESIGN §3).

use super::{Borrow, Env, Planned, Planner, encode, is_wide_move, names_stack_pointer, ok};
use crate::body::Node;
use crate::elf;
use crate::functions::{CodeRef, exact_target, relocs_at};
use crate::program::{Definition, Reloc, SectionKind};
use crate::select::{GotWord, TRAPS, code_bias, import_name};
use crate::space::{SELF, TCB};
use crate::transfer::{displacement_reloc, immediate_reloc, is_got};
use cordon_checker::policy::Host;
use cordon_checker::{Mode, Protect, describe_in};
use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register};

/// The change of an ordinary access.
pub const FORCED: &str = "memory: forced into the window";
/// Loads left alone: the address counts in full.
pub const FREE: Mode = Mode { matched: false, metered: false, protect: Protect::Stores };

impl Planner<'_> {
    /// The value of `symbol + addend`: a window offset, 8 × slot, a label's index or a plain number.
    pub(crate) fn symbol_value(&self, reloc: &Reloc) -> Planned<i64> {
        if let Definition::Section(section, offset) = self.env.program.symbol(reloc.symbol).definition
            && self.env.program.section(section).kind == SectionKind::Text
        {
            return self.code_value(CodeRef { section, offset: offset.wrapping_add_signed(reloc.addend) });
        }
        data_value(self.env, reloc)
    }

    /// The value that stands for a code address.
    pub(crate) fn code_value(&self, at: CodeRef) -> Planned<i64> {
        if let Some(slot) = self.env.space.function_slots.get(&at) {
            return Ok(i64::from(*slot) * 8);
        }
        Ok(self.env.space.label_value(self.index, at).map_or(0, i64::from))
    }

    /// The offset of a thread-local symbol from the thread pointer.
    fn thread_offset(&self, reloc: &Reloc) -> Planned<i64> {
        Ok(self.symbol_value(reloc)? - i64::from(self.env.space.thread_pointer))
    }

    /// The value that a relocated field of `insn` stands for, as an operand (not relative to anything).
    fn field_value(&self, node: &Node, reloc: &Reloc) -> Planned<i64> {
        let exact = Reloc { addend: reloc.addend.wrapping_add(code_bias(reloc, &node.insn)), ..*reloc };
        let plain = Reloc { addend: 0, ..*reloc };
        match reloc.kind {
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 | elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_64 => {
                self.symbol_value(&exact)
            }
            elf::R_X86_64_TPOFF32 | elf::R_X86_64_TPOFF64 => self.thread_offset(&exact),
            elf::R_X86_64_TLSGD => self.symbol_value(&exact),
            elf::R_X86_64_TLSLD => Ok(i64::from(self.env.space.tls_start)),
            elf::R_X86_64_DTPOFF32 | elf::R_X86_64_DTPOFF64 => {
                Ok(self.symbol_value(&exact)? - i64::from(self.env.space.tls_start))
            }
            elf::R_X86_64_SIZE32 | elf::R_X86_64_SIZE64 => {
                Ok(self.env.program.symbol(reloc.symbol).size.cast_signed().wrapping_add(reloc.addend))
            }
            // The GOT's own address only serves as a base; here it is 0.
            elf::R_X86_64_GOTPC32 => Ok(0),
            elf::R_X86_64_GOTOFF64 => self.symbol_value(&exact),
            kind if is_got(kind) => self.got_word(GotWord::Address(plain.symbol)),
            elf::R_X86_64_GOTTPOFF => self.got_word(GotWord::ThreadOffset(plain.symbol)),
            kind => Err(("unsupported-relocation", format!("relocation type {kind} in code"))),
        }
    }

    fn got_word(&self, word: GotWord) -> Planned<i64> {
        self.env.space.got.get(&word).map(|w| i64::from(*w)).ok_or_else(|| ("internal", "a GOT word was not laid out".into()))
    }

    /// Loads of addresses from the GOT become constants.
    pub(crate) fn address_load(&mut self, node: &Node, insn: &Instruction) -> Planned<bool> {
        let Some(reloc) = displacement_reloc(self.env.program, node.key.at, &node.insn) else { return Ok(false) };
        if insn.mnemonic() != Mnemonic::Mov || !insn.op0_register().is_gpr64() {
            return Ok(false);
        }
        let plain = Reloc { addend: 0, ..reloc };
        let value = if is_got(reloc.kind) {
            self.symbol_value(&plain)?
        } else if reloc.kind == elf::R_X86_64_GOTTPOFF {
            self.thread_offset(&plain)?
        } else {
            return Ok(false);
        };
        self.note("address out of the GOT: a constant");
        self.constant(insn.op0_register(), value)?;
        Ok(true)
    }

    /// `to = value`, sign-extended if it has to be.
    pub(crate) fn constant(&mut self, to: Register, value: i64) -> Planned<()> {
        let bytes = match u32::try_from(value) {
            Ok(value) => ok(encode::set(to, value))?,
            Err(_) => {
                let value = i32::try_from(value).map_err(|_| ("address-range", format!("{value:#x} does not fit 32 bits")))?;
                ok(Instruction::with2(Code::Mov_rm64_imm32, to, value).and_then(|i| encode::encode(&i)))?
            }
        };
        self.bytes(bytes);
        Ok(())
    }

    /// Fills in a relocated immediate.
    pub(crate) fn immediate(&mut self, node: &Node, insn: &mut Instruction) -> Planned<()> {
        let Some(reloc) = immediate_reloc(self.env.program, node.key.at, &node.insn) else { return Ok(()) };
        let value = self.field_value(node, &reloc)?;
        self.note("address of a symbol: a window offset or slot");
        if is_wide_move(insn) && u32::try_from(value).is_ok() {
            let to = encode::narrow(insn.op0_register());
            *insn = ok(Instruction::with2(Code::Mov_r32_imm32, to, value as u32))?;
            return Ok(());
        }
        let which = (0..insn.op_count()).find(|&i| is_immediate(insn.op_kind(i))).unwrap_or(0);
        let fits = match insn.op_kind(which) {
            OpKind::Immediate64 => true,
            OpKind::Immediate32to64 => i32::try_from(value).is_ok(),
            OpKind::Immediate32 => u32::try_from(value).is_ok() || i32::try_from(value).is_ok(),
            _ => false,
        };
        if !fits {
            return Err(("address-range", format!("{value:#x} does not fit the immediate of `{}`", node.insn)));
        }
        match insn.op_kind(which) {
            OpKind::Immediate64 => insn.set_immediate64(value.cast_unsigned()),
            OpKind::Immediate32to64 => insn.set_immediate32to64(value),
            _ => insn.set_immediate32(value as u32),
        }
        Ok(())
    }

    /// Turns the memory operand (if any) into a window operand. True if the same operand with 64-bit registers is what the original means.
    pub(crate) fn memory(&mut self, id: u32, node: &Node, insn: &mut Instruction, borrow: &mut Borrow) -> Planned<bool> {
        if !(0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
            return Ok(false);
        }
        let mut disp = self.displacement(node)?;
        let (mut base, mut index) = (insn.memory_base(), insn.memory_index());
        match insn.segment_prefix() {
            Register::FS => {
                let named = displacement_reloc(self.env.program, node.key.at, &node.insn).is_some();
                if !named && base == Register::None && index == Register::None && disp >= i64::from(TCB) {
                    let message = format!("`{}` reads the thread control block of another system", node.insn);
                    return Err(("segment-access", message));
                }
                self.note("thread-local: the window's block");
                if !named && (base, index, disp) == (Register::None, Register::None, 0) && self.names_thread_offsets() {
                    disp = i64::from(SELF);
                }
                disp += i64::from(self.env.space.thread_pointer);
            }
            Register::GS => return Err(("segment-access", format!("`{}` uses gs", node.insn))),
            _ => {}
        }
        if base == Register::RIP || base == Register::EIP {
            base = Register::None;
        }
        if self.touches_return_address(node) {
            return Err(("reads-return-address", format!("`{}` accesses its own return address", node.insn)));
        }
        if base.is_gpr64()
            && index.is_gpr64()
            && let Some(copy) = self.counted_from(node, &node.insn)?
        {
            let taken: Vec<Register> = borrow.0.iter().map(|(b, _)| b.register).collect();
            let scratch = self.borrow(id, insn, &taken);
            borrow.0.push((scratch, self.begin_of_allocations(scratch.register)?));
            (base, index) = (scratch.register, if copy == base { index } else { base });
        }
        if base.full_register() == Register::RSP && base != Register::None {
            if node.state.dynamic {
                self.note("after alloca: through the arena word");
                let taken: Vec<Register> = borrow.0.iter().map(|(b, _)| b.register).collect();
                let scratch = self.borrow(id, insn, &taken);
                let word = self.env.space.arena_word.cast_signed();
                borrow.0.push((scratch, ok(encode::load(encode::narrow(scratch.register), Register::None, word))?));
                base = scratch.register;
            } else {
                self.note("stack: the data stack in the window");
                disp += i64::from(self.k() + node.state.skew);
            }
        } else if self.env.mode.matched && (base.is_gpr32() || index.is_gpr32()) {
            self.note("32-bit address: computed first, so that it counts as what it is");
            let taken: Vec<Register> = borrow.0.iter().map(|(b, _)| b.register).collect();
            let scratch = self.borrow(id, insn, &taken);
            borrow.0.push((scratch, self.narrow_address(node, scratch.register, disp)?));
            (base, index, disp) = (scratch.register, Register::None, 0);
            insn.set_memory_index_scale(1);
        } else if self.change.is_empty() {
            self.note(FORCED);
        }
        self.set_window(insn, node, base, index, disp)?;
        // The native stack pointer is none of the window's, and a sum of 32-bit registers has 32 bits.
        Ok(!base.is_gpr32() && !index.is_gpr32() && base != Register::RSP && i32::try_from(disp).is_ok())
    }

    /// The load `insn`, a window operand, as it may be where only stores are protected: with 64-bit registers, a prefix less. `None` for
    /// whatever the checker does not take so.
    pub(crate) fn free_load(&mut self, insn: &Instruction) -> Option<Vec<u8>> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        if self.env.mode.protect != Protect::Stores || base == Register::None && index == Register::None {
            return None;
        }
        let wide = |r: Register| if r == Register::None { r } else { r.full_register() };
        let mut insn = *insn;
        insn.set_memory_base(wide(base));
        insn.set_memory_index(wide(index));
        if insn.memory_displ_size() == 4 {
            // iced's name for the 4 bytes in 64-bit addressing.
            insn.set_memory_displ_size(8);
        }
        let bytes = encode::encode(&insn).ok()?;
        let described = describe_in(&bytes, Host::User, FREE).ok()?;
        if described.len != bytes.len() || !described.memory?.wide {
            return None;
        }
        if self.change == FORCED {
            self.note("memory: a load, left to its 64-bit address");
        }
        Some(bytes)
    }

    /// The address of an operand with 32-bit registers into `to`: its low half is all of it.
    fn narrow_address(&self, node: &Node, to: Register, disp: i64) -> Planned<Vec<u8>> {
        let insn = &node.insn;
        let wide = |r: Register| if r == Register::None { r } else { r.full_register() };
        let disp = i32::try_from(disp).or_else(|_| u32::try_from(disp).map(u32::cast_signed));
        let disp = disp.map_err(|_| ("address-range", format!("`{insn}`: its displacement does not fit 32 bits")))?;
        let (base, index) = (wide(insn.memory_base()), wide(insn.memory_index()));
        ok(encode::lea(encode::narrow(to), base, index, insn.memory_index_scale(), disp))
    }

    fn set_window(&self, insn: &mut Instruction, node: &Node, base: Register, index: Register, disp: i64) -> Planned<()> {
        let range = || ("address-range", format!("`{}`: displacement {disp:#x} is outside the window", node.insn));
        let narrow = i32::try_from(disp).or_else(|_| u32::try_from(disp).map(u32::cast_signed)).map_err(|_| range())?;
        let vector = |r: Register| r != Register::None && !r.is_gpr();
        if vector(base) || vector(index) {
            return Err(("unsupported-instruction", format!("`{}` has a vector of addresses", node.insn)));
        }
        insn.set_segment_prefix(Register::GS);
        insn.set_memory_displacement64(i64::from(narrow).cast_unsigned());
        insn.set_memory_base(encode::narrow(base));
        insn.set_memory_index(encode::narrow(index));
        let size = match (base, index) {
            (Register::None, Register::None) => {
                if narrow < 0 {
                    return Err(range());
                }
                8
            }
            (Register::None, _) => 4,
            _ => encode::displacement_size(narrow, base),
        };
        insn.set_memory_displ_size(size);
        Ok(())
    }

    /// Whether the function computes addresses of thread-local variables, for which it adds up their offsets and the thread pointer.
    fn names_thread_offsets(&self) -> bool {
        let is_offset = |r: &Reloc| matches!(r.kind, elf::R_X86_64_TPOFF32 | elf::R_X86_64_TPOFF64 | elf::R_X86_64_GOTTPOFF);
        let relocs = |node: &Node| relocs_at(self.env.program, node.key.at, node.insn.len());
        self.body.nodes.iter().any(|node| relocs(node).iter().any(is_offset))
    }

    /// The displacement of the original operand with its relocation applied (rip-relative ones as absolute offsets).
    fn displacement(&self, node: &Node) -> Planned<i64> {
        let insn = &node.insn;
        match displacement_reloc(self.env.program, node.key.at, insn) {
            Some(reloc) => {
                let exact = Reloc { addend: reloc.addend.wrapping_add(code_bias(&reloc, insn)), ..reloc };
                let text = exact_target(self.env.program, &exact)
                    .is_some_and(|(s, _)| self.env.program.section(s).kind == SectionKind::Text);
                if text && !is_got(reloc.kind) && insn.mnemonic() != Mnemonic::Lea {
                    return Err(("data-in-text", format!("`{insn}` accesses a text section")));
                }
                self.field_value(node, &reloc)
            }
            None if insn.is_ip_rel_memory_operand() => Err(("data-in-text", format!("`{insn}` accesses a text section"))),
            None => Ok(insn.memory_displacement64().cast_signed()),
        }
    }

    /// `lea`: an address computation, never an access.
    pub(crate) fn lea(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        let to = insn.op0_register();
        if to.is_gpr16() {
            return Err(("unsupported-instruction", format!("`{insn}` computes a 16-bit address")));
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let disp = self.lea_displacement(node)?;
        if matches!(base, Register::None | Register::RIP | Register::EIP) && index == Register::None {
            if displacement_reloc(self.env.program, node.key.at, insn).is_some() || base != Register::None {
                self.note("address of a symbol: a window offset or slot");
            }
            return self.constant(to.full_register(), if to.is_gpr32() { disp & 0xffff_ffff } else { disp });
        }
        let disp = i32::try_from(disp).map_err(|_| ("address-range", format!("`{insn}`: displacement {disp:#x}")))?;
        let scale = insn.memory_index_scale();
        if base.full_register() == Register::RSP && base != Register::None {
            return self.lea_of_stack(id, node, index.full_register(), scale, disp);
        }
        if let Some(copy) = self.counted_from(node, insn)? {
            let scratch = self.borrow(id, insn, &[]);
            let begin = self.begin_of_allocations(scratch.register)?;
            self.keep(scratch, 0)?;
            self.bytes(begin);
            let other = if copy == base { index } else { base };
            let bytes = ok(encode::lea(to, scratch.register, other, 1, disp))?;
            self.bytes(bytes);
            return self.give_back(scratch, 0);
        }
        // With an address-size prefix only the low half counts, which a 32-bit destination gives as well.
        let to = if base.is_gpr32() || index.is_gpr32() { encode::narrow(to) } else { to };
        let wide = |r: Register| if r == Register::None { r } else { r.full_register() };
        let bytes = ok(encode::lea(to, wide(base), wide(index), scale, disp))?;
        self.bytes(bytes);
        Ok(())
    }

    fn lea_displacement(&self, node: &Node) -> Planned<i64> {
        let insn = &node.insn;
        if displacement_reloc(self.env.program, node.key.at, insn).is_none() && insn.is_ip_rel_memory_operand() {
            return self.code_value(CodeRef { section: node.key.at.section, offset: insn.ip_rel_memory_address() });
        }
        self.displacement(node)
    }

    fn lea_of_stack(&mut self, id: u32, node: &Node, index: Register, scale: u32, disp: i32) -> Planned<()> {
        let to = node.insn.op0_register();
        if !node.state.dynamic {
            self.note("address on the stack: the data stack's window offset");
            let bytes = ok(encode::lea(encode::narrow(to), Register::RSP, index, scale, disp + self.k() + node.state.skew))?;
            self.bytes(bytes);
            return Ok(());
        }
        self.note("address after alloca: from the arena word");
        let word = self.env.space.arena_word.cast_signed();
        if index != to.full_register() {
            let first = ok(encode::load(encode::narrow(to), Register::None, word))?;
            let then = ok(encode::lea(to, to.full_register(), index, scale, disp))?;
            self.bytes(first);
            self.bytes(then);
            return Ok(());
        }
        let scratch = self.borrow(id, &node.insn, &[]);
        self.keep(scratch, 0)?;
        let first = ok(encode::load(encode::narrow(scratch.register), Register::None, word))?;
        let then = ok(encode::lea(to, scratch.register, index, scale, disp))?;
        self.bytes(first);
        self.bytes(then);
        self.give_back(scratch, 0)
    }

    /// The instruction that gives `to` (32 bits) the window offset that rsp stands for.
    fn stack_pointer(&self, node: &Node, to: Register) -> Planned<Vec<u8>> {
        if node.state.dynamic {
            return ok(encode::load(to, Register::None, self.env.space.arena_word.cast_signed()));
        }
        ok(encode::lea(to, Register::RSP, Register::None, 1, self.k() + node.state.skew))
    }

    /// An explicit rsp operand that is only read becomes a register with the data stack's offset. True if nothing is left to do.
    pub(crate) fn stack_pointer_operand(
        &mut self,
        id: u32,
        node: &Node,
        insn: &mut Instruction,
        borrow: &mut Borrow,
    ) -> Planned<bool> {
        if !names_stack_pointer(insn) {
            return Ok(false);
        }
        self.note("stack pointer as a value: the data stack's window offset");
        if insn.code() == Code::Mov_rm64_r64 && insn.op0_kind() == OpKind::Register || insn.code() == Code::Mov_r64_rm64 {
            let bytes = self.stack_pointer(node, encode::narrow(insn.op0_register()))?;
            self.bytes(bytes);
            return Ok(true);
        }
        let scratch = self.borrow(id, insn, &[]);
        let fill = self.stack_pointer(node, encode::narrow(scratch.register))?;
        borrow.0.push((scratch, fill));
        let mut factory = iced_x86::InstructionInfoFactory::new();
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register && insn.op_register(i).full_register() == Register::RSP {
                let read_only = matches!(factory.info(&node.insn).op_access(i), OpAccess::Read | OpAccess::CondRead);
                if !read_only || insn.op_register(i) != Register::RSP {
                    return Err(("unsupported-instruction", format!("`{}` changes or splits the stack pointer", node.insn)));
                }
                insn.set_op_register(i, scratch.register);
            }
        }
        Ok(false)
    }
}

/// The value of `symbol + addend` where it is not code: a window offset, 8 × an import's slot, or a plain number.
///
/// # Errors
/// If the symbol's section was not laid out, which would be a bug.
pub fn data_value(env: Env<'_>, reloc: &Reloc) -> Planned<i64> {
    let space = env.space;
    let symbol = env.program.symbol(reloc.symbol);
    match symbol.definition {
        Definition::Absolute(value) => Ok(value.cast_signed().wrapping_add(reloc.addend)),
        Definition::Section(section, offset) => {
            let start =
                space.sections.get(&section).ok_or_else(|| ("internal", format!("`{}` was not laid out", symbol.name)))?;
            Ok(i64::from(*start).wrapping_add(offset.cast_signed()).wrapping_add(reloc.addend))
        }
        Definition::Undefined { .. } => {
            let linker = match symbol.name.as_str() {
                "__cordon_heap_start" => Some(space.heap.0),
                "__cordon_heap_end" => Some(space.heap.1),
                "__cordon_arg_start" => Some(space.argument.0),
                "__cordon_arg_end" => Some(space.argument.1),
                "__init_array_start" => Some(space.init_array.0),
                "__init_array_end" => Some(space.init_array.1),
                "__fini_array_start" => Some(space.fini_array.0),
                "__fini_array_end" => Some(space.fini_array.1),
                crate::syscall::THREAD_POINTER => Some(space.thread_pointer),
                name if TRAPS.contains(&name) => Some(0),
                name => space.import_slots.get(import_name(name)).map(|slot| slot * 8),
            };
            Ok(linker.map_or(0, i64::from).wrapping_add(reloc.addend))
        }
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}
