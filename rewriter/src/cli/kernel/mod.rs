//! `cordon insert`, `list`, `stats` and `remove`: handlers in the running kernel, through the module's device.

pub mod insert;
pub mod list;
mod stop;

use super::outcome::{Exit, Failure, Problem};
use cordon_kernel::Device;
use cordon_kernel::abi::{EventStats, Stats, WRITABLE, event};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Where the module is.
#[derive(Clone, Debug, clap::Args)]
pub struct Node {
    /// The module's device
    #[arg(long, value_name = "PATH", default_value = "/dev/cordon")]
    pub device: PathBuf,
}

impl Node {
    /// Opens the device.
    fn open(&self) -> Result<Device, Failure> {
        Device::open(&self.device).map_err(|error| unopened(&self.device, &error))
    }
}

/// Whether the module is in this kernel.
fn is_loaded() -> bool {
    Path::new("/sys/module/cordon").exists()
        || std::fs::read_to_string("/proc/modules").is_ok_and(|text| text.lines().any(|line| line.starts_with("cordon ")))
}

fn unopened(path: &Path, error: &io::Error) -> Failure {
    let (code, message) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if is_loaded() => {
            ("no-device", "the module is loaded, but its device is not here: is devtmpfs mounted on /dev?".to_owned())
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ("no-module", "the module is not loaded: insmod cordon.ko (scripts/kernel build makes it)".to_owned())
        }
        io::ErrorKind::PermissionDenied => {
            ("not-permitted", "only root may open it (mode 0600), unless the administrator has changed that".to_owned())
        }
        _ => ("device", format!("cannot open the module's device: {error}")),
    };
    Failure::one(Exit::Usage, Problem::with_file(path, code, message))
}

/// A request that the module or the kernel refused, not for the image's sake.
fn refused(node: &Node, what: &str, error: &io::Error) -> Failure {
    let (code, why) = match error.kind() {
        io::ErrorKind::PermissionDenied => ("not-permitted", "this needs CAP_SYS_MODULE".to_owned()),
        _ if error.raw_os_error() == Some(NOT_AN_IOCTL) => {
            ("device", "this is not the device of this version's module".to_owned())
        }
        _ => ("device", error.to_string()),
    };
    Failure::one(Exit::Usage, Problem::with_file(&node.device, code, format!("cannot {what}: {why}")))
}

/// ENOTTY.
const NOT_AN_IOCTL: i32 = 25;

/// A handler of that number that the caller may see.
fn no_handler(node: &Node, id: u32, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!("no handler {id} (cordon list shows those that there are)");
        return Failure::one(Exit::Usage, Problem::with_file(&node.device, "no-handler", message).detail("id", id));
    }
    refused(node, &format!("open handler {id}"), error)
}

/// Counts of calls, for machines.
fn counts(stats: &Stats) -> Value {
    json!({
        "calls": stats.calls,
        "returned": stats.returned,
        "stopped": stats.stopped,
        "busy": stats.busy,
        "refused": stats.refused,
        "memory_bytes": stats.pages * 4096,
        "text_bytes": stats.text_bytes,
    })
}

/// Counts of an event in words. The zeros of packets are those that were dropped.
fn words(stats: &EventStats) -> String {
    let packets = matches!(stats.attach.kind, event::NETFILTER | event::NETFILTER6);
    let zero = if packets { "dropped" } else { "returned 0" };
    let mut text = format!("fired {}, returned {}, {zero} {}", stats.fired, stats.returned, stats.zero);
    if stats.attach.flags & WRITABLE != 0 {
        let _ = write!(text, ", changed {}, not for want of memory {}", stats.changed, stats.unchanged);
    }
    let _ = write!(text, ", stopped {}, missed {}", stats.stopped, stats.missed);
    text
}
