//! The `cordon` command from outside: exit codes, messages, files, text and JSON.

mod cc;
mod check;
mod demo;
mod gdb;
mod inspect;
mod kernel;
mod output;
mod readme;
mod rewrite;
mod run;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A folder to compile and run in.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().expect("temporary folder"))
    }

    fn folder(&self) -> &Path {
        self.0.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("readable")
    }

    fn cordon(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cordon"));
        command.args(args).current_dir(self.folder()).output().expect("cordon starts")
    }

    /// Runs `cordon` by the shell, which finds it as `$cordon`.
    fn shell(&self, line: &str) -> Output {
        let mut command = Command::new("bash");
        command.args(["-c", line]).env("cordon", env!("CARGO_BIN_EXE_cordon")).current_dir(self.folder());
        command.stdin(Stdio::null()).output().expect("bash starts")
    }

    /// Compiles `NAME.o` from C text.
    fn object(&self, name: &str, source: &str) {
        self.write(&format!("{name}.c"), source);
        let output = Command::new("gcc").args(["-O2", "-c", &format!("{name}.c")]).current_dir(self.folder()).output();
        let output = output.expect("gcc is installed: run scripts/setup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Compiles and rewrites `NAME.cordon` from C text.
    fn image(&self, name: &str, source: &str) {
        self.object(name, source);
        let output = self.cordon(&["rewrite", &format!("{name}.o"), "-o", &format!("{name}.cordon")]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one JSON object on standard output; nothing may be on standard error.
fn json(output: &Output) -> Value {
    assert_eq!(stderr(output), "");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stdout(output)))
}
