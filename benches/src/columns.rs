//! The columns of the comparison: what runs the handlers, and what of them each enforces.

use crate::peers::wasmtime::Limit;
use cordon_checker::{Mode, Protect};
use cordon_fixtures::compile::Compiler;
use cordon_fixtures::native::Remote;
use cordon_rewriter::{Masking, Options};

/// What runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The objects, linked.
    Native(Compiler),
    /// The objects of a compiler, rewritten.
    Window(Rewriting),
    /// The objects in a process of their own.
    Process(Remote),
    Wasm2c,
    Wasmtime(Limit),
    Wasmi,
    Rbpf {
        compiled: bool,
    },
    Sbpf {
        compiled: bool,
    },
}

/// How a window's objects are compiled and rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewriting {
    pub compiler: Compiler,
    pub mode: Mode,
    pub masking: Masking,
    /// For the window at base 0, and in it.
    pub fast: bool,
}

impl Rewriting {
    /// The rewriter's options.
    pub fn options(self) -> Options {
        Options { mode: self.mode, masking: self.masking, fast_window: self.fast, ..Options::default() }
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// In the results and on the command line.
    pub id: &'static str,
    pub title: &'static str,
    pub kind: Kind,
    /// What it keeps a handler from reaching.
    pub memory: &'static str,
    /// What ends a handler that runs on.
    pub stops: &'static str,
    /// What becomes of a fault.
    pub faults: &'static str,
}

const SANDBOX: Mode = Mode { matched: false, metered: false, protect: Protect::All };
const TIMER: &str = "timer, any instruction";
const REPORT: &str = "report: function, line, address";
const TRAP: &str = "error with backtrace";

/// gcc's objects in an ordinary window.
const ORDINARY: Rewriting = Rewriting { compiler: Compiler::Gcc, mode: SANDBOX, masking: Masking::Prefix, fast: false };

const fn window(id: &'static str, title: &'static str, rewriting: Rewriting) -> Column {
    let kind = Kind::Window(rewriting);
    Column { id, title, kind, memory: "loads and stores confined", stops: TIMER, faults: REPORT }
}

const fn in_mode(id: &'static str, title: &'static str, mode: Mode) -> Column {
    window(id, title, Rewriting { mode, ..ORDINARY })
}

const fn wasmtime(id: &'static str, title: &'static str, limit: Limit, stops: &'static str) -> Column {
    Column { id, title, kind: Kind::Wasmtime(limit), memory: "loads and stores confined (guard pages)", stops, faults: TRAP }
}

const fn process(id: &'static str, title: &'static str, remote: Remote) -> Column {
    Column {
        id,
        title,
        kind: Kind::Process(remote),
        memory: "page tables",
        stops: "scheduler, if the host waits with a time limit",
        faults: "signal",
    }
}

const fn native(id: &'static str, title: &'static str, compiler: Compiler) -> Column {
    Column { id, title, kind: Kind::Native(compiler), memory: "nothing", stops: "nothing", faults: "kills the host" }
}

const fn bpf(
    id: &'static str,
    title: &'static str,
    kind: Kind,
    memory: &'static str,
    stops: &'static str,
    faults: &'static str,
) -> Column {
    Column { id, title, kind, memory, stops, faults }
}

/// The baseline of all ratios.
pub const BASELINE: &str = "gcc";

/// All columns, baseline first.
pub const COLUMNS: &[Column] = &[
    native(BASELINE, "gcc", Compiler::Gcc),
    native("clang", "clang", Compiler::Clang),
    window("fast", "Cordon, fast window", Rewriting { fast: true, ..ORDINARY }),
    window("window", "Cordon, window", ORDINARY),
    window("window-clang", "Cordon, window, clang's objects", Rewriting { compiler: Compiler::Clang, ..ORDINARY }),
    window("masks", "Cordon, explicit masks", Rewriting { masking: Masking::Explicit, ..ORDINARY }),
    Column {
        memory: "stores confined",
        ..in_mode("stores", "Cordon, stores only", Mode { protect: Protect::Stores, ..SANDBOX })
    },
    Column {
        memory: "loads and stores confined, stray ones reported",
        ..in_mode("match", "Cordon, match", Mode { matched: true, ..SANDBOX })
    },
    Column {
        stops: "timer, and a count of instructions",
        ..in_mode("metered", "Cordon, metered", Mode { metered: true, ..SANDBOX })
    },
    Column {
        memory: "loads and stores confined, stray ones reported",
        stops: "timer, and a count of instructions",
        ..in_mode("match-metered", "Cordon, match, metered", Mode { matched: true, metered: true, ..SANDBOX })
    },
    Column {
        id: "wasm2c",
        title: "wasm2c, gcc",
        kind: Kind::Wasm2c,
        memory: "loads and stores confined (guard pages)",
        stops: "nothing",
        faults: "longjmp with a code",
    },
    wasmtime("wasmtime", "wasmtime", Limit::None, "nothing"),
    wasmtime("wasmtime-epoch", "wasmtime, epochs", Limit::Epoch, "counter tested at loops and calls"),
    wasmtime("wasmtime-fuel", "wasmtime, fuel", Limit::Fuel, "a count of instructions"),
    Column {
        id: "wasmi",
        title: "wasmi",
        kind: Kind::Wasmi,
        memory: "loads and stores confined (checks)",
        stops: "nothing (its fuel is off)",
        faults: "error",
    },
    bpf("rbpf-jit", "rbpf, compiled", Kind::Rbpf { compiled: true }, "nothing", "nothing", "kills the host"),
    bpf("rbpf", "rbpf, interpreted", Kind::Rbpf { compiled: false }, "loads and stores confined (checks)", "nothing", "error"),
    bpf(
        "sbpf-jit",
        "solana-sbpf, compiled",
        Kind::Sbpf { compiled: true },
        "loads and stores confined (checks)",
        "a count of instructions",
        "error",
    ),
    bpf(
        "sbpf",
        "solana-sbpf, interpreted",
        Kind::Sbpf { compiled: false },
        "loads and stores confined (checks)",
        "a count of instructions",
        "error",
    ),
    process("futex", "process, futex", Remote::Futex),
    process("pipe", "process, pipe", Remote::Pipe),
];

impl Column {
    /// Whether it runs many times slower than native, so that fewer rounds suffice.
    pub fn is_slow(&self) -> bool {
        matches!(self.kind, Kind::Wasmi | Kind::Rbpf { compiled: false } | Kind::Sbpf { compiled: false } | Kind::Process(_))
    }

    /// Whether it is WebAssembly of 32 bits, whose entries return 32 bits.
    pub const fn is_narrow(&self) -> bool {
        matches!(self.kind, Kind::Wasm2c | Kind::Wasmtime(_) | Kind::Wasmi)
    }

    /// Whether its code does not change with what is put in front.
    pub const fn has_one_layout(&self) -> bool {
        matches!(self.kind, Kind::Wasmi | Kind::Rbpf { .. } | Kind::Sbpf { .. } | Kind::Process(_))
    }

    /// The column of what its compiler makes natively; for what clang translated and another compiler compiled, clang's.
    pub const fn native(&self) -> &'static str {
        match self.kind {
            Kind::Native(Compiler::Gcc) | Kind::Window(Rewriting { compiler: Compiler::Gcc, .. }) | Kind::Process(_) => BASELINE,
            _ => "clang",
        }
    }

    /// Which clock its times are of.
    pub const fn clock(&self) -> &'static str {
        if matches!(self.kind, Kind::Process(_)) { "wall" } else { "thread's processor time" }
    }
}

#[cfg(test)]
mod tests {
    use super::{BASELINE, COLUMNS};
    use std::collections::BTreeSet;

    #[test]
    fn columns_have_names_of_their_own_and_the_baseline_is_first() {
        assert_eq!(COLUMNS[0].id, BASELINE);
        for name in [|c: &super::Column| c.id, |c: &super::Column| c.title] {
            assert_eq!(COLUMNS.iter().map(name).collect::<BTreeSet<_>>().len(), COLUMNS.len());
        }
    }
}
