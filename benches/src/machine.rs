//! What the numbers were made on.

use anyhow::Result;
use cordon_fixtures::compile::run_tool;
use serde::{Deserialize, Serialize};
use std::process::Command;

/// The machine, the tools and how busy it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub kernel: String,
    pub hypervisor: bool,
    /// Of the kernel's frequency governor, where the machine shows one.
    pub governor: Option<String>,
    /// Processes that wanted to run in the last minute, at start and end.
    pub load: [f64; 2],
    pub memory_mib: u64,
    /// Names and versions.
    pub tools: Vec<String>,
    /// The commit that was measured, `+` behind it if files were changed.
    pub commit: String,
}

impl Machine {
    /// This machine, now.
    ///
    /// # Errors
    /// If a compiler is missing.
    pub fn this() -> Result<Machine> {
        let info = read("/proc/cpuinfo");
        let memory = read("/proc/meminfo");
        let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Ok(Machine {
            processor: processor(&info),
            processors: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            hypervisor: info.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|f| f == "hypervisor")),
            governor: Some(governor.trim().to_owned()).filter(|g| !g.is_empty()),
            load: [load(), 0.0],
            memory_mib: kib.unwrap_or(0) / 1024,
            tools: tools()?,
            commit: commit(),
        })
    }

    /// Notes the load at the end.
    pub fn finish(&mut self) {
        self.load[1] = load();
    }

    /// In one line, for people.
    pub fn line(&self) -> String {
        let guest = if self.hypervisor { ", a virtual machine" } else { "" };
        format!("{}, {} processors{guest}, Linux {}", self.processor, self.processors, self.kernel)
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn load() -> f64 {
    read("/proc/loadavg").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// gcc with its version.
///
/// # Errors
/// If it is missing.
pub fn gcc() -> Result<String> {
    let answer = run_tool(Command::new("gcc").arg("-dumpfullversion"))?;
    Ok(format!("gcc {}", String::from_utf8_lossy(&answer).trim()))
}

fn tools() -> Result<Vec<String>> {
    let first = |command: &mut Command| {
        Ok::<_, anyhow::Error>(String::from_utf8_lossy(&run_tool(command)?).lines().next().unwrap_or("").to_owned())
    };
    let mut tools =
        vec![gcc()?, first(Command::new("clang-19").arg("--version"))?, first(Command::new("rustc").arg("--version"))?];
    tools.push(format!("wasm2c {}", first(Command::new("wasm2c").arg("--version"))?));
    // Locked versions of the peers that are crates.
    let locks = [include_str!("../../Cargo.lock"), include_str!("../wasmtime/Cargo.lock")];
    for name in ["wasmtime", "wasmi", "rbpf", "solana-sbpf"] {
        let head = format!("name = \"{name}\"\nversion = \"");
        let version = locks.iter().find_map(|lock| lock.split_once(&head)?.1.split('"').next());
        tools.extend(version.map(|version| format!("{name} {version}")));
    }
    Ok(tools)
}

fn commit() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|answer| !answer.is_empty());
    git(&["rev-parse", "--short=12", "HEAD"]).map_or_else(|| "unknown".into(), |head| head + if changed { "+" } else { "" })
}

/// The processor's name, as the kernel tells it.
fn processor(info: &str) -> String {
    let line = info.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map_or("unknown processor", |(_, name)| name.trim());
    let number = |key: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        line.split_once(':').map(|(_, n)| n.trim().to_owned())
    };
    match (number("cpu family"), number("model")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::processor;

    #[test]
    fn a_processor_is_named_with_family_and_model() {
        let info = "vendor_id\t: X\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: X 7\n";
        assert_eq!(processor(info), "X 7 (family 25, model 1)");
        assert_eq!(processor(""), "unknown processor");
    }
}
