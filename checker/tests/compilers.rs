//! What compilers emit and the checker refuses in every form: `golden/compilers.lst` lists each such instruction of Debian's archives and of
//! the fixtures, with the reason and what the rewriter does with it. `CORDON_BLESS=1` writes the list anew.

#[path = "oracle/refused.rs"]
mod refused;

use iced_x86::{Code, Decoder, DecoderOptions};
use object::{Object, ObjectSection, SectionKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Archives that others compiled. glibc's hold hand-written code for many processors and are not rewritten, so they are not here.
const ARCHIVES: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu/libbz2.a",
    "/usr/lib/x86_64-linux-gnu/liblua5.4.a",
    "/usr/lib/x86_64-linux-gnu/liblz4.a",
    "/usr/lib/x86_64-linux-gnu/liblzma.a",
    "/usr/lib/x86_64-linux-gnu/libsqlite3.a",
    "/usr/lib/x86_64-linux-gnu/libz.a",
    "/usr/lib/x86_64-linux-gnu/libzstd.a",
    "/usr/lib/x86_64-linux-musl/libc.a",
];

/// How the fixtures are compiled: as by default, and for processors with AVX2, FMA and BMI, as `-march=native` would choose on most.
const FLAGS: [&[&str]; 2] = [&["-Os"], &["-O3", "-march=x86-64-v3", "-fcf-protection"]];

/// What the rewriter does with what is refused for a reason (DESIGN §4 and §6).
const ANSWERS: [(&str, &str); 9] = [
    ("a call of the kernel", "an import with --syscalls, else refused"),
    ("control words: a gate", "fldcw and ldmxcsr become gates, the environment is refused"),
    ("direction flag: always clear", "a copy from high to low addresses is a loop, else refused"),
    ("frame pointers as stack pointers", "the same by lea and pop"),
    ("memory at an implicit rsi or rdi", "a gate"),
    ("privileged", "hlt is ud2, else refused"),
    ("push of a constant", "lea and a store to the data stack"),
    ("push or pop of memory, alias for registers", "lea and moves through the data stack"),
    ("shows the machine: a gate", "a gate"),
];

/// Every code in the executable sections of an object, by a linear sweep.
fn codes(object: &[u8], found: &mut BTreeSet<usize>) {
    let Ok(file) = object::File::parse(object) else { return };
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Ok(text) = section.data() else { continue };
        found.extend(Decoder::new(64, text, DecoderOptions::NONE).into_iter().map(|instruction| instruction.code() as usize));
    }
}

fn codes_of_archive(path: &str) -> Option<BTreeSet<usize>> {
    let bytes = std::fs::read(path).ok()?;
    let archive = object::read::archive::ArchiveFile::parse(&*bytes).expect("an archive");
    let mut found = BTreeSet::new();
    for member in archive.members() {
        codes(member.expect("a member").data(&*bytes).expect("its bytes"), &mut found);
    }
    Some(found)
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/handlers");
    let entries = std::fs::read_dir(folder).expect("the fixtures are there").map(|entry| entry.expect("readable").path());
    let mut sources: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "c")).collect();
    sources.sort();
    sources
}

fn codes_of_fixtures(flags: &[&str]) -> BTreeSet<usize> {
    let object = std::env::temp_dir().join(format!("cordon-compilers-{}.o", std::process::id()));
    let mut found = BTreeSet::new();
    for source in fixtures() {
        let compiled = Command::new("gcc").arg("-c").args(flags).arg("-o").arg(&object).arg(&source).output().expect("gcc runs");
        if compiled.status.success() {
            codes(&std::fs::read(&object).expect("an object"), &mut found);
        }
    }
    let _ = std::fs::remove_file(&object);
    found
}

#[test]
fn what_compilers_emit_and_the_checker_refuses_is_listed() {
    let mut seen: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let mut add = |codes: BTreeSet<usize>, name: &str| {
        for code in codes {
            seen.entry(code).or_default().insert(name.to_owned());
        }
    };
    for path in ARCHIVES {
        // Another machine may have other packages; then there is nothing to compare.
        let Some(codes) = codes_of_archive(path) else { return };
        let musl = path.contains("musl");
        add(codes, if musl { "musl" } else { path.rsplit('/').next().unwrap_or(path).trim_end_matches(".a") });
    }
    for flags in FLAGS {
        add(codes_of_fixtures(flags), "fixtures");
    }
    assert!(seen.len() > 300, "{} instruction forms", seen.len());
    let mut list = String::new();
    for (code, places) in &seen {
        let code = Code::try_from(*code).expect("a code");
        let Some(why) = refused::refused(code) else { continue };
        let answer = ANSWERS.iter().find(|(reason, _)| *reason == why);
        let answer = answer.unwrap_or_else(|| panic!("{code:?}: nobody says what happens to \"{why}\"")).1;
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        list += &format!("{why} | {} | {answer} | {}\n", code.op_code().instruction_string(), places.join(" "));
    }
    let mut lines: Vec<&str> = list.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    let list = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compilers.lst");
    if std::env::var_os("CORDON_BLESS").is_some() {
        std::fs::write(&path, &list).expect("the list can be written");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), list, "CORDON_BLESS=1 writes the list");
}
