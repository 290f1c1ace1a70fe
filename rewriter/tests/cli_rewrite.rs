//! `cordon rewrite` from outside: exit codes, messages, files.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn cordon(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cordon")).args(args).current_dir(folder).output().expect("cordon starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

#[test]
fn usage_errors_have_code_2_in_text_and_json() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for args in [&["rewrite"][..], &["rewrite", "a.o"], &["frobnicate"], &[], &["rewrite", "a.o", "-o", "b", "--heap", "2G"]] {
        let text = cordon(args, folder.path());
        assert_eq!(text.status.code(), Some(2), "{args:?}");
        assert!(text.stdout.is_empty() && !text.stderr.is_empty(), "{args:?}");
        let wanted: Vec<&str> = args.iter().copied().chain(["--format", "json"]).collect();
        let output = cordon(&wanted, folder.path());
        assert_eq!(output.status.code(), Some(2), "{wanted:?}");
        assert_eq!(json(&output)["error"]["code"], "usage", "{wanted:?}");
    }
    for args in [&["--help"][..], &["rewrite", "--help"], &["--version"]] {
        let help = cordon(args, folder.path());
        assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0), "{args:?}");
    }
}

#[test]
fn unreadable_files_have_code_2_and_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = cordon(&["rewrite", "missing.o", "-o", "out", "--format=json"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    let error = &json(&output)["error"];
    assert_eq!((&error["code"], &error["object"]), (&"file".into(), &"missing.o".into()));
    let text = cordon(&["rewrite", "missing.o", "-o", "out"], folder.path());
    assert!(String::from_utf8_lossy(&text.stderr).starts_with("error: missing.o: cannot read: "), "{text:?}");
}

#[test]
fn refused_input_has_code_1_and_leaves_the_output_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::write(folder.path().join("in.o"), b"not an object").expect("written");
    let output = cordon(&["rewrite", "in.o", "-o", "out", "--format", "json"], folder.path());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let object = json(&output);
    assert_eq!(object["error"]["object"], "in.o");
    assert_eq!(object["errors"].as_array().map(Vec::len), Some(1));
    std::fs::write(folder.path().join("old"), b"precious").expect("written");
    assert_eq!(cordon(&["rewrite", "in.o", "-o", "old"], folder.path()).status.code(), Some(1));
    assert_eq!(std::fs::read(folder.path().join("old")).expect("still there"), b"precious");
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["in.o", "old"]);
}

#[test]
fn the_output_may_not_be_an_input() {
    let folder = tempfile::tempdir().expect("temporary folder");
    std::fs::write(folder.path().join("in.o"), b"not an object").expect("written");
    let output = cordon(&["rewrite", "in.o", "-o", "./in.o", "--format", "json"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["error"]["message"], "the output is one of the inputs");
    assert_eq!(std::fs::read(folder.path().join("in.o")).expect("still there"), b"not an object");
}
