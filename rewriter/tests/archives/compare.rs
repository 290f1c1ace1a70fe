//! Compares each original instruction with what stands for it in the image. What is not the same instruction must have one of the forms
//! of `control`, `forms` and `alloca`, each of which says what it replaces and checks it.

use crate::code::{Window, is_immediate, is_nothing, names_stack_pointer, narrow, window};
use crate::image::{Entry, Image, is_padding};
use crate::original::{Meaning, Originals, Place, Reloc};
use cordon_checker::layout::Slot;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::elf;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The name of a form, or what is wrong.
pub type Form = Result<&'static str, String>;

/// Everything but the plain instruction that a form looks at.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub entry: Entry,
    pub insn: Instruction,
    /// Text offset where control goes on.
    pub after: u32,
}

/// A stack pointer taken out of a register or a frame: the depth behind it must be one that the register's copies give.
#[derive(Clone, Copy, Debug)]
pub struct Restore {
    pub entry: Entry,
    pub register: Register,
    /// From the register's value to the new stack pointer.
    pub by: i64,
    pub depth: i64,
}

#[derive(Debug)]
pub struct Comparison<'a> {
    pub old: &'a Originals,
    pub new: &'a Image,
    /// Window offsets of the original sections, as the first use of each tells; every other use must agree.
    pub bases: BTreeMap<(usize, usize), i64>,
    /// Offsets of data sections that code refers to.
    pub referred: BTreeMap<(usize, usize), BTreeSet<i64>>,
    /// Window offset of the thread pointer, as the first use tells.
    pub thread_pointer: Option<i64>,
    /// Offsets from the thread pointer that are judged when it is known.
    pub thread_offsets: Vec<(Meaning, i64)>,
    /// Native depth before each instruction of the text.
    pub depths: HashMap<u32, i64>,
    /// What registers hold as copies of the stack pointer, by function: bytes from the return address.
    pub copies: HashMap<(u32, Register), BTreeSet<i64>>,
    pub restores: Vec<Restore>,
    /// Slots that a `push` writes on the native stack, by function: bytes from the return address. Those of rax only make room: what
    /// it holds at entry means nothing.
    pub native: HashMap<u32, BTreeSet<i64>>,
    pub room: HashMap<u32, BTreeSet<i64>>,
    /// Pops from the native stack: slot and register.
    pub pops: Vec<(Context, i64, Register)>,
    /// Accesses of the data stack through rsp: from and to, in bytes from the return address.
    accesses: Vec<(Entry, i64, i64)>,
    pub alloca: crate::alloca::Arena,
    /// Additions of a table's address that leave nothing: the entry's number does not need it.
    pub sums: BTreeSet<Place>,
    /// Jumps through tables in the order of their entries.
    pub ordered: Vec<crate::switches::Ordered>,
    /// Instructions by form.
    pub counts: BTreeMap<&'static str, usize>,
    pub problems: Vec<String>,
}

impl<'a> Comparison<'a> {
    pub fn new(old: &'a Originals, new: &'a Image) -> Comparison<'a> {
        Comparison {
            old,
            new,
            bases: BTreeMap::new(),
            referred: crate::data::referred(old),
            thread_pointer: None,
            thread_offsets: Vec::new(),
            depths: HashMap::new(),
            copies: HashMap::new(),
            restores: Vec::new(),
            native: HashMap::new(),
            room: HashMap::new(),
            pops: Vec::new(),
            accesses: Vec::new(),
            alloca: crate::alloca::Arena::default(),
            sums: BTreeSet::new(),
            ordered: Vec::new(),
            counts: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Compares every instruction of the map, then what only the whole can tell.
    pub fn run(&mut self) {
        self.walk_depths();
        for entry in &self.new.map {
            // What the rewriter adds has no original.
            if entry.old.object >= self.old.objects.len() {
                continue;
            }
            match self.entry(*entry) {
                Ok(form) => *self.counts.entry(form).or_insert(0) += 1,
                Err(message) => self.wrong(entry, &message),
            }
        }
        self.judge_restores();
        self.judge_accesses();
        self.judge_pops();
        self.judge_thread_offsets();
        self.every_function_is_there();
        self.data();
        self.judge_order();
    }

    pub fn wrong(&mut self, entry: &Entry, message: &str) {
        let (old, object) = (self.old.decode(entry.old), &self.old.objects[entry.old.object].name);
        let new: Vec<String> = self.new.decode(entry.new, entry.end).iter().map(ToString::to_string).collect();
        let function = self.new.function(entry.new).map_or("?", |f| &self.new.functions[&f].1);
        self.problems.push(format!(
            "{object}:{}+{:#x} in {function}: `{old}` became `{}`: {message}",
            entry.old.section,
            entry.old.offset,
            new.join("; ")
        ));
    }

    fn walk_depths(&mut self) {
        let mut entries: BTreeSet<u32> =
            self.new.slots.iter().filter_map(|s| if let Slot::Text(at) = s { Some(*at) } else { None }).collect();
        let code = self.new.map.iter().flat_map(|e| self.new.decode(e.new, e.end));
        entries.extend(code.filter(|insn| insn.code() == Code::Call_rel32_64).map(|insn| insn.near_branch_target() as u32));
        let globals: BTreeSet<Place> = self.old.global_functions().map(|(_, place)| place).collect();
        entries.extend(self.new.map.iter().filter(|e| globals.contains(&e.old)).map(|e| e.new));
        for entry in entries {
            if let Err(message) = self.new.depths(entry, &mut self.depths) {
                self.problems.push(message);
            }
        }
    }

    fn entry(&mut self, entry: Entry) -> Form {
        let insn = self.old.decode(entry.old);
        let mut code = self.new.decode(entry.new, entry.end);
        code.retain(|i| !is_padding(i));
        let mut after = entry.end;
        let ends = insn.flow_control() == FlowControl::UnconditionalBranch;
        if let Some(jump) = code.last().filter(|i| i.flow_control() == FlowControl::UnconditionalBranch && !ends) {
            let to = jump.near_branch_target() as u32;
            // Not the jump of a loop within a form.
            if !(entry.new..entry.end).contains(&to) {
                after = to;
                code.pop();
            }
        }
        let context = Context { entry, insn, after };
        if insn.flow_control() != FlowControl::Next || insn.mnemonic() == Mnemonic::Hlt {
            return self.control(&context, &code);
        }
        let form = self.straight(&context, &code)?;
        self.goes_on(&context)?;
        Ok(form)
    }

    /// Control goes on behind the original instruction.
    pub fn goes_on(&self, context: &Context) -> Result<(), String> {
        let next = Place { offset: context.entry.old.offset + context.insn.len() as i64, ..context.entry.old };
        match self.lands(context.after, next) {
            true => Ok(()),
            false => Err(format!("goes on at text+{:#x}, which does not stand for what follows", context.after)),
        }
    }

    /// Whether text offset `new` stands for the original `place`, or for what comes behind it and instructions that leave nothing.
    pub fn lands(&self, new: u32, place: Place) -> bool {
        let Some(found) = self.new.at(new) else { return false };
        let mut at = place;
        for _ in 0..64 {
            if at == found.old {
                return true;
            }
            let Some(next) = self.successor_of_nothing(at) else { return false };
            at = next;
        }
        false
    }

    /// Where control goes on behind an instruction that may leave nothing: a no-op or a jump.
    fn successor_of_nothing(&self, at: Place) -> Option<Place> {
        let insn = self.old.decode(at);
        if insn.flow_control() == FlowControl::UnconditionalBranch {
            return match self.old.branch_target(at, &insn) {
                Meaning::Place(to) => Some(to),
                _ => None,
            };
        }
        let nothing = is_nothing(&insn) || self.begins_backward_copy(at, &insn) || self.sums.contains(&at);
        nothing.then(|| Place { offset: at.offset + insn.len() as i64, ..at })
    }

    /// `std` in front of `rep movs` and `cld`.
    pub fn begins_backward_copy(&self, at: Place, insn: &Instruction) -> bool {
        if insn.mnemonic() != Mnemonic::Std {
            return false;
        }
        let copy_at = Place { offset: at.offset + insn.len() as i64, ..at };
        let copy = self.old.decode(copy_at);
        let behind = self.old.decode(Place { offset: copy_at.offset + copy.len() as i64, ..at });
        copy.has_rep_prefix() && copy.is_string_instruction() && behind.mnemonic() == Mnemonic::Cld
    }

    fn straight(&mut self, context: &Context, code: &[Instruction]) -> Form {
        let (place, insn) = (context.entry.old, &context.insn);
        if code.is_empty() {
            let nothing = is_nothing(insn) || self.begins_backward_copy(place, insn);
            return if nothing {
                Ok("nothing: padding, landing pad, direction flag")
            } else {
                Err("nothing is left of it".into())
            };
        }
        if let Some(form) = self.stack_form(context, code) {
            return form;
        }
        if let Some(form) = self.entry_load(context, code) {
            return form;
        }
        self.note_access(context);
        if let Some(form) = self.value_form(context, code) {
            return form;
        }
        if let ([only], true) = (code, !names_stack_pointer(insn)) {
            self.same(place, insn, only)?;
            return Ok(if window(only).is_some() { "the same, with a window operand" } else { "the same" });
        }
        Err("no known form".into())
    }

    /// Whether `new` is `insn` with the same registers and immediates, and its memory operand in the window.
    pub fn same(&mut self, place: Place, insn: &Instruction, new: &Instruction) -> Result<(), String> {
        let code = if insn.code() == Code::VEX_Vstmxcsr_m32 { Code::Stmxcsr_m32 } else { insn.code() };
        if new.code() != code || new.has_lock_prefix() != insn.has_lock_prefix() || new.op_count() != insn.op_count() {
            return Err("another instruction".into());
        }
        for i in 0..insn.op_count() {
            let same = match insn.op_kind(i) {
                OpKind::Register => new.op_kind(i) == OpKind::Register && new.op_register(i) == insn.op_register(i),
                OpKind::Memory => new.op_kind(i) == OpKind::Memory,
                kind if is_immediate(kind) => {
                    let value = new.immediate(i) as i64;
                    match self.old.field(place, insn, false).copied() {
                        Some(reloc) => self.operand(place, insn, &reloc, value).is_ok(),
                        None => new.op_kind(i) == kind && new.immediate(i) == insn.immediate(i),
                    }
                }
                _ => return Err("operands without a form".into()),
            };
            if !same {
                return Err(format!("operand {i} differs"));
            }
        }
        if (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
            let found = window(new).ok_or("its operand is not in the window")?;
            self.in_window(place, insn, found)?;
        }
        Ok(())
    }

    /// Whether `found` is the memory operand of `insn` as a window operand.
    pub fn in_window(&mut self, place: Place, insn: &Instruction, found: Window) -> Result<(), String> {
        let wanted =
            |r: Register| if matches!(r, Register::None | Register::RIP | Register::EIP) { Register::None } else { narrow(r) };
        let (base, index) = (wanted(insn.memory_base()), wanted(insn.memory_index()));
        let scale = index == Register::None || found.scale == insn.memory_index_scale();
        if found.base != base || found.index != index || !scale {
            return Err("another base or index".into());
        }
        let shift = if base == Register::ESP { self.new.shift as i32 } else { 0 };
        let value = i64::from(found.disp.wrapping_sub(shift));
        let disp = insn.memory_displacement64() as i64;
        match (self.old.field(place, insn, true).copied(), insn.segment_prefix()) {
            (Some(reloc), Register::FS) if reloc.kind == elf::R_X86_64_TPOFF32.0 => {
                self.stands_for(&self.old.meaning(place.object, &reloc, reloc.addend), value)
            }
            (Some(reloc), _) => self.operand(place, insn, &reloc, value),
            (None, Register::FS) => {
                let pointer = value - disp;
                match *self.thread_pointer.get_or_insert(pointer) == pointer {
                    true => Ok(()),
                    false => Err("another thread-local place".into()),
                }
            }
            (None, _) if insn.is_ip_rel_memory_operand() => Err("a place in the text".into()),
            (None, _) if value as i32 == disp as i32 => Ok(()),
            (None, _) => Err(format!("displacement {value:#x} for {disp:#x}")),
        }
    }

    /// Whether `value` is what the relocated field of `insn` names, as an operand.
    pub fn operand(&mut self, place: Place, insn: &Instruction, reloc: &Reloc, value: i64) -> Result<(), String> {
        // A relative field counts from the instruction's end, the addend from the field.
        let bias = place.offset + insn.len() as i64 - reloc.offset as i64;
        let plain = self.old.meaning(place.object, reloc, reloc.addend);
        match elf::RelocationType(reloc.kind) {
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => {
                self.stands_for(&self.old.meaning(place.object, reloc, reloc.addend + bias), value)
            }
            elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_64 => self.stands_for(&plain, value),
            elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
                let word = self.new.window(value, 8);
                let word = i64::from_le_bytes(word.try_into().expect("8 bytes"));
                self.stands_for(&self.old.meaning(place.object, reloc, reloc.addend + bias), word)
            }
            elf::R_X86_64_TPOFF32 => {
                self.thread_offsets.push((plain, value));
                Ok(())
            }
            kind => Err(format!("relocation type {} has no form", kind.0)),
        }
    }

    /// Whether the number `value` stands for `meaning`: a window offset, 8 × a slot, or the number itself.
    pub fn stands_for(&mut self, meaning: &Meaning, value: i64) -> Result<(), String> {
        let slot = |value: i64| (value % 8 == 0).then(|| self.new.slots.get(usize::try_from(value / 8).ok()?)).flatten();
        let right = match meaning {
            Meaning::Number(number) => *number == value,
            Meaning::Place(place) if self.old.is_code(*place) => match slot(value) {
                Some(Slot::Text(at)) => self.lands(*at, *place),
                _ => false,
            },
            Meaning::Place(place) => {
                let base = value - place.offset;
                *self.bases.entry((place.object, place.section)).or_insert(base) == base
            }
            // What the linker defines: a bound of some area, which has no other name.
            Meaning::Absent { name, .. }
                if ["__cordon_", "__init_array_", "__fini_array_"].iter().any(|p| name.starts_with(p)) =>
            {
                self.new.regions.iter().any(|(start, end)| (*start..=*end).contains(&value))
            }
            Meaning::Absent { name, addend: 0, .. } if matches!(slot(value), Some(Slot::Import(_))) => {
                self.new.imports.get(&((value / 8) as u32)).map(String::as_str) == Some(import_name(name))
            }
            Meaning::Absent { weak: true, addend, .. } => value == *addend,
            Meaning::Absent { .. } => false,
        };
        if right { Ok(()) } else { Err(format!("{value:#x} does not stand for {meaning:?}")) }
    }

    /// Whether the import call or jump `insn` goes to the host function that stands for `name`.
    pub fn calls_import(&self, insn: &Instruction, name: &str) -> bool {
        let found = window(insn).filter(|w| w.base == Register::None && w.index == Register::None);
        let slot = found.and_then(|w| u32::try_from((i64::from(w.disp) - self.new.main_table) / 8).ok());
        slot.and_then(|slot| self.new.imports.get(&slot)).map(String::as_str) == Some(import_name(name))
    }

    /// Notes where in the frame an access through rsp goes.
    fn note_access(&mut self, context: &Context) {
        let insn = &context.insn;
        let depth = self.depths.get(&context.entry.new);
        if let (Register::RSP, false, Some(depth)) = (insn.memory_base(), insn.mnemonic() == Mnemonic::Lea, depth) {
            let from = insn.memory_displacement64() as i64 - depth;
            self.accesses.push((context.entry, from, from + insn.memory_size().size() as i64));
        }
    }

    /// What is popped where a push only made room has no value.
    fn judge_pops(&mut self) {
        for (context, slot, register) in std::mem::take(&mut self.pops) {
            let room = self.new.function(context.entry.new).and_then(|f| self.room.get(&f));
            if room.is_some_and(|slots| slots.contains(&slot)) && self.new.is_wanted(register, context.after) {
                self.wrong(&context.entry, &format!("{register:?} gets what a push for room left"));
            }
        }
    }

    /// What a native `push` wrote is in no memory that the code can read: nothing may look for it there.
    fn judge_accesses(&mut self) {
        for (entry, from, to) in std::mem::take(&mut self.accesses) {
            let native = self.new.function(entry.new).and_then(|f| self.native.get(&f));
            let hit = native.and_then(|slots| slots.range(from - 7..to).next().copied());
            if let Some(slot) = hit {
                self.wrong(&entry, &format!("reaches the slot at {slot}, which a push on the native stack wrote"));
            }
        }
    }

    fn judge_thread_offsets(&mut self) {
        let pointer = self.thread_pointer.unwrap_or(0);
        for (meaning, value) in std::mem::take(&mut self.thread_offsets) {
            if let Err(message) = self.stands_for(&meaning, value + pointer) {
                self.problems.push(format!("thread-local: {message}"));
            }
        }
    }

    /// Each restored stack pointer is the one that was copied.
    fn judge_restores(&mut self) {
        for restore in std::mem::take(&mut self.restores) {
            let function = self.new.function(restore.entry.new).unwrap_or(0);
            let copies = self.copies.get(&(function, restore.register));
            if !copies.is_some_and(|all| all.iter().any(|copy| -(copy + restore.by) == restore.depth)) {
                self.wrong(
                    &restore.entry,
                    &format!("the stack pointer becomes one at depth {}, which was not saved", restore.depth),
                );
            }
        }
    }

    fn every_function_is_there(&mut self) {
        let there: BTreeSet<Place> = self.new.map.iter().map(|e| e.old).collect();
        for (name, mut place) in self.old.global_functions() {
            // Where a function begins with instructions that leave nothing, what follows is there.
            let nothing = |place| self.successor_of_nothing(place);
            while let (false, Some(next)) = (there.contains(&place), nothing(place)) {
                place = next;
            }
            if !there.contains(&place) {
                self.problems.push(format!("`{name}` is not in the image"));
            }
        }
    }
}

/// The name under which the host knows a function.
pub fn import_name(name: &str) -> &str {
    match name {
        "bcmp" => "memcmp",
        "setjmp" | "_setjmp" | "__setjmp" | "sigsetjmp" | "__sigsetjmp" => "cordon.setjmp",
        "longjmp" | "_longjmp" | "siglongjmp" | "__longjmp_chk" => "cordon.longjmp",
        name => name,
    }
}
