//! Handlers that events call: in softirqs, kprobes, tracepoints and for packets.

use super::{Subject, image};
use anyhow::{Context as _, Result, ensure};
use cordon_checker::Policy;
use cordon_checker::layout::RegionKind;
use cordon_image::Image;
use cordon_kernel::abi::{Attach, event, kind};
use cordon_kernel::{Device, Handler};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub fn attach(kind: u32, name: &str, entry: &str) -> Attach {
    Attach { time_limit_ns: 5_000_000, fuel: 1_000_000, ..Attach::new(kind, name, entry) }
}

/// Faults and endless loops of a timer every 2 ms.
pub fn timer(device: &Device) -> Result<String> {
    let faults = Subject::new(device, &image("faults.sandbox.image")?)?;
    let loops = Subject::new(device, &image("loops.sandbox.image")?)?;
    let every = |entry| Attach { period_ns: 2_000_000, time_limit_ns: 3_000_000, ..attach(event::TIMER, "", entry) };
    let fault = faults.handler.attach(&every("fault_null"))?;
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
    let event = handler.attach(&attach(event::NETFILTER, "", "port_spin"))?;
    exchange(9999, 10)?;
    let stats = handler.event(event)?;
    ensure!(stats.stopped == 10 && stats.last.kind == kind::TIME_LIMIT, "{stats:?}");
    Ok("by port in 2 modes, 10 that never answer".into())
}

/// Inserts, attaches and removes a filter again and again while packets come.
pub fn cycles_under_traffic(device: &Device) -> Result<String> {
    const CYCLES: u32 = 200;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = device.totals()?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let fired = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"payload", "127.0.0.1:9999");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let cycles = || -> Result<u64> {
            let mut fired = 0;
            for _ in 0..CYCLES {
                let (handler, _) = filter(device, "sandbox", 9999)?;
                let event = handler.attach(&attach(event::NETFILTER, "", "port_filter"))?;
                let seen = sent.load(Ordering::Relaxed);
                while sent.load(Ordering::Relaxed) < seen + 5 {
                    std::thread::yield_now();
                }
                fired += handler.event(event)?.fired;
            }
            Ok(fired)
        };
        let fired = cycles();
        stop.store(true, Ordering::Relaxed);
        fired
    })?;
    let after = device.totals()?;
    ensure!(fired >= u64::from(CYCLES), "{fired} packets seen");
    ensure!(
        (after.handlers, after.arena_pages, after.window_pages) == (before.handlers, before.arena_pages, before.window_pages),
        "{after:?}"
    );
    Ok(format!("{CYCLES} cycles, {fired} of {} packets seen", sent.into_inner()))
}
