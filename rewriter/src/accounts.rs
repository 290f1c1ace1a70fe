//! How much of an archive can be rewritten: all members but those that hold something to refuse, and the refusals.

use crate::diag::{Diagnostic, Refusals};
use crate::object::Input;
use crate::{Options, Rewritten, rewrite};
use object::read::archive::ArchiveFile;
use std::collections::{BTreeSet, HashMap};

/// An archive, accounted for.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The members that were rewritten, in order.
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

/// The member of [`members`] that a problem is about.
#[must_use]
pub fn member_of(problem: &Diagnostic) -> &str {
    // `name#2(name)`.
    problem.place.object.rsplit_once('(').map_or(&problem.place.object, |(member, _)| member)
}

/// Rewrites `members` without those that hold a function to refuse. Names that nobody defines become imports.
///
/// # Errors
/// Refusals that name no member: there is nothing to leave out.
pub fn settle(mut members: Vec<Input>, options: &Options) -> Result<Accounts, Refusals> {
    let mut options = Options { whole_archive: true, ..options.clone() };
    let mut refused = BTreeSet::new();
    loop {
        let refusals = match rewrite(&members, &options) {
            Ok(made) => return Ok(Accounts { members, imports: options.imports, made, refused }),
            Err(refusals) => refusals,
        };
        let (undefined, other): (Vec<_>, Vec<_>) = refusals.0.iter().cloned().partition(|d| d.code == "undefined-symbol");
        let names: BTreeSet<String> = undefined.iter().filter_map(|d| d.message.split('`').nth(1).map(str::to_owned)).collect();
        let known = options.imports.len();
        options.imports.extend(names);
        options.imports.sort();
        options.imports.dedup();
        let before = members.len();
        members.retain(|member| !other.iter().any(|d| member_of(d) == member.name));
        if members.len() == before && options.imports.len() == known {
            return Err(refusals);
        }
        refused.extend(other);
    }
}
