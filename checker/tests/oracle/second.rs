//! Compares what the checker's tables say of an accepted encoding with Capstone.

use capstone::arch::x86::{ArchMode, X86OperandType};
use capstone::arch::{ArchDetail, BuildsCapstone, DetailsArchInsn};
use capstone::{Capstone, InsnDetail, RegId};
use cordon_checker::{Description, Flow, MemoryOperand};
use std::collections::BTreeMap;

/// A difference: mnemonic as Capstone spells it (empty if it decodes nothing), and what differs.
pub type Difference = (String, String);

/// What one comparison run saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub tried: u64,
    pub accepted: u64,
    /// How often each difference occurred, and bytes that show it.
    pub differences: BTreeMap<Difference, (u64, String)>,
}

impl Seen {
    pub fn add(&mut self, other: Seen) {
        self.tried += other.tried;
        self.accepted += other.accepted;
        for (difference, (count, example)) in other.differences {
            self.differences.entry(difference).or_insert((0, example)).0 += count;
        }
    }
}

/// A general register: number and bits.
type General = (u8, u8);

pub struct Second {
    capstone: Capstone,
    /// Each register id of Capstone: its name, and number and width if it is general.
    registers: Vec<(String, Option<General>)>,
}

impl Second {
    pub fn new() -> Second {
        let capstone = Capstone::new().x86().mode(ArchMode::Mode64).detail(true).build().expect("Capstone knows x86");
        let name = |id: u16| capstone.reg_name(RegId(id)).unwrap_or_default();
        let registers = (0..300)
            .map(name)
            .map(|name| {
                let general = general(&name);
                (name, general)
            })
            .collect();
        Second { capstone, registers }
    }

    /// Everything that differs in one accepted encoding.
    pub fn differences(&self, bytes: &[u8], ours: &Description) -> Vec<Difference> {
        let mut instructions = self.capstone.disasm_iter(bytes, 0).expect("memory");
        let Some(instruction) = instructions.next() else { return vec![(String::new(), unknown(bytes))] };
        let mnemonic = instruction.mnemonic().unwrap_or_default().to_owned();
        let detail = self.capstone.insn_detail(&instruction).expect("details were asked for");
        let mut found = Vec::new();
        let mut differ = |what: &str, ours: String, theirs: String| {
            if ours != theirs {
                let against = if ours.is_empty() { "" } else { " against " };
                found.push((mnemonic.clone(), format!("{what} {ours}{against}{theirs}")));
            }
        };
        differ("length", ours.len.to_string(), instruction.len().to_string());
        differ("flow", flow_of(ours.flow).to_owned(), flow(&mnemonic).to_owned());
        let written = self.written(&mnemonic, &detail);
        // Registers that only one of both writes.
        for (sign, only) in [("+", ours.gpr_writes & !written), ("-", written & !ours.gpr_writes)] {
            differ("writes", String::new(), if only == 0 { String::new() } else { format!("{sign}{}", registers(only)) });
        }
        let theirs = self.memory(&mnemonic, &detail);
        let expected = if ours.flow == Flow::Next { ours.memory } else { None };
        match (expected, theirs) {
            (None, None) => {}
            (None, Some((_, _))) if matches!(ours.flow, Flow::TableCall { .. } | Flow::TableJump { .. }) => {}
            (Some(ours), Some((place, access))) => {
                differ("address", address(&ours), place);
                differ("size", ours.bytes.to_string(), access.0.to_string());
                differ("access", access_of(ours.read, ours.write).to_owned(), access.1.to_owned());
            }
            (ours, theirs) => differ("memory operand", ours.is_some().to_string(), theirs.is_some().to_string()),
        }
        found
    }

    /// General registers written, as the checker counts them.
    fn written(&self, mnemonic: &str, detail: &InsnDetail) -> u16 {
        let general = |id: &RegId| self.registers.get(usize::from(id.0)).and_then(|(_, general)| *general);
        let set = detail.regs_write().iter().filter_map(general).fold(0, |set, (number, _)| set | 1 << number);
        let implicit = matches!(mnemonic, "push" | "pop" | "call" | "ret");
        if implicit { set & !(1 << 4) } else { set }
    }

    /// The memory operand: where, and size and access.
    fn memory(&self, mnemonic: &str, detail: &InsnDetail) -> Option<(String, (u8, &'static str))> {
        let ArchDetail::X86Detail(x86) = detail.arch_detail();
        if matches!(mnemonic, "lea" | "nop") {
            return None;
        }
        x86.operands().find_map(|operand| {
            let X86OperandType::Mem(memory) = operand.op_type else { return None };
            let name = |id: RegId| self.registers.get(usize::from(id.0)).map_or("?", |(name, _)| name);
            let scale = if memory.index() == RegId::INVALID_REG { 0 } else { memory.scale() };
            let place = format!(
                "{}:{}+{}*{scale}{:+#x}",
                name(memory.segment()),
                name(memory.base()),
                name(memory.index()),
                memory.disp() as i32,
            );
            let access = operand.access.map_or("none", |access| access_of(access.is_readable(), access.is_writable()));
            Some((place, (operand.size, access)))
        })
    }
}

/// What Capstone does not know: the map and opcode behind a VEX prefix of three bytes, else only that.
fn unknown(bytes: &[u8]) -> String {
    let vex = bytes.iter().position(|byte| !matches!(byte, 0x65 | 0x67)).unwrap_or(0);
    match bytes[vex..] {
        [0xc4, map, _, opcode, ..] => format!("unknown VEX map {} {opcode:02x}", map & 31),
        _ => "unknown".to_owned(),
    }
}

/// The same as [`Second::memory`] writes it; no register is the empty name.
fn address(memory: &MemoryOperand) -> String {
    let name = |register: Option<u8>| match register {
        None => String::new(),
        Some(number) => NAMES[if memory.wide { 0 } else { 1 }][usize::from(number)].to_owned(),
    };
    let scale = if memory.index.is_none() { 0 } else { memory.scale };
    format!("gs:{}+{}*{scale}{:+#x}", name(memory.base), name(memory.index), memory.disp)
}

/// Names of the general registers with 64, 32, 16 and 8 bits.
const NAMES: [[&str; 16]; 4] = [
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"],
    ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "r8d", "r9d", "r10d", "r11d", "r12d", "r13d", "r14d", "r15d"],
    ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "r8w", "r9w", "r10w", "r11w", "r12w", "r13w", "r14w", "r15w"],
    ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil", "r8b", "r9b", "r10b", "r11b", "r12b", "r13b", "r14b", "r15b"],
];

fn general(name: &str) -> Option<General> {
    let high = ["ah", "ch", "dh", "bh"].iter().position(|high| *high == name).map(|number| (number as u8, 8));
    let widths = NAMES.iter().zip([64, 32, 16, 8]);
    high.or_else(|| {
        widths.into_iter().find_map(|(names, bits)| names.iter().position(|n| *n == name).map(|number| (number as u8, bits)))
    })
}

fn registers(set: u16) -> String {
    (0..16).filter(|number| set >> number & 1 == 1).map(|number| NAMES[0][number]).collect::<Vec<_>>().join(",")
}

const fn access_of(read: bool, write: bool) -> &'static str {
    match (read, write) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "none",
    }
}

fn flow_of(flow: Flow) -> &'static str {
    match flow {
        Flow::Next => "next",
        Flow::Conditional(_) => "conditional",
        Flow::Jump(_) | Flow::TableJump { .. } => "jump",
        Flow::Call(_) | Flow::TableCall { .. } => "call",
        Flow::Return => "return",
        Flow::Trap => "trap",
        Flow::Check { .. } | Flow::Meter { .. } => "unit",
    }
}

fn flow(mnemonic: &str) -> &'static str {
    match mnemonic {
        "jmp" => "jump",
        "call" => "call",
        "ret" => "return",
        "ud2" => "trap",
        j if j.starts_with('j') => "conditional",
        _ => "next",
    }
}
