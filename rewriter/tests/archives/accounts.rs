//! The table of accounts, `accounts.txt`: for each archive the functions, what is refused and why, and how much its text grows. Refusals may
//! only get fewer; `CORDON_BLESS=1` writes the table anew.

use crate::whole;
use cordon_checker::Mode;
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_rewriter::accounts::{Accounts, member_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// How far the growth of an archive's text may be from the table, per mille of the original: another point release, another compiler.
const TOLERANCE: i64 = 10;

const HEAD: &str = "\
# Prebuilt archives, rewritten whole in the default mode; kept by tests/archives/accounts.rs.
# archive: functions rewritten, functions refused, growth of the text in per mille
";

/// The table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By archive: functions, refusals, growth.
    archives: BTreeMap<String, [i64; 3]>,
    /// One line for each place.
    pub refused: BTreeSet<String>,
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/archives/accounts.txt")
}

/// The table as it is in the repository.
pub fn listed() -> Table {
    let mut table = Table::default();
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        match line.split_once(": ") {
            Some((name, numbers)) if !name.contains(' ') => {
                let numbers: Vec<i64> = numbers.split(", ").map(|n| n.parse().expect("a number")).collect();
                table.archives.insert(name.to_owned(), numbers.try_into().expect("three numbers"));
            }
            _ => {
                table.refused.insert(line.to_owned());
            }
        }
    }
    table
}

/// A line for each thing that was refused.
pub fn refusals(archive: &Archive, found: &Accounts) -> BTreeSet<String> {
    let line = |d: &cordon_rewriter::diag::Diagnostic| {
        let function = d.place.symbol.as_deref().unwrap_or("?");
        format!("{} {} {function}: {} [{}]", archive.name, member_of(d), d.message, d.code)
    };
    found.refused.iter().map(line).collect()
}

fn table() -> Table {
    let mut table = Table::default();
    for archive in &ARCHIVES {
        let found = whole(archive, Mode::default());
        let stats = found.made.stats;
        let refused = refusals(archive, &found);
        let growth = (stats.text_out as i64 - stats.text_in as i64) * 1000 / stats.text_in as i64;
        table.archives.insert(archive.name.to_owned(), [stats.functions as i64, found.functions_refused().len() as i64, growth]);
        table.refused.extend(refused);
    }
    table
}

fn text(table: &Table) -> String {
    let mut text = String::from(HEAD);
    for (name, [functions, refused, growth]) in &table.archives {
        let _ = writeln!(text, "{name}: {functions}, {refused}, {growth}");
    }
    text.push_str("# what is refused: archive, member, function, reason\n");
    table.refused.iter().for_each(|line| {
        let _ = writeln!(text, "{line}");
    });
    text
}

#[test]
fn every_function_of_the_archives_is_accounted_for() {
    let found = table();
    if std::env::var_os("CORDON_BLESS").is_some() {
        std::fs::write(path(), text(&found)).expect("written");
    }
    let listed = listed();
    assert_eq!(found.refused, listed.refused, "the table is out of date; fewer is better, more is not: CORDON_BLESS=1 writes it");
    for (name, [functions, _, growth]) in &found.archives {
        let [known, _, before] = listed.archives.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        assert!(functions * 10 > known * 9, "{name}: only {functions} functions of {known}");
        let change = growth - before;
        assert!(change.abs() <= TOLERANCE, "{name}: text grows by {growth} ‰, {before} in the table: CORDON_BLESS=1 writes it");
    }
}
