//! setjmp and longjmp: in whole programs as natively, in plain handlers, and what is refused or ends the call.

use crate::{Desk, feed, said, text};
use std::process::{Command, Output};

const LEVELS: [&str; 5] = ["-O0", "-O1", "-O2", "-O3", "-Os"];

/// What is given to `cordon cc` and to `cordon run`.
const MODES: [(&[&str], &[&str]); 5] = [
    (&[], &[]),
    (&["--mode", "match"], &[]),
    (&["--fuel"], &["--fuel", "1000000000"]),
    (&["--mode", "match", "--fuel"], &["--fuel", "1000000000"]),
    (&["--protect", "stores"], &["--protect", "stores"]),
];

fn run(desk: &Desk, image: &str, words: &[&str]) -> Output {
    feed(&mut desk.cordon(&[&["run", image, "--time-limit", "60s"], words].concat()), "")
}

/// Compares `name.c` with what it prints natively when compiled in the same way; in every mode where compiled as `full` says.
fn compared(name: &str, code: i32, full: &[(&str, &str)], plain: &[&str]) {
    let desk = Desk::new();
    let (file, image) = (format!("{name}.c"), format!("{name}.img"));
    for (compiler, level) in ["gcc", "clang-19"].iter().flat_map(|c| LEVELS.map(|l| (*c, l))) {
        let all = full.contains(&(compiler, level));
        desk.native(name, &[&file], &[level]);
        let native = feed(&mut Command::new(desk.path(name)), "");
        assert_eq!(native.status.code(), Some(code));
        for (mode, limit) in MODES.iter().filter(|(mode, _)| all || mode.is_empty()) {
            desk.image(name, &[&file], &[&[level, "--cc", compiler], *mode].concat());
            let fenced = run(&desk, &image, limit);
            assert_eq!(text(&fenced.stdout), text(&native.stdout), "{compiler} {level} {mode:?}: {}", text(&fenced.stderr));
            assert_eq!(fenced.status.code(), Some(code), "{compiler} {level} {mode:?}");
        }
        assert!(plain.iter().all(|part| text(&native.stdout).contains(part)), "{}", text(&native.stdout));
    }
}

#[test]
fn programs_jump_as_natively() {
    let full = [("gcc", "-O0"), ("gcc", "-O2"), ("clang-19", "-O3")];
    compared(
        "jumps",
        3,
        &full,
        &["0 -> 1\n", "87654324\n", "left qsort\n", "4 after 104\n", "100000 400000\n", "signal 10\n", "654321\n"],
    );
}

#[test]
fn what_was_allocated_is_given_back_by_a_jump() {
    compared("jumps_allocation", 0, &[("gcc", "-O2")], &["6634\n20001\n100501\n"]);
}

#[test]
fn a_jump_into_a_function_that_has_returned_ends_the_program() {
    let desk = Desk::new();
    for (mode, limit) in MODES {
        desk.image("bad_jump", &["bad_jump.c"], &[&["-g", "-O1"], mode].concat());
        for words in [&[][..], &["x", "y"]] {
            let words = [limit, &["--"], words].concat();
            let ended = run(&desk, "bad_jump.img", &words);
            assert_eq!((ended.status.code(), text(&ended.stdout)), (Some(4), format!("{}\n", 2 * (words.len() - limit.len()))));
            let shown = text(&ended.stderr);
            for part in
                ["error[bad-jump]: longjmp to a place that does not wait for it", "bad_jump.c:26", "gate cordon.longjmp", "back+"]
            {
                assert!(shown.contains(part), "{part} in {shown}");
            }
        }
        let json = run(&desk, "bad_jump.img", &[limit, &["--format", "json"]].concat());
        assert!(!text(&json.stdout).contains('{'), "standard output is the program's alone");
        let shown = text(&json.stderr);
        let report: serde_json::Value = serde_json::from_str(shown.lines().last().expect("a report")).expect("an object");
        let (error, fault) = (&report["error"], &report["error"]["report"]);
        assert_eq!(
            (&error["code"], &fault["kind"], &fault["jump"]),
            (&"bad-jump".into(), &"bad-jump".into(), &"not-active".into())
        );
    }
}

/// Objects compiled without a C library: the names alone make the imports.
#[test]
fn handlers_jump_without_a_c_library() {
    let desk = Desk::new();
    desk.write(
        "handler.c",
        "typedef long place[32];
         int _setjmp(place) __attribute__((returns_twice)); void __longjmp_chk(place, int) __attribute__((noreturn));
         static place here;
         static __attribute__((noinline)) long down(long n) { if (n == 0) __longjmp_chk(here, 9); return down(n - 1) + n; }
         long handler(long n) { volatile long mine = n; int got = _setjmp(here); return got ? got * 1000 + mine : down(n); }",
    );
    said(Command::new("gcc").args(["-O1", "-c", "handler.c"]).current_dir(desk.0.path()));
    for (mode, limit) in MODES {
        said(desk.cordon(&["rewrite", "handler.o", "-o", "handler.img"]).args(mode));
        let words = ["run", "handler.img", "--entry", "handler", "--arg", "50"];
        let shown = said(desk.cordon(&words).args(limit));
        assert!(shown.contains("9050"), "{mode:?}: {shown}");
    }
}

#[test]
fn only_direct_calls_of_setjmp_are_taken() {
    let desk = Desk::new();
    let code = |source: &str| {
        desk.write("odd.s", format!("{source}\n.section .note.GNU-stack,\"\",@progbits\n"));
        said(Command::new("gcc").args(["-c", "odd.s"]).current_dir(desk.0.path()));
        let output = feed(&mut desk.cordon(&["rewrite", "odd.o", "-o", "odd.img", "--format", "json"]), "");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an object");
        (output.status.code(), json["error"]["code"].as_str().map(str::to_owned))
    };
    let function = |body: &str| code(&format!(".globl f\n.type f,@function\nf: {body}\n.size f,.-f"));
    let refused = (Some(1), Some("unsupported-setjmp".to_owned()));
    assert_eq!(function("sub $8,%rsp; call setjmp; add $8,%rsp; ret"), (Some(0), None));
    assert_eq!(function("sub $8,%rsp; call *_setjmp@GOTPCREL(%rip); add $8,%rsp; ret"), (Some(0), None));
    assert_eq!(function("jmp setjmp"), refused);
    assert_eq!(function("test %edi,%edi; je __sigsetjmp; ret"), refused);
    assert_eq!(function("lea sigsetjmp(%rip),%rax; ret"), refused);
    assert_eq!(function("mov _setjmp@GOTPCREL(%rip),%rax; ret"), refused);
    assert_eq!(code(".globl f\n.type f,@function\nf: mov p(%rip),%rax; ret\n.size f,.-f\n.data\np: .quad setjmp"), refused);
    assert_eq!(function("mov longjmp@GOTPCREL(%rip),%rax; call *%rax; ud2"), (Some(0), None), "longjmp's is a function's");
    assert_eq!(function("jmp longjmp"), (Some(0), None));
}
