//! The image file, read as any tool would: text, data, the map of old to new places, symbols, and the note's tables.

use crate::original::Place;
use cordon_checker::layout::{Slot, TEXT_VADDR};
use cordon_checker::note::Note;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One line of `.cordon.map` and where its code ends.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub new: u32,
    pub end: u32,
    pub old: Place,
}

/// A jump table.
#[derive(Clone, Debug)]
pub struct Table {
    pub bits: u32,
    /// Text offsets; `None` = the trap.
    pub slots: Vec<Option<u32>>,
}

#[derive(Debug)]
pub struct Image {
    pub text: Vec<u8>,
    /// Ascending by `new`.
    pub map: Vec<Entry>,
    /// Names of the objects that places refer to.
    pub objects: Vec<String>,
    /// Functions by start: end and name.
    pub functions: BTreeMap<u32, (u32, String)>,
    /// Initialised window memory: start and bytes.
    data: Vec<(i64, Vec<u8>)>,
    /// Start, end.
    pub regions: Vec<(i64, i64)>,
    pub main_bits: u32,
    pub main_table: i64,
    pub slots: Vec<Slot>,
    /// By slot number.
    pub imports: HashMap<u32, String>,
    /// By displacement.
    pub tables: BTreeMap<i64, Table>,
    /// From native to data stack.
    pub shift: i64,
}

impl Image {
    pub fn read(bytes: &[u8]) -> Image {
        let file = ElfFile64::<LittleEndian>::parse(bytes).expect("an image");
        let bytes_of = |name: &str| file.section_by_name(name).map_or(Vec::new(), |s| s.data().expect("bytes").to_vec());
        let descriptor = bytes_of(".note.cordon");
        // Name length, descriptor length, type, the name padded to words.
        let note = Note::parse(&descriptor[12 + 8..]).expect("a note");
        let layout = note.layout;
        let mut tables = BTreeMap::new();
        let text_slot = |word: Option<u32>| match word.map(Slot::from_word) {
            Some(Slot::Text(at)) => Some(at),
            _ => None,
        };
        for table in (0..layout.sub_table_count()).filter_map(|i| layout.sub_table(i)) {
            let slots = (0..table.count).map(|i| text_slot(layout.sub_slots.get((table.first + i) as usize))).collect();
            tables.insert(i64::from(table.base), Table { bits: table.bits, slots });
        }
        let objects = bytes_of(".cordon.objects");
        let objects: Vec<String> =
            objects.split(|b| *b == 0).map(|n| String::from_utf8_lossy(n).into_owned()).filter(|n| !n.is_empty()).collect();
        let functions: BTreeMap<u32, (u32, String)> = file
            .symbols()
            .filter(|s| s.kind() == object::SymbolKind::Text)
            .map(|s| {
                let start = (s.address() - TEXT_VADDR) as u32;
                (start, (start + s.size() as u32, s.name().unwrap_or_default().to_owned()))
            })
            .collect();
        let data = [".rodata", ".data"].map(|name| {
            let start = file.section_by_name(name).map_or(0, |s| s.address() as i64);
            (start, bytes_of(name))
        });
        Image {
            text: bytes_of(".text"),
            map: entries(&bytes_of(".cordon.map"), &functions),
            objects,
            functions,
            data: data.into(),
            regions: (0..layout.region_count())
                .filter_map(|i| layout.region(i))
                .map(|r| (r.start.into(), r.end.into()))
                .collect(),
            main_bits: layout.main_bits,
            main_table: layout.table.into(),
            slots: layout.slots.iter().map(Slot::from_word).collect(),
            imports: (0..layout.imports as usize)
                .map(|i| note.import(i).expect("an import"))
                .map(|(slot, name)| (slot, name.to_owned()))
                .collect(),
            tables,
            shift: layout.stack_shift.into(),
        }
    }

    /// The window's bytes at `at`, zero where the file has none.
    pub fn window(&self, at: i64, length: usize) -> Vec<u8> {
        let byte = |at: i64| {
            let found = self.data.iter().find(|(start, bytes)| (*start..*start + bytes.len() as i64).contains(&at));
            found.map_or(0, |(start, bytes)| bytes[(at - start) as usize])
        };
        (at..at + length as i64).map(byte).collect()
    }

    /// The entry whose code starts at `new`.
    pub fn at(&self, new: u32) -> Option<&Entry> {
        self.map.binary_search_by_key(&new, |e| e.new).ok().map(|i| &self.map[i])
    }

    /// The instructions in `from..to` of the text.
    pub fn decode(&self, from: u32, to: u32) -> Vec<Instruction> {
        Decoder::with_ip(64, &self.text[from as usize..to as usize], from.into(), DecoderOptions::NONE).into_iter().collect()
    }

    /// The start of the function around `at`.
    pub fn function(&self, at: u32) -> Option<u32> {
        self.functions.range(..=at).next_back().map(|(start, _)| *start)
    }

    fn one(&self, at: u32) -> Instruction {
        let end = self.text.len().min(at as usize + 16);
        Decoder::with_ip(64, &self.text[at as usize..end], at.into(), DecoderOptions::NONE).decode()
    }

    /// The table that `call|jmp *%gs:T(%r)` jumps through: displacement and whether it is the main one.
    pub fn table_of(&self, insn: &Instruction) -> i64 {
        i64::from(insn.memory_displacement64() as i32)
    }

    /// Where control goes from the instruction `insn` of the text, calls returning and table jumps included.
    fn successors(&self, insn: &Instruction) -> Vec<u32> {
        let next = insn.next_ip() as u32;
        match insn.flow_control() {
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => vec![next],
            FlowControl::UnconditionalBranch => vec![insn.near_branch_target() as u32],
            FlowControl::ConditionalBranch => vec![insn.near_branch_target() as u32, next],
            FlowControl::IndirectBranch if insn.memory_base() != Register::None => {
                self.tables.get(&self.table_of(insn)).map_or(Vec::new(), |t| t.slots.iter().flatten().copied().collect())
            }
            _ => Vec::new(),
        }
    }

    /// Whether what `register` holds at `from` may still be wanted: read, or left to a callee, caller or jump that counts on it.
    pub fn is_wanted(&self, register: Register, from: u32) -> bool {
        let register = register.full_register();
        let number = register.number();
        let in_set = |set: u16| set >> number & 1 == 1;
        // rax, rcx, rdx, rsi, rdi, r8 to r10; rbx, rbp, r12 to r15; rax, rdx.
        let (arguments, saved, results) = (0b0111_1100_0111_u16, 0b1111_0000_0010_1000_u16, 0b101_u16);
        let mut factory = InstructionInfoFactory::new();
        let mut seen = BTreeSet::new();
        // A place, and how many low bytes of the register are new there.
        let mut work = vec![(from, 0)];
        while let Some((at, mut new)) = work.pop() {
            if !seen.insert((at, new)) {
                continue;
            }
            let insn = self.one(at);
            let used: Vec<_> =
                factory.info(&insn).used_registers().iter().filter(|u| u.register().full_register() == register).collect();
            let high = |r: Register| matches!(r, Register::AH | Register::BH | Register::CH | Register::DH);
            let reads = |a: OpAccess| !matches!(a, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess);
            if used.iter().any(|u| reads(u.access()) && (u.register().size() > new || high(u.register()))) {
                return true;
            }
            for u in used.iter().filter(|u| u.access() == OpAccess::Write && !high(u.register())) {
                new = new.max(if u.register().size() >= 4 { 8 } else { u.register().size() });
            }
            let overwritten = new == 8;
            let leaves = match insn.flow_control() {
                FlowControl::Return => saved | results,
                FlowControl::Call | FlowControl::IndirectCall => arguments,
                // A jump to another function, or through the main table.
                FlowControl::UnconditionalBranch if self.function(insn.near_branch_target() as u32) != self.function(at) => {
                    arguments | saved
                }
                FlowControl::IndirectBranch if !self.tables.contains_key(&self.table_of(&insn)) => arguments | saved,
                _ => 0,
            };
            if in_set(leaves) {
                return true;
            }
            let call = matches!(insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
            if overwritten || call && !in_set(saved) {
                continue;
            }
            work.extend(self.successors(&insn).into_iter().map(|to| (to, new)));
        }
        false
    }

    /// Whether no return and no way out can be reached from `from`: every path ends in a trap or a call that does not come back.
    pub fn never_returns(&self, from: u32) -> bool {
        let mut seen = BTreeSet::new();
        let mut work = vec![from];
        while let Some(at) = work.pop() {
            if !seen.insert(at) {
                continue;
            }
            let insn = self.one(at);
            let outward = match insn.flow_control() {
                FlowControl::Return => true,
                FlowControl::IndirectBranch => !self.tables.contains_key(&self.table_of(&insn)),
                _ => false,
            };
            if outward {
                return false;
            }
            work.extend(self.successors(&insn));
        }
        true
    }

    /// The static depth of the native stack before each instruction of the function that starts at `entry`, in bytes.
    pub fn depths(&self, entry: u32, depths: &mut HashMap<u32, i64>) -> Result<(), String> {
        let mut work = vec![(entry, 0)];
        while let Some((at, depth)) = work.pop() {
            if let Some(known) = depths.get(&at) {
                if *known != depth {
                    return Err(format!("text+{at:#x} is reached with depths {known} and {depth}"));
                }
                continue;
            }
            depths.insert(at, depth);
            let insn = self.one(at);
            let own = insn.op_count() > 0 && insn.op0_register() == Register::RSP;
            let after = match insn.mnemonic() {
                Mnemonic::Push => depth + 8,
                Mnemonic::Pop => depth - 8,
                Mnemonic::Sub if own => depth + insn.immediate(1) as i64,
                Mnemonic::Add if own => depth - insn.immediate(1) as i64,
                Mnemonic::Lea if own => depth - insn.memory_displacement64() as i64,
                _ => depth,
            };
            let inside = |to: &u32| self.function(*to) == self.function(at);
            work.extend(self.successors(&insn).into_iter().filter(inside).map(|to| (to, after)));
        }
        Ok(())
    }
}

/// The map with the end of each entry: the next one, or the function's end.
fn entries(bytes: &[u8], functions: &BTreeMap<u32, (u32, String)>) -> Vec<Entry> {
    let word = |line: &[u8], i: usize| u32::from_le_bytes(line[4 * i..4 * i + 4].try_into().expect("a word"));
    let lines: Vec<&[u8]> = bytes.chunks_exact(16).collect();
    let entry = |(i, line): (usize, &&[u8])| {
        let new = word(line, 0);
        let (_, (limit, _)) = functions.range(..=new).next_back().expect("a function around it");
        let end = lines.get(i + 1).map_or(*limit, |next| word(next, 0).min(*limit));
        let old = Place { object: word(line, 1) as usize, section: word(line, 2) as usize, offset: word(line, 3).into() };
        Entry { new, end, old }
    };
    lines.iter().enumerate().map(entry).collect()
}

/// Whether the instruction does nothing and stands for nothing: alignment, or the checker's note of the depth.
pub fn is_padding(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Nop
        || matches!(insn.code(), Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 | Code::Nopw | Code::Nopd)
}
