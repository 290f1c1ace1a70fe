//! Packets that handlers change, over IPv4 and IPv6: what arrives, with which checksums, and that no change harms the kernel.

use super::{LONGEST_NS, Subject, image};
use crate::events::{attach, loopback};
use anyhow::{Context as _, Result, bail, ensure};
use cordon_checker::layout::RegionKind;
use cordon_image::Image;
use cordon_kernel::Device;
use cordon_kernel::abi::{Attach, WRITABLE, event, kind};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// The handler's FROM, TO and BLOCKED.
const FROM: u16 = 9990;
const TO: u16 = 9991;
const BLOCKED: u16 = 9992;
const EPERM: i64 = -1;
const EROFS: i64 = -30;
const ERANGE: i64 = -34;

/// An event for packets of one family that lasts as long as the subject.
fn packets(family: u32, hook: u32, entry: &str, flags: u32) -> Attach {
    Attach { hook, flags, time_limit_ns: LONGEST_NS, ..attach(family, "", entry) }
}

fn subject(device: &Device) -> Result<Subject> {
    Subject::new(device, &image("packets.sandbox.handler")?)
}

fn words(subject: &Subject, count: usize) -> Result<Vec<i64>> {
    let file = image("packets.sandbox.handler")?;
    let image = Image::read(&file, &cordon_checker::Policy::KERNEL).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let heap = image.regions().find(|r| r.kind == RegionKind::Heap).context("a heap")?.start;
    let mut bytes = vec![0; 8 * count];
    subject.handler.read(heap, &mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|b| b.first_chunk().map_or(0, |b| i64::from_le_bytes(*b))).collect())
}

/// The ones' complement sum of RFC 1071 over parts that follow each other, each but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A UDP packet with its network header and the right checksums, which the kernel has not marked as its own.
fn udp_packet(v6: bool, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let (local4, local6) = (Ipv4Addr::LOCALHOST.octets(), Ipv6Addr::LOCALHOST.octets());
    let local = if v6 { &local6[..] } else { &local4[..] };
    let mut udp = [9_u16.to_be_bytes(), FROM.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    udp.extend(payload);
    let sum = checksum(&[local, local, &[0, 17], &length.to_be_bytes(), &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut header = if v6 {
        [&[0x60, 0, 0, 0], &length.to_be_bytes()[..], &[17, 64]].concat()
    } else {
        [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 1, 0, 0, 64, 17, 0, 0]].concat()
    };
    header.extend([local, local].concat());
    if !v6 {
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [header, udp].concat()
}

/// Sends whole packets to this machine.
struct Raw(OwnedFd, bool);

impl Raw {
    fn new(v6: bool) -> Result<Raw> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: opens a descriptor, which is owned here.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW) };
        ensure!(fd >= 0, "raw socket: {}", std::io::Error::last_os_error());
        // SAFETY: it is open and nobody else's.
        Ok(Raw(unsafe { OwnedFd::from_raw_fd(fd) }, v6))
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        // SAFETY: zeroed addresses are valid; each is passed with its size.
        let sent = unsafe {
            let (fd, data, length) = (self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len());
            if self.1 {
                let mut to: libc::sockaddr_in6 = std::mem::zeroed();
                (to.sin6_family, to.sin6_addr.s6_addr) = (libc::AF_INET6 as u16, Ipv6Addr::LOCALHOST.octets());
                libc::sendto(fd, data, length, 0, (&raw const to).cast(), size_of_val(&to) as u32)
            } else {
                let mut to: libc::sockaddr_in = std::mem::zeroed();
                (to.sin_family, to.sin_addr.s_addr) = (libc::AF_INET as u16, u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()));
                libc::sendto(fd, data, length, 0, (&raw const to).cast(), size_of_val(&to) as u32)
            }
        };
        ensure!(sent == packet.len() as isize, "sendto: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

fn local(v6: bool, port: u16) -> SocketAddr {
    if v6 { (Ipv6Addr::LOCALHOST, port).into() } else { (Ipv4Addr::LOCALHOST, port).into() }
}

fn receiver(v6: bool, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(local(v6, port))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

const TEXTS: [(&[u8], &[u8]); 4] =
    [(b"some words", b"SOME WORDS"), (b"odd", b"ODD"), (b"x", b"X"), (b"\0\0\0none of it\xff", b"\0\0\0NONE OF IT\xff")];

/// Packets whose checksums the receiver verifies, changed by copy and by stores.
fn verified(subject: &Subject, v6: bool) -> Result<()> {
    let (raw, to) = (Raw::new(v6)?, receiver(v6, TO)?);
    let family = if v6 { event::NETFILTER6 } else { event::NETFILTER };
    for entry in ["upper", "stores"] {
        // 0: before routing, 1: on the way in.
        for hook in [0, 1] {
            let event = subject.handler.attach(&packets(family, hook, entry, WRITABLE))?;
            for (sent, expected) in TEXTS {
                raw.send(&udp_packet(v6, sent))?;
                let mut bytes = [0; 64];
                let (length, from) = to.recv_from(&mut bytes).with_context(|| format!("{entry} v6 {v6} hook {hook}"))?;
                ensure!(&bytes[..length] == expected, "{entry}: {:?}", &bytes[..length]);
                let changed = !v6 && entry == "upper";
                ensure!(from.ip() == if changed { "127.0.0.77".parse()? } else { local(v6, 9).ip() }, "from {from}");
            }
            let stats = subject.handler.event(event)?;
            subject.handler.detach(event)?;
            ensure!((stats.returned, stats.changed, stats.unchanged) == (4, 4, 0), "{entry} v6 {v6}: {stats:?}");
        }
    }
    let stores = words(subject, 11)?;
    let wanted = [0, EPERM, EPERM, EPERM, EPERM, EPERM, EPERM, ERANGE, ERANGE, ERANGE, ERANGE];
    ensure!(stores == wanted, "stores gave {stores:?}");
    Ok(())
}

/// What is changed arrives so, with the right checksums; without the flag nothing is changed.
pub fn rewritten(device: &Device) -> Result<String> {
    loopback()?;
    for v6 in [false, true] {
        let subject = subject(device)?;
        verified(&subject, v6)?;
        // Without leave the packet stays what it is.
        let from = receiver(v6, FROM)?;
        let family = if v6 { event::NETFILTER6 } else { event::NETFILTER };
        for entry in ["upper", "stores"] {
            let event = subject.handler.attach(&packets(family, 0, entry, 0))?;
            Raw::new(v6)?.send(&udp_packet(v6, b"as it was"))?;
            let mut bytes = [0; 64];
            let length = from.recv(&mut bytes)?;
            ensure!(&bytes[..length] == b"as it was", "{entry}: {:?}", &bytes[..length]);
            subject.handler.detach(event)?;
        }
        let last = words(&subject, 2)?;
        ensure!(last[1] == EROFS, "a store without leave gave {last:?}");
        let event = subject.handler.attach(&packets(family, 0, "store_outside", WRITABLE))?;
        Raw::new(v6)?.send(&udp_packet(v6, b"as it was"))?;
        let stats = subject.handler.event(event)?;
        ensure!(stats.last.kind == kind::NULL_ZONE && stats.changed == 0, "{stats:?}");
    }
    refused(device)?;
    Ok("32 packets each with IPv4 and IPv6".into())
}

/// Options that mean nothing for an event.
fn refused(device: &Device) -> Result<()> {
    let subject = subject(device)?;
    for (bad, what) in [
        (packets(event::NETFILTER, 0, "upper", 2), "an unknown flag"),
        (packets(event::NETFILTER, 5, "upper", 0), "ingress"),
        (packets(event::NETFILTER6, u32::MAX, "upper", 0), "no hook"),
        (Attach { offset: 1, ..packets(event::NETFILTER, 0, "upper", 0) }, "an offset"),
        (Attach { period_ns: 1_000_000, ..packets(event::TIMER, 0, "upper", WRITABLE) }, "a timer with packets"),
        (Attach { bytes: 1, period_ns: 1_000_000, ..packets(event::TIMER, 0, "upper", 0) }, "a timer with bytes"),
        (packets(99, 0, "upper", 0), "an unknown kind"),
    ] {
        ensure!(subject.handler.attach(&bad).is_err(), "{what}");
    }
    Ok(())
}

/// Sends `sent` over a new connection that echoes; what comes back.
fn echo(v6: bool, port: u16, sent: &[u8]) -> Result<Vec<u8>> {
    let listener = TcpListener::bind(local(v6, port))?;
    let mut client = TcpStream::connect_timeout(&local(v6, port), Duration::from_secs(5))?;
    let (mut server, _) = listener.accept()?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut bytes = [0; 8192];
            while let Ok(length @ 1..) = server.read(&mut bytes) {
                let _ = server.write_all(&bytes[..length]);
            }
        });
        let mut sender = client.try_clone()?;
        let sending = scope.spawn(move || sender.write_all(sent).and_then(|()| sender.shutdown(Shutdown::Write)));
        let mut back = Vec::new();
        client.read_to_end(&mut back)?;
        match sending.join() {
            Ok(done) => done.map(|()| back).context("sending"),
            Err(_) => bail!("the sender panicked"),
        }
    })
}

/// TCP over loopback through a filter by port and through one that changes what is sent.
pub fn tcp(device: &Device) -> Result<String> {
    loopback()?;
    let long: Vec<u8> = (0..256 << 10).map(|i: u32| b'a' + (i % 23) as u8).collect();
    for v6 in [false, true] {
        let family = if v6 { event::NETFILTER6 } else { event::NETFILTER };
        let filter = subject(device)?;
        let event = filter.handler.attach(&packets(family, 0, "tcp_filter", 0))?;
        let listener = TcpListener::bind(local(v6, BLOCKED))?;
        ensure!(TcpStream::connect_timeout(&local(v6, BLOCKED), Duration::from_millis(300)).is_err(), "a blocked port answers");
        drop(listener);
        ensure!(echo(v6, 9993, &long)? == long, "v6 {v6}: what was sent does not come back");
        let (seen, stats) = (words(&filter, 2)?, filter.handler.event(event)?);
        ensure!(seen[1] >= 1 && seen[0] > seen[1] && stats.stopped == 0, "{seen:?}, {stats:?}");
        filter.handler.detach(event)?;
        // On the way out packets are large and in pieces, and their checksums are still to come.
        for hook in [0, 3] {
            let subject = subject(device)?;
            let event = subject.handler.attach(&packets(family, hook, "upper", WRITABLE))?;
            let back = echo(v6, FROM, &long)?;
            let stats = subject.handler.event(event)?;
            // Packets on two CPUs at once find the window taken, and pass as they are; so do large ones when memory is in pieces.
            let all = stats.missed + stats.unchanged > 0 || back == long.to_ascii_uppercase();
            ensure!(all && back.eq_ignore_ascii_case(&long), "v6 {v6}: {} bytes came back, {stats:?}", back.len());
            ensure!(stats.stopped == 0 && stats.changed > 0, "{stats:?}");
        }
    }
    Ok("4 times 256 KiB, 2 blocked ports".into())
}

/// Handlers that destroy every packet of every hook, as far as they are let.
pub fn destroyed(device: &Device) -> Result<String> {
    loopback()?;
    let mut changed = 0;
    for entry in ["ones", "noise"] {
        for family in [event::NETFILTER, event::NETFILTER6] {
            let v6 = family == event::NETFILTER6;
            for hook in [0, 1, 3, 4] {
                let subject = subject(device)?;
                let event = subject.handler.attach(&packets(family, hook, entry, WRITABLE))?;
                let (raw, udp) = (Raw::new(v6)?, UdpSocket::bind(local(v6, 0))?);
                for round in 0..40_usize {
                    let payload = vec![b'a'; 1 + 37 * round];
                    // Both may be told that the packet is not what was to be sent.
                    let _ = raw.send(&udp_packet(v6, &payload));
                    let _ = udp.send_to(&payload, local(v6, FROM));
                }
                let listener = TcpListener::bind(local(v6, 9989))?;
                for _ in 0..3 {
                    let Ok(mut stream) = TcpStream::connect_timeout(&local(v6, 9989), Duration::from_millis(50)) else {
                        continue;
                    };
                    let _ = stream.set_write_timeout(Some(Duration::from_millis(50)));
                    let _ = stream.write_all(&[b'a'; 20_000]);
                }
                drop(listener);
                let stats = subject.handler.event(event)?;
                ensure!(stats.stopped == 0 && stats.fired > 40, "{entry} v6 {v6} hook {hook}: {stats:?}");
                changed += stats.changed;
            }
        }
    }
    ensure!(changed > 500, "only {changed} packets were changed");
    Ok(format!("{changed} packets"))
}
