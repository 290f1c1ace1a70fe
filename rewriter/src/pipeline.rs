//! The phases in order, and the last one: the checker's verdict on what came out.

use crate::body::Body;
use crate::diag::{Diagnostic, Place, Refusals};
use crate::emit::{self, Image, ImageSymbol, MapEntry};
use crate::functions::{CodeRef, Functions};
use crate::layout::Text;
use crate::object::{self, Input, MergeOptions};
use crate::plan::{self, Env, Plan};
use crate::program::{Definition, Program, SectionKind, SymbolKind};
use crate::progress::{Phase, Progress};
use crate::select::{self, GATES, START, TRAPS};
use crate::space;
use crate::{Explanation, Options, Rewritten, Stats, count, fixup, instrument, jumps, kernel, layout, liveness, own, syscall};
use cordon_checker::layout::{self as window, Slot, SubTable};
use cordon_checker::note::{INIT_ENTRY, Note, NoteSpec};
use cordon_checker::{Policy, check};
use foldhash::HashMap;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Rewrites objects and archives into one image and runs the checker on it.
///
/// The order of `inputs` counts as for a linker. The crate's documentation has an example.
///
/// # Errors
/// Everything that cannot be done safely and faithfully, each with its place; [`Diagnostic::code`] is `internal` for what only a bug of
/// the rewriter can cause.
pub fn rewrite(inputs: &[Input], options: &Options) -> Result<Rewritten, Refusals> {
    rewrite_watched(inputs, options, &Progress::default())
}

/// [`rewrite`], with the way it goes in `progress`.
///
/// # Errors
/// The same.
pub fn rewrite_watched(inputs: &[Input], options: &Options, progress: &Progress) -> Result<Rewritten, Refusals> {
    let mut imports = options.imports.clone();
    if options.syscalls {
        imports.push(syscall::IMPORT.to_owned());
    }
    if options.kernel {
        imports.extend(kernel::FUNCTIONS.iter().map(|name| (*name).to_owned()));
    }
    let known =
        GATES.iter().chain(TRAPS).copied().chain(jumps::names()).map(str::to_owned).chain(imports.iter().cloned()).collect();
    let merge = MergeOptions { entries: options.entries.clone(), whole_archive: options.whole_archive, known_undefined: known };
    let mut program = object::read(inputs, &merge)?;
    if options.syscalls {
        syscall::add(&mut program).map_err(|e| internal(e.to_string()))?;
    }
    kernel::refuse_options(options)?;
    instrument::mask::refuse_options(options)?;
    let functions = Functions::find(&program);
    let entries = entries(&program, options)?;
    let mut chosen = select::select(&program, &functions, entries, &imports, progress)?;
    if options.mode.metered {
        count::free(&program, &mut chosen.bodies)?;
    }
    let space = space::lay_out(&program, &chosen, options)?;
    let bodies: HashMap<CodeRef, usize> = chosen.bodies.iter().enumerate().map(|(i, b)| (b.entry, i)).collect();
    let env = Env {
        program: &program,
        functions: &functions,
        chosen: &chosen,
        space: &space,
        bodies: &bodies,
        mode: options.mode,
        masking: options.masking,
    };
    let plans = plans(env, progress)?;
    progress.enter(Phase::Placing, 0);
    let text = text(env, &plans)?;
    let (rodata, data) = fixup::data(env)?;
    let mut image = Image { rodata, data, ..Image::default() };
    image.note = note(env, &plans, &text);
    image.symbols = symbols(env, &text);
    (image.map, image.originals) = map(env, &text);
    image.stubs.clone_from(&text.stubs);
    image.objects = program.objects.iter().map(|o| o.name.clone()).collect();
    image.text.clone_from(&text.bytes);
    progress.enter(Phase::Checking, 0);
    let mut scratch = vec![0; text.bytes.len()];
    image.note.features = self_check(env, &image, &text, &mut scratch)?;
    progress.enter(Phase::Writing, 0);
    image.debug = crate::dwarf::lines(&program, &image.map, &image.symbols);
    if !image.debug.line.is_empty() {
        let frames = crate::dwarf::frames(&scratch, text.bytes.len(), &image.symbols);
        image.debug.frame = frames.map_err(|e| internal(format!("cannot describe the frames: {e}")))?;
    }
    let explanations = explanations(env, &plans, &text);
    let stats = stats(env, &text);
    let file = emit::write(&image).map_err(|e| internal(format!("cannot write the image: {e}")))?;
    Ok(Rewritten { image: file, parts: image, stats, explanations })
}

fn internal(message: impl Into<String>) -> Refusals {
    Refusals(vec![Diagnostic::new(Place { object: "image".into(), ..Place::default() }, "internal", message)])
}

/// The functions that the host may call.
fn entries(program: &Program, options: &Options) -> Result<Vec<(String, CodeRef)>, Refusals> {
    let text = |definition| match definition {
        Definition::Section(section, offset) if program.section(section).kind == SectionKind::Text => {
            Some(CodeRef { section, offset })
        }
        _ => None,
    };
    let mut found = Vec::new();
    let mut problems = Vec::new();
    // A whole program has one way in.
    let start = program.globals.get(START).and_then(|id| text(program.symbol(*id).definition)).filter(|_| options.syscalls);
    if let (true, false, Some(start)) = (options.entries.is_empty(), options.whole_archive, start) {
        return Ok(vec![(START.to_owned(), start)]);
    }
    if options.entries.is_empty() {
        for (name, id) in &program.globals {
            let symbol = program.symbol(*id);
            let explicit = program.objects[symbol.object.0 as usize].explicit || options.whole_archive;
            let code = symbol.kind == SymbolKind::Function || symbol.kind == SymbolKind::Other;
            if let (true, true, Some(at)) = (explicit, code, text(symbol.definition)) {
                found.push((name.clone(), at));
            }
        }
    }
    for name in &options.entries {
        match program.globals.get(name).and_then(|id| text(program.symbol(*id).definition)) {
            Some(at) if !found.iter().any(|(known, _)| known == name) => found.push((name.clone(), at)),
            Some(_) => {}
            None => problems.push(Diagnostic::new(
                Place { object: "command line".into(), symbol: Some(name.clone()), ..Place::default() },
                "unknown-entry",
                format!("no global function `{name}` is defined"),
            )),
        }
    }
    for (name, at) in found.iter().filter(|(name, _)| name.contains(is_hidden)) {
        let place = Place { symbol: Some(name.escape_debug().to_string()), ..program.place(at.section, at.offset) };
        problems.push(Diagnostic::new(place, "unprintable-name", "an entry's name has characters that no terminal shows"));
    }
    if found.is_empty() && problems.is_empty() {
        let archives = program.objects.iter().all(|o| !o.explicit);
        let message = match archives {
            true => {
                "only archives are named, and nothing refers to their members: name functions with --entry, or take all with --whole-archive"
            }
            false => "no global function is defined",
        };
        let place =
            Place { object: program.objects.first().map_or_else(|| "input".into(), |o| o.name.clone()), ..Place::default() };
        problems.push(Diagnostic::new(place, "no-entry", message));
    }
    if problems.is_empty() { Ok(found) } else { Err(Refusals(problems)) }
}

/// Characters that loaders take in no name: controls, and invisible ones that reorder what follows.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn plans(env: Env<'_>, progress: &Progress) -> Result<Vec<Plan>, Refusals> {
    let reserved = if env.mode.metered { count::COUNT_BIT } else { 0 };
    let live = liveness::solve(&env.chosen.bodies, reserved);
    let tail_called = instrument::tail_called(&env.chosen.bodies);
    progress.enter(Phase::Planning, env.chosen.bodies.len());
    let planned = |i: usize| {
        let plan = plan::plan(env, i, &live[i])
            .and_then(|p| instrument::instrument(env, i, p, &live[i], &tail_called))
            .and_then(|p| kernel::finish(env, i, p, &live[i]));
        progress.step();
        plan
    };
    let results: Vec<_> = (0..env.chosen.bodies.len()).into_par_iter().map(planned).collect();
    let mut plans = Vec::with_capacity(results.len());
    let mut problems = Vec::new();
    for result in results {
        match result {
            Ok(plan) => plans.push(plan),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        return Ok(plans);
    }
    problems.sort();
    problems.dedup();
    Err(Refusals(problems))
}

/// The bodies' code, and behind it the function that runs the constructors.
fn text(env: Env<'_>, plans: &[Plan]) -> Result<Text, Refusals> {
    let entries: Vec<(CodeRef, u32)> = env.chosen.bodies.iter().map(|b| (b.entry, entry_node(b))).collect();
    let missing = |at: CodeRef| {
        let place = env.program.place(at.section, at.offset);
        Refusals(vec![Diagnostic::new(place, "internal", "a function that is called was not laid out")])
    };
    let mut text = layout::lay_out(plans, &entries).map_err(missing)?;
    let start = |at: &CodeRef| {
        let body = *env.bodies.get(at).ok_or_else(|| missing(*at))?;
        Ok(text.nodes[body][entries[body].1 as usize].0)
    };
    let constructors = env.chosen.constructors.iter().map(start).collect::<Result<Vec<u32>, Refusals>>()?;
    let called = env.chosen.entries.iter().map(|(_, at)| start(at)).collect::<Result<Vec<u32>, Refusals>>()?;
    own::call_constructors(&mut text, env.space, &constructors, env.mode.metered);
    text.entries = if env.chosen.uses_arena {
        own::set_arena(&mut text, env, &called).map_err(|e| {
            let at = env.chosen.entries[0].1;
            Refusals(vec![Diagnostic::new(env.program.place(at.section, at.offset), "internal", e.to_string())])
        })?
    } else {
        called
    };
    kernel::add_trap(&mut text);
    Ok(text)
}

fn entry_node(body: &Body) -> u32 {
    body.node(crate::body::Key { context: crate::body::Context::default(), at: body.entry })
}

fn note(env: Env<'_>, plans: &[Plan], text: &Text) -> NoteSpec {
    let space = env.space;
    let start = |at: &CodeRef| {
        let body = env.bodies[at];
        text.nodes[body][entry_node(&env.chosen.bodies[body]) as usize].0
    };
    let mut slots = vec![Slot::Trap; 1 + space.import_slots.len() + space.function_slots.len()];
    for (index, slot) in space.import_slots.values().enumerate() {
        slots[*slot as usize] = Slot::Import(index as u32);
    }
    for (at, slot) in &space.function_slots {
        slots[*slot as usize] = Slot::Text(start(at));
    }
    let mut entries: Vec<(u32, String)> =
        text.entries.iter().zip(&env.chosen.entries).map(|(at, (name, _))| (*at, name.clone())).collect();
    entries.extend(text.init.map(|(at, _)| (at.0, INIT_ENTRY.to_owned())));
    NoteSpec {
        stack_shift: space.stack_shift,
        stack_low: window::USER_STACK_LOW,
        kernel: space.kernel,
        limit: if space.kernel { kernel::limit_of(space) } else { 0 },
        table: space.table,
        table_end: space.table_end,
        main_bits: space.main_bits,
        max_depth: space.max_depth(),
        regions: space.regions.clone(),
        sub_tables: sub_tables(env, plans, text, &functions_only(&slots)),
        slots,
        entries,
        imports: space.import_slots.iter().map(|(name, slot)| (*slot, name.clone())).collect(),
        mode: env.mode,
        forgets: text.forgets.clone(),
        ..NoteSpec::default()
    }
}

/// The main table without its imports, which no other table may hold.
fn functions_only(slots: &[Slot]) -> Vec<Slot> {
    slots.iter().map(|s| if let Slot::Import(_) = s { Slot::Trap } else { *s }).collect()
}

/// Every group of tables, once for each copy of the code that jumps through it.
fn sub_tables(env: Env<'_>, plans: &[Plan], text: &Text, main: &[Slot]) -> Vec<(SubTable, Vec<Slot>)> {
    let mut made = Vec::new();
    for (index, groups) in env.space.groups.iter().enumerate() {
        let body = &env.chosen.bodies[index];
        for group in groups {
            for (context, base) in &group.bases {
                let mut slots: Vec<Slot> = main.iter().take(group.first as usize).copied().collect();
                let (mut depth, mut set) = (0, u64::MAX);
                for to in &group.slots {
                    let node = to.and_then(|at| body.index.get(&crate::body::Key { context: *context, at }));
                    slots.push(node.map_or(Slot::Trap, |n| {
                        depth = body.nodes[*n as usize].state.depth.cast_unsigned();
                        set &= plans[index].pushed[*n as usize];
                        Slot::Text(text.nodes[index][*n as usize].0)
                    }));
                }
                let set = if set == u64::MAX { 0 } else { set };
                made.push((SubTable { base: *base, bits: group.bits, depth, set, first: 0, count: 0 }, slots));
            }
        }
    }
    made.sort_by_key(|(table, _)| table.base);
    made
}

fn symbols(env: Env<'_>, text: &Text) -> Vec<ImageSymbol> {
    let mut made = Vec::new();
    for (index, body) in env.chosen.bodies.iter().enumerate() {
        let (start, end) = text.bodies[index];
        let global = env.program.globals.get(&body.name).is_some_and(|id| env.program.symbol(*id).global);
        let size = u64::from(end.0 - start.0);
        made.push(ImageSymbol { name: body.name.clone(), value: start.0.into(), size, function: true, global });
    }
    if let Some((init, end)) = text.init {
        let size = u64::from(end.0 - init.0);
        made.push(ImageSymbol { name: INIT_ENTRY.into(), value: init.0.into(), size, function: true, global: false });
    }
    for symbol in &env.program.symbols {
        if let (SymbolKind::Object, Definition::Section(section, offset)) = (symbol.kind, symbol.definition)
            && let Some(start) = env.space.sections.get(&section)
        {
            let value = u64::from(*start) + offset;
            made.push(ImageSymbol {
                name: symbol.name.clone(),
                value,
                size: symbol.size,
                function: false,
                global: symbol.global,
            });
        }
    }
    made
}

/// Where each instruction came from, and the bytes of [`Image::originals`].
fn map(env: Env<'_>, text: &Text) -> (Vec<MapEntry>, Vec<u8>) {
    let mut made = Vec::new();
    for (body, starts) in env.chosen.bodies.iter().zip(&text.nodes) {
        for (node, new) in body.nodes.iter().zip(starts) {
            let section = env.program.section(node.key.at.section);
            let entry =
                MapEntry { new: new.0, object: section.object.0, section: section.index as u32, old: node.key.at.offset as u32 };
            let start = node.key.at.offset as usize;
            made.push((entry, section.data.get(start..start + node.insn.len()).unwrap_or_default()));
        }
    }
    // Instructions that left nothing behind share their place with the next one, which is kept.
    made.sort_by_key(|(m, _)| m.new);
    let mut kept: Vec<(MapEntry, &[u8])> = Vec::with_capacity(made.len());
    for entry in made {
        match kept.last_mut() {
            Some(last) if last.0.new == entry.0.new => *last = entry,
            _ => kept.push(entry),
        }
    }
    let originals = kept.iter().flat_map(|(_, bytes)| std::iter::once(bytes.len() as u8).chain(bytes.iter().copied())).collect();
    (kept.into_iter().map(|(entry, _)| entry).collect(), originals)
}

fn explanations(env: Env<'_>, plans: &[Plan], text: &Text) -> Vec<Explanation> {
    let mut made = Vec::new();
    for (index, body) in env.chosen.bodies.iter().enumerate() {
        let starts = &text.nodes[index];
        for (i, node) in body.nodes.iter().enumerate() {
            let end = starts.get(i + 1).map_or(text.bodies[index].1.0, |n| n.0);
            let section = env.program.section(node.key.at.section);
            made.push(Explanation {
                object: section.object.0,
                section: section.index as u32,
                old: node.key.at.offset as u32,
                old_length: node.insn.len() as u8,
                new: starts[i].0,
                new_length: end - starts[i].0,
                depth: node.state.depth.cast_unsigned(),
                change: plans[index].changes[i],
            });
        }
    }
    made
}

fn stats(env: Env<'_>, text: &Text) -> Stats {
    let nodes = || env.chosen.bodies.iter().flat_map(|b| &b.nodes).filter(|n| n.key.context == crate::body::Context::default());
    Stats {
        functions: env.chosen.bodies.len(),
        instructions: nodes().count(),
        text_in: text_in(env),
        text_out: text.bytes.len(),
        slots: 1 + env.space.import_slots.len() + env.space.function_slots.len(),
        tables: env.space.groups.iter().flatten().map(|g| g.bases.len()).sum(),
    }
}

/// Bytes of the original functions with their padding.
fn text_in(env: Env<'_>) -> usize {
    let mut last = (None, 0, 0);
    let mut found = BTreeSet::new();
    for at in env.chosen.bodies.iter().flat_map(|b| &b.nodes).map(|n| n.key.at) {
        if last.0 != Some(at.section) || !(last.1..last.2).contains(&at.offset) {
            let Some((start, end)) = env.functions.extent(env.program, at) else { continue };
            last = (Some(at.section), start, end);
            found.insert((at.section, start, end));
        }
    }
    found.iter().map(|(_, start, end)| (end - start) as usize).sum()
}

/// Runs the checker; what it refuses is a bug of the rewriter, reported at the instruction it came from. Gives the features in use.
fn self_check(env: Env<'_>, image: &Image, text: &Text, scratch: &mut [u64]) -> Result<u64, Refusals> {
    let bytes = image.note.to_bytes();
    let note = Note::parse(&bytes).map_err(|e| internal(format!("the note cannot be read back: {e:?}")))?;
    let policy = Policy { mode: image.note.mode, ..env.space.policy() };
    note.validate(&policy).map_err(|e| internal(format!("the note is invalid: {e:?}")))?;
    check(&text.bytes, &policy, &note.layout, scratch).map(|s| s.features.0).map_err(|reject| {
        let message = format!("the checker refuses text offset {:#x}: {:?}", reject.offset, reject.rule);
        let at = image.map.partition_point(|m| m.new <= reject.offset).checked_sub(1).map(|i| image.map[i]);
        let place = at.map_or_else(Place::default, |m| {
            let section = (0..env.program.sections.len() as u32).map(crate::program::SectionId).find(|id| {
                let s = env.program.section(*id);
                s.object.0 == m.object && s.index == m.section as usize
            });
            section.map_or_else(Place::default, |id| env.program.place(id, m.old.into()))
        });
        Refusals(vec![Diagnostic::new(place, "internal", message)])
    })
}
