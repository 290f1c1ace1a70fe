//! Addresses of the image have the functions, files and lines of the objects.

use crate::toolchain::{archive, assembly, c, compile_with, output};
use cordon_checker::layout::TEXT_VADDR;
use cordon_rewriter::dwarf::lines;
use cordon_rewriter::emit::{DebugSections, Image, ImageSymbol, MapEntry, write};
use cordon_rewriter::object::{Input, MergeOptions, read};
use cordon_rewriter::program::{Definition, Program, SectionKind, SymbolKind};

/// A rewriter that only moves: functions in reverse order, a byte of padding before each and an extra byte before each instruction
/// (here: each byte of the old code, since nothing is decoded).
fn moved(program: &Program) -> Image {
    let mut image = Image { objects: program.objects.iter().map(|o| o.name.clone()).collect(), ..Image::default() };
    for section in program.sections.iter().rev().filter(|s| s.kind == SectionKind::Text) {
        image.text.push(0x90);
        let base = image.text.len() as u32;
        for (old, byte) in (0_u32..).zip(&section.data) {
            let entry = MapEntry { new: image.text.len() as u32, object: section.object.0, section: section.index as u32, old };
            image.map.push(entry);
            image.text.extend([0x90, *byte]);
        }
        for symbol in program.symbols.iter().filter(|s| s.kind == SymbolKind::Function) {
            let Definition::Section(id, at) = symbol.definition else { continue };
            if std::ptr::eq(program.section(id), section) {
                let value = u64::from(base) + at * 2;
                let name = symbol.name.clone();
                image.symbols.push(ImageSymbol { name, value, size: symbol.size * 2, function: true, global: symbol.global });
            }
        }
    }
    image
}

fn imaged(list: &[(&str, Vec<u8>)]) -> Image {
    let inputs: Vec<Input> = list.iter().map(|(name, bytes)| Input { name: (*name).to_owned(), bytes: bytes.clone() }).collect();
    let program = read(&inputs, &MergeOptions::default()).expect("readable");
    let image = moved(&program);
    Image { debug: lines(&program, &image.map, &image.symbols), ..image }
}

/// What `addr2line -f` says of text offset `at`: function and `file:line`.
fn address(image: &Image, at: u64) -> (String, String) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("image");
    std::fs::write(&path, write(image).expect("an image")).expect("written");
    let text = output("addr2line", &["-f", &format!("{:#x}", TEXT_VADDR + at), "-e"], &path);
    let (function, place) = text.trim().split_once('\n').expect("two lines");
    (function.to_owned(), place.split(" (").next().unwrap_or_default().to_owned())
}

fn start(image: &Image, name: &str) -> u64 {
    image.symbols.iter().find(|s| s.name == name).expect("the function exists").value
}

/// Sources with line directives, so that file names do not depend on where the compiler ran.
const FIRST: &str = "# 10 \"/src/first.c\"
int helper(int x) { return x * 3; }
# 20 \"/src/first.c\"
int first(int x) {
  x += 7;
  return helper(x);
}
";
const SECOND: &str = "# 30 \"lib/second.h\"
static int inner(int x) { return x - 1; }
# 40 \"second.c\"
int second(int x) { return inner(x); }
";

fn check_lines(first: Vec<u8>, second: Vec<u8>) {
    let image = imaged(&[("first.o", first), ("second.o", second)]);
    assert_eq!(image.debug.warnings, Vec::<String>::new());
    let at = |name: &str, offset: u64| address(&image, start(&image, name) + offset);
    assert_eq!(at("helper", 0), ("helper".to_owned(), "/src/first.c:10".to_owned()));
    assert_eq!(at("first", 0), ("first".to_owned(), "/src/first.c:20".to_owned()));
    let size = image.symbols.iter().find(|s| s.name == "first").expect("it exists").size;
    let lines: Vec<_> = (0..size / 8).map(|i| at("first", i * 8).1).collect();
    assert!(lines.iter().any(|l| l == "/src/first.c:21") && lines.iter().any(|l| l == "/src/first.c:22"), "{lines:?}");
    // gcc gives the epilogue the closing brace, clang the return statement.
    assert!(["/src/first.c:22", "/src/first.c:23"].contains(&at("first", size - 2).1.as_str()));
    let (function, place) = at("inner", 0);
    assert!(function == "inner" && place.starts_with('/') && place.ends_with("/lib/second.h:30"), "{place}");
    let (function, place) = at("second", 0);
    assert!(function == "second" && place.starts_with('/') && place.ends_with("/second.c:40"), "{place}");
}

#[test]
fn gcc_lines_survive_the_move() {
    for version in ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"] {
        for sections in ["-fno-function-sections", "-ffunction-sections"] {
            let build = |source| c(source, &["-O0", "-gz=none", version, sections]);
            check_lines(build(FIRST), build(SECOND));
        }
    }
}

#[test]
fn clang_lines_survive_the_move() {
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        for sections in ["-fno-function-sections", "-ffunction-sections"] {
            let build = |source| compile_with("clang-19", "c", source, &["-O0", version, sections]);
            check_lines(build(FIRST), build(SECOND));
        }
    }
}

#[test]
fn comdat_functions_keep_the_winner_lines() {
    let source = |name: &str| {
        format!(
            "# 5 \"/src/t.h\"\ntemplate<class T> T twice(T x) {{ return x + x; }}\n# 1 \"/src/{name}.cc\"\nint {name}() {{ return twice(2); }}\n"
        )
    };
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let build = |name: &str| compile_with("gcc", "c++", &source(name), &["-O0", version]);
        let image = imaged(&[("a.o", build("a")), ("b.o", build("b"))]);
        assert_eq!(image.debug.warnings, Vec::<String>::new());
        assert_eq!(address(&image, start(&image, "_Z5twiceIiET_S0_")).1, "/src/t.h:5");
        assert_eq!(address(&image, start(&image, "_Z1av")).1, "/src/a.cc:1");
        assert_eq!(address(&image, start(&image, "_Z1bv")).1, "/src/b.cc:1");
    }
}

#[test]
fn code_without_lines_has_none() {
    let bare = assembly(".globl bare\n.type bare,@function\nbare: nop\nnop\nret\n.size bare,.-bare\n");
    let image = imaged(&[("bare.o", bare.clone()), ("first.o", c(FIRST, &["-g", "-gz=none"]))]);
    assert_eq!(address(&image, start(&image, "bare")), ("bare".to_owned(), "??:?".to_owned()));
    assert_eq!(address(&image, start(&image, "helper")).1, "/src/first.c:10");
    let image = imaged(&[("bare.o", bare)]);
    assert_eq!(image.debug, DebugSections::default());
}

#[test]
fn binutils_read_the_sections_without_complaint() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("image");
    let members: [(&str, &[u8]); 1] = [("first.o", &c(FIRST, &["-g", "-gz=none"]))];
    let asks = c("int first(int); int main(void) { return first(1); }", &["-g", "-gz=none"]);
    let image = imaged(&[("main.o", asks), ("lib.a", archive("rcs", &members))]);
    std::fs::write(&path, write(&image).expect("an image")).expect("written");
    let text = output("readelf", &["-W", "--debug-dump=info,abbrev,decodedline"], &path);
    assert!(text.contains("DW_TAG_subprogram") && text.contains("first.c"), "{text}");
    assert!(!text.to_lowercase().contains("warning") && !text.contains("rror"), "{text}");
    let text = output("objdump", &["-dl"], &path);
    assert!(text.contains("/src/first.c:21"), "{text}");
}

#[test]
fn malformed_debug_information_is_left_out_with_a_warning() {
    let object = c(FIRST, &["-g", "-gz=none"]);
    let inputs = [Input { name: "first.o".to_owned(), bytes: object }];
    let mut program = read(&inputs, &MergeOptions::default()).expect("readable");
    let line = program.objects[0].debug.iter_mut().find(|d| d.name == ".debug_line").expect("lines");
    line.data[4] = 77;
    let image = moved(&program);
    let debug = lines(&program, &image.map, &image.symbols);
    assert_eq!(debug.warnings.len(), 1, "{:?}", debug.warnings);
    assert!(debug.warnings[0].starts_with("first.o: "));
    assert!(debug.line.is_empty());
}
