//! Plots, on a logarithmic scale: a ratio of 2 is as far right of 1 as one half is left of it.

use crate::results::{ColumnResult, Pick, Results, RowResult, mean_against};
use std::fmt::Write as _;

/// Widths of names, plot and numbers behind it, and the height of a line, in pixels.
const NAMES: f64 = 220.0;
const PLOT: f64 = 640.0;
const NUMBERS: f64 = 70.0;
const LINE: f64 = 22.0;
/// Ratios with a grid line.
const GRID: [f64; 12] = [0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0];

/// From a ratio to a place.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Room for all ratios, and for a few per cent around 1.
    fn over(ratios: impl Iterator<Item = f64>) -> Scale {
        let (low, high) = ratios.fold((0.9f64, 1.3f64), |(low, high), r| (low.min(r), high.max(r)));
        Scale { low: (low / 1.05).ln(), high: (high * 1.05).ln() }
    }

    fn at(&self, ratio: f64) -> f64 {
        NAMES + (ratio.ln() - self.low) / (self.high - self.low) * PLOT
    }

    fn grid(&self, svg: &mut String, bottom: f64) {
        for ratio in GRID.into_iter().filter(|r| (self.low..=self.high).contains(&r.ln())) {
            let x = self.at(ratio);
            let class = if ratio == 1.0 { "one" } else { "grid" };
            let _ = writeln!(svg, "<line class='{class}' x1='{x:.1}' x2='{x:.1}' y1='18' y2='{bottom:.0}'/>");
            let _ = writeln!(svg, "<text class='tick' x='{x:.1}' y='12' text-anchor='middle'>{ratio}</text>");
        }
    }
}

/// Text as it may stand in a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;").replace('"', "&quot;")
}

fn open(lines: usize, label: &str) -> (String, f64) {
    let (width, height) = (NAMES + PLOT + NUMBERS, 24.0 + LINE * lines as f64);
    let svg = format!("<svg viewBox='0 0 {width:.0} {height:.0}' role='img' aria-label='{}'>\n", escape(label));
    (svg, height)
}

fn name(svg: &mut String, text: &str, y: f64) {
    let _ = writeln!(svg, "<text x='{:.0}' y='{:.1}' text-anchor='end'>{}</text>", NAMES - 10.0, y + 5.0, escape(text));
}

/// One bar for each column: the geometric mean over the rows that `keep` keeps, to the column that `base` says.
pub fn means(results: &Results, label: &str, base: fn(&ColumnResult) -> &str, keep: impl Fn(&RowResult) -> bool) -> String {
    let one = |column: &ColumnResult| {
        let mean = mean_against(results.rows.iter().filter(|row| keep(row)), base(column), &column.id, Pick::Median)?;
        Some((column.title.clone(), column.id.clone(), mean))
    };
    let bars: Vec<_> = results.used_columns().into_iter().filter(|c| c.id != base(c)).filter_map(one).collect();
    let scale = Scale::over(bars.iter().map(|(_, _, mean)| mean.ratio));
    let (mut svg, height) = open(bars.len(), label);
    scale.grid(&mut svg, height);
    for (index, (title, id, mean)) in bars.iter().enumerate() {
        let y = 24.0 + LINE * (index as f64 + 0.5);
        let (one, end) = (scale.at(1.0), scale.at(mean.ratio));
        name(&mut svg, title, y);
        let _ = writeln!(
            svg,
            "<rect class='{}' x='{:.1}' y='{:.1}' width='{:.1}' height='12'/><text x='{:.0}' y='{:.1}'>{} ({})</text>",
            class(id),
            one.min(end),
            y - 6.0,
            (end - one).abs().max(1.0),
            NAMES + PLOT + 6.0,
            y + 5.0,
            super::ratio(Some(mean.ratio)),
            mean.rows
        );
    }
    svg + "</svg>\n"
}

/// One line for each row of `rows` with a dot for each of the `columns`.
pub fn dots(rows: &[&RowResult], columns: &[&ColumnResult], label: &str) -> String {
    let ratio = |row: &RowResult, column: &ColumnResult| row.ratio(&column.id, Pick::Median);
    let scale = Scale::over(rows.iter().flat_map(|row| columns.iter().filter_map(|column| ratio(row, column))));
    let (mut svg, height) = open(rows.len(), label);
    scale.grid(&mut svg, height);
    for (index, row) in rows.iter().enumerate() {
        let y = 24.0 + LINE * (index as f64 + 0.5);
        name(&mut svg, &row.name, y);
        for column in columns {
            let Some(value) = ratio(row, column) else { continue };
            let _ = writeln!(
                svg,
                "<circle class='{}' cx='{:.1}' cy='{y:.1}' r='4.5'><title>{}: {} {}</title></circle>",
                class(&column.id),
                scale.at(value),
                escape(&row.name),
                escape(&column.title),
                super::ratio(Some(value))
            );
        }
    }
    svg + "</svg>\n"
}

/// The colour of a column: one for each family.
pub fn class(id: &str) -> &'static str {
    match id {
        "fast" => "cordon-fast",
        "window" | "window-clang" => "cordon",
        "masks" => "cordon-masks",
        "stores" => "cordon-stores",
        "match" | "match-metered" => "cordon-match",
        "metered" => "cordon-metered",
        "clang" | "gcc" => "native",
        "wasm2c" => "wasm2c",
        _ if id.starts_with("wasm") => "wasm",
        _ if id.contains("bpf") => "bpf",
        _ => "process",
    }
}

#[cfg(test)]
mod tests {
    use super::{dots, escape, means};
    use crate::results::tests::example;

    #[test]
    fn plots_have_a_mark_for_each_number_and_none_for_others() {
        let results = example();
        let bars = means(&results, "all", |_| "gcc", |_| true);
        assert_eq!((bars.matches("<rect").count(), bars.matches("2.200 (2)").count()), (1, 1), "{bars}");
        let rows: Vec<_> = results.rows.iter().collect();
        let columns: Vec<_> = results.columns.iter().collect();
        let plot = dots(&rows, &columns, "all");
        assert_eq!(plot.matches("<circle").count(), 4, "{plot}");
        assert!(!plot.contains("NaN") && !plot.contains("inf"));
    }

    #[test]
    fn text_cannot_end_its_element() {
        assert_eq!(escape("a<b>&'\""), "a&lt;b&gt;&amp;&#39;&quot;");
    }
}
