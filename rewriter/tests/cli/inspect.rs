//! `cordon inspect`: both columns, depths, reasons, tables.

use crate::{Desk, json, stderr, stdout};

const SOURCE: &str = "
static long one(long x) { return x + 1; }
static long two(long x) { return x * 2; }
long (*const table[2])(long) = {one, two};
__attribute__((noinline)) long use(long *);
long handler(long *p, unsigned i) { long here[4] = {p[0]}; use(here); return table[i & 1](here[1]) + here[2]; }
__attribute__((noinline)) long use(long *p) { __asm__ volatile(\"\" ::: \"memory\"); p[1] = p[0]; return 0; }
";

#[test]
fn objects_and_images_show_both_columns_with_depths_and_reasons() {
    let desk = Desk::new();
    desk.image("shape", SOURCE);
    for args in [&["inspect", "shape.o"][..], &["inspect", "shape.cordon"]] {
        let output = desk.cordon(args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("accepted by the checker"), "{text}");
        for name in ["handler (", "one (", "two ("] {
            assert!(text.contains(name), "{name} in {text}");
        }
        let object = json(&desk.cordon(&[args, &["--function", "handler", "--format", "json"]].concat()));
        let rows = object["functions"][0]["instructions"].as_array().expect("instructions").clone();
        assert_eq!(object["functions"].as_array().map(Vec::len), Some(1));
        assert!(rows.iter().any(|r| r["original"].as_str().is_some_and(|o| !o.contains("%gs"))), "{rows:?}");
        assert!(rows.iter().any(|r| r["rewritten"].as_str().is_some_and(|o| o.contains("%gs"))), "{rows:?}");
        assert!(rows.iter().any(|r| r["change"].as_str().is_some_and(|c| !c.is_empty())), "{rows:?}");
        assert!(rows.iter().any(|r| r["depth"].as_u64() > Some(0)) && rows[0]["depth"] == 0, "{rows:?}");
        let slots = object["main_table"]["slots"].as_array().expect("slots").clone();
        assert!(["trap", "one", "two"].iter().all(|s| slots.iter().any(|t| t == s)), "{slots:?}");
        assert!(object["entries"].as_array().is_some_and(|e| e.iter().any(|e| e["name"] == "handler")));
    }
}

#[test]
fn originals_that_moved_are_named_by_hand() {
    let desk = Desk::new();
    desk.image("shape", SOURCE);
    std::fs::rename(desk.path("shape.o"), desk.path("moved.o")).expect("renamed");
    let shown = |args: &[&str]| {
        let object = json(&desk.cordon(args));
        object["functions"][0]["instructions"][0]["original"].as_str().map(str::to_owned)
    };
    let base = ["inspect", "shape.cordon", "--function", "handler", "--format", "json"];
    assert_eq!(shown(&base).as_deref(), Some("?"));
    std::fs::create_dir(desk.path("away")).expect("made");
    std::fs::rename(desk.path("moved.o"), desk.path("away/shape.o")).expect("renamed");
    assert_ne!(shown(&[&base[..], &["--object", "away/shape.o"]].concat()).as_deref(), Some("?"));
}

#[test]
fn unknown_functions_and_damaged_images_are_errors() {
    let desk = Desk::new();
    desk.image("shape", SOURCE);
    let output = desk.cordon(&["inspect", "shape.cordon", "--function", "none", "--format", "json"]);
    assert_eq!((output.status.code(), &json(&output)["error"]["code"]), (Some(2), &"no-such-function".into()));
    let bytes = desk.read("shape.cordon");
    desk.write("cut.cordon", &bytes[..bytes.len() / 3]);
    assert_eq!(desk.cordon(&["inspect", "cut.cordon"]).status.code(), Some(1));
}

/// The names of its objects are the image's word: a pipe would wait for ever, a device never end.
#[test]
fn only_files_are_read_under_the_names_that_an_image_records() {
    let desk = Desk::new();
    desk.image("shape", SOURCE);
    for made in ["rm shape.o && mkfifo shape.o", "rm shape.o && ln -s /dev/zero shape.o"] {
        let output =
            desk.shell(&format!("{made} && ulimit -v 2000000 && timeout 60 $cordon inspect shape.cordon --function one"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(stdout(&output).contains(": ?"), "{output:?}");
    }
}

#[test]
fn options_that_shape_images_are_for_objects() {
    let desk = Desk::new();
    desk.image("shape", SOURCE);
    let asked = |file: &str| desk.cordon(&["inspect", file, "--mode", "match", "--format", "json"]);
    let (image, object) = (asked("shape.cordon"), asked("shape.o"));
    assert_eq!((image.status.code(), &json(&image)["error"]["code"]), (Some(2), &"usage".into()));
    assert_eq!(object.status.code(), Some(0));
}
