//! Call frame information: where the return address lies before each instruction. Every depth is static, so one rule says it all.

use crate::emit::ImageSymbol;
use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::{starts, state_at};
use gimli::write::{
    Address, CallFrameInstruction, CommonInformationEntry, DebugFrame, EndianVec, FrameDescriptionEntry, FrameTable,
};
use gimli::{Encoding, Format, LittleEndian, Register, X86_64};

/// The first version whose return address register is no single byte; what the line tables have too.
const ENCODING: Encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };
/// What a function keeps for its caller, mostly in the window, where frame information does not reach.
const KEPT: [Register; 6] = [X86_64::RBX, X86_64::RBP, X86_64::R12, X86_64::R13, X86_64::R14, X86_64::R15];
const WORD: i32 = 8;

/// `.debug_frame` for accepted text of `len` bytes, from the scratch that the checker filled: one entry for each function, which ends where the
/// next one begins.
///
/// # Errors
/// What the writer says.
pub fn frames(scratch: &[u64], len: usize, functions: &[ImageSymbol]) -> gimli::write::Result<Vec<u8>> {
    let mut common = CommonInformationEntry::new(ENCODING, 1, -8, X86_64::RA);
    common.add_instruction(CallFrameInstruction::Cfa(X86_64::RSP, WORD));
    common.add_instruction(CallFrameInstruction::Offset(X86_64::RA, -WORD));
    KEPT.into_iter().for_each(|register| common.add_instruction(CallFrameInstruction::Undefined(register)));
    let mut table = FrameTable::default();
    let common = table.add_cie(common);
    let mut bounds: Vec<u32> = functions.iter().filter(|f| f.function).filter_map(|f| u32::try_from(f.value).ok()).collect();
    bounds.push(len as u32);
    bounds.sort_unstable();
    bounds.dedup();
    let mut depths =
        starts(scratch, len).map(|at| (at as u32, state_at(scratch[at]).map_or(0, |s| s.units() as i32 * WORD))).peekable();
    for pair in bounds.windows(2) {
        let mut entry = FrameDescriptionEntry::new(Address::Constant(TEXT_VADDR + u64::from(pair[0])), pair[1] - pair[0]);
        let mut last = 0;
        while let Some((at, depth)) = depths.next_if(|(at, _)| *at < pair[1]) {
            if depth != last && at >= pair[0] {
                entry.add_instruction(at - pair[0], CallFrameInstruction::CfaOffset(WORD + depth));
                last = depth;
            }
        }
        table.add_fde(common, entry);
    }
    let mut section = DebugFrame(EndianVec::new(LittleEndian));
    table.write_debug_frame(&mut section)?;
    Ok(section.0.into_vec())
}
