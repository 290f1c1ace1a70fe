//! Debug information of the image: the objects' line tables, moved along the old→new map, and call frames.
//!
//! `read` collects, for each input section, which file and line its offsets came from; `write` makes one compilation unit of it, with a
//! line program over the new text and a subprogram for each function. `frames` tells debuggers how to find the caller. Types, variables and inlined calls are not carried over.

mod files;
mod frames;
mod read;
mod write;

use crate::emit::{DebugSections, ImageSymbol, MapEntry};
use crate::program::{Program, SectionId};
use files::Files;
use foldhash::HashMap;
pub use frames::frames;

/// DWARF sections that give addresses of the image the functions, files and lines of the objects.
///
/// `map` is ascending by `new`, its `object` an index into `program.objects`; `functions` have text offsets. Debug information that makes
/// no sense is left out with a warning. Without any line the sections are empty.
#[must_use]
pub fn lines(program: &Program, map: &[MapEntry], functions: &[ImageSymbol]) -> DebugSections {
    let mut files = Files::default();
    let mut warnings = Vec::new();
    let lines = read::lines(program, &mut files, &mut warnings);
    let sections = (0_u32..).zip(&program.sections).filter(|(_, s)| s.index != 0);
    let ids: HashMap<(usize, usize), SectionId> =
        sections.map(|(id, s)| ((s.object.0 as usize, s.index), SectionId(id))).collect();
    let located = map.iter().map(|entry| {
        let id = ids.get(&(entry.object as usize, entry.section as usize));
        (entry.new, id.and_then(|id| lines.find(*id, entry.old)))
    });
    match write::unit(located, functions, &files) {
        Ok(sections) => DebugSections { warnings, ..sections },
        Err(e) => {
            warnings.push(format!("line tables are left out: {e}"));
            DebugSections { warnings, ..DebugSections::default() }
        }
    }
}

/// A row of a line table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    /// Offset in the input section where it begins; it ends where the next one begins.
    start: u32,
    /// `None` from the end of a sequence on.
    position: Option<Position>,
    statement: bool,
    prologue_end: bool,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    file: files::FileId,
    /// Lines and columns count from 1; 0 is unknown.
    line: u32,
    column: u32,
}

/// The rows of each input section, ascending.
#[derive(Debug, Default)]
struct Lines(HashMap<SectionId, Vec<Row>>);

impl Lines {
    /// The row that covers `offset` of `section`.
    fn find(&self, section: SectionId, offset: u32) -> Option<Row> {
        let rows = self.0.get(&section)?;
        let behind = rows.partition_point(|row| row.start <= offset);
        rows.get(behind.checked_sub(1)?).copied().filter(|row| row.position.is_some())
    }
}
