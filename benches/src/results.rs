//! Everything that was measured, as it stands in the dated files.

use crate::archives::Archives;
use crate::columns::{BASELINE, COLUMNS};
use crate::machine::Machine;
use crate::stats::{geomean, median};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the files' format.
const FORMAT: u32 = 1;

/// One run of the harness.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    /// When it ended, UTC.
    pub date: String,
    /// Why the numbers are not to be quoted, if they are not.
    pub preliminary: Option<String>,
    pub machine: Machine,
    pub rounds: u32,
    pub columns: Vec<ColumnResult>,
    pub rows: Vec<RowResult>,
    pub micro: Vec<Figure>,
    pub archives: Option<Archives>,
    /// What the programs execute.
    #[serde(default)]
    pub instructions: Vec<Count>,
}

/// Instructions of one call of a program, its share of a short script, entering and copying included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Count {
    pub name: String,
    /// By column.
    pub columns: BTreeMap<String, f64>,
}

impl Count {
    /// Against the baseline.
    pub fn ratio(&self, column: &str) -> Option<f64> {
        Some(self.columns.get(column)? / self.columns.get(BASELINE)?)
    }
}

/// A column as it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColumnResult {
    pub id: String,
    pub title: String,
    /// The column of what the same compiler makes natively.
    pub native: String,
    pub memory: String,
    pub stops: String,
    pub faults: String,
    pub clock: String,
}

/// What was measured of one program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowResult {
    pub name: String,
    pub group: String,
    /// Calls of one pass.
    pub calls: usize,
    /// By column.
    pub cells: BTreeMap<String, Cell>,
}

/// One program in one column.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// Times by code layout.
    Times {
        layouts: Vec<Layout>,
        /// Bytes of code before and after the rewriter.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<(usize, usize)>,
    },
    /// Why there are none.
    None(String),
}

/// Nanoseconds of one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Bytes of text put in front.
    pub padding: usize,
    pub least: u64,
    pub median: u64,
    pub passes: usize,
}

/// A single operation, beside that of others where they have one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    /// By column; what has no such operation is missing.
    pub values: BTreeMap<String, f64>,
    /// What exactly is measured.
    pub note: String,
}

/// Which number of a layout is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    Median,
    Least,
}

impl Pick {
    const fn of(self, layout: &Layout) -> u64 {
        match self {
            Pick::Median => layout.median,
            Pick::Least => layout.least,
        }
    }
}

/// Programs whose calls take longer natively, nanoseconds, are averaged once more by themselves: there entering hardly counts.
pub const LONG_CALL: f64 = 1000.0;

impl Cell {
    /// Nanoseconds of a pass: the median over the layouts.
    pub fn pass(&self, pick: Pick) -> Option<f64> {
        let Cell::Times { layouts, .. } = self else { return None };
        median(&layouts.iter().map(|l| pick.of(l)).collect::<Vec<_>>()).map(|ns| ns as f64)
    }

    /// New text for one byte of old.
    pub fn growth(&self) -> Option<f64> {
        let Cell::Times { text: Some((before, after)), .. } = self else { return None };
        Some(*after as f64 / *before as f64)
    }
}

impl RowResult {
    /// Nanoseconds of one call.
    pub fn each(&self, column: &str, pick: Pick) -> Option<f64> {
        Some(self.cells.get(column)?.pass(pick)? / self.calls.max(1) as f64)
    }

    /// Against the baseline.
    pub fn ratio(&self, column: &str, pick: Pick) -> Option<f64> {
        self.against(BASELINE, column, pick)
    }

    /// Against another column.
    pub fn against(&self, base: &str, column: &str, pick: Pick) -> Option<f64> {
        Some(self.each(column, pick)? / self.each(base, pick)?)
    }

    /// Least and greatest ratio of one layout to the baseline's same layout: what the placement of code alone can do.
    pub fn spread(&self, column: &str) -> Option<(f64, f64)> {
        let (Cell::Times { layouts: base, .. }, Cell::Times { layouts, .. }) =
            (self.cells.get(BASELINE)?, self.cells.get(column)?)
        else {
            return None;
        };
        let ratios =
            || layouts.iter().filter_map(|l| Some(l.median as f64 / base.iter().find(|b| b.padding == l.padding)?.median as f64));
        Some((ratios().reduce(f64::min)?, ratios().reduce(f64::max)?))
    }

    /// Whether its calls are so long that entering does not count.
    pub fn is_long(&self) -> bool {
        self.each(BASELINE, Pick::Median).is_some_and(|ns| ns > LONG_CALL)
    }
}

/// A mean over rows.
#[derive(Clone, Copy, Debug)]
pub struct Mean {
    pub ratio: f64,
    /// Rows that have a number in the column.
    pub rows: usize,
}

/// Geometric mean of the ratios in `column` to the baseline.
pub fn mean<'a>(rows: impl Iterator<Item = &'a RowResult>, column: &str, pick: Pick) -> Option<Mean> {
    mean_against(rows, BASELINE, column, pick)
}

/// Geometric mean of the ratios in `column` to those of `base`.
pub fn mean_against<'a>(rows: impl Iterator<Item = &'a RowResult>, base: &str, column: &str, pick: Pick) -> Option<Mean> {
    let ratios: Vec<f64> = rows.filter_map(|row| row.against(base, column, pick)).collect();
    Some(Mean { ratio: geomean(&ratios)?, rows: ratios.len() })
}

impl Results {
    /// Before anything is measured.
    pub fn new(machine: Machine, rounds: u32, preliminary: Option<String>) -> Results {
        let column = |c: &crate::columns::Column| ColumnResult {
            id: c.id.into(),
            title: c.title.into(),
            native: c.native().into(),
            memory: c.memory.into(),
            stops: c.stops.into(),
            faults: c.faults.into(),
            clock: c.clock().into(),
        };
        let columns = COLUMNS.iter().map(column).collect();
        let (rows, micro) = (Vec::new(), Vec::new());
        Results {
            format: FORMAT,
            date: String::new(),
            preliminary,
            machine,
            rounds,
            columns,
            rows,
            micro,
            archives: None,
            instructions: Vec::new(),
        }
    }

    /// Reads a file that [`Results::write`] wrote.
    ///
    /// # Errors
    /// If it is not there or has another format.
    pub fn read(path: &Path) -> Result<Results> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let results: Results = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(results.format == FORMAT, "{}: format {}, this program reads {FORMAT}", path.display(), results.format);
        Ok(results)
    }

    /// Writes everything, a line for each row, so that runs can be told apart by `diff`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let rows: Vec<String> = self.rows.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
        let rest = serde_json::to_string_pretty(&Results { rows: Vec::new(), ..self.clone() })?;
        let text = rest.replacen("\"rows\": []", &format!("\"rows\": [\n    {}\n  ]", rows.join(",\n    ")), 1);
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    /// Columns in which anything was measured.
    pub fn used_columns(&self) -> Vec<&ColumnResult> {
        let used = |column: &&ColumnResult| self.rows.iter().any(|row| row.ratio(&column.id, Pick::Median).is_some());
        self.columns.iter().filter(used).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::{Cell, Layout, Pick, Results, RowResult, mean};
    use crate::machine::Machine;

    /// A run with two rows: one takes the baseline's time in each layout times 1, 1.1, 1.2, the other four times that.
    pub fn example() -> Results {
        let machine = Machine {
            processor: "CPU".into(),
            processors: 2,
            kernel: "6".into(),
            hypervisor: true,
            governor: None,
            load: [0.0; 2],
            memory_mib: 1,
            tools: vec!["gcc 1".into()],
            commit: "abc".into(),
        };
        let layouts = |factor: u64, steps: [u64; 3]| {
            let layout =
                |(padding, step): (usize, u64)| Layout { padding, least: factor * step - 100, median: factor * step, passes: 9 };
            [0, 16, 48].into_iter().zip(steps).map(layout).collect()
        };
        let row = |name: &str, calls, factor| {
            let base = Cell::Times { layouts: layouts(1, [10_000; 3]), text: None };
            let window = Cell::Times { layouts: layouts(factor, [10_000, 11_000, 12_000]), text: Some((100, 110)) };
            let cells = [("gcc", base), ("window", window), ("wasmi", Cell::None("no".into()))];
            RowResult { name: name.into(), group: "handlers".into(), calls, cells: cells.map(|(k, v)| (k.into(), v)).into() }
        };
        let mut results = Results::new(machine, 9, Some("a test".into()));
        results.date = "2026-01-02".into();
        results.rows = vec![row("a", 1, 1), row("b", 1000, 4)];
        results
    }

    #[test]
    fn ratios_are_of_medians_over_layouts_and_means_are_geometric() {
        let results = example();
        let [a, b] = &results.rows[..] else { panic!("two rows") };
        assert_eq!((a.ratio("window", Pick::Median), b.ratio("window", Pick::Median)), (Some(1.1), Some(4.4)));
        assert_eq!(a.against("window", "gcc", Pick::Median), Some(1.0 / 1.1));
        assert_eq!(a.spread("window"), Some((1.0, 1.2)));
        assert_eq!((a.is_long(), b.is_long()), (true, false));
        assert_eq!(a.ratio("wasmi", Pick::Median), None);
        let all = mean(results.rows.iter(), "window", Pick::Median).expect("two numbers");
        assert!((all.ratio - 2.2).abs() < 1e-9 && all.rows == 2);
        assert_eq!(results.used_columns().iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["gcc", "window"]);
    }

    #[test]
    fn files_are_read_as_they_were_written() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let results = example();
        results.write(file.path()).expect("written");
        let again = Results::read(file.path()).expect("read");
        assert_eq!(serde_json::to_string(&again).expect("text"), serde_json::to_string(&results).expect("text"));
    }
}
