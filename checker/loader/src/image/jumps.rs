//! What `longjmp` needs to know of an image, found out when it is loaded: where it may land, and the states there and at all return addresses.

use super::ImportName;
use super::states::States;
use crate::gates;
use cordon_checker::layout::{Layout, Slot};
use cordon_checker::starts;
use std::sync::OnceLock;

/// `call *%gs:disp32` without its displacement: how text calls an import.
pub const IMPORT_CALL: [u8; 4] = [0x65, 0xff, 0x14, 0x25];
/// Bytes of an import call, its displacement included.
const IMPORT_CALL_LEN: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub struct Jumps {
    /// Filled in from the start if the image imports `cordon.longjmp`.
    pub states: OnceLock<States>,
    /// Text offsets of the instructions behind calls of `cordon.setjmp`, ascending; none if the image does not import `cordon.longjmp`.
    pub landings: Vec<u32>,
}

impl Jumps {
    /// Looks at `text`, which the checker has just accepted with this scratch.
    pub fn of(text: &[u8], scratch: &[u64], layout: &Layout<'_>, imports: &[ImportName]) -> Jumps {
        if !imports.iter().any(|import| import.name == gates::LONGJMP) {
            return Jumps::default();
        }
        let is_setjmp = |slot: u32| match layout.slots.get(slot as usize).map(Slot::from_word) {
            Some(Slot::Import(import)) => imports.get(import as usize).is_some_and(|i| i.name == gates::SETJMP),
            _ => false,
        };
        // The end of another instruction may look like a call: only what starts as one counts.
        let landing = |start: usize| {
            let displacement = text[start..].strip_prefix(&IMPORT_CALL)?.first_chunk()?;
            let distance = i32::from_le_bytes(*displacement).checked_sub(layout.table)?;
            is_setjmp(u32::try_from(distance).ok()? / 8).then_some(start as u32 + IMPORT_CALL_LEN)
        };
        let landings = starts(scratch, text.len()).filter_map(landing).collect();
        Jumps { states: OnceLock::from(States::from_scratch(scratch, text.len())), landings }
    }
}
