//! Faults of handlers: what is kept of one when it happens. The report is made of it when somebody asks ([`Fault::report`]).

use crate::context::{Context, RawFault, stop};
use crate::fuel::{self, FuelUse};
use crate::gates::{self, Shape};
use crate::image::Image;
use crate::image::places::Origin;
use crate::jumps::BadJump;
use crate::report::Report;
use crate::report::backtrace::{Start, Trace};
use crate::time::Overrun;
use crate::window::Inner;
use cordon_checker::layout::NULL_ZONE_END;
use cordon_checker::policy::Host;
use cordon_checker::{MemoryOperand, describe_in};
use std::fmt;
use std::time::Duration;

/// Exception vectors (SDM volume 3, table 7-1).
mod vector {
    pub const DIVIDE: u64 = 0;
    pub const DEBUG: u64 = 1;
    pub const BREAKPOINT: u64 = 3;
    pub const UNDEFINED: u64 = 6;
    pub const STACK: u64 = 12;
    pub const PROTECTION: u64 = 13;
    pub const PAGE: u64 = 14;
    pub const X87: u64 = 16;
    pub const ALIGNMENT: u64 = 17;
    pub const SIMD: u64 = 19;
}

/// What a signal says that the kernel raised for no access (`siginfo.h`).
const SI_KERNEL: i32 = 0x80;
/// Page-fault error code: the access was a write.
const ERROR_WRITE: u64 = 2;
const WINDOW: u64 = 1 << 32;
/// Unmapped bytes above the window.
const EDGE: u64 = 64 << 10;
/// Index of rsp among the general registers.
const RSP: usize = 4;
/// Index of r14, the count of metered text.
const R14: usize = 14;

/// What stopped a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum FaultKind {
    /// Access below 64 KiB: a null pointer, most likely.
    NullZone,
    /// Access to a window page that is not mapped.
    Unmapped,
    /// Store to read-only data.
    ReadOnly,
    /// Store to the code-pointer table, or a gate's destination there.
    Table,
    /// Access to the guard below the data stack.
    DataStackOverflow,
    /// Too many nested calls or saved registers for the native stack.
    NativeStackOverflow,
    /// Match mode: an access whose 64-bit address is not the handler's; it did not happen.
    StrayAccess,
    /// Integer division by zero or with a quotient that does not fit.
    Divide,
    /// `ud2`: abort, an unreachable place, a failed check.
    Trap,
    /// Call or jump through a code pointer that names no function (NULL among them).
    BadCodePointer,
    /// An instruction that this CPU does not have.
    IllegalInstruction,
    /// General protection: a misaligned operand of an aligned vector access.
    Misaligned,
    /// Unmasked floating-point exception.
    FloatingPoint,
    /// A gate was given a pointer above the window, or a range that leaves it.
    GateRange,
    /// The kernel could not provide a page (SIGBUS).
    MemoryError,
    /// A fault outside the window: a load that is not protected ([`crate::Protect::Stores`]). What lies there is the host's, and nothing is
    /// told of it.
    Outside,
    /// The call took longer than its time limit; [`Fault::overrun`] has the details.
    TimeLimit,
    /// The call would have executed more instructions than its fuel lasts for; [`Fault::fuel`] has the details.
    Fuel,
    /// `longjmp` to a place that is not, or no longer, waiting for it; [`Fault::jump`] has the reason.
    BadJump,
}

impl FaultKind {
    /// A few words for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            FaultKind::NullZone => "access through a null pointer",
            FaultKind::Unmapped => "access to unmapped memory",
            FaultKind::ReadOnly => "store to read-only data",
            FaultKind::Table => "store to the code-pointer table",
            FaultKind::DataStackOverflow => "data stack overflow",
            FaultKind::NativeStackOverflow => "native stack overflow",
            FaultKind::StrayAccess => "access outside the handler's memory",
            FaultKind::Divide => "integer division error",
            FaultKind::Trap => "trap instruction",
            FaultKind::BadCodePointer => "call through a bad code pointer",
            FaultKind::IllegalInstruction => "illegal instruction",
            FaultKind::Misaligned => "misaligned vector access",
            FaultKind::FloatingPoint => "floating-point exception",
            FaultKind::GateRange => "range given to a gate leaves the window",
            FaultKind::MemoryError => "memory error",
            FaultKind::Outside => "fault outside the window",
            FaultKind::TimeLimit => "time limit exceeded",
            FaultKind::Fuel => "out of fuel",
            FaultKind::BadJump => "longjmp to a place that does not wait for it",
        }
    }

    /// A stable name in kebab-case.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            FaultKind::NullZone => "null-zone",
            FaultKind::Unmapped => "unmapped",
            FaultKind::ReadOnly => "read-only",
            FaultKind::Table => "table",
            FaultKind::DataStackOverflow => "data-stack-overflow",
            FaultKind::NativeStackOverflow => "native-stack-overflow",
            FaultKind::StrayAccess => "stray-access",
            FaultKind::Divide => "divide",
            FaultKind::Trap => "trap",
            FaultKind::BadCodePointer => "bad-code-pointer",
            FaultKind::IllegalInstruction => "illegal-instruction",
            FaultKind::Misaligned => "misaligned",
            FaultKind::FloatingPoint => "floating-point",
            FaultKind::GateRange => "gate-range",
            FaultKind::MemoryError => "memory-error",
            FaultKind::Outside => "outside",
            FaultKind::TimeLimit => "time-limit",
            FaultKind::Fuel => "fuel",
            FaultKind::BadJump => "bad-jump",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A read or a write; an access that does both counts as a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum FaultAccess {
    /// It only reads.
    Read,
    /// It writes, or does both.
    Write,
}

/// The handler's registers at the fault. Every one holds a value of the handler; of rsp only the public low half is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRegisters {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15.
    pub general: [u64; 16],
    /// The low half of rflags.
    pub flags: u32,
}

impl FaultRegisters {
    /// Names of [`FaultRegisters::general`].
    pub const NAMES: [&'static str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    /// The 64-bit address of a window operand.
    fn address(&self, operand: &MemoryOperand) -> u64 {
        let register = |number: Option<u8>| number.map_or(0, |n| self.general[usize::from(n) & 15]);
        let index = register(operand.index).wrapping_mul(operand.scale.into());
        register(operand.base).wrapping_add(index).wrapping_add_signed(operand.disp.into())
    }
}

/// Why and where a handler was stopped: the facts, kept when it happened. It holds window offsets and text offsets only, no host address.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fault {
    /// What ended the call.
    pub kind: FaultKind,
    /// Text offset of the instruction at which the call ended, for a stray access that of the access; in a gate, stub or host function, the
    /// return address of its call.
    pub text_offset: Option<u32>,
    /// The built-in gate in which the fault happened.
    pub gate: Option<&'static str>,
    /// The 64-bit address of the access, as the handler computed it: base, index and displacement added without truncation, with the
    /// registers as they stood at the fault or at the failed check. A gate's pointer argument, or where the gate was with it.
    pub address: Option<u64>,
    /// Where in the window the access began, or would have begun.
    pub window_offset: Option<u32>,
    /// Bytes of the access, for a gate of the whole range, where they are known.
    pub bytes: Option<u64>,
    /// Whether the access reads or writes, where there is one.
    pub access: Option<FaultAccess>,
    /// Absent for faults in gates and host functions.
    pub registers: Option<FaultRegisters>,
    /// Which time limit ended the call.
    pub overrun: Option<Overrun>,
    /// The fuel of the call, where the image is metered.
    pub fuel: Option<FuelUse>,
    /// Why a `longjmp` could not go where its record says.
    pub jump: Option<BadJump>,
    pub(crate) trace: Trace,
}

impl std::error::Error for Fault {}

/// One line; [`Report`] has more.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(overrun) = self.overrun {
            let elapsed = Duration::from_micros(overrun.elapsed.as_micros() as u64);
            let whose = if overrun.outer { " of an outer call" } else { "" };
            write!(f, " ({:?}{whose}, ended after {elapsed:?})", overrun.limit)?;
        }
        if let Some(jump) = self.jump {
            write!(f, " ({jump})")?;
        }
        if let (FaultKind::Fuel, Some(fuel)) = (self.kind, self.fuel) {
            write!(f, " ({} instructions)", fuel.limit)?;
        }
        match self.access {
            Some(FaultAccess::Read) => write!(f, " (read)")?,
            Some(FaultAccess::Write) => write!(f, " (write)")?,
            None => {}
        }
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        if let Some(gate) = self.gate {
            write!(f, " in gate `{gate}`")?;
        }
        if let Some(import) = self.import() {
            write!(f, " in import `{import}`")?;
        }
        match (self.function(), self.text_offset) {
            (Some((name, distance)), Some(offset)) => write!(f, " in {name}+{distance:#x} (text offset {offset:#x})")?,
            (None, Some(offset)) => write!(f, " at text offset {offset:#x}")?,
            _ => {}
        }
        match self.origin() {
            Some(origin) => write!(f, ", from {origin}"),
            None => Ok(()),
        }
    }
}

impl Fault {
    /// The full report: names, source lines, the original instruction, the backtrace. It takes microseconds to milliseconds; the first
    /// one of an image checks its text once more and reads its line table.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::of(self)
    }

    /// The image whose code was running.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.trace.image
    }

    /// Text offset of the instruction at which the call ended or which called the gate or host function it ended in.
    pub(crate) fn place(&self) -> Option<u32> {
        self.text_offset.map(|offset| if self.trace.is_called() { offset.saturating_sub(1) } else { offset })
    }

    /// The function that contains the instruction, and the distance of [`Fault::text_offset`] from its start.
    #[must_use]
    pub fn function(&self) -> Option<(&str, u32)> {
        let (name, distance) = self.image().function_at(self.place()?)?;
        Some((name, distance + (self.text_offset? - self.place()?)))
    }

    /// Where the instruction came from.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.image().origin_of(self.place()?)
    }

    /// The host function in or after which the call ended.
    #[must_use]
    pub fn import(&self) -> Option<&str> {
        Some(&self.image().imports().get(self.trace.import? as usize)?.name)
    }

    /// Reports how the entry described by `cx` was stopped with `code`.
    pub(crate) fn of(window: &Inner, cx: &Context, code: u32) -> Fault {
        let mut fault = match code {
            stop::FAULT => Fault::from_signal(window, cx, &cx.fault),
            stop::TIME => {
                let overrun = Some(cx.clock.overrun());
                Fault { overrun, ..Fault::interrupted(window, cx, &cx.fault, FaultKind::TimeLimit) }
            }
            stop::GATE_RANGE => Fault::refused(window, cx),
            stop::FUEL => Fault::at_gate(window, cx, FaultKind::Fuel),
            stop::STACK => Fault { gate: None, ..Fault::at_gate(window, cx, FaultKind::NativeStackOverflow) },
            _ => Fault::at(FaultKind::Outside, Trace::none(window)),
        };
        fault.fuel = fuel_of(window, cx);
        fault
    }

    fn at(kind: FaultKind, trace: Trace) -> Fault {
        Fault {
            kind,
            text_offset: trace.place(),
            gate: None,
            address: None,
            window_offset: None,
            bytes: None,
            access: None,
            registers: None,
            overrun: None,
            fuel: None,
            jump: None,
            trace,
        }
    }

    /// The end of a call in a gate that gave its stack pointer, which points at its return address, and its own address.
    fn at_gate(window: &Inner, cx: &Context, kind: FaultKind) -> Fault {
        let trace = Trace::of(window, cx, cx.frame.gate_rsp, Start::Called { words: 0 });
        Fault { gate: gate_called(&trace, gates::name_at(cx.frame.args[4])), ..Fault::at(kind, trace) }
    }

    /// The end of a call in a gate that refused its arguments.
    fn refused(window: &Inner, cx: &Context) -> Fault {
        let mut fault = Fault::at_gate(window, cx, FaultKind::GateRange);
        if let Some(range) = fault.gate.and_then(gates::shape).and_then(|shape| refused_range(shape, cx)) {
            fault.kind = range.kind(cx);
            fault.address = Some(range.start);
            fault.window_offset = Some(range.start as u32);
            fault.bytes = range.len;
            fault.access = Some(range.access);
        }
        fault
    }

    /// The end of a call in its running host function, or when that returned.
    fn in_host_function(window: &Inner, cx: &Context, kind: FaultKind) -> Fault {
        let mut trace = Trace::of(window, cx, cx.frame.gate_rsp, Start::Called { words: 0 });
        // The one gate that goes on in Rust is longjmp.
        let gate = window.image.imports().get(cx.frame.import as usize).and_then(|import| gates::built_in(&import.name));
        trace.import = Some(cx.frame.import).filter(|_| gate.is_none());
        Fault { fuel: fuel_of(window, cx), gate, ..Fault::at(kind, trace) }
    }

    /// The end of a call whose longjmp has nowhere to go.
    pub(crate) fn lost(window: &Inner, cx: &Context, why: BadJump) -> Fault {
        let record = cx.frame.args[0];
        Fault {
            jump: Some(why),
            address: Some(record),
            window_offset: Some(record as u32),
            ..Fault::in_host_function(window, cx, FaultKind::BadJump)
        }
    }

    /// The end of a call that met a time limit in its running host function.
    pub(crate) fn late(window: &Inner, cx: &Context, overrun: Overrun) -> Fault {
        Fault { overrun: Some(overrun), ..Fault::in_host_function(window, cx, FaultKind::TimeLimit) }
    }

    /// The end of a call whose host function asked for more fuel than there was.
    pub(crate) fn starved(window: &Inner, cx: &Context) -> Fault {
        Fault::in_host_function(window, cx, FaultKind::Fuel)
    }

    /// A call that was not begun, because a limit around it has passed.
    pub(crate) fn not_begun(window: &Inner, overrun: Overrun) -> Fault {
        Fault { overrun: Some(overrun), ..Fault::at(FaultKind::TimeLimit, Trace::none(window)) }
    }

    fn from_signal(window: &Inner, cx: &Context, raw: &RawFault) -> Fault {
        let mut fault = Fault::interrupted(window, cx, raw, kind_of(window, cx, raw));
        match fault.kind {
            FaultKind::StrayAccess | FaultKind::Misaligned => fault.tell_operand(None),
            _ if is_lost_signal(raw) => {}
            _ if raw.trap == vector::PAGE && raw.address.wrapping_sub(cx.base) >= WINDOW => fault.tell_operand(None),
            _ if raw.trap == vector::PAGE => {
                let failed = raw.address.wrapping_sub(cx.base) as u32;
                fault.access = Some(if raw.error & ERROR_WRITE != 0 { FaultAccess::Write } else { FaultAccess::Read });
                fault.tell_operand(Some(failed));
            }
            _ => {}
        }
        fault
    }

    /// Fills in the access of the instruction at the fault's place, of which byte `failed` could not be accessed.
    fn tell_operand(&mut self, failed: Option<u32>) {
        (self.window_offset, self.address, self.trace.failed) = (failed, failed.map(u64::from), failed);
        let place = self.text_offset.and_then(|offset| self.trace.image.text().get(offset as usize..));
        let mode = self.trace.image.mode();
        let operand = place.and_then(|bytes| describe_in(bytes, Host::User, mode).ok()?.memory);
        let (Some(operand), Some(registers)) = (operand, &self.registers) else { return };
        let address = registers.address(&operand);
        let start = address as u32;
        if failed.is_none_or(|failed| failed.wrapping_sub(start) < operand.bytes.into()) {
            (self.window_offset, self.address, self.bytes) = (Some(start), Some(address), Some(operand.bytes.into()));
            self.access = self.access.or(Some(if operand.write { FaultAccess::Write } else { FaultAccess::Read }));
        }
        // A load that is not protected went where its 64 bits point; if that is no address at all, it is no page fault either.
        if operand.wide && self.window_offset.is_some_and(|offset| u64::from(offset) != address) {
            (self.kind, self.window_offset) = (FaultKind::Outside, None);
        }
    }

    /// The end of a call at an interrupted instruction.
    fn interrupted(window: &Inner, cx: &Context, raw: &RawFault, kind: FaultKind) -> Fault {
        let gate = gates::name_at(raw.rip);
        let rip = raw.rip.wrapping_sub(window.image.text_range().start) as u32;
        let start = match gate.and_then(gates::shape) {
            _ if window.image.text_range().contains(&raw.rip) => Start::Instruction { rip },
            None => Start::Called { words: 0 },
            // At every access of a gate it is known how much it has pushed, at any instruction it is not.
            Some(shape) if raw.trap == vector::PAGE && kind != FaultKind::TimeLimit => {
                Start::Called { words: shape.pushed(window.image.mode().metered) }
            }
            Some(_) => Start::Search,
        };
        let trace = Trace::of(window, cx, raw.registers[RSP], start);
        let mut fault = Fault { gate: gate_called(&trace, gate), ..Fault::at(kind, trace) };
        if matches!(kind, FaultKind::StrayAccess | FaultKind::Fuel)
            && let Some(stub) = window.image.places().stub(rip)
        {
            fault.text_offset = Some(stub.place);
        }
        // A gate's registers hold host values; text and stubs run with the handler's.
        if window.image.code_range().contains(&raw.rip) {
            let mut general = raw.registers;
            general[RSP] &= 0xffff_ffff;
            fault.registers = Some(FaultRegisters { general, flags: raw.flags as u32 });
        }
        fault
    }
}

/// The name by which the handler called `gate`, where several names lead to the same one.
fn gate_called(trace: &Trace, gate: Option<&'static str>) -> Option<&'static str> {
    let called = trace.place().and_then(|end| trace.image.import_called_before(end)).and_then(gates::built_in);
    called.filter(|name| gate.is_some_and(|gate| gates::address(name, false) == gates::address(gate, false))).or(gate)
}

/// A range of window memory that a gate was given.
#[derive(Clone, Copy, Debug)]
struct GateRange {
    /// All 64 bits that the handler passed.
    start: u64,
    /// Bytes, at most `u64::MAX`; if that is not known, one element is looked at.
    len: Option<u64>,
    access: FaultAccess,
}

impl GateRange {
    /// Whether the gates refuse it.
    fn is_refused(&self, cx: &Context) -> bool {
        let end = self.start.checked_add(self.len.unwrap_or(1));
        let leaves = self.start >= WINDOW || end.is_none_or(|end| end > WINDOW);
        leaves || self.access == FaultAccess::Write && self.start < cx.table_end
    }

    fn kind(&self, cx: &Context) -> FaultKind {
        match (self.access, self.start) {
            (_, start) if start < u64::from(NULL_ZONE_END) => FaultKind::NullZone,
            (FaultAccess::Write, start) if start < cx.table_end => FaultKind::Table,
            _ => FaultKind::GateRange,
        }
    }
}

/// The first of a gate's ranges that it refused, if it is known.
fn refused_range(shape: Shape, cx: &Context) -> Option<GateRange> {
    let [rdi, rsi, rdx, rcx, ..] = cx.frame.args;
    let range = |start, len, access| Some(GateRange { start, len, access });
    let (read, write) = (FaultAccess::Read, FaultAccess::Write);
    let ranges = match shape {
        Shape::Bytes { reads } => [range(rdi, Some(rdx), write), range(rsi, Some(rdx), read).filter(|_| reads)],
        Shape::Compare => [range(rdi, Some(rdx), read), range(rsi, Some(rdx), read)],
        Shape::Length => [range(rdi, None, read), None],
        Shape::Elements { size, reads } => {
            let len = Some(rcx.saturating_mul(size));
            [range(rdi, len, write), range(rsi, len, read).filter(|_| reads)]
        }
        Shape::Search { both } => [range(rdi, None, read), range(rsi, None, read).filter(|_| both)],
        Shape::Record { writes } => [range(rdi, Some(gates::RECORD_BYTES), if writes { write } else { read }), None],
        Shape::Word | Shape::Registers => [None, None],
    };
    ranges.into_iter().flatten().find(|range| range.is_refused(cx))
}

/// The fuel of the call that `cx` describes.
fn fuel_of(window: &Inner, cx: &Context) -> Option<FuelUse> {
    window.image.mode().metered.then(|| FuelUse::new(cx.fuel_limit, cx.frame.fuel))
}

/// Whether the kernel had no room on the native stack for a signal of the host without `SA_ONSTACK`. It says only that it is at fault itself;
/// number and address are those of an earlier exception. (A general protection fault is told in the same way.)
fn is_lost_signal(raw: &RawFault) -> bool {
    raw.signal == libc::SIGSEGV && raw.code == SI_KERNEL && !matches!(raw.trap, vector::PROTECTION | vector::STACK)
}

fn kind_of(window: &Inner, cx: &Context, raw: &RawFault) -> FaultKind {
    if is_lost_signal(raw) {
        return FaultKind::NativeStackOverflow;
    }
    match raw.trap {
        vector::PAGE => page_fault_kind(window, cx, raw),
        vector::DIVIDE => FaultKind::Divide,
        vector::UNDEFINED if window.image.stub_range().contains(&raw.rip) => FaultKind::BadCodePointer,
        vector::UNDEFINED if window.image.is_trap_instruction(raw.rip) => trap_kind(window, raw),
        vector::UNDEFINED => FaultKind::IllegalInstruction,
        vector::BREAKPOINT | vector::DEBUG => FaultKind::Trap,
        vector::PROTECTION | vector::STACK | vector::ALIGNMENT => FaultKind::Misaligned,
        vector::X87 | vector::SIMD => FaultKind::FloatingPoint,
        _ => FaultKind::Outside,
    }
}

/// What a `ud2` of the text means. The image says which ones belong to checks; the count in r14 cannot lie.
fn trap_kind(window: &Inner, raw: &RawFault) -> FaultKind {
    let mode = window.image.mode();
    let stub = window.image.places().stub(raw.rip.wrapping_sub(window.image.text_range().start) as u32);
    if mode.metered && raw.registers[R14] > fuel::MOST {
        FaultKind::Fuel
    } else if mode.matched && stub.is_some_and(|stub| !stub.fuel) {
        FaultKind::StrayAccess
    } else {
        FaultKind::Trap
    }
}

fn page_fault_kind(window: &Inner, cx: &Context, raw: &RawFault) -> FaultKind {
    if (cx.guard_start..cx.stack_start).contains(&raw.address) {
        return FaultKind::NativeStackOverflow;
    }
    let offset = raw.address.wrapping_sub(cx.base);
    if offset >= WINDOW {
        return if offset < WINDOW + EDGE { FaultKind::Unmapped } else { FaultKind::Outside };
    }
    if raw.signal == libc::SIGBUS {
        return FaultKind::MemoryError;
    }
    match window.shares.writable_at(offset as u32) {
        Some(true) => FaultKind::MemoryError,
        Some(false) => FaultKind::ReadOnly,
        None => window.image.page_fault_kind(offset as u32),
    }
}
