//! What windows cost whole programs around Debian's archives, against the same program and archive linked natively with the same C library.

use crate::report::ratio;
use crate::stats::{geomean, median};
use anyhow::{Context, Result, ensure};
use cordon_fixtures::program::{Effort, Rig, Workout};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A column of the table: its name, words for `cordon cc`, words for `cordon run`.
const COLUMNS: [(&str, &[&str], &[&str]); 3] = [
    ("window", &[], &[]),
    ("fast window", &["--fast-window"], &["--fast-window"]),
    ("match", &["--mode", "match"], &["--mode", "match"]),
];

/// Processor times of one archive's program: what the process took, from start to end.
pub struct Row {
    pub archive: &'static str,
    native: Vec<u64>,
    columns: [Vec<u64>; COLUMNS.len()],
}

impl Row {
    fn native(&self) -> f64 {
        median(&self.native).map_or(f64::NAN, |ns| ns as f64)
    }

    /// Medians against each other.
    fn ratio(&self, column: usize) -> Option<f64> {
        Some(median(&self.columns[column])? as f64 / self.native())
    }

    /// Least and greatest ratio of one round in a window.
    fn spread(&self) -> Option<(f64, f64)> {
        let rounds = || self.columns[0].iter().zip(&self.native).map(|(window, native)| *window as f64 / *native as f64);
        Some((rounds().reduce(f64::min)?, rounds().reduce(f64::max)?))
    }
}

/// The `cordon` command that was built beside this one.
///
/// # Errors
/// If there is none.
pub fn cordon() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("cordon");
    ensure!(path.exists(), "{} is missing: cargo build --release", path.display());
    Ok(path)
}

/// Measures one archive in `rounds` rounds, each of which runs every form once.
///
/// # Errors
/// If it cannot be built, or prints something else in a window than natively.
pub fn row(workout: &Workout, cordon: &Path, rounds: u32) -> Result<Row> {
    let folder = tempfile::tempdir()?;
    let rig = workout.set_up(folder.path(), cordon)?;
    for (name, compiling, _) in COLUMNS {
        rig.image(name, compiling)?;
    }
    let mut row = Row { archive: workout.archive, native: Vec::new(), columns: Default::default() };
    for _ in 0..rounds {
        round(&rig, &mut row)?;
    }
    Ok(row)
}

fn round(rig: &Rig<'_>, row: &mut Row) -> Result<()> {
    let native = rig.native(Effort::Bench)?;
    row.native.push(nanoseconds(native.time));
    for ((name, _, running), times) in COLUMNS.iter().zip(&mut row.columns) {
        let hosted = rig.hosted(name, running, Effort::Bench).context(*name)?;
        ensure!(hosted.output == native.output, "{name}: other output than natively");
        times.push(nanoseconds(hosted.time));
    }
    Ok(())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Titles of the cells of [`cells`].
pub fn titles() -> String {
    format!("native | {} | spread |", COLUMNS.map(|c| c.0).join(" | "))
}

/// Alignment of those cells.
pub const ALIGNMENT: &str = " ---: | ---: | ---: | ---: | --- |";

/// The cells of one archive, empty if nothing was measured.
pub fn cells(row: Option<&Row>) -> String {
    let Some(row) = row else { return " | | | | |".into() };
    let ratios: Vec<String> = (0..COLUMNS.len()).map(|c| ratio(row.ratio(c))).collect();
    let spread = row.spread().map_or_else(|| "–".into(), |(least, greatest)| format!("{least:.3} … {greatest:.3}"));
    format!("{:.2} s | {} | {spread} |", row.native() / 1e9, ratios.join(" | "))
}

/// Geometric means in those cells.
pub fn means(rows: &[Row]) -> String {
    let mean = |c: usize| ratio(geomean(&rows.iter().filter_map(|r| r.ratio(c)).collect::<Vec<_>>()));
    format!(" | {} | |", (0..COLUMNS.len()).map(mean).collect::<Vec<_>>().join(" | "))
}

/// Everything that was measured.
pub fn json(rows: &[Row]) -> Value {
    let row = |r: &Row| {
        let ratios: Vec<_> = (0..COLUMNS.len()).map(|c| r.ratio(c)).collect();
        json!({ "archive": r.archive, "native_ns": r.native, "columns_ns": r.columns, "ratios": ratios })
    };
    json!({ "columns": COLUMNS.map(|c| c.0), "archives": rows.iter().map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT, Row, cells, json, means, titles};

    #[test]
    fn ratios_are_of_medians_and_the_spread_is_of_rounds() {
        let row = |archive, factor: u64| Row {
            archive,
            native: vec![1_000_000_000, 2_000_000_000, 4_000_000_000],
            columns: [vec![1_100_000_000, 2_200_000_000 * factor, 3_600_000_000], vec![2_000_000_000; 3], vec![3_000_000_000; 3]],
        };
        let rows = [row("a", 1), row("b", 4)];
        assert_eq!(cells(Some(&rows[0])), "2.00 s | 1.100 | 1.000 | 1.500 | 0.900 … 1.100 |");
        assert_eq!(cells(Some(&rows[1])), "2.00 s | 1.800 | 1.000 | 1.500 | 0.900 … 4.400 |");
        assert_eq!(means(&rows), " | 1.407 | 1.000 | 1.500 | |");
        assert_eq!(json(&rows)["archives"][1]["ratios"][0], 1.8);
        for text in [titles(), ALIGNMENT.to_owned(), cells(None), means(&rows)] {
            assert_eq!(text.matches('|').count(), 5, "{text}");
        }
    }
}
