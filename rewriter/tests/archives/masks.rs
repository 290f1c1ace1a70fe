//! Explicit masks in prebuilt archives: every operand that varies goes through a register which the instruction in front has masked, and with
//! the masks folded into the operands again the text is that of the ordinary sandbox.

use crate::image::{Image, is_padding};
use crate::whole_with;
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_rewriter::{Masking, Options};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

/// From the data stack pointer, where a register waits for the end of an access.
const KEPT: i32 = -192;

/// What was found in a text with masks.
#[derive(Debug, Default)]
struct Seen {
    masked: usize,
    /// Of these, with a register that was kept on the stack.
    kept: usize,
    problems: Vec<String>,
}

/// Whether the instruction accesses memory at an address that masks are for.
fn varies(insn: &Instruction) -> bool {
    let memory = insn.segment_prefix() == Register::GS && insn.flow_control() == FlowControl::Next;
    let prefetch = matches!(
        insn.mnemonic(),
        Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 | Mnemonic::Prefetchnta | Mnemonic::Prefetchw
    );
    let stack = matches!(insn.memory_base(), Register::ESP | Register::None) && insn.memory_index() == Register::None;
    memory && !prefetch && !stack
}

/// Whether it masks an address into `register`.
fn masks(insn: &Instruction, register: Register) -> bool {
    let into = insn.op_count() == 2 && insn.op0_kind() == OpKind::Register && insn.op0_register() == register;
    let moves = insn.mnemonic() == Mnemonic::Mov && insn.op1_kind() == OpKind::Register && insn.op1_register().is_gpr32();
    register.is_gpr32() && into && (moves || insn.mnemonic() == Mnemonic::Lea)
}

/// The access `insn` at the address that `mask` computed.
fn folded(mask: &Instruction, insn: &Instruction) -> Instruction {
    let narrow = |r: Register| if r == Register::None { r } else { Register::EAX + r.number() as u32 };
    let mut insn = *insn;
    if mask.mnemonic() == Mnemonic::Mov {
        insn.set_memory_base(mask.op1_register());
    } else {
        insn.set_memory_base(narrow(mask.memory_base()));
        insn.set_memory_index(narrow(mask.memory_index()));
        insn.set_memory_index_scale(mask.memory_index_scale());
        insn.set_memory_displacement64(mask.memory_displacement64());
    }
    insn
}

/// Whether it moves `register` to where it waits (`store`) or back.
fn keeps(insn: &Instruction, register: Register, store: bool) -> bool {
    let (memory, other) = if store { (insn.op0_kind(), insn.op1_register()) } else { (insn.op1_kind(), insn.op0_register()) };
    let place = insn.memory_base() == Register::ESP && insn.memory_displacement64() as i32 == KEPT;
    insn.mnemonic() == Mnemonic::Mov && memory == OpKind::Memory && place && other == register.full_register()
}

impl Seen {
    /// The instructions without masks.
    fn unmask(&mut self, text: &[Instruction]) -> Vec<Instruction> {
        let mut plain: Vec<Instruction> = Vec::with_capacity(text.len());
        let mut i = 0;
        while i < text.len() {
            let insn = text[i];
            i += 1;
            if !varies(&insn) {
                plain.push(insn);
                continue;
            }
            let register = insn.memory_base();
            let alone = insn.memory_index() == Register::None && insn.memory_displacement64() == 0;
            let Some(mask) = plain.pop().filter(|mask| alone && masks(mask, register)) else {
                self.problems.push(format!("{:#x}: `{insn}` has no mask in front", insn.ip()));
                continue;
            };
            self.masked += 1;
            if text.get(i).is_some_and(|back| keeps(back, register, false))
                && plain.pop_if(|kept| keeps(kept, register, true)).is_some()
            {
                self.kept += 1;
                i += 1;
            }
            plain.push(folded(&mask, &insn));
        }
        plain
    }

    /// Compares a function with masks with the same one without.
    fn compare(&mut self, name: &str, masked: &[Instruction], plain: &[Instruction]) {
        let unmasked: Vec<_> = self.unmask(masked).iter().filter_map(bare).collect();
        let plain: Vec<_> = plain.iter().filter_map(bare).collect();
        let differs = unmasked.iter().zip(&plain).find(|(unmasked, plain)| unmasked != plain);
        if let Some((unmasked, plain)) = differs {
            self.problems.push(format!("{name}, {:#x}: `{unmasked}` for `{plain}`", plain.ip()));
        } else if unmasked.len() != plain.len() {
            self.problems.push(format!("{name}: {} instructions for {}", unmasked.len(), plain.len()));
        }
    }
}

/// The instruction without what moves with the text: none for padding, branches without their targets, displacements without their sizes.
fn bare(insn: &Instruction) -> Option<Instruction> {
    let mut insn = *insn;
    if is_padding(&insn) {
        return None;
    }
    insn.as_near_branch();
    if matches!(insn.op0_kind(), OpKind::NearBranch64) {
        insn.set_near_branch64(0);
    }
    if (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory) {
        insn.set_memory_displ_size(8);
        insn.set_memory_displacement64(u64::from(insn.memory_displacement64() as u32));
    }
    Some(insn)
}

fn seen(archive: &Archive) -> Seen {
    let image = |masking| Image::read(&whole_with(archive, &Options { masking, ..Options::default() }).made.image);
    let (masked, plain) = (image(Masking::Explicit), image(Masking::Prefix));
    let mut seen = Seen::default();
    if masked.functions.len() != plain.functions.len() {
        seen.problems.push("other functions".into());
    }
    for ((from, (to, name)), (plain_from, (plain_to, plain_name))) in masked.functions.iter().zip(&plain.functions) {
        assert_eq!(name, plain_name);
        seen.compare(name, &masked.decode(*from, *to), &plain.decode(*plain_from, *plain_to));
    }
    seen
}

#[test]
fn text_with_masks_is_text_without_them_but_for_the_masks() {
    use rayon::prelude::*;
    let all: Vec<_> = ARCHIVES.par_iter().map(|archive| (archive.name, seen(archive))).collect();
    for (name, seen) in &all {
        println!("{name}: {} masks, {} in a kept register, {} problems", seen.masked, seen.kept, seen.problems.len());
        assert!(seen.masked > 1000 && seen.kept > 0, "{name}: {seen:?}");
    }
    let wrong: Vec<_> = all.iter().flat_map(|(name, seen)| seen.problems.iter().map(move |p| format!("{name}: {p}"))).collect();
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
