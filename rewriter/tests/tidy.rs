//! Rules over the source tree itself: short files, nothing left undone, documents that name files which exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MOST_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// Every file of the tree with extension `ext`, without build output and hidden folders.
fn files(ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable folder") {
            let path = entry.expect("readable entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with('.') || name.starts_with("target") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == ext) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no *.{ext} under {}", root().display());
    found
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn report(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
}

#[test]
fn source_files_are_short() {
    let long = |path: &PathBuf| {
        let lines = fs::read_to_string(path).expect("UTF-8 source").lines().count();
        (lines > MOST_LINES).then(|| format!("{}: {lines} lines", short(path)))
    };
    report("files that outgrew one screenful of ideas", &files("rs").iter().filter_map(long).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    // Assembled here, so that this file does not contain them.
    let marks = ["todo", "unimplemented", "dbg"].map(|m| format!("{m}!("));
    let others = [format!("#[{}", "ignore"), format!("allow({}", "dead_code"), format!("FIX{}", "ME")];
    let mut wrong = Vec::new();
    for path in files("rs") {
        let text = fs::read_to_string(&path).expect("UTF-8 source");
        for (number, line) in text.lines().enumerate() {
            wrong.extend(
                marks
                    .iter()
                    .chain(&others)
                    .filter(|m| line.contains(m.as_str()))
                    .map(|m| format!("{}:{}: {m}", short(&path), number + 1)),
            );
        }
    }
    report("marks of unfinished work", &wrong);
}

/// The path-like words of a document: in backticks or link targets, and in the spelling of files.
fn paths(text: &str, extensions: &[&str]) -> Vec<(usize, String)> {
    let plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let looks = |word: &str| {
        let file = Path::new(word).extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
        let folder = word.ends_with('/') && word.len() > 1;
        plain(word) && !word.starts_with(['/', '-', '.']) && (file || folder)
    };
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        let ticks = line.split('`').skip(1).step_by(2);
        let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        found.extend(ticks.chain(links).filter(|w| looks(w)).map(|w| (number + 1, w.to_owned())));
    }
    found
}

/// A document may name a file from the root, from any folder that it lies in, or from the sources there.
fn exists(document: &Path, word: &str) -> bool {
    let folders = document.ancestors().skip(1).take_while(|folder| folder.starts_with(root()));
    folders.flat_map(|folder| [folder.join(word), folder.join("src").join(word)]).any(|path| path.exists())
}

#[test]
fn documents_name_files_that_exist() {
    let extensions = ["rs", "md", "toml", "c", "h", "sh", "S", "json"];
    let mut wrong = Vec::new();
    for path in files("md") {
        let text = fs::read_to_string(&path).expect("UTF-8 document");
        let missing = paths(&text, &extensions).into_iter().filter(|(_, word)| !exists(&path, word));
        wrong.extend(missing.map(|(line, word)| format!("{}:{line}: {word}", short(&path))));
    }
    report("paths in documents that do not exist", &wrong);
}

#[test]
fn path_words_are_found_in_backticks_and_links() {
    let text = "See `src/a.rs` and [b](doc/b.md#part), `a / b`, `x.y`, `lib/`.\n```\n`c.rs`\n```\n`--out d.rs`, `d.rs`";
    let words: Vec<String> = paths(text, &["rs", "md"]).into_iter().map(|(_, w)| w).collect();
    assert_eq!(words, ["src/a.rs", "lib/", "doc/b.md", "d.rs"]);
}

/// Some of them run for hours.
#[test]
fn scripts_say_what_they_do_before_they_do_it() {
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root().join("scripts")).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        let text = fs::read_to_string(&path).expect("UTF-8 script");
        let Some(first) = text.strip_prefix("#!/usr/bin/env bash\n# ").and_then(|rest| rest.lines().next()) else { continue };
        // The line alone decides, so that a script without it runs nothing here.
        let answers =
            text.lines().find(|line| !line.starts_with('#')).is_some_and(|line| line.starts_with("case ${1:-} in -h | --help)"));
        let output = answers.then(|| Command::new(&path).arg("--help").output().expect("starts"));
        if !output.is_some_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).starts_with(first)) {
            wrong.push(short(&path));
        }
    }
    report("scripts without --help", &wrong);
}
