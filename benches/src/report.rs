//! Pages and tables of results.

mod aims;
pub mod html;
pub mod markdown;
mod svg;

use crate::results::Results;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds, for people.
pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 1e4 => format!("{ns:.0} ns"),
        ns if ns < 1e7 => format!("{:.1} µs", ns / 1e3),
        ns if ns < 1e10 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// A ratio with as many digits as mean something.
pub fn ratio(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(r) if r < 10.0 => format!("{r:.3}"),
        Some(r) if r < 100.0 => format!("{r:.1}"),
        Some(r) => format!("{r:.0}"),
    }
}

/// Growth in per cent.
pub fn percent(growth: f64) -> String {
    format!("{:+.1} %", (growth - 1.0) * 100.0)
}

/// A figure with its unit.
pub fn figure(value: f64, unit: &str) -> String {
    match unit {
        "ns" => time(value),
        _ if value >= 1000.0 => format!("{value:.0} {unit}"),
        _ if value >= 10.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}

/// Day and time, UTC.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = date(seconds / 86400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600 % 24, seconds / 60 % 60)
}

/// The Gregorian date, by days since 1970-01-01: years start in March, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, date)
}

/// Writes every table into its section of the document at `path`.
///
/// # Errors
/// If the file cannot be read or written or lacks the markers.
pub fn update(path: &Path, results: &Results) -> Result<()> {
    let name = || path.display().to_string();
    let mut document = std::fs::read_to_string(path).with_context(name)?;
    for (section, body) in markdown::sections(results) {
        document = replace_section(&document, section, &body).with_context(name)?;
    }
    std::fs::write(path, document).with_context(name)
}

/// The lines of a document between which `section` stands.
fn markers(section: &str) -> (String, String) {
    (format!("<!-- {section}: written by scripts/bench -->"), format!("<!-- end of {section} -->"))
}

/// Replaces what stands between the markers of `section` in `document`.
fn replace_section(document: &str, section: &str, body: &str) -> Result<String> {
    let (begin, end) = markers(section);
    let from = document.find(&begin).with_context(|| format!("no line {begin}"))? + begin.len();
    let to = from + document[from..].find(&end).with_context(|| format!("no line {end} after {begin}"))?;
    Ok(format!("{}\n{}\n{}", &document[..from], body.trim_end(), &document[to..]))
}

#[cfg(test)]
mod tests {
    use super::{date, markers, replace_section};

    #[test]
    fn days_become_dates() {
        assert_eq!([0, 59, 11_016, 20_780].map(date), [(1970, 1, 1), (1970, 3, 1), (2000, 2, 29), (2026, 11, 23)]);
    }

    #[test]
    fn sections_are_replaced_between_their_markers_only() {
        let (begin, end) = markers("comparison");
        let document = format!("a\n{begin}\nold\n{end}\nb\n");
        let new = replace_section(&document, "comparison", "new\n").expect("markers are there");
        assert_eq!(new, format!("a\n{begin}\nnew\n{end}\nb\n"));
        assert_eq!(replace_section(&new, "comparison", "new").expect("still there"), new);
        assert!(replace_section("a", "comparison", "new").is_err());
        assert!(replace_section(&format!("{end}\n{begin}"), "comparison", "new").is_err());
    }
}
