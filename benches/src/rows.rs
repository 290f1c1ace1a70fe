//! The rows of the comparison: programs with their calls, and which columns cannot run them.

use crate::columns::{Column, Kind, Rewriting};
use anyhow::{Context as _, Result, bail};
use cordon_fixtures::catalog::{self, Fixture, Language};
use cordon_fixtures::compile::Compiler;
use cordon_fixtures::script::{Call, Expect};
use cordon_fixtures::window::WindowRunner;
use cordon_fixtures::workload::mixed_data;
use cordon_fixtures::zlib;

/// Fixtures whose scripts are about faults or time limits, not about speed.
const NOT_TIMED: &[&str] = &["faults", "loops", "remote", ZLIB];
/// The fixture around Debian's libz.a; its programs are recorded, not scripted.
const ZLIB: &str = "zlib_driver";
/// Level of deflation.
const ZLIB_LEVEL: u64 = 6;
/// Handlers of packets and messages that clang compiles to BPF.
const PACKETS: &[&str] = &[
    "empty_call",
    "filters",
    "tcpdump_expr",
    "cksum16",
    "dilp",
    "crypt",
    "md5",
    "sha256",
    "crc32",
    "policy",
    "http_host",
    "dns_names",
    "lb_katran_lite",
];

/// Those that rbpf's compiler has no room for.
const LONG_CODE: &[&str] = &["md5", "dns_names", "lb_katran_lite"];

/// A group of rows with a mean of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Handlers,
    Kernels,
}

impl Group {
    /// For people and in the results.
    pub const fn name(self) -> &'static str {
        match self {
            Group::Handlers => "handlers",
            Group::Kernels => "kernels",
        }
    }
}

/// A program with the calls of one pass; none of them faults.
#[derive(Clone, Debug)]
pub struct Program {
    pub name: &'static str,
    pub group: Group,
    pub fixture: &'static Fixture,
    pub calls: Vec<Call>,
}

/// How much is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Each kind of call once or a few times.
    Smoke,
    /// Passes of about a millisecond or more.
    Measure,
}

impl Amount {
    const fn scale(self) -> usize {
        match self {
            Amount::Smoke => 1,
            Amount::Measure => 8,
        }
    }

    /// Bytes that zlib is given in one pass.
    const fn zlib(self) -> usize {
        match self {
            Amount::Smoke => 64 << 10,
            Amount::Measure => 2 << 20,
        }
    }

    /// Calls that return at once.
    const fn empty(self) -> usize {
        match self {
            Amount::Smoke => 1000,
            Amount::Measure => 50_000,
        }
    }
}

/// Every program, or those whose names are in `names`; `driver` gives a runner of [`ZLIB`] in a window, to record its calls.
///
/// # Errors
/// If one of the names is no program, or zlib's cannot be built.
pub fn programs(amount: Amount, names: &[String], driver: impl FnOnce(&Program) -> Result<WindowRunner>) -> Result<Vec<Program>> {
    let program = |group, fixture: &'static Fixture| {
        let calls = (fixture.script)(amount.scale()).into_iter().filter(|c| matches!(c.expect, Expect::Same | Expect::Known(_)));
        Program { name: fixture.name, group, fixture, calls: calls.collect() }
    };
    let timed = |f: &&Fixture| f.language == Language::C && !NOT_TIMED.contains(&f.name);
    let filters = catalog::find("filters").context("the fixture is in the catalogue")?;
    // A filter without a packet: it returns after one comparison.
    let empty = Program {
        name: "empty_call",
        group: Group::Handlers,
        fixture: filters,
        calls: vec![Call::new("filt_ip"); amount.empty()],
    };
    let mut all = vec![empty];
    all.extend(catalog::HANDLERS.iter().filter(timed).map(|f| program(Group::Handlers, f)));
    all.extend(catalog::KERNELS.iter().map(|f| program(Group::Kernels, f)));
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
    if let Some(unknown) = names.iter().find(|n| all.iter().all(|p| p.name != **n) && !ZLIB_ROWS.contains(&n.as_str())) {
        let known: Vec<&str> = all.iter().map(|p| p.name).chain(ZLIB_ROWS).collect();
        bail!("no program {unknown}; there are: {}", known.join(", "));
    }
    all.retain(|p| wanted(p.name));
    if ZLIB_ROWS.iter().any(|name| wanted(name)) {
        all.extend(zlib_programs(amount, driver)?.into_iter().filter(|p| wanted(p.name)));
    }
    Ok(all)
}

const ZLIB_ROWS: [&str; 2] = ["zlib-deflate", "zlib-inflate"];

/// Deflate and inflate, as calls recorded in a window.
fn zlib_programs(amount: Amount, driver: impl FnOnce(&Program) -> Result<WindowRunner>) -> Result<[Program; 2]> {
    let fixture = catalog::find(ZLIB).context("the fixture is in the catalogue")?;
    let program = |name, calls| Program { name, group: Group::Kernels, fixture, calls };
    let mut runner = driver(&program(ZLIB, Vec::new()))?;
    let packed = zlib::deflate(&mut runner, &mixed_data(1, amount.zlib()), ZLIB_LEVEL)?;
    let restored = zlib::inflate(&mut runner, &packed.output)?;
    Ok([program(ZLIB_ROWS[0], packed.calls), program(ZLIB_ROWS[1], restored.calls)])
}

impl Program {
    /// Why `column` cannot run this program, if it cannot. All other cells must have a number.
    pub fn impossible(&self, column: &Column) -> Option<&'static str> {
        let simd = self.name.starts_with("simd_");
        let prebuilt = !self.fixture.libraries.is_empty();
        match column.kind {
            Kind::Wasm2c | Kind::Wasmtime(_) | Kind::Wasmi if simd => Some("x86 intrinsics"),
            Kind::Wasm2c | Kind::Wasmtime(_) | Kind::Wasmi | Kind::Rbpf { .. } | Kind::Sbpf { .. } if prebuilt => {
                Some("around a prebuilt x86-64 archive")
            }
            Kind::Native(Compiler::Clang) | Kind::Window(Rewriting { compiler: Compiler::Clang, .. }) if prebuilt => {
                Some("the archive was compiled by gcc")
            }
            Kind::Rbpf { .. } | Kind::Sbpf { .. } if !PACKETS.contains(&self.name) => {
                Some("no packet handler, or not expressible in BPF")
            }
            Kind::Rbpf { .. } if self.name == "sha256" => Some("needs more than its 512 bytes of stack"),
            Kind::Rbpf { compiled: true } if LONG_CODE.contains(&self.name) => Some("more code than its compiler takes"),
            _ => None,
        }
    }
}
