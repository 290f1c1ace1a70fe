//! The original objects of an image: code bytes and relocations by object name, section index and offset, for showing only.

use object::read::archive::ArchiveFile;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex};
use std::collections::BTreeMap;
use std::path::Path;

/// A code section of an original object.
#[derive(Clone, Debug, Default)]
pub struct Code {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Offset of the field and what it refers to, `symbol+addend`.
    pub relocations: BTreeMap<u64, String>,
}

/// Sections by object name (`file.o`, `lib.a(member.o)`) and ELF section index.
#[derive(Debug, Default)]
pub struct Originals(BTreeMap<(String, usize), Code>);

impl Originals {
    /// Takes in an object or archive known as `name`. What cannot be read is left out: the listing then has no left column.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        let Ok(archive) = ArchiveFile::parse(bytes) else { return self.add_object(name, bytes) };
        for member in archive.members().flatten() {
            if let Ok(data) = member.data(bytes) {
                self.add_object(&format!("{name}({})", String::from_utf8_lossy(member.name())), data);
            }
        }
    }

    fn add_object(&mut self, name: &str, bytes: &[u8]) {
        let Ok(file) = ElfFile64::<object::Endianness>::parse(bytes) else { return };
        for section in file.sections().filter(|s| s.kind() == object::SectionKind::Text) {
            let Ok(data) = section.data() else { continue };
            let relocations = section.relocations().map(|(offset, r)| {
                let target = match r.target() {
                    RelocationTarget::Symbol(index) => target_name(&file, index),
                    _ => String::new(),
                };
                let addend = match r.addend() {
                    0 => String::new(),
                    a if a < 0 => format!("-{:#x}", a.unsigned_abs()),
                    a => format!("+{a:#x}"),
                };
                (offset, target + &addend)
            });
            let code = Code {
                name: section.name().unwrap_or_default().into(),
                bytes: data.to_vec(),
                relocations: relocations.collect(),
            };
            self.0.entry((name.to_owned(), section.index().0)).or_insert(code);
        }
    }

    /// The section `index` of the object `name`; a name that differs only in its folder will do when the exact one is not there.
    pub fn code(&self, name: &str, index: usize) -> Option<&Code> {
        let exact = self.0.get(&(name.to_owned(), index));
        exact.or_else(|| {
            let file = |n: &str| Path::new(n).file_name().map(|f| f.to_owned());
            self.0.iter().find(|((n, i), _)| *i == index && file(n) == file(name)).map(|(_, code)| code)
        })
    }
}

fn target_name<'d>(file: &ElfFile64<'d, object::Endianness>, index: object::SymbolIndex) -> String {
    let Ok(symbol) = file.symbol_by_index(index) else { return "?".into() };
    match symbol.name() {
        Ok(name) if !name.is_empty() => name.into(),
        _ => section_name(file, symbol.section_index()).unwrap_or_else(|| "?".into()),
    }
}

fn section_name<'d>(file: &ElfFile64<'d, object::Endianness>, index: Option<SectionIndex>) -> Option<String> {
    Some(file.section_by_index(index?).ok()?.name().ok()?.to_owned())
}
