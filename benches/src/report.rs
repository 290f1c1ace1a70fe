//! Results as JSON, and as the tables that stand in the README between markers.

use crate::stats::{geomean, median};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// Medians of one code layout, nanoseconds per pass.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes of text put in front.
    pub padding: usize,
    pub native: u64,
    /// In a window whose base is not 0.
    pub window: u64,
    /// In the fast window at address 0, where the process can have it.
    pub fast: Option<u64>,
}

/// What was measured of one program.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub layouts: Vec<Layout>,
    /// Calls of one pass.
    pub calls: usize,
    /// Bytes of code before and after.
    pub text_in: usize,
    pub text_out: usize,
}

impl Row {
    fn middle(&self, of: impl Fn(&Layout) -> Option<u64>) -> Option<f64> {
        let values: Option<Vec<u64>> = self.layouts.iter().map(of).collect();
        median(&values?).map(|ns| ns as f64)
    }

    fn native(&self) -> f64 {
        self.middle(|l| Some(l.native)).unwrap_or(f64::NAN)
    }

    /// Nanoseconds of one call.
    fn each(&self, pass: Option<f64>) -> f64 {
        pass.unwrap_or(f64::NAN) / self.calls.max(1) as f64
    }

    /// Median over the layouts in a window against the median over the layouts of the native build.
    fn ratio(&self) -> Option<f64> {
        Some(self.middle(|l| Some(l.window))? / self.native())
    }

    fn fast_ratio(&self) -> Option<f64> {
        Some(self.middle(|l| l.fast)? / self.native())
    }

    /// Least and greatest ratio of one layout: what the placement of code alone can do.
    fn spread(&self) -> (f64, f64) {
        let ratios = self.layouts.iter().map(|l| l.window as f64 / l.native as f64);
        ratios.fold((f64::INFINITY, 0.0), |(low, high), r| (low.min(r), high.max(r)))
    }

    fn growth(&self) -> f64 {
        self.text_out as f64 / self.text_in as f64
    }
}

/// Programs whose calls take longer natively, nanoseconds, are averaged once more by themselves: there entering hardly counts.
pub const LONG_CALL: f64 = 1000.0;

/// Where and how the numbers were made.
#[derive(Clone, Debug)]
pub struct Setting {
    pub cpu: String,
    pub compiler: String,
    pub rounds: u32,
    /// A handler that returns at once.
    pub entry: Row,
}

impl Setting {
    fn lines(&self) -> String {
        let entry = &self.entry;
        let paddings: Vec<String> = entry.layouts.iter().map(|l| l.padding.to_string()).collect();
        let fast = entry.middle(|l| l.fast).map(|ns| format!(", {} in the fast window", time(entry.each(Some(ns)))));
        format!(
            "{}, {}. Processor time: medians of {} interleaved rounds for each code layout ({} bytes of text in front), then the median\n\
             over the layouts. Both sides copy each input into the handler's buffer. Spread: least and greatest ratio of one layout in a\n\
             window. A call that returns at once takes {} natively, {} in a window{}: short calls pay for that.\n",
            self.cpu,
            self.compiler,
            self.rounds,
            paddings.join(", "),
            time(entry.each(Some(entry.native()))),
            time(entry.each(entry.middle(|l| Some(l.window)))),
            fast.unwrap_or_default()
        )
    }
}

pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} µs", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

pub fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |r| format!("{r:.3}"))
}

/// The README's section.
pub fn markdown(setting: &Setting, rows: &[Row]) -> String {
    let mut text = setting.lines();
    text.push_str(
        "\n| program | native, a call | window | fast window | spread | text |\n| --- | ---: | ---: | ---: | --- | ---: |\n",
    );
    for row in rows {
        let (low, high) = row.spread();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {low:.3} … {high:.3} | {} |",
            row.name,
            time(row.each(Some(row.native()))),
            ratio(row.ratio()),
            ratio(row.fast_ratio()),
            percent(row.growth())
        );
    }
    let long: Vec<&Row> = rows.iter().filter(|r| r.each(Some(r.native())) > LONG_CALL).collect();
    text.push_str(&mean("geometric mean, calls over 1 µs", &long));
    text.push_str(&mean("geometric mean, all", &rows.iter().collect::<Vec<_>>()));
    text
}

pub fn percent(growth: f64) -> String {
    format!("{:+.1} %", (growth - 1.0) * 100.0)
}

/// A line of geometric means.
fn mean(name: &str, rows: &[&Row]) -> String {
    let all = |of: fn(&Row) -> Option<f64>| geomean(&rows.iter().map(|r| of(r)).collect::<Option<Vec<f64>>>()?);
    let growth = all(|r| Some(r.growth())).map_or_else(|| "–".into(), percent);
    format!("| **{name}** | | {} | {} | | {growth} |\n", ratio(all(Row::ratio)), ratio(all(Row::fast_ratio)))
}

/// Everything that was measured.
pub fn json(setting: &Setting, rows: &[Row]) -> Value {
    let layout =
        |l: &Layout| json!({ "padding": l.padding, "native_ns": l.native, "window_ns": l.window, "fast_window_ns": l.fast });
    let row = |r: &Row| {
        json!({
            "name": r.name,
            "calls": r.calls,
            "ratio": r.ratio(),
            "fast_ratio": r.fast_ratio(),
            "text_in": r.text_in,
            "text_out": r.text_out,
            "layouts": r.layouts.iter().map(layout).collect::<Vec<_>>(),
        })
    };
    json!({
        "cpu": setting.cpu,
        "compiler": setting.compiler,
        "rounds": setting.rounds,
        "empty_call": row(&setting.entry),
        "programs": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The lines of the README between which `section` stands.
pub fn markers(section: &str) -> (String, String) {
    (format!("<!-- {section}: written by scripts/bench -->"), format!("<!-- end of {section} -->"))
}

/// Replaces what stands between the markers of `section` in `document`.
///
/// # Errors
/// If the markers are not there, each on a line, in order.
pub fn replace_section(document: &str, section: &str, body: &str) -> Result<String> {
    let (begin, end) = markers(section);
    let from = document.find(&begin).with_context(|| format!("no line {begin}"))? + begin.len();
    let to = from + document[from..].find(&end).with_context(|| format!("no line {end} after {begin}"))?;
    Ok(format!("{}\n{}\n{}", &document[..from], body.trim_end(), &document[to..]))
}

/// Writes `body` into the section of the document at `path`.
///
/// # Errors
/// If the file cannot be read or written or lacks the markers.
pub fn update(path: &Path, section: &str, body: &str) -> Result<()> {
    let name = || path.display().to_string();
    let document = std::fs::read_to_string(path).with_context(name)?;
    let document = replace_section(&document, section, body).with_context(name)?;
    std::fs::write(path, document).with_context(name)
}

#[cfg(test)]
mod tests {
    use super::{Layout, Row, Setting, json, markdown, markers, replace_section};

    fn row(name: &str, calls: usize) -> Row {
        let layout = |padding, window| Layout { padding, native: 10_000, window, fast: Some(10_000) };
        let layouts = vec![layout(0, 10_000), layout(16, 11_000), layout(48, 12_000)];
        Row { name: name.into(), layouts, calls, text_in: 100, text_out: 110 }
    }

    fn setting() -> Setting {
        Setting { cpu: "CPU".into(), compiler: "gcc".into(), rounds: 7, entry: row("entry", 1000) }
    }

    #[test]
    fn the_table_has_medians_over_layouts_and_their_spread() {
        let mut rows = vec![row("a", 1), row("b", 1000)];
        rows[1].layouts.iter_mut().for_each(|l| l.window *= 4);
        let text = markdown(&setting(), &rows);
        for line in [
            "| a | 10.0 µs | 1.100 | 1.000 | 1.000 … 1.200 | +10.0 % |",
            "| b | 10.0 ns | 4.400 | 1.000 | 4.000 … 4.800 | +10.0 % |",
            "| **geometric mean, calls over 1 µs** | | 1.100 | 1.000 | | +10.0 % |",
            "| **geometric mean, all** | | 2.200 | 1.000 | | +10.0 % |",
            "returns at once takes 10.0 ns natively, 11.0 ns in a window, 10.0 ns in the fast window",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert_eq!(json(&setting(), &rows)["programs"][0]["layouts"][2]["window_ns"], 12_000);
    }

    #[test]
    fn a_missing_fast_window_is_no_number() {
        let mut rows = vec![row("a", 1)];
        rows[0].layouts[1].fast = None;
        assert!(markdown(&setting(), &rows).contains("| 1.100 | – |"));
    }

    #[test]
    fn sections_are_replaced_between_their_markers_only() {
        let (begin, end) = markers("overhead");
        let document = format!("a\n{begin}\nold\n{end}\nb\n");
        let new = replace_section(&document, "overhead", "new\n").expect("markers are there");
        assert_eq!(new, format!("a\n{begin}\nnew\n{end}\nb\n"));
        assert_eq!(replace_section(&new, "overhead", "new").expect("still there"), new);
        assert!(replace_section("a", "overhead", "new").is_err());
        assert!(replace_section(&format!("{end}\n{begin}"), "overhead", "new").is_err());
    }
}
