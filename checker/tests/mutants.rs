//! The list of the changes that no test notices (`scripts/mutants`) names functions that there are, and gives reasons.

use std::path::Path;

const LIST: &str = include_str!("mutants.md");

/// The function that a change is in, as cargo-mutants names it: `replace a with b in Type::function`, `replace Type::function -> T with v`;
/// `None` for one in a constant.
fn function(change: &str) -> Option<&str> {
    let place = match change.rsplit_once(" in ") {
        Some((_, place)) => place,
        None => change.strip_prefix("replace ")?.split_once(" -> ")?.0,
    };
    place.rsplit("::").next()
}

#[test]
fn every_explained_mutant_is_in_a_function_that_exists() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut source, mut changes) = (String::new(), 0);
    for line in LIST.lines() {
        if let Some(file) = line.strip_prefix("## ") {
            source = std::fs::read_to_string(sources.join(file)).unwrap_or_else(|_| panic!("no {file}"));
        }
        let Some((change, why)) = line.strip_prefix("- `").and_then(|rest| rest.split_once('`')) else { continue };
        assert!(why.split_once(": ").is_some_and(|(_, reason)| reason.len() > 3), "no reason: {line}");
        if let Some(name) = function(change) {
            assert!(source.contains(&format!("fn {name}")), "no function {name}: {line}");
        }
        changes += 1;
    }
    assert!(changes > 0);
}
