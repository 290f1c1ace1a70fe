//! What the tables say about one instruction: for reports, and for comparing the tables with other decoders.

use crate::decode::{Action, Insn, LONGEST, Machine, Memory, Operands, Window, decode, writes};
use crate::facts::Facts;
use crate::policy::{Features, Host, Mode, Protect};
use crate::table::{Size, flag};
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
    /// Match: `cmp $0x7fffffff,%register; ja`, displacement from the end. Behind it the register is low, if the target is a `ud2`.
    Check {
        register: u8,
        abort: i32,
    },
    /// Metered: `sub $charge,%r14; jb` to a `ud2`, displacement from the end.
    Meter {
        charge: u16,
        abort: i32,
    },
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
    /// A prefetch: no mode asks for its address.
    pub prefetch: bool,
    /// Base and index are 64-bit registers: a load under [`Protect::Stores`].
    pub wide: bool,
}

impl MemoryOperand {
    /// Whether match mode wants the address to be exact.
    #[must_use]
    pub fn needs_check(&self, mode: Mode) -> bool {
        let load = self.read && !self.write;
        mode.matched && !self.prefetch && !(load && mode.protect == Protect::Stores)
    }
}

/// An instruction and what match mode knows behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    pub description: Description,
    /// Whether its memory operand, if any, is allowed: exact, or exempt.
    pub allowed: bool,
    /// Facts on the way to the next instruction; of CHECK, if its target is a `ud2`. A branch's target gets the facts in front of it.
    pub after: Facts,
}

/// Describes the instruction or unit at the start of `bytes` in text without modes.
///
/// # Errors
/// The rule that it violates by itself; [`Rule::Truncated`] if `bytes` ends inside it.
pub fn describe(bytes: &[u8], host: Host) -> Result<Description, Rule> {
    describe_in(bytes, host, Mode::default())
}

/// Describes the instruction or unit at the start of `bytes` in text of `mode`.
///
/// # Errors
/// As [`describe`].
pub fn describe_in(bytes: &[u8], host: Host, mode: Mode) -> Result<Description, Rule> {
    let (_, insn, operands) = decode_in(bytes, host, mode)?;
    Ok(description(&insn, operands.as_ref()))
}

/// Steps over the instruction or unit at the start of `bytes` in text of `mode`, as the checker does. `facts`: what is known in front of
/// it; `esp`: the greatest low half of rsp there, the layout's S less the depth.
///
/// # Errors
/// As [`describe`].
pub fn track(bytes: &[u8], host: Host, mode: Mode, facts: Facts, esp: u32) -> Result<Tracked, Rule> {
    let (window, insn, operands) = decode_in(bytes, host, mode)?;
    let description = description(&insn, operands.as_ref());
    let after = match insn.action {
        Action::Check => facts.checked(register_of(&insn)),
        _ => facts.after(&insn, operands.as_ref(), &window, esp),
    };
    let allowed = description.memory.is_none_or(|memory| !memory.needs_check(mode) || facts.allows(&memory, esp));
    Ok(Tracked { description, allowed, after })
}

fn decode_in(bytes: &[u8], host: Host, mode: Mode) -> Result<(Window, Insn, Option<Operands>), Rule> {
    if bytes.is_empty() {
        return Err(Rule::Truncated);
    }
    let mut window = [0; LONGEST];
    for (to, from) in window.iter_mut().zip(bytes) {
        *to = *from;
    }
    let mut operands = None;
    let insn = decode(&window, &Machine::new(host, mode), &mut operands)?;
    if insn.len > bytes.len() {
        return Err(Rule::Truncated);
    }
    Ok((window, insn, operands))
}

fn description(insn: &Insn, operands: Option<&Operands>) -> Description {
    let special = match insn.action {
        Action::Down | Action::Up => 1 << 4,
        Action::Meter => 1 << 14,
        _ => 0,
    };
    Description {
        len: insn.len,
        flow: flow(insn),
        memory: operands.and_then(memory_of),
        gpr_writes: special | operands.map_or(0, writes),
        features: insn.features,
    }
}

fn flow(insn: &Insn) -> Flow {
    let Insn { action, disp, number, .. } = *insn;
    match action {
        Action::Next | Action::Nop | Action::Endbr | Action::Push | Action::Pop => Flow::Next,
        Action::Down | Action::Up | Action::Hint => Flow::Next,
        Action::Jcc | Action::Limit | Action::EndbrLimit => Flow::Conditional(disp),
        Action::Jmp => Flow::Jump(disp),
        Action::Call => Flow::Call(disp),
        Action::TableCall => Flow::TableCall { mask: number, disp },
        Action::TableJmp => Flow::TableJump { mask: number, disp },
        Action::ImportCall => Flow::TableCall { mask: 0, disp },
        Action::ImportJmp => Flow::TableJump { mask: 0, disp },
        Action::Ret => Flow::Return,
        Action::Ud2 => Flow::Trap,
        Action::Check => Flow::Check { register: register_of(insn), abort: disp },
        Action::Meter => Flow::Meter { charge: u16::try_from(number).unwrap_or(u16::MAX), abort: disp },
    }
}

/// The number of CHECK's register.
fn register_of(check: &Insn) -> u8 {
    u8::try_from(check.number).unwrap_or(u8::MAX)
}

/// The memory operand; `None` also for what only looks like one (`lea`).
pub(crate) fn memory_of(operands: &Operands) -> Option<MemoryOperand> {
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
        prefetch: line.has(flag::PREFETCH),
        wide: memory.wide,
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
