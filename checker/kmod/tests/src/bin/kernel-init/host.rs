//! What the kernel offers to handlers: time, log lines, packets, maps; with arguments that no honest handler gives.

use super::{LONGEST_NS, Subject, image, log};
use crate::events::{attach, exchange, knock, loopback};
use anyhow::{Result, ensure};
use cordon_checker::layout::RegionKind;
use cordon_fixtures::random::Random;
use cordon_image::Image;
use cordon_kernel::abi::{Attach, MapSpec, Run, event, kind, map_flag, map_kind};
use cordon_kernel::{Device, Map};
use std::collections::BTreeMap;

const ENOENT: i64 = -2;
const EBADF: i64 = -9;
const EAGAIN: i64 = -11;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const ENOSPC: i64 = -28;
const ENODATA: i64 = -61;

/// Lines that a handler may have at once.
const LINES: u64 = 20;

fn subject(device: &Device, mode: &str) -> Result<Subject> {
    Subject::new(device, &image(&format!("host.{mode}.handler"))?)
}

impl Subject {
    /// The report of a call.
    fn report(&self, entry: &str, args: [u64; 6]) -> Result<Run> {
        let mut run = Run::new(entry, args);
        run.time_limit_ns = LONGEST_NS;
        self.handler.run(&mut run)?;
        Ok(run)
    }

    /// The result of a call that returns.
    fn result(&self, entry: &str, args: [u64; 6]) -> Result<i64> {
        let run = self.report(entry, args)?;
        ensure!(run.kind == kind::RETURNED, "{entry}: {}", kind::text(run.kind));
        Ok(run.result.cast_signed())
    }

    /// Puts `bytes` into the argument area.
    fn put(&self, at: u32, bytes: &[u8]) -> Result<u64> {
        self.handler.write(self.arguments + at, bytes)?;
        Ok(u64::from(self.arguments + at))
    }

    fn heap(&self, file: &[u8], word: u32) -> Result<u64> {
        let image = Image::read(file, &cordon_checker::Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let heap = image.regions().find(|r| r.kind == RegionKind::Heap).map_or(0, |r| r.start);
        let mut bytes = [0; 8];
        self.handler.read(heap + 8 * word, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The clock that handlers read, as user space does.
fn now() -> u64 {
    // SAFETY: a zeroed timespec is valid and is written to.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
        time
    };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Time runs as user space sees it; the CPU exists.
pub fn time(device: &Device) -> Result<String> {
    let file = image("host.sandbox.handler")?;
    for mode in ["sandbox", "metered"] {
        let subject = subject(device, mode)?;
        let before = now();
        ensure!(subject.result("host_time", [0; 6])? == 1, "time goes back");
        let (first, after) = (subject.heap(&file, 0)?, now());
        ensure!((before..=after).contains(&first), "{mode}: {first} is not within {before}..{after}");
        ensure!(subject.heap(&file, 2)? < 2, "CPU {}", subject.heap(&file, 2)?);
    }
    Ok("2 modes".into())
}

/// Lines of the log that came since `before`.
fn new_lines(before: usize) -> Vec<String> {
    log().lines().skip(before).map(str::to_owned).collect()
}

/// Lines are cut, cleaned, named after the handler and limited in number.
pub fn lines(device: &Device) -> Result<String> {
    let subject = subject(device, "sandbox")?;
    let before = log().lines().count();
    for (text, expected) in [
        (&b"hello"[..], "hello"),
        (b"two\nlines\n", "two?lines"),
        (b"\x1b[31mred\0\xff\xc3\xa4", "?[31mred????"),
        (b"%s %n %p", "%s %n %p"),
        (b"", ""),
    ] {
        let at = subject.put(0, text)?;
        let taken = subject.result("host_log", [at, text.len() as u64, 0, 0, 0, 0])?;
        ensure!(taken == text.len() as i64, "{expected:?}: {taken}");
        ensure!(
            new_lines(before).iter().any(|l| l.contains("cordon: handler ") && l.ends_with(&format!(": {expected}"))),
            "no {expected:?}"
        );
    }
    let at = subject.put(0, &[b'x'; 4096])?;
    ensure!(subject.result("host_log", [at, u64::MAX, 0, 0, 0, 0])? == 120, "a long line");
    let taken = subject.result("host_flood", [at, 10, 500, 0, 0, 0])?;
    ensure!(taken.cast_unsigned() <= LINES - 6, "{taken} of 500 lines taken");
    ensure!(subject.result("host_log", [at, 1, 0, 0, 0, 0])? == EAGAIN, "one more line");
    let count = new_lines(before).iter().filter(|l| l.contains("cordon: handler ")).count();
    ensure!(count as u64 <= LINES, "{count} lines");
    for (from, bytes) in [(16, 8), (0xffff_fffc, 8), (u64::MAX, 1), (1 << 32, 1), (0xffff_8880_0000_0000, 4)] {
        let run = subject.report("host_log", [from, bytes, 0, 0, 0, 0])?;
        ensure!(matches!(run.kind, kind::NULL_ZONE | kind::UNMAPPED | kind::GATE_RANGE), "{from:#x}: {}", kind::text(run.kind));
    }
    Ok(format!("{count} lines"))
}

fn spec(kind: u32, key_bytes: u32, value_bytes: u32, entries: u32) -> MapSpec {
    MapSpec { kind, key_bytes, value_bytes, entries, reserved: 0 }
}

/// Maps that are not made.
fn bad_maps(device: &Device) -> Result<()> {
    let hash = map_kind::HASH;
    for (bad, what) in [
        (spec(2, 4, 4, 1), "kind"),
        (spec(hash, 0, 4, 1), "empty key"),
        (spec(hash, 65, 4, 1), "long key"),
        (spec(hash, 4, 0, 1), "empty value"),
        (spec(hash, 4, 4097, 1), "long value"),
        (spec(hash, 4, u32::MAX, 1), "value that wraps"),
        (spec(hash, 4, 4, 0), "no entry"),
        (spec(hash, 4, 4, u32::MAX), "entries that wrap"),
        (spec(hash, 64, 4096, 1 << 20), "4 GiB"),
        (spec(map_kind::ARRAY, 8, 4, 1), "array of another key"),
        (MapSpec { reserved: 1, ..spec(hash, 4, 4, 1) }, "reserved"),
    ] {
        ensure!(device.map(bad).is_err(), "{what}");
    }
    Ok(())
}

/// Random operations by a handler and by user space on one map, compared with a model.
fn as_the_model(subject: &Subject, map: &Map) -> Result<usize> {
    let mut random = Random::new(7);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for step in 0..3000 {
        let key = vec![random.below(24) as u8; 5];
        let value = random.word().to_le_bytes()[..7].to_vec();
        let flags = random.below(3);
        let (k, v) = (subject.put(4091, &key)?, subject.put(8192, &value)?);
        let there = model.contains_key(&key);
        let wanted = match (flags, there) {
            (map_flag::NOEXIST, true) => EEXIST,
            (map_flag::EXIST, false) => ENOENT,
            (_, false) if model.len() == 16 => ENOSPC,
            _ => 0,
        };
        let (result, wanted) = match random.below(4) {
            0 => {
                if wanted == 0 {
                    model.insert(key, value);
                }
                (subject.result("map_update", [3, k, v, flags, 0, 0])?, wanted)
            }
            1 => {
                if wanted == 0 {
                    model.insert(key.clone(), value.clone());
                }
                let done = map.update(&key, &value, flags);
                (done.map_or_else(|e| -i64::from(e.raw_os_error().unwrap_or(0)), |()| 0), wanted)
            }
            2 => (subject.result("map_delete", [3, k, 0, 0, 0, 0])?, if model.remove(&key).is_some() { 0 } else { ENOENT }),
            _ => {
                let result = subject.result("map_lookup", [3, k, v, 0, 0, 0])?;
                let mut read = [0; 7];
                subject.handler.read(subject.arguments + 8192, &mut read)?;
                let wanted = model.get(&key);
                ensure!(wanted.is_none_or(|w| w[..] == read), "step {step}: {read:?}, not {wanted:?}");
                ensure!(map.lookup(&key)?.as_ref() == wanted, "step {step}: user space sees another value");
                (result, if wanted.is_some() { 0 } else { ENOENT })
            }
        };
        ensure!(result == wanted, "step {step}: {result}, not {wanted}");
    }
    let entries: BTreeMap<_, _> = map.entries()?.into_iter().collect();
    ensure!(entries == model, "the map has {} entries, the model {}", entries.len(), model.len());
    Ok(model.len())
}

/// Maps as a model has them, and with arguments that are wrong in every way.
pub fn maps(device: &Device) -> Result<String> {
    bad_maps(device)?;
    let before = device.totals()?.maps;
    let subject = subject(device, "metered")?;
    let (hash, array) = (device.map(spec(map_kind::HASH, 5, 7, 16))?, device.map(spec(map_kind::ARRAY, 4, 8, 10))?);
    subject.handler.bind(3, &hash)?;
    subject.handler.bind(0, &array)?;
    ensure!(subject.handler.bind(3, &array).is_err() && subject.handler.bind(16, &array).is_err(), "bound twice, or nowhere");
    let left = as_the_model(&subject, &hash)?;
    let (key, value) = (subject.put(0, &9_u32.to_le_bytes())?, subject.put(64, &77_u64.to_le_bytes())?);
    let call = |entry, map, key, value, flags| subject.result(entry, [map, key, value, flags, 0, 0]);
    ensure!(call("map_update", 0, key, value, 0)? == 0 && call("map_lookup", 0, key, value, 0)? == 0, "an array's last entry");
    ensure!(array.lookup(&9_u32.to_le_bytes())? == Some(77_u64.to_le_bytes().to_vec()), "user space sees it");
    ensure!(call("map_update", 0, key, value, 1)? == EEXIST && call("map_delete", 0, key, 0, 0)? == EINVAL, "an array");
    ensure!(call("map_update", 0, key, value, 3)? == EINVAL && call("map_update", 0, key, value, u64::MAX)? == EINVAL, "flags");
    for index in [10_u32, u32::MAX] {
        let key = subject.put(0, &index.to_le_bytes())?;
        ensure!(call("map_lookup", 0, key, value, 0)? == ENOENT && call("map_update", 0, key, value, 0)? == ENOENT, "{index}");
    }
    for map in [1, 15, 16, u64::MAX, 1 << 32] {
        ensure!(call("map_lookup", map, key, value, 0)? == EBADF, "map {map:#x}");
    }
    let kernel = 0xffff_8880_0000_0000;
    for (key, value) in [(16, value), (key, 16), (0xffff_ffff, value), (key, 0xffff_ffff), (kernel, value), (key, kernel)] {
        let run = subject.report("map_lookup", [3, key, value, 0, 0, 0])?;
        let outside = matches!(run.kind, kind::NULL_ZONE | kind::UNMAPPED | kind::GATE_RANGE);
        ensure!(outside && &run.gate[..17] == b"cordon_map_lookup", "{key:#x}, {value:#x}: {}", kind::text(run.kind));
    }
    drop((hash, array));
    ensure!(device.totals()?.maps == before + 2, "the handler does not hold its maps");
    drop(subject);
    ensure!(device.totals()?.maps == before, "maps are left");
    Ok(format!("3000 operations, {left} entries left"))
}

/// Handlers on all CPUs, a timer and user space count in one map: none is lost.
pub fn shared_map(device: &Device) -> Result<String> {
    let map = device.map(spec(map_kind::HASH, 4, 8, 64))?;
    let subjects = (0..4).map(|_| subject(device, "metered")).collect::<Result<Vec<_>>>()?;
    for subject in &subjects {
        subject.handler.bind(0, &map)?;
    }
    let timer = Attach { period_ns: 1_000_000, ..attach(event::TIMER, "", "on_event") };
    let timed = subject(device, "metered")?;
    timed.handler.bind(0, &map)?;
    let timer = timed.handler.attach(&timer)?;
    let done: i64 = std::thread::scope(|scope| {
        let count =
            |subject| move || (0..20).map(|_| Subject::result(subject, "map_count", [500, 7, 0, 0, 0, 0])).sum::<Result<i64>>();
        let threads: Vec<_> = subjects.iter().map(|subject| scope.spawn(count(subject))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))).sum::<Result<i64>>()
    })?;
    timed.handler.detach(timer)?;
    let number = |key: u32| -> Result<i64> {
        let value = map.lookup(&key.to_le_bytes())?.unwrap_or_default();
        Ok(value.first_chunk().map_or(0, |v| i64::from_le_bytes(*v)))
    };
    ensure!(number(7)? == done && done > 4 * 20 * 400, "{} counted, {done} done", number(7)?);
    ensure!(number(0)? > 3, "the timer counted {}", number(0)?);
    Ok(format!("{done} by 4 handlers, {} by a timer", number(0)?))
}

/// Packets load as they were copied.
pub fn packets(device: &Device) -> Result<String> {
    let file = image("host.sandbox.handler")?;
    let subject = subject(device, "sandbox")?;
    let at = subject.arguments.into();
    ensure!(subject.result("host_load", [0, at, 4, 0, 0, 0])? == ENODATA, "a packet without an event");
    loopback()?;
    let event = subject.handler.attach(&attach(event::NETFILTER, "", "on_packet"))?;
    ensure!(exchange(9997, 40)? == 40, "packets are lost");
    subject.handler.detach(event)?;
    // The same with less of the packets copied.
    let event = subject.handler.attach(&Attach { bytes: 24, ..attach(event::NETFILTER, "", "on_packet") })?;
    ensure!(exchange(9997, 10)? == 10 && subject.handler.event(event)?.stopped == 0, "packets are lost");
    subject.handler.detach(event)?;
    let (seen, bad) = (subject.heap(&file, 0)?, subject.heap(&file, 1)?);
    ensure!(seen >= 40 && bad == 0, "{seen} packets, {bad} differences");
    let outside = subject.handler.attach(&attach(event::NETFILTER, "", "on_packet_outside"))?;
    ensure!(exchange(9997, 10)? == 10, "packets are lost");
    let stats = subject.handler.event(outside)?;
    ensure!(stats.stopped == 10 && stats.last.kind == kind::GATE_RANGE, "{stats:?}");
    Ok(format!("{seen} packets"))
}

/// Lines and counts from a kprobe on the kernel's own printing: it must come to an end.
pub fn from_probes(device: &Device) -> Result<String> {
    let map = device.map(spec(map_kind::HASH, 4, 8, 64))?;
    let subject = subject(device, "metered")?;
    subject.handler.bind(0, &map)?;
    let before = log().lines().count();
    // A first call in an emulator may take its time.
    let called = |name| Attach { time_limit_ns: LONGEST_NS, ..attach(event::KPROBE, name, "on_event") };
    let probe = subject.handler.attach(&called("vprintk_emit"))?;
    let system = subject.handler.attach(&called("__x64_sys_getppid"))?;
    knock(200);
    // A line that the kernel prints outside of any probe.
    std::fs::write("/dev/kmsg", "a line of user space")?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    let (print, system) = (subject.handler.event(probe)?, subject.handler.event(system)?);
    ensure!(system.returned + system.missed == 200 && system.returned > 0, "{system:?}");
    ensure!(print.fired > 0 && print.fired < 500, "{print:?}");
    let lines = new_lines(before).iter().filter(|l| l.ends_with(": seen")).count() as u64;
    ensure!((1..=LINES).contains(&lines), "{lines} lines");
    let counted = map.lookup(&0_u32.to_le_bytes())?.unwrap_or_default();
    let counted = counted.first_chunk().map_or(0, |v| u64::from_le_bytes(*v));
    ensure!(counted <= system.returned + print.returned && counted > 0, "{counted} counted");
    ensure!(subject.result("host_log", [16, 0, 0, 0, 0, 0])? <= 0, "an empty line reads nothing");
    Ok(format!("{} and {} calls, {lines} lines", system.returned, print.returned))
}
