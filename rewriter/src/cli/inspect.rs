//! `cordon inspect`: what an image consists of, original and rewritten code side by side.

use super::disasm::{Function, Printer, covering};
use super::originals::{Code, Originals};
use super::outcome::{Failure, Report, counted};
use super::rewrite::{Link, read_file, read_inputs, read_named};
use super::view::View;
use super::{Format, outcome::Exit, outcome::Problem};
use cordon_checker::layout::{Slot, Words};
use cordon_checker::note::Note;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Show original and rewritten code side by side, and what the image consists of
///
/// Takes a sealed image, or objects and archives, which are rewritten in memory first. Shows regions, entries, imports and table slots,
/// then each function: static stack depth in bytes, original instruction, rewritten instructions, what was changed and why. For an
/// image the originals are looked for under the names that it records, and among --object; the options that shape images are for objects.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cordon inspect handler.o
  cordon inspect handler.cordon --object handler.o --function parse")]
pub struct Args {
    /// One image, or objects and archives
    #[arg(required = true, value_name = "FILE")]
    pub inputs: Vec<PathBuf>,
    /// Show only this function (repeatable)
    #[arg(long, value_name = "NAME")]
    pub function: Vec<String>,
    /// An original object or archive of the image (repeatable)
    #[arg(long, value_name = "FILE")]
    pub object: Vec<PathBuf>,
    #[command(flatten)]
    pub link: Link,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// One rewritten instruction (or fused unit) beside its original.
#[derive(Debug)]
struct Row {
    /// Static stack depth in bytes before it, if the checker accepted the text.
    depth: Option<u64>,
    /// Section offset and instruction, at the first of the instructions that stand for it.
    original: Option<(u32, String)>,
    new: u32,
    rewritten: String,
    change: String,
}

/// Runs the subcommand.
pub fn execute(args: &Args) -> Result<Report, Failure> {
    let inputs = read_inputs(&args.inputs)?;
    let mut originals = Originals::default();
    let view = match View::of_image(&inputs) {
        Some(view) => {
            let view = view?;
            if args.link != Link::default() {
                let message = format!(
                    "{} is an image, which is shown as it was made: options of cordon rewrite are for objects",
                    view.name
                );
                return Err(Failure::usage("usage", message));
            }
            for name in view.files() {
                if let Some(bytes) = read_named(name.as_ref()) {
                    originals.add(&name, &bytes);
                }
            }
            view
        }
        None => {
            inputs.iter().for_each(|input| originals.add(&input.name, &input.bytes));
            View::of_objects(&inputs, &args.link.options())?
        }
    };
    for path in &args.object {
        originals.add(&path.display().to_string(), &read_file(path)?);
    }
    let wanted = wanted_functions(&view, &args.function)?;
    let note = Note::parse(&view.note).map_err(|e| View::damaged(&view.name, &format!("its note is damaged: {e:?}")))?;
    let (mut text, mut object) = header(&view, &note);
    let mut functions = Vec::new();
    for function in wanted {
        let rows = rows(&view, &originals, function);
        let source = source(&view, &originals, function);
        print_function(&mut text, &source, function, &rows);
        functions.push(function_json(&source, function, &rows));
    }
    object["functions"] = Value::Array(functions);
    Ok(Report { text, json: object })
}

fn wanted_functions<'v>(view: &'v View, names: &[String]) -> Result<Vec<&'v Function>, Failure> {
    if let Some(missing) = names.iter().find(|n| !view.functions.iter().any(|f| f.name == **n)) {
        let all: Vec<&str> = view.functions.iter().map(|f| f.name.as_str()).collect();
        let problem = Problem::new("no-such-function", format!("{} has no function {missing}", view.name));
        return Err(Failure::one(Exit::Usage, problem.detail("functions", all.join(" "))));
    }
    Ok(view.functions.iter().filter(|f| names.is_empty() || names.contains(&f.name)).collect())
}

/// `name+offset` of a text offset.
fn place(functions: &[Function], offset: u32) -> String {
    match covering(functions, offset) {
        Some(f) if f.start == offset => f.name.clone(),
        Some(f) => format!("{}+{:#x}", f.name, offset - f.start),
        None => format!("{offset:#x}"),
    }
}

fn slot_text(view: &View, note: &Note<'_>, word: u32) -> String {
    match Slot::from_word(word) {
        Slot::Trap => "trap".into(),
        Slot::Import(i) => format!("import {}", note.import(i as usize).map_or("?", |(_, name)| name)),
        Slot::Text(offset) => place(&view.functions, offset),
    }
}

/// Everything about the image that is not code.
fn header(view: &View, note: &Note<'_>) -> (String, Value) {
    let layout = &note.layout;
    let slots = |words: Words<'_>| -> Vec<String> { words.iter().map(|w| slot_text(view, note, w)).collect() };
    let regions: Vec<_> = (0..layout.region_count()).filter_map(|i| layout.region(i)).collect();
    let name = |i: usize| note.entry_name(i).unwrap_or("?");
    let entries: Vec<_> = layout.entries.iter().enumerate().map(|(i, at)| (name(i), at)).collect();
    let imports: Vec<_> = (0..layout.imports as usize).filter_map(|i| note.import(i).ok()).collect();
    let main = slots(layout.slots);
    let tables: Vec<_> = (0..layout.sub_table_count()).filter_map(|i| layout.sub_table(i)).collect();
    let table_slots = |first: u32, count: u32| slots(layout.sub_slots.slice(first as usize, count as usize).unwrap_or_default());

    let mut text = String::new();
    let functions = counted(view.functions.len(), "function");
    let _ = writeln!(text, "{}: text {} bytes, {functions}, {}", view.name, view.text.len(), view.verdict);
    let _ =
        writeln!(text, "stack: K {:#x}, S {:#x}, depth at most {} bytes", layout.stack_shift, layout.stack_low, layout.max_depth);
    let _ = writeln!(text, "regions (window offsets):");
    for r in &regions {
        let _ = writeln!(text, "  {:#010x} .. {:#010x}  {:?}", r.start, r.end, r.kind);
    }
    let _ = writeln!(text, "entries (text offsets):");
    for (name, at) in &entries {
        let _ = writeln!(text, "  {at:#8x}  {name}");
    }
    let _ = writeln!(text, "main table at {:#x}, {} slots:", layout.table, 1u64 << layout.main_bits.min(63));
    for (i, slot) in main.iter().enumerate() {
        let _ = writeln!(text, "  {i:4}  pointer {:#6x}  {slot}", 8 * i);
    }
    for t in &tables {
        let _ = writeln!(
            text,
            "jump table at {:#x}, depth {}, {} slots used: {}",
            t.base,
            t.depth,
            t.count,
            table_slots(t.first, t.count).join(" ")
        );
    }
    let json = json!({
        "name": view.name,
        "text": view.text.len(),
        "accepted": view.scratch.is_some(),
        "stack": { "shift": layout.stack_shift, "low": layout.stack_low, "max_depth": layout.max_depth },
        "regions": regions.iter().map(|r| json!({ "start": r.start, "end": r.end, "kind": format!("{:?}", r.kind).to_lowercase() })).collect::<Vec<_>>(),
        "entries": entries.iter().map(|(name, at)| json!({ "name": name, "offset": at })).collect::<Vec<_>>(),
        "imports": imports.iter().map(|(slot, name)| json!({ "slot": slot, "name": name })).collect::<Vec<_>>(),
        "main_table": { "base": layout.table, "bits": layout.main_bits, "slots": main },
        "sub_tables": tables.iter().map(|t| json!({ "base": t.base, "bits": t.bits, "depth": t.depth, "slots": table_slots(t.first, t.count) })).collect::<Vec<_>>(),
    });
    (text, json)
}

/// The rewritten instructions of `function`, each beside what it stands for.
fn rows(view: &View, originals: &Originals, function: &Function) -> Vec<Row> {
    let mut printer = Printer::new(&view.functions);
    let starts = view.starts(function);
    let mut rows = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(function.end).min(view.text.len() as u32);
        let bytes = &view.text[start as usize..end as usize];
        let rewritten: Vec<String> = printer.sequence(bytes, u64::from(start)).into_iter().map(|(_, s)| s).collect();
        let mut row =
            Row { depth: view.depth(start), original: None, new: start, rewritten: rewritten.join("; "), change: String::new() };
        let entry = view.map.binary_search_by_key(&start, |m| m.new).ok().map(|at| view.map[at]);
        if let Some(entry) = entry {
            let name = view.objects.get(entry.object as usize).map_or("", String::as_str);
            let found = originals.code(name, entry.section as usize).and_then(|code| original(code, entry.old, &mut printer));
            row.change = match (&view.changes, &found) {
                (Some(changes), _) => changes.get(&start).copied().unwrap_or_default().into(),
                (None, Some((old, _))) => change(old, bytes).into(),
                (None, None) => String::new(),
            };
            row.original = Some((entry.old, found.map_or_else(|| "?".into(), |(_, shown)| shown)));
        }
        rows.push(row);
    }
    rows
}

/// The original instruction at `offset`, decoded and as text with what its relocations name.
fn original(code: &Code, offset: u32, printer: &mut Printer<'_>) -> Option<(Instruction, String)> {
    let bytes = code.bytes.get(offset as usize..)?;
    let instruction = Decoder::with_ip(64, bytes, u64::from(offset), DecoderOptions::NONE).decode();
    let end = u64::from(offset) + instruction.len() as u64;
    let mut shown = printer.print_bare(&instruction);
    for (_, target) in code.relocations.range(u64::from(offset)..end) {
        let _ = write!(shown, " {{{target}}}");
    }
    Some((instruction, shown))
}

/// What was changed, judged by the two forms alone; an image does not record the rewriter's own reasons.
fn change(old: &Instruction, new: &[u8]) -> &'static str {
    let new = Decoder::new(64, new, DecoderOptions::NONE).decode();
    let explicit = (0..old.op_count()).any(|i| old.op_kind(i) == OpKind::Memory);
    let stack = matches!(old.memory_base(), Register::RSP | Register::ESP);
    match old.flow_control() {
        FlowControl::IndirectCall | FlowControl::IndirectBranch => return "goes through a checked table",
        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Return => return "",
        _ => {}
    }
    match (explicit, new.memory_segment()) {
        _ if old.is_string_instruction() => "string instruction: built-in gate",
        (true, _) if old.is_ip_rel_memory_operand() => "address becomes a window offset",
        (true, Register::GS | Register::FS) if stack => "frame lies in the window's stack",
        (true, Register::GS | Register::FS) => "window operand",
        (true, _) if stack => "stack address becomes a window offset",
        (false, Register::GS | Register::FS) => "implicit access becomes a window operand",
        _ if old.code() == new.code() => "",
        _ => "re-encoded",
    }
}

/// Where the code of `function` came from: `file.o:.text+0x10`.
fn source(view: &View, originals: &Originals, function: &Function) -> String {
    let Some(entry) = view.map.iter().find(|m| m.new >= function.start && m.new < function.end) else {
        return "the rewriter itself".into();
    };
    let object = view.objects.get(entry.object as usize).map_or("?", String::as_str);
    let section = originals.code(object, entry.section as usize);
    let section = section.map_or_else(|| format!("section {}", entry.section), |code| code.name.clone());
    format!("{object}:{section}+{:#x}", entry.old)
}

fn print_function(text: &mut String, source: &str, function: &Function, rows: &[Row]) {
    let _ = writeln!(text, "\n{} ({:#x}..{:#x}) from {source}", function.name, function.start, function.end);
    let _ = writeln!(text, "  {:>5}  {:<54}  {:<58}  change", "depth", "original", "rewritten");
    for row in rows {
        let depth = row.depth.map_or_else(|| "?".into(), |d| d.to_string());
        let original = row.original.as_ref().map_or_else(String::new, |(at, shown)| format!("{at:6x}: {shown}"));
        let rewritten = format!("{:6x}: {}", row.new, row.rewritten);
        let line = format!("  {depth:>5}  {original:<54}  {rewritten:<58}  {}", row.change);
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn function_json(source: &str, function: &Function, rows: &[Row]) -> Value {
    let row = |r: &Row| {
        json!({
            "depth": r.depth,
            "old_offset": r.original.as_ref().map(|(at, _)| at),
            "original": r.original.as_ref().map(|(_, shown)| shown),
            "offset": r.new,
            "rewritten": r.rewritten,
            "change": r.change,
        })
    };
    json!({
        "name": function.name,
        "start": function.start,
        "end": function.end,
        "source": source,
        "instructions": rows.iter().map(row).collect::<Vec<_>>(),
    })
}
