//! The data that the text refers to: the original bytes, with every relocated field standing for what it named.

use crate::compare::Comparison;
use crate::original::{Meaning, Place, Reloc};
use cordon_checker::layout::Slot;
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

impl Comparison<'_> {
    /// Judges the sections that were found, and those that their pointers lead to.
    pub fn data(&mut self) {
        let mut judged = BTreeSet::new();
        loop {
            let next = self.bases.iter().find(|(at, _)| !judged.contains(*at)).map(|(at, base)| (*at, *base));
            let Some(((object, section), base)) = next else { break };
            judged.insert((object, section));
            self.section(object, section, base);
        }
        self.sections_lie_apart();
    }

    fn section(&mut self, object: usize, section: usize, base: i64) {
        // A common symbol has no bytes.
        let old = self.old;
        let Some(original) = old.objects[object].sections.get(section) else { return };
        let name = format!("{}:{section}", old.objects[object].name);
        let inside = self.new.regions.iter().any(|(start, end)| *start <= base && base + original.size as i64 <= *end);
        if !inside || !original.kept {
            self.problems.push(format!("{name} lies at {base:#x}, outside of the image's data"));
            return;
        }
        let mut bytes = self.new.window(base, original.data.len());
        for reloc in &original.relocs {
            let field = reloc.offset as usize..reloc.offset as usize + width(reloc);
            let mut value = [0; 8];
            value[..field.len()].copy_from_slice(&bytes[field.clone()]);
            let value = i64::from_le_bytes(value);
            if let Err(message) = self.pointer(object, section, base, reloc, value) {
                self.problems.push(format!("{name}+{:#x}: {message}", reloc.offset));
            }
            bytes[field.clone()].copy_from_slice(&original.data[field]);
        }
        if bytes != original.data {
            self.problems.push(format!("{name}: the bytes differ"));
        }
        *self.counts.entry("data section").or_insert(0) += 1;
    }

    fn pointer(&mut self, object: usize, section: usize, base: i64, reloc: &Reloc, value: i64) -> Result<(), String> {
        let meaning = self.old.meaning(object, reloc, reloc.addend);
        let code = matches!(&meaning, Meaning::Place(place) if self.old.is_code(*place));
        *self.counts.entry("pointer in data").or_insert(0) += 1;
        match elf::RelocationType(reloc.kind) {
            elf::R_X86_64_64 if code => self.code_pointer(&meaning, value),
            elf::R_X86_64_64 => self.stands_for(&meaning, value),
            // An entry of a table of distances from the table's start, which some code refers to.
            elf::R_X86_64_PC32 => {
                let value = i64::from(value as i32);
                let start = self.table_start(object, section, reloc.offset as i64);
                let Meaning::Place(place) = meaning else { return Err("a distance to nothing".into()) };
                let target = Place { offset: place.offset - (reloc.offset as i64 - start), ..place };
                match self.old.is_code(target) {
                    true => self.label(target, value + base + start),
                    false => self.stands_for(&Meaning::Place(place), value + base + reloc.offset as i64),
                }
            }
            elf::R_X86_64_TPOFF64 => {
                self.thread_offsets.push((meaning, value));
                Ok(())
            }
            kind => Err(format!("relocation type {} in data", kind.0)),
        }
    }

    /// A function's slot, or a label's number.
    fn code_pointer(&mut self, meaning: &Meaning, value: i64) -> Result<(), String> {
        let Meaning::Place(place) = meaning else { return Err("no code".into()) };
        self.stands_for(meaning, value).or_else(|_| self.label(*place, value))
    }

    /// Whether `value` is 8 × the index of `target` in a table that the code around it jumps through. The trap stands for code that nothing
    /// reaches.
    fn label(&mut self, target: Place, value: i64) -> Result<(), String> {
        let index = usize::try_from(value / 8).unwrap_or(usize::MAX);
        let reached = self.new.map.iter().any(|e| e.old == target);
        let trap = || self.new.tables.values().any(|t| t.slots.get(index) == Some(&None));
        if !reached && (value == 0 || value % 8 == 0 && trap()) {
            return Ok(());
        }
        let found =
            self.new.tables.values().filter_map(|t| t.slots.get(index).copied().flatten()).any(|to| self.lands(to, target));
        let function = matches!(self.new.slots.get(index), Some(Slot::Text(to)) if self.lands(*to, target));
        if value % 8 == 0 && (found || function) { Ok(()) } else { Err(format!("{value:#x} is not the index of {target:?}")) }
    }

    /// The last place at or below `offset` of the section that code refers to.
    fn table_start(&self, object: usize, section: usize, offset: i64) -> i64 {
        let referred = self.referred.get(&(object, section));
        referred.and_then(|all| all.range(..=offset).next_back().copied()).unwrap_or(offset)
    }

    fn sections_lie_apart(&mut self) {
        let sized = self.bases.iter().filter_map(|((o, s), base)| {
            let size = self.old.objects[*o].sections.get(*s)?.size;
            Some((*base, *base + size as i64, (*o, *s)))
        });
        let mut all: Vec<_> = sized.filter(|(start, end, _)| start < end).collect();
        all.sort_unstable();
        for pair in all.windows(2) {
            if pair[0].1 > pair[1].0 {
                self.problems.push(format!("sections {:?} and {:?} overlap", pair[0].2, pair[1].2));
            }
        }
    }
}

/// Bytes of a relocated field.
fn width(reloc: &Reloc) -> usize {
    let wide = [elf::R_X86_64_64, elf::R_X86_64_PC64, elf::R_X86_64_TPOFF64, elf::R_X86_64_DTPOFF64];
    if wide.contains(&elf::RelocationType(reloc.kind)) { 8 } else { 4 }
}

/// Offsets of data sections that code refers to, by section: where tables may start.
pub fn referred(old: &crate::original::Originals) -> BTreeMap<(usize, usize), BTreeSet<i64>> {
    let mut found: BTreeMap<(usize, usize), BTreeSet<i64>> = BTreeMap::new();
    for (number, object) in old.objects.iter().enumerate() {
        for reloc in object.sections.iter().filter(|s| s.code).flat_map(|s| &s.relocs) {
            let bias = if elf::RelocationType(reloc.kind) == elf::R_X86_64_PC32 { 4 } else { 0 };
            if let Meaning::Place(place) = old.meaning(number, reloc, reloc.addend + bias) {
                found.entry((place.object, place.section)).or_default().insert(place.offset);
            }
        }
    }
    found
}
