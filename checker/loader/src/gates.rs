//! Built-in gates: the imports that the loader itself provides.

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
    STOP_GATE_RANGE = const stop::GATE_RANGE,
    options(att_syntax)
);

macro_rules! gates {
    ($($name:literal => $symbol:ident;)*) => {
        unsafe extern "C" {
            $(fn $symbol();)*
        }

        /// Names of the built-in gates.
        pub const NAMES: &[&str] = &["memcpy", "memmove", $($name),*];

        /// Address of the built-in gate `name`.
        pub fn address(name: &str) -> Option<u64> {
            Some(match name {
                $($name => $symbol as *const () as u64,)*
                "memcpy" | "memmove" => cordon_loader_memmove as *const () as u64,
                _ => return None,
            })
        }

        /// Name of the gate whose code contains `rip`.
        pub fn name_at(rip: u64) -> Option<&'static str> {
            let starts = [$(($symbol as *const () as u64, $name),)* (cordon_loader_memmove as *const () as u64, "memmove")];
            range().contains(&rip).then(|| starts.iter().filter(|(start, _)| *start <= rip).max())?.map(|(_, name)| *name)
        }
    };
}

gates! {
    "memset" => cordon_loader_memset;
    "memcmp" => cordon_loader_memcmp;
    "strlen" => cordon_loader_strlen;
    "cordon.rep_movs1" => cordon_loader_rep_movs1;
    "cordon.rep_movs2" => cordon_loader_rep_movs2;
    "cordon.rep_movs4" => cordon_loader_rep_movs4;
    "cordon.rep_movs8" => cordon_loader_rep_movs8;
    "cordon.rep_stos1" => cordon_loader_rep_stos1;
    "cordon.rep_stos2" => cordon_loader_rep_stos2;
    "cordon.rep_stos4" => cordon_loader_rep_stos4;
    "cordon.rep_stos8" => cordon_loader_rep_stos8;
    "cordon.repe_cmps1" => cordon_loader_repe_cmps1;
    "cordon.repe_cmps2" => cordon_loader_repe_cmps2;
    "cordon.repe_cmps4" => cordon_loader_repe_cmps4;
    "cordon.repe_cmps8" => cordon_loader_repe_cmps8;
    "cordon.repne_cmps1" => cordon_loader_repne_cmps1;
    "cordon.repne_cmps2" => cordon_loader_repne_cmps2;
    "cordon.repne_cmps4" => cordon_loader_repne_cmps4;
    "cordon.repne_cmps8" => cordon_loader_repne_cmps8;
    "cordon.repe_scas1" => cordon_loader_repe_scas1;
    "cordon.repe_scas2" => cordon_loader_repe_scas2;
    "cordon.repe_scas4" => cordon_loader_repe_scas4;
    "cordon.repe_scas8" => cordon_loader_repe_scas8;
    "cordon.repne_scas1" => cordon_loader_repne_scas1;
    "cordon.repne_scas2" => cordon_loader_repne_scas2;
    "cordon.repne_scas4" => cordon_loader_repne_scas4;
    "cordon.repne_scas8" => cordon_loader_repne_scas8;
    "cordon.fldcw" => cordon_loader_fldcw;
    "cordon.ldmxcsr" => cordon_loader_ldmxcsr;
    "cordon.cpuid" => cordon_loader_cpuid;
    "cordon.xgetbv" => cordon_loader_xgetbv;
}

/// `name` as one of [`NAMES`].
pub fn built_in(name: &str) -> Option<&'static str> {
    NAMES.iter().copied().find(|n| *n == name)
}

unsafe extern "C" {
    fn cordon_loader_memmove();
    fn cordon_loader_gates();
    fn cordon_loader_gates_end();
}

/// Addresses of the gates' code; the running call may be ended at any instruction there.
pub fn range() -> Range<u64> {
    cordon_loader_gates as *const () as u64..cordon_loader_gates_end as *const () as u64
}
