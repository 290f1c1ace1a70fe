//! Every archive at work: round trips of compressors, a database, an interpreter, with the same output as natively.
//!
//! `scripts/workouts` (`CORDON_TEST_WORKOUTS=1`) has them do far more, and tells how long they took.

use cordon_fixtures::program::{Effort, WORKOUTS, Workout};
use std::path::Path;

/// What is given to `cordon cc`, and to `cordon run`.
const MODES: [(&str, &[&str], &[&str]); 6] = [
    ("sandbox", &[], &[]),
    ("match", &["--mode", "match"], &["--mode", "match"]),
    ("fuel", &["--fuel"], &["--fuel", "1000000000000"]),
    ("stores", &["--protect", "stores"], &["--protect", "stores"]),
    ("explicit masks", &["--masking", "explicit"], &[]),
    ("match, fuel", &["--mode", "match", "--fuel"], &["--mode", "match", "--fuel", "1000000000000"]),
];

/// Runs one workout natively and in these modes; prints the times if there is much to do.
fn compare(workout: &Workout, effort: Effort, modes: &[usize]) {
    let folder = tempfile::tempdir().expect("a folder");
    let rig =
        workout.set_up(folder.path(), Path::new(env!("CARGO_BIN_EXE_cordon"))).expect("scripts/setup installs what is needed");
    let name = workout.archive;
    let native = rig.native(effort).expect("it runs natively");
    assert!(native.output.len() > 50, "{name} shows little of what it did");
    for (mode, compiling, running) in modes.iter().map(|index| MODES[*index]) {
        rig.image("program.img", compiling).unwrap_or_else(|e| panic!("{name}, {mode}: {e:#}"));
        let hosted = rig.hosted("program.img", running, effort).unwrap_or_else(|e| panic!("{name}, {mode}: {e:#}"));
        let same = hosted.output == native.output;
        assert!(same, "{name}, {mode}:\n{}\nnatively\n{}", hosted.output.escape_ascii(), native.output.escape_ascii());
        if effort == Effort::Long {
            let [native, hosted] = [native.time, hosted.time].map(|time| time.as_secs_f64());
            println!("{name}, {mode}: the same; natively {native:.2} s, in a window {hosted:.2} s, ratio {:.3}", hosted / native);
        }
    }
}

#[test]
fn every_archive_computes_what_it_computes_natively() {
    let long = std::env::var_os("CORDON_TEST_WORKOUTS").is_some();
    for (index, workout) in WORKOUTS.iter().enumerate() {
        if long {
            compare(workout, Effort::Long, &[0, 1]);
        } else {
            // The rest of the modes is for another archive.
            compare(workout, Effort::Test, &[index % MODES.len()]);
        }
    }
}
