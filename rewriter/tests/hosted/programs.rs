//! Programs that were written for this: what they print and how they end, natively and in a window.

use crate::{Desk, feed, text};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Runs `name` both ways with the same words, environment and input; the outputs and the status must agree. Gives status and output.
fn both(desk: &Desk, name: &str, words: &[&str], input: &str) -> (i32, String) {
    let image = format!("{name}.img");
    let run = ["run", &image, "--dir", ".", "--env", "HOME=/home/nobody", "--"];
    let fenced = feed(&mut desk.cordon(&[&run[..], words].concat()), input);
    let mut native = Command::new(desk.path(name));
    // Messages begin with it.
    native.arg0(&image).args(words).env_clear().env("HOME", "/home/nobody").current_dir(desk.0.path());
    let native = feed(&mut native, input);
    assert_eq!(text(&fenced.stdout), text(&native.stdout), "{name} {words:?}: {}", text(&fenced.stderr));
    assert_eq!(text(&fenced.stderr), text(&native.stderr), "{name} {words:?}");
    assert_eq!(fenced.status.code(), native.status.code(), "{name} {words:?}");
    (fenced.status.code().expect("a status"), text(&fenced.stdout))
}

#[test]
fn the_c_library_behaves_as_natively() {
    let desk = Desk::new();
    for (options, compiler) in [(["-O2"], "gcc"), (["-O0"], "gcc"), (["-O3"], "clang-19")] {
        desk.image("library", &["library.c"], &[&options[..], &["--cc", compiler]].concat());
        desk.native("library", &["library.c"], &options);
        let (code, shown) = both(&desk, "library", &["a", "", "b c"], "first line\nsecond\n");
        assert_eq!(code, 42, "{shown}");
        for part in ["constructor", "destructor", "at exit", "caught 1", "line: first line", "arguments 3: <a> <> <b c>"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
    let json = feed(&mut desk.cordon(&["run", "library.img", "--format", "json", "--fast-window"]), "");
    assert_eq!((text(&json.stderr).lines().last(), json.status.code()), (Some("{\"exit\":42}"), Some(42)));
}

#[test]
fn thread_local_variables_have_one_place_whatever_the_c_library_does_with_the_thread_pointer() {
    let desk = Desk::new();
    desk.native("thread_local", &["thread_local.c"], &["-O2"]);
    let models =
        ["-ftls-model=global-dynamic", "-ftls-model=local-dynamic", "-ftls-model=initial-exec", "-ftls-model=local-exec"];
    for (model, pic) in models.iter().zip(["-fPIC", "-fPIC", "-fPIC", "-fPIE"]) {
        for (level, compiler) in [("-O0", "gcc"), ("-O2", "gcc"), ("-O0", "clang-19"), ("-O2", "clang-19")] {
            desk.image("thread_local", &["thread_local.c"], &[level, model, pic, "--cc", compiler]);
            assert_eq!(both(&desk, "thread_local", &[], "").1, "16 16 3 78 83\n1 1\n", "{level} {model} {compiler}");
        }
    }
}

#[test]
fn words_lines_and_expressions_are_those_of_native_programs() {
    let desk = Desk::new();
    for name in ["words", "lines", "calc"] {
        let file = format!("{name}.c");
        desk.image(name, &[&file], &["-O2"]);
        desk.native(name, &[&file], &["-O2"]);
    }
    let prose = "the quick  brown fox\njumps over\tthe lazy dog\n\n10\n9\n-3.5\nthe quick  brown fox\n".repeat(500);
    desk.write("prose", &prose);
    desk.write("empty", "");
    assert_eq!(both(&desk, "words", &[], &prose).0, 0);
    assert_eq!(both(&desk, "words", &["prose", "empty"], "").0, 0);
    assert_eq!(both(&desk, "words", &["prose", "missing", "empty"], "").0, 1);
    for options in [&[][..], &["-r"], &["-n"], &["-u", "-n", "-r"]] {
        assert_eq!(both(&desk, "lines", options, &prose).0, 0);
    }
    assert_eq!(both(&desk, "lines", &["-x"], "").0, 2);
    let sums = "1+2*3\nx = 2^10\nx/3\nsin(1)^2+cos(1)^2\n(1\n-sqrt(2)*-1\n7%4 2\n1/0\nlog(0)\n1e300*1e10\n";
    assert_eq!(both(&desk, "calc", &[], sums).0, 2);
}

#[test]
fn a_system_call_keeps_the_registers_that_the_kernel_keeps() {
    let desk = Desk::new();
    desk.image("syscalls", &["syscalls.c"], &["-O2"]);
    desk.native("syscalls", &["syscalls.c"], &["-O2"]);
    let (code, shown) = both(&desk, "syscalls", &[], "");
    assert!(code == 0 && shown.starts_with("0 101.5 0.25 1.25 2.25 203.25"), "{shown}");
}

#[test]
fn a_program_writes_only_where_it_may() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("out")).expect("made");
    desk.image("files", &["files.c"], &["-O2"]);
    let run =
        |dir: &str| feed(&mut desk.cordon(&["run", "files.img", "--dir", dir, "--env", "PATH=/bin:/usr/bin", "--", "out/a"]), "");
    let refused = run("out");
    assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(1), "out/a: Read-only file system\n".into()));
    let done = run("out:rw");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let written = std::fs::read_to_string(desk.path("out/b")).expect("the program wrote it");
    assert!(written.starts_with("X\n1\n2\n") && written.ends_with("\n99999\n"));
    assert_eq!(std::fs::read_dir(desk.path("out")).expect("readable").count(), 1);
    assert_eq!(run("missing").status.code(), Some(2));
}

fn said_ok(desk: &Desk, words: &[&str]) {
    crate::said(&mut desk.cordon(words));
}

#[test]
fn every_way_to_end_has_its_code() {
    let desk = Desk::new();
    desk.image("ends", &["ends.c"], &["-O1", "-g"]);
    let run = |words: &[&str]| feed(&mut desk.cordon(&[&["run", "ends.img", "--time-limit", "200ms", "--"], words].concat()), "");
    for (words, code) in [
        (&["x"][..], 3),
        (&["exit", "0"], 0),
        (&["exit", "300"], 44),
        (&["exit", "-1"], 255),
        (&["_exit"], 9),
        (&["abort"], 134),
        (&["term"], 143),
        (&["handler"], 17),
        (&["null"], 4),
        (&["deep"], 4),
        (&["loop"], 4),
        (&["sleep"], 4),
        (&["pause"], 4),
        (&["read"], 3),
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "", "{words:?}");
    }
    let stopped = text(&run(&["null"]).stderr);
    assert!(stopped.contains("null pointer") && stopped.contains("main") && stopped.contains("ends.c"), "{stopped}");
    // Reading what never comes ends in time too, and writing what nobody reads like a native program.
    let mut child = desk.cordon(&["run", "ends.img", "--time-limit", "200ms", "--", "read"]);
    let mut child = child.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().expect("started");
    let open = child.stdin.take();
    assert_eq!(child.wait().expect("ended").code(), Some(4));
    drop(open);
    let mut child = desk.cordon(&["run", "ends.img", "--", "write"]);
    let mut child = child.stdout(std::process::Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ended").code(), Some(141));
}

#[test]
fn what_does_not_fit_is_a_usage_error() {
    let desk = Desk::new();
    desk.image("words", &["words.c"], &[]);
    let run = |words: &[&str]| feed(&mut desk.cordon(&[&["run", "words.img"], words].concat()), "").status.code();
    let many: Vec<&str> = std::iter::once("--").chain(std::iter::repeat_n("x", 1000)).collect();
    assert_eq!(run(&many), Some(2));
    assert_eq!(run(&["--arg", "1"]), Some(2));
    assert_eq!(run(&["--env", "novalue"]), Some(2));
    assert_eq!(run(&["--dir", "none"]), Some(2));
    let enough: Vec<&str> = std::iter::once("--").chain(std::iter::repeat_n("x", 400)).collect();
    assert_eq!(run(&enough), Some(1), "no file x");
    desk.write("handler.c", "int handler(void) { return 1; }");
    crate::said(Command::new("gcc").args(["-c", "handler.c"]).current_dir(desk.0.path()));
    said_ok(&desk, &["rewrite", "handler.o", "-o", "handler.img"]);
    assert_eq!(feed(&mut desk.cordon(&["run", "handler.img", "--", "x"]), "").status.code(), Some(2));
}

#[test]
fn system_calls_are_refused_without_the_option() {
    let desk = Desk::new();
    for (object, define) in [("call.o", "-DCALL"), ("late.o", "-DFLAGS"), ("wide.o", "-DWIDE")] {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-mavx", "-w", "-c", define, "-o", object]).arg(crate::source("system_call.c"));
        crate::said(gcc.current_dir(desk.0.path()));
    }
    let code = |words: &[&str]| {
        let output = feed(&mut desk.cordon(&[words, &["-o", "x.img", "--format", "json"]].concat()), "");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
        (output.status.code(), json["error"]["code"].as_str().map(str::to_owned))
    };
    assert_eq!(code(&["rewrite", "call.o"]), (Some(1), Some("privileged-instruction".into())));
    assert_eq!(code(&["rewrite", "call.o", "--syscalls"]), (Some(0), None));
    // Flags and wide vectors are what the call would not keep.
    for object in ["late.o", "wide.o"] {
        assert_eq!(code(&["rewrite", object, "--syscalls"]), (Some(1), Some("unsupported-instruction".into())), "{object}");
    }
}

#[test]
fn what_is_allocated_on_the_stack_is_right_or_refused() {
    let desk = Desk::new();
    desk.native("allocation", &["allocation.c"], &["-O2"]);
    let mut done = 0;
    for compiler in ["gcc", "clang-19"] {
        for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
            let words = ["cc", "-w", "--cc", compiler, level, "-o", "allocation.img", "--format", "json"];
            let output = feed(desk.cordon(&words).arg(crate::source("allocation.c")), "");
            if output.status.success() {
                assert_eq!(both(&desk, "allocation", &["x", "y"], "").0, 0, "{compiler} {level}");
                done += 1;
            } else {
                let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
                assert_eq!(json["error"]["code"], "unknown-stack-pointer", "{compiler} {level}: {json}");
            }
        }
    }
    // clang with optimisation addresses it from a copy of the old stack pointer.
    assert!(done >= 6, "only {done} of ten");
}

#[test]
fn programs_run_in_every_mode() {
    let desk = Desk::new();
    desk.native("calc", &["calc.c"], &["-O2"]);
    for mode in [&["--mode", "match"][..], &["--fuel"], &["--mode", "match", "--fuel"]] {
        desk.image("calc", &["calc.c"], &[&["-O2"], mode].concat());
        assert_eq!(both(&desk, "calc", &[], "x = 3\nx^2 + sqrt(2)\n(1\n").0, 1, "{mode:?}");
    }
}
