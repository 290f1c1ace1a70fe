//! What the numbers are to be, what misses that and why, and where something else is faster.

use super::{figure, percent, ratio};
use crate::results::{LONG_CALL, Pick, Results, RowResult, mean};
use crate::stats::geomean;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// An aim: a name, what was measured, a bound and whether it is the least or the greatest good value.
struct Aim {
    what: String,
    measured: Option<f64>,
    bound: f64,
    at_least: bool,
    show: fn(f64) -> String,
}

impl Aim {
    /// Whether it is met, if it was measured.
    fn met(&self) -> Option<bool> {
        let met = |value: f64| (value >= self.bound) == self.at_least || (value - self.bound).abs() < f64::EPSILON;
        self.measured.map(met)
    }

    fn line(&self) -> String {
        let measured = self.measured.map_or_else(|| "–".into(), self.show);
        let met = match self.met() {
            None => "not measured",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let sign = if self.at_least { "≥" } else { "≤" };
        format!("| {} | {sign} {} | {measured} | {met} |\n", self.what, (self.show)(self.bound))
    }
}

/// Greatest ratio of a program with long calls, in the columns of [`SINGLE`].
const WORST: f64 = 1.15;
/// Columns whose single programs have a bound.
const SINGLE: [&str; 2] = ["fast", "window"];
/// Columns, and the greatest geometric mean of programs with long calls.
const MEANS: [(&str, f64); 5] = [("fast", 1.01), ("window", 1.02), ("stores", 1.01), ("match", 1.07), ("metered", 1.10)];
/// Operations in a column and their greatest time, nanoseconds.
const TIMES: [(&str, &str, f64); 3] = [
    ("empty call", "window", 8.0),
    ("host call without context", "window", 3.0),
    ("empty call, two windows in turn", "window", 25.0),
];
/// Windows under a limit of mappings that suffices for them; without it where the default one does.
const MORE_WINDOWS: &str = "windows at once, with more mappings";
/// Operations in a column and their least value.
const RATES: [(&str, &str, f64); 2] = [("check, code a second", "window", 400.0), (MORE_WINDOWS, "window", 30_000.0)];
/// Why operations miss their bound, where that is known.
const OBSTACLES: [(&str, &str); 3] = [
    (
        "check, code a second",
        "which way to decide on an instruction follows from its bytes, and no processor can guess those: wrong guesses are most of the time. \
         iced-x86's plain decoder, which applies no rule, is as fast (`cargo bench -p cordon-checker`)",
    ),
    ("empty call", "the segment base is read and compared (6 cycles), since a stale one would be another window's"),
    ("empty call, two windows in turn", "the segment base is written (14 ns)"),
];
/// Programs that are one chain of dependent loads: each takes a cycle more where the window's base is not 0. [`WORST`] is not for them, in an
/// ordinary window.
const CHAINS: [&str; 2] = ["chase", "hash"];
/// Why programs miss [`WORST`].
const CAUSES: [(&str, &str); 3] = [
    (
        "ds_list",
        "2 MiB of links in pages that lie elsewhere in each process: more than a processor's own cache holds, now faster and now slower",
    ),
    ("fsm", "jumps through a table of code addresses, one load more than natively"),
    ("vm_switch", "jumps through a table of code addresses, one load more than natively"),
];
/// A ratio that says little, with three code layouts.
const CLOSE: f64 = 1.03;
/// Columns of Cordon that a peer is compared with: handlers confined, no more and no less.
const OURS: [&str; 3] = ["fast", "window", "window-clang"];

/// The aims with what was measured, the programs that miss theirs, and those in which a peer is ahead.
pub fn aims(results: &Results) -> String {
    let mut text = "| aim | bound | measured | met |\n| --- | ---: | ---: | --- |\n".to_owned();
    let list = list(results);
    for aim in &list {
        text += &aim.line();
    }
    for (name, obstacle) in OBSTACLES {
        if list.iter().any(|aim| aim.what == name && aim.met() == Some(false)) {
            let _ = writeln!(text, "\n{name}: {obstacle}.");
        }
    }
    for id in SINGLE {
        let slow = |row: &&RowResult| bounded(row, id) && row.ratio(id, Pick::Median).is_some_and(|ratio| ratio > WORST);
        let missing: Vec<String> = results.rows.iter().filter(slow).map(|row| missed(row, id)).collect();
        if !missing.is_empty() {
            let _ = writeln!(text, "\nAbove {WORST} in `{id}`: {}.", missing.join("; "));
        }
    }
    let chains = results.rows.iter().filter(|row| is_chain(row));
    let chains: Vec<String> = chains.map(|row| format!("{} {}", row.name, ratio(row.ratio("window", Pick::Median)))).collect();
    if !chains.is_empty() {
        let _ = writeln!(
            text,
            "\nChains of dependent loads in `window`, each a cycle more where the window's base is not 0: {}.",
            chains.join(", ")
        );
    }
    let ahead = ahead(results);
    if !ahead.is_empty() {
        text += "\nPrograms that something else runs faster than the best of Cordon's sandboxes (its time in brackets, as ratios to gcc's):\n\n";
    }
    for (reason, rows) in ahead {
        let _ = writeln!(text, "* {reason}: {}.", rows.join("; "));
    }
    text
}

fn list(results: &Results) -> Vec<Aim> {
    let title = |id: &str| results.columns.iter().find(|c| c.id == id).map_or_else(|| id.to_owned(), |c| c.title.clone());
    let value = |name: &str, id: &str| results.micro.iter().find(|figure| figure.name == name)?.values.get(id).copied();
    let long = || results.rows.iter().filter(|row| row.is_long());
    let mut aims = Vec::new();
    for (id, bound) in MEANS {
        let measured = mean(long(), id, Pick::Median).map(|mean| mean.ratio);
        let what = format!("{}: geometric mean, calls over {:.0} µs", title(id), LONG_CALL / 1e3);
        aims.push(Aim { what, measured, bound, at_least: false, show: |value| ratio(Some(value)) });
    }
    for id in SINGLE {
        let rows = long().filter(|row| bounded(row, id));
        let measured = rows.filter_map(|row| row.ratio(id, Pick::Median)).reduce(f64::max);
        let but = if long().all(|row| bounded(row, id)) { "" } else { ", chains of loads left out" };
        aims.push(Aim {
            what: format!("{}: worst of them{but}", title(id)),
            measured,
            bound: WORST,
            at_least: false,
            show: |v| ratio(Some(v)),
        });
    }
    let growth: Vec<f64> = results.rows.iter().filter_map(|row| row.cells.get("window")?.growth()).collect();
    aims.push(Aim { what: "growth of text".into(), measured: geomean(&growth), bound: 1.2, at_least: false, show: percent });
    for (name, id, bound) in TIMES {
        aims.push(Aim { what: name.into(), measured: value(name, id), bound, at_least: false, show: |ns| figure(ns, "ns") });
    }
    for (name, id, bound) in RATES {
        let show = if bound > 1000.0 { |value| figure(value, "") } else { |value| figure(value, "MB/s") };
        let measured = value(name, id).or_else(|| (name == MORE_WINDOWS).then(|| value("windows at once", id))?);
        aims.push(Aim { what: name.into(), measured, bound, at_least: true, show });
    }
    aims
}

fn is_chain(row: &RowResult) -> bool {
    CHAINS.contains(&row.name.as_str())
}

/// Whether [`WORST`] is for this program in this column.
fn bounded(row: &RowResult, id: &str) -> bool {
    row.is_long() && !(id == "window" && is_chain(row))
}

fn missed(row: &RowResult, id: &str) -> String {
    let cause = CAUSES.iter().find(|(name, _)| *name == row.name).map_or("the cause is not known", |(_, cause)| cause);
    format!("{} {} ({cause})", row.name, ratio(row.ratio(id, Pick::Median)))
}

/// Programs in which something that is neither Cordon nor native is faster, by the reason.
fn ahead(results: &Results) -> BTreeMap<String, Vec<String>> {
    let mut by_reason = BTreeMap::<String, Vec<String>>::new();
    let is_peer = |id: &str| ["wasm", "rbpf", "sbpf", "futex", "pipe"].iter().any(|peer| id.starts_with(peer));
    for row in &results.rows {
        let best = OURS.into_iter().filter_map(|id| Some((row.ratio(id, Pick::Median)?, id))).min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((ours, id)) = best else { continue };
        let mut peers = BTreeMap::<String, Vec<String>>::new();
        for column in results.columns.iter().filter(|column| is_peer(&column.id)) {
            let Some(theirs) = row.ratio(&column.id, Pick::Median).filter(|theirs| *theirs < ours) else { continue };
            let named = format!("{} {}", column.title, ratio(Some(theirs)));
            let reason = reason(results, row, (id, ours), (&column.id, theirs));
            peers.entry(reason).or_default().push(named);
        }
        for (reason, peers) in peers {
            let entry = format!("{} ({}) by {}", row.name, ratio(Some(ours)), peers.join(", "));
            by_reason.entry(reason).or_default().push(entry);
        }
    }
    by_reason
}

/// Why a peer is faster than one of ours: both with their ratios to gcc's code.
fn reason(results: &Results, row: &RowResult, (id, ours): (&str, f64), (peer, theirs): (&str, f64)) -> String {
    let native = results.columns.iter().find(|column| column.id == id).map_or("gcc", |column| &column.native);
    let fences = row.against(native, id, Pick::Median).unwrap_or(f64::NAN);
    let cause = match peer {
        "wasm2c" | "rbpf-jit" if !row.is_long() => {
            Some("it calls a function on the host's own stack: nothing is switched or cleared, nothing limits its time")
        }
        _ if peer.starts_with("wasmtime") && !row.is_long() => {
            Some("its calls stay on the host's own stack and clear no registers")
        }
        "futex" | "pipe" => {
            Some("it is the native code in a process of its own, and the call so long that the switch hardly counts")
        }
        _ if ours < theirs * CLOSE => Some("by less than 3 %, which is less than the place of the code can make"),
        _ if fences < CLOSE || theirs * fences < ours => {
            Some("its compiler made better code of the program, by more than what confining it costs Cordon")
        }
        _ if is_chain(row) => Some("it is a chain of dependent loads, each a cycle more where the window's base is not 0"),
        _ => CAUSES.iter().find(|(name, _)| *name == row.name).map(|(_, cause)| *cause),
    };
    cause.unwrap_or("for a reason that is not known").into()
}

#[cfg(test)]
mod tests {
    use super::aims;
    use crate::results::tests::example;
    use crate::results::{Cell, Figure, Layout};

    fn times(median: u64) -> Cell {
        let layout = |padding| Layout { padding, least: median, median, passes: 9 };
        Cell::Times { layouts: [0, 16, 48].map(layout).into(), text: None }
    }

    #[test]
    fn aims_are_met_or_the_rows_that_miss_them_are_named_with_their_cause() {
        let mut results = example();
        results.rows[0].cells.insert("fast".into(), times(10_050));
        let host = Figure {
            name: "host call without context".into(),
            unit: "ns".into(),
            values: [("window".into(), 2.5)].into(),
            note: String::new(),
        };
        results.micro.push(host);
        let text = aims(&results);
        for line in [
            "| Cordon, fast window: geometric mean, calls over 1 µs | ≤ 1.010 | 1.005 | yes |",
            "| Cordon, window: geometric mean, calls over 1 µs | ≤ 1.020 | 1.100 | **no** |",
            "| Cordon, match: geometric mean, calls over 1 µs | ≤ 1.070 | – | not measured |",
            "| growth of text | ≤ +20.0 % | +10.0 % | yes |",
            "| host call without context | ≤ 3.0 ns | 2.5 ns | yes |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("Above"), "{text}");
        results.rows[0].cells.insert("window".into(), times(12_000));
        assert!(aims(&results).contains("\nAbove 1.15 in `window`: a 1.200 (the cause is not known).\n"), "{}", aims(&results));
        results.rows[0].name = "fsm".into();
        assert!(aims(&results).contains("fsm 1.200 (jumps through a table"), "{}", aims(&results));
        results.rows[0].name = "chase".into();
        let text = aims(&results);
        assert!(text.contains("base is not 0: chase 1.200.") && !text.contains("Above"), "{text}");
        assert!(text.contains("worst of them, chains of loads left out |"), "{text}");
    }

    #[test]
    fn peers_that_are_ahead_are_named_with_the_reason() {
        let mut results = example();
        results.rows[0].cells.insert("wasmtime".into(), times(10_500));
        results.rows[1].cells.insert("wasm2c".into(), times(20_000));
        let text = aims(&results);
        assert!(text.contains("* for a reason that is not known: a (1.100) by wasmtime 1.050.\n"), "{text}");
        assert!(text.contains("* it calls a function on the host's own stack: nothing is switched or cleared, nothing limits its time: b (4.400) by wasm2c, gcc 2.000.\n"), "{text}");
        results.rows[0].cells.insert("wasmtime".into(), times(9000));
        results.rows[0].cells.insert("fast".into(), times(10_100));
        assert!(
            aims(&results).contains("by more than what confining it costs Cordon: a (1.010) by wasmtime 0.900."),
            "{}",
            aims(&results)
        );
        results.rows[0].cells.insert("wasmtime".into(), times(10_000));
        assert!(aims(&results).contains("can make: a (1.010) by wasmtime 1.000."), "{}", aims(&results));
        results.rows[0].cells.insert("wasmtime".into(), times(10_200));
        assert!(!aims(&results).contains("by wasmtime"));
    }
}
