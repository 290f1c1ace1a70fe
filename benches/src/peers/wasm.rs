//! Fixtures as WebAssembly modules: one compiler call for each source file, as natively, and a linker that exports the entries.

use crate::rows::Program;
use anyhow::{Context as _, Result};
use cordon_fixtures::catalog::HEADERS;
use cordon_fixtures::compile::run_tool;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every module has besides its handlers: the heap, and the buffer that the host copies inputs into.
const SUPPORT: &str = r#"char __cordon_heap_start[64 << 20] __attribute__((aligned(4096)));
static char buffer[(1 << 20) + 4096] __attribute__((aligned(4096)));
__attribute__((export_name("cordon_buffer"))) char *cordon_buffer(void) { return buffer; }
"#;
/// WebAssembly's own stack, bytes.
const STACK: &str = "stack-size=1048576";
/// Features that all engines here have; without them, copies and conversions are slow everywhere.
const FLAGS: &[&str] = &["--target=wasm32", "-mbulk-memory", "-msign-ext", "-mnontrapping-fptoint", "-std=gnu11", "-O2"];

/// The module of a program with `padding` bytes of code (about) in front, in `folder`; made once.
///
/// # Errors
/// If clang-19 or its linker are missing or say no.
pub fn module(folder: &Path, program: &Program, padding: usize) -> Result<PathBuf> {
    let stem = format!("{}-{padding}", program.name);
    let path = folder.join(format!("{stem}.wasm"));
    if path.exists() {
        return Ok(path);
    }
    for (name, text) in HEADERS {
        std::fs::write(folder.join(name), text)?;
    }
    let compile = |part: &str, text: &str, flags: &[&str]| {
        let (source, object) = (folder.join(format!("{stem}-{part}.c")), folder.join(format!("{stem}-{part}.o")));
        std::fs::write(&source, text)?;
        let mut command = Command::new("clang-19");
        command
            .args(FLAGS)
            .args(["-fno-math-errno", "-ffp-contract=off"])
            .args(flags)
            .arg("-c")
            .arg(&source)
            .arg("-o")
            .arg(&object);
        run_tool(&mut command).with_context(|| format!("{}: to WebAssembly", program.name))?;
        Ok::<_, anyhow::Error>(object)
    };
    let mut objects = Vec::new();
    if padding > 0 {
        objects.push(compile("padding", &self::padding(padding), &[])?);
    }
    objects.push(compile("code", program.fixture.source, program.fixture.flags)?);
    objects.push(compile("support", SUPPORT, &[])?);
    let entries: BTreeSet<&str> = program.calls.iter().map(|call| call.entry).collect();
    let mut link = Command::new("wasm-ld-19");
    link.args(["--no-entry", "-z", STACK]).args(entries.iter().map(|name| format!("--export={name}")));
    run_tool(link.args(&objects).arg("-o").arg(&path))?;
    Ok(path)
}

/// A function that only moves the code behind it.
fn padding(bytes: usize) -> String {
    let steps = "x = x * 3 + 1;".repeat(bytes / 8);
    format!("__attribute__((export_name(\"cordon_padding\"))) int cordon_padding(int x) {{ {steps} return x; }}\n")
}
