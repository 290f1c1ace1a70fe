//! Random programs that the checker mostly accepts: every accepted encoding, branches both ways, calls of all kinds, tables, hints, padding,
//! pushes, pops and frames at the states of a model.

use crate::random::Random;
use cordon_checker::layout::Slot;
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Flow, describe};

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Units of 8 bytes, and the pushed slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    depth: u32,
    set: u32,
}

/// The one sub-table's.
const SWITCH: State = State { depth: 2, set: 3 };
/// Greatest depth of a program in units.
const DEPTH: u32 = 20;

impl State {
    fn push(self) -> State {
        State { depth: self.depth + 1, set: if self.depth < 16 { self.set | 1 << self.depth } else { self.set } }
    }

    fn resized(self, depth: u32) -> State {
        State { depth, set: self.set & ((1_u64 << depth.min(16)) - 1) as u32 }
    }

    fn top_is_pushed(self) -> bool {
        self.depth > 0 && self.depth <= 16 && self.set >> (self.depth - 1) & 1 == 1
    }
}

/// A program in the making.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    state: State,
    /// Places that control can go back to.
    places: Vec<(usize, State)>,
    /// Displacements of 4 bytes whose target is to come, with what they bring.
    open: Vec<(usize, State)>,
}

impl Text {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A branch that somebody places later.
    fn forward(&mut self, head: &[u8], brings: State) {
        self.add(head);
        self.open.push((self.bytes.len(), brings));
        self.add(&[0; 4]);
    }

    fn back(&mut self, head: &[u8], to: usize) {
        self.add(head);
        let rel = (to as i64 - (self.bytes.len() + 4) as i64) as i32;
        self.add(&rel.to_le_bytes());
    }

    /// Lets the open branch `index` lead here.
    fn close(&mut self, index: usize) -> State {
        let (at, brings) = self.open.swap_remove(index);
        let rel = (self.bytes.len() - at - 4) as u32;
        self.bytes[at..at + 4].copy_from_slice(&rel.to_le_bytes());
        brings
    }

    /// Remembers this place for branches back and tables.
    fn mark(&mut self) {
        self.places.push((self.bytes.len(), self.state));
    }

    /// After an end of flow: where does control come from?
    fn resume(&mut self, random: &mut Random) {
        while random.one_in(3) {
            const NO_OPS: [&[u8]; 3] = [&[0x90], &[0x66, 0x90], &[0x0f, 0x1f, 0x44, 0, 0]];
            let no_op = random.pick(&NO_OPS);
            self.add(no_op);
        }
        if !self.open.is_empty() && !random.one_in(4) {
            let index = random.below(self.open.len());
            self.state = self.close(index);
        } else if random.one_in(3) {
            let depth = random.below(4) as u32;
            let set = random.next() as u32 & ((1 << depth) - 1);
            self.state = State { depth, set };
            self.add(&[&[0x0f, 0x1f, 0x84, 0xc0][..], &(depth | set << 20).to_le_bytes()].concat());
        } else {
            self.state = State::default();
        }
        self.mark();
    }
}

/// A program: its text, and the layout with its slots.
pub struct Program {
    pub text: Vec<u8>,
    pub spec: NoteSpec,
}

/// Accepted encodings that fall through and leave rsp alone; those with a memory operand apart.
pub struct Pool {
    plain: Vec<Vec<u8>>,
    memory: Vec<Vec<u8>>,
}

impl Pool {
    /// `lacking`: extensions that this processor has not.
    pub fn new(random: &mut Random, lacking: u64, size: usize) -> Pool {
        let mut pool = Pool { plain: Vec::new(), memory: Vec::new() };
        while pool.plain.len().min(pool.memory.len()) < size {
            let bytes = candidate(random);
            let Ok(what) = describe(&bytes, Host::User) else { continue };
            let bytes = &bytes[..what.len];
            let stack = matches!(bytes, [0x50..=0x5f] | [0x41, 0x50..=0x5f]) || what.gpr_writes >> 4 & 1 == 1;
            let hint = bytes.starts_with(&[0x0f, 0x1f, 0x84, 0xc0]);
            if what.flow == Flow::Next && !stack && !hint && what.features.0 & lacking == 0 {
                let pool = if what.memory.is_some() { &mut pool.memory } else { &mut pool.plain };
                if pool.len() < 4 * size {
                    pool.push(bytes.to_vec());
                }
            }
        }
        pool
    }
}

/// Bytes that begin like an instruction.
fn candidate(random: &mut Random) -> [u8; 24] {
    let mut bytes: Vec<u8> = random.pick(&[&[0x65, 0x67][..], &[0x65, 0x67], &[0x65], &[], &[]]).to_vec();
    if random.one_in(3) {
        // Mostly VEX.vvvv = 1111, which many instructions need.
        let fields = random.next() as u8 | if random.one_in(2) { 0x78 } else { 0 };
        let (opcode, extensions, map) = (random.next() as u8, random.next() as u8, 1 + random.below(3) as u8);
        bytes.extend(if random.one_in(3) {
            vec![0xc5, fields, opcode]
        } else {
            vec![0xc4, extensions & 0xe0 | map, fields, opcode]
        });
    } else {
        bytes.extend(*random.pick(&[&[][..], &[], &[], &[0xf0]]));
        bytes.extend(*random.pick(&[&[][..], &[], &[0x66]]));
        bytes.extend(*random.pick(&[&[][..], &[], &[], &[0xf3], &[0xf2]]));
        let rex = 0x40 | random.below(16) as u8;
        bytes.extend(*random.pick(&[&[][..], &[], &[0x48], &[rex]]));
        bytes.extend(*random.pick(&[&[][..], &[], &[0x0f], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]]));
        bytes.push(random.next() as u8);
    }
    bytes.extend([random.next() as u8, random.next() as u8]);
    let mut window = [0; 24];
    for (i, byte) in window.iter_mut().enumerate() {
        *byte = bytes.get(i).copied().unwrap_or(if random.one_in(2) { 0 } else { random.next() as u8 & 0x7f });
    }
    window
}

/// `mov $offset,%r32` with an offset of mapped memory (or, seldom, of its edges).
fn address(text: &mut Text, register: u8, random: &mut Random) {
    if register == 4 {
        return;
    }
    let edges = [0_u32, 0xfff0, 0x1_0ff8, 0x1_fff8, 0x2_0000, 0x7000_0000, 0x7fff_fff8, 0xffff_fff8];
    let offset = if random.one_in(12) { *random.pick(&edges) } else { 0x1_2000 + 64 * random.below(512) as u32 };
    if register >= 8 {
        text.add(&[0x41]);
    }
    text.add(&[0xb8 | register & 7]);
    text.add(&offset.to_le_bytes());
}

fn access(text: &mut Text, pool: &Pool, random: &mut Random) {
    let bytes = random.pick(&pool.memory).clone();
    let memory = describe(&bytes, Host::User).ok().and_then(|what| what.memory);
    if let Some(memory) = memory.filter(|_| !random.one_in(6)) {
        if let Some(base) = memory.base {
            address(text, base, random);
        }
        // xor %r32,%r32 or a small number.
        if let Some(index) = memory.index.filter(|index| Some(*index) != memory.base) {
            let rex: &[u8] = if index >= 8 { &[0x41] } else { &[] };
            text.add(&[rex, &[0xb8 | index & 7, random.next() as u8, 0, 0, 0]].concat());
        }
    }
    text.add(&bytes);
}

/// The unit `and $mask,%r32; call|jmp *%gs:table(%r64)`.
fn table(text: &mut Text, mask: u8, disp: u32, call: bool, random: &mut Random) {
    let register = random.below(16) as u8;
    let rex: &[u8] = if register >= 8 { &[0x41] } else { &[] };
    let sib: &[u8] = if register & 7 == 4 { &[0x24] } else { &[] };
    let kind = if call { 0x90 } else { 0xa0 };
    if register != 4 {
        text.add(
            &[rex, &[0x83, 0xe0 | register & 7, mask, 0x65], rex, &[0xff, kind | register & 7], sib, &disp.to_le_bytes()]
                .concat(),
        );
    }
}

const JCC: [u8; 2] = [0x0f, 0x80];

/// One program of up to `items` items.
pub fn program(pool: &Pool, base: &NoteSpec, items: usize, random: &mut Random) -> Program {
    let mut text = Text::default();
    text.mark();
    for _ in 0..4 + random.below(items) {
        item(&mut text, pool, random);
    }
    leave(&mut text, random);
    while !text.open.is_empty() {
        let index = text.open.len() - 1;
        text.close(index);
        text.add(&[0x0f, 0x0b]);
    }
    let mut spec = base.clone();
    spec.entries.push((0, "entry".to_owned()));
    let with = |state: State| -> Vec<usize> {
        text.places.iter().filter(|(at, s)| *s == state && *at < text.bytes.len()).map(|(at, _)| *at).collect()
    };
    let (functions, labels) = (with(State::default()), with(SWITCH));
    for _ in 0..random.below(4) {
        spec.slots.push(Slot::Text(*random.pick(&functions) as u32));
    }
    if !labels.is_empty() {
        spec.sub_tables[0].1 = (0..1 + random.below(4)).map(|_| Slot::Text(*random.pick(&labels) as u32)).collect();
    }
    Program { text: text.bytes, spec }
}

fn item(text: &mut Text, pool: &Pool, random: &mut Random) {
    let state = text.state;
    let register = *random.pick(&[0_u8, 1, 2, 3, 5, 6, 7]);
    let backward: Vec<usize> =
        text.places.iter().filter(|(_, s)| s.depth == state.depth && s.set & !state.set == 0).map(|p| p.0).collect();
    match random.below(26) {
        0..=5 => text.add(&random.pick(&pool.plain).clone()),
        6..=10 => access(text, pool, random),
        11..=12 if state.depth < DEPTH => {
            let rex: &[u8] = if random.one_in(3) { &[0x41] } else { &[] };
            text.add(&[rex, &[0x50 | register]].concat());
            text.state = state.push();
        }
        13..=14 if state.top_is_pushed() => {
            text.add(&[0x58 | register]);
            text.state = state.resized(state.depth - 1);
        }
        15 if state.depth < DEPTH => {
            let units = 1 + random.below(3) as u32;
            text.add(&[0x48, 0x83, 0xec, 8 * units as u8]);
            text.state.depth += units;
        }
        16 if state.depth > 0 => {
            let units = 1 + random.below(state.depth.min(3) as usize) as u32;
            text.add(if random.one_in(2) { &[0x48, 0x83, 0xc4] } else { &[0x48, 0x8d, 0x64, 0x24] });
            text.add(&[8 * units as u8]);
            text.state = state.resized(state.depth - units);
        }
        17 => text.forward(&[JCC[0], JCC[1] | random.below(16) as u8], state),
        18 if !backward.is_empty() => {
            let to = *random.pick(&backward);
            text.back(&[JCC[0], JCC[1] | random.below(16) as u8], to);
        }
        19 if random.one_in(2) => {
            end(text, &backward, random);
            text.resume(random);
        }
        20 => {
            let functions: Vec<usize> = text.places.iter().filter(|(_, s)| *s == State::default()).map(|p| p.0).collect();
            if random.one_in(2) {
                text.forward(&[0xe8], State::default());
            } else {
                let to = *random.pick(&functions);
                text.back(&[0xe8], to);
            }
        }
        21 => table(text, 0x78, 0x1_0000, true, random),
        22 => text.add(&[0x65, 0xff, 0x14, 0x25, 8 * (1 + random.below(2) as u8), 0, 1, 0]),
        23 => {
            let fitting = text.open.iter().position(|(_, brings)| brings.depth == state.depth);
            if let Some(index) = fitting {
                let brings = text.close(index);
                text.state.set &= brings.set;
            }
            text.mark();
        }
        // lea d(%rsp),%r32
        24 => text.add(&[0x8d, 0x44 | register << 3, 0x24, random.next() as u8]),
        _ => text.mark(),
    }
}

/// An end of flow that the state allows.
fn end(text: &mut Text, backward: &[usize], random: &mut Random) {
    let state = text.state;
    match random.below(6) {
        0 if state.depth == 0 => text.add(&[0xc3]),
        1 if state.depth == 0 => table(text, 0x78, 0x1_0000, false, random),
        1 | 2 if state.depth == SWITCH.depth && state.set & SWITCH.set == SWITCH.set => {
            table(text, 0x18, 0x1_0080, false, random)
        }
        3 if state.depth == 0 => text.add(&[0x65, 0xff, 0x24, 0x25, 8, 0, 1, 0]),
        4 if !backward.is_empty() => {
            let to = *random.pick(backward);
            text.back(&[0xe9], to);
        }
        _ => text.forward(&[0xe9], state),
    }
}

/// Leaves the function: by pops where slots were pushed, else by an addition.
fn leave(text: &mut Text, random: &mut Random) {
    while text.state.top_is_pushed() && !random.one_in(4) {
        text.add(&[0x58]);
        text.state = text.state.resized(text.state.depth - 1);
    }
    if text.state.depth > 0 {
        text.add(&[&[0x48, 0x81, 0xc4][..], &(8 * text.state.depth).to_le_bytes()].concat());
    }
    text.add(&[0xc3]);
}
