//! Events as people write them: `netfilter:pre_routing`, `netfilter6:local_in`, `tracepoint:sched:sched_switch`, `kprobe:vfs_read+0x10`, `timer:10ms`.

use crate::abi::{Attach, NAME_BYTES, event, text_of};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Names of `enum nf_inet_hooks`, by number.
const HOOKS: [&str; 5] = ["pre_routing", "local_in", "forward", "local_out", "post_routing"];

/// What calls an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// IPv4 packets at a netfilter hook (`enum nf_inet_hooks`) of this network namespace.
    Netfilter(u32),
    /// The same for IPv6.
    Netfilter6(u32),
    /// A function of the kernel, and how many bytes into it.
    Kprobe(String, u64),
    /// A tracepoint; names are unique in the kernel, so that the system is not asked for.
    Tracepoint(String),
    /// Every so often.
    Timer(Duration),
}

impl Event {
    /// What the module is asked for; limits of time and fuel are the module's.
    #[must_use]
    pub fn attach(&self, entry: &str) -> Attach {
        match self {
            Event::Netfilter(hook) => Attach { hook: *hook, ..Attach::new(event::NETFILTER, "", entry) },
            Event::Netfilter6(hook) => Attach { hook: *hook, ..Attach::new(event::NETFILTER6, "", entry) },
            Event::Kprobe(name, offset) => Attach { offset: *offset, ..Attach::new(event::KPROBE, name, entry) },
            Event::Tracepoint(name) => Attach::new(event::TRACEPOINT, name, entry),
            Event::Timer(period) => {
                let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
                Attach { period_ns, ..Attach::new(event::TIMER, "", entry) }
            }
        }
    }

    /// The same back; `None` for a kind that this program does not know.
    #[must_use]
    pub fn of(attach: &Attach) -> Option<Event> {
        Some(match attach.kind {
            event::NETFILTER => Event::Netfilter(attach.hook),
            event::NETFILTER6 => Event::Netfilter6(attach.hook),
            event::KPROBE => Event::Kprobe(text_of(&attach.name), attach.offset),
            event::TRACEPOINT => Event::Tracepoint(text_of(&attach.name)),
            event::TIMER => Event::Timer(Duration::from_nanos(attach.period_ns)),
            _ => return None,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Netfilter(hook) | Event::Netfilter6(hook) => {
                f.write_str(if matches!(self, Event::Netfilter(_)) { "netfilter:" } else { "netfilter6:" })?;
                match HOOKS.get(*hook as usize) {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{hook}"),
                }
            }
            Event::Kprobe(name, 0) => write!(f, "kprobe:{name}"),
            Event::Kprobe(name, offset) => write!(f, "kprobe:{name}+{offset:#x}"),
            Event::Tracepoint(name) => write!(f, "tracepoint:{name}"),
            Event::Timer(period) => match period.as_nanos() {
                ns if ns % 1_000_000_000 == 0 => write!(f, "timer:{}s", ns / 1_000_000_000),
                ns if ns % 1_000_000 == 0 => write!(f, "timer:{}ms", ns / 1_000_000),
                ns => write!(f, "timer:{}us", ns / 1000),
            },
        }
    }
}

/// A name that the kernel may know: letters, digits, `_`, `.`, short enough for the module.
fn name(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    if plain && text.len() < NAME_BYTES {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no name of a function or tracepoint"))
    }
}

/// A number of bytes, with 0x in base 16.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no number of bytes"))
}

fn period(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a period such as 250us, 10ms or 1s".to_owned();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "us" => 1000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    // The module's bounds: 100 us, and 63 bits of nanoseconds.
    let ns = number.checked_mul(unit).filter(|ns| (100_000..1 << 63).contains(ns));
    ns.map(Duration::from_nanos).ok_or_else(|| "a period is at least 100us".to_owned())
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Event, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "netfilter" | "netfilter6" => {
                let event = if kind == "netfilter" { Event::Netfilter } else { Event::Netfilter6 };
                let hook = HOOKS.iter().position(|hook| *hook == rest);
                let hook = hook.and_then(|at| u32::try_from(at).ok());
                hook.map(event).ok_or_else(|| format!("expected a hook: {}", HOOKS.join(", ")))
            }
            "kprobe" => {
                let (function, offset) = rest.split_once('+').unwrap_or((rest, "0"));
                Ok(Event::Kprobe(name(function)?, number(offset)?))
            }
            "tracepoint" => {
                let (system, rest) = rest.rsplit_once(':').unwrap_or(("", rest));
                if system == "syscalls" {
                    return Err(
                        "syscalls have two tracepoints for all of them: raw_syscalls:sys_enter and raw_syscalls:sys_exit".into(),
                    );
                }
                name(rest).map(Event::Tracepoint)
            }
            "timer" => period(rest).map(Event::Timer),
            _ => {
                Err("expected netfilter:HOOK, netfilter6:HOOK, kprobe:FUNCTION[+OFFSET], tracepoint:SYSTEM:NAME or timer:PERIOD"
                    .into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Event;
    use std::time::Duration;

    #[test]
    fn events_come_back_from_what_the_module_is_told() {
        for (text, expected) in [
            ("netfilter:pre_routing", Event::Netfilter(0)),
            ("netfilter:post_routing", Event::Netfilter(4)),
            ("netfilter6:local_in", Event::Netfilter6(1)),
            ("kprobe:__x64_sys_getppid", Event::Kprobe("__x64_sys_getppid".into(), 0)),
            ("kprobe:vfs_read+0x10", Event::Kprobe("vfs_read".into(), 16)),
            ("kprobe:vfs_read+7", Event::Kprobe("vfs_read".into(), 7)),
            ("tracepoint:raw_syscalls:sys_enter", Event::Tracepoint("sys_enter".into())),
            ("tracepoint:sched_switch", Event::Tracepoint("sched_switch".into())),
            ("timer:250us", Event::Timer(Duration::from_micros(250))),
            ("timer:10ms", Event::Timer(Duration::from_millis(10))),
            ("timer:2s", Event::Timer(Duration::from_secs(2))),
        ] {
            let event: Event = text.parse().expect("an event");
            assert_eq!(event, expected);
            let told = Event::of(&event.attach("entry")).expect("a known kind");
            assert_eq!(told, event);
            assert_eq!(told.to_string().parse(), Ok(event));
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for wrong in [
            "",
            "netfilter",
            "netfilter:",
            "netfilter:nowhere",
            "kprobe",
            "kprobe:",
            "kprobe:a b",
            "kprobe:a+",
            "kprobe:a+4+4",
            "kprobe:a+x",
            "kprobe:a+-4",
            "netfilter6:ingress",
            "tracepoint:",
            "tracepoint:sched:",
            "tracepoint:syscalls:sys_enter_openat",
            "timer:",
            "timer:5",
            "timer:0ms",
            "timer:99us",
            "timer:99999999999999999999s",
            "timer:9999999999999s",
            "timer:-1s",
            "signal:1",
        ] {
            assert!(wrong.parse::<Event>().is_err(), "{wrong:?}");
        }
        assert!(format!("kprobe:{}", "f".repeat(200)).parse::<Event>().is_err());
    }
}
