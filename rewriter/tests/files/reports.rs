//! What images say for reports is untrusted: any bytes in their line tables, maps, names, original instructions and stubs give a report.

use crate::toolchain::c;
use cordon_checker::Mode;
use cordon_loader::{Arg, Error, FaultKind, Image, Imports, LoadOptions, Window};
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _};
use std::ops::Range;

const SOURCE: &str = "
static int at(const char *p, long i) { return p[i]; }
__attribute__((noinline)) static long inner(const char *p, long i) { return at(p, i) + 1; }
long handler(const char *p, long i) { return inner(p, i) * 3; }";

/// Sections that only reports look at.
const SECTIONS: [&str; 9] = [
    ".symtab",
    ".strtab",
    ".cordon.map",
    ".cordon.objects",
    ".cordon.stubs",
    ".cordon.orig",
    ".debug_info",
    ".debug_line",
    ".debug_str",
];

fn image(metered: bool) -> Vec<u8> {
    let inputs = [Input { name: "at.o".into(), bytes: c(SOURCE, &["-O2", "-g", "-gz=none"]) }];
    let mode = Mode { matched: true, metered, ..Mode::default() };
    let options = Options { entries: vec!["handler".into()], heap: 1 << 16, argument: 1 << 16, mode, ..Options::default() };
    rewrite(&inputs, &options).expect("rewrites").image
}

/// Where the sections lie in the file.
fn ranges(file: &[u8]) -> Vec<Range<usize>> {
    let elf = ElfFile64::<LittleEndian>::parse(file).expect("readable");
    let range = |name: &&str| {
        let (start, len) = elf.section_by_name(name)?.file_range()?;
        Some(start as usize..(start + len) as usize)
    };
    let found: Vec<Range<usize>> = SECTIONS.iter().filter_map(range).collect();
    assert_eq!(found.len(), SECTIONS.len());
    found
}

/// The report of a stray access in `file`.
fn report(file: &[u8], fuel: Option<u64>) -> cordon_loader::Report {
    let image = Image::from_bytes(file, &LoadOptions { seal: false, fuel, ..LoadOptions::default() }).expect("loads");
    let mut window = Window::new(&image, &Imports::new()).expect("makes a window");
    match window.call("handler", &[Arg::Int(1 << 40), Arg::Int(5)]) {
        Err(Error::Fault(fault)) => fault.report(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_images_are_reported_in_full() {
    let told = report(&image(false), None);
    assert_eq!((told.kind, told.address, told.bytes), (FaultKind::StrayAccess, Some((1 << 40) + 5), Some(1)));
    let place = told.place.expect("a place");
    let source = place.source.expect("a line");
    assert_eq!((source.line, place.function.as_deref()), (2, Some("inner")));
    assert_eq!(place.origin.expect("an origin").object, "at.o");
    assert!(told.instruction.expect("the original").starts_with("movs"));
    assert_eq!(told.backtrace.len(), 2);
    let starved = report(&image(true), Some(1));
    assert_eq!((starved.kind, starved.fuel.map(|f| (f.limit, f.used))), (FaultKind::Fuel, Some((1, 1))));
    assert_eq!(starved.place.expect("a place").function.as_deref(), Some("handler"));
}

#[test]
fn damaged_tables_give_other_reports_and_no_panic() {
    let whole = image(true);
    let ranges = ranges(&whole);
    let mut state = 1_u64;
    let mut random = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit as u64) as usize
    };
    let mut different = 0;
    let first = report(&whole, None);
    for round in 0..1500 {
        let mut file = whole.clone();
        let range = ranges[round % ranges.len()].clone();
        for _ in 0..=random(4) {
            let at = range.start + random(range.len());
            file[at] = match random(3) {
                0 => random(256) as u8,
                1 => file[at] ^ 1 << random(8),
                _ => [0, 0x7f, 0x80, 0xff][random(4)],
            };
        }
        let told = report(&file, if round % 5 == 0 { Some(3) } else { None });
        assert!(!told.to_string().contains('\u{1b}'));
        different += usize::from(told != first);
    }
    assert!(different > 100, "{different}");
}
