//! What a kernel host asks for besides (DESIGN §2 to §6): windows behind fs, tables below them, LIMIT at every function, `endbr64` wherever a
//! table or the host leads, no `lock`.
//!
//! Planning and instrumenting know none of it: [`finish`] changes their result.

use crate::Options;
use crate::body::{Context, Key};
use crate::diag::{Diagnostic, Place, Refusals};
use crate::functions::CodeRef;
use crate::instrument::code::Op;
use crate::instrument::entered;
use crate::layout::Text;
use crate::liveness::Liveness;
use crate::plan::encode;
use crate::plan::string::sized;
use crate::plan::{Borrow, Env, Piece, Plan, Planned, Planner, UD2, ok};
use crate::space::Space;
use cordon_checker::layout::USER_STACK_LOW;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeSet;

/// What the module offers to every handler (`checker/kmod/include/cordon_handler.h`), so that no `--import` need name it.
pub const FUNCTIONS: &[&str] = &[
    "cordon_time_ns",
    "cordon_cpu",
    "cordon_log",
    "cordon_packet_load",
    "cordon_packet_store",
    "cordon_map_lookup",
    "cordon_map_update",
    "cordon_map_delete",
    "cordon_map_add",
];

/// Displacement of the main table: the lowest that the checker takes.
pub const TABLE: i32 = 4096 - (128 << 10);
/// End of the pages that tables may use.
pub const TABLE_END: i32 = -4096;
/// Bytes of the native stack that the module offers, and of the data stack that mirrors it.
pub const STACK: u32 = 64 << 10;
/// Segment prefixes of window operands.
const GS: u8 = 0x65;
const FS: u8 = 0x64;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Refuses what no image, or no kernel image, can have.
///
/// # Errors
/// Options that contradict each other.
pub fn refuse_options(options: &Options) -> Result<(), Refusals> {
    let refuse = |message: &str| {
        let place = Place { object: "command line".into(), ..Place::default() };
        Err(Refusals(vec![Diagnostic::new(place, "unsupported-option", message)]))
    };
    match () {
        () if options.stack == 0 => refuse("a handler needs a data stack"),
        () if !options.kernel => Ok(()),
        () if options.stack > STACK => refuse("a kernel handler's stack has at most 64 KiB"),
        () if options.fast_window => refuse("there is no window at base 0 in the kernel"),
        () if options.syscalls => refuse("whole programs do not run in the kernel"),
        () if options.mode.protect != cordon_checker::Protect::All => refuse("kernel images protect loads and stores"),
        () => Ok(()),
    }
}

/// The constant of LIMIT: below it a function might leave its native stack.
#[must_use]
pub fn limit_of(space: &Space) -> u32 {
    let size = space.regions.last().map_or(0, |stack| USER_STACK_LOW + 8 + space.stack_shift - stack.start);
    USER_STACK_LOW + 8 - size + space.max_depth() + 8
}

/// LIMIT, its branch still open: the last four bytes.
#[must_use]
pub fn limit(constant: u32, indirect: bool) -> Vec<u8> {
    let mut bytes = if indirect { ENDBR64.to_vec() } else { Vec::new() };
    bytes.extend([0x81, 0xfc]);
    bytes.extend(constant.to_le_bytes());
    bytes.extend([0x0f, 0x82, 0, 0, 0, 0]);
    bytes
}

/// Begins a function that the rewriter itself appends.
pub fn enter(text: &mut Text, space: &Space, indirect: bool) {
    if space.kernel {
        text.bytes.extend(limit(limit_of(space), indirect));
        text.limits.push(text.bytes.len() - 4);
    }
}

/// Appends the `ud2` of all LIMITs, the text's last instruction.
pub fn add_trap(text: &mut Text) {
    if text.limits.is_empty() {
        return;
    }
    let at = text.bytes.len();
    text.bytes.extend(UD2);
    for field in &text.limits {
        text.bytes[*field..field + 4].copy_from_slice(&((at - (field + 4)) as u32).to_le_bytes());
    }
}

/// Gives one window operand at the start of `bytes` the kernel's segment.
pub fn rebase(bytes: &mut [u8], space: &Space) {
    if let (true, Some(prefix @ &mut GS)) = (space.kernel, bytes.first_mut()) {
        *prefix = FS;
    }
}

/// Whether `insn` is `xchg` with memory, which locks.
pub(crate) fn is_exchange(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Xchg && (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

impl Planner<'_> {
    /// `xchg` with memory without its lock: two moves through a scratch register, one between registers.
    pub(crate) fn exchange(&mut self, id: u32, insn: &Instruction, borrowed: &Borrow) -> Planned<()> {
        let own = if insn.op0_kind() == OpKind::Memory { insn.op1_register() } else { insn.op0_register() };
        if matches!(own, Register::AH | Register::BH | Register::CH | Register::DH) {
            return Err(("unsupported-instruction", format!("`{insn}` has no accepted form")));
        }
        self.note("exchange with memory: no lock in a kernel");
        let taken: Vec<Register> = borrowed.0.iter().map(|(b, _)| b.register).collect();
        let scratch = self.borrow(id, insn, &taken);
        let slot = borrowed.0.len() as i32;
        let part = sized(scratch.register, own.size() as u32);
        let (load, store) = match own.size() {
            1 => (Code::Mov_r8_rm8, Code::Mov_rm8_r8),
            2 => (Code::Mov_r16_rm16, Code::Mov_rm16_r16),
            4 => (Code::Mov_r32_rm32, Code::Mov_rm32_r32),
            _ => (Code::Mov_r64_rm64, Code::Mov_rm64_r64),
        };
        let mut place = encode::window(Register::None, 0);
        (place.base, place.index, place.scale) = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
        (place.displacement, place.displ_size) = (insn.memory_displacement64().cast_signed(), insn.memory_displ_size());
        self.keep(scratch, slot)?;
        for step in
            [Instruction::with2(load, part, place), Instruction::with2(store, place, own), Instruction::with2(load, own, part)]
        {
            let bytes = ok(step.and_then(|step| encode::encode(&step)))?;
            self.bytes(bytes);
        }
        self.give_back(scratch, slot)
    }
}

/// Makes the finished plan of body `index` one for a kernel host; others stay as they are.
///
/// # Errors
/// Frames that are too large, and bugs.
pub fn finish(env: Env<'_>, index: usize, mut plan: Plan, live: &Liveness) -> Result<Plan, Vec<Diagnostic>> {
    if !env.space.kernel {
        return Ok(plan);
    }
    let body = &env.chosen.bodies[index];
    let refuse =
        |at: CodeRef, rule, message: String| vec![Diagnostic::new(env.program.place(at.section, at.offset), rule, message)];
    let deepest = body.nodes.iter().max_by_key(|node| node.state.depth);
    if let Some(node) = deepest.filter(|node| node.state.depth.cast_unsigned() > env.space.max_depth()) {
        let message = format!("a frame of {} bytes; kernel handlers have {}", node.state.depth, env.space.max_depth());
        return Err(refuse(node.key.at, "frame-too-large", message));
    }
    let entry = body.node(Key { context: Context::default(), at: body.entry });
    if live.before[entry as usize].flags != 0 {
        return Err(refuse(body.entry, "unsupported-instruction", "the function takes flags from its caller".into()));
    }
    let indirect = env.chosen.address_taken.contains(&body.entry) || env.chosen.entries.iter().any(|(_, at)| *at == body.entry);
    let landings = Landings { entry, entered: entered(env, index), limit: limit_of(env.space), indirect };
    plan.pieces = landings
        .insert(plan.pieces)
        .map_err(|bytes| refuse(body.entry, "internal", format!("planned bytes that are no instruction: {bytes:02x?}")))?;
    Ok(plan)
}

/// What calls, tables and the host lead to.
struct Landings {
    entry: u32,
    entered: BTreeSet<u32>,
    limit: u32,
    indirect: bool,
}

impl Landings {
    /// Pieces with LIMIT and `endbr64` behind the marks that need them (and behind what the checker is to forget there), and with the
    /// kernel's segment.
    fn insert(&self, pieces: Vec<Piece>) -> Result<Vec<Piece>, Vec<u8>> {
        let mut made = Vec::with_capacity(pieces.len() + 1);
        let mut due = None;
        for piece in pieces {
            if !matches!(piece, Piece::Forget(_)) {
                made.extend(due.take());
            }
            match piece {
                Piece::Node(node) if node == self.entry => {
                    due = Some(Piece::Limit { limit: self.limit, indirect: self.indirect })
                }
                Piece::Node(node) if self.entered.contains(&node) => due = Some(Piece::Bytes(ENDBR64.to_vec())),
                _ => {}
            }
            made.push(match piece {
                Piece::Bytes(bytes) => Piece::Bytes(rebased(bytes)?),
                other => other,
            });
        }
        made.extend(due);
        Ok(made)
    }
}

/// `bytes` with every window operand and table unit behind fs.
fn rebased(mut bytes: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
    let mut at = 0;
    while at < bytes.len() {
        let op = Op::first(&bytes[at..]).ok_or_else(|| bytes[at..].to_vec())?;
        // A table unit is more than its `and`; its call or jump has the prefix.
        let prefix = if op.insn.len() < op.bytes.len() { at + op.insn.len() } else { at };
        if bytes[prefix] == GS {
            bytes[prefix] = FS;
        }
        at += op.bytes.len();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_prefix_is_the_kernels_and_no_other_byte() {
        // mov %gs:0x65(%ebp),%eax; and $8,%r11d; call *%gs:T(%r11); mov $0x65656565,%eax; call *%gs:T+8
        let user = [
            &[0x65, 0x67, 0x8b, 0x45, 0x65][..],
            &[0x41, 0x83, 0xe3, 0x08, 0x65, 0x41, 0xff, 0x93, 0x65, 0, 0, 0],
            &[0xb8, 0x65, 0x65, 0x65, 0x65],
            &[0x65, 0xff, 0x14, 0x25, 0x65, 0, 0, 0],
        ];
        let mut kernel = user.map(<[u8]>::to_vec);
        (kernel[0][0], kernel[1][4], kernel[3][0]) = (FS, FS, FS);
        assert_eq!(rebased(user.concat()), Ok(kernel.concat()));
        assert!(rebased(vec![0x0f, 0x05]).is_err(), "syscall");
    }

    #[test]
    fn landings_stand_behind_the_mark_and_its_forgets() {
        let landings = Landings { entry: 0, entered: BTreeSet::from([0, 2]), limit: 5, indirect: true };
        let nop = || Piece::Bytes(vec![0x90]);
        let pieces = vec![Piece::Node(0), Piece::Forget(1), nop(), Piece::Node(1), nop(), Piece::Node(2)];
        let limit = Piece::Limit { limit: 5, indirect: true };
        let endbr = Piece::Bytes(ENDBR64.to_vec());
        let expected = vec![Piece::Node(0), Piece::Forget(1), limit, nop(), Piece::Node(1), nop(), Piece::Node(2), endbr];
        assert_eq!(landings.insert(pieces), Ok(expected));
    }
}
