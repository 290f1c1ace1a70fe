//! The invocation context: what the assembly of entry and gates and the signal handler know about the running call.
//!
//! One context lies above each native stack at a fixed low half, so that code on that stack finds it from rsp alone:
//! `(rsp & !0xffff_ffff) | HOME`. A handler cannot read it: no window access reaches it and no accepted instruction loads through rsp
//! above its own frames.

use crate::time::Clock;
use cordon_checker::layout::USER_STACK_LOW;
use std::sync::atomic::AtomicBool;

/// Low 32 bits of the context's address: right above the return address of an outermost entry.
pub const HOME: u64 = USER_STACK_LOW as u64 + 8;

/// Flags of [`Context::flags`], tested by the assembly.
pub mod flag {
    /// The CPU and kernel have AVX: vector registers are cleared with their upper halves.
    pub const AVX: u32 = 1;
    /// The text uses x87 or MMX, or may load the x87 control word.
    pub const X87: u32 = 2;
    /// The text has non-temporal stores: exit fences.
    pub const NT: u32 = 4;
    /// `rdgsbase` and `wrgsbase` are not usable: the segment base is set by system calls around the assembly.
    pub const SYSTEM_CALLS: u32 = 8;
    /// Where gs has base 0 or one that an exit has left, exit leaves the window base there.
    pub const KEEP_GS: u32 = 16;
    /// The text may see or change control words: host functions get their own.
    pub const CONTROL: u32 = 32;
    /// This entry passes floating-point arguments.
    pub const FLOAT_ARGS: u32 = 64;
    /// Some import of the window takes or gives floating-point values.
    pub const FLOAT_IMPORTS: u32 = 128;
    /// The text counts its instructions in r14.
    pub const METERED: u32 = 256;
    /// The host function that returns is longjmp: the gate goes where [`super::Frame`] says, with the registers of its record.
    pub const RESUME: u32 = 512;
    /// The text may name vector registers or see control words: they are cleared and checked at entry.
    pub const VECTORS: u32 = 1024;
    /// The text may use upper halves of vector registers: exit releases them.
    pub const UPPER: u32 = 2048;
    /// The thread has a shadow stack.
    pub const SHADOWED: u32 = 4096;
    /// The native stack gives its pages back after each call.
    pub const LARGE: u32 = 8192;
}

/// Stop codes that the assembly leaves in [`Context::stop`].
pub mod stop {
    /// The handler returned.
    pub const NONE: u32 = 0;
    /// The signal handler recorded a fault.
    pub const FAULT: u32 = 1;
    /// A gate refused its arguments.
    pub const GATE_RANGE: u32 = 2;
    /// A gate was called with too little native stack left.
    pub const STACK: u32 = 3;
    /// A host function ended the call.
    pub const IMPORT: u32 = 4;
    /// The timer's signal handler ended a call that ran too long.
    pub const TIME: u32 = 5;
    /// A gate of a metered image was to do more than the fuel lasts for.
    pub const FUEL: u32 = 6;
}

/// State of one entry; a nested entry on the same native stack saves and restores it as a whole.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// Host rsp to return to; the host's MXCSR lies there ([`flag::VECTORS`]).
    pub host_rsp: u64,
    /// Segment base for the exit: what entry found, or the window's.
    pub host_gs: u64,
    /// Shadow stack pointer at entry, if there is a shadow stack.
    pub shadow: u64,
    /// Native rsp at the running host import (its return address is there).
    pub gate_rsp: u64,
    /// The handler's MXCSR and x87 control word during a host import.
    pub gate_mxcsr: u32,
    pub gate_fcw: u32,
    /// The host's x87 control word, where the text uses x87.
    pub host_fcw: u32,
    /// Import index of the running host import.
    pub import: u32,
    /// How the entry ended, see [`stop`].
    pub stop: u32,
    pub padding: u32,
    /// Integer arguments of the running longjmp; rdi, rsi, rdx, rcx of a gate that refuses them, and its address.
    pub args: [u64; 6],
    /// Floating-point arguments of the entry, then of the running import.
    pub float_args: [f64; 8],
    /// Result of a host import that gives one.
    pub float_result: f64,
    /// The [`Frame`] of the entry around a nested one, on the host's stack, or 0.
    pub previous: u64,
    /// r14 at the entry and at the end, where the text is metered, and in a host import: the fuel left.
    pub fuel: u64,
    /// The record that a running longjmp read: rbx, rbp, r12, r13, r14 (metered: rdx), r15, low half of rsp | eax << 32, text offset.
    pub record: [u64; 8],
    /// Return addresses between rsp at its gate and where it goes.
    pub popped: u64,
}

/// What the signal handler saw, words only: it allocates nothing.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawFault {
    pub signal: i32,
    pub code: i32,
    pub trap: u64,
    pub error: u64,
    pub address: u64,
    pub rip: u64,
    pub flags: u64,
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15.
    pub registers: [u64; 16],
}

/// See the module.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    /// Address that an outermost entry calls: its rsp points here before the call.
    pub target: u64,
    /// Window base B.
    pub base: u64,
    /// Gates refuse destinations below this window offset (T_end).
    pub table_end: u64,
    /// Base that an exit from this native stack has left in gs, or 0.
    pub left_gs: u64,
    /// Host imports are refused when rsp is below this address.
    pub gate_limit: u64,
    /// Addresses of the window's plain host functions by import index, 0 for every other import.
    pub plain: u64,
    /// See [`flag`].
    pub flags: u32,
    /// Bits of MXCSR that entry compares with the default; the sticky flags only where the text can read them.
    pub mxcsr_mask: u32,
    /// The CPUID answers: [`crate::cpu::Leaf`] records.
    pub leaves: u64,
    pub leaf_count: u64,
    /// The flags with which entries begin.
    pub standing: u32,
    /// Answer of `xgetbv` for register 0.
    pub xcr0: u64,
    /// Running entry.
    pub frame: Frame,
    /// The window's [`crate::window::Inner`].
    pub window: u64,
    /// The native stack's [`crate::thread::Invocation`].
    pub invocation: u64,
    /// Identity of the window whose constants are filled in, 0 for none.
    pub owner: u64,
    /// Checked text with its stubs.
    pub text_start: u64,
    pub text_end: u64,
    /// Mapped native stack and the guard below it.
    pub stack_start: u64,
    pub guard_start: u64,
    pub clock: Clock,
    /// Fuel that the outermost entry was given, where the text is metered.
    pub fuel_limit: u64,
    /// Entries of this thread that this one is nested in; 0 between calls.
    pub nesting: u32,
    /// Context of the next outer invocation of this thread, or 0; 0 between calls.
    pub outer: u64,
    /// A signal handler of the host runs on a part of the guard.
    pub lent: AtomicBool,
    pub fault: RawFault,
}
