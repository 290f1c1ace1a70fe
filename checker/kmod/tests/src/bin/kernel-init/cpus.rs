//! Several CPUs: a window for each.

use super::{LONGEST_NS, Subject, image, mount};
use crate::events::{attach, exchange, loopback};
use anyhow::{Context as _, Result, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_image::Image;
use cordon_kernel::abi::{self, Attach, Run, event, kind};
use cordon_kernel::{Device, Handler};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CPUS: u32 = 2;

/// Keeps this thread on some CPUs.
fn stay_in(cpus: std::ops::Range<u32>) -> Result<()> {
    // SAFETY: a zeroed set is valid; the CPUs are within it.
    let failed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.for_each(|cpu| libc::CPU_SET(cpu as usize, &mut set));
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(failed == 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
    Ok(())
}

fn stay_on(cpu: u32) -> Result<()> {
    stay_in(cpu..cpu + 1)
}

fn stay_anywhere() -> Result<()> {
    stay_in(0..CPUS)
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

/// Ends endless loops until `stop`; calls that find the CPU on its way out are counted as refused. Gives how many were ended.
fn spin_until(stop: &AtomicBool, handler: &Handler) -> Result<u64> {
    let mut ended = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut run = Run::new("spin_forever", [0; 6]);
        run.time_limit_ns = 3_000_000;
        match handler.run(&mut run) {
            Ok(()) => ensure!(run.kind == kind::TIME_LIMIT, "{}", kind::text(run.kind)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            Err(error) => return Err(error.into()),
        }
        ended += 1;
    }
    Ok(ended)
}

/// A CPU goes and comes back while endless loops are ended, a timer calls, and packets pass on both.
pub fn hotplug(device: &Device) -> Result<String> {
    const ROUNDS: u32 = 25;
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    if !std::path::Path::new(ONLINE).exists() {
        mount("sysfs", "/sys")?;
    }
    loopback()?;
    let (stop, packets) = (AtomicBool::new(false), AtomicU64::new(0));
    let loops = || Ok(Subject::new(device, &image("loops.sandbox.image")?)?.handler);
    let spinning: Vec<Handler> = (0..2).map(|_| loops()).collect::<Result<_>>()?;
    let (each, _) = device.insert(&image("host.metered.handler")?, abi::PER_CPU)?;
    let timer = each.attach(&Attach { period_ns: 500_000, ..attach(event::TIMER, "", "on_event") })?;
    let netfilter = each.attach(&attach(event::NETFILTER, "", "on_packet"))?;
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = spinning.iter().map(|handler| scope.spawn(|| spin_until(&stop, handler))).collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                packets.fetch_add(exchange(9996, 20).unwrap_or(0).into(), Ordering::Relaxed);
            }
        });
        let switching = (0..ROUNDS).try_for_each(|_| -> Result<()> {
            for state in ["0", "1"] {
                std::fs::write(ONLINE, state).with_context(|| format!("{ONLINE}: {state}"))?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let ended =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))).sum::<Result<u64>>();
        switching.and(ended)
    })?;
    let (timer, netfilter) = (each.event(timer)?, each.event(netfilter)?);
    ensure!(timer.returned > 100 && netfilter.returned > 20 && ended > 50, "{ended} loops, {timer:?}, {netfilter:?}");
    // The CPU that came back ends loops.
    stay_on(1)?;
    for handler in &spinning {
        let mut run = Run::new("spin_forever", [0; 6]);
        run.time_limit_ns = 3_000_000;
        handler.run(&mut run)?;
        ensure!((run.kind, run.cpu) == (kind::TIME_LIMIT, 1), "{} on CPU {}", kind::text(run.kind), run.cpu);
    }
    stay_anywhere()?;
    Ok(format!("{ROUNDS} rounds: {ended} loops, {} timer calls, {} packets", timer.returned, packets.into_inner()))
}
