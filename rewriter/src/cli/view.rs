//! An image as `inspect` shows it, read from a file or made from objects just now.

use super::check;
use super::disasm::Function;
use super::outcome::{Exit, Failure, Problem};
use cordon_checker::note::{self, Note};
use cordon_checker::{Policy, is_start, scratch_len, state_at};
use cordon_rewriter::emit::MapEntry;
use cordon_rewriter::object::Input;
use cordon_rewriter::{Options, rewrite};
use iced_x86::{Decoder, DecoderOptions};
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
    /// The view of an image file, or `None` if `inputs` is not a single ELF file of type ET_DYN.
    pub fn of_image(inputs: &[Input]) -> Option<Result<View, Failure>> {
        let [input] = inputs else { return None };
        let dynamic = input.bytes.starts_with(b"\x7fELF") && input.bytes.get(16..18) == Some(&[3, 0]);
        dynamic.then(|| View::read(input))
    }

    fn read(input: &Input) -> Result<View, Failure> {
        let parts = check::parts(Path::new(&input.name), &input.bytes)?;
        let mut map: Vec<MapEntry> = parts.map.chunks_exact(16).map(map_entry).collect();
        map.sort_unstable();
        let objects = parts.objects.split(|&b| b == 0).map(|n| String::from_utf8_lossy(n).into_owned()).collect();
        let functions = check::functions(&parts);
        Ok(View { name: input.name.clone(), functions, map, objects, ..View::judged(parts.text.to_vec(), parts.note.to_vec()) })
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
            cordon_checker::check(&text, &policy, &parsed.layout, &mut scratch).map_err(|reject| format!("rejected: {reject}"))
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
