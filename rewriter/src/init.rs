//! The function that runs the constructors, behind the bodies.

use crate::emit::Stub;
use crate::instrument::meter::subtract;
use crate::layout::{NewOff, Text, pad};

/// Calls that one METER pays for.
const CALLS: usize = 500;

/// Appends a function that calls the text offsets `constructors` in order.
pub fn append(text: &mut Text, constructors: &[u32], metered: bool) {
    if constructors.is_empty() {
        return;
    }
    pad(&mut text.bytes, 16);
    text.init = Some(NewOff(text.bytes.len() as u32));
    // One stub for each depth: places of METER, of the field of its branch.
    let mut outer = Vec::new();
    let mut inner = Vec::new();
    if metered {
        outer.push(meter(text, 2));
    }
    // rsp is 8 modulo 16 at entry, so the calls are made with the psABI's alignment.
    text.bytes.extend([0x48, 0x83, 0xec, 0x08]);
    for calls in constructors.chunks(CALLS) {
        if metered {
            // METER itself, the calls, and the two instructions of the end.
            inner.push(meter(text, calls.len() as u32 + 3));
        }
        for target in calls {
            text.bytes.push(0xe8);
            branch_to(text, *target);
        }
    }
    text.bytes.extend([0x48, 0x83, 0xc4, 0x08, 0xc3]);
    for branches in [outer, inner] {
        let Some((place, _)) = branches.first() else { continue };
        let at = text.bytes.len() as u32;
        text.bytes.extend(crate::plan::UD2);
        text.stubs.push(Stub { at, place: *place, fuel: true });
        for (_, field) in &branches {
            let distance = at.wrapping_sub(*field as u32 + 4);
            text.bytes[*field..field + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
}

/// METER with its branch still open: its place and that of the branch's field.
fn meter(text: &mut Text, charge: u32) -> (u32, usize) {
    let place = text.bytes.len() as u32;
    text.bytes.extend(subtract(charge));
    text.bytes.extend([0x0f, 0x82]);
    let field = text.bytes.len();
    text.bytes.extend([0; 4]);
    (place, field)
}

fn branch_to(text: &mut Text, target: u32) {
    let next = text.bytes.len() as u32 + 4;
    text.bytes.extend(target.wrapping_sub(next).to_le_bytes());
}
