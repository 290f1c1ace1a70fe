//! wasmtime: Cranelift, compiled ahead of time. Its runner is a crate of its own, because it takes minutes to build; where it was not built, the
//! columns are empty.

use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::compile::run_tool;
use cordon_fixtures::native::NativeRunner;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the runner's executable.
const VARIABLE: &str = "CORDON_WASMTIME";

/// What stops a module that runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Nothing.
    None,
    /// A counter in memory, which another thread raises: tested at function entries and loop heads.
    Epoch,
    /// A count of instructions.
    Fuel,
}

impl Limit {
    /// As the runner wants it.
    pub const fn word(self) -> &'static str {
        match self {
            Limit::None => "none",
            Limit::Epoch => "epoch",
            Limit::Fuel => "fuel",
        }
    }
}

/// The runner that `scripts/bench` has built, if it has.
///
/// # Errors
/// If the variable names no file.
pub fn executable() -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return Ok(None) };
    ensure!(path.is_file(), "{VARIABLE}={}: there is no such file", path.display());
    Ok(Some(path))
}

/// Compiles the module ahead of time, and makes a runner of it.
///
/// # Errors
/// If wasmtime refuses the module.
pub fn runner(executable: &Path, module: &Path, limit: Limit) -> Result<NativeRunner> {
    let compiled = module.with_extension(format!("{}.cwasm", limit.word()));
    let mut command = Command::new(executable);
    run_tool(command.args(["compile", limit.word()]).arg(module).arg(&compiled)).with_context(|| module.display().to_string())?;
    let runner = NativeRunner::program(executable.into());
    Ok(runner.setting("CORDON_WASMTIME_MODULE", compiled).setting("CORDON_WASMTIME_LIMIT", limit.word()))
}
