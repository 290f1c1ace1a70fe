//! Handlers that events call: in softirqs, kprobes, tracepoints and for packets.

use super::{LONGEST_NS, Subject, image};
use anyhow::{Context as _, Result, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_image::Image;
use cordon_kernel::abi::{Attach, MapSpec, Run, Totals, event, kind, map_kind};
use cordon_kernel::{Device, Handler};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// With a limit that no handler reaches which ends, even where the machine's processors are busy with others.
pub fn attach(kind: u32, name: &str, entry: &str) -> Attach {
    Attach { time_limit_ns: LONGEST_NS, fuel: 1_000_000, ..Attach::new(kind, name, entry) }
}

/// Faults and endless loops of a timer every 2 ms.
pub fn timer(device: &Device) -> Result<String> {
    let faults = Subject::new(device, &image("faults.sandbox.image")?)?;
    let loops = Subject::new(device, &image("loops.sandbox.image")?)?;
    let every = |entry| Attach { period_ns: 2_000_000, time_limit_ns: 3_000_000, ..attach(event::TIMER, "", entry) };
    let fault = faults.handler.attach(&Attach { time_limit_ns: LONGEST_NS, ..every("fault_null") })?;
    let spin = loops.handler.attach(&Attach { period_ns: 20_000_000, ..every("spin_forever") })?;
    std::thread::sleep(Duration::from_millis(600));
    let (fault, spin) = (faults.handler.event(fault)?, loops.handler.event(spin)?);
    ensure!(fault.stopped >= 50 && fault.returned == 0 && fault.last.kind == kind::NULL_ZONE, "{fault:?}");
    ensure!(spin.stopped >= 5 && spin.returned == 0 && spin.last.kind == kind::TIME_LIMIT, "{spin:?}");
    ensure!(faults.handler.attach(&Attach { period_ns: 1, ..every("fault_null") }).is_err(), "a timer without pause");
    Ok(format!("{} faults, {} loops", fault.stopped, spin.stopped))
}

/// Calls a system call of its own, often.
pub fn knock(times: u32) {
    for _ in 0..times {
        // SAFETY: getppid takes nothing and changes nothing.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
}

/// Metered handlers in kprobes and tracepoints; others are refused there.
pub fn probes(device: &Device) -> Result<String> {
    const ROUNDS: u32 = 2000;
    let plain = Subject::new(device, &image("faults.sandbox.image")?)?;
    for refused in
        [attach(event::KPROBE, "__x64_sys_getppid", "fault_null"), attach(event::TRACEPOINT, "sys_enter", "fault_null")]
    {
        ensure!(plain.handler.attach(&refused).is_err(), "an image without fuel");
    }
    let subject = Subject::new(device, &image("faults.metered.image")?)?;
    for (entry, expected) in [("fault_null", kind::NULL_ZONE), ("fault_ud2", kind::TRAP), ("fault_div0", kind::DIVIDE)] {
        let probe = subject.handler.attach(&attach(event::KPROBE, "__x64_sys_getppid", entry))?;
        knock(ROUNDS);
        let stats = subject.handler.event(probe)?;
        subject.handler.detach(probe)?;
        ensure!(stats.fired >= ROUNDS.into() && stats.stopped == stats.fired - stats.missed, "{entry}: {stats:?}");
        ensure!(stats.missed == 0 && stats.last.kind == expected, "{entry}: {stats:?}");
        ensure!(subject.handler.event(probe).is_err(), "detached");
    }
    let loops = Subject::new(device, &image("loops.metered.image")?)?;
    let spin = loops.handler.attach(&Attach { fuel: 50_000, ..attach(event::KPROBE, "__x64_sys_getppid", "spin_forever") })?;
    knock(100);
    let stats = loops.handler.event(spin)?;
    ensure!(stats.stopped == 100 && stats.last.kind == kind::FUEL, "{stats:?}");
    // Without a limit of its own: the module's, by fuel or by time.
    let spin = loops.handler.attach(&Attach { fuel: 0, ..attach(event::KPROBE, "__x64_sys_getpgid", "spin_forever") })?;
    // SAFETY: getpgid of this process changes nothing.
    unsafe { libc::getpgid(0) };
    let stats = loops.handler.event(spin)?;
    ensure!(stats.stopped == 1 && matches!(stats.last.kind, kind::FUEL | kind::TIME_LIMIT), "{stats:?}");
    let traced = subject.handler.attach(&attach(event::TRACEPOINT, "sys_enter", "fault_null"))?;
    knock(ROUNDS);
    let traced = subject.handler.event(traced)?;
    ensure!(traced.stopped >= ROUNDS.into(), "{traced:?}");
    ensure!(
        subject.handler.attach(&attach(event::KPROBE, "no_such_function", "fault_null")).is_err(),
        "a function that is not there"
    );
    Ok(format!("{} probes, {} trace events", 3 * ROUNDS + 100, traced.stopped))
}

/// Brings the loopback interface up.
pub fn loopback() -> Result<()> {
    // SAFETY: a zeroed request is valid; the name fits and stays terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the kernel reads the request only.
    let failed = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS as _, &raw const request) };
    ensure!(failed == 0, "loopback: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Inserts the filter for a port; gives the offset of its counters as well.
pub fn filter(device: &Device, mode: &str, port: u16) -> Result<(Handler, u32)> {
    let file = image(&format!("port_filter.{mode}.handler"))?;
    let (handler, _) = device.insert(&file, 0)?;
    let image = Image::read(&file, &Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let heap = image.regions().find(|r| r.kind == RegionKind::Heap).context("a heap")?.start;
    handler.write(heap, &u64::from(port).to_le_bytes())?;
    Ok((handler, heap))
}

pub fn counter(handler: &Handler, heap: u32, index: u32) -> Result<u64> {
    let mut bytes = [0; 8];
    handler.read(heap + 8 * index, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Sends `times` packets to a port and counts those that arrive.
pub fn exchange(port: u16, times: u32) -> Result<u32> {
    let receiver = UdpSocket::bind(("127.0.0.1", port))?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    receiver.set_nonblocking(true)?;
    let mut arrived = 0;
    for _ in 0..times {
        sender.send_to(b"payload", ("127.0.0.1", port))?;
        // Over loopback a packet is there when the call returns, or is never there; a busy CPU may take a moment.
        for _ in 0..3 {
            if receiver.recv(&mut [0; 16]).is_ok() {
                arrived += 1;
                break;
            }
            std::thread::yield_now();
        }
    }
    Ok(arrived)
}

/// A filter by port, with counters that user space reads; then one that never answers, which lets pass and costs its time limit.
pub fn packets(device: &Device) -> Result<String> {
    loopback()?;
    ensure!(exchange(9998, 50)? == 50, "loopback loses packets without a filter");
    for mode in ["sandbox", "metered"] {
        let (handler, heap) = filter(device, mode, 9999)?;
        let event = handler.attach(&attach(event::NETFILTER, "", "port_filter"))?;
        let (free, dropped) = (exchange(9998, 100)?, exchange(9999, 100)?);
        ensure!((free, dropped) == (100, 0), "{mode}: {free} and {dropped} of 100 arrived");
        let stats = handler.event(event)?;
        ensure!(stats.fired == 200 && stats.returned == 200 && stats.zero == 100, "{mode}: {stats:?}");
        ensure!(counter(&handler, heap, 1)? == 200 && counter(&handler, heap, 2)? == 100, "{mode}: counters");
        handler.detach(event)?;
        ensure!(exchange(9999, 20)? == 20, "{mode}: the filter goes on after it was detached");
    }
    let (handler, _) = filter(device, "sandbox", 9999)?;
    let event = handler.attach(&Attach { time_limit_ns: 5_000_000, ..attach(event::NETFILTER, "", "port_spin") })?;
    exchange(9999, 10)?;
    let stats = handler.event(event)?;
    ensure!(stats.stopped == 10 && stats.last.kind == kind::TIME_LIMIT, "{stats:?}");
    Ok("by port in 2 modes, 10 that never answer".into())
}

/// Free memory, KiB, once what waits to be freed is.
fn free_memory() -> Result<u64> {
    std::thread::sleep(Duration::from_millis(200));
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|l| l.starts_with("MemFree:")).context("MemFree")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// One life of a filter while packets come: its map, its event, some packets, a call.
fn life(device: &Device, sent: &AtomicU64) -> Result<u64> {
    let (handler, _) = filter(device, "sandbox", 9999)?;
    let map = device.map(MapSpec { kind: map_kind::HASH, key_bytes: 4, value_bytes: 8, entries: 8, reserved: 0 })?;
    handler.bind(0, &map)?;
    let event = handler.attach(&attach(event::NETFILTER, "", "port_filter"))?;
    let seen = sent.load(Ordering::Relaxed);
    while sent.load(Ordering::Relaxed) < seen + 5 {
        std::thread::yield_now();
    }
    // A packet may be in the window.
    let _ = handler.run(&mut Run::new("port_filter", [0; 6]));
    Ok(handler.event(event)?.fired)
}

/// Inserts, attaches, runs and removes a filter again and again while packets come; `cordon_cycles=N` on the kernel's command line.
pub fn cycles_under_traffic(device: &Device) -> Result<String> {
    let cycles = std::env::var("cordon_cycles").ok().and_then(|n| n.parse().ok()).unwrap_or(200_u64);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    loopback()?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let (fired, before, after) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"payload", "127.0.0.1:9999");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let work = || -> Result<_> {
            // What is allocated once is not to count.
            let mut fired = (0..5).map(|_| life(device, &sent)).sum::<Result<u64>>()?;
            let before = (device.totals()?, free_memory()?);
            for _ in 0..cycles {
                fired += life(device, &sent)?;
            }
            Ok((fired, before, (device.totals()?, free_memory()?)))
        };
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    ensure!(fired >= cycles, "{fired} packets seen");
    let kept = |totals: &Totals| (totals.handlers, totals.arena_pages, totals.window_pages, totals.table_entries, totals.maps);
    ensure!(kept(&after.0) == kept(&before.0), "{:?}, before {:?}", after.0, before.0);
    // A window is more than 2 MiB; what the kernel's caches keep is less than one in a hundred rounds would lose.
    ensure!(after.1 + 8192 + 20 * cycles > before.1, "{} KiB free, before {}", after.1, before.1);
    let lost = before.1.cast_signed() - after.1.cast_signed();
    Ok(format!("{cycles} cycles, {fired} of {} packets seen, {lost} KiB less free", sent.into_inner()))
}
