//! Built-in gates against the instructions and functions that they stand for.

use crate::builder::{Builder, DATA, HEAP, HEAP_END, RODATA, TABLE_END};
use cordon_loader::{Arg, BUILT_IN_GATES, Error, FaultAccess, FaultKind, Imports, Window};
use std::arch::asm;

/// A small generator, so that failures repeat (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Order of registers in the state block at DATA; word 15 is the flags (ah = lahf, al = overflow).
const REGISTERS: [&str; 15] =
    ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 5;
const RDI: usize = 6;
const R14: usize = 13;
const FLAGS: usize = 15;

pub type State = [u64; 16];

/// What `runN` of metered text pays for itself.
pub const PAID: u64 = 120;

/// Text with one entry `runN` per import: loads all registers and flags from the state block, calls, stores them. Metered text leaves r14
/// alone.
fn state_text(imports: usize, metered: bool) -> String {
    let saved = ["rbx", "rbp", "r12", "r13", "r14", "r15"];
    let mut text = String::new();
    let loaded = || REGISTERS.iter().enumerate().filter(|(i, _)| !metered || *i != R14);
    for import in 0..imports {
        text += &format!(".globl run{import}\nrun{import}:\n");
        if metered {
            text += &format!("METER {PAID}, starved\n");
        }
        let saved = saved.iter().filter(|r| !metered || **r != "r14");
        saved.clone().for_each(|r| text += &format!("push %{r}\n"));
        text += &format!("mov %gs:{},%rax\nadd $0x7f,%al\nsahf\n", DATA + 120);
        loaded().for_each(|(i, r)| text += &format!("mov %gs:{},%{r}\n", DATA as usize + 8 * i));
        text += &format!("IMPORT {import}\n");
        loaded().for_each(|(i, r)| text += &format!("mov %{r},%gs:{}\n", DATA as usize + 8 * i));
        text += &format!("lahf\nseto %al\nmov %rax,%gs:{}\n", DATA + 120);
        saved.rev().for_each(|r| text += &format!("pop %{r}\n"));
        text += "ret\n";
    }
    if metered { text + "starved: ud2\n" } else { text }
}

pub struct Gates {
    pub window: Window,
    names: Vec<&'static str>,
}

impl Gates {
    fn new(names: &[&'static str]) -> Gates {
        Gates::with(names, false)
    }

    pub fn with(names: &[&'static str], metered: bool) -> Gates {
        let builder = Builder::new(&state_text(names.len(), metered)).imports(names).data(&[0; 128]).rodata(&[b'r'; 64]);
        let window = if metered { builder.metered() } else { builder }.window();
        Gates { window, names: names.to_vec() }
    }

    /// Fuel that the last gate took, 0 where nothing is metered.
    fn charged(&self) -> u64 {
        self.window.fuel_used().map_or(0, |used| used - PAID)
    }

    /// Runs `name` from `state`; gives the state afterwards, with the flags reduced to the two bytes that are looked at.
    pub fn run(&mut self, name: &str, state: &State) -> Result<State, Error> {
        let index = self.names.iter().position(|n| *n == name).expect("listed");
        let bytes: Vec<u8> = state.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.window.write(DATA, &bytes).expect("writes the state");
        self.window.call(&format!("run{index}"), &[])?;
        let bytes = self.window.bytes(DATA, 128).expect("reads the state");
        let mut after: State = [0; 16];
        for (word, bytes) in after.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        }
        after[FLAGS] &= 0xffff;
        Ok(after)
    }
}

fn random_state(random: &mut Random) -> State {
    let mut state: State = std::array::from_fn(|_| random.next());
    state[FLAGS] = ((random.next() & 0xd5) | 2) << 8 | (random.next() & 1);
    state
}

macro_rules! native {
    ($instruction:literal, $state:expr, $base:expr) => {{
        let state: &mut State = $state;
        let (rdi, rsi, rcx, ax, flags): (u64, u64, u64, u64, u64);
        // SAFETY: the test passes ranges inside its own buffer.
        unsafe {
            asm!("mov r8, rax", "mov rax, r9", "add al, 0x7f", "sahf", "mov rax, r8", $instruction, "mov r8, rax", "lahf", "seto al",
                "mov r9, rax",
                inout("rdi") state[RDI].wrapping_add($base) => rdi, inout("rsi") state[RSI].wrapping_add($base) => rsi,
                inout("rcx") state[RCX] => rcx, inout("rax") state[RAX] => _, inout("r9") state[FLAGS] => flags, out("r8") ax);
        }
        state[RAX] = ax;
        state[RCX] = rcx;
        state[RDI] = rdi.wrapping_sub($base);
        state[RSI] = rsi.wrapping_sub($base);
        state[FLAGS] = flags & 0xffff;
    }};
}

/// Runs the instruction behind `name` on the host; `base` is what makes a pointer of an offset.
fn run_native(name: &str, state: &mut State, base: u64) {
    match name {
        "cordon.rep_movs1" => native!("rep movsb", state, base),
        "cordon.rep_movs2" => native!("rep movsw", state, base),
        "cordon.rep_movs4" => native!("rep movsd", state, base),
        "cordon.rep_movs8" => native!("rep movsq", state, base),
        "cordon.rep_stos1" => native!("rep stosb", state, base),
        "cordon.rep_stos2" => native!("rep stosw", state, base),
        "cordon.rep_stos4" => native!("rep stosd", state, base),
        "cordon.rep_stos8" => native!("rep stosq", state, base),
        "cordon.repe_cmps1" => native!("repe cmpsb", state, base),
        "cordon.repe_cmps2" => native!("repe cmpsw", state, base),
        "cordon.repe_cmps4" => native!("repe cmpsd", state, base),
        "cordon.repe_cmps8" => native!("repe cmpsq", state, base),
        "cordon.repne_cmps1" => native!("repne cmpsb", state, base),
        "cordon.repne_cmps2" => native!("repne cmpsw", state, base),
        "cordon.repne_cmps4" => native!("repne cmpsd", state, base),
        "cordon.repne_cmps8" => native!("repne cmpsq", state, base),
        "cordon.repe_scas1" => native!("repe scasb", state, base),
        "cordon.repe_scas2" => native!("repe scasw", state, base),
        "cordon.repe_scas4" => native!("repe scasd", state, base),
        "cordon.repe_scas8" => native!("repe scasq", state, base),
        "cordon.repne_scas1" => native!("repne scasb", state, base),
        "cordon.repne_scas2" => native!("repne scasw", state, base),
        "cordon.repne_scas4" => native!("repne scasd", state, base),
        "cordon.repne_scas8" => native!("repne scasq", state, base),
        other => panic!("no instruction for {other}"),
    }
}

pub fn string_gates() -> Vec<&'static str> {
    BUILT_IN_GATES.iter().copied().filter(|n| n.contains("rep")).collect()
}

#[test]
fn string_gates_do_what_the_instructions_do() {
    const SPAN: u64 = 4096;
    let names = string_gates();
    assert_eq!(names.len(), 24);
    for metered in [false, true] {
        string_gates_are_right(Gates::with(&names, metered), SPAN);
    }
}

fn string_gates_are_right(mut gates: Gates, span: u64) {
    let metered = gates.window.image().mode().metered;
    let mut random = Random(1);
    for name in string_gates() {
        let size = u64::from(name.as_bytes()[name.len() - 1] - b'0');
        for round in 0..60 {
            // Few byte values, so that comparisons go on for a while; sometimes one value only.
            let values = [1, 2, 2, 256][round % 4];
            let mut bytes: Vec<u8> = (0..span).map(|_| random.below(values) as u8).collect();
            let mut state = random_state(&mut random);
            state[RCX] = if round % 5 == 0 { 0 } else { random.below(span / 2 / size) };
            state[RDI] = u64::from(HEAP) + random.below(span / 2);
            state[RSI] = match round % 3 {
                0 => state[RDI].saturating_sub(random.below(40)).max(HEAP.into()),
                _ => u64::from(HEAP) + random.below(span / 2),
            };
            state[RAX] = if round % 2 == 0 { random.below(values) * 0x0101_0101_0101_0101 } else { state[RAX] };
            gates.window.write(HEAP, &bytes).expect("writes");
            let got = gates.run(name, &state).expect("returns");
            let base = (bytes.as_mut_ptr() as u64).wrapping_sub(HEAP.into());
            let count = state[RCX];
            run_native(name, &mut state, base);
            assert_eq!(gates.charged(), if metered { (count - state[RCX]) / 4 } else { 0 }, "{name} round {round}");
            assert_eq!(got, state, "{name} round {round}");
            assert_eq!(gates.window.bytes(HEAP, span as u32).expect("reads"), bytes, "{name} round {round}");
        }
    }
}

#[test]
fn string_gates_with_count_zero_touch_nothing() {
    let names = string_gates();
    for mut gates in [Gates::new(&names), Gates::with(&names, true)] {
        count_zero_touches_nothing(&mut gates);
    }
}

fn count_zero_touches_nothing(gates: &mut Gates) {
    let mut random = Random(2);
    for name in string_gates() {
        for (rdi, rsi) in [(0, 0), (u64::MAX, u64::MAX), (TABLE_END.into(), 0xffff_ffff)] {
            let mut state = random_state(&mut random);
            (state[RCX], state[RDI], state[RSI]) = (0, rdi, rsi);
            assert_eq!(gates.run(name, &state).expect("returns"), state, "{name}");
        }
    }
}

fn fault(result: Result<impl std::fmt::Debug, Error>) -> (FaultKind, Option<u32>, Option<FaultAccess>) {
    match result {
        Err(Error::Fault(fault)) => {
            assert!(fault.registers.is_none(), "no registers of a gate");
            assert!(fault.text_offset.is_some(), "the caller is known: {fault:?}");
            assert!(fault.gate.is_some() && fault.kind != FaultKind::Fuel, "the gate is known: {fault:?}");
            (fault.kind, fault.address.map(|a| a as u32).filter(|_| fault.address < Some(1 << 32)), fault.access)
        }
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn string_gates_refuse_bad_ranges() {
    let names = string_gates();
    for mut gates in [Gates::new(&names), Gates::with(&names, true)] {
        string_gates_refuse(&mut gates);
    }
}

fn string_gates_refuse(gates: &mut Gates) {
    let (read, write) = (Some(FaultAccess::Read), Some(FaultAccess::Write));
    let good = u64::from(HEAP);
    for name in string_gates() {
        let size = u64::from(name.as_bytes()[name.len() - 1] - b'0');
        let writes = name.contains("movs") || name.contains("stos");
        let reads_source = name.contains("movs") || name.contains("cmps");
        let mut run = |rdi: u64, rsi: u64, rcx: u64| {
            let mut state = [0; 16];
            (state[RDI], state[RSI], state[RCX]) = (rdi, rsi, rcx);
            // Memory is zero, so what goes on while equal goes on, and nothing equals -1.
            state[RAX] = if name.contains("repne") { u64::MAX } else { 0 };
            fault(gates.run(name, &state))
        };
        if writes {
            assert_eq!(run(0x100, good, 1), (FaultKind::NullZone, Some(0x100), write), "{name}");
            assert_eq!(run(u64::from(TABLE_END) - 8, good, 1), (FaultKind::Table, Some(TABLE_END - 8), write), "{name}");
            assert_eq!(run(0xffff_ffff, good, 2), (FaultKind::GateRange, Some(0xffff_ffff), write), "{name}");
            assert_eq!(run(good, good, (1 << 32) / size).0, FaultKind::GateRange, "{name}");
            assert_eq!(run(good, good, u64::MAX).0, FaultKind::GateRange, "{name}");
            assert_eq!(run(good + (1 << 32), good, 1), (FaultKind::GateRange, None, write), "{name}");
            assert_eq!(run(u64::MAX, good, 1), (FaultKind::GateRange, None, write), "{name}");
            let end = u64::from(HEAP_END);
            let edge = run(end - 2 * size, good, 3);
            assert_eq!(edge, (FaultKind::Unmapped, Some(HEAP_END), Some(FaultAccess::Write)), "{name}");
            assert_eq!(run(RODATA.into(), good, 1), (FaultKind::ReadOnly, Some(RODATA), Some(FaultAccess::Write)), "{name}");
        } else if !name.contains("repne_cmps") {
            assert_eq!(run(0x100, good, 1), (FaultKind::NullZone, Some(0x100), read), "{name}");
            // A huge count runs into the first unmapped page.
            assert_eq!(run(u64::from(HEAP_END) - 64, good, u64::MAX), (FaultKind::Unmapped, Some(HEAP_END), read), "{name}");
            let (kind, address, _) = run(0xffff_ffff, good, 2);
            assert_eq!((kind, address), (FaultKind::Unmapped, Some(0xffff_ffff)), "{name}");
            assert_eq!(run(good + (7 << 32), good, 1), (FaultKind::GateRange, None, read), "{name}");
        }
        if name.contains("movs") {
            assert_eq!(run(good, 0xffff_ffff, 2), (FaultKind::GateRange, Some(0xffff_ffff), read), "{name}");
        }
        if reads_source {
            assert_eq!(run(good, good + (1 << 63), 1), (FaultKind::GateRange, None, read), "{name}");
            assert_eq!(run(good, 0x100, 1), (FaultKind::NullZone, Some(0x100), read), "{name}");
        }
    }
}

#[test]
fn ranges_that_end_with_the_window_are_no_bad_ranges() {
    let mut gates = Gates::new(&["cordon.rep_movs1", "memcpy"]);
    let mut state = [0; 16];
    for (rdi, count) in [(0xffff_fff0, 16), (0xffff_ffff, 1), (0x8000_0000, 1 << 31)] {
        (state[RDI], state[RSI], state[RCX], state[RDX]) = (rdi, HEAP.into(), count, count);
        for name in ["cordon.rep_movs1", "memcpy"] {
            assert_eq!(fault(gates.run(name, &state)).0, FaultKind::Unmapped, "{name} {rdi:#x}");
            (state[RCX], state[RDX]) = (count + 1, count + 1);
            assert_eq!(fault(gates.run(name, &state)).0, FaultKind::GateRange, "{name} {rdi:#x}");
            (state[RCX], state[RDX]) = (count, count);
        }
    }
}

/// No register that a SysV function may clobber holds anything but what the handler could know: small numbers, offsets, its data.
fn assert_no_address(state: &State, bytes: &[u8]) {
    for (register, &value) in REGISTERS.iter().zip(state) {
        let known = value.cast_signed().unsigned_abs() < 1 << 33 || bytes.windows(8).any(|w| w == value.to_le_bytes());
        let repeated = value == (value & 0xff) * 0x0101_0101_0101_0101;
        assert!(known || repeated, "{register} = {value:#x}");
    }
}

#[test]
fn memory_functions_do_what_the_c_library_does() {
    for metered in [false, true] {
        memory_functions_are_right(Gates::with(&["memcpy", "memmove", "memset", "memcmp", "strlen"], metered));
    }
}

fn memory_functions_are_right(mut gates: Gates) {
    const SPAN: usize = 12_000;
    let metered = gates.window.image().mode().metered;
    let mut random = Random(3);
    let sizes =
        [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1024, 2047, 2048, 2049, 5000];
    let mut model: Vec<u8> = (0..SPAN).map(|_| random.next() as u8).collect();
    gates.window.write(HEAP, &model).expect("writes");
    for round in 0..1500 {
        let size = if round % 3 == 0 { random.below(300) as usize } else { sizes[round % sizes.len()] };
        let from = random.below((SPAN - size) as u64) as usize;
        let near = (from as i64 + random.below(160) as i64 - 80).clamp(0, (SPAN - size) as i64) as usize;
        let to = if round % 2 == 0 { near } else { random.below((SPAN - size) as u64) as usize };
        let mut state = [0; 16];
        (state[RDI], state[RSI], state[RDX]) = (u64::from(HEAP) + to as u64, u64::from(HEAP) + from as u64, size as u64);
        let name = ["memcpy", "memmove", "memset", "memcmp"][round % 4];
        match name {
            "memset" => {
                state[RSI] = random.next() % 256;
                model[to..to + size].fill(state[RSI] as u8);
            }
            "memcmp" if round % 8 == 3 => {
                // Equal but for one byte, or equal.
                let copy = model[from..from + size].to_vec();
                model[to..to + size].copy_from_slice(&copy);
                let at = random.below(size as u64 + 1) as usize;
                model[(to + at).min(SPAN - 1)] ^= (random.below(2) * 0x80) as u8;
                gates.window.write(HEAP, &model).expect("writes");
            }
            "memcmp" => {}
            _ => model.copy_within(from..from + size, to),
        }
        let after = gates.run(name, &state).expect("returns");
        let result = after[RAX];
        assert_eq!(gates.charged(), if metered { size as u64 / 16 } else { 0 }, "{name}");
        if name == "memcmp" {
            let expected = model[to..to + size].cmp(&model[from..from + size]);
            assert_eq!((result as i32).cmp(&0), expected, "memcmp of {size} in round {round}");
        } else {
            assert_eq!(result, state[RDI], "{name}");
        }
        assert!(
            gates.window.bytes(HEAP, SPAN as u32).expect("reads") == model,
            "{name} of {size}, {from} to {to}, round {round}"
        );
        assert_no_address(&after, &model);
    }
}

#[test]
fn strlen_finds_every_length_at_every_alignment() {
    for metered in [false, true] {
        strlen_is_right(Gates::with(&["strlen"], metered));
    }
}

fn strlen_is_right(mut gates: Gates) {
    let metered = gates.window.image().mode().metered;
    for align in 0..20 {
        for len in (0..40).chain([100, 255, 256]) {
            let at = HEAP_END - 1 - len - align;
            gates.window.write(at, &vec![b'x'; len as usize]).expect("writes");
            gates.window.write(at + len, &vec![0; align as usize + 1]).expect("writes");
            let mut state = [0; 16];
            state[RDI] = at.into();
            assert_eq!(gates.run("strlen", &state).expect("returns")[RAX], len.into());
            let blocks = (at + len) / 16 - at / 16;
            assert_eq!(gates.charged(), if metered { blocks.into() } else { 0 });
        }
    }
    gates.window.write(HEAP_END - 5, &[1; 5]).expect("writes");
    let mut state = [0; 16];
    state[RDI] = u64::from(HEAP_END) - 5;
    assert_eq!(fault(gates.run("strlen", &state)), (FaultKind::Unmapped, Some(HEAP_END), Some(FaultAccess::Read)));
}

#[test]
fn memory_functions_refuse_bad_ranges() {
    let mut gates = Gates::new(&["memcpy", "memmove", "memset", "memcmp", "strlen"]);
    let good = u64::from(HEAP);
    let mut run = |name: &str, rdi: u64, rsi: u64, rdx: u64| {
        let mut state = [0; 16];
        (state[RDI], state[RSI], state[RDX]) = (rdi, rsi, rdx);
        fault(gates.run(name, &state))
    };
    let (read, write) = (Some(FaultAccess::Read), Some(FaultAccess::Write));
    for name in ["memcpy", "memmove", "memset"] {
        for len in [1, 3, 8, 16, 20, 40, 70, 3000] {
            assert_eq!(run(name, 0x100, good, len), (FaultKind::NullZone, Some(0x100), write), "{name} {len}");
            assert_eq!(run(name, 0x1_0008, good, len), (FaultKind::Table, Some(0x1_0008), write), "{name} {len}");
            assert_eq!(run(name, good + (1 << 32), good, len), (FaultKind::GateRange, None, write), "{name} {len}");
            assert_eq!(run(name, u64::MAX - 7, good, len), (FaultKind::GateRange, None, write), "{name} {len}");
            let (kind, address, access) = run(name, RODATA.into(), good, len);
            assert_eq!((kind, access), (FaultKind::ReadOnly, write), "{name} {len}");
            assert!((RODATA..RODATA + len as u32).contains(&address.expect("an address")), "{name} {len}");
            let (kind, address, access) = run(name, u64::from(HEAP_END) - len + 1, good, len);
            assert_eq!((kind, access), (FaultKind::Unmapped, write), "{name} {len}");
            assert!((HEAP_END - 32..=HEAP_END).contains(&address.expect("an address")), "{name} {len} {address:?}");
            assert_eq!(run(name, 0xffff_ffff, good, len + 1).0, FaultKind::GateRange, "{name} {len}");
        }
        for len in [1 << 32, u64::MAX, u64::MAX - 0xffff, (1 << 32) - 1] {
            assert_eq!(run(name, good, good, len).0, FaultKind::GateRange, "{name} {len}");
        }
    }
    for name in ["memcpy", "memmove", "memcmp"] {
        assert_eq!(run(name, good, 0x100, 16), (FaultKind::NullZone, Some(0x100), read), "{name}");
        assert_eq!(run(name, good, 0xffff_fff8, 16), (FaultKind::GateRange, Some(0xffff_fff8), read), "{name}");
        assert_eq!(run(name, good, good + (1 << 40), 16), (FaultKind::GateRange, None, read), "{name}");
    }
    assert_eq!(run("strlen", good + (1 << 32), 0, 0), (FaultKind::GateRange, None, read));
    assert_eq!(run("memcmp", 0x100, good, 16), (FaultKind::NullZone, Some(0x100), read));
    assert_eq!(run("strlen", 0, 0, 0), (FaultKind::NullZone, Some(0), read));
}

#[test]
fn control_word_gates_keep_exceptions_masked_and_everything_else() {
    let mut gates = Gates::new(&["cordon.fldcw", "cordon.ldmxcsr"]);
    let mut random = Random(4);
    let before = control_words();
    for _ in 0..200 {
        let mut state = random_state(&mut random);
        gates.window.write(HEAP, &random.next().to_le_bytes()).expect("writes");
        state[RAX] = HEAP.into();
        for name in ["cordon.fldcw", "cordon.ldmxcsr"] {
            assert_eq!(gates.run(name, &state).expect("returns"), state, "{name}");
            assert_eq!(control_words(), before, "{name} does not outlive the call");
        }
    }
    let mut state = [0; 16];
    state[RAX] = 0xffff_ffff;
    assert_eq!(fault(gates.run("cordon.ldmxcsr", &state)).0, FaultKind::Unmapped);
}

/// MXCSR and the x87 control word of this thread.
pub fn control_words() -> (u32, u16) {
    let (mut mxcsr, mut fcw) = (0_u32, 0_u16);
    // SAFETY: both instructions store to the variables only.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr);
        asm!("fnstcw [{}]", in(reg) &raw mut fcw);
    }
    (mxcsr, fcw)
}

#[test]
fn loaded_control_words_are_seen_with_exceptions_masked() {
    let source = format!(
        ".globl csr\ncsr: mov %edi,%gs:{DATA}; mov ${DATA},%eax; IMPORT 0; stmxcsr %gs:{HEAP}; mov %gs:{HEAP},%eax; ret
         .globl cw\ncw: mov %edi,%gs:{DATA}; mov ${DATA},%eax; IMPORT 1; fnstcw %gs:{HEAP}; movzwl %gs:{HEAP},%eax; ret"
    );
    let mut w = Builder::new(&source).imports(&["cordon.ldmxcsr", "cordon.fldcw"]).window();
    for word in [0, 0x1f80, 0x7f80, 0xffff_ffff, 0x12_3456_7840] {
        let expected = (word & 0xffff) | 0x1f80;
        assert_eq!(w.call("csr", &[Arg::Int(word)]).expect("returns"), expected);
    }
    for word in [0, 0x033f, 0x0c00, 0x0f00] {
        assert_eq!(w.call("cw", &[Arg::Int(word)]).expect("returns") & 0x0f3f, word | 0x3f);
    }
}

#[test]
fn cpuid_gate_tells_features_and_nothing_of_the_machine() {
    let mut gates = Gates::new(&["cordon.cpuid", "cordon.xgetbv"]);
    let mut random = Random(5);
    for leaf in (0..0x20).chain(0x8000_0000..0x8000_0020).chain([0x4000_0000, 0x4000_0001, u64::from(u32::MAX)]) {
        for sub_leaf in [0, 1, 2] {
            let mut state = random_state(&mut random);
            (state[RAX], state[RCX]) = (leaf, sub_leaf);
            let after = gates.run("cordon.cpuid", &state).expect("returns");
            let outputs = [RAX, RBX, RCX, RDX];
            let kept =
                |s: &State| s.iter().enumerate().filter(|(i, _)| !outputs.contains(i)).map(|(_, w)| *w).collect::<Vec<_>>();
            assert_eq!(kept(&after), kept(&state), "leaf {leaf:#x}");
            let [a, b, c, d] = outputs.map(|i| after[i]);
            match (leaf, sub_leaf) {
                (0, _) => assert_eq!((a, b, d, c), (7, word("Cord"), word("on S"), word("FI  "))),
                (1, _) => assert!(a == 0 && b == 0 && d >> 26 & 1 == 1 && c >> 31 == 0),
                (0x8000_0000, _) => assert_eq!(a, 0x8000_0001),
                (7, 0 | 1) | (0x8000_0001, _) => {}
                _ => assert_eq!([a, b, c, d], [0; 4], "leaf {leaf:#x}"),
            }
        }
    }
    let mut state = random_state(&mut random);
    state[RCX] = 0;
    let after = gates.run("cordon.xgetbv", &state).expect("returns");
    assert_eq!((after[RAX], after[RDX]), (if std::arch::is_x86_feature_detected!("avx") { 7 } else { 3 }, 0));
    (state[RAX], state[RDX]) = (after[RAX], 0);
    assert_eq!(after, state);
}

fn word(text: &str) -> u64 {
    text.bytes().rev().fold(0, |w, b| w << 8 | u64::from(b))
}

/// The page protection of the table is only the second line: with it gone, gates and host copies still refuse (design-review G1).
#[test]
fn the_table_is_refused_by_range_not_by_its_protection() {
    let names = ["memcpy", "memset", "cordon.rep_movs8", "cordon.rep_stos1", "host"];
    let imports = Imports::new().function("host", |call, [at, ..]| u64::from(call.write(at, &[0; 8]).is_ok()));
    let builder = Builder::new(&state_text(names.len(), false)).imports(&names).data(&[0; 128]);
    let mut gates = Gates { window: builder.window_with(&imports), names: names.to_vec() };
    let table = gates.window.bytes(HEAP, 1).expect("heap").as_ptr() as u64 - u64::from(HEAP - 0x1_0000);
    // SAFETY: the table page of our own window, not sealed.
    assert_eq!(unsafe { libc::mprotect(table as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    // SAFETY: the page is readable.
    let words = || unsafe { *(table as *const [u64; 512]) };
    let before = words();
    for at in [0x1_0000, 0x1_0008, u64::from(TABLE_END) - 8] {
        let mut state = [0; 16];
        (state[RDI], state[RSI], state[RCX], state[RDX]) = (at, HEAP.into(), 8, 8);
        for name in &names[..4] {
            assert_eq!(fault(gates.run(name, &state)), (FaultKind::Table, Some(at as u32), Some(FaultAccess::Write)), "{name}");
        }
        assert_eq!(gates.run("host", &state).expect("returns")[RAX], 0);
    }
    assert_eq!(words(), before);
}
