//! What Cordon is measured beside: one module for each system that runs the same handlers.

pub mod bpf;
pub mod rbpf;
pub mod sbpf;
pub mod wasm;
pub mod wasm2c;
pub mod wasmi;
pub mod wasmtime;

use anyhow::{Result, ensure};
use cordon_fixtures::native::NativeRunner;
use cordon_fixtures::script::{Call, Outcome};
use cordon_fixtures::window::WindowRunner;
use cordon_loader::Image;
use std::sync::Arc;

/// Something that runs scripts. State lasts from call to call and from pass to pass, but every run starts from fresh state.
pub trait Runner {
    /// What each call does.
    ///
    /// # Errors
    /// If a call does not return.
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>>;

    /// Nanoseconds of each of `passes` passes over the script, payload copies included.
    ///
    /// # Errors
    /// If a call does not return.
    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>>;
}

impl Runner for NativeRunner {
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>> {
        NativeRunner::run(self, calls)
    }

    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>> {
        let times = NativeRunner::time(self, calls, passes)?;
        ensure!(times.len() == passes as usize, "{} times of {passes} passes", times.len());
        Ok(times)
    }
}

/// A window of an image.
pub struct Windowed {
    pub image: Arc<Image>,
    pub fast: bool,
}

impl Runner for Windowed {
    fn run(&mut self, calls: &[Call]) -> Result<Vec<Outcome>> {
        WindowRunner::new(&self.image, self.fast)?.run(calls)
    }

    fn time(&mut self, calls: &[Call], passes: u32) -> Result<Vec<u64>> {
        WindowRunner::new(&self.image, self.fast)?.time(calls, passes)
    }
}

/// Processor time of this thread, nanoseconds: other programs on the machine do not count.
pub fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
