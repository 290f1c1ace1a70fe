//! Built-in gates that change more than a result: string instructions that are stopped, setjmp and longjmp, cpuid; and kprobes inside functions.

use super::{LONGEST_NS, Subject, image};
use crate::events::{attach, knock};
use anyhow::{Context as _, Result, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_fixtures::random::Random;
use cordon_image::Image;
use cordon_kernel::Device;
use cordon_kernel::abi::{self, Attach, Run, event, kind};
use std::collections::BTreeSet;

/// Places of registers in reports.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

fn report(subject: &Subject, entry: &str, args: [u64; 6]) -> Result<Run> {
    let mut run = Run::new(entry, args);
    run.time_limit_ns = LONGEST_NS;
    subject.handler.run(&mut run)?;
    Ok(run)
}

fn start_of(file: &[u8], kind: RegionKind) -> Result<u32> {
    let image = Image::read(file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(image.regions().find(|r| r.kind == kind).context("a region")?.start)
}

/// An end of writable memory behind which there is none.
fn end_of_memory(file: &[u8]) -> Result<u32> {
    let image = Image::read(file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let starts: BTreeSet<u32> = image.regions().map(|r| r.start).collect();
    let found = image.regions().find(|r| r.kind == RegionKind::Heap && !starts.contains(&r.end));
    let found = found.or_else(|| image.regions().find(|r| r.kind != RegionKind::Rodata && !starts.contains(&r.end)));
    Ok(found.context("an end")?.end)
}

/// A string instruction that runs out of memory has done what was possible, and its registers say how much.
pub fn strings(device: &Device) -> Result<String> {
    for mode in ["sandbox", "metered"] {
        let name = format!("strings.{mode}.handler");
        let file = image(&name)?;
        let subject = Subject::new(device, &file)?;
        let end = end_of_memory(&file)?;
        let bytes: Vec<u8> = (0..200).collect();
        subject.handler.write(subject.arguments, &bytes)?;
        let (from, end64) = (u64::from(subject.arguments), u64::from(end));
        // Entry, element size, bytes that there is room for, elements asked for, whether memory is at the end of what is read.
        for (entry, size, room, count, reads) in [
            ("movs1", 1, 100, 200, false),
            ("movs1", 1, 1, 2, true),
            ("movs8", 8, 80, 20, false),
            ("movs8", 8, 83, 20, false),
            ("movs8", 8, 77, 20, true),
            ("movs8", 8, 3, 1, true),
            ("stos1", 1, 50, 51, false),
            ("stos4", 4, 42, 11, false),
            ("movs1", 1, 0, 1, false),
        ] {
            let edge = end64 - room;
            let (to, from) = if reads { (from + 4096, edge) } else { (edge, from) };
            let run = report(&subject, entry, [to, from, count, 0x4141_4141, 0, 0])?;
            let done = room / size;
            let moves = entry.starts_with("movs");
            let wanted = (count - done, if moves { from + done * size } else { from }, to + done * size);
            let found = (run.registers[RCX], run.registers[RSI], run.registers[RDI]);
            ensure!(
                run.kind == kind::UNMAPPED && found == wanted,
                "{entry} {room}: {} {found:?}, not {wanted:?}",
                kind::text(run.kind)
            );
            let writes = run.flags & abi::IS_WRITE != 0;
            ensure!(
                writes != reads && run.address == end64,
                "{entry} {room}: write {writes} at {:#x}, end {end:#x}",
                run.address
            );
            let mut written = vec![0; (done * size) as usize];
            subject.handler.read(to as u32, &mut written)?;
            let expected = if reads {
                &vec![0; written.len()]
            } else if moves {
                &bytes[..written.len()]
            } else {
                &vec![0x41; written.len()]
            };
            ensure!(reads || written == *expected, "{entry} {room}: {written:?}");
        }
        // Outside of the window nothing is begun.
        for (entry, to, from, count) in [
            ("movs8", from, from, 1 << 60),
            ("movs1", from, 0xffff_fff0, 17),
            ("movs1", 1 << 32, from, 1),
            ("movs8", from, u64::MAX, 1),
            ("stos4", 0xffff_fff0, 0, 5),
            ("stos1", u64::MAX, 0, 1),
            ("stos4", from, 0, u64::MAX),
        ] {
            let run = report(&subject, entry, [to, from, count, 0, 0, 0])?;
            let stopped = run.kind == kind::GATE_RANGE || mode == "metered" && run.kind == kind::FUEL;
            ensure!(stopped && run.registers[RCX] == count, "{entry} {count:#x}: {}", kind::text(run.kind));
        }
        // Overlaps repeat.
        subject.handler.write(subject.arguments, b"abc")?;
        let run = report(&subject, "movs1", [from + 3, from, 300, 0, 0, 0])?;
        let mut repeated = [0; 303];
        subject.handler.read(subject.arguments, &mut repeated)?;
        let repeats = repeated.iter().zip(b"abc".iter().cycle()).all(|(a, b)| a == b);
        ensure!(run.kind == kind::RETURNED && run.result == from + 303 && repeats, "an overlap");
    }
    Ok("9 ends of memory in 2 modes".into())
}

/// Jumps arrive where setjmp was called; records that are stale or changed end the call.
pub fn jumps(device: &Device) -> Result<String> {
    let mut random = Random::new(3);
    let (mut stopped, mut landed) = (0, 0);
    for mode in ["sandbox", "metered"] {
        let file = image(&format!("jumps.{mode}.handler"))?;
        let subject = Subject::new(device, &file)?;
        let heap = start_of(&file, RegionKind::Heap)?;
        for (depth, times) in [(0, 1), (1, 5), (40, 100), (3, 1000)] {
            let run = report(&subject, "rounds", [depth, times, 0, 0, 0, 0])?;
            let wanted = times + 3 * depth + 5 * times;
            ensure!(
                (run.kind, run.result) == (kind::RETURNED, wanted),
                "{mode} {depth} {times}: {} {}",
                kind::text(run.kind),
                run.result
            );
        }
        let run = report(&subject, "zero", [0; 6])?;
        ensure!((run.kind, run.result) == (kind::RETURNED, 1), "{mode}: {} {}", kind::text(run.kind), run.result);
        for (entry, argument) in [("gone", 0), ("stale", 0), ("keep", 0)] {
            let run = report(&subject, entry, [argument, 0, 0, 0, 0, 0])?;
            let wanted = if entry == "keep" { kind::RETURNED } else { kind::BAD_JUMP };
            ensure!(run.kind == wanted, "{mode} {entry}: {}", kind::text(run.kind));
        }
        // That record may now pass for one of this call, whose outermost function lies at the same place: no harm.
        let run = report(&subject, "stale", [0; 6])?;
        ensure!(matches!(run.kind, kind::RETURNED | kind::BAD_JUMP), "{mode} stale: {}", kind::text(run.kind));
        // What setjmp writes says nothing of the kernel's addresses.
        let mut record = [0; 64];
        subject.handler.read(heap, &mut record)?;
        for word in record.chunks_exact(8).filter_map(|w| w.first_chunk()).map(|w| u64::from_le_bytes(*w)) {
            ensure!(word >> 47 == 0, "{word:#x} in a record");
        }
        for (at, expected) in [(16, kind::NULL_ZONE), (0xffff_fff8, kind::GATE_RANGE), (u64::MAX, kind::GATE_RANGE)] {
            let run = report(&subject, "outside", [at, 0, 0, 0, 0, 0])?;
            ensure!(run.kind == expected, "{at:#x}: {}", kind::text(run.kind));
        }
        for round in 0..2000_u64 {
            let entry = if round % 5 == 0 { "crossed" } else { "forged" };
            let value = match random.below(4) {
                0 => random.word(),
                1 => random.below(4096),
                2 => 0x7000_0000_u64.wrapping_sub(8 * random.below(64)).wrapping_add(random.below(2) * 8),
                _ => 1 << random.below(64),
            };
            let mut run = Run::new(entry, [round, value, 0, 0, 0, 0]);
            run.time_limit_ns = 20_000_000;
            subject.handler.run(&mut run)?;
            if run.kind == kind::BAD_JUMP { stopped += 1 } else { landed += 1 }
        }
    }
    ensure!(stopped > 500 && landed > 500, "{stopped} stopped, {landed} landed");
    Ok(format!("{stopped} forged records refused, {landed} landed somewhere"))
}

/// cpuid tells what images may use and nothing of the machine.
pub fn identity(device: &Device) -> Result<String> {
    let file = image("jumps.sandbox.handler")?;
    let subject = Subject::new(device, &file)?;
    let heap = start_of(&file, RegionKind::Heap)?;
    let ask = |leaf: u64, sub: u64| -> Result<[u64; 4]> {
        let run = report(&subject, "identify", [leaf, sub, 0, 0, 0, 0])?;
        ensure!(run.kind == kind::RETURNED, "{}", kind::text(run.kind));
        let mut bytes = [0; 32];
        subject.handler.read(heap, &mut bytes)?;
        Ok(std::array::from_fn(|i| bytes[8 * i..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))))
    };
    let [highest, b, c, d] = ask(0, 0)?;
    let vendor: Vec<u8> = [b, d, c].iter().flat_map(|w| w.to_le_bytes()[..4].to_vec()).collect();
    ensure!(highest == 7 && vendor == b"Cordon SFI  ", "{highest} {vendor:?}");
    let [_, b, c, d] = ask(1, 0)?;
    ensure!(b == 0 && c & !(1 << 22 | 1 << 23) == 0 && d == 1 << 15, "leaf 1: {b:#x} {c:#x} {d:#x}");
    ensure!(ask(7, 0)?[1] & !(1 << 3 | 1 << 8 | 1 << 19) == 0, "leaf 7");
    for (leaf, sub) in
        [(2, 0), (4, 0), (7, 1), (0xb, 0), (0xd, 0), (0x15, 0), (0x4000_0000, 0), (0x8000_0002, 0), (0x8000_0008, 0)]
    {
        ensure!(ask(leaf, sub)? == [0; 4], "leaf {leaf:#x}");
    }
    Ok("13 leaves".into())
}

/// Kprobes that are breakpoints: interrupts are off while the handler runs, whatever it does.
pub fn breakpoints(device: &Device) -> Result<String> {
    const ROUNDS: u32 = 500;
    std::fs::write("/proc/sys/debug/kprobes-optimization", "0").context("kprobes-optimization")?;
    let subject = Subject::new(device, &image("loops.metered.image")?)?;
    let faults = Subject::new(device, &image("faults.metered.image")?)?;
    let wanted =
        |offset, entry| Attach { offset, fuel: 0, time_limit_ns: 0, ..attach(event::KPROBE, "__x64_sys_getppid", entry) };
    // The first instructions of a function are where a tracer's call is; the one behind it can only be a breakpoint.
    let inside = |subject: &Subject, entry| (5..16).find_map(|offset| subject.handler.attach(&wanted(offset, entry)).ok());
    let spin = inside(&subject, "spin_forever").context("no instruction for a breakpoint")?;
    knock(20);
    let stats = subject.handler.event(spin)?;
    ensure!(stats.stopped == 20 && stats.missed == 0 && stats.last.kind == kind::FUEL, "{stats:?}");
    ensure!(stats.last.flags & abi::NO_INTERRUPTS != 0 && stats.last.fuel_used <= 1 << 22, "{stats:?}");
    subject.handler.detach(spin)?;
    let fault = inside(&faults, "fault_null").context("no instruction for a breakpoint")?;
    knock(ROUNDS);
    let stats = faults.handler.event(fault)?;
    ensure!(stats.stopped == u64::from(ROUNDS) && stats.last.kind == kind::NULL_ZONE, "{stats:?}");
    ensure!(stats.last.flags & abi::NO_INTERRUPTS != 0, "interrupts are on");
    for offset in [1, 2, 1 << 31, u64::MAX] {
        ensure!(faults.handler.attach(&wanted(offset, "fault_null")).is_err(), "a probe at {offset:#x}");
    }
    std::fs::write("/proc/sys/debug/kprobes-optimization", "1")?;
    Ok(format!("20 endless loops, {ROUNDS} faults"))
}
