//! Archives: their members, and which member defines what.

use super::parse::{At, Bind, ObjectFile};
use super::{Input, Report};
use crate::diag::{Diagnostic, Place};
use object::read::archive::{ArchiveFile, ArchiveKind};
use std::collections::HashMap;

const MAGIC: &[u8] = b"!<arch>\n";
const THIN_MAGIC: &[u8] = b"!<thin>\n";
const AIX_MAGIC: &[u8] = b"<bigaf>\n";

/// An archive whose members have been read as far as resolution needs them.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    /// In archive order; `None` once pulled.
    pub members: Vec<Option<ObjectFile<'a>>>,
    /// Global symbols by name.
    pub definitions: HashMap<&'a str, Definers>,
}

/// The first members that define a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Definers {
    /// In any way, COMMON too.
    pub any: usize,
    /// Other than as a COMMON symbol.
    pub proper: Option<usize>,
}

/// Whether `data` looks like an archive of any kind.
pub(super) fn is_archive(data: &[u8]) -> bool {
    [MAGIC, THIN_MAGIC, AIX_MAGIC].iter().any(|magic| data.starts_with(magic))
}

/// Reads the members of `input`. Those that are no objects are passed over as `ld` does, but refused if all are to take part.
pub(super) fn open<'a>(input: &'a Input, whole: bool, report: &mut Report) -> Option<Archive<'a>> {
    let place = |name: &str| Place { object: name.to_owned(), ..Place::default() };
    let data = input.bytes.as_slice();
    let file = match ArchiveFile::parse(data) {
        Ok(file) if !file.is_thin() && !matches!(file.kind(), ArchiveKind::AixBig | ArchiveKind::Zos) => file,
        Ok(file) => {
            let kind = if file.is_thin() { "thin archive; give its members, or make an ordinary one" } else { "foreign archive" };
            report.push(Diagnostic::new(place(&input.name), "unsupported-archive", format!("the file is a {kind}")));
            return None;
        }
        Err(e) => {
            report.push(Diagnostic::new(place(&input.name), "malformed-archive", e.to_string()));
            return None;
        }
    };
    let mut archive = Archive { members: Vec::new(), definitions: HashMap::new() };
    for member in file.members() {
        let read = member.and_then(|m| Ok((m.name(), m.data(data)?)));
        let (name, bytes) = match read {
            Ok(read) => read,
            Err(e) => {
                report.push(Diagnostic::new(place(&input.name), "malformed-archive", e.to_string()));
                break;
            }
        };
        let name = format!("{}({})", input.name, String::from_utf8_lossy(name));
        if is_archive(bytes) {
            report.push(Diagnostic::new(place(&name), "unsupported-archive", "an archive within an archive"));
        } else if looks_like_object(bytes) || (whole && !name.ends_with(".rmeta)")) {
            match ObjectFile::parse(&name, bytes, whole) {
                Ok(object) => archive.add(object),
                Err(diagnostic) => report.push(*diagnostic),
            }
        }
    }
    Some(archive)
}

/// ELF, or bitcode (which is refused with a reason of its own).
fn looks_like_object(bytes: &[u8]) -> bool {
    bytes.starts_with(&object::elf::ELFMAG) || bytes.starts_with(b"BC\xc0\xde") || bytes.starts_with(b"\xde\xc0\x17\x0b")
}

impl<'a> Archive<'a> {
    fn add(&mut self, object: ObjectFile<'a>) {
        let number = self.members.len();
        let defined = object.symbols.iter().filter(|s| s.bind != Bind::Local && s.at != At::Undefined);
        for symbol in defined.filter(|s| !gives_way(s.name)) {
            let proper = (symbol.at != At::Common).then_some(number);
            let definers = self.definitions.entry(symbol.name).or_insert(Definers { any: number, proper });
            definers.proper = definers.proper.or(proper);
        }
        self.members.push(Some(object));
    }
}

/// Whether a function of this name is not taken out of archives: setjmp and longjmp give way to the loader's, and the resolver of thread-local
/// addresses has nothing to resolve.
#[must_use]
pub fn gives_way(name: &str) -> bool {
    crate::jumps::import(name).is_some() || name == crate::select::TLS_RESOLVER
}
