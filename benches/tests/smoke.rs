//! Every row and column of the benches that the workspace builds, once: what they compute is compared with native. No verdict on time.

use std::process::Command;

#[test]
fn every_row_computes_in_every_column_what_it_computes_natively() {
    let output = Command::new(env!("CARGO_BIN_EXE_cordon-benches")).arg("smoke").output().expect("it starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    let numbers: Vec<usize> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [rows, cells, figures, page] = numbers[..] else { panic!("four numbers in {said}") };
    // What is missing says so in `rows.rs`; these are what stood here when this was written.
    assert!(rows >= 42 && cells >= 617 && figures >= 19 && page > 100_000, "{said}");
}

#[test]
fn unknown_rows_and_columns_are_named() {
    for (option, name) in [
        ("--program", "no program nonsense; there are: empty_call, filters,"),
        ("--column", "no column nonsense; there are: gcc, clang,"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_cordon-benches")).args(["smoke", option, "nonsense"]).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(name), "{errors}");
    }
}
