//! Where answers go, and what becomes of those that cannot be printed.

use crate::{Desk, stderr, stdout};

const HANDLER: &str = "long handler(long x) { return x; }";

#[test]
fn words_in_no_encoding_are_usage_errors_or_names() {
    let desk = Desk::new();
    desk.image("one", HANDLER);
    for line in ["rewrite one.o -o out --entry $'e\\xff'", "run one.cordon --arg $'\\xff'", "frob $'\\xff'"] {
        let output = desk.shell(&format!("$cordon {line}"));
        assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
        assert!(stderr(&output).starts_with("error: ") && !stderr(&output).contains("panicked"), "{line}: {output:?}");
    }
    let named = desk
        .shell("cp one.o $'b\\xff.o' && $cordon rewrite $'b\\xff.o' -o $'o\\xff' && $cordon run $'o\\xff' --share $'b\\xff.o'");
    assert_eq!(named.status.code(), Some(0), "{named:?}");
}

#[test]
fn an_answer_that_is_lost_is_no_success() {
    let desk = Desk::new();
    desk.image("one", HANDLER);
    for line in
        ["check one.cordon", "check one.cordon --format json", "run one.cordon", "inspect one.o", "--help", "check --help"]
    {
        let output = desk.shell(&format!("$cordon {line} >/dev/full"));
        assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
        assert!(stderr(&output).contains("standard output: cannot write: "), "{line}: {output:?}");
    }
    // A verdict against the image, and who hears nothing at all: as ever.
    assert_eq!(desk.shell("$cordon check one.o --format json >/dev/full").status.code(), Some(1));
    assert_eq!(desk.shell("$cordon check one.o 2>/dev/full").status.code(), Some(1));
    assert_eq!(desk.shell("$cordon check one.cordon >&- 2>&-").status.code(), Some(0));
}

#[test]
fn a_program_and_its_compiler_work_where_standard_error_is_full() {
    let desk = Desk::new();
    desk.write("main.c", "int main(void) { int unused; return 5; }");
    let built = desk.shell("$cordon cc -Wall main.c -o main.img 2>/dev/full");
    assert_eq!(built.status.code(), Some(0), "{built:?}");
    assert_eq!(desk.shell("$cordon run main.img --format json 2>/dev/full").status.code(), Some(5));
}

#[test]
fn names_in_images_cannot_work_on_the_terminal() {
    let desk = Desk::new();
    desk.object("one", HANDLER);
    std::fs::rename(desk.path("one.o"), desk.path("\u{1b}[7m.o")).expect("renamed");
    let shown =
        desk.shell("$cordon rewrite $'\\e[7m.o' -o evil.cordon && $cordon inspect evil.cordon; $cordon check $'\\e[7m.o'");
    assert!(stdout(&shown).contains("[7m.o:.text+0x0") && stderr(&shown).contains("[7m.o: not a Cordon image"), "{shown:?}");
    assert!(!stdout(&shown).contains('\u{1b}') && !stderr(&shown).contains('\u{1b}'), "{shown:?}");
}
