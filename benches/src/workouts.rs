//! What windows cost whole programs around Debian's archives, against the same program and archive linked natively with the same C library.

use crate::stats::median;
use anyhow::{Context as _, Result, ensure};
use cordon_fixtures::program::{Effort, Rig, Workout};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A column: its name, words for `cordon cc`, words for `cordon run`.
type Column = (&'static str, &'static [&'static str], &'static [&'static str]);

/// The columns, named as in [`crate::columns`].
pub const COLUMNS: [Column; 6] = [
    ("window", &[], &[]),
    ("fast", &["--fast-window"], &["--fast-window"]),
    ("masks", &["--masking", "explicit"], &[]),
    ("stores", &["--protect", "stores"], &["--protect", "stores"]),
    ("match", &["--mode", "match"], &["--mode", "match"]),
    ("metered", &["--fuel"], &["--metered"]),
];

/// Processor times of one archive's program, nanoseconds of each round: what the process took, from start to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub archive: String,
    pub native: Vec<u64>,
    /// By column.
    pub columns: BTreeMap<String, Vec<u64>>,
}

impl Row {
    /// Nanoseconds natively.
    pub fn native(&self) -> f64 {
        median(&self.native).map_or(f64::NAN, |ns| ns as f64)
    }

    /// Medians against each other.
    pub fn ratio(&self, column: &str) -> Option<f64> {
        Some(median(self.columns.get(column)?)? as f64 / self.native())
    }

    /// Least and greatest ratio of one round in a window.
    pub fn spread(&self) -> Option<(f64, f64)> {
        let rounds = || {
            self.columns
                .get("window")
                .into_iter()
                .flatten()
                .zip(&self.native)
                .map(|(window, native)| *window as f64 / *native as f64)
        };
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
pub fn row(workout: &Workout, cordon: &Path, effort: Effort, rounds: u32) -> Result<Row> {
    let folder = tempfile::tempdir()?;
    let rig = workout.set_up(folder.path(), cordon)?;
    for (name, compiling, _) in COLUMNS {
        rig.image(name, compiling)?;
    }
    let mut row = Row { archive: workout.archive.into(), native: Vec::new(), columns: BTreeMap::new() };
    for _ in 0..rounds {
        round(&rig, effort, &mut row)?;
    }
    Ok(row)
}

fn round(rig: &Rig<'_>, effort: Effort, row: &mut Row) -> Result<()> {
    let native = rig.native(effort)?;
    row.native.push(nanoseconds(native.time));
    for (name, _, running) in COLUMNS {
        let hosted = rig.hosted(name, running, effort).context(name)?;
        ensure!(hosted.output == native.output, "{name}: other output than natively");
        row.columns.entry(name.into()).or_default().push(nanoseconds(hosted.time));
    }
    Ok(())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub mod tests {
    use super::Row;

    /// Windows take 1.1, 1.1, 0.9 of native in three rounds, times `factor` in the second.
    pub fn example(archive: &str, factor: u64) -> Row {
        let columns = [
            ("window", vec![1_100_000_000, 2_200_000_000 * factor, 3_600_000_000]),
            ("fast", vec![2_000_000_000; 3]),
            ("match", vec![3_000_000_000; 3]),
        ];
        Row {
            archive: archive.into(),
            native: vec![1_000_000_000, 2_000_000_000, 4_000_000_000],
            columns: columns.map(|(k, v)| (k.into(), v)).into(),
        }
    }

    #[test]
    fn ratios_are_of_medians_and_the_spread_is_of_rounds() {
        let row = example("a", 1);
        assert_eq!((row.ratio("window"), row.ratio("match")), (Some(1.1), Some(1.5)));
        assert_eq!(row.spread(), Some((0.9, 1.1)));
        assert_eq!(example("b", 4).ratio("window"), Some(1.8));
        assert_eq!(row.ratio("metered"), None);
    }
}
