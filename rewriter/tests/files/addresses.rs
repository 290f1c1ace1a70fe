//! Each instruction of an image has the source line and the function that its original has in the object, and symbols are kept.

use crate::toolchain::output;
use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::{Mode, Protect};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, Rewritten, rewrite};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const SANDBOX: Mode = Mode { matched: false, metered: false, protect: Protect::All };
const MODES: [Mode; 4] = [
    SANDBOX,
    Mode { matched: true, ..SANDBOX },
    Mode { protect: Protect::Stores, ..SANDBOX },
    Mode { matched: true, metered: true, ..SANDBOX },
];

/// Inlined calls in inlined calls, a switch, an over-aligned local (whose function is copied), a string instruction, an `alloca`.
const SOURCE: &str = r#"
struct node { struct node *next; int key; };
int total = 1;
static inline int step(int x)
{
	return x * 3 + total;
}
static inline int twice(int x)
{
	total ^= step(x);
	return step(x + 1);
}
int choose(int what, int x)
{
	switch (what) {
	case 0: return twice(x);
	case 1: return x - 1;
	case 2: return x / 3;
	case 3: total = x; return 7;
	case 4: return x << 2;
	case 5: return ~x;
	default: return -x;
	}
}
int walk(struct node *at)
{
	int sum = 0;
	for (; at; at = at->next) {
		sum += twice(at->key);
		at->key = sum;
	}
	return sum;
}
int aligned(int n)
{
	int numbers[64] __attribute__((aligned(64)));
	for (int i = 0; i < 64; i++)
		numbers[i] = choose(i & 7, n);
	__asm__ volatile("" : : "r"(numbers) : "memory");
	return numbers[n & 63];
}
long room(unsigned n)
{
	char *bytes = __builtin_alloca(n + 1);
	__builtin_memset(bytes, 1, n);
	__asm__ volatile("" : : "r"(bytes) : "memory");
	return bytes[n / 2];
}
"#;

/// By address, what addr2line says: the line of the instruction itself, and the function around all that was inlined.
fn places(file: &Path, addresses: &[u64]) -> Vec<(String, String)> {
    let mut tool = Command::new("addr2line")
        .args(["-a", "-f", "-i", "-e"])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("binutils");
    let asked = addresses.iter().fold(String::new(), |mut text, address| {
        let _ = writeln!(text, "{address:#x}");
        text
    });
    let mut pipe = tool.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut pipe, asked.as_bytes()));
    let text = String::from_utf8(tool.wait_with_output().expect("it ends").stdout).expect("UTF-8");
    writer.join().expect("no panic").expect("it reads everything");
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("0x") {
            found.push(Vec::new());
        } else if let Some(lines) = found.last_mut() {
            lines.push(line.split(" (").next().unwrap_or_default());
        }
    }
    let place = |lines: Vec<&str>| (lines[1].to_owned(), lines[lines.len() - 2].to_owned());
    found.into_iter().map(place).collect()
}

/// Compares every instruction of one image.
fn compare(name: &str, object: &Path, rewritten: &Rewritten, image: &Path) {
    std::fs::write(image, &rewritten.image).expect("written");
    let map = &rewritten.parts.map;
    let old = places(object, &map.iter().map(|m| m.old.into()).collect::<Vec<_>>());
    let new = places(image, &map.iter().map(|m| TEXT_VADDR + u64::from(m.new)).collect::<Vec<_>>());
    assert_eq!((old.len(), new.len()), (map.len(), map.len()), "{name}");
    for ((old, new), entry) in old.iter().zip(&new).zip(map) {
        assert_eq!(old, new, "{name}: {entry:x?}");
    }
    let lines = |function: &str| new.iter().filter(|(line, f)| f == function && line.contains("/source.c:")).count();
    for function in ["choose", "walk", "aligned", "room"] {
        assert!(lines(function) > 8, "{name}: {function} has {} instructions with lines", lines(function));
    }
}

fn check(compiler: &str) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (source, object, image) = (folder.path().join("source.c"), folder.path().join("source.o"), folder.path().join("image"));
    std::fs::write(&source, SOURCE).expect("written");
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        for level in ["-O0", "-O2"] {
            let mut command = Command::new(compiler);
            let status = command.args([version, level, "-fno-pic", "-c"]).arg(&source).arg("-o").arg(&object).status();
            assert!(status.expect("the compiler is installed: run scripts/setup").success());
            let inputs = [Input { name: "source.o".into(), bytes: std::fs::read(&object).expect("an object") }];
            for mode in MODES {
                let name = format!("{compiler} {version} {level} {mode:?}");
                let rewritten = rewrite(&inputs, &Options { mode, ..Options::default() });
                let rewritten = rewritten.unwrap_or_else(|refusals| panic!("{name}: {refusals}"));
                compare(&name, &object, &rewritten, &image);
                symbols_are_kept(&name, &object, &rewritten, &image);
            }
        }
    }
}

/// `nm` gives the functions where the map says they begin, and the variables, under their names and with their kind.
fn symbols_are_kept(name: &str, object: &Path, rewritten: &Rewritten, image: &Path) {
    let listed = |file: &Path| -> Vec<(String, String, u64)> {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let (value, kind, name) = (words.next()?, words.next()?, words.next()?);
            Some((name.to_owned(), kind.to_owned(), u64::from_str_radix(value, 16).ok()?))
        };
        output("nm", &[], file).lines().filter_map(line).collect()
    };
    let new = listed(image);
    for (symbol, kind, old) in listed(object).into_iter().filter(|(_, kind, _)| "TtDdBb".contains(kind.as_str())) {
        let Some((_, its_kind, value)) = new.iter().find(|(n, ..)| *n == symbol) else { panic!("{name}: {symbol} is gone") };
        assert_eq!(*its_kind, kind, "{name}: {symbol}");
        if kind.eq_ignore_ascii_case("t") {
            // The entry's meter or limit stands in front of its first instruction.
            let first =
                rewritten.parts.map.iter().filter(|m| u64::from(m.old) == old).map(|m| TEXT_VADDR + u64::from(m.new)).min();
            assert!(first.is_some_and(|first| (first..=first + 16).contains(value) || *value <= first), "{name}: {symbol}");
        }
    }
}

#[test]
fn gcc_instructions_keep_line_and_function() {
    check("gcc");
}

#[test]
fn clang_instructions_keep_line_and_function() {
    check("clang-19");
}
