//! `cordon cc`: what it refuses before it compiles.

use crate::{Desk, json, stderr};

#[test]
fn the_image_may_not_replace_a_source() {
    let desk = Desk::new();
    let source = "int main(void) { return 3; }";
    desk.write("main.c", source);
    for words in
        [&["cc", "main.c", "-o", "main.c"][..], &["cc", "-o./main.c", "main.c"], &["cc", "-o", "main.c", "other.c", "main.c"]]
    {
        let output = desk.cordon(&[words, &["--format", "json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        assert_eq!(json(&output)["error"]["message"], "the output is one of the inputs", "{words:?}");
        assert_eq!(desk.read("main.c"), source.as_bytes(), "{words:?}");
    }
}

#[test]
fn wrong_options_are_said_once() {
    let desk = Desk::new();
    desk.write("main.c", "int main(void) { return 3; }");
    let text = stderr(&desk.cordon(&["cc", "main.c", "--heap", "5G"]));
    assert!(text.starts_with("error: invalid value '5G' for '--heap <SIZE>': a size must be less than 2G"), "{text}");
}

#[test]
fn a_program_without_main_is_told_so() {
    let desk = Desk::new();
    desk.write("part.c", "int part(void) { return 3; }");
    let text = stderr(&desk.cordon(&["cc", "part.c"]));
    assert!(text.contains("`main` is defined nowhere: one of the inputs") && !text.contains("--import"), "{text}");
}

#[test]
fn files_that_are_no_sources_are_named_themselves() {
    let desk = Desk::new();
    desk.write("main.c", "int main(void) { return 3; }");
    desk.write("notes.txt", "not C");
    let output = desk.cordon(&["cc", "main.c", "notes.txt", "--format", "json"]);
    let error = &json(&output)["error"];
    assert_eq!((output.status.code(), &error["object"]), (Some(1), &"notes.txt".into()), "{output:?}");
    assert_eq!(error["message"], "gcc makes no object of it: not a source that it knows");
}

#[test]
fn files_of_dependencies_are_written_where_they_are_wanted() {
    let desk = Desk::new();
    desk.write("main.c", "int main(void) { return 3; }");
    let output = desk.cordon(&["cc", "main.c", "-MD", "-MF", "main.d", "-o", "main.img"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&desk.read("main.d")).contains("main.c"));
}
