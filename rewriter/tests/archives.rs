//! Debian's prebuilt archives, rewritten whole: half a million instructions that nobody here compiled. The checker accepts all of it, and no
//! function is left out. `scripts/setup` installs the archives.

use cordon_checker::{Mode, Protect};
use cordon_rewriter::diag::Refusals;
use cordon_rewriter::{Options, Rewritten, object::Input, rewrite};

/// Archive and the number of functions in it that some entry reaches (every global function is one).
const ARCHIVES: [(&str, usize); 7] =
    [("z", 121), ("bz2", 44), ("lz4", 162), ("zstd", 792), ("lzma", 341), ("sqlite3", 2671), ("lua5.4", 715)];

fn whole(name: &str, mode: Mode) -> Result<Rewritten, Refusals> {
    let path = format!("/usr/lib/x86_64-linux-gnu/lib{name}.a");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}; scripts/setup installs it"));
    let inputs = [Input { name: path, bytes }];
    let mut options = Options { whole_archive: true, mode, ..Options::default() };
    // What the archive expects of its program, the host provides: names out of the first run's complaints.
    if let Err(refusals) = rewrite(&inputs, &options) {
        for problem in refusals.0.iter().filter(|p| p.code == "undefined-symbol") {
            options.imports.extend(problem.message.split('`').nth(1).map(str::to_owned));
        }
        options.imports.sort();
        options.imports.dedup();
    }
    rewrite(&inputs, &options)
}

fn rewrite_all(mode: Mode) {
    for (name, at_least) in ARCHIVES {
        let made = whole(name, mode).unwrap_or_else(|refusals| panic!("lib{name}.a: {refusals}"));
        // Another point release of Debian may have more or a few fewer functions, never half.
        assert!(made.stats.functions > at_least / 2, "lib{name}.a: only {} functions", made.stats.functions);
        println!(
            "lib{name}.a: {} functions, {} instructions, text {:+.1} %",
            made.stats.functions,
            made.stats.instructions,
            (made.stats.text_out as f64 / made.stats.text_in as f64 - 1.0) * 100.0
        );
    }
}

#[test]
fn every_function_of_debian_archives_is_rewritten() {
    rewrite_all(Mode::default());
}

#[test]
fn every_function_of_debian_archives_is_metered() {
    rewrite_all(Mode { matched: false, metered: true, protect: Protect::All });
}

#[test]
fn every_function_of_debian_archives_is_matched_and_metered() {
    rewrite_all(Mode { matched: true, metered: true, protect: Protect::All });
}
