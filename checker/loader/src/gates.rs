//! Built-in gates: the imports that the loader itself provides.
//!
//! `cordon.longjmp` is the one that does not return to its caller; `jumps.rs` says why it may go where it goes.

use crate::context::{Context, Frame, HOME, stop};
use std::arch::global_asm;
use std::mem::offset_of;
use std::ops::Range;

const fn field(offset: usize) -> u64 {
    HOME + offset as u64
}

global_asm!(
    include_str!("asm/gates.s"),
    BASE = const field(offset_of!(Context, base)),
    TABLE_END = const field(offset_of!(Context, table_end)),
    LEAVES = const field(offset_of!(Context, leaves)),
    LEAF_COUNT = const field(offset_of!(Context, leaf_count)),
    XCR0 = const field(offset_of!(Context, xcr0)),
    ARGS = const field(offset_of!(Context, frame) + offset_of!(Frame, args)),
    GATE_RSP = const field(offset_of!(Context, frame) + offset_of!(Frame, gate_rsp)),
    STOP = const field(offset_of!(Context, frame) + offset_of!(Frame, stop)),
    FUEL = const field(offset_of!(Context, frame) + offset_of!(Frame, fuel)),
    RECORD = const field(offset_of!(Context, frame) + offset_of!(Frame, record)),
    TEXT_START = const field(offset_of!(Context, text_start)),
    TEXT_END = const field(offset_of!(Context, text_end)),
    STOP_GATE_RANGE = const stop::GATE_RANGE,
    STOP_FUEL = const stop::FUEL,
    options(att_syntax)
);

/// What a built-in gate takes and does, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Writes rdx bytes at rdi; `reads`: which it copies from rsi.
    Bytes { reads: bool },
    /// Reads rdx bytes at rdi and at rsi.
    Compare,
    /// Reads from rdi.
    Length,
    /// Writes rcx elements of this many bytes at rdi; `reads`: which it copies from rsi.
    Elements { size: u64, reads: bool },
    /// Reads at most rcx elements from rdi, and from rsi if `both`.
    Search { both: bool },
    /// Writes, or reads, the record of setjmp at rdi.
    Record { writes: bool },
    /// Reads a control word at eax.
    Word,
    /// Touches no memory.
    Registers,
}

impl Shape {
    /// Words that the gate has pushed whenever it touches memory; its return address lies above.
    pub const fn pushed(self, metered: bool) -> u64 {
        match self {
            Shape::Bytes { .. } | Shape::Compare | Shape::Length | Shape::Record { .. } | Shape::Registers => 0,
            Shape::Search { .. } if metered => 6,
            Shape::Elements { .. } | Shape::Search { .. } => 5,
            Shape::Word => 2,
        }
    }
}

macro_rules! gates {
    ($($name:literal => $symbol:ident, $metered:ident, $shape:expr;)*) => {
        unsafe extern "C" {
            $(fn $symbol();)*
        }
        mod metered {
            unsafe extern "C" {
                $(pub fn $metered();)*
            }
        }

        /// Names of the built-in gates.
        pub const NAMES: &[&str] = &["memcpy", $($name),*];

        /// Address of the built-in gate `name`, in the form that takes fuel or in the one that does not.
        pub fn address(name: &str, metered: bool) -> Option<u64> {
            Some(match (name, metered) {
                $(($name, false) => $symbol as *const () as u64,
                ($name, true) => metered::$metered as *const () as u64,)*
                ("memcpy", _) => return address("memmove", metered),
                _ => return None,
            })
        }

        /// Name of the gate whose code contains `rip`; that of `memcpy` is told as `memmove`.
        pub fn name_at(rip: u64) -> Option<&'static str> {
            let starts = [$(($symbol as *const () as u64, $name), (metered::$metered as *const () as u64, $name)),*];
            range().contains(&rip).then(|| starts.iter().filter(|(start, _)| *start <= rip).max())?.map(|(_, name)| *name)
        }

        /// What the gate `name` does.
        pub fn shape(name: &str) -> Option<Shape> {
            match name {
                $($name => Some($shape),)*
                "memcpy" => shape("memmove"),
                _ => None,
            }
        }
    };
}

gates! {
    "memmove" => cordon_loader_memmove, cordon_loader_memmove_metered, Shape::Bytes { reads: true };
    "memset" => cordon_loader_memset, cordon_loader_memset_metered, Shape::Bytes { reads: false };
    "memcmp" => cordon_loader_memcmp, cordon_loader_memcmp_metered, Shape::Compare;
    "strlen" => cordon_loader_strlen, cordon_loader_strlen_metered, Shape::Length;
    "cordon.rep_movs1" => cordon_loader_rep_movs1, cordon_loader_rep_movs1_metered, Shape::Elements { size: 1, reads: true };
    "cordon.rep_movs2" => cordon_loader_rep_movs2, cordon_loader_rep_movs2_metered, Shape::Elements { size: 2, reads: true };
    "cordon.rep_movs4" => cordon_loader_rep_movs4, cordon_loader_rep_movs4_metered, Shape::Elements { size: 4, reads: true };
    "cordon.rep_movs8" => cordon_loader_rep_movs8, cordon_loader_rep_movs8_metered, Shape::Elements { size: 8, reads: true };
    "cordon.rep_stos1" => cordon_loader_rep_stos1, cordon_loader_rep_stos1_metered, Shape::Elements { size: 1, reads: false };
    "cordon.rep_stos2" => cordon_loader_rep_stos2, cordon_loader_rep_stos2_metered, Shape::Elements { size: 2, reads: false };
    "cordon.rep_stos4" => cordon_loader_rep_stos4, cordon_loader_rep_stos4_metered, Shape::Elements { size: 4, reads: false };
    "cordon.rep_stos8" => cordon_loader_rep_stos8, cordon_loader_rep_stos8_metered, Shape::Elements { size: 8, reads: false };
    "cordon.repe_cmps1" => cordon_loader_repe_cmps1, cordon_loader_repe_cmps1_metered, Shape::Search { both: true };
    "cordon.repe_cmps2" => cordon_loader_repe_cmps2, cordon_loader_repe_cmps2_metered, Shape::Search { both: true };
    "cordon.repe_cmps4" => cordon_loader_repe_cmps4, cordon_loader_repe_cmps4_metered, Shape::Search { both: true };
    "cordon.repe_cmps8" => cordon_loader_repe_cmps8, cordon_loader_repe_cmps8_metered, Shape::Search { both: true };
    "cordon.repne_cmps1" => cordon_loader_repne_cmps1, cordon_loader_repne_cmps1_metered, Shape::Search { both: true };
    "cordon.repne_cmps2" => cordon_loader_repne_cmps2, cordon_loader_repne_cmps2_metered, Shape::Search { both: true };
    "cordon.repne_cmps4" => cordon_loader_repne_cmps4, cordon_loader_repne_cmps4_metered, Shape::Search { both: true };
    "cordon.repne_cmps8" => cordon_loader_repne_cmps8, cordon_loader_repne_cmps8_metered, Shape::Search { both: true };
    "cordon.repe_scas1" => cordon_loader_repe_scas1, cordon_loader_repe_scas1_metered, Shape::Search { both: false };
    "cordon.repe_scas2" => cordon_loader_repe_scas2, cordon_loader_repe_scas2_metered, Shape::Search { both: false };
    "cordon.repe_scas4" => cordon_loader_repe_scas4, cordon_loader_repe_scas4_metered, Shape::Search { both: false };
    "cordon.repe_scas8" => cordon_loader_repe_scas8, cordon_loader_repe_scas8_metered, Shape::Search { both: false };
    "cordon.repne_scas1" => cordon_loader_repne_scas1, cordon_loader_repne_scas1_metered, Shape::Search { both: false };
    "cordon.repne_scas2" => cordon_loader_repne_scas2, cordon_loader_repne_scas2_metered, Shape::Search { both: false };
    "cordon.repne_scas4" => cordon_loader_repne_scas4, cordon_loader_repne_scas4_metered, Shape::Search { both: false };
    "cordon.repne_scas8" => cordon_loader_repne_scas8, cordon_loader_repne_scas8_metered, Shape::Search { both: false };
    "cordon.fldcw" => cordon_loader_fldcw, cordon_loader_fldcw, Shape::Word;
    "cordon.ldmxcsr" => cordon_loader_ldmxcsr, cordon_loader_ldmxcsr, Shape::Word;
    "cordon.cpuid" => cordon_loader_cpuid, cordon_loader_cpuid, Shape::Registers;
    "cordon.setjmp" => cordon_loader_setjmp, cordon_loader_setjmp_metered, Shape::Record { writes: true };
    "cordon.longjmp" => cordon_loader_longjmp, cordon_loader_longjmp, Shape::Record { writes: false };
    "cordon.xgetbv" => cordon_loader_xgetbv, cordon_loader_xgetbv, Shape::Registers;
}

/// The gates of setjmp and longjmp; the second goes on as a host function, so its stub gives it the import index.
pub const SETJMP: &str = "cordon.setjmp";
pub const LONGJMP: &str = "cordon.longjmp";
/// Bytes of the record that setjmp writes.
pub const RECORD_BYTES: u64 = 64;

/// `name` as one of [`NAMES`].
pub fn built_in(name: &str) -> Option<&'static str> {
    NAMES.iter().copied().find(|n| *n == name)
}

unsafe extern "C" {
    fn cordon_loader_gates();
    fn cordon_loader_gates_end();
}

/// Addresses of the gates' code; the running call may be ended at any instruction there.
pub fn range() -> Range<u64> {
    cordon_loader_gates as *const () as u64..cordon_loader_gates_end as *const () as u64
}
