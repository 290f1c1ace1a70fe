//! Whole programs: compiled by `cordon cc`, run by `cordon run`, compared with the same program linked natively with the same C library.

mod attacks;
mod heavy;
mod jumps;
mod programs;
mod workouts;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Debian's musl.
const MUSL: &str = "/usr/lib/x86_64-linux-musl";
const HEADERS: &str = "/usr/include/x86_64-linux-musl";

/// A program of `fixtures/programs`.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/programs").join(name)
}

/// What a command that must succeed prints.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; scripts/setup installs what is needed"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A folder with programs in it.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn cordon(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cordon"));
        command.args(words).current_dir(self.0.path());
        command
    }

    /// Makes `NAME.img` from sources and further words of `cordon cc`.
    fn image(&self, name: &str, sources: &[&str], more: &[&str]) {
        let image = format!("{name}.img");
        said(self.cordon(&["cc", "-w", "-o", &image]).args(sources.iter().map(|s| source(s))).args(more));
    }

    /// The same natively: `NAME`.
    fn native(&self, name: &str, sources: &[&str], more: &[&str]) {
        let own = said(Command::new("gcc").arg("-print-file-name=include"));
        let library = said(Command::new("gcc").arg("-print-libgcc-file-name"));
        let mut command = Command::new("gcc");
        command.args(["-w", "-nostdinc", "-static", "-no-pie", "-nostdlib", "-isystem", HEADERS, "-isystem", &own, "-o", name]);
        command.arg(format!("{MUSL}/crt1.o")).args(sources.iter().map(|s| source(s))).args(more);
        said(command.args([&format!("{MUSL}/libc.a"), &library]).current_dir(self.0.path()));
    }
}

/// Runs `command` with `input` on its standard input.
fn feed(command: &mut Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    // A program need not read what it is given.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the command ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
