//! Every function of musl's libc.a is accounted for: rewritten, or in the table `tests/hosted/musl.txt` with its reason. The table may only get
//! shorter; `CORDON_BLESS=1` writes it anew.

use crate::MUSL;
use cordon_rewriter::{Options, object::Input, rewrite};
use object::read::archive::ArchiveFile;
use std::collections::BTreeSet;
use std::path::Path;

/// The members of the archive, each as the one member of an archive.
fn members() -> Vec<Input> {
    let path = format!("{MUSL}/libc.a");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}; scripts/setup installs it"));
    let archive = ArchiveFile::parse(&*bytes).expect("an archive");
    let member = |m: object::read::Result<object::read::archive::ArchiveMember>| {
        let member = m.expect("a member");
        let (name, data) = (member.name(), member.data(&*bytes).expect("its bytes"));
        // The BSD form, in which a name may be long.
        let header =
            format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", format!("#1/{}", name.len()), 0, 0, 0, 644, name.len() + data.len());
        let bytes = [b"!<arch>\n", header.as_bytes(), name, data].concat();
        Input { name: String::from_utf8_lossy(name).into_owned(), bytes }
    };
    archive.members().map(member).collect()
}

#[test]
fn only_the_listed_functions_of_musl_are_refused() {
    let mut inputs = members();
    let mut options = Options { syscalls: true, whole_archive: true, ..Options::default() };
    let mut refused = BTreeSet::new();
    let made = loop {
        let refusals = match rewrite(&inputs, &options) {
            Ok(made) => break made,
            Err(refusals) => refusals.0,
        };
        let mut without = BTreeSet::new();
        for problem in &refusals {
            if problem.code == "undefined-symbol" {
                // Defined by a member that is refused, or by the compiler's support library.
                options.imports.extend(problem.message.split('`').nth(1).map(str::to_owned));
            } else {
                let function = problem.place.symbol.as_deref().unwrap_or("?");
                let member = problem.place.object.split('(').next().unwrap_or_default().to_owned();
                refused.insert(format!("{member} {function}: {} [{}]", problem.message, problem.code));
                without.insert(member);
            }
        }
        options.imports.sort();
        options.imports.dedup();
        inputs.retain(|input| !without.contains(&input.name));
        assert!(!refusals.is_empty());
    };
    assert!(made.stats.functions > 1500, "only {} functions", made.stats.functions);
    println!("{} functions, {} instructions, {} refused", made.stats.functions, made.stats.instructions, refused.len());

    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosted/musl.txt");
    let head = "# Functions of musl's libc.a that `cordon rewrite --syscalls` refuses, with the reasons; kept by tests/hosted/refusals.rs.\n";
    if std::env::var_os("CORDON_BLESS").is_some() {
        let lines: String = refused.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&table, format!("{head}{lines}")).expect("written");
    }
    let listed = std::fs::read_to_string(&table).expect("the table is there");
    let listed: BTreeSet<String> = listed.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    assert_eq!(refused, listed, "the table is out of date; fewer is better, more is not: CORDON_BLESS=1 writes it");
}
