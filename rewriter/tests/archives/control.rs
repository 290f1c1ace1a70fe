//! Forms of control transfers.

use crate::code::{Window, constant, load, narrow, store, window};
use crate::compare::{Comparison, Context, Form, import_name};
use crate::image::Table;
use crate::original::{Meaning, Place, TLS_RESOLVER};
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::elf;

/// Host functions that do not come back.
const NO_RETURN: [&str; 7] = ["abort", "exit", "_exit", "_Exit", "__stack_chk_fail", "__assert_fail", "cordon.longjmp"];
/// Functions whose call is a trap where nobody defines them.
const TRAPS: [&str; 2] = ["__stack_chk_fail", "abort"];
/// What stands for the instruction `syscall`.
const SYSCALL: &str = "__cordon_syscall";

impl Comparison<'_> {
    /// The form of an instruction that ends a block, and of `hlt`.
    pub fn control(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = &context.insn;
        match insn.flow_control() {
            FlowControl::UnconditionalBranch => self.jump(context, code),
            FlowControl::ConditionalBranch => self.branch(context, code),
            FlowControl::Call if insn.code() == Code::Syscall => self.system_call(context, code),
            FlowControl::Call => self.call(context, &self.target(context), code),
            FlowControl::IndirectCall | FlowControl::IndirectBranch => self.indirect(context, code),
            FlowControl::Return => match code {
                [only] if only.code() == Code::Retnq && insn.code() == Code::Retnq => Ok("return"),
                _ => Err("no return".into()),
            },
            _ => match code {
                [only] if only.code() == Code::Ud2 => Ok("trap"),
                _ => Err("no trap".into()),
            },
        }
    }

    fn target(&self, context: &Context) -> Meaning {
        self.old.branch_target(context.entry.old, &context.insn)
    }

    /// Whether the direct branch or call `insn` of the text goes to what stands for `place`.
    fn goes_to(&self, insn: &Instruction, place: Place) -> Result<(), String> {
        let to = insn.near_branch_target() as u32;
        if self.lands(to, place) { Ok(()) } else { Err(format!("goes to text+{to:#x}, which does not stand for its target")) }
    }

    fn jump(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let target = self.target(context);
        match (&target, code) {
            (Meaning::Place(to), []) if self.lands(context.after, *to) => Ok("nothing: jump to what comes next"),
            (Meaning::Place(to), [only]) if only.flow_control() == FlowControl::UnconditionalBranch => {
                self.goes_to(only, *to)?;
                Ok("jump")
            }
            (Meaning::Absent { .. }, _) => self.leave_through(&target, code),
            _ => Err("no jump".into()),
        }
    }

    /// A tail call of something that nobody here defines.
    fn leave_through(&self, target: &Meaning, code: &[Instruction]) -> Form {
        let Meaning::Absent { name, weak, .. } = target else { return Err("not absent".into()) };
        match code {
            [only] if only.code() == Code::Jmp_rm64 && self.calls_import(only, name) => Ok("tail call of a host function"),
            [only] if only.code() == Code::Ud2 && (*weak || TRAPS.contains(&name.as_str())) => {
                Ok("call of an absent function: trap")
            }
            _ => Err(format!("no tail call of `{name}`")),
        }
    }

    fn branch(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let insn = &context.insn;
        let (Meaning::Place(to), [only]) = (self.target(context), code) else { return Err("no conditional branch".into()) };
        if !insn.is_jcc_short_or_near() || insn.condition_code() != only.condition_code() {
            return Err("another condition".into());
        }
        self.goes_to(only, to)?;
        self.goes_on(context)?;
        Ok("conditional branch")
    }

    fn system_call(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (first, rest) = code.split_first().ok_or("no call")?;
        let name = self.new.functions.get(&(first.near_branch_target() as u32)).map(|(_, name)| name.as_str());
        if first.code() != Code::Call_rel32_64 || name != Some(SYSCALL) {
            return Err("no call of the gate for system calls".into());
        }
        // With nothing behind it, it was not meant to return.
        let place = context.entry.old;
        let last = self.old.section(place).is_some_and(|s| s.data.len() as i64 == place.offset + context.insn.len() as i64);
        match rest {
            [] => self.goes_on(context)?,
            [trap] if last && trap.code() == Code::Ud2 => {}
            _ => return Err("the call is thought not to return".into()),
        }
        Ok("system call: a call of the gate for it")
    }

    fn call(&mut self, context: &Context, target: &Meaning, code: &[Instruction]) -> Form {
        let code = self.without_copied_arguments(context, code)?;
        if matches!(target, Meaning::Absent { name, .. } if import_name(name) == "cordon.setjmp") {
            return self.setjmp(context, &code);
        }
        let (first, rest) = code.split_first().ok_or("no call")?;
        if matches!(target, Meaning::Absent { name, .. } if name == TLS_RESOLVER) {
            let given = first.code() == Code::Mov_rm64_r64
                && (first.op0_register(), first.op1_register()) == (Register::RAX, Register::RDI);
            return if given && rest.is_empty() { Ok("thread-local address: as given") } else { Err("another address".into()) };
        }
        let (form, returns) = match target {
            Meaning::Place(to) if first.code() == Code::Call_rel32_64 => {
                self.goes_to(first, *to)?;
                ("call", !rest.is_empty() && self.new.never_returns(first.near_branch_target() as u32))
            }
            Meaning::Absent { name, .. } if first.code() == Code::Call_rm64 && self.calls_import(first, name) => {
                ("call of a host function", NO_RETURN.contains(&import_name(name)))
            }
            Meaning::Absent { name, weak, .. } if first.code() == Code::Ud2 && (*weak || TRAPS.contains(&name.as_str())) => {
                return Ok("call of an absent function: trap");
            }
            _ => return Err("no call of its target".into()),
        };
        match rest {
            [] => self.goes_on(context)?,
            [trap] if trap.code() == Code::Ud2 && returns => {}
            _ => return Err("the call is thought not to return".into()),
        }
        Ok(form)
    }

    /// A call of setjmp: what the host's record does not hold goes with it, and back each time it returns.
    fn setjmp(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (first, rest) = code.split_first().ok_or("no call")?;
        let (call, back) = rest.split_first().ok_or("no call")?;
        if call.code() != Code::Call_rm64 || !self.calls_import(call, "setjmp") {
            return Err("no call of the host's setjmp".into());
        }
        let handed = match (constant(first), back) {
            // Nothing in the image allocates.
            (Some((Register::RAX, 0)), []) => true,
            (None, [copy, shift, put, cut]) => {
                let upper = copy.code() == Code::Mov_rm64_r64
                    && [copy.op0_register(), copy.op1_register()] == [Register::RCX, Register::RAX];
                let down =
                    shift.code() == Code::Shr_rm64_imm8 && shift.op0_register() == Register::RCX && shift.immediate8() == 32;
                let word = store(put).filter(|(from, _)| *from == Register::ECX).map(|(_, to)| to);
                let lower = cut.code() == Code::Mov_rm32_r32 && [cut.op0_register(), cut.op1_register()] == [Register::EAX; 2];
                let taken = load(first).filter(|(to, _)| *to == Register::EAX).map(|(_, from)| from);
                upper && down && lower && taken == word && word.is_some_and(|w| self.is_word(w))
            }
            _ => false,
        };
        if !handed {
            return Err("the arena word does not go with it and back".into());
        }
        self.goes_on(context)?;
        Ok("setjmp: the host's, with the arena word")
    }

    /// What `call|jmp *f@GOTPCREL(%rip)` goes to.
    fn through_got(&self, context: &Context) -> Option<Meaning> {
        let (place, insn) = (context.entry.old, &context.insn);
        let reloc = self.old.field(place, insn, true)?;
        let got = [elf::R_X86_64_GOTPCREL, elf::R_X86_64_GOTPCRELX, elf::R_X86_64_REX_GOTPCRELX];
        got.contains(&elf::RelocationType(reloc.kind)).then(|| self.old.meaning(place.object, reloc, 0))
    }

    fn indirect(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, context.insn);
        let calls = insn.flow_control() == FlowControl::IndirectCall;
        match self.through_got(context) {
            Some(target) if calls => return self.call(context, &target, code),
            Some(Meaning::Place(to)) => {
                let [only] = code else { return Err("no jump".into()) };
                self.goes_to(only, to)?;
                return Ok("jump");
            }
            Some(target) => return self.leave_through(&target, code),
            None => {}
        }
        let code = if calls { self.without_copied_arguments(context, code)? } else { code.to_vec() };
        let [loads @ .., mask, transfer] = &code[..] else { return Err("no masked transfer".into()) };
        let number = if calls { None } else { self.jump_number(context, loads, transfer) };
        let register = match (loads, insn.op0_kind()) {
            (_, OpKind::Memory) if number.is_some() => number.unwrap_or(Register::None),
            ([], OpKind::Register) => insn.op0_register(),
            // A pointer to code has 32 bits here.
            ([only], OpKind::Memory) => {
                let (to, from) = load(only).filter(|(to, _)| to.is_gpr32()).ok_or("its target is not loaded")?;
                self.in_window(place, &insn, from)?;
                to.full_register()
            }
            _ => return Err("no masked transfer".into()),
        };
        if !loads.is_empty() && !calls && self.tables_jump(transfer).is_some_and(|t| self.wanted_at_targets(register, t)) {
            return Err(format!("{register:?} still holds something"));
        }
        let form = self.masked(register, mask, transfer, calls)?;
        if calls {
            self.goes_on(context)?;
        }
        Ok(form)
    }

    fn tables_jump(&self, transfer: &Instruction) -> Option<&Table> {
        self.new.tables.get(&self.new.table_of(transfer))
    }

    fn wanted_at_targets(&self, register: Register, table: &Table) -> bool {
        table.slots.iter().flatten().any(|to| self.new.is_wanted(register, *to))
    }

    /// `and $MASK,%r32; call|jmp *%gs:T(%r64)`, with a mask that keeps every slot of the table and no other number.
    fn masked(&self, register: Register, mask: &Instruction, transfer: &Instruction, calls: bool) -> Form {
        let and = mask.mnemonic() == Mnemonic::And && mask.op0_register() == narrow(register);
        let code = if calls { Code::Call_rm64 } else { Code::Jmp_rm64 };
        let through = window(transfer).filter(|w| transfer.code() == code && w.base == register && w.index == Register::None);
        let (true, Some(through)) = (and, through) else { return Err("no masked transfer".into()) };
        let (bits, form) = match self.new.tables.get(&i64::from(through.disp)) {
            Some(table) if !calls => (table.bits, "jump through a table of labels"),
            None if through == Window::at(register, self.new.main_table) => {
                (self.new.main_bits, "through the table of functions")
            }
            _ => return Err("through no table".into()),
        };
        match mask.immediate(1) == 8 * ((1 << bits) - 1) {
            true => Ok(form),
            false => Err("its mask is not the table's".into()),
        }
    }
}
