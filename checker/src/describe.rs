//! What the tables say about one instruction: for reports, and for comparing the tables with other decoders.

use crate::decode::{Action, LONGEST, Machine, Memory, Operands, decode};
use crate::policy::{Features, Host};
use crate::table::{Field, Operand, Size, flag};
use crate::verdict::Rule;

/// One accepted instruction or fused unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Bytes, 1 to 16.
    pub len: usize,
    pub flow: Flow,
    /// The explicit memory operand; for `lea` and the no-ops there is none, for table units see [`Flow`].
    pub memory: Option<MemoryOperand>,
    /// Registers written: bit n = general-purpose register n, whole or part; rsp by `push`, `pop`, `call`, `ret` is not included.
    pub gpr_writes: u16,
    pub features: Features,
}

/// Where control goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Only to the next instruction.
    Next,
    /// Direct branch or call, displacement from the end.
    Conditional(i32),
    Jump(i32),
    Call(i32),
    /// Fused table unit, or a call or jump of one slot (mask 0).
    TableCall {
        mask: u32,
        disp: i32,
    },
    TableJump {
        mask: u32,
        disp: i32,
    },
    Return,
    Trap,
}

/// A window operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// 32-bit base and index register numbers.
    pub base: Option<u8>,
    pub index: Option<u8>,
    /// 1, 2, 4 or 8.
    pub scale: u8,
    pub disp: i32,
    /// Bytes accessed, 1 to 32.
    pub bytes: u8,
    pub read: bool,
    pub write: bool,
}

/// Describes the instruction or unit at the start of `bytes`.
///
/// # Errors
/// The rule that it violates by itself; [`Rule::Truncated`] if `bytes` ends inside it.
pub fn describe(bytes: &[u8], host: Host) -> Result<Description, Rule> {
    if bytes.is_empty() {
        return Err(Rule::Truncated);
    }
    let mut window = [0; LONGEST];
    for (to, from) in window.iter_mut().zip(bytes) {
        *to = *from;
    }
    let mut operands = None;
    let insn = decode(&window, Machine::new(host), &mut operands)?;
    if insn.len > bytes.len() {
        return Err(Rule::Truncated);
    }
    let operands = operands.as_ref();
    let special = match insn.action {
        Action::Deepen(_) => 1 << 4,
        _ => 0,
    };
    Ok(Description {
        len: insn.len,
        flow: flow(insn.action),
        memory: operands.and_then(memory),
        gpr_writes: special | operands.map_or(0, writes),
        features: insn.features,
    })
}

const fn flow(action: Action) -> Flow {
    match action {
        Action::Next | Action::Nop | Action::Endbr | Action::Push | Action::Pop | Action::Deepen(_) | Action::Hint(_) => {
            Flow::Next
        }
        Action::Jcc(rel) | Action::Limit { abort: rel, .. } => Flow::Conditional(rel),
        Action::Jmp(rel) => Flow::Jump(rel),
        Action::Call(rel) => Flow::Call(rel),
        Action::TableCall { mask, disp } => Flow::TableCall { mask, disp },
        Action::TableJmp { mask, disp } => Flow::TableJump { mask, disp },
        Action::ImportCall(disp) => Flow::TableCall { mask: 0, disp },
        Action::ImportJmp(disp) => Flow::TableJump { mask: 0, disp },
        Action::Ret => Flow::Return,
        Action::Ud2 => Flow::Trap,
    }
}

fn memory(operands: &Operands) -> Option<MemoryOperand> {
    let memory = operands.memory?;
    let line = operands.line;
    let bytes = bytes_of(operands)?;
    let register = |number: u8| (number != Memory::NONE).then_some(number);
    Some(MemoryOperand {
        base: register(memory.base),
        index: register(memory.index),
        scale: 1_u8.wrapping_shl(u32::from(memory.scale)),
        disp: memory.disp,
        bytes,
        read: line.rm.read,
        write: line.rm.write,
    })
}

fn bytes_of(operands: &Operands) -> Option<u8> {
    let wide = |narrow: u8| if operands.l { narrow.wrapping_mul(2) } else { narrow };
    let by_w = |narrow: u8| if operands.w { narrow.wrapping_mul(2) } else { narrow };
    Some(match operands.line.size {
        Size::No => return None,
        Size::B1 => 1,
        Size::B2 => 2,
        Size::B4 => 4,
        Size::B8 => 8,
        Size::B10 => 10,
        Size::B16 => 16,
        Size::V if operands.opsize => 2,
        Size::V | Size::Y | Size::Scalar => by_w(4),
        Size::Pair => by_w(8),
        Size::L => wide(16),
        Size::L2 => wide(8),
        Size::L4 => wide(4),
        Size::L8 => wide(2),
        Size::Dup if operands.l => 32,
        Size::Dup => 8,
    })
}

fn writes(operands: &Operands) -> u16 {
    let line = operands.line;
    let mut set = 0;
    if line.has(flag::MODRM) {
        set |= written(line.reg, operands.reg, operands.rex);
    }
    if operands.memory.is_none() {
        set |= written(line.rm, operands.rm, operands.rex);
    }
    set |= written(line.vvvv, operands.vvvv, true);
    for (attribute, register) in [(flag::WRITES_A, 0), (flag::WRITES_C, 1), (flag::WRITES_D, 2)] {
        if line.has(attribute) {
            set |= 1_u16.wrapping_shl(register);
        }
    }
    set
}

fn written(operand: Operand, number: u8, rex: bool) -> u16 {
    let number = match operand.field {
        // ah, ch, dh, bh are parts of registers 0 to 3.
        Field::Gpr8 if !rex && number >= 4 => number & 3,
        Field::Gpr8 | Field::GprV | Field::GprY | Field::Gpr32 => number,
        _ => return 0,
    };
    if operand.write { 1_u16.wrapping_shl(u32::from(number)) } else { 0 }
}
