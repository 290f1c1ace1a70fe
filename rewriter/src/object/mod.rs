//! Reads objects and archives and merges them into a [`crate::program::Program`].
//!
//! Phases: `archive` (members of an archive) and `parse` (headers, symbols and groups of one object) read what resolution needs;
//! `resolve` decides which objects take part and who defines what, as `ld` does; `contents` reads the sections of those that
//! do, `merge` numbers everything. `classify` and `fields` are their tables.
//!
//! Differences from `ld`, all on purpose: archives behave as between `--start-group` and `--end-group`; mergeable sections are not
//! merged; `.dtors` and `.fini` are dropped (and `.fini_array` is used by whole programs only), because a handler never exits; unwind tables, notes and comments are dropped;
//! hidden symbols are global within the image; setjmp, longjmp and `__tls_get_addr` are not taken out of archives (`archive::gives_way`); `__cordon_*` and `cordon.*`
//! are reserved; malformed input that `ld` lets pass (overlapping sections or relocations, say) is refused.

mod archive;
mod classify;
mod contents;
mod fields;
mod merge;
mod parse;
mod resolve;

use crate::diag::{Diagnostic, Place, Refusals};
use crate::program::Program;

/// A file given to the rewriter: an object or an archive.
#[derive(Clone, Debug)]
pub struct Input {
    /// As diagnostics and the image name it; a path, if tools are to find the original again.
    pub name: String,
    /// The whole file.
    pub bytes: Vec<u8>,
}

/// How inputs are merged.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Names that are pulled out of archives even if nothing refers to them. One that nobody defines is not an error here.
    pub entries: Vec<String>,
    /// Every archive member takes part, as if it were named on the command line (`ObjectInfo::explicit` is set).
    pub whole_archive: bool,
    /// Imports and built-ins. A definition in the inputs (an archive member too) goes before them; where there is none, a weak
    /// reference to one of them counts as strong (`Definition::Undefined { weak: false }`), because the host provides it.
    pub known_undefined: Vec<String>,
}

/// Why code cannot have a relocation of type `kind`, with the cure; `None` for any other type.
#[must_use]
pub fn refused_in_code(kind: u32) -> Option<String> {
    fields::refused_in_code(kind)
}

/// Reads `inputs` and resolves their references to each other.
///
/// The objects of the program are in the order in which they came to take part: inputs in order, then archive members as they
/// were pulled. Sections follow their objects, except that all of kind `InitArray` come last, in run order, and
/// those of kind `FiniArray` behind them.
///
/// Undefined symbols are not errors here: code that nothing reaches may name them.
///
/// # Errors
/// The problems of the inputs, in input order; at most a few hundred.
pub fn read(inputs: &[Input], options: &MergeOptions) -> Result<Program, Refusals> {
    let mut report = Report::default();
    let sources: Vec<Source> = inputs.iter().filter_map(|input| source(input, options, &mut report)).collect();
    report.done()?;
    let link = resolve::resolve(sources, options, &mut report);
    report.done()?;
    let program = merge::merge(&link, options, &mut report);
    report.done()?;
    Ok(program)
}

/// An input that could be read.
enum Source<'a> {
    Object(Box<parse::ObjectFile<'a>>),
    Archive(archive::Archive<'a>),
}

fn source<'a>(input: &'a Input, options: &MergeOptions, report: &mut Report) -> Option<Source<'a>> {
    if archive::is_archive(&input.bytes) {
        return archive::open(input, options.whole_archive, report).map(Source::Archive);
    }
    match parse::ObjectFile::parse(&input.name, &input.bytes, true) {
        Ok(object) => Some(Source::Object(Box::new(object))),
        Err(diagnostic) => {
            report.push(*diagnostic);
            None
        }
    }
}

/// The problems found so far; stops growing at [`Report::MOST`], so that hostile input cannot exhaust memory with them.
#[derive(Debug, Default)]
struct Report {
    list: Vec<Diagnostic>,
    left_out: bool,
}

impl Report {
    const MOST: usize = 200;

    fn push(&mut self, diagnostic: Diagnostic) {
        if self.list.len() < Self::MOST {
            self.list.push(diagnostic);
        } else {
            self.left_out = true;
        }
    }

    fn done(&mut self) -> Result<(), Refusals> {
        let mut list = std::mem::take(&mut self.list);
        if list.is_empty() {
            return Ok(());
        }
        if self.left_out {
            list.push(Diagnostic::new(Place::default(), "more-problems", "further problems are not shown"));
        }
        Err(Refusals(list))
    }
}
