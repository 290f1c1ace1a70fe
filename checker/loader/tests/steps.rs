//! Runs random accepted text of match and metered mode on this processor, one instruction at a time, and holds each step to what the mode
//! promises: before an access, that its 64-bit address is exact (SPEC "Match"); at every step, that as many instructions are paid for as
//! have run (SPEC "Metered").
//!
//! The text is made of instructions that write registers, checks, accesses, branches, calls and charges, with random forget records; the
//! checker decides which texts run, from registers with random values.

#[path = "common/random.rs"]
mod random;
#[path = "common/registers.rs"]
mod registers;
#[path = "common/signals.rs"]
mod signals;

use cordon_checker::layout::{Forget, MEMORY_END};
use cordon_checker::note::NoteSpec;
use cordon_checker::policy::Host;
use cordon_checker::{Facts, Features, Flow, Mode, Policy, Protect, check, describe_in, is_start, sample, track};
use random::Random;
use registers::GENERAL;
use std::arch::asm;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;

/// The window's address; nothing is mapped in it but the layout's regions.
const BASE: u64 = 0x1357_0000_0000;
const TEXT: u64 = 0x2468_0000_0000;
const TEXT_LEN: u64 = 0x1_0000;
/// The native stack; its low half is set by the layout.
const STACK: u64 = 0x3579_0000_0000;
/// Where the outermost `ret` goes: no address at all.
const GONE: u64 = 0x4680_0000_0000;
const TRAP_FLAG: i64 = 0x100;
/// Instructions that one run may take, and records that are kept.
const STEPS: usize = 100;
/// The count to start with.
const FUEL: u64 = 1 << 40;

/// Registers before an instruction.
#[derive(Clone, Copy, Default)]
struct Step {
    rip: u64,
    general: [u64; 16],
}

/// Shared with the signal handler.
struct Shared {
    start: Step,
    steps: [Step; STEPS],
    taken: usize,
    running: bool,
    harness: Option<[i64; 23]>,
    signal: i32,
}

struct Cell(UnsafeCell<Shared>);
// SAFETY: one thread uses it, and its signal handler only while that thread waits in `run`.
unsafe impl Sync for Cell {}

const NOWHERE: Step = Step { rip: 0, general: [0; 16] };
static SHARED: Cell =
    Cell(UnsafeCell::new(Shared { start: NOWHERE, steps: [NOWHERE; STEPS], taken: 0, running: false, harness: None, signal: 0 }));

/// Starts at the harness's `ud2`, records at every trap, and goes back to the harness at anything else.
extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: see `Cell`; the kernel gives a valid context.
    let (shared, g) = unsafe { (&mut *SHARED.0.get(), &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    let (rip, flags) = (libc::REG_RIP as usize, libc::REG_EFL as usize);
    if !shared.running {
        if signal != libc::SIGILL {
            // SAFETY: a fault of the test itself.
            unsafe { libc::_exit(101) };
        }
        shared.harness = Some(*g);
        (shared.running, shared.taken) = (true, 0);
        for (value, name) in shared.start.general.iter().zip(GENERAL) {
            g[name as usize] = value.cast_signed();
        }
        g[rip] = shared.start.rip.cast_signed();
        g[flags] = 0x202 | TRAP_FLAG;
    }
    let going_on = shared.taken == 0 || signal == libc::SIGTRAP && shared.taken < STEPS;
    if going_on {
        let mut step = Step { rip: g[rip] as u64, ..NOWHERE };
        for (value, name) in step.general.iter_mut().zip(GENERAL) {
            *value = g[name as usize] as u64;
        }
        shared.steps[shared.taken] = step;
        shared.taken += 1;
    } else {
        (shared.signal, shared.running) = (signal, false);
        *g = shared.harness.take().expect("the harness waits");
        g[rip] += 2;
    }
}

/// Runs from `start` until something else than a step happens; the steps and the signal that ended them.
fn run(start: Step) -> (Vec<Step>, i32) {
    let mxcsr = 0x1f80_u32;
    // SAFETY: the handler saves and restores every general register; the others are declared. The text has been accepted, so that it
    // reaches only the pages of this test: what a wrong checker would break is for the test to find.
    unsafe {
        (*SHARED.0.get()).start = start;
        asm!("ud2", clobber_abi("C"));
        asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr);
        let shared = &*SHARED.0.get();
        (shared.steps[..shared.taken].to_vec(), shared.signal)
    }
}

fn map(start: u64, len: u64, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got = unsafe { libc::mmap(start as *mut libc::c_void, len as usize, protection, flags, -1, 0) };
    assert_eq!(got as u64, start, "the address is free");
}

fn set_up(spec: &NoteSpec) {
    const RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    map(BASE - 0x1_0000, (1 << 32) + 0x2_0000, libc::PROT_NONE);
    for region in &spec.regions {
        let (start, len) = (BASE + u64::from(region.start), (region.end - region.start) as usize);
        // SAFETY: pages of this test.
        assert_eq!(unsafe { libc::mprotect(start as *mut libc::c_void, len, RW) }, 0);
    }
    map(TEXT, TEXT_LEN, RW | libc::PROT_EXEC);
    map(STACK + u64::from(spec.stack_low) + 8 - 0x1_0000, 0x1_0000, RW);
    signals::install(on_signal, &signals::FAULTS);
    signals::set_gs(BASE);
}

impl Random {
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A register but rsp, seldom r14, mostly one of a few.
    fn register(&mut self) -> u8 {
        const FEW: [u8; 6] = [0, 2, 6, 7, 8, 13];
        if self.one_in(4) { (5 + self.below(11)) as u8 } else { FEW[self.below(FEW.len())] }
    }

    /// Mostly a register of the mask, if it has any.
    fn one_of(&mut self, mask: u16) -> u8 {
        let known: Vec<u8> = (0..16).filter(|register| mask >> register & 1 == 1).collect();
        if known.is_empty() || self.one_in(4) { self.register() } else { known[self.below(known.len())] }
    }

    /// Any value: addresses in regions, the ends of the levels, and others.
    fn value(&mut self) -> u64 {
        let edges = [0_u64, 0xffff, 0x1_1000, 0x1_8000, 0x7000_0000, 0x700f_8000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32];
        match self.below(10) {
            0 => self.next() >> self.below(64),
            1..=6 => 0x1_2000 + self.next() % 0xc000,
            7 => edges[self.below(edges.len())].wrapping_sub(self.next() % 64),
            _ => edges[self.below(edges.len())].wrapping_add(self.next() % 64),
        }
    }
}

/// A text in the making.
struct Text {
    bytes: Vec<u8>,
    /// What the checker knows here, as if nothing else led here.
    facts: Facts,
    depth: u32,
    /// Offsets of instructions at depth 0, where branches may lead.
    places: Vec<usize>,
    /// Where a displacement lies whose target is an index of `places` as they will be; `None` = a `ud2` of its own.
    open: Vec<(usize, Option<u64>)>,
    forgets: Vec<Forget>,
    mode: Mode,
}

impl Text {
    fn esp(&self) -> u32 {
        sample::user().stack_low - self.depth
    }

    /// Appends an instruction, if the checker takes it and its address is known; seldom one whose address is not.
    fn push(&mut self, bytes: &[u8], random: &mut Random) {
        let Ok(tracked) = track(bytes, Host::User, self.mode, self.facts, self.esp()) else { return };
        let counts = self.mode.metered && tracked.description.gpr_writes >> 14 & 1 == 1;
        if (!tracked.allowed || counts) && !random.one_in(200) || bytes.len() != tracked.description.len {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        self.facts = tracked.after;
    }

    /// A branch with the opcode `head`, to a random place or to a `ud2`.
    fn branch(&mut self, head: &[u8], to: Option<u64>) {
        self.bytes.extend_from_slice(head);
        self.open.push((self.bytes.len(), to));
        self.bytes.extend([0; 4]);
    }

    fn charge(&mut self, random: &mut Random) {
        self.branch(&[0x49, 0x83, 0xee, 1 + random.below(20) as u8, 0x0f, 0x82], None);
    }

    fn check(&mut self, register: u8) {
        self.branch(&[0x48 | register >> 3, 0x81, 0xf8 | register & 7, 0xff, 0xff, 0xff, 0x7f, 0x0f, 0x87], None);
        if self.mode.matched {
            self.facts = self.facts.checked(register);
        }
    }

    /// An access: base, index, scale and displacement by chance.
    fn access(&mut self, random: &mut Random) {
        const DISPS: [i64; 10] = [0, 8, 0xffc0, 0xffc2, 0x1_1000, 0x10_0000, 1 << 30, -8, -(1 << 30), i32::MAX as i64];
        let edge = DISPS[random.below(DISPS.len())] + random.below(3) as i64 - 1;
        let disp = if random.one_in(3) { edge } else { random.below(64) as i64 };
        let (base, index) = (random.one_of(self.facts.near()), random.one_of(self.facts.small()));
        let (base, index) = match random.below(5) {
            0 => (base, index),
            1 => (5, index),
            2 => (4, if random.one_in(2) { 4 } else { index }),
            _ => (base, 4),
        };
        // Without a base SIB's mode is 0.
        let mode = if base == 5 { 0x04 } else { 0x84 };
        let value = random.register();
        let rex = 0x40 | (value >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        let scale = if index == 4 { 0 } else { random.below(4) as u8 };
        if index == 4 && base & 7 != 4 {
            // No SIB where ModRM says the same.
            let bytes =
                [&[0x65, 0x67, rex, [0x8b, 0x89][random.below(2)], 0x80 | (value & 7) << 3 | base & 7][..], &disp_bytes(disp)]
                    .concat();
            return self.push(&without_bare_rex(bytes), random);
        }
        let sib = scale << 6 | (index & 7) << 3 | base & 7;
        let bytes =
            [&[0x65, 0x67, rex, [0x8b, 0x89][random.below(2)], mode | (value & 7) << 3, sib][..], &disp_bytes(disp)].concat();
        self.push(&without_bare_rex(bytes), random);
    }

    /// A place that branches may lead to, perhaps with a forget record.
    fn place(&mut self, random: &mut Random) {
        let offset = self.bytes.len();
        self.places.push(offset);
        if self.mode.matched && !random.one_in(4) {
            let keep = if random.one_in(2) { 0 } else { self.facts.low() & random.next() as u16 };
            self.forgets.push(Forget { offset: offset as u32, keep });
            self.facts = Facts::at_label(self.facts.low() & keep);
        }
    }

    /// Closes the text: `ud2` behind it, branches resolved.
    fn finish(mut self) -> Text {
        self.bytes.push(0xc3);
        for (at, to) in std::mem::take(&mut self.open) {
            let target = match to {
                Some(to) => self.places[(to % self.places.len() as u64) as usize],
                None => {
                    self.bytes.extend([0x0f, 0x0b]);
                    self.bytes.len() - 2
                }
            };
            let rel = (target as i64 - (at + 4) as i64) as i32;
            self.bytes[at..at + 4].copy_from_slice(&rel.to_le_bytes());
        }
        self
    }
}

fn disp_bytes(disp: i64) -> [u8; 4] {
    i32::try_from(disp.clamp(i32::MIN.into(), i32::MAX.into())).unwrap_or(0).to_le_bytes()
}

fn without_bare_rex(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes[2] == 0x40 {
        bytes.remove(2);
    }
    bytes
}

/// Accepted instructions that write general registers, without memory operand.
fn pool(random: &mut Random) -> Vec<Vec<u8>> {
    let mut pool = Vec::new();
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    let common = Features::POPCNT.0 | Features::SSE2.0 | Features::MMX.0;
    while pool.len() < 4000 {
        let rex = 0x40 + random.below(16) as u8;
        let prefix: &[u8] = if random.one_in(4) { prefixes[random.below(4)] } else { &[] };
        let rex: &[u8] = if random.one_in(3) { &[] } else { &[rex] };
        let (opcode, modrm) = (random.next() as u8, random.next() as u8);
        let bytes = [prefix, rex, maps[random.below(2)], &[opcode, modrm], &random.value().to_le_bytes()].concat();
        let Ok(what) = describe_in(&bytes, Host::User, Mode::default()) else { continue };
        let rsp = what.gpr_writes >> 4 & 1 == 1 || matches!(opcode, 0x50..=0x5f);
        if what.flow == Flow::Next && what.memory.is_none() && what.gpr_writes != 0 && !rsp && what.features.0 & !common == 0 {
            pool.push(bytes[..what.len].to_vec());
        }
    }
    pool
}

fn random_text(mode: Mode, pool: &[Vec<u8>], random: &mut Random) -> Text {
    let mut text =
        Text { bytes: Vec::new(), facts: Facts::NONE, depth: 0, places: vec![0], open: Vec::new(), forgets: Vec::new(), mode };
    if mode.metered {
        text.charge(random);
    }
    for _ in 0..4 + random.below(24) {
        if mode.metered && random.one_in(5) {
            if random.one_in(2) && text.depth == 0 {
                text.place(random);
            }
            text.charge(random);
        }
        let register = random.register();
        match random.below(18) {
            0..=3 => text.push(&pool[random.below(pool.len())], random),
            4..=7 => text.access(random),
            8..=9 => text.check(register),
            // movzwl %r16,%r32
            10 => {
                let rex = 0x40 | ((register >> 3) * 5);
                let bytes = [rex, 0x0f, 0xb7, 0xc0 | ((register & 7) * 9)];
                text.push(if rex == 0x40 { &bytes[1..] } else { &bytes }, random);
            }
            11 if text.depth == 0 => text.place(random),
            12 if text.depth == 0 => text.branch(&[0x0f, 0x80 | random.below(16) as u8], Some(random.next())),
            13 if text.depth == 0 && random.one_in(3) => {
                text.branch(&[0xe8], Some(random.next()));
                text.facts = Facts::NONE;
            }
            14 if text.depth < 64 && register < 8 => {
                text.push(&[0x50 | register], random);
                text.depth += 8;
            }
            15 if text.depth > 0 && register < 8 => {
                text.push(&[0x58 | register], random);
                text.depth -= 8;
            }
            // lea d(%rsp),%r32
            16 => {
                let bytes = [0x44, 0x8d, 0x84 | (register & 7) << 3, 0x24, 0, 0, 0x10, 0];
                text.push(if register < 8 { &bytes[1..] } else { &bytes }, random);
            }
            _ => text.push(&[0x48, 0x83, 0xc0 | register & 7, 8], random),
        }
    }
    while text.depth > 0 {
        text.push(&[0x58], random);
        text.depth -= 8;
    }
    text.finish()
}

/// Whether the address is exact, for an access of 64 bytes.
fn is_exact(address: u64) -> bool {
    let truncated = address & 0xffff_ffff;
    truncated == address || truncated >= u64::from(MEMORY_END) || truncated <= 0xffc0
}

/// Holds the steps to the mode's promise; gives how many accesses there were.
fn judge(text: &Text, scratch: &[u64], steps: &[Step]) -> Result<u32, String> {
    let (mut accesses, mut executed) = (0, 0_u64);
    for step in steps {
        let offset = step.rip.wrapping_sub(TEXT) as usize;
        if !scratch.get(offset).is_some_and(|word| is_start(*word)) {
            // The second half of a unit, or the way out.
            continue;
        }
        let what = describe_in(&text.bytes[offset..], Host::User, text.mode).expect("accepted");
        let paid = FUEL.checked_sub(step.general[14]);
        if text.mode.metered && paid.is_none_or(|paid| paid < executed) {
            return Err(format!("{executed} have run at {offset:#x}, {paid:?} are paid for"));
        }
        executed += u64::from(what.flow != Flow::Trap);
        let Some(memory) = what.memory.filter(|memory| text.mode.matched && !memory.prefetch) else { continue };
        accesses += 1;
        let register = |number: u8| match number {
            4 => step.general[4] & 0xffff_ffff,
            number => step.general[usize::from(number)],
        };
        let index = memory.index.map_or(0, register).wrapping_mul(memory.scale.into());
        let address = memory.base.map_or(0, register).wrapping_add(index).wrapping_add_signed(memory.disp.into());
        if !is_exact(address) {
            return Err(format!("access to {address:#x} at {offset:#x}"));
        }
    }
    Ok(accesses)
}

#[test]
fn accepted_text_keeps_what_its_mode_promises() {
    let layout = sample::user();
    set_up(&layout);
    let mut random = Random(0x1234_5678_9abc_def1);
    let pool = pool(&mut random);
    let tries = std::env::var("CORDON_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000_u32);
    let (mut accepted, mut accesses, mut steps_taken) = (0, 0, 0);
    let mut ends: BTreeMap<i32, u32> = BTreeMap::new();
    for _ in 0..tries {
        let bits = 1 + random.below(3);
        let mode = Mode { matched: bits & 1 != 0, metered: bits & 2 != 0, protect: Protect::All };
        let text = random_text(mode, &pool, &mut random);
        let spec = NoteSpec { mode, forgets: text.forgets.clone(), ..layout.clone() };
        let mut scratch = vec![0; text.bytes.len()];
        if sample::with_layout(&spec, |layout| check(&text.bytes, &Policy::USER, layout, &mut scratch)).is_err() {
            continue;
        }
        accepted += 1;
        // SAFETY: the text's own pages, and the word above the outermost frame.
        unsafe {
            std::ptr::copy_nonoverlapping(text.bytes.as_ptr(), TEXT as *mut u8, text.bytes.len());
            *((STACK + u64::from(spec.stack_low)) as *mut u64) = GONE;
        }
        for _ in 0..4 {
            let mut start = Step { rip: TEXT, general: [0; 16] };
            start.general.iter_mut().for_each(|value| *value = random.value());
            start.general[4] = STACK + u64::from(spec.stack_low);
            start.general[14] = if mode.metered { FUEL } else { random.value() };
            let (steps, signal) = run(start);
            *ends.entry(signal).or_default() += 1;
            steps_taken += steps.len();
            match judge(&text, &scratch, &steps) {
                Ok(count) => accesses += count,
                Err(wrong) => panic!("{wrong}, {mode:?}, forget {:?}: {:02x?}", text.forgets, text.bytes),
            }
        }
    }
    println!("{accepted} of {tries} accepted, {steps_taken} steps, {accesses} accesses, ends by signal {ends:?}");
    assert!(accepted > tries / 40 && accesses > accepted, "{accepted} of {tries} accepted, {accesses} accesses");
}
