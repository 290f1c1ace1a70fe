//! Enumerates every prefix, opcode, ModRM and SIB of the legacy and VEX maps and compares what the checker accepts with iced-x86; and with
//! registers and constants collapsed, all that it accepts and refuses with Capstone and a second implementation of SPEC.md.
//!
//! `cargo run --release -p cordon-checker --example exhaustive [PART]` takes minutes; exits 1 on any difference. `PART`: only what is so named
//! (`collapsed` is the second half, and the shorter one).

#[path = "../tests/oracle/census.rs"]
mod census;
#[path = "../tests/oracle/collapsed.rs"]
mod collapsed;
#[path = "../tests/oracle/explained.rs"]
mod explained;
#[path = "../tests/oracle/heads.rs"]
mod heads;
#[path = "../tests/oracle/mod.rs"]
mod oracle;
#[path = "../tests/oracle/refused.rs"]
mod refused;
#[path = "../tests/oracle/second.rs"]
mod second;
#[path = "../tests/oracle/spec.rs"]
mod spec;

use census::Census;
use collapsed::Collapse;
use cordon_checker::policy::Host;
use cordon_checker::{Mode, Protect};
use heads::Head;
use oracle::{Oracle, Tally};
use std::process::ExitCode;

/// Byte that stands for immediates and displacements: positive as a displacement, a multiple of 8, a valid register operand.
const FILL: u8 = 0x10;

fn run(heads: &[Head], fill: u8, mode: Mode) -> Tally {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let mut oracle = Oracle::new(Host::User, mode);
                    let mut tally = Tally::default();
                    for head in heads.iter().skip(worker).step_by(threads) {
                        heads::sweep(&mut oracle, head, fill, &mut tally);
                    }
                    tally
                })
            })
            .collect();
        for worker in workers {
            total.add(worker.join().expect("a worker does not panic"));
        }
    });
    total
}

/// The 0F map alone: its no-ops have immediates of zero.
fn two_byte_heads() -> Vec<Head> {
    let in_map = |head: &Head| head.len >= 2 && head.bytes[head.len - 2] == 0x0f;
    heads::legacy_heads().into_iter().filter(in_map).collect()
}

/// More fills for a slice of the collapsed enumeration: zero for the no-ops, and negative displacements.
const MORE_FILLS: [u8; 2] = [0, 0xf0];

/// Compares with Capstone and with the second implementation of SPEC.md; gives how many kinds of difference nothing explains.
fn judge(name: &str, mode: Mode) -> u64 {
    let started = std::time::Instant::now();
    let mut census = Census::take(Collapse::WHOLE, &[FILL], mode);
    census.add(Census::take(Collapse::SLICE, &MORE_FILLS, mode));
    let (seen, unexplained) = (&census.seen, census.unexplained());
    let explained = seen.differences.len() - unexplained.len();
    let found = unexplained.len() + census.misjudged.len();
    println!(
        "{name}: {} tried, {} accepted as {} instructions, {} judged otherwise by the second implementation of SPEC.md, {} kinds of \
         difference from Capstone that nothing explains, {explained} that are explained, {} s",
        seen.tried,
        seen.accepted,
        census.accepted.len(),
        census.misjudged.len(),
        unexplained.len(),
        started.elapsed().as_secs()
    );
    for example in unexplained.iter().chain(census.misjudged.keys()).take(40) {
        println!("  {example}");
    }
    found as u64
}

fn main() -> ExitCode {
    let mut differences = 0;
    let part = std::env::args().nth(1).unwrap_or_default();
    let (sandbox, stores) = (Mode::default(), Mode { protect: Protect::Stores, ..Mode::default() });
    for (name, heads, fill, mode) in [
        ("legacy", heads::legacy_heads(), FILL, sandbox),
        ("0F map, zero immediates", two_byte_heads(), 0, sandbox),
        ("VEX", heads::vex_heads(), FILL, sandbox),
        ("loads left alone", heads::load_heads(), FILL, stores),
    ] {
        if !name.contains(&part) {
            continue;
        }
        let started = std::time::Instant::now();
        let tally = run(&heads, fill, mode);
        let seconds = started.elapsed().as_secs();
        println!("{name}: {} tried, {} accepted, {} differences, {seconds} s", tally.tried, tally.accepted, tally.differences);
        for example in &tally.examples {
            println!("  {example}");
        }
        differences += tally.differences;
    }
    for (name, mode) in [("collapsed", sandbox), ("collapsed, loads left alone", stores)] {
        if name.contains(&part) {
            differences += judge(name, mode);
        }
    }
    if differences == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
