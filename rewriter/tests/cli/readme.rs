//! The README's first handler works as written: its file, its commands, its result.

use crate::Desk;
use std::path::Path;
use std::process::{Command, Output};

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    std::fs::read_to_string(path).expect("the README is there")
}

/// The fenced block behind `<!-- quickstart: name -->`.
fn block(text: &str, name: &str) -> String {
    let marker = format!("<!-- quickstart: {name} -->\n```");
    let (_, rest) = text.split_once(&marker).unwrap_or_else(|| panic!("the README has {marker}"));
    let (_, rest) = rest.split_once('\n').expect("the fence ends its line");
    rest.split_once("```").expect("the block is closed").0.to_owned()
}

/// Runs shell commands with `cordon` in the path, stopping at the first failure.
fn shell(commands: &str, folder: &Path) -> Output {
    let cordon = Path::new(env!("CARGO_BIN_EXE_cordon")).parent().expect("a folder");
    let path = format!("{}:{}", cordon.display(), std::env::var("PATH").unwrap_or_default());
    Command::new("bash").args(["-ec", commands]).env("PATH", path).current_dir(folder).output().expect("bash starts")
}

#[test]
fn the_first_handler_of_the_readme_works() {
    let (text, desk) = (readme(), Desk::new());
    desk.write("count.c", block(&text, "count.c"));
    let commands = block(&text, "commands");
    assert!(commands.lines().count() >= 4, "{commands}");
    let output = shell(&commands, desk.folder());
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    let result = shown.lines().find(|l| l.starts_with("result = ")).expect("run prints its result");
    assert!(text.contains(&format!("`{result}`")), "the README does not say {result}");

    let output = shell(&block(&text, "stopped"), desk.folder());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(["handler", "null pointer", "count.o"].iter().all(|part| report.contains(part)), "{report}");
}

#[test]
fn the_first_handler_in_rust_of_the_readme_works() {
    let (text, desk) = (readme(), Desk::new());
    let source = block(&text, "lines.rs");
    desk.write("lines.rs", &source);
    let output = shell(&block(&text, "rust"), desk.folder());
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains(&format!("result = {}\n", source.lines().count())), "{shown}");
}

#[test]
fn the_first_kernel_handler_of_the_readme_is_accepted() {
    let (text, desk) = (readme(), Desk::new());
    desk.write("udp.c", block(&text, "udp.c"));
    let commands = block(&text, "kernel commands");
    assert!(commands.contains("cordon check --policy kernel udp.cordon"), "{commands}");
    let output = shell(&commands, desk.folder());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // An image is for one kind of host.
    let output = shell("cordon check udp.cordon", desk.folder());
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn the_stray_pointer_of_the_readme_is_reported_as_shown() {
    let (text, desk) = (readme(), Desk::new());
    desk.write("sum.c", block(&text, "sum.c"));
    let output = shell(&block(&text, "match"), desk.folder());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let report = String::from_utf8_lossy(&output.stderr).replace(&format!("{}/", desk.folder().display()), "");
    let shown = block(&text, "report");
    assert!(report.starts_with(&shown), "shown:\n{shown}\nprinted:\n{report}");
    assert!(report.contains("sum.o") && report.contains("backtrace"), "{report}");
}
