//! Several CPUs: a window for each.

use super::{LONGEST_NS, image};
use anyhow::{Context as _, Result, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_image::Image;
use cordon_kernel::abi::{self, Run, kind};
use cordon_kernel::{Device, Handler};
use std::os::fd::AsRawFd as _;

const CPUS: u32 = 2;

/// Keeps this thread on one CPU.
pub fn stay_on(cpu: u32) -> Result<()> {
    // SAFETY: a zeroed set is valid; the CPU is within it.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu as usize, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(failed == 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
    Ok(())
}

fn start_of(file: &[u8], kind: RegionKind) -> Result<u32> {
    let image = Image::read(file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(image.regions().find(|r| r.kind == kind).context("a region")?.start)
}

fn word(handler: &Handler, cpu: u32, at: u32) -> Result<u64> {
    let mut bytes = [0; 8];
    handler.read_of(cpu, at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn call(handler: &Handler, entry: &str, argument: u64) -> Result<Run> {
    let mut run = Run::new(entry, [argument, 0, 0, 0, 0, 0]);
    run.time_limit_ns = LONGEST_NS;
    handler.run(&mut run)?;
    ensure!(run.kind == kind::RETURNED, "{entry}: {}", kind::text(run.kind));
    Ok(run)
}

/// Runs `work` on each CPU at once.
fn on_each(work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..CPUS).map(|cpu| scope.spawn(move || stay_on(cpu).and_then(|()| work(cpu)))).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))))
    })
}

/// What a mapping of a CPU's window shows at `at`.
fn mapped(handler: &Handler, cpu: u32, at: u32) -> Result<u64> {
    let page = u64::from(cpu) << 32 | u64::from(at & !4095);
    // SAFETY: a new mapping, read within its page and unmapped.
    unsafe {
        let (file, flags) = (handler.file().as_raw_fd(), libc::MAP_SHARED);
        let shared = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, file, page.cast_signed());
        ensure!(shared != libc::MAP_FAILED, "mmap of CPU {cpu}: {}", std::io::Error::last_os_error());
        let value = shared.byte_add((at & 4095) as usize).cast::<u64>().read_volatile();
        libc::munmap(shared, 4096);
        Ok(value)
    }
}

/// Calls on two CPUs at once do not miss, have their own data, and constructors have run for each.
pub fn windows(device: &Device) -> Result<String> {
    const ROUNDS: u64 = 200;
    let file = image("host.sandbox.handler")?;
    let heap = start_of(&file, RegionKind::Heap)?;
    let (one, _) = device.insert(&file, 0)?;
    let (each, _) = device.insert(&file, abi::PER_CPU)?;
    let (one_pages, each_pages) = (one.stats()?.pages, each.stats()?.pages);
    ensure!(each_pages == u64::from(CPUS) * one_pages, "{one_pages} pages, {each_pages} for all");
    on_each(|cpu| {
        for round in 1..=ROUNDS {
            let run = call(&each, "host_work", 20_000)?;
            ensure!((run.cpu, run.result) == (cpu, round), "call {} on CPU {}, round {round} of {cpu}", run.result, run.cpu);
        }
        call(&each, "host_time", 0).map(drop)
    })?;
    ensure!(each.stats()?.busy == 0, "{:?}", each.stats()?);
    for cpu in 0..CPUS {
        ensure!(word(&each, cpu, heap + 8 * 30)? == 4711, "no constructor for CPU {cpu}");
        ensure!(word(&each, cpu, heap + 16)? == u64::from(cpu) && word(&each, cpu, heap + 24)? == ROUNDS, "CPU {cpu}");
        ensure!(mapped(&each, cpu, heap + 24)? == ROUNDS, "mapping of CPU {cpu}");
    }
    ensure!(
        word(&each, CPUS, heap).is_err() && word(&one, 1, heap).is_err() && word(&each, u32::MAX >> 1, heap).is_err(),
        "no window"
    );
    ensure!(mapped(&one, 1, heap).is_err() && mapped(&each, CPUS, heap).is_err(), "no window to map");
    each.write_of(1, heap + 24, &7_u64.to_le_bytes())?;
    ensure!(word(&each, 0, heap + 24)? == ROUNDS && word(&each, 1, heap + 24)? == 7, "windows are the same");
    drop((one, each));
    ensure!(device.insert(&file, 4).is_err(), "an unknown flag");
    ensure!(device.totals()?.window_pages == 0, "{:?}", device.totals()?);
    Ok(format!("{} calls on {CPUS} CPUs", u64::from(CPUS) * ROUNDS))
}
