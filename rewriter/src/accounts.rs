//! How much of an archive can be rewritten: everything but the functions to refuse, and the refusals.

use crate::diag::{Diagnostic, Refusals};
use crate::object::Input;
use crate::{Options, Rewritten, rewrite};
use object::read::archive::ArchiveFile;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSymbol as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An archive, accounted for.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The members that were rewritten, in order, without what was refused.
    pub members: Vec<Input>,
    /// Names that nobody defined.
    pub imports: Vec<String>,
    /// What became of them.
    pub made: Rewritten,
    /// What could not be: one for each place.
    pub refused: BTreeSet<Diagnostic>,
}

/// The members of an archive, each as the one member of an archive. Of several with one name, the later ones get a number behind it.
///
/// # Errors
/// If it is no archive or a member lies outside of it.
pub fn members(archive: &[u8]) -> object::read::Result<Vec<Input>> {
    let file = ArchiveFile::parse(archive)?;
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    let member = |member: object::read::Result<object::read::archive::ArchiveMember>| {
        let member = member?;
        let count = seen.entry(member.name().to_vec()).or_insert(0);
        *count += 1;
        let name = String::from_utf8_lossy(member.name());
        let name = if *count == 1 { name.into_owned() } else { format!("{name}#{count}") };
        Ok(Input { name, bytes: archive_of(member.name(), member.data(archive)?) })
    };
    file.members().map(member).collect()
}

/// An archive with one member, its name in the BSD form, which has room for long ones.
fn archive_of(name: &[u8], data: &[u8]) -> Vec<u8> {
    let (label, size) = (format!("#1/{}", name.len()), name.len() + data.len());
    let header = format!("{label:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 644);
    [b"!<arch>\n", header.as_bytes(), name, data].concat()
}

impl Accounts {
    /// Member and name of each function that was refused.
    #[must_use]
    pub fn functions_refused(&self) -> BTreeSet<(&str, &str)> {
        self.refused.iter().map(|d| (member_of(d), d.place.symbol.as_deref().unwrap_or("?"))).collect()
    }
}

/// The member of [`members`] that a problem is about.
#[must_use]
pub fn member_of(problem: &Diagnostic) -> &str {
    // `name#2(name)`.
    problem.place.object.rsplit_once('(').map_or(&problem.place.object, |(member, _)| member)
}

/// Rewrites `members` without the functions to refuse: they are undefined, as if their member had none of that name, or, where other code of
/// the member goes there anyway, the member is left out. Names that nobody defines become imports.
///
/// # Errors
/// Refusals that name no member: there is nothing to leave out.
pub fn settle(mut members: Vec<Input>, options: &Options) -> Result<Accounts, Refusals> {
    let mut options = Options { whole_archive: true, ..options.clone() };
    let mut refused: BTreeMap<(String, Option<String>, Option<u64>), Diagnostic> = BTreeMap::new();
    loop {
        let refusals = match rewrite(&members, &options) {
            Ok(made) => {
                let refused = refused.into_values().collect();
                return Ok(Accounts { members, imports: options.imports, made, refused });
            }
            Err(refusals) => refusals,
        };
        let known = (options.imports.len(), refused.len(), members.len());
        let (mut functions, mut whole) = (BTreeSet::new(), BTreeSet::new());
        for problem in &refusals.0 {
            let member = member_of(problem).to_owned();
            let place = (problem.place.object.clone(), problem.place.section.clone(), problem.place.offset);
            match &problem.place.symbol {
                _ if problem.code == "undefined-symbol" => {
                    options.imports.extend(problem.message.split('`').nth(1).map(str::to_owned));
                }
                // Undefined once already, and still reached.
                _ if refused.contains_key(&place) => _ = whole.insert(member),
                Some(name) => {
                    functions.insert((member, name.clone()));
                    refused.insert(place, problem.clone());
                }
                None => {
                    whole.insert(member);
                    refused.insert(place, problem.clone());
                }
            }
        }
        options.imports.sort();
        options.imports.dedup();
        for (member, function) in functions {
            let found = members.iter_mut().find(|m| m.name == member);
            if found.is_some_and(|found| undefine(found, &function).is_none()) {
                whole.insert(member);
            }
        }
        members.retain(|member| !whole.contains(&member.name));
        if known == (options.imports.len(), refused.len(), members.len()) {
            return Err(refusals);
        }
    }
}

/// Makes undefined symbols of the global function `name` of a member and of its other names. `None` if it has no such function.
fn undefine(member: &mut Input, name: &str) -> Option<()> {
    /// Bytes of an `Elf64_Sym`, and where in it the section, the value and the size begin.
    const SYMBOL: usize = 24;
    const SECTION: usize = 6;
    let archive = ArchiveFile::parse(&*member.bytes).ok()?;
    let (start, _) = archive.members().next()?.ok()?.file_range();
    let start = usize::try_from(start).ok()?;
    let file = ElfFile64::<LittleEndian>::parse(&member.bytes[start..]).ok()?;
    let table = file.elf_section_table().section(file.elf_symbol_table().section()).ok()?.sh_offset.get(LittleEndian);
    let own = file.symbols().find(|s| s.name() == Ok(name) && s.is_global() && s.section_index().is_some())?;
    let (section, address) = (own.section_index(), own.address());
    let same = file.symbols().filter(|s| s.is_global() && s.section_index() == section && s.address() == address);
    let first = start + usize::try_from(table).ok()?;
    let entries: Vec<usize> = same.map(|s| first + s.index().0 * SYMBOL).collect();
    for entry in entries {
        member.bytes.get_mut(entry + SECTION..entry + SYMBOL)?.fill(0);
    }
    Some(())
}
