//! Code that no object holds, behind the bodies: the function that runs the constructors, and what stands in front of entries.

use crate::body::{Callee, Outside};
use crate::emit::Stub;
use crate::instrument::meter::subtract;
use crate::jumps::{LONGJMP, SETJMP};
use crate::kernel;
use crate::layout::{NewOff, Text, pad};
use crate::plan::Env;
use crate::plan::encode::{self, window};
use crate::program::Reloc;
use crate::select::{GATES, TRAPS, import_name};
use crate::space::Space;
use cordon_checker::layout::USER_STACK_LOW;
use iced_x86::{Code, IcedError, Instruction, Register};

/// Calls that one METER pays for.
const CALLS: usize = 500;

/// Appends a function that calls the text offsets `constructors` in order.
pub fn call_constructors(text: &mut Text, space: &Space, constructors: &[u32], metered: bool) {
    if constructors.is_empty() {
        return;
    }
    pad(&mut text.bytes, 16);
    let start = NewOff(text.bytes.len() as u32);
    kernel::enter(text, space, true);
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
    starve(text, &outer);
    starve(text, &inner);
    text.init = Some((start, NewOff(text.bytes.len() as u32)));
}

/// Appends, for each entry that may allocate memory on the stack, code that goes there and at an outermost call sets the arena word first: a
/// call that a fault ended has left it where it was. `starts` are the entries' text offsets; gives where hosts are to call them instead.
///
/// # Errors
/// Never.
pub fn set_arena(text: &mut Text, env: Env<'_>, starts: &[u32]) -> Result<Vec<u32>, IcedError> {
    let allocates = may_allocate(env);
    let word = window(Register::None, env.space.arena_word.cast_signed());
    let mut set = encode::encode(&Instruction::with2(Code::Mov_rm32_imm32, word, env.space.arena_top)?)?;
    kernel::rebase(&mut set, env.space);
    pad(&mut text.bytes, 16);
    // A function that all of them call: below its return address, rsp is 8 less than the host has set it to.
    let common = text.bytes.len() as u32;
    kernel::enter(text, env.space, false);
    let mut meters = Vec::new();
    if env.mode.metered {
        // METER itself and the five instructions of an outermost call.
        meters.push(meter(text, 6));
    }
    text.bytes.extend(encode::lea(Register::R11D, Register::RSP, Register::None, 1, 0)?);
    text.bytes.extend(encode::encode(&Instruction::with2(Code::Cmp_rm32_imm32, Register::R11D, USER_STACK_LOW - 8)?)?);
    text.bytes.extend([0x75, set.len() as u8]);
    text.bytes.extend(&set);
    text.bytes.push(0xc3);
    let mut fronts = Vec::with_capacity(starts.len());
    for (start, (_, at)) in starts.iter().zip(&env.chosen.entries) {
        if !allocates[env.bodies[at]] {
            fronts.push(*start);
            continue;
        }
        fronts.push(text.bytes.len() as u32);
        kernel::enter(text, env.space, true);
        if env.mode.metered {
            meters.push(meter(text, 3));
        }
        text.bytes.push(0xe8);
        branch_to(text, common);
        text.bytes.push(0xe9);
        branch_to(text, *start);
    }
    starve(text, &meters);
    Ok(fronts)
}

/// For each body whether a call of it may allocate from the arena, itself or through what it calls.
fn may_allocate(env: Env<'_>) -> Vec<bool> {
    let bodies = &env.chosen.bodies;
    // Gates and traps do not call back; other imports may.
    let returns = |reloc: &Reloc| {
        let name = import_name(&env.program.symbol(reloc.symbol).name);
        GATES.contains(&name) || TRAPS.contains(&name) || name == SETJMP || name == LONGJMP
    };
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); bodies.len()];
    let mut found = vec![false; bodies.len()];
    for (index, body) in bodies.iter().enumerate() {
        for node in &body.nodes {
            found[index] |= node.state.dynamic;
            match node.callee() {
                Some(Callee::Known(Outside::Function(f))) => callers[env.bodies[&f]].push(index),
                Some(Callee::Known(Outside::Symbol(reloc))) if returns(&reloc) => {}
                Some(_) => found[index] = true,
                None => {}
            }
        }
    }
    let mut open: Vec<usize> = (0..found.len()).filter(|i| found[*i]).collect();
    while let Some(index) = open.pop() {
        for caller in &callers[index] {
            if !std::mem::replace(&mut found[*caller], true) {
                open.push(*caller);
            }
        }
    }
    found
}

/// The place that ends a call for want of fuel, and the branches of `meters` to it.
fn starve(text: &mut Text, meters: &[(u32, usize)]) {
    let Some((place, _)) = meters.first() else { return };
    let at = text.bytes.len() as u32;
    text.bytes.extend(crate::plan::UD2);
    text.stubs.push(Stub { at, place: *place, fuel: true });
    for (_, field) in meters {
        let distance = at.wrapping_sub(*field as u32 + 4);
        text.bytes[*field..field + 4].copy_from_slice(&distance.to_le_bytes());
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
