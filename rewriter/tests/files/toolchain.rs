//! Runs the C toolchain on small sources for the tests.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The object that `compiler` makes of `source` in `language` (`c`, `c++`, `assembler`).
pub fn compile_with(compiler: &str, language: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    let folder = TempDir::new().expect("a temporary folder");
    let mut child = Command::new(compiler)
        .args(flags)
        .args(["-x", language, "-c", "-", "-o", "out.o"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    child.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("the source is read");
    assert!(child.wait().expect("the compiler ends").success(), "{compiler} failed on {source}");
    std::fs::read(folder.path().join("out.o")).expect("an object")
}

/// A C object.
pub fn c(source: &str, flags: &[&str]) -> Vec<u8> {
    compile_with("gcc", "c", source, flags)
}

/// An object assembled by GNU as.
pub fn assembly(source: &str) -> Vec<u8> {
    compile_with("gcc", "assembler", source, &[])
}

/// An archive with the given members, made by `ar`.
pub fn archive(mode: &str, members: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, bytes) in members {
        std::fs::write(folder.path().join(name), bytes).expect("the member is written");
    }
    let names = members.iter().map(|(name, _)| *name);
    let status = Command::new("ar").arg(mode).arg("out.a").args(names).current_dir(folder.path()).status();
    assert!(status.expect("ar runs").success());
    std::fs::read(folder.path().join("out.a")).expect("an archive")
}

/// What the tool `program` prints about `file`, both streams.
pub fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
