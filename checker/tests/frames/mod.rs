//! How deep the stack of a statically linked program may get, from its machine code.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeMap;

/// A function: name, first address, code.
struct Function<'f> {
    name: &'f str,
    start: u64,
    code: &'f [u8],
}

/// What a function does to the stack.
#[derive(Debug, Default)]
struct Frame {
    /// Everything that lowers rsp, added up: at least the frame of any path without a loop that pushes.
    bytes: u64,
    /// Functions that it calls (true) or jumps to.
    callees: Vec<(u64, bool)>,
}

/// An ELF64 file, read as far as this needs.
struct Elf<'f>(&'f [u8]);

impl<'f> Elf<'f> {
    fn word(&self, at: usize, bytes: usize) -> u64 {
        self.0[at..at + bytes].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    /// Section headers: type, address, offset, size, link.
    fn sections(&self) -> Vec<(u64, u64, usize, usize, usize)> {
        let (table, count) = (self.word(40, 8) as usize, self.word(60, 2) as usize);
        let headers = (0..count).map(|index| table + 64 * index);
        let field = |at: usize, offset: usize| self.word(at + offset, 8) as usize;
        headers
            .map(|at| (self.word(at + 4, 4), self.word(at + 16, 8), field(at, 24), field(at, 32), self.word(at + 40, 4) as usize))
            .collect()
    }

    /// Bytes of the file at a loaded address.
    fn at(&self, address: u64, len: usize) -> Option<&'f [u8]> {
        const NOBITS: u64 = 8;
        let inside = |&&(kind, start, _, size, _): &&(u64, u64, usize, usize, usize)| {
            kind != NOBITS && start != 0 && start <= address && address + len as u64 <= start + size as u64
        };
        let sections = self.sections();
        let (_, start, offset, ..) = sections.iter().find(inside)?;
        let from = offset + (address - start) as usize;
        self.0.get(from..from + len)
    }

    /// Functions of the symbol table.
    fn functions(&self) -> Vec<Function<'f>> {
        const SYMTAB: u64 = 2;
        const FUNCTION: u64 = 2;
        let sections = self.sections();
        let (_, _, offset, size, link) = *sections.iter().find(|section| section.0 == SYMTAB).expect("a symbol table");
        let strings = sections[link].2;
        let function = |at: usize| {
            let start = self.word(at + 8, 8);
            let code = self.at(start, self.word(at + 16, 8) as usize).filter(|code| !code.is_empty())?;
            let name = &self.0[strings + self.word(at, 4) as usize..];
            let name = name.split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
            (self.word(at + 4, 1) & 15 == FUNCTION).then_some(Function { name, start, code })
        };
        (offset..offset + size).step_by(24).filter_map(function).collect()
    }
}

/// The frame of one function.
fn frame_of(elf: &Elf<'_>, function: &Function<'_>) -> Frame {
    let mut frame = Frame::default();
    let end = function.start + function.code.len() as u64;
    for instruction in Decoder::with_ip(64, function.code, function.start, DecoderOptions::NONE) {
        assert!(!instruction.is_invalid(), "{}: {:x}", function.name, instruction.ip());
        let to_stack = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
        match instruction.mnemonic() {
            Mnemonic::Push => frame.bytes += 8,
            Mnemonic::Sub if to_stack => frame.bytes += instruction.immediate(1),
            Mnemonic::Add if to_stack => assert!(instruction.immediate(1) < 1 << 31, "{}: moves rsp down", function.name),
            Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Pop => {}
            _ => assert!(!to_stack, "{}: {instruction} changes rsp", function.name),
        }
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                let target = instruction.near_branch_target();
                if !(function.start..end).contains(&target) || instruction.flow_control() == FlowControl::Call {
                    frame.callees.push((target, instruction.flow_control() == FlowControl::Call));
                }
            }
            FlowControl::IndirectCall => frame.callees.push((slot_of(elf, function, &instruction), true)),
            // A jump table of the function's own: its targets are among the bytes that are read anyway.
            FlowControl::IndirectBranch => {
                assert!(instruction.op0_kind() == OpKind::Register, "{}: {instruction}", function.name)
            }
            _ => {}
        }
    }
    frame
}

/// The function that a call through a constant pointer reaches.
fn slot_of(elf: &Elf<'_>, function: &Function<'_>, call: &Instruction) -> u64 {
    assert!(call.is_ip_rel_memory_operand(), "{}: {call} may go anywhere", function.name);
    let slot = elf.at(call.ip_rel_memory_address(), 8).expect("a pointer in the file");
    u64::from_le_bytes(slot.try_into().expect("8 bytes"))
}

/// Bytes of stack below the return address that the function `name` of the program `file` needs at most, and the path that does.
///
/// # Panics
/// If the machine code is not such that this can be told: recursion, calls through pointers, rsp moved by more than constants.
pub fn deepest(file: &[u8], name: &str) -> (u64, Vec<String>) {
    let elf = Elf(file);
    let functions = elf.functions();
    let frames: BTreeMap<u64, (&str, Frame)> =
        functions.iter().map(|function| (function.start, (function.name, frame_of(&elf, function)))).collect();
    let named = functions.iter().find(|function| function.name == name);
    let root = named.or_else(|| functions.iter().find(|function| function.name.contains(name))).expect("the function is there");
    below(&frames, root.start, &mut Vec::new())
}

fn below(frames: &BTreeMap<u64, (&str, Frame)>, at: u64, path: &mut Vec<u64>) -> (u64, Vec<String>) {
    assert!(!path.contains(&at), "recursion at {at:x}");
    let (name, frame) = frames.get(&at).unwrap_or_else(|| panic!("no function starts at {at:x}"));
    path.push(at);
    let callees = frame.callees.iter().map(|(callee, call)| {
        let (bytes, names) = below(frames, *callee, path);
        (bytes + if *call { 8 } else { 0 }, names)
    });
    let (bytes, mut names) = callees.max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    path.pop();
    names.insert(0, format!("{} {name}", frame.bytes));
    (frame.bytes + bytes, names)
}
