//! `cordon rewrite`, and what every subcommand does with its arguments.

use crate::{Desk, json, stderr, stdout};

#[test]
fn usage_errors_have_code_2_in_text_and_json() {
    let desk = Desk::new();
    for args in [&["rewrite"][..], &["rewrite", "a.o"], &["frobnicate"], &[], &["rewrite", "a.o", "-o", "b", "--heap", "2G"]] {
        let text = desk.cordon(args);
        assert_eq!(text.status.code(), Some(2), "{args:?}");
        assert!(text.stdout.is_empty() && !text.stderr.is_empty(), "{args:?}");
        let wanted: Vec<&str> = args.iter().copied().chain(["--format", "json"]).collect();
        let output = desk.cordon(&wanted);
        assert_eq!(output.status.code(), Some(2), "{wanted:?}");
        assert_eq!(json(&output)["error"]["code"], "usage", "{wanted:?}");
    }
    for args in [&["--help"][..], &["rewrite", "--help"], &["demo", "--help"], &["--version"]] {
        let help = desk.cordon(args);
        assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0), "{args:?}");
    }
}

#[test]
fn unreadable_files_have_code_2_and_are_named() {
    let desk = Desk::new();
    let output = desk.cordon(&["rewrite", "missing.o", "-o", "out", "--format=json"]);
    assert_eq!(output.status.code(), Some(2));
    let error = &json(&output)["error"];
    assert_eq!((&error["code"], &error["object"]), (&"file".into(), &"missing.o".into()));
    let text = desk.cordon(&["rewrite", "missing.o", "-o", "out"]);
    assert!(stderr(&text).starts_with("error: missing.o: cannot read: "), "{text:?}");
}

#[test]
fn an_image_is_the_same_for_any_number_of_threads() {
    let desk = Desk::new();
    desk.object("sum", "long handler(const int *p, long n) { long s = 0; while (n-- > 0) s += p[n]; return s; }");
    for threads in ["1", "2", "7"] {
        let output = desk.cordon(&["rewrite", "sum.o", "-o", &format!("{threads}.cordon"), "--threads", threads]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains("1 function, ") && stdout(&output).contains("accepted by the checker"));
    }
    assert_eq!(desk.read("1.cordon"), desk.read("2.cordon"));
    assert_eq!(desk.read("1.cordon"), desk.read("7.cordon"));
    let summary = json(&desk.cordon(&["rewrite", "sum.o", "-o", "sum.cordon", "--format", "json"]));
    assert_eq!(summary["functions"], 1);
    assert!(summary["text_out"].as_u64() > Some(0) && summary["growth"].as_f64() > Some(0.0), "{summary}");
}

#[test]
fn refused_input_has_code_1_and_leaves_the_output_alone() {
    let desk = Desk::new();
    desk.write("in.o", "not an object");
    let output = desk.cordon(&["rewrite", "in.o", "-o", "out", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let object = json(&output);
    assert_eq!(object["error"]["object"], "in.o");
    assert_eq!(object["errors"].as_array().map(Vec::len), Some(1));
    desk.write("old", "precious");
    assert_eq!(desk.cordon(&["rewrite", "in.o", "-o", "old"]).status.code(), Some(1));
    assert_eq!(desk.read("old"), b"precious");
    let mut names: Vec<_> = std::fs::read_dir(desk.folder()).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["in.o", "old"]);
}

#[test]
fn refusals_name_object_section_offset_and_symbol() {
    let desk = Desk::new();
    desk.object("bad", "long helper(long); long handler(long x) { return helper(x) + 1; }");
    let output = desk.cordon(&["rewrite", "bad.o", "-o", "out", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = &json(&output)["error"];
    assert_eq!(error["object"], "bad.o", "{error}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("helper")) || error["symbol"] == "helper", "{error}");
    assert!(error["section"].is_string() && error["offset"].is_u64(), "{error}");
    let text = stderr(&desk.cordon(&["rewrite", "bad.o", "-o", "out"]));
    assert!(text.starts_with("error: bad.o:.text") && text.contains("helper"), "{text}");
}

#[test]
fn the_output_may_not_be_an_input() {
    let desk = Desk::new();
    desk.write("in.o", "not an object");
    let output = desk.cordon(&["rewrite", "in.o", "-o", "./in.o", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(json(&output)["error"]["message"], "the output is one of the inputs");
    assert_eq!(desk.read("in.o"), b"not an object");
}

#[test]
fn devices_are_written_in_place() {
    let desk = Desk::new();
    desk.object("one", "long handler(void) { return 1; }");
    assert_eq!(desk.cordon(&["rewrite", "one.o", "-o", "/dev/null"]).status.code(), Some(0));
    assert!(!std::fs::metadata("/dev/null").expect("still there").is_file());
}

/// The progress bar moves the cursor; nobody else here writes escape sequences.
#[test]
fn a_progress_bar_is_for_terminals_and_not_for_quiet_runs() {
    let desk = Desk::new();
    let words = ["rewrite", "/usr/lib/x86_64-linux-gnu/libsqlite3.a", "--whole-archive", "-o", "out"];
    let piped = desk.cordon(&words);
    assert!(stderr(&piped).contains("is defined nowhere") && !stderr(&piped).contains('\x1b'), "{piped:?}");
    // `script` gives it a terminal.
    let line = format!("{} {} --quiet", env!("CARGO_BIN_EXE_cordon"), words.join(" "));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]).current_dir(desk.folder()).stdin(std::process::Stdio::null());
    let shown = terminal.output().expect("script is installed (util-linux)");
    assert!(stdout(&shown).contains("is defined nowhere") && !stdout(&shown).contains('\x1b'), "{shown:?}");
}

#[test]
fn explicit_masks_are_an_option_of_the_sandbox() {
    let desk = Desk::new();
    desk.object("sum", "long handler(const long *p, long n) { long s = 0; while (n-- > 0) s += p[n]; return s; }");
    let rewrite = |words: &[&str]| desk.cordon(&[&["rewrite", "sum.o", "-o", "sum.cordon", "--format", "json"], words].concat());
    let size = |words: &[&str]| json(&rewrite(words))["text_out"].as_u64().expect("a size");
    assert_eq!(size(&["--masking", "prefix"]), size(&[]));
    assert!(size(&["--masking", "explicit"]) > size(&[]));
    assert_eq!(desk.cordon(&["check", "sum.cordon"]).status.code(), Some(0));
    let shown = desk.cordon(&["inspect", "sum.o", "--masking", "explicit", "--function", "handler"]);
    assert!(stdout(&shown).contains("its address is masked in a register first"), "{shown:?}");
    let refused = rewrite(&["--masking", "explicit", "--mode", "match"]);
    assert_eq!((refused.status.code(), &json(&refused)["error"]["code"]), (Some(1), &"unsupported-option".into()));
    assert_eq!(rewrite(&["--masking", "none"]).status.code(), Some(2));
}

#[test]
fn options_that_no_image_can_have_are_no_bugs_of_the_rewriter() {
    let desk = Desk::new();
    desk.object("one", "long handler(void) { return 1; }");
    for host in ["user", "kernel"] {
        let output = desk.cordon(&["rewrite", "one.o", "-o", "out", "--stack", "0", "--host", host, "--format", "json"]);
        assert_eq!((output.status.code(), &json(&output)["error"]["code"]), (Some(1), &"unsupported-option".into()), "{host}");
    }
}

/// Prebuilt archives name `stderr` on paths that a handler never takes, so such an import is possible; but it is no answer.
#[test]
fn data_that_nobody_defines_is_not_said_to_come_from_the_host() {
    let desk = Desk::new();
    desk.object("data", "extern int count; long handler(void) { return count; }");
    let output = desk.cordon(&["rewrite", "data.o", "-o", "data.cordon", "--format", "json"]);
    let error = &json(&output)["error"];
    assert_eq!((output.status.code(), &error["code"]), (Some(1), &"undefined-symbol".into()), "{output:?}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("data here, which no host provides")), "{error}");
    assert_eq!((&error["section"], &error["symbol"]), (&".text".into(), &"handler".into()));
    // Its address may be a function's, and a weak one is null.
    desk.object("address", "extern long f(void); long handler(long (**to)(void)) { *to = f; return 0; }");
    assert_eq!(desk.cordon(&["rewrite", "address.o", "-o", "out", "--import", "f"]).status.code(), Some(0));
    desk.object("weak", "extern int count __attribute__((weak)); long handler(void) { return &count ? count : 7; }");
    assert_eq!(desk.cordon(&["rewrite", "weak.o", "-o", "out"]).status.code(), Some(0));
}

#[test]
fn an_archive_alone_says_how_to_take_its_functions() {
    let desk = Desk::new();
    desk.object("one", "long handler(void) { return 1; }");
    assert_eq!(desk.shell("ar rc lib.a one.o").status.code(), Some(0));
    let output = desk.cordon(&["rewrite", "lib.a", "-o", "out"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--entry") && stderr(&output).contains("--whole-archive"), "{output:?}");
    for option in [&["--whole-archive"][..], &["--entry", "handler"]] {
        assert_eq!(desk.cordon(&[&["rewrite", "lib.a", "-o", "out"], option].concat()).status.code(), Some(0), "{option:?}");
    }
}

#[test]
fn a_folder_that_is_missing_is_named_as_it_was_given() {
    let desk = Desk::new();
    desk.object("one", "long handler(void) { return 1; }");
    let output = desk.cordon(&["rewrite", "one.o", "-o", "missing/out"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), "error: missing/out: cannot write: No such file or directory (os error 2) [file]\n");
}
