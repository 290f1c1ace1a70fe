//! Forms of functions that allocate on the stack at run time: the native depth stays static, and a word of window memory, the arena
//! word, stands for the stack pointer from the allocation on.

use crate::code::{Window, add_to, load, names_stack_pointer, narrow, stack_move, store, window};
use crate::compare::{Comparison, Context, Form};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of arena words.
#[derive(Debug, Default)]
pub struct Arena {
    /// Window offset of the word; the first use tells.
    word: Option<i32>,
    /// By function: native depth of the static frame, and where it keeps the caller's word, in bytes from the return address.
    frames: BTreeMap<u32, (i64, i64)>,
}

const FORM: &str = "alloca: the arena word stands for the stack pointer";

impl Comparison<'_> {
    /// Whether `w` is the arena word.
    pub fn is_word(&mut self, w: Window) -> bool {
        let plain = w.base == Register::None && w.index == Register::None;
        plain && *self.alloca.word.get_or_insert(w.disp) == w.disp
    }

    fn loads_word(&mut self, insn: &Instruction) -> Option<Register> {
        load(insn).filter(|(_, from)| self.is_word(*from)).map(|(to, _)| to)
    }

    /// Whether the arena word takes part in `code`: the function begins to allocate here, or did so before.
    fn uses_word(&self, context: &Context, code: &[Instruction]) -> bool {
        let absolute = |w: &Window| w.base == Register::None && w.index == Register::None;
        let known = |w: &Window| self.alloca.word.is_none_or(|word| word == w.disp);
        let begins = match code {
            [down, get, ..] => stack_move(down).is_some() && load(get).is_some_and(|(_, from)| absolute(&from)),
            _ => false,
        };
        (begins || self.is_known(context)) && code.iter().filter_map(window).any(|w| absolute(&w) && known(&w))
    }

    /// The form of an instruction that names the stack pointer in a function with `alloca`; `None` if this is no such function.
    pub fn alloca_form(&mut self, context: &Context, code: &[Instruction]) -> Option<Form> {
        let insn = &context.insn;
        let through = insn.memory_base() == Register::RSP;
        let stack = matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Leave);
        if !(names_stack_pointer(insn) || stack || through) || !self.uses_word(context, code) {
            return None;
        }
        Some(self.allocated(context, code).map(|()| FORM))
    }

    fn function(&self, context: &Context) -> u32 {
        self.new.function(context.entry.new).unwrap_or(0)
    }

    fn is_known(&self, context: &Context) -> bool {
        self.alloca.frames.contains_key(&self.function(context))
    }

    fn allocated(&mut self, context: &Context, code: &[Instruction]) -> Result<(), String> {
        let insn = context.insn;
        let mut code = code.to_vec();
        let kept = self.kept(&mut code);
        let sets = insn.op0_register() == Register::RSP && matches!(insn.mnemonic(), Mnemonic::Mov | Mnemonic::Lea);
        let leaves = if sets || insn.mnemonic() == Mnemonic::Leave { self.leaves(context, &code, &kept) } else { None };
        if let Some(done) = leaves {
            return done;
        }
        let code = self.enters(context, code, &kept)?;
        match insn.mnemonic() {
            Mnemonic::Sub if insn.op0_register() == Register::RSP && insn.op1_kind() == OpKind::Memory => {
                self.moves_by_memory(context, &code, &kept)
            }
            Mnemonic::Sub | Mnemonic::Add if insn.op0_register() == Register::RSP => self.moves(&insn, &code),
            Mnemonic::Mov if insn.op0_register() == Register::RSP => match &code[..] {
                [only] if store(only).is_some_and(|(from, to)| from == insn.op1_register() && self.is_word(to)) => Ok(()),
                _ => Err("the arena word gets another value".into()),
            },
            Mnemonic::Mov if insn.op1_register() == Register::RSP => match &code[..] {
                [only] if self.loads_word(only) == Some(narrow(insn.op0_register())) => Ok(()),
                _ => Err("another value".into()),
            },
            Mnemonic::Lea => match &code[..] {
                [first, then] => {
                    let to = insn.op0_register();
                    let index = insn.memory_index();
                    let base = self.loads_word(first) == Some(narrow(to)) && index != to && then.memory_index() == index;
                    let scale = index == Register::None || then.memory_index_scale() == insn.memory_index_scale();
                    let sum = then.code() == Code::Lea_r64_m && then.memory_base() == to && then.op0_register() == to;
                    let disp = then.memory_displacement64() == insn.memory_displacement64();
                    if base && scale && sum && disp { Ok(()) } else { Err("another address".into()) }
                }
                _ => Err("no address".into()),
            },
            Mnemonic::Push => self.pushes(context, &code, &kept),
            _ => self.accesses(context, &code, &kept),
        }
    }

    /// Takes the instructions off `code` with which a function begins to allocate: room in its frame, and the caller's word into it.
    fn enters(&mut self, context: &Context, mut code: Vec<Instruction>, kept: &[Register]) -> Result<Vec<Instruction>, String> {
        let Some(room) = code.first().and_then(stack_move) else { return Ok(code) };
        let [_, get, put, ..] = &code[..] else { return Err("the caller's arena word is not kept".into()) };
        let through = self.loads_word(get).ok_or("the caller's arena word is not kept")?;
        let (from, to) = store(put).ok_or("the caller's arena word is not kept")?;
        let depth = *self.depths.get(&context.entry.new).ok_or("its depth is not known")?;
        let saved = i64::from(to.disp) - self.new.shift - (depth - room);
        // The word lies in the new room, below the static frame.
        if from != through || to.base != Register::ESP || !(-(depth - room)..=-depth - 8).contains(&saved) {
            return Err("the caller's arena word is kept elsewhere".into());
        }
        self.is_free(through, kept, context)?;
        let frame = (depth, saved);
        if *self.alloca.frames.entry(self.function(context)).or_insert(frame) != frame {
            return Err("another frame".into());
        }
        code.drain(..3);
        Ok(code)
    }

    /// Back to the static frame: the caller's word is put back. `None` if `code` does not do that.
    fn leaves(&mut self, context: &Context, code: &[Instruction], kept: &[Register]) -> Option<Result<(), String>> {
        let [get, put, rest @ ..] = code else { return None };
        let (through, from) = load(get).filter(|(_, from)| from.base == Register::ESP)?;
        let stored = store(put).filter(|(value, to)| *value == through && self.is_word(*to));
        let (depth, saved) = *self.alloca.frames.get(&self.function(context))?;
        let before = *self.depths.get(&context.entry.new)?;
        if stored.is_none() || i64::from(from.disp) - self.new.shift - before != saved {
            return Some(Err("the caller's arena word is not put back".into()));
        }
        if let Err(message) = self.is_free(through, kept, context) {
            return Some(Err(message));
        }
        if context.insn.mnemonic() == Mnemonic::Leave {
            return Some(self.leave(context, rest, 0).map(|_| ()));
        }
        let back = matches!(rest, [only] if stack_move(only).is_some()) && self.depths.get(&context.after) == Some(&depth);
        Some(if back { Ok(()) } else { Err("the stack pointer is not back at the static frame".into()) })
    }

    /// `add`, `sub`: of the word.
    fn moves(&mut self, insn: &Instruction, code: &[Instruction]) -> Result<(), String> {
        let [only] = code else { return Err("the arena word does not move".into()) };
        let word = window(only).is_some_and(|w| self.is_word(w));
        let by = match insn.op1_kind() {
            OpKind::Register => only.op1_register() == insn.op1_register(),
            _ => only.immediate(1) == insn.immediate(1),
        };
        let wide = matches!(
            only.code(),
            Code::Sub_rm64_r64 | Code::Sub_rm64_imm32 | Code::Add_rm64_imm32 | Code::Sub_rm64_imm8 | Code::Add_rm64_imm8
        );
        if word && by && wide && only.mnemonic() == insn.mnemonic() {
            Ok(())
        } else {
            Err("the arena word moves otherwise".into())
        }
    }

    /// `sub mem,%rsp`: the size through a register.
    fn moves_by_memory(&mut self, context: &Context, code: &[Instruction], kept: &[Register]) -> Result<(), String> {
        let [get, only] = code else { return Err("the arena word does not move".into()) };
        let (through, from) = load(get).ok_or("nothing is loaded")?;
        self.in_window(context.entry.old, &context.insn, from)?;
        self.is_free(through, kept, context)?;
        let word = only.code() == Code::Sub_rm64_r64 && window(only).is_some_and(|w| self.is_word(w));
        if word && only.op1_register() == through { Ok(()) } else { Err("the arena word moves otherwise".into()) }
    }

    /// `push`: the word moves down, and the value goes there.
    fn pushes(&mut self, context: &Context, code: &[Instruction], kept: &[Register]) -> Result<(), String> {
        let (place, insn) = (context.entry.old, context.insn);
        let [get, down, put, rest @ ..] = code else { return Err("no push".into()) };
        let scratch = self.loads_word(get).ok_or("the arena word does not move")?;
        self.is_free(scratch, kept, context)?;
        let moved = add_to(down) == Some((scratch, scratch, -8));
        if !moved || !store(put).is_some_and(|(from, to)| from == scratch && self.is_word(to)) {
            return Err("the arena word does not move".into());
        }
        let top = Window::at(narrow(scratch), 0);
        let value = match (rest, insn.op0_kind()) {
            ([again, put], OpKind::Register) if self.loads_word(again) == Some(narrow(scratch)) => {
                return if store(put) == Some((insn.op0_register(), top)) { Ok(()) } else { Err("another store".into()) };
            }
            ([value, again, put], OpKind::Memory) if self.loads_word(again) == Some(narrow(scratch)) => {
                let (through, from) = load(value).ok_or("nothing is loaded")?;
                self.in_window(place, &insn, from)?;
                self.is_free(through, kept, context)?;
                (through.is_gpr64() && through != scratch, store(put) == Some((through, top)))
            }
            _ => return Err("no push".into()),
        };
        if value == (true, true) { Ok(()) } else { Err("another store".into()) }
    }

    /// An access through the stack pointer: through a copy of the word.
    fn accesses(&mut self, context: &Context, code: &[Instruction], kept: &[Register]) -> Result<(), String> {
        let [first, then] = code else { return Err("no access through the arena word".into()) };
        let scratch = self.loads_word(first).ok_or("the arena word is not loaded")?;
        self.is_free(scratch, kept, context)?;
        let mut meant = context.insn;
        meant.set_memory_base(scratch.full_register());
        self.same(context.entry.old, &meant, then)
    }

    /// Takes the copies of stack arguments off the front of a call's code: what lies at the arena word goes to where the callee looks.
    pub fn without_copied_arguments(&mut self, context: &Context, code: &[Instruction]) -> Result<Vec<Instruction>, String> {
        let mut rest = code.to_vec();
        if !self.is_known(context) {
            return Ok(rest);
        }
        let kept = self.kept(&mut rest);
        let Some(scratch) = rest.first().and_then(|first| self.loads_word(first)) else { return Ok(code.to_vec()) };
        rest.remove(0);
        let mut used = BTreeSet::from([scratch.full_register()]);
        for at in (0..).step_by(8) {
            let [get, put, ..] = &rest[..] else { break };
            let Some((value, _)) = load(get).filter(|(_, from)| *from == Window::at(scratch, at)) else { break };
            if store(put) != Some((value, self.top(at))) {
                return Err("a stack argument goes elsewhere".into());
            }
            used.insert(value.full_register());
            rest.drain(..2);
        }
        let arguments = [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9, Register::RAX];
        match used.iter().find(|r| !kept.contains(r) && arguments.contains(r)) {
            Some(register) => return Err(format!("{register:?} may carry an argument")),
            None => used.iter().try_for_each(|register| self.is_free(*register, &kept, context))?,
        }
        Ok(rest)
    }
}
