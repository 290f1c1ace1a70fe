//! The report: one page without any file beside it.

use super::svg::{class, dots, escape, means};
use super::{figure, percent, ratio, time};
use crate::archives::Archives;
use crate::columns::BASELINE;
use crate::results::{Cell, ColumnResult, Pick, Results, RowResult, mean};
use crate::rows::Group;
use crate::workouts;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What makes the comparison fair, and where it is not.
const RULES: &[&str] = &[
    "Every column runs the same C sources on the same inputs, and its results and the bytes that it leaves in its buffer are compared with native's before anything is timed; what differs is an error, not a number.",
    "Ratios are to gcc -O2 -fPIC. clang -O2 -fPIC is a column of its own: compare what clang compiled (WebAssembly, BPF, the window with clang's objects) with that.",
    "Every round times every column in turn, each in a fresh window, instance or process, starting with another column each time. The first pass over the inputs is not counted. A number is the median over all rounds, then over three code layouts (0, 16 and 48 bytes of code in front); the least pass is given beside it. Interpreters and processes take part in every third round.",
    "Times are the thread's processor time; for handlers in a process of their own, the clock on the wall, since waiting is what they cost.",
    "Every call copies its input into the handler's memory by memcpy, natively too, so that the handler finds it as a host would leave it. Nothing is written byte by byte: a handler that reads in words would then wait for the stores.",
    "Each C file is compiled by itself everywhere, and a WebAssembly module is linked without optimisation across files.",
    "WebAssembly has pointers and longs of 32 bits: its lists and trees are smaller than native's, which is in its favour. Its results are compared in their lower 32 bits.",
    "wasmtime compiles ahead of time (Cranelift, its default level) and wasm2c's C is compiled by gcc -O2, both with guard pages in place of bounds checks: the fastest form of each. Calls into wasmtime go through its unchecked call, into wasmi through its ordinary one.",
    "BPF programs get a pointer to a context (rbpf) or the arguments in registers (solana-sbpf), as each machine does it. What clang cannot express in BPF, or the machine cannot hold, is left out and named.",
    "Cordon with explicit masks is what classic schemes of software fault isolation do, everything else equal: each address is computed into a 32-bit register in front of its access, a dead one where there is one; rsp with a constant needs no mask. Control flow and the stack are as in the other windows.",
    "Not every column enforces the same. Native code and rbpf's compiled code are not confined at all; wasm2c and plain wasmtime cannot stop a loop. The table says what each does.",
];

const STYLE: &str = "
:root{--ink:#1c1c1c;--paper:#fff;--faint:#888;--line:#ddd;--warn:#b00020}
@media(prefers-color-scheme:dark){:root{--ink:#e4e4e4;--paper:#161616;--faint:#999;--line:#333;--warn:#ff8a80}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2.2em}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}th,td{border-bottom:1px solid var(--line);padding:2px 8px;text-align:right;white-space:nowrap}
th{vertical-align:bottom;white-space:normal;min-width:4.5em;font-weight:600}th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
.text td{text-align:left;white-space:normal}.mean td{font-weight:600}.warn{color:var(--warn);font-weight:600}.faint{color:var(--faint)}
.legend span{margin-right:1.2em;white-space:nowrap}.legend svg{width:12px;height:12px;vertical-align:-1px;margin-right:4px}
svg{width:100%;height:auto;font-size:12px}svg text{fill:var(--ink)}svg .tick{fill:var(--faint)}.grid{stroke:var(--line)}.one{stroke:var(--faint);stroke-width:1.5}
.cordon,.cordon-fast,.cordon-masks,.cordon-stores,.cordon-match,.cordon-metered{stroke:var(--paper);stroke-width:.5}
.cordon{fill:#0b6e4f}.cordon-fast{fill:#35b37e}.cordon-masks{fill:#b8a900}.cordon-stores{fill:#8fd3b6}.cordon-match{fill:#1f78b4}.cordon-metered{fill:#6a3d9a}
.native{fill:#777}.wasm{fill:#e08214}.wasm2c{fill:#f4c16d}.bpf{fill:#c51b7d}.process{fill:#8c510a}";

/// The page.
pub fn page(results: &Results) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>\n<title>Cordon, measured</title>\n<style>{STYLE}</style>\n<h1>Cordon, side by side</h1>\n"
    );
    if let Some(reason) = &results.preliminary {
        let _ = writeln!(page, "<p class='warn'>Preliminary, not to be quoted: {}.</p>", escape(reason));
    }
    rules(results, &mut page);
    summary(results, &mut page);
    for group in [Group::Handlers, Group::Kernels] {
        rows(results, group, &mut page);
    }
    holes(results, &mut page);
    micro(results, &mut page);
    instructions(results, &mut page);
    if let Some(archives) = &results.archives {
        self::archives(results, archives, &mut page);
    }
    page + "</html>\n"
}

fn rules(results: &Results, page: &mut String) {
    *page += "<h2>Rules</h2>\n<ul>\n";
    RULES.iter().for_each(|rule| page.push_str(&format!("<li>{}</li>\n", escape(rule))));
    let machine = &results.machine;
    let _ = writeln!(
        page,
        "</ul>\n<p>{}; {} MiB of memory; governor {}; load {:.1} at the start, {:.1} at the end. {}. Commit {}, {}, {} rounds.</p>",
        escape(&machine.line()),
        machine.memory_mib,
        escape(machine.governor.as_deref().unwrap_or("not shown")),
        machine.load[0],
        machine.load[1],
        escape(&machine.tools.join("; ")),
        escape(&machine.commit),
        escape(&results.date),
        results.rounds
    );
    *page += "<h2>What each column enforces</h2>\n<div class='wide'><table class='text'><tr><th>column<th>memory<th>what stops a handler that runs on<th>a fault<th>clock</tr>\n";
    for column in &results.columns {
        let cells = [&column.title, &column.memory, &column.stops, &column.faults, &column.clock].map(|text| escape(text));
        let _ = writeln!(page, "<tr><td>{}</tr>", cells.join("<td>"));
    }
    *page += "</table></div>\n";
}

fn summary(results: &Results, page: &mut String) {
    *page += "<h2>Means</h2>\n<p>Geometric means of the ratios to gcc -O2, with the number of rows that each column has. Left of the line is faster than native.</p>\n<h3>Calls that take over a microsecond natively</h3>\n";
    *page += &means(results, "geometric means, long calls", |_| BASELINE, RowResult::is_long);
    *page += "<h3>The same, to what the same compiler makes natively</h3>\n<p>WebAssembly and BPF come from clang: here they are compared with clang's native code, and with what clang's objects take in a window.</p>\n";
    *page += &means(results, "geometric means, long calls, to the same compiler", |column| &column.native, RowResult::is_long);
    *page += "<h3>All calls</h3>\n<p>Short calls pay for entering.</p>\n";
    *page += &means(results, "geometric means, all calls", |_| BASELINE, |_| true);
}

fn rows(results: &Results, group: Group, page: &mut String) {
    let rows: Vec<&RowResult> = results.rows.iter().filter(|row| row.group == group.name()).collect();
    if rows.is_empty() {
        return;
    }
    let columns = results.used_columns();
    let drawn: Vec<&ColumnResult> = columns
        .iter()
        .copied()
        .filter(|c| {
            ["clang", "fast", "window", "masks", "match", "metered", "wasm2c", "wasmtime", "wasmtime-epoch"]
                .contains(&c.id.as_str())
        })
        .collect();
    let _ = writeln!(page, "<h2>{}{}</h2>\n<p class='legend'>", group.name()[..1].to_uppercase(), &group.name()[1..]);
    for column in &drawn {
        let _ = writeln!(
            page,
            "<span><svg viewBox='0 0 12 12'><circle class='{}' cx='6' cy='6' r='5'/></svg>{}</span>",
            class(&column.id),
            escape(&column.title)
        );
    }
    *page += "</p>\n";
    *page += &dots(&rows, &drawn, group.name());
    let _ = write!(page, "<div class='wide'><table><tr><th>program<th>gcc, a call");
    let others: Vec<&ColumnResult> = columns.into_iter().filter(|c| c.id != BASELINE).collect();
    others.iter().for_each(|column| page.push_str(&format!("<th>{}", escape(&column.title))));
    *page += "</tr>\n";
    for row in &rows {
        let native = row.each(BASELINE, Pick::Median).map_or_else(String::new, time);
        let _ = write!(page, "<tr><td>{}<td>{native}", escape(&row.name));
        others.iter().for_each(|column| page.push_str(&cell(row, &column.id)));
        *page += "</tr>\n";
    }
    for (name, pick) in [("geometric mean", Pick::Median), ("the same of the least passes", Pick::Least)] {
        let _ = write!(page, "<tr class='mean'><td>{name}<td>");
        for column in &others {
            let mean = mean(rows.iter().copied(), &column.id, pick).map(|mean| mean.ratio);
            let _ = write!(page, "<td>{}", ratio(mean));
        }
        *page += "</tr>\n";
    }
    *page += "</table></div>\n<p class='faint'>Hold the pointer over a number for the least pass, the spread over code layouts and the growth of the code.</p>\n";
}

/// A number with what else is known of it, tinted by how far it is above 1.
fn cell(row: &RowResult, column: &str) -> String {
    let Some(value) = row.ratio(column, Pick::Median) else {
        let reason = row.cells.get(column).map_or("not measured", |cell| if let Cell::None(reason) = cell { reason } else { "" });
        return format!("<td class='faint' title='{}'>–", escape(reason));
    };
    let least = ratio(row.ratio(column, Pick::Least));
    let spread = row.spread(column).map_or_else(String::new, |(low, high)| format!("; layouts {low:.3} … {high:.3}"));
    let growth =
        row.cells.get(column).and_then(Cell::growth).map_or_else(String::new, |growth| format!("; code {}", percent(growth)));
    let heat = (value.log2() * 18.0).clamp(0.0, 55.0);
    format!(
        "<td style='background:color-mix(in srgb,#d73027 {heat:.0}%,transparent)' title='least {least}{spread}{growth}'>{}",
        ratio(Some(value))
    )
}

/// Which cells are empty, and why.
fn holes(results: &Results, page: &mut String) {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for row in &results.rows {
        for column in &results.columns {
            if let Some(Cell::None(reason)) = row.cells.get(&column.id) {
                reasons.entry((&column.title, reason)).or_default().push(&row.name);
            }
        }
    }
    if reasons.is_empty() {
        return;
    }
    *page += "<h2>Empty cells</h2>\n<div class='wide'><table class='text'><tr><th>column<th>why<th>programs</tr>\n";
    for ((column, reason), names) in reasons {
        let names = if names.len() == results.rows.len() { "all".into() } else { names.join(", ") };
        let _ = writeln!(page, "<tr><td>{}<td>{}<td>{}</tr>", escape(column), escape(reason), escape(&names));
    }
    *page += "</table></div>\n";
}

fn micro(results: &Results, page: &mut String) {
    let used = |c: &&ColumnResult| results.micro.iter().any(|f| f.values.contains_key(&c.id));
    let columns: Vec<&ColumnResult> = results.columns.iter().filter(used).collect();
    if columns.is_empty() {
        return;
    }
    *page += "<h2>Single operations</h2>\n<p>The least of 15 measurements, by the clock on the wall; for native code and processes, of passes over scripts. Latencies are medians.</p>\n<div class='wide'><table><tr><th>operation";
    columns.iter().for_each(|column| page.push_str(&format!("<th>{}", escape(&column.title))));
    *page += "</tr>\n";
    for operation in &results.micro {
        let _ = write!(page, "<tr><td title='{}'>{}", escape(&operation.note), escape(&operation.name));
        for column in &columns {
            let value = operation.values.get(&column.id).map_or_else(String::new, |value| figure(*value, &operation.unit));
            let _ = write!(page, "<td>{value}");
        }
        *page += "</tr>\n";
    }
    *page += "</table></div>\n";
    for operation in results.micro.iter().filter(|operation| !operation.note.is_empty()) {
        let _ = writeln!(page, "<p class='faint'>{}: {}</p>", escape(&operation.name), escape(&operation.note));
    }
}

fn instructions(results: &Results, page: &mut String) {
    let Some(first) = results.instructions.first() else { return };
    let ids: Vec<&String> = first.columns.keys().filter(|id| *id != BASELINE).collect();
    *page += "<h2>Instructions</h2>\n<p>Counted by valgrind over a short script, entering and copying included, as ratios to gcc -O2: what does not depend on how busy the machine is.</p>\n<div class='wide'><table><tr><th>program<th>gcc, a call";
    for id in &ids {
        let title = results.columns.iter().find(|column| column.id == **id).map_or(id.as_str(), |column| &column.title);
        let _ = write!(page, "<th>{}", escape(title));
    }
    *page += "</tr>\n";
    for count in &results.instructions {
        let native = count.columns.get(BASELINE).copied().unwrap_or(f64::NAN);
        let _ = write!(page, "<tr><td>{}<td>{native:.1}", escape(&count.name));
        ids.iter().for_each(|id| page.push_str(&format!("<td>{}", ratio(count.ratio(id)))));
        *page += "</tr>\n";
    }
    *page += "</table></div>\n";
}

fn archives(results: &Results, archives: &Archives, page: &mut String) {
    let ids = workouts::COLUMNS.map(|column| column.0);
    *page += "<h2>Whole programs and the rewriter</h2>\n<p>Debian's archives in programs around them, natively with musl and under <code>cordon run</code>: processor time of the whole process. Ratios below 1 do not say that a fence makes code faster: host functions stand in for musl's string instructions and system calls.</p>\n<div class='wide'><table><tr><th>archive<th>functions<th>instructions<th>refused<th>code<th>native";
    for id in ids {
        let title = results.columns.iter().find(|column| column.id == id).map_or(id, |column| &column.title);
        let _ = write!(page, "<th>{}", escape(title));
    }
    *page += "</tr>\n";
    for account in &archives.accounts {
        let row = archives.programs.iter().find(|row| row.archive == account.name);
        let growth = percent(account.text_out as f64 / account.text_in.max(1) as f64);
        let native = row.map_or_else(String::new, |row| time(row.native()));
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{growth}<td>{native}",
            escape(&account.name),
            account.functions,
            account.instructions,
            account.refused
        );
        for id in ids {
            let _ = write!(page, "<td>{}", row.map_or_else(String::new, |row| ratio(row.ratio(id))));
        }
        *page += "</tr>\n";
    }
    let together = &archives.together;
    let _ = writeln!(
        page,
        "</table></div>\n<p>{} together, {} instructions: rewritten in {:.1} s on {} processors ({:.1} s of processor time), {} MiB at most.</p>",
        escape(&together.names.join(" + ")),
        together.instructions,
        together.seconds,
        together.processors,
        together.processor_seconds,
        together.peak_mib
    );
}

#[cfg(test)]
mod tests {
    use super::page;
    use crate::results::tests::example;

    #[test]
    fn the_page_has_rules_numbers_and_reasons() {
        let mut results = example();
        results.rows[0].name = "<b>".into();
        let page = page(&results);
        for part in [
            "Preliminary, not to be quoted: a test.",
            "<h2>Rules</h2>",
            "&lt;b&gt;",
            "1.100",
            "4.400",
            "<td>no<td>all",
            "layouts 1.000 … 1.200; code +10.0 %",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        assert!(!page.contains("<b>") && !page.contains("NaN"));
    }
}
