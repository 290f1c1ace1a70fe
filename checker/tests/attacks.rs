//! The table of attacks names every item of the two lists, and each reference in it exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("attacks.md");

/// Rows as item, attack and what shows it.
fn rows() -> Vec<[&'static str; 3]> {
    let row = |line: &'static str| {
        let cells: Vec<&str> = line.trim_matches('|').splitn(3, " | ").map(str::trim).collect();
        <[&str; 3]>::try_from(cells).unwrap_or_else(|_| panic!("no row of three: {line}"))
    };
    TABLE.lines().filter(|line| line.starts_with("| ")).map(row).filter(|[item, ..]| !matches!(*item, "item" | "---")).collect()
}

/// Items of the design review, then of the checklist.
fn items() -> BTreeSet<String> {
    let lettered = [("A", 12), ("B", 13), ("C", 16), ("G", 7)];
    let review = lettered.iter().flat_map(|(letter, count)| (1..=*count).map(move |n| format!("{letter}{n}")));
    review.chain(["D", "E", "F"].map(str::to_owned)).chain((1..=47).map(|n| n.to_string())).collect()
}

/// The file that a reference names.
fn find(file: &str) -> Option<PathBuf> {
    let checker = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [checker.join("tests"), checker.join("loader/tests"), checker.join("..")];
    places.iter().map(|place| place.join(file)).find(|path| path.is_file())
}

fn exists(reference: &str) -> bool {
    let Some((file, name)) = reference.split_once('#') else { return false };
    let Some(text) = find(file).and_then(|path| std::fs::read_to_string(path).ok()) else { return false };
    if file.ends_with(".txt") {
        // A whole group: its title, then cases.
        return text.lines().any(|line| line.strip_prefix("# ").is_some_and(|title| title.starts_with(name)));
    }
    // A test, in a macro or not.
    text.match_indices(&format!("fn {name}(")).any(|(at, _)| text[..at].trim_end().ends_with("#[test]"))
}

#[test]
fn every_item_has_a_row() {
    let found: Vec<String> = rows().iter().map(|[item, ..]| (*item).to_owned()).collect();
    let distinct: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(found.len(), distinct.len(), "an item twice");
    assert_eq!(distinct, items());
}

#[test]
fn every_reference_exists() {
    let mut references = 0;
    for [item, attack, shown] in rows() {
        let named: Vec<&str> = shown.split('`').skip(1).step_by(2).filter(|name| name.contains('#')).collect();
        assert!(!named.is_empty() || shown.starts_with("Not applicable: "), "{item}, {attack}: nothing shows it");
        for reference in named {
            assert!(exists(reference), "{item}: no {reference}");
            references += 1;
        }
    }
    assert!(references > 100, "{references}");
    assert!(!exists("golden/stack.txt#no such group") && !exists("interface.rs#validate"), "anything exists");
}
