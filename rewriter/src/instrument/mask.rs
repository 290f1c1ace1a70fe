//! Explicit masks, the classic form of the sandbox, kept for comparison: the address of an access is computed into a 32-bit register first
//! (`lea disp(%base,%index,scale),%r32`, the mask of classic schemes), and the access goes through that register alone.
//!
//! No mask serves two accesses. None have one: addresses without a register, which are constants; rsp with a constant, which stays inside the
//! guards of the stack; prefetches; and where only stores are protected, loads.

use super::check::{item, wide};
use super::code::{Code, Item, Op};
use super::known::RSP;
use super::live::free;
use super::save::Keeping;
use super::scratch::{dying, named, through, unreachable};
use crate::count::COUNT_BIT;
use crate::diag::{Diagnostic, Place, Refusals};
use crate::liveness::Live;
use crate::plan::{Piece, Planned, encode, ok};
use crate::{Masking, Options};
use cordon_checker::{MemoryOperand, Mode, Protect};
use iced_x86::{Code as Form, Instruction, InstructionInfoFactory, Register};
use std::collections::{BTreeMap, BTreeSet};

/// Refuses explicit masks where addresses are checked.
///
/// # Errors
/// Options that contradict each other.
pub fn refuse_options(options: &Options) -> Result<(), Refusals> {
    if options.masking == Masking::Prefix || !options.mode.matched {
        return Ok(());
    }
    let place = Place { object: "command line".into(), ..Place::default() };
    let message = "explicit masks are for the sandbox: match mode checks addresses, so it has none to mask";
    Err(Refusals(vec![Diagnostic::new(place, "unsupported-option", message)]))
}

/// Masks every access in front of it; gives the nodes that have such accesses.
///
/// # Errors
/// Bugs only.
pub fn insert(code: &mut Code, live: &[Live], mode: Mode) -> Planned<BTreeSet<u32>> {
    let reserved = if mode.metered { COUNT_BIT } else { 0 };
    let mut masker = Masker { live, reserved, stack_shift: code.stack_shift, factory: InstructionInfoFactory::new() };
    let mut edits: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
    let (mut node, mut nodes) = (None, BTreeSet::new());
    for i in 0..code.items.len() {
        let Item::Op(op) = &code.items[i] else {
            if let Item::Piece(Piece::Node(n)) = &code.items[i] {
                node = Some(*n);
            }
            continue;
        };
        if let Some(memory) = op.what.memory.filter(|memory| is_masked(memory, mode)) {
            let Masked { before, access, after } = masker.mask(i, op, &memory)?;
            edits.entry(i).or_default().extend(before);
            edits.entry(i + 1).or_default().extend(after);
            code.items[i] = Item::Op(access);
            nodes.extend(node);
        }
    }
    code.insert(edits);
    Ok(nodes)
}

/// Whether an operand has an address that must be masked.
fn is_masked(memory: &MemoryOperand, mode: Mode) -> bool {
    let varies = memory.index.is_some() || memory.base.is_some_and(|base| base != RSP);
    let load = memory.read && !memory.write;
    varies && !memory.prefetch && !(load && mode.protect == Protect::Stores)
}

/// An access with its mask.
struct Masked {
    before: Vec<Item>,
    access: Op,
    /// Puts a register back.
    after: Vec<Item>,
}

struct Masker<'a> {
    /// Before each item.
    live: &'a [Live],
    /// Registers that nobody may write.
    reserved: u16,
    /// Displacement from native to data stack.
    stack_shift: i32,
    factory: InstructionInfoFactory,
}

impl Masker<'_> {
    /// Item `i` through a dead register or one of the address that dies there, else through one that is kept on the data stack meanwhile.
    fn mask(&mut self, i: usize, op: &Op, memory: &MemoryOperand) -> Planned<Masked> {
        let taken = unreachable(op) | self.reserved;
        let after = self.live.get(i + 1).map_or(u16::MAX, |live| live.registers);
        let own = || dying(&mut self.factory, op, memory, after, taken);
        let (register, mut before, after) = match free(self.live[i], taken).next().or_else(own) {
            Some(register) => (register, Vec::new(), Vec::new()),
            None => {
                let taken = taken | named(&mut self.factory, &op.insn);
                Keeping::new(self.live[i], taken, self.stack_shift).scratch()?
            }
        };
        before.push(sum(register, memory)?);
        Ok(Masked { before, access: through(op, register, 0)?, after })
    }
}

/// The low half of the address of `memory` into `to`.
fn sum(to: Register, memory: &MemoryOperand) -> Planned<Item> {
    let to = encode::narrow(to);
    let register = |number: Option<u8>| number.map_or(Register::None, wide);
    let (base, index) = (register(memory.base), register(memory.index));
    if index == Register::None && memory.disp == 0 {
        let bytes = ok(Instruction::with2(Form::Mov_rm32_r32, to, encode::narrow(base)).and_then(|i| encode::encode(&i)))?;
        return item(&bytes);
    }
    item(&ok(encode::lea(to, base, index, memory.scale.into(), memory.disp))?)
}
