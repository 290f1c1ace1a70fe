//! What the modes cost: one program in a window in every mode, in interleaved rounds, against native.

use crate::report::{LONG_CALL, percent, ratio, time};
use crate::stats::{geomean, median};
use crate::subject::{Build, Program, Variants, Workshop};
use anyhow::{Context, Result};
use cordon_checker::{Mode, Protect};
use cordon_fixtures::script::judge;
use cordon_fixtures::window::WindowRunner;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// A column of the table.
struct Column {
    name: &'static str,
    build: Build,
    limit: Option<Duration>,
}

const SANDBOX: Mode = Mode { matched: false, metered: false, protect: Protect::All };

const fn column(name: &'static str, mode: Mode) -> Column {
    Column { name, build: Build { mode, spare_r14: false }, limit: Some(Duration::from_secs(10)) }
}

/// The modes with the loader's default time limit, and the sandbox with others.
const COLUMNS: [Column; 8] = [
    column("sandbox", SANDBOX),
    column("stores only", Mode { protect: Protect::Stores, ..SANDBOX }),
    column("match", Mode { matched: true, ..SANDBOX }),
    column("fuel", Mode { metered: true, ..SANDBOX }),
    Column {
        name: "fuel, `-ffixed-r14`",
        build: Build { mode: Mode { metered: true, ..SANDBOX }, spare_r14: true },
        limit: Some(Duration::from_secs(10)),
    },
    column("match, fuel", Mode { matched: true, metered: true, ..SANDBOX }),
    Column { limit: None, ..column("no time limit", SANDBOX) },
    Column { limit: Some(SHORT), ..column("time limit 5 ms", SANDBOX) },
];

/// A limit with frequent ticks; some programs have calls that take longer.
const SHORT: Duration = Duration::from_millis(5);

/// Passes over a script in one run; the first warms caches and is not counted.
const PASSES: u32 = 3;

/// Medians over rounds of one code layout, nanoseconds per pass.
struct Layout {
    native: u64,
    /// `None` where a call took longer than the column's time limit.
    columns: [Option<u64>; COLUMNS.len()],
}

/// What was measured of one program.
pub struct Row {
    name: String,
    calls: usize,
    layouts: Vec<Layout>,
    /// Bytes of new text for one byte of old, by column.
    growth: [f64; COLUMNS.len()],
}

impl Row {
    fn native(&self) -> f64 {
        median(&self.layouts.iter().map(|l| l.native).collect::<Vec<_>>()).map_or(f64::NAN, |ns| ns as f64)
    }

    fn each(&self) -> f64 {
        self.native() / self.calls.max(1) as f64
    }

    /// Median over the layouts against that of the native build.
    fn ratio(&self, column: usize) -> Option<f64> {
        let times: Option<Vec<u64>> = self.layouts.iter().map(|l| l.columns[column]).collect();
        Some(median(&times?)? as f64 / self.native())
    }
}

/// Measures one program.
///
/// # Errors
/// If it cannot be built in some mode, or gives other results there than natively.
pub fn row(workshop: &Workshop, program: &Program, rounds: u32) -> Result<Row> {
    let builds: Vec<Build> = COLUMNS.iter().map(|c| c.build).collect();
    let variants = workshop.variants(program, &builds)?;
    for variant in &variants {
        verify(program, variant)?;
    }
    let mut native: Vec<Vec<u64>> = vec![Vec::new(); variants.len()];
    let mut times: Vec<[Vec<u64>; COLUMNS.len()]> = variants.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (layout, variant) in variants.iter().enumerate() {
            native[layout].extend(variant.native.time(&program.calls, PASSES)?.into_iter().skip(1));
            for (index, column) in COLUMNS.iter().enumerate() {
                let mut runner = WindowRunner::new(&variant.images[index].0, false)?;
                runner.set_time_limit(column.limit);
                match runner.time(&program.calls, PASSES) {
                    Ok(passes) => times[layout][index].extend(passes.into_iter().skip(1)),
                    Err(_) if column.limit == Some(SHORT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    let middle = |times: &[u64]| median(times).context("no time was measured");
    let layouts = native.iter().zip(&times).map(|(native, times)| {
        let mut columns = [None; COLUMNS.len()];
        for (to, times) in columns.iter_mut().zip(times) {
            *to = median(times);
        }
        Ok(Layout { native: middle(native)?, columns })
    });
    let layouts = layouts.collect::<Result<_>>()?;
    let mut growth = [f64::NAN; COLUMNS.len()];
    for (to, (_, stats)) in growth.iter_mut().zip(variants.iter().flat_map(|v| &v.images)) {
        *to = stats.text_out as f64 / stats.text_in as f64;
    }
    Ok(Row { name: program.name.into(), calls: program.calls.len(), layouts, growth })
}

/// Compares every result and buffer of one pass with native, in every mode.
fn verify(program: &Program, variant: &Variants) -> Result<()> {
    let native = variant.native.run(&program.calls)?;
    for ((image, _), column) in variant.images.iter().zip(&COLUMNS) {
        let window = WindowRunner::new(image, false)?.run(&program.calls)?;
        for (call, (native, window)) in program.calls.iter().zip(native.iter().zip(&window)) {
            judge(call, native, window).map_err(anyhow::Error::msg).context(column.name)?;
        }
    }
    Ok(())
}

/// The README's section.
pub fn markdown(heading: &str, rows: &[Row]) -> String {
    let names: Vec<&str> = COLUMNS.iter().map(|c| c.name).collect();
    let mut text = format!("{heading}; ratios to native in a window whose base is not 0.\n\n");
    let _ = writeln!(text, "| program | native, a call | {} |", names.join(" | "));
    let _ = writeln!(text, "| --- | ---: |{}", " ---: |".repeat(names.len()));
    let cells = |of: &dyn Fn(usize) -> String| (0..names.len()).map(of).collect::<Vec<_>>().join(" | ");
    for row in rows {
        let _ = writeln!(text, "| {} | {} | {} |", row.name, time(row.each()), cells(&|c| ratio(row.ratio(c))));
    }
    let long: Vec<&Row> = rows.iter().filter(|r| r.each() > LONG_CALL).collect();
    let all: Vec<&Row> = rows.iter().collect();
    for (name, rows) in [("geometric mean, calls over 1 µs", &long), ("geometric mean, all", &all)] {
        let mean = |c: usize| ratio(geomean(&rows.iter().filter_map(|r| r.ratio(c)).collect::<Vec<_>>()));
        let _ = writeln!(text, "| **{name}** | | {} |", cells(&mean));
    }
    let growth = |c: usize| geomean(&all.iter().map(|r| r.growth[c]).collect::<Vec<_>>()).map_or_else(|| "–".into(), percent);
    let _ = writeln!(text, "| **text, geometric mean** | | {} |", cells(&growth));
    text
}

/// Everything that was measured.
pub fn json(heading: &str, rows: &[Row]) -> Value {
    let layout = |l: &Layout| json!({ "native_ns": l.native, "columns_ns": l.columns });
    let row = |r: &Row| {
        json!({
            "name": r.name,
            "calls": r.calls,
            "ratios": (0..COLUMNS.len()).map(|c| r.ratio(c)).collect::<Vec<_>>(),
            "growth": r.growth,
            "layouts": r.layouts.iter().map(layout).collect::<Vec<_>>(),
        })
    };
    json!({
        "setting": heading,
        "columns": COLUMNS.iter().map(|c| c.name).collect::<Vec<_>>(),
        "programs": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, Layout, Row, json, markdown};

    #[test]
    fn the_table_has_medians_over_layouts_and_means_over_programs() {
        let layout = |factor: u64| {
            let mut columns = [Some(10_000); COLUMNS.len()];
            columns[2] = Some(11_000 * factor);
            columns[7] = None;
            Layout { native: 10_000, columns }
        };
        let row = |name: &str, factor| Row {
            name: name.into(),
            calls: 1,
            layouts: vec![layout(factor), layout(factor), layout(9)],
            growth: [1.5; COLUMNS.len()],
        };
        let rows = [row("a", 1), row("b", 4)];
        let text = markdown("CPU", &rows);
        for line in [
            "| a | 10.0 µs | 1.000 | 1.000 | 1.100 |",
            "| b | 10.0 µs | 1.000 | 1.000 | 4.400 |",
            "| **geometric mean, all** | | 1.000 | 1.000 | 2.200 |",
            "| 1.000 | – |",
            "| **text, geometric mean** | | +50.0 % |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert_eq!(json("CPU", &rows)["programs"][1]["layouts"][2]["columns_ns"][2], 99_000);
    }
}
