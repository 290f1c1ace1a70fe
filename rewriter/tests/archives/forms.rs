//! Forms of what moves or names the stack pointer, of addresses, and of what becomes a gate.

use crate::code::{Window, add_to, constant, load, names_stack_pointer, narrow, stack_address, stack_move, store, window};
use crate::compare::{Comparison, Context, Form, Restore};
use crate::original::{Meaning, Place};
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use object::elf;

/// Bytes below the stack pointer that a leaf function may use (psABI 3.2.2); borrowed registers wait below.
const RED_ZONE: i64 = 128;

impl Comparison<'_> {
    /// The top of the data stack, plus `by`.
    pub fn top(&self, by: i64) -> Window {
        Window::at(Register::ESP, self.new.shift + by)
    }

    /// Takes the ways of registers below the red zone and back out of `code`. Gives the registers.
    pub fn kept(&self, code: &mut Vec<Instruction>) -> Vec<Register> {
        let below =
            |w: Window| w.base == Register::ESP && (-RED_ZONE - 64..-RED_ZONE).contains(&(i64::from(w.disp) - self.new.shift));
        let mut registers = Vec::new();
        while let Some(out) = code.iter().position(|i| store(i).is_some_and(|(_, to)| below(to))) {
            let kept = store(&code[out]);
            let Some(back) = code.iter().rposition(|i| load(i) == kept).filter(|back| *back > out) else { break };
            registers.extend(kept.map(|(register, _)| register.full_register()));
            code.remove(back);
            code.remove(out);
        }
        registers
    }

    /// Whether a form may change `register`: it is kept, or nothing counts on it.
    pub fn is_free(&self, register: Register, kept: &[Register], context: &Context) -> Result<(), String> {
        let named = InstructionInfoFactory::new()
            .info(&context.insn)
            .used_registers()
            .iter()
            .any(|u| u.register().full_register() == register.full_register() && u.access() != OpAccess::NoMemAccess);
        if named {
            return Err(format!("{register:?} is the instruction's own"));
        }
        match kept.contains(&register.full_register()) || !self.new.is_wanted(register.full_register(), context.after) {
            true => Ok(()),
            false => Err(format!("{register:?} still holds something")),
        }
    }

    /// `push`, `pop`, `leave`, and everything else that names the stack pointer; `None` if the instruction is none of them.
    pub fn stack_form(&mut self, context: &Context, code: &[Instruction]) -> Option<Form> {
        let insn = &context.insn;
        if matches!(insn.mnemonic(), Mnemonic::Fldcw | Mnemonic::Ldmxcsr) {
            return Some(self.control_word(context, code));
        }
        if let Some(form) = self.alloca_form(context, code) {
            return Some(form);
        }
        Some(match insn.mnemonic() {
            Mnemonic::Push => self.push(context, code),
            Mnemonic::Pop => self.pop(context, code),
            Mnemonic::Leave => self.leave(context, code, 0),
            _ if !names_stack_pointer(insn) => return None,
            Mnemonic::Add | Mnemonic::Sub if insn.op0_register() == Register::RSP && insn.op1_kind() != OpKind::Register => {
                match code {
                    [only]
                        if only.code() == insn.code()
                            && only.immediate(1) == insn.immediate(1)
                            && only.op0_register() == Register::RSP =>
                    {
                        Ok("the same")
                    }
                    _ => Err("the stack pointer moves otherwise".into()),
                }
            }
            Mnemonic::Mov | Mnemonic::Lea if insn.op0_register() == Register::RSP => self.restore(context, code),
            _ => self.stack_value(context, code),
        })
    }

    fn push(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, context.insn);
        if let [only] = code {
            let slot = (self.new.function(context.entry.new), self.depths.get(&context.entry.new));
            if let (Some(function), Some(depth)) = slot {
                let slots = if insn.op0_register() == Register::RAX { &mut self.room } else { &mut self.native };
                slots.entry(function).or_default().insert(-depth - 8);
            }
            return if is_same(&insn, only) { Ok("the same") } else { Err("another push".into()) };
        }
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        match (&code[..], insn.op0_kind()) {
            ([down, put], OpKind::Register)
                if stack_move(down) == Some(-8) && store(put) == Some((insn.op0_register(), self.top(0))) =>
            {
                Ok("push: a store on the data stack")
            }
            ([get, put, down], OpKind::Memory) if stack_move(down) == Some(-8) => {
                let (through, from) = load(get).ok_or("nothing is loaded")?;
                self.in_window(place, &insn, from)?;
                self.is_free(through, &kept, context)?;
                let stored = store(put) == Some((through, self.top(-8))) && through.is_gpr64();
                if stored { Ok("push: a store on the data stack") } else { Err("another store".into()) }
            }
            ([down, put], _)
                if stack_move(down) == Some(-8) && put.code() == Code::Mov_rm64_imm32 && window(put) == Some(self.top(0)) =>
            {
                match self.old.field(place, &insn, false).copied() {
                    Some(reloc) => self.operand(place, &insn, &reloc, put.immediate(1) as i64)?,
                    None if put.immediate(1) == insn.immediate(0) => {}
                    None => return Err("another value".into()),
                }
                Ok("push: a store on the data stack")
            }
            _ => Err("no push".into()),
        }
    }

    fn pop(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = &context.insn;
        match code {
            [only] if is_same(insn, only) => {
                let depth = self.depths.get(&context.entry.new).copied();
                self.pops.extend(depth.map(|depth| (*context, -depth, insn.op0_register())));
                Ok("the same")
            }
            [get, up] if load(get) == Some((insn.op0_register(), self.top(0))) && stack_move(up) == Some(8) => {
                Ok("pop: a load from the data stack")
            }
            _ => Err("no pop".into()),
        }
    }

    /// `leave`; `dynamic` instructions in front belong to another form.
    pub fn leave(&mut self, context: &Context, code: &[Instruction], dynamic: usize) -> Form {
        let restored = match &code[dynamic..] {
            [up, pop] => stack_move(up).is_some() && pop.code() == Code::Pop_r64 && pop.op0_register() == Register::RBP,
            [pop] => pop.code() == Code::Pop_r64 && pop.op0_register() == Register::RBP,
            _ => false,
        };
        let loaded = match &code[dynamic..] {
            [get, up] => stack_move(up).is_some_and(|by| load(get) == Some((Register::RBP, self.top(by - 8)))),
            _ => false,
        };
        if !restored && !loaded {
            return Err("no leave".into());
        }
        self.restored(context, Register::RBP, 8)?;
        Ok("leave: the known depth")
    }

    /// Notes that the stack pointer becomes `register + by`.
    fn restored(&mut self, context: &Context, register: Register, by: i64) -> Result<(), String> {
        let depth =
            *self.new.function(context.after).and_then(|_| self.depths.get(&context.after)).ok_or("its depth is not known")?;
        self.restores.push(Restore { entry: context.entry, register, by, depth });
        Ok(())
    }

    /// `mov %reg,%rsp`, `lea d(%reg),%rsp`.
    fn restore(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = &context.insn;
        if !matches!(code, [] | [_]) || code.first().is_some_and(|i| stack_move(i).is_none()) {
            return Err("no move of the stack pointer".into());
        }
        match insn.mnemonic() {
            Mnemonic::Mov if insn.op1_kind() == OpKind::Register => self.restored(context, insn.op1_register(), 0)?,
            Mnemonic::Lea if insn.memory_index() == Register::None && insn.memory_base() == Register::RSP => {
                let by = insn.memory_displacement64() as i64;
                return if code.first().and_then(stack_move) == Some(by) { Ok("the same") } else { Err("another move".into()) };
            }
            Mnemonic::Lea if insn.memory_index() == Register::None => {
                self.restored(context, insn.memory_base(), insn.memory_displacement64() as i64)?;
            }
            _ => return Err("the stack pointer becomes something unknown".into()),
        }
        Ok("stack pointer restored: the known depth")
    }

    /// Notes that `register` gets the stack pointer plus `by`.
    fn copied(&mut self, context: &Context, register: Register, by: i64) {
        if let (Some(function), Some(depth)) = (self.new.function(context.entry.new), self.depths.get(&context.entry.new)) {
            self.copies.entry((function, register.full_register())).or_default().insert(by - depth);
        }
    }

    /// The stack pointer as a value that is read: `mov %rsp,%reg`, or any operand.
    fn stack_value(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = context.insn;
        let top = Window { base: Register::RSP, ..self.top(0) };
        if insn.mnemonic() == Mnemonic::Mov && insn.op0_kind() == OpKind::Register && insn.op1_register() == Register::RSP {
            self.copied(context, insn.op0_register(), 0);
            let [only] = code else { return Err("no copy".into()) };
            let right = stack_address(only) == Some((narrow(insn.op0_register()), top));
            return if right { Ok("stack pointer as a value: its window offset") } else { Err("another value".into()) };
        }
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        let [first, then] = &code[..] else { return Err("no known form".into()) };
        let (scratch, place) = stack_address(first).ok_or("its window offset is not computed")?;
        self.is_free(scratch, &kept, context)?;
        let mut meant = insn;
        let rsp = (0..insn.op_count()).filter(|i| insn.op_kind(*i) == OpKind::Register && insn.op_register(*i) == Register::RSP);
        rsp.for_each(|i| meant.set_op_register(i, scratch.full_register()));
        let read = InstructionInfoFactory::new()
            .info(&insn)
            .used_registers()
            .iter()
            .all(|u| u.register().full_register() != Register::RSP || u.access() == OpAccess::Read);
        if place != top || !read {
            return Err("another value".into());
        }
        self.same(context.entry.old, &meant, then)?;
        Ok("stack pointer as a value: its window offset")
    }

    /// Addresses, address loads, wide constants, and gates; `None` if the instruction is none of them.
    pub fn value_form(&mut self, context: &Context, code: &[Instruction]) -> Option<Form> {
        let insn = &context.insn;
        match insn.mnemonic() {
            Mnemonic::Lea => Some(self.address(context, code)),
            Mnemonic::Mov if self.loads_address(context) => Some(self.loaded_address(context, code)),
            Mnemonic::Mov if insn.code() == Code::Mov_r64_imm64 && self.old.field(context.entry.old, insn, false).is_some() => {
                Some(self.wide(context, code))
            }
            Mnemonic::Cpuid | Mnemonic::Xgetbv => {
                Some(self.gate(code, if insn.mnemonic() == Mnemonic::Cpuid { "cpuid" } else { "xgetbv" }))
            }
            _ if insn.is_string_instruction() && (0..insn.op_count()).any(|i| is_string_operand(insn.op_kind(i))) => {
                Some(self.string(context, code))
            }
            _ => None,
        }
    }

    fn address(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, context.insn);
        let [only] = code else { return Err("no address".into()) };
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let reloc = self.old.field(place, &insn, true).copied();
        if matches!(base, Register::RIP | Register::None) && index == Register::None {
            let (to, value) = constant(only).filter(|(to, _)| *to == insn.op0_register()).ok_or("no constant")?;
            match reloc {
                Some(reloc) => self.operand(place, &insn, &reloc, value)?,
                None if base == Register::RIP => {
                    let label = Place { offset: insn.ip_rel_memory_address() as i64, ..place };
                    self.stands_for(&Meaning::Place(label), value)?;
                }
                None if value == insn.memory_displacement64() as i64 => {}
                None => return Err(format!("{to:?} gets another constant")),
            }
            return Ok("address of a symbol: its window offset or slot");
        }
        if base == Register::RSP {
            let disp = insn.memory_displacement64() as i64;
            if index == Register::None {
                self.copied(context, insn.op0_register(), disp);
            }
            let meant = Window { base, index, scale: insn.memory_index_scale(), disp: (self.new.shift + disp) as i32 };
            let right = stack_address(only) == Some((narrow(insn.op0_register()), meant));
            return if right { Ok("address on the stack: its window offset") } else { Err("another address".into()) };
        }
        // The low half of an address is that of the sum of full registers.
        let narrowed = base.is_gpr32() || index.is_gpr32() || insn.op0_register().is_gpr32();
        let wide = |r: Register| if r == Register::None { r } else { r.full_register() };
        let to = if narrowed { narrow(insn.op0_register()) } else { insn.op0_register() };
        let scale = index == Register::None || only.memory_index_scale() == insn.memory_index_scale();
        let same = only.mnemonic() == Mnemonic::Lea && only.op0_register() == to;
        if !same || only.memory_base() != wide(base) || only.memory_index() != wide(index) || !scale {
            return Err("another address".into());
        }
        let disp = only.memory_displacement64() as i64;
        match reloc {
            Some(reloc) => self.operand(place, &insn, &reloc, disp)?,
            None if disp as i32 == insn.memory_displacement64() as i32 => {}
            None => return Err("another displacement".into()),
        }
        Ok("the same")
    }

    fn loads_address(&self, context: &Context) -> bool {
        let reloc = self.old.field(context.entry.old, &context.insn, true);
        let kinds = [elf::R_X86_64_GOTPCREL, elf::R_X86_64_GOTPCRELX, elf::R_X86_64_REX_GOTPCRELX, elf::R_X86_64_GOTTPOFF];
        context.insn.op0_register().is_gpr64() && reloc.is_some_and(|r| kinds.contains(&elf::RelocationType(r.kind)))
    }

    fn loaded_address(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, &context.insn);
        let ([only], Some(reloc)) = (code, self.old.field(place, insn, true).copied()) else { return Err("no constant".into()) };
        let (_, value) = constant(only).filter(|(to, _)| *to == insn.op0_register()).ok_or("no constant")?;
        let meaning = self.old.meaning(place.object, &reloc, 0);
        if elf::RelocationType(reloc.kind) == elf::R_X86_64_GOTTPOFF {
            self.thread_offsets.push((meaning, value));
        } else {
            self.stands_for(&meaning, value)?;
        }
        Ok("address out of the GOT: a constant")
    }

    fn wide(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, &context.insn);
        let ([only], Some(reloc)) = (code, self.old.field(place, insn, false).copied()) else { return Err("no constant".into()) };
        let (_, value) = constant(only).filter(|(to, _)| *to == insn.op0_register()).ok_or("no constant")?;
        self.operand(place, insn, &reloc, value)?;
        Ok("address of a symbol: its window offset or slot")
    }

    fn gate(&self, code: &[Instruction], name: &str) -> Form {
        match code {
            [only] if only.code() == Code::Call_rm64 && self.calls_import(only, &format!("cordon.{name}")) => {
                Ok("a gate of the host")
            }
            _ => Err(format!("no call of the gate `{name}`")),
        }
    }

    /// `fldcw`, `ldmxcsr`: the operand's window offset goes to a gate in eax.
    fn control_word(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, context.insn);
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        let [address, call] = &code[..] else { return Err("no address and gate".into()) };
        let found = match (constant(address), address.code()) {
            (Some((_, value)), _) => Window::at(Register::None, value),
            (None, Code::Lea_r32_m) => Window {
                base: narrow(address.memory_base()),
                index: narrow(address.memory_index()),
                scale: address.memory_index_scale(),
                disp: address.memory_displacement64() as i32,
            },
            _ => return Err("no address".into()),
        };
        let rax = address.op0_register() == Register::EAX;
        let free = kept.contains(&Register::RAX) || !self.new.is_wanted(Register::RAX, context.after);
        if !rax || !free {
            return Err("the gate finds its argument in rax, which still holds something".into());
        }
        self.in_window(place, &insn, found)?;
        let name = if insn.mnemonic() == Mnemonic::Fldcw { "fldcw" } else { "ldmxcsr" };
        self.gate(std::slice::from_ref(call), name)
    }

    fn string(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = &context.insn;
        let size = insn.memory_size().size();
        let (rep, repne) = (insn.has_rep_prefix(), insn.has_repne_prefix());
        let before = Place { offset: context.entry.old.offset - 1, ..context.entry.old };
        if self.begins_backward_copy(before, &self.old.decode(before)) {
            return self.backward_copy(context, code);
        }
        let name = match insn.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq if rep || repne => "rep_movs",
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq if rep || repne => "rep_stos",
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq if rep => "repe_cmps",
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq if repne => "repne_cmps",
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq if rep => "repe_scas",
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq if repne => "repne_scas",
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                return self.single_copy(context, code, size as i64);
            }
            _ => return Err("no known form".into()),
        };
        self.gate(code, &format!("{name}{size}"))
    }

    /// `movs` without a prefix: a load, a store, and two pointers that advance.
    fn single_copy(&mut self, context: &Context, code: &[Instruction], size: i64) -> Form {
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        let [get, put, first, second] = &code[..] else { return Err("no copy".into()) };
        self.copy_step(context, get, put, &kept, size)?;
        let moved = [first, second].map(add_to) == [Register::RSI, Register::RDI].map(|r| Some((r, r, size)));
        if moved { Ok("string instruction: load, store, advance") } else { Err("the pointers do not advance".into()) }
    }

    fn copy_step(
        &mut self,
        context: &Context,
        get: &Instruction,
        put: &Instruction,
        kept: &[Register],
        size: i64,
    ) -> Result<(), String> {
        let (through, from) = load(get).ok_or("nothing is loaded")?;
        self.is_free(through, kept, context)?;
        let right = from == Window::at(Register::ESI, 0) && store(put) == Some((through, Window::at(Register::EDI, 0)));
        if right && through.size() as i64 == size { Ok(()) } else { Err("another copy".into()) }
    }

    /// `std; rep movs; cld`: a loop from high to low addresses.
    fn backward_copy(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let size = context.insn.memory_size().size() as i64;
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        let [test, done, get, put, a, b, c, again] = &code[..] else { return Err("no loop".into()) };
        self.copy_step(context, get, put, &kept, size)?;
        let tested = test.code() == Code::Test_rm64_r64 && [test.op0_register(), test.op1_register()] == [Register::RCX; 2];
        let leaves = done.mnemonic() == Mnemonic::Je && done.near_branch_target() == again.next_ip();
        let loops = again.mnemonic() == Mnemonic::Jmp && again.near_branch_target() == test.ip();
        let steps = [(Register::RSI, size), (Register::RDI, size), (Register::RCX, 1)].map(|(r, by)| Some((r, r, -by)));
        if tested && leaves && loops && [a, b, c].map(add_to) == steps {
            Ok("copy from high to low addresses: a loop")
        } else {
            Err("another loop".into())
        }
    }
}

fn is_string_operand(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI)
}

/// Whether `new` is the same push or pop of a register.
fn is_same(insn: &Instruction, new: &Instruction) -> bool {
    matches!(insn.code(), Code::Push_r64 | Code::Pop_r64)
        && new.code() == insn.code()
        && new.op0_register() == insn.op0_register()
}
