//! An image as `inspect` shows it, read from a file or made from objects just now.

use super::disasm::Function;
use super::outcome::{Exit, Failure, Problem};
use cordon_checker::layout::TEXT_VADDR;
use cordon_checker::note::{self, Note};
use cordon_checker::{Policy, check, is_start, scratch_len, state_at};
use cordon_rewriter::emit::MapEntry;
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use iced_x86::{Decoder, DecoderOptions};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectKind, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What there is to show.
pub struct View {
    pub name: String,
    pub text: Vec<u8>,
    /// The note's descriptor.
    pub note: Vec<u8>,
    /// Ascending by start.
    pub functions: Vec<Function>,
    /// Ascending by `new`.
    pub map: Vec<MapEntry>,
    /// Names that `map` refers to.
    pub objects: Vec<String>,
    /// What the checker says, as text.
    pub verdict: String,
    /// The checker's states, if it accepted the text.
    pub scratch: Option<Vec<u64>>,
    /// The rewriter's own reasons by new offset, where it ran just now.
    pub changes: Option<BTreeMap<u32, &'static str>>,
}

impl View {
    /// The view of an image file, or `None` if `inputs` is not a single shared-object file.
    pub fn of_image(inputs: &[Input]) -> Option<Result<View, Failure>> {
        let [input] = inputs else { return None };
        let file = ElfFile64::<object::Endianness>::parse(&*input.bytes).ok()?;
        (file.kind() == ObjectKind::Dynamic).then(|| View::read(&input.name, &file))
    }

    fn read(name: &str, file: &ElfFile64<'_, object::Endianness>) -> Result<View, Failure> {
        let section = |wanted: &str| {
            let section = file.section_by_name(wanted);
            section.and_then(|s| s.data().ok()).ok_or_else(|| View::damaged(name, &format!("it has no section {wanted}")))
        };
        let text = section(".text")?.to_vec();
        let note = descriptor(file).ok_or_else(|| View::damaged(name, "it has no Cordon note"))?;
        let mut functions: Vec<Function> = file.symbols().filter_map(|s| function(&s, text.len())).collect();
        functions.sort();
        functions.dedup_by_key(|f| f.start);
        let optional = |wanted: &str| section(wanted).unwrap_or_default();
        let map = optional(".cordon.map").chunks_exact(16).map(map_entry).collect();
        let names = optional(".cordon.objects").split(|&b| b == 0);
        let objects = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
        Ok(View { name: name.into(), functions, map, objects, ..View::judged(text, note) })
    }

    /// The view of objects that are rewritten just now.
    pub fn of_objects(inputs: &[Input], options: &Options) -> Result<View, Failure> {
        let rewritten = rewrite(inputs, options)?;
        let parts = rewritten.parts;
        let functions = parts.symbols.iter().filter(|s| s.function).filter_map(|s| {
            let start = u32::try_from(s.value).ok()?;
            Some(Function { start, end: start.checked_add(u32::try_from(s.size).ok()?)?, name: s.name.clone() })
        });
        let mut functions: Vec<Function> = functions.collect();
        functions.sort();
        functions.dedup_by_key(|f| f.start);
        let changes = rewritten.explanations.iter().map(|e| (e.new, e.change)).collect();
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        Ok(View {
            name: names.join(" "),
            functions,
            map: parts.map,
            objects: parts.objects,
            changes: Some(changes),
            ..View::judged(parts.text, parts.note.to_bytes())
        })
    }

    /// Asks the checker; the rest is empty.
    fn judged(text: Vec<u8>, note: Vec<u8>) -> View {
        let mut scratch = vec![0; scratch_len(text.len())];
        let verdict = Note::parse(&note).map_err(|e| format!("damaged note: {e:?}")).and_then(|parsed| {
            let policy = if parsed.flags & note::FLAG_KERNEL != 0 { Policy::KERNEL } else { Policy::USER };
            check(&text, &policy, &parsed.layout, &mut scratch).map_err(|reject| format!("rejected: {reject}"))
        });
        let scratch = verdict.is_ok().then_some(scratch);
        let verdict = verdict.map_or_else(|why| why, |_| "accepted by the checker".into());
        View {
            name: String::new(),
            text,
            note,
            functions: Vec::new(),
            map: Vec::new(),
            objects: Vec::new(),
            verdict,
            scratch,
            changes: None,
        }
    }

    /// A failure that says why `name` is no image to show.
    pub fn damaged(name: &str, why: &str) -> Failure {
        Failure::one(
            Exit::Refused,
            Problem::with_file(Path::new(name), "not-an-image", format!("not a whole Cordon image: {why}")),
        )
    }

    /// The files that the recorded object names lie in: `lib.a` for `lib.a(member.o)`.
    pub fn files(&self) -> BTreeSet<String> {
        self.objects
            .iter()
            .map(|n| n.strip_suffix(')').and_then(|n| n.rsplit_once('(')).map_or(n.as_str(), |(file, _)| file).into())
            .collect()
    }

    /// Text offsets of the instructions and fused units of `function`; without the checker's, plain decoding must do.
    pub fn starts(&self, function: &Function) -> Vec<u32> {
        let end = (function.end as usize).min(self.text.len());
        let start = (function.start as usize).min(end);
        match &self.scratch {
            Some(scratch) => (start..end).filter(|&at| is_start(scratch[at])).map(|at| at as u32).collect(),
            None => {
                let mut decoder = Decoder::new(64, &self.text[start..end], DecoderOptions::NONE);
                let mut found = Vec::new();
                while decoder.can_decode() {
                    found.push((start + decoder.position()) as u32);
                    let _ = decoder.decode();
                }
                found
            }
        }
    }

    /// Static stack depth in bytes before the instruction at `offset`, if the checker accepted the text.
    pub fn depth(&self, offset: u32) -> Option<u64> {
        Some(state_at(*self.scratch.as_ref()?.get(offset as usize)?)?.units() * 8)
    }
}

/// One record of `.cordon.map`: new, object, section, old, little-endian.
fn map_entry(record: &[u8]) -> MapEntry {
    let word = |i: usize| record[4 * i..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    MapEntry { new: word(0), object: word(1), section: word(2), old: word(3) }
}

/// A function symbol of the image's text.
fn function(symbol: &object::read::elf::ElfSymbol64<'_, '_, object::Endianness>, text: usize) -> Option<Function> {
    let start = symbol.address().checked_sub(TEXT_VADDR)?;
    let end = start.checked_add(symbol.size())?;
    let inside = symbol.kind() == SymbolKind::Text && end <= text as u64;
    inside.then_some(())?;
    Some(Function { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()?, name: symbol.name().ok()?.into() })
}

/// The descriptor of the image's note.
fn descriptor(file: &ElfFile64<'_, object::Endianness>) -> Option<Vec<u8>> {
    use object::read::elf::{FileHeader as _, SectionHeader as _};
    let endian = file.endian();
    let sections = file.elf_header().sections(endian, file.data()).ok()?;
    let notes = sections.iter().filter_map(|s| s.notes(endian, file.data()).ok().flatten());
    for mut notes in notes {
        while let Ok(Some(note)) = notes.next() {
            if note.name() == self::note::NAME.as_bytes() && note.n_type(endian).0 == self::note::TYPE {
                return Some(note.desc().to_vec());
            }
        }
    }
    None
}
