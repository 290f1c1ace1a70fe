//! Events at places of the kernel where little is allowed: under its run queue, timer and console locks, in its page faults, in what the module
//! itself calls; and events that come and go while they fire.

use super::{Subject, image};
use crate::events::{attach, exchange, knock, loopback};
use anyhow::{Context as _, Result, ensure};
use cordon_kernel::Device;
use cordon_kernel::abi::{Attach, MapSpec, event, map_kind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tracepoints that are hit with locks held, or by what handlers and their gates do.
const TRACEPOINTS: [&str; 18] = [
    "sched_switch",
    "sched_wakeup",
    "sched_waking",
    "hrtimer_start",
    "hrtimer_expire_entry",
    "timer_start",
    "local_timer_entry",
    "irq_work_entry",
    "irq_handler_entry",
    "softirq_raise",
    "kmem_cache_alloc",
    "kmem_cache_free",
    "kmalloc",
    "mm_page_alloc",
    "rcu_utilization",
    "console",
    "page_fault_kernel",
    "netif_rx",
];

/// Functions that a call, its faults and its gates go through, and the module's own.
const FUNCTIONS: [&str; 12] = [
    "fixup_exception",
    "search_module_extables",
    "ktime_get_mono_fast_ns",
    "irq_work_queue",
    "__siphash_unaligned",
    "skb_copy_bits",
    "vprintk_store",
    "__schedule",
    "hrtimer_interrupt",
    "cordon_run_with",
    "cordon_gate_run",
    "cordon_map_add",
];

/// Something of everything for a while.
fn bustle() -> Result<()> {
    let end = Instant::now() + Duration::from_millis(60);
    while Instant::now() < end {
        knock(20);
        exchange(9995, 5)?;
        std::fs::write("/dev/kmsg", "a line of user space")?;
        // Page faults, here and in the kernel's copies.
        std::hint::black_box(std::fs::read("/proc/self/maps")?);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Handlers that log, count and fault at each of these places.
pub fn places(device: &Device) -> Result<String> {
    loopback()?;
    let map = device.map(MapSpec { kind: map_kind::HASH, key_bytes: 4, value_bytes: 8, entries: 8, reserved: 0 })?;
    let honest = Subject::new(device, &image("host.metered.handler")?)?;
    honest.handler.bind(0, &map)?;
    let faulty = Subject::new(device, &image("faults.metered.image")?)?;
    let (mut attached, mut fired, mut unknown) = (0, 0, Vec::new());
    let tracepoints = TRACEPOINTS.map(|name| (event::TRACEPOINT, name));
    let functions = FUNCTIONS.map(|name| (event::KPROBE, name));
    for (kind, name) in tracepoints.into_iter().chain(functions) {
        let count = honest.handler.attach(&attach(kind, name, "on_event"));
        let fault = faulty.handler.attach(&attach(kind, name, "fault_null"));
        let (Ok(count), Ok(fault)) = (count, fault) else {
            unknown.push(name);
            continue;
        };
        bustle().with_context(|| name)?;
        for (subject, number) in [(&honest, count), (&faulty, fault)] {
            let stats = subject.handler.event(number)?;
            ensure!(
                stats.fired >= stats.missed && stats.returned + stats.stopped + stats.missed <= stats.fired,
                "{name}: {stats:?}"
            );
            fired += stats.fired;
            subject.handler.detach(number)?;
        }
        attached += 1;
    }
    ensure!(attached >= 20 && fired > 1000, "{attached} places, {fired} calls; not known: {}", unknown.join(" "));
    Ok(format!("{attached} places, {fired} calls; not there: {}", unknown.join(" ")))
}

/// Events of every kind come and go in two threads while all of them fire.
pub fn come_and_go(device: &Device) -> Result<String> {
    const ROUNDS: usize = 10;
    loopback()?;
    let subjects = [subject(device)?, subject(device)?];
    let stop = AtomicBool::new(false);
    let kinds = || {
        [
            Attach { period_ns: 100_000, ..attach(event::TIMER, "", "on_event") },
            attach(event::KPROBE, "__x64_sys_getppid", "on_event"),
            Attach { offset: 5, ..attach(event::KPROBE, "__x64_sys_getppid", "on_event") },
            attach(event::TRACEPOINT, "sys_enter", "on_event"),
            attach(event::NETFILTER, "", "on_packet"),
            Attach { hook: 3, ..attach(event::NETFILTER, "", "on_packet") },
        ]
    };
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                knock(50);
                let _ = exchange(9994, 5);
            }
        });
        let work = |subject: &Subject| -> Result<usize> {
            let mut made = 0;
            for _ in 0..ROUNDS {
                let numbers: Vec<u32> = kinds().iter().filter_map(|kind| subject.handler.attach(kind).ok()).collect();
                made += numbers.len();
                for number in numbers {
                    subject.handler.detach(number)?;
                }
            }
            Ok(made)
        };
        let other = scope.spawn(move || work(&subjects[0]).and_then(|made| Ok(made + work(&subjects[1])?)));
        let third = subject(device).and_then(|subject| work(&subject));
        let both = other.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
        stop.store(true, Ordering::Relaxed);
        Ok::<_, anyhow::Error>(both? + third?)
    })?;
    ensure!(made >= 3 * ROUNDS * 5 && device.totals()?.handlers == 0, "{made} events, {:?}", device.totals()?);
    Ok(format!("{made} events"))
}

fn subject(device: &Device) -> Result<Subject> {
    Subject::new(device, &image("host.metered.handler")?)
}
