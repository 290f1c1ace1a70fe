//! Random programs that the checker mostly accepts: every accepted encoding, branches both ways, calls of all kinds, tables, hints, padding,
//! pushes, pops and frames at the states of a model; in match and metered mode with the checks, forget records and charges that they need.

use crate::random::Random;
use crate::run::Program;
use cordon_checker::layout::{Forget, Slot};
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Facts, Flow, Mode, describe_in, track};

impl Random {
    /// 0 to `end` - 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Whether chance has it, once in `n` times.
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

/// A place that control can go back to.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: usize,
    state: State,
    /// Registers that it counts on to be low.
    low: u16,
}

/// A displacement of 4 bytes whose target is to come, with what it brings.
#[derive(Clone, Copy, Debug)]
struct Open {
    at: usize,
    state: State,
    low: u16,
}

/// A program in the making.
struct Text {
    bytes: Vec<u8>,
    state: State,
    places: Vec<Place>,
    open: Vec<Open>,
    /// Displacements of CHECK and METER: each gets a `ud2` of its own.
    aborts: Vec<usize>,
    mode: Mode,
    /// The layout's S.
    stack_low: u32,
    /// What the checker knows here (match).
    facts: Facts,
    /// Instructions that are paid for (metered).
    credit: u16,
    forgets: Vec<Forget>,
}

impl Text {
    fn new(mode: Mode, stack_low: u32) -> Text {
        let (bytes, places, open, aborts, forgets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Text { bytes, state: State::default(), places, open, aborts, mode, stack_low, facts: Facts::NONE, credit: 0, forgets }
    }

    /// Appends bytes that nobody counts.
    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends an instruction or unit, behind a charge if it is not paid for. `false`: the mode does not allow it here.
    fn add(&mut self, bytes: &[u8], random: &mut Random) -> bool {
        if self.mode.matched || self.mode.metered {
            self.pay(random);
            let esp = self.stack_low - 8 * self.state.depth;
            let Ok(tracked) = track(bytes, Host::User, self.mode, self.facts, esp) else { return false };
            let counts = self.mode.metered && tracked.description.gpr_writes >> 14 & 1 == 1;
            if counts || self.mode.matched && !tracked.allowed {
                return false;
            }
            self.facts = tracked.after;
            self.credit = self.credit.saturating_sub(1);
        }
        self.raw(bytes);
        true
    }

    /// METER, if nothing is paid for.
    fn pay(&mut self, random: &mut Random) {
        if !self.mode.metered || self.credit > 0 {
            return;
        }
        let charge = if random.one_in(8) { 128 + random.below(896) } else { 2 + random.below(40) } as u16;
        let [low, high] = charge.to_le_bytes();
        let sub: &[u8] = if charge < 128 { &[0x83, 0xee, low] } else { &[0x81, 0xee, low, high, 0, 0] };
        self.raw(&[&[0x49], sub, &[0x0f, 0x82, 0, 0, 0, 0]].concat());
        self.aborts.push(self.bytes.len() - 4);
        self.credit = charge - 1;
    }

    /// CHECK of `register`.
    fn check(&mut self, register: u8, random: &mut Random) {
        let bytes = [0x48 | register >> 3, 0x81, 0xf8 | register & 7, 0xff, 0xff, 0xff, 0x7f, 0x0f, 0x87, 0, 0, 0, 0];
        if register != 4 && self.add(&bytes, random) {
            self.aborts.push(self.bytes.len() - 4);
        }
    }

    /// A branch that somebody places later.
    fn forward(&mut self, head: &[u8], brings: State, random: &mut Random) {
        self.pay(random);
        // Nothing is known in a callee.
        let low = if head == [0xe8] { 0 } else { self.facts.low() };
        self.add(&[head, &[0; 4]].concat(), random);
        self.open.push(Open { at: self.bytes.len() - 4, state: brings, low });
    }

    fn back(&mut self, head: &[u8], to: usize, random: &mut Random) {
        self.pay(random);
        let rel = (to as i64 - (self.bytes.len() + head.len() + 4) as i64) as i32;
        self.add(&[head, &rel.to_le_bytes()].concat(), random);
    }

    /// Lets the displacement at `at` lead here.
    fn lead_here(&mut self, at: usize) {
        let rel = (self.bytes.len() - at - 4) as u32;
        self.bytes[at..at + 4].copy_from_slice(&rel.to_le_bytes());
    }

    /// Lets the open branch `index` lead here.
    fn close(&mut self, index: usize) -> Open {
        let open = self.open.swap_remove(index);
        self.lead_here(open.at);
        open
    }

    /// Remembers this place for branches back and tables.
    fn mark(&mut self, random: &mut Random) {
        let at = self.bytes.len();
        let keep = if random.one_in(4) { self.facts.low() & random.next() as u16 } else { 0 };
        if self.mode.matched {
            self.facts = Facts::at_label(keep);
            match self.forgets.last_mut().filter(|last| last.offset == at as u32) {
                Some(last) => last.keep = keep,
                None => self.forgets.push(Forget { offset: at as u32, keep }),
            }
        }
        // Whoever comes here pays here.
        self.credit = 0;
        self.places.push(Place { at, state: self.state, low: self.facts.low() });
    }

    /// Places where functions may begin.
    fn functions(&self) -> Vec<usize> {
        self.with(State::default())
    }

    /// Places in this state that count on nothing else.
    fn with(&self, state: State) -> Vec<usize> {
        self.places.iter().filter(|place| place.state == state && place.low == 0).map(|place| place.at).collect()
    }

    /// After an end of flow: where does control come from?
    fn resume(&mut self, random: &mut Random) {
        while random.one_in(3) {
            const NO_OPS: [&[u8]; 3] = [&[0x90], &[0x66, 0x90], &[0x0f, 0x1f, 0x44, 0, 0]];
            let no_op = random.pick(&NO_OPS);
            self.raw(no_op);
        }
        self.facts = Facts::NONE;
        if !self.open.is_empty() && !random.one_in(4) {
            let index = random.below(self.open.len());
            let open = self.close(index);
            (self.state, self.facts) = (open.state, Facts::at_label(open.low));
        } else if random.one_in(3) {
            let depth = random.below(4) as u32;
            let set = random.next() as u32 & ((1 << depth) - 1);
            self.state = State { depth, set };
            self.raw(&[&[0x0f, 0x1f, 0x84, 0xc0][..], &(depth | set << 20).to_le_bytes()].concat());
        } else {
            self.state = State::default();
        }
        self.mark(random);
    }
}

/// Accepted encodings that fall through and leave rsp alone; those with a memory operand apart.
#[derive(Debug)]
pub struct Pool {
    plain: Vec<Vec<u8>>,
    memory: Vec<Vec<u8>>,
}

impl Pool {
    /// At least `size` of each kind for text of `mode`. `lacking`: extensions that this processor has not.
    #[must_use]
    pub fn new(mode: Mode, lacking: u64, size: usize) -> Pool {
        let random = &mut Random(0x9e37_79b9_7f4a_7c15);
        let mut pool = Pool { plain: Vec::new(), memory: Vec::new() };
        while pool.plain.len().min(pool.memory.len()) < size {
            let bytes = candidate(random);
            let Ok(what) = describe_in(&bytes, Host::User, mode) else { continue };
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
    if register == 4 || register == 14 && text.mode.metered {
        return;
    }
    let edges = [0_u32, 0xfff0, 0x1_0ff8, 0x1_fff8, 0x2_0000, 0x7000_0000, 0x7fff_fff8, 0xffff_fff8];
    let offset = if random.one_in(12) { *random.pick(&edges) } else { 0x1_2000 + 64 * random.below(512) as u32 };
    let rex: &[u8] = if register >= 8 { &[0x41] } else { &[] };
    text.add(&[rex, &[0xb8 | register & 7], &offset.to_le_bytes()].concat(), random);
}

fn access(text: &mut Text, pool: &Pool, random: &mut Random) {
    let bytes = random.pick(&pool.memory).clone();
    let Ok(Some(memory)) = describe_in(&bytes, Host::User, text.mode).map(|what| what.memory) else { return };
    if !random.one_in(6) {
        if let Some(base) = memory.base {
            address(text, base, random);
        }
        // A small number.
        if let Some(index) = memory.index.filter(|index| Some(*index) != memory.base) {
            let rex: &[u8] = if index >= 8 { &[0x41] } else { &[] };
            text.add(&[rex, &[0xb8 | index & 7, random.next() as u8, 0, 0, 0]].concat(), random);
        }
    }
    if text.mode.matched && random.one_in(3) {
        memory.base.into_iter().chain(memory.index).for_each(|register| text.check(register, random));
    }
    text.add(&bytes, random);
}

/// The unit `and $mask,%r32; call|jmp *%gs:table(%r64)`, if it may be here.
fn table(text: &mut Text, mask: u8, disp: u32, call: bool, random: &mut Random) -> bool {
    let register = random.below(16) as u8;
    let rex: &[u8] = if register >= 8 { &[0x41] } else { &[] };
    let sib: &[u8] = if register & 7 == 4 { &[0x24] } else { &[] };
    let kind = if call { 0x90 } else { 0xa0 };
    if register != 4 {
        let unit = [rex, &[0x83, 0xe0 | register & 7, mask, 0x65], rex, &[0xff, kind | register & 7], sib, &disp.to_le_bytes()];
        return text.add(&unit.concat(), random);
    }
    false
}

const JCC: [u8; 2] = [0x0f, 0x80];

/// One program of up to `items` items, under the layout `base` in the mode that it names.
#[must_use]
pub fn program(pool: &Pool, base: &NoteSpec, items: usize, random: &mut Random) -> Program {
    let mut text = Text::new(base.mode, base.stack_low);
    text.mark(random);
    for _ in 0..4 + random.below(items) {
        item(&mut text, pool, random);
    }
    leave(&mut text, random);
    for at in text.open.iter().map(|open| open.at).chain(text.aborts.iter().copied()).collect::<Vec<_>>() {
        text.lead_here(at);
        text.raw(&[0x0f, 0x0b]);
    }
    let mut spec = base.clone();
    spec.entries.push((0, "entry".to_owned()));
    let (functions, labels) = (text.functions(), text.with(SWITCH));
    for _ in 0..random.below(4) {
        spec.slots.push(Slot::Text(*random.pick(&functions) as u32));
    }
    if !labels.is_empty() {
        spec.sub_tables[0].1 = (0..1 + random.below(4)).map(|_| Slot::Text(*random.pick(&labels) as u32)).collect();
    }
    spec.forgets = text.forgets;
    Program { text: text.bytes, spec }
}

fn item(text: &mut Text, pool: &Pool, random: &mut Random) {
    let register = *random.pick(&[0_u8, 1, 2, 3, 5, 6, 7]);
    match random.below(26) {
        0..=5 => drop(text.add(&random.pick(&pool.plain).clone(), random)),
        6..=10 => access(text, pool, random),
        kind @ 11..=16 => resize(text, kind, register, random),
        kind @ 17..=22 => branch(text, kind, random),
        23 => {
            let fitting = text.open.iter().position(|open| open.state.depth == text.state.depth);
            if let Some(index) = fitting {
                let open = text.close(index);
                text.state.set &= open.state.set;
                text.facts = Facts::at_label(text.facts.low() & open.low);
            }
            text.mark(random);
        }
        // lea d(%rsp),%r32
        24 => drop(text.add(&[0x8d, 0x44 | register << 3, 0x24, random.next() as u8], random)),
        _ => text.mark(random),
    }
}

/// Pushes, pops and frames, where the state allows them.
fn resize(text: &mut Text, kind: usize, register: u8, random: &mut Random) {
    let state = text.state;
    match kind {
        11 | 12 if state.depth < DEPTH => {
            let rex: &[u8] = if random.one_in(3) { &[0x41] } else { &[] };
            text.add(&[rex, &[0x50 | register]].concat(), random);
            text.state = state.push();
        }
        13 | 14 if state.top_is_pushed() => {
            text.add(&[0x58 | register], random);
            text.state = state.resized(state.depth - 1);
        }
        15 if state.depth < DEPTH => {
            let units = 1 + random.below(3) as u32;
            text.add(&[0x48, 0x83, 0xec, 8 * units as u8], random);
            text.state.depth += units;
        }
        16 if state.depth > 0 => {
            let units = 1 + random.below(state.depth.min(3) as usize) as u32;
            let head: &[u8] = if random.one_in(2) { &[0x48, 0x83, 0xc4] } else { &[0x48, 0x8d, 0x64, 0x24] };
            text.add(&[head, &[8 * units as u8]].concat(), random);
            text.state = state.resized(state.depth - units);
        }
        _ => {}
    }
}

fn branch(text: &mut Text, kind: usize, random: &mut Random) {
    let state = text.state;
    // In front of the branch, so that nothing comes between what it brings and what its target counts on.
    text.pay(random);
    let fits = |place: &&Place| {
        place.state.depth == state.depth && place.state.set & !state.set == 0 && place.low & !text.facts.low() == 0
    };
    let backward: Vec<usize> = text.places.iter().filter(fits).map(|place| place.at).collect();
    match kind {
        17 => text.forward(&[JCC[0], JCC[1] | random.below(16) as u8], state, random),
        18 if !backward.is_empty() => {
            let to = *random.pick(&backward);
            text.back(&[JCC[0], JCC[1] | random.below(16) as u8], to, random);
        }
        19 if random.one_in(2) && end(text, &backward, random) => text.resume(random),
        20 if random.one_in(2) => text.forward(&[0xe8], State::default(), random),
        20 => {
            let to = *random.pick(&text.functions());
            text.back(&[0xe8], to, random);
        }
        21 => drop(table(text, 0x78, 0x1_0000, true, random)),
        22 => drop(text.add(&[0x65, 0xff, 0x14, 0x25, 8 * (1 + random.below(2) as u8), 0, 1, 0], random)),
        _ => {}
    }
}

/// An end of flow that the state allows; `false` if there is none after all.
fn end(text: &mut Text, backward: &[usize], random: &mut Random) -> bool {
    let state = text.state;
    match random.below(6) {
        0 if state.depth == 0 => text.add(&[0xc3], random),
        1 if state.depth == 0 => table(text, 0x78, 0x1_0000, false, random),
        1 | 2 if state.depth == SWITCH.depth && state.set & SWITCH.set == SWITCH.set => {
            table(text, 0x18, 0x1_0080, false, random)
        }
        3 if state.depth == 0 => text.add(&[0x65, 0xff, 0x24, 0x25, 8, 0, 1, 0], random),
        4 if !backward.is_empty() => {
            let to = *random.pick(backward);
            text.back(&[0xe9], to, random);
            true
        }
        _ => {
            text.forward(&[0xe9], state, random);
            true
        }
    }
}

/// Leaves the function: by pops where slots were pushed, else by an addition.
fn leave(text: &mut Text, random: &mut Random) {
    while text.state.top_is_pushed() && !random.one_in(4) {
        text.add(&[0x58], random);
        text.state = text.state.resized(text.state.depth - 1);
    }
    if text.state.depth > 0 {
        text.add(&[&[0x48, 0x81, 0xc4][..], &(8 * text.state.depth).to_le_bytes()].concat(), random);
        text.state = text.state.resized(0);
    }
    text.add(&[0xc3], random);
}
