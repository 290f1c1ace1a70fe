//! Phase 8: from plans to bytes. Branches start short and grow until all reach; then bodies are placed one behind the other.

use crate::emit::Stub;
use crate::functions::CodeRef;
use crate::kernel;
use crate::plan::{Piece, Plan, Target, UD2};
use cordon_checker::layout::Forget;
use foldhash::{HashMap, HashMapExt as _};
use rayon::prelude::*;

/// A text offset of the new code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NewOff(pub u32);

/// A body's bytes with the branches to other bodies still open.
#[derive(Clone, Debug, Default)]
struct Placed {
    bytes: Vec<u8>,
    /// Has loops that are to be aligned beyond [`ALIGN`].
    aligned: bool,
    /// Place of a 4-byte field and the function it goes to.
    open: Vec<(usize, CodeRef)>,
    /// Per node: start within `bytes`.
    nodes: Vec<u32>,
    /// Stubs and places to forget facts, with offsets within `bytes`.
    stubs: Vec<Stub>,
    forgets: Vec<Forget>,
    /// Places of LIMITs' branch fields.
    limits: Vec<usize>,
}

/// The whole text.
#[derive(Clone, Debug, Default)]
pub struct Text {
    pub bytes: Vec<u8>,
    /// Per body: start and end.
    pub bodies: Vec<(NewOff, NewOff)>,
    /// Per body and node: start. A node ends where the next one starts.
    pub nodes: Vec<Vec<NewOff>>,
    /// Where hosts call each entry, in the order of the entries.
    pub entries: Vec<u32>,
    /// The function that runs the constructors, if there are any: start and end.
    pub init: Option<(NewOff, NewOff)>,
    /// Ascending by [`Stub::at`].
    pub stubs: Vec<Stub>,
    /// Ascending by offset, one for each.
    pub forgets: Vec<Forget>,
    /// Places of the fields of branches to the one `ud2` of all LIMITs.
    pub limits: Vec<usize>,
}

/// Function alignment in bytes.
const ALIGN: usize = 16;
/// Alignment of loops that nothing falls into, and of functions with such loops.
const LOOP_ALIGN: usize = 32;
/// Bytes of a hint.
const HINT: u32 = 8;
/// Most bytes of padding that aligning a loop to 16 may cost.
const MAX_PADDING: u32 = 10;

/// Places every body, `entries[i]` being the node of body i that calls go to.
///
/// # Errors
/// The callee that has no body.
pub fn lay_out(plans: &[Plan], entries: &[(CodeRef, u32)]) -> Result<Text, CodeRef> {
    let placed: Vec<Placed> = plans.par_iter().map(place).collect();
    let mut text = Text::default();
    let mut starts: HashMap<CodeRef, usize> = HashMap::new();
    for (body, (entry, node)) in placed.iter().zip(entries) {
        pad(&mut text.bytes, if body.aligned { LOOP_ALIGN } else { ALIGN });
        let at = text.bytes.len();
        starts.insert(*entry, at + body.nodes[*node as usize] as usize);
        text.bytes.extend_from_slice(&body.bytes);
        text.bodies.push((NewOff(at as u32), NewOff(text.bytes.len() as u32)));
        text.nodes.push(body.nodes.iter().map(|n| NewOff(at as u32 + n)).collect());
        let base = at as u32;
        text.stubs.extend(body.stubs.iter().map(|s| Stub { at: base + s.at, place: base + s.place, ..*s }));
        text.limits.extend(body.limits.iter().map(|field| at + field));
        for forget in &body.forgets {
            let offset = base + forget.offset;
            match text.forgets.last_mut() {
                Some(last) if last.offset == offset => last.keep &= forget.keep,
                _ => text.forgets.push(Forget { offset, ..*forget }),
            }
        }
    }
    for (body, (at, _)) in placed.iter().zip(&text.bodies) {
        for (field, to) in &body.open {
            let field = at.0 as usize + field;
            let target = *starts.get(to).ok_or(*to)?;
            let distance = (target as i64 - (field as i64 + 4)) as i32;
            text.bytes[field..field + 4].copy_from_slice(&distance.to_le_bytes());
        }
    }
    Ok(text)
}

/// Pads with no-ops to a multiple of `align`.
pub fn pad(bytes: &mut Vec<u8>, align: usize) {
    let mut missing = bytes.len().next_multiple_of(align) - bytes.len();
    while missing > 0 {
        let n = missing.min(NOPS.len());
        bytes.extend_from_slice(NOPS[n - 1]);
        missing -= n;
    }
}

/// The checker's no-op forms by length.
const NOPS: [&[u8]; 9] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00, 0x90],
    &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// Offsets of all pieces (and the end) for the current choice of long branches.
fn offsets(pieces: &[Piece], long: &[bool], out: &mut Vec<u32>) {
    out.clear();
    let mut at = 0u32;
    for (piece, long) in pieces.iter().zip(long) {
        out.push(at);
        at += match piece {
            Piece::Node(_) | Piece::Label(_) | Piece::Forget(_) => 0,
            Piece::Bytes(b) => b.len() as u32,
            Piece::Jump(None, _) => {
                if *long {
                    5
                } else {
                    2
                }
            }
            Piece::Jump(Some(_), _) => {
                if *long {
                    6
                } else {
                    2
                }
            }
            Piece::Call(_) | Piece::JumpOut(None, _) => 5,
            Piece::JumpOut(Some(_), _) => 6,
            Piece::Hint(..) => HINT,
            Piece::Stub { .. } => UD2.len() as u32,
            Piece::Limit { indirect, .. } => kernel::limit(0, *indirect).len() as u32,
            Piece::Align => padding(at),
            Piece::AlignFree => free_padding(at, pieces.get(out.len())),
        };
    }
    out.push(at);
}

/// Bytes in front of a loop that nothing falls into, at `at` with `next` between.
fn free_padding(at: u32, next: Option<&Piece>) -> u32 {
    let start = at + if let Some(Piece::Hint(..)) = next { HINT } else { 0 };
    start.next_multiple_of(LOOP_ALIGN as u32) - start
}

/// Bytes in front of a loop at `at`.
fn padding(at: u32) -> u32 {
    let missing = at.next_multiple_of(16) - at;
    if missing <= MAX_PADDING { missing } else { at.next_multiple_of(8) - at }
}

fn place(plan: &Plan) -> Placed {
    let pieces = &plan.pieces;
    let mut targets: HashMap<Target, usize> = HashMap::new();
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Node(n) => targets.insert(Target::Node(*n), i),
            Piece::Label(l) => targets.insert(Target::Label(*l), i),
            _ => None,
        };
    }
    let mut long = vec![false; pieces.len()];
    let mut at = Vec::with_capacity(pieces.len() + 1);
    loop {
        offsets(pieces, &long, &mut at);
        let mut grew = false;
        for (i, piece) in pieces.iter().enumerate() {
            if let (Piece::Jump(_, to), false) = (piece, long[i]) {
                let distance = i64::from(at[targets[to]]) - i64::from(at[i] + 2);
                if i8::try_from(distance).is_err() {
                    long[i] = true;
                    grew = true;
                }
            }
        }
        if !grew {
            break;
        }
    }
    let aligned = pieces.contains(&Piece::AlignFree);
    let mut placed = Placed { aligned, nodes: vec![0; plan.changes.len()], ..Placed::default() };
    for (i, piece) in pieces.iter().enumerate() {
        emit(&mut placed, piece, &at, i, long[i], &targets);
    }
    placed
}

fn emit(placed: &mut Placed, piece: &Piece, at: &[u32], i: usize, long: bool, targets: &HashMap<Target, usize>) {
    let bytes = &mut placed.bytes;
    match piece {
        Piece::Node(n) => placed.nodes[*n as usize] = at[i],
        Piece::Label(_) => {}
        Piece::Forget(keep) => placed.forgets.push(Forget { offset: at[i], keep: *keep }),
        Piece::Stub { place, fuel } => {
            bytes.extend(UD2);
            placed.stubs.push(Stub { at: at[i], place: at[targets[place]], fuel: *fuel });
        }
        Piece::Bytes(b) => bytes.extend_from_slice(b),
        Piece::Limit { limit, indirect } => {
            bytes.extend(kernel::limit(*limit, *indirect));
            placed.limits.push(bytes.len() - 4);
        }
        Piece::Jump(condition, to) => {
            let distance = i64::from(at[targets[to]]) - i64::from(at[i + 1]);
            match (condition, long) {
                (None, false) => bytes.push(0xeb),
                (None, true) => bytes.push(0xe9),
                (Some(cc), false) => bytes.push(0x70 | cc),
                (Some(cc), true) => bytes.extend([0x0f, 0x80 | cc]),
            }
            if long {
                bytes.extend((distance as i32).to_le_bytes());
            } else {
                bytes.push(distance as i8 as u8);
            }
        }
        Piece::Call(to) | Piece::JumpOut(_, to) => {
            match piece {
                Piece::Call(_) => bytes.push(0xe8),
                Piece::JumpOut(Some(cc), _) => bytes.extend([0x0f, 0x80 | cc]),
                _ => bytes.push(0xe9),
            }
            placed.open.push((bytes.len(), *to));
            bytes.extend([0; 4]);
        }
        Piece::Hint(depth, set) => {
            bytes.extend([0x0f, 0x1f, 0x84, 0xc0]);
            bytes.extend(((depth / 8) | (set << 20)).to_le_bytes());
        }
        Piece::Align | Piece::AlignFree => {
            let mut rest = (at[i + 1] - at[i]) as usize;
            while rest > 0 {
                let k = rest.min(NOPS.len());
                bytes.extend_from_slice(NOPS[k - 1]);
                rest -= k;
            }
        }
    }
}
