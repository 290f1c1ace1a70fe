//! Debian's prebuilt archives, rewritten whole: more than half a million instructions that nobody here compiled. Every function is accounted
//! for (`accounts`), and every instruction is compared with what stands for it (`compare`). `scripts/setup` installs the archives.

mod accounts;
mod alloca;
mod code;
mod compare;
mod control;
mod data;
mod forms;
mod image;
mod masks;
mod original;
mod switches;

use cordon_checker::{Mode, Protect};
use cordon_fixtures::archives::{ARCHIVES, Archive};
use cordon_rewriter::Options;
use cordon_rewriter::accounts::{Accounts, members, settle};
use std::collections::BTreeSet;

/// The archive, rewritten as far as it can be.
fn whole(archive: &Archive, mode: Mode) -> Accounts {
    whole_with(archive, &Options { mode, ..Options::default() })
}

/// As [`whole`], with these options.
fn whole_with(archive: &Archive, options: &Options) -> Accounts {
    let bytes = archive.read().unwrap_or_else(|e| panic!("{e}"));
    let members = members(&bytes).expect("an archive");
    let options = Options { syscalls: archive.syscalls, ..options.clone() };
    settle(members, &options).unwrap_or_else(|refusals| panic!("{}: {refusals}", archive.name))
}

/// Rewrites all archives in `mode`; no function but those in the accounts may be refused.
fn rewrite_all(mode: Mode) {
    for archive in &ARCHIVES {
        let found = whole(archive, mode);
        // Another mode may find another reason first.
        let places = |lines: BTreeSet<String>| {
            lines.iter().filter_map(|l| l.split_once(": ").map(|(place, _)| place.to_owned())).collect()
        };
        let refused: BTreeSet<String> = places(accounts::refusals(archive, &found));
        let listed: BTreeSet<String> = places(accounts::listed().refused);
        let new: Vec<_> = refused.difference(&listed).collect();
        assert!(new.is_empty(), "{}: refused in this mode: {new:?}", archive.name);
    }
}

#[test]
fn archives_are_rewritten_metered() {
    rewrite_all(Mode { matched: false, metered: true, protect: Protect::All });
}

#[test]
fn archives_are_rewritten_matched_and_metered() {
    rewrite_all(Mode { matched: true, metered: true, protect: Protect::All });
}

#[test]
fn every_instruction_of_the_archives_does_what_it_did() {
    use rayon::prelude::*;
    let compared = |archive: &Archive| {
        let found = whole(archive, Mode::default());
        let old = original::Originals::read(&found.members);
        let new = image::Image::read(&found.made.image);
        let names = old.objects.iter().map(|o| &o.name);
        assert!(new.objects.iter().zip(names).all(|(new, old)| new.starts_with(old.as_str())), "{}: other objects", archive.name);
        let mut comparison = compare::Comparison::new(&old, &new);
        comparison.run();
        (comparison.counts, comparison.problems)
    };
    let all: Vec<_> = ARCHIVES.par_iter().map(|archive| (archive, compared(archive))).collect();
    let mut wrong = Vec::new();
    for (archive, (counts, problems)) in all {
        println!("{}:", archive.name);
        counts.iter().for_each(|(form, count)| println!("  {count:>7} {form}"));
        wrong.extend(problems.into_iter().map(|p| format!("{}: {p}", archive.name)));
    }
    let shown = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} instructions differ:\n{shown}", wrong.len());
}
