//! gdb sees the functions, lines and calls of a handler that runs with `--gdb`, and no trace of it without.

use crate::{Desk, stdout};
use std::process::Command;

/// Each line that the sessions name stands alone.
const SUM: &str = "\
struct record { const struct record *next; unsigned length; };
unsigned long calls = 41;
static struct record records[3] = {{&records[1], 10}, {&records[2], 20}, {0, 30}};
static __attribute__((noinline)) unsigned length_of(const struct record *at)
{
	return at->length;
}
static __attribute__((noinline)) long add_all(const struct record *at)
{
	long sum = 0;
	for (; at; at = at->next)
		sum += length_of(at);
	return sum;
}
long handler(long start)
{
	calls++;
	return start + add_all(records);
}
";

/// What a session prints: `commands` behind some that make gdb quiet, over `cordon run WORDS`.
fn session(desk: &Desk, commands: &[&str], words: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    let quiet = ["set pagination off", "set debuginfod enabled off", "set breakpoint pending on"];
    gdb.args(["-nx", "-batch"]).args(quiet.iter().chain(commands).flat_map(|c| ["-ex", c]));
    gdb.args(["--args", env!("CARGO_BIN_EXE_cordon"), "run"]).args(words).current_dir(desk.folder()).env("LC_ALL", "C");
    let output = gdb.output().expect("gdb is installed: run scripts/setup");
    stdout(&output) + &String::from_utf8_lossy(&output.stderr)
}

/// Asserts that `shown` has `parts` in this order.
fn has_in_order(shown: &str, parts: &[&str]) {
    let mut rest = shown;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no `{part}` at its place in\n{shown}"));
        rest = &rest[at + part.len()..];
    }
}

fn image(desk: &Desk, compiler: &str, flags: &[&str], mode: &[&str]) {
    desk.write("sum.c", SUM);
    let status = Command::new(compiler).args(flags).args(["-c", "sum.c"]).current_dir(desk.folder()).status();
    assert!(status.expect("the compiler is installed: run scripts/setup").success());
    let output = desk.cordon(&[&["rewrite", "sum.o", "-o", "sum.cordon"], mode].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_session_breaks_at_functions_walks_calls_and_steps_by_lines() {
    let desk = Desk::new();
    let walk = ["break length_of", "run", "backtrace", "finish", "delete", "next", "next", "next", "continue"];
    let expected = [
        "Breakpoint 1, ",
        "length_of",
        // Where the prologue ends is the debugger's guess.
        "sum.c:",
        "#0 ",
        "length_of () at ",
        "sum.c:",
        "#1 ",
        "add_all () at ",
        "sum.c:12",
        "#2 ",
        "handler () at ",
        "sum.c:18",
        "#3 ",
        "cordon_loader_enter",
        "add_all () at ",
        "sum.c:12",
        "\n11\t",
        "\n12\t",
        "\n11\t",
        "result = 61",
        "exited normally",
    ];
    for (compiler, version, mode) in [
        ("gcc", "-gdwarf-5", &[][..]),
        ("gcc", "-gdwarf-4", &["--mode", "match", "--fuel"][..]),
        ("clang-19", "-gdwarf-5", &["--protect", "stores"][..]),
    ] {
        image(&desk, compiler, &["-O0", version], mode);
        let mode: Vec<&str> =
            mode.iter().flat_map(|m| if *m == "--fuel" { vec!["--fuel", "100000"] } else { vec![*m] }).collect();
        let shown = session(&desk, &walk, &[&["sum.cordon", "--gdb", "--arg", "1"], &mode[..]].concat());
        has_in_order(&shown, &expected);
    }
}

#[test]
fn variables_are_read_through_the_base_of_the_window() {
    let desk = Desk::new();
    image(&desk, "gcc", &["-O0", "-g"], &[]);
    // The only variable of the outermost function is its argument, below its frame pointer.
    let far = ["break sum.c:18", "run", "print *(long *)($gs_base + (long)&calls)", "print *(long *)($gs_base + $rbp - 8)"];
    has_in_order(&session(&desk, &far, &["sum.cordon", "--gdb", "--arg", "7"]), &["$1 = 42", "$2 = 7"]);
    let near = ["break sum.c:18", "run", "print $gs_base", "print (long)calls", "print *(long *)($rbp - 8)"];
    let shown = session(&desk, &near, &["sum.cordon", "--gdb", "--fast-window", "--arg", "7"]);
    has_in_order(&shown, &["$1 = 0", "$2 = 42", "$3 = 7"]);
}

#[test]
fn nothing_is_announced_unless_asked_for() {
    let desk = Desk::new();
    image(&desk, "gcc", &["-O0", "-g"], &[]);
    let shown = session(&desk, &["break length_of", "run"], &["sum.cordon", "--arg", "1"]);
    assert!(shown.contains("result = 61") && !shown.contains("Breakpoint 1, "), "{shown}");
}
