//! Why an instruction of accepted text faulted: from its bytes, the registers in front of it and the layout.

use crate::interface::kind_at;
use cordon_checker::layout::Layout;
use cordon_checker::note::Note;
use cordon_checker::policy::Host;
use cordon_checker::{Flow, MemoryOperand, describe_in};
use core::slice;

/// `enum cordon_kind`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Returned = 0,
    NullZone = 1,
    Unmapped = 2,
    ReadOnly = 3,
    DataStackOverflow = 4,
    NativeStackOverflow = 5,
    Divide = 6,
    Trap = 7,
    Fuel = 11,
    Other = 12,
}

#[repr(C)]
pub struct CFacts {
    pub kind: u32,
    pub has_address: u32,
    pub is_write: u32,
    pub bytes: u32,
    pub address: u64,
    pub offset: u64,
}

/// # Safety
/// The pointers are valid for their lengths, `registers` for 16 words, `out` for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rs_explain(
    text: *const u8,
    length: usize,
    note: *const u8,
    note_length: usize,
    at: u32,
    registers: *const u64,
    out: *mut CFacts,
) {
    // SAFETY: the caller's promise.
    let (text, note) = unsafe { (slice::from_raw_parts(text, length), slice::from_raw_parts(note, note_length)) };
    // SAFETY: as above.
    let (registers, out) = unsafe { (&*registers.cast::<[u64; 16]>(), &mut *out) };
    *out = CFacts { kind: Kind::Other as u32, has_address: 0, is_write: 0, bytes: 0, address: 0, offset: 0 };
    let Some(bytes) = text.get(at as usize..) else { return };
    let Ok(note) = Note::parse(note) else { return };
    let layout = &note.layout;
    let Ok(what) = describe_in(bytes, Host::Kernel, layout.mode) else { return };
    if what.flow == Flow::Trap {
        out.kind = trap(at as usize + 2 == text.len(), layout, registers) as u32;
    } else if let Some(memory) = what.memory {
        access(&memory, is_division(bytes), layout, registers, out);
    } else if is_division(bytes) {
        out.kind = Kind::Divide as u32;
    }
}

/// `ud2`: LIMIT leads with rsp below its constant to the last one of the text, METER with a count below 0 to some.
fn trap(is_last: bool, layout: &Layout<'_>, registers: &[u64; 16]) -> Kind {
    if is_last && u64::from(layout.limit) > registers[4] {
        Kind::NativeStackOverflow
    } else if layout.mode.metered && registers[14] >> 63 == 1 {
        Kind::Fuel
    } else {
        Kind::Trap
    }
}

/// `div` and `idiv`: F6 or F7, /6 or /7, behind prefixes.
fn is_division(bytes: &[u8]) -> bool {
    let is_prefix = |b: &u8| matches!(b, 0x64 | 0x66 | 0x67 | 0x40..=0x4f);
    let mut rest = bytes.iter().skip_while(|b| is_prefix(b));
    matches!(rest.next(), Some(0xf6 | 0xf7)) && rest.next().is_some_and(|modrm| modrm >> 3 & 7 >= 6)
}

fn access(memory: &MemoryOperand, divides: bool, layout: &Layout<'_>, registers: &[u64; 16], out: &mut CFacts) {
    let register = |number: Option<u8>| number.map_or(0, |n| registers[usize::from(n & 15)]);
    let index = register(memory.index).wrapping_mul(memory.scale.into());
    let address = register(memory.base).wrapping_add(index).wrapping_add_signed(memory.disp.into());
    let offset = address & 0xffff_ffff;
    let failed = |at: u64| kind_at(layout, offset.wrapping_add(at), memory.write);
    let kind = (0..u64::from(memory.bytes)).map(failed).find(|kind| *kind != Kind::Returned);
    let kind = kind.unwrap_or(if divides { Kind::Divide } else { Kind::Other });
    if kind == Kind::Divide {
        out.kind = kind as u32;
        return;
    }
    *out =
        CFacts { kind: kind as u32, has_address: 1, is_write: memory.write.into(), bytes: memory.bytes.into(), address, offset };
}
