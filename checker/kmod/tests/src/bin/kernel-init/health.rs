//! Whether the kernel is well: its log, and where it has one its leak detector.

use super::mount;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The kernel's whole log.
pub fn log() -> String {
    let mut bytes = vec![0_u8; 1 << 20];
    // SAFETY: the buffer has that many bytes. 3 = SYSLOG_ACTION_READ_ALL.
    let length = unsafe { libc::klogctl(3, bytes.as_mut_ptr().cast(), bytes.len() as i32) };
    String::from_utf8_lossy(&bytes[..usize::try_from(length).unwrap_or(0)]).into_owned()
}

/// Nothing in the log is a complaint.
pub fn log_is_clean() -> Result<String> {
    const BAD: &[&str] = &[
        "BUG",
        "WARNING",
        "Oops",
        "Call Trace",
        "general protection",
        "lockup",
        "stall",
        "Poison overwritten",
        "bad pte",
        "Redzone",
        "KFENCE",
    ];
    let log = log();
    ensure!(!log.is_empty(), "no log");
    let bad: Vec<&str> = log.lines().filter(|line| BAD.iter().any(|word| line.contains(word))).collect();
    ensure!(bad.is_empty(), "{}", bad.join("\n    "));
    Ok(format!("{} lines", log.lines().count()))
}

/// kmemleak, forgetting what it suspected before the module came.
pub struct Leaks(());

impl Leaks {
    const FILE: &str = "/sys/kernel/debug/kmemleak";

    /// None where the kernel has none.
    pub fn new() -> Option<Leaks> {
        mount("debugfs", "/sys/kernel/debug").ok().filter(|()| Path::new(Leaks::FILE).exists())?;
        fs::write(Leaks::FILE, "scan").and_then(|()| fs::write(Leaks::FILE, "clear")).ok()?;
        Some(Leaks(()))
    }

    /// Nothing that nobody knows any more. It suspects what is five seconds old, and a second look rules out what was in motion.
    pub fn unreferenced(&self) -> Result<String> {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_secs(6));
            fs::write(Leaks::FILE, "scan").context("kmemleak")?;
        }
        let found = fs::read_to_string(Leaks::FILE)?;
        let count = found.matches("unreferenced object").count();
        ensure!(count == 0, "{count} objects: {}", found.lines().take(40).collect::<Vec<_>>().join("\n    "));
        Ok("twice".into())
    }
}
