//! The README's tables.

use super::aims::aims;
use super::{figure, percent, ratio, time};
use crate::archives::Archives;
use crate::columns::BASELINE;
use crate::results::{ColumnResult, Count, Pick, Results, RowResult, mean, mean_against};
use crate::stats::geomean;
use crate::workouts;
use std::fmt::Write as _;

/// Columns that fit a README; the report has all.
const COMPARED: [&str; 13] = [
    "clang",
    "fast",
    "window",
    "window-clang",
    "masks",
    "stores",
    "match",
    "metered",
    "wasm2c",
    "wasmtime",
    "wasmtime-epoch",
    "wasmi",
    "futex",
];
/// Columns of single operations: the modes hardly differ there.
const OPERATED: [&str; 8] = ["gcc", "fast", "window", "wasmtime", "wasmtime-epoch", "wasmi", "futex", "pipe"];

/// Every section of the document with its text.
pub fn sections(results: &Results) -> Vec<(&'static str, String)> {
    let mut sections = vec![("comparison", comparison(results)), ("micro", micro(results)), ("aims", aims(results))];
    sections.extend(results.archives.as_ref().map(|archives| ("archives", self::archives(results, archives))));
    sections
}

/// What run the numbers are of.
fn heading(results: &Results) -> String {
    let machine = &results.machine;
    let warning = results.preliminary.as_ref().map_or_else(String::new, |reason| format!("**Preliminary: {reason}.** "));
    let layouts = "three code layouts";
    format!(
        "{warning}{}; {}. Run of {}, commit {}: medians of {} interleaved rounds for each of {layouts}, then the median over the layouts, as ratios to gcc -O2.",
        machine.line(),
        machine.tools.first().map_or("gcc", String::as_str),
        results.date,
        machine.commit,
        results.rounds
    )
}

/// Programs against columns.
pub fn comparison(results: &Results) -> String {
    let columns: Vec<&ColumnResult> = results.used_columns().into_iter().filter(|c| COMPARED.contains(&c.id.as_str())).collect();
    let mut text = heading(results) + "\n\n";
    let titles: Vec<&str> = columns.iter().map(|c| c.title.as_str()).collect();
    let _ =
        writeln!(text, "| program | gcc, a call | {} |\n| --- | ---: |{}", titles.join(" | "), " ---: |".repeat(columns.len()));
    let line = |name: &str, native: &str, cell: &dyn Fn(&str) -> String| {
        format!("| {name} | {native} | {} |\n", columns.iter().map(|c| cell(&c.id)).collect::<Vec<_>>().join(" | "))
    };
    for row in &results.rows {
        let native = row.each(BASELINE, Pick::Median).map_or_else(|| "–".into(), time);
        text += &line(&row.name, &native, &|id| ratio(row.ratio(id, Pick::Median)));
    }
    let average = |keep: &dyn Fn(&RowResult) -> bool, id: &str| {
        let rows = results.rows.iter().filter(|row| keep(row));
        mean(rows, id, Pick::Median).map_or_else(|| "–".into(), |mean| format!("{} ({})", ratio(Some(mean.ratio)), mean.rows))
    };
    text += &line("**geometric mean (rows), calls over 1 µs**", "", &|id| average(&RowResult::is_long, id));
    text += &line("**geometric mean (rows), all**", "", &|id| average(&|_| true, id));
    let same = |id: &str| {
        let base = columns.iter().find(|column| column.id == id).map_or(BASELINE, |column| &column.native);
        let mean = mean_against(results.rows.iter().filter(|row| row.is_long()), base, id, Pick::Median);
        mean.map_or_else(|| "–".into(), |mean| format!("{} ({})", ratio(Some(mean.ratio)), mean.rows))
    };
    text += &line("**the same, over 1 µs, to the same compiler's native code**", "", &same);
    let growth = |id: &str| {
        let all: Vec<f64> = results.rows.iter().filter_map(|row| row.cells.get(id)?.growth()).collect();
        geomean(&all).map_or_else(|| "–".into(), percent)
    };
    text += &line("**text, geometric mean**", "", &growth);
    text
}

/// Single operations.
pub fn micro(results: &Results) -> String {
    let columns: Vec<&ColumnResult> = results.columns.iter().filter(|c| OPERATED.contains(&c.id.as_str())).collect();
    let titles: Vec<&str> = columns.iter().map(|c| c.title.as_str()).collect();
    let mut text = format!("| operation | {} |\n| --- |{}\n", titles.join(" | "), " ---: |".repeat(columns.len()));
    for operation in &results.micro {
        let cell =
            |c: &&ColumnResult| operation.values.get(&c.id).map_or_else(String::new, |value| figure(*value, &operation.unit));
        let _ = writeln!(text, "| {} | {} |", operation.name, columns.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    text
}

/// Instructions, as ratios to native.
pub fn instructions(counts: &[Count]) -> String {
    let ids: Vec<&str> = counts
        .first()
        .map_or_else(Vec::new, |count| count.columns.keys().map(String::as_str).filter(|id| *id != BASELINE).collect());
    let mut text = format!("| program | gcc, a call | {} |\n| --- | ---: |{}\n", ids.join(" | "), " ---: |".repeat(ids.len()));
    for count in counts {
        let native = count.columns.get(BASELINE).copied().unwrap_or(f64::NAN);
        let cells: Vec<String> = ids.iter().map(|id| ratio(count.ratio(id))).collect();
        let _ = writeln!(text, "| {} | {native:.1} | {} |", count.name, cells.join(" | "));
    }
    text
}

/// Archives and the programs around them.
fn archives(results: &Results, archives: &Archives) -> String {
    let ids = workouts::COLUMNS.map(|c| c.0);
    let title = |id: &str| results.columns.iter().find(|c| c.id == id).map_or_else(|| id.to_owned(), |c| c.title.clone());
    let rounds = archives.programs.first().map_or(0, |row| row.native.len());
    let mut text = format!(
        "{}; {} and musl. Each archive in a program of `fixtures/programs/`, natively and under `cordon run`: processor time of the whole process, \
         load and check of the image included, medians of {rounds} interleaved rounds; ratios to native.\n\n",
        results.machine.line(),
        results.machine.tools.first().map_or("gcc", String::as_str),
    );
    let _ = writeln!(
        text,
        "| archive | functions | instructions | refused | text | native | {} | spread of windows |",
        ids.map(title).join(" | ")
    );
    let _ = writeln!(text, "| --- | ---: | ---: | ---: | ---: | ---: |{} --- |", " ---: |".repeat(ids.len()));
    let (mut text_in, mut text_out) = (0, 0);
    for account in &archives.accounts {
        (text_in, text_out) = (text_in + account.text_in, text_out + account.text_out);
        let row = archives.programs.iter().find(|row| row.archive == account.name);
        let cells: Vec<String> = ids.iter().map(|id| row.map_or_else(String::new, |row| ratio(row.ratio(id)))).collect();
        let spread = row.and_then(workouts::Row::spread).map_or_else(String::new, |(low, high)| format!("{low:.3} … {high:.3}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {spread} |",
            account.name,
            account.functions,
            account.instructions,
            account.refused,
            percent(account.text_out as f64 / account.text_in as f64),
            row.map_or_else(String::new, |row| time(row.native())),
            cells.join(" | ")
        );
    }
    let mean = |id: &str| ratio(geomean(&archives.programs.iter().filter_map(|row| row.ratio(id)).collect::<Vec<_>>()));
    let means: Vec<String> = ids.iter().map(|id| mean(id)).collect();
    let _ = writeln!(
        text,
        "| all, geometric mean | | | | {} | | {} | |\n",
        percent(text_out as f64 / text_in.max(1) as f64),
        means.join(" | ")
    );
    let together = &archives.together;
    let _ = writeln!(
        text,
        "{} together, {} instructions: {:.1} s on {} processors ({:.1} s of processor time, {:.1} MB/s of code), {} MiB at most",
        together.names.join(" + "),
        together.instructions,
        together.seconds,
        together.processors,
        together.processor_seconds,
        together.text_in as f64 / together.seconds / 1e6,
        together.peak_mib
    );
    text
}

#[cfg(test)]
mod tests {
    use super::{COMPARED, OPERATED, comparison, sections};
    use crate::archives::{Account, Archives, Together};
    use crate::columns::COLUMNS;
    use crate::results::tests::example;
    use crate::workouts;

    #[test]
    fn the_table_has_medians_over_layouts_and_means_over_programs() {
        let text = comparison(&example());
        for line in [
            "**Preliminary: a test.**",
            "| program | gcc, a call | Cordon, window |",
            "| a | 10.0 µs | 1.100 |",
            "| b | 10.0 ns | 4.400 |",
            "| **geometric mean (rows), calls over 1 µs** |  | 1.100 (1) |",
            "| **geometric mean (rows), all** |  | 2.200 (2) |",
            "| **the same, over 1 µs, to the same compiler's native code** |  | 1.100 (1) |",
            "| **text, geometric mean** |  | +10.0 % |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn tables_have_columns_that_exist() {
        for id in COMPARED.iter().chain(&OPERATED) {
            assert!(COLUMNS.iter().any(|column| column.id == *id), "{id}");
        }
    }

    #[test]
    fn archives_stand_with_their_programs() {
        let mut results = example();
        let account =
            |name: &str| Account { name: name.into(), functions: 1, instructions: 2, refused: 0, text_in: 100, text_out: 120 };
        let together = Together {
            names: vec!["a".into(), "b".into()],
            instructions: 4,
            text_in: 3_000_000,
            seconds: 1.5,
            processors: 2,
            processor_seconds: 2.0,
            peak_mib: 9,
        };
        let programs = vec![workouts::tests::example("a", 1), workouts::tests::example("b", 4)];
        results.archives = Some(Archives { accounts: vec![account("a"), account("b"), account("c")], programs, together });
        let sections = sections(&results);
        let (_, text) = sections.iter().find(|(name, _)| *name == "archives").expect("a section");
        for line in [
            "| a | 1 | 2 | 0 | +20.0 % | 2000.0 ms | 1.100 | 1.000 | – | – | 1.500 | – | 0.900 … 1.100 |",
            "| all, geometric mean | | | | +20.0 % | | 1.407 |",
            "a + b together, 4 instructions: 1.5 s on 2 processors (2.0 s of processor time, 2.0 MB/s of code), 9 MiB at most",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
