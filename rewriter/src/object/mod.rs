//! Reads objects and archives and merges them into a [`crate::program::Program`].

use crate::diag::{Diagnostic, Place, Refusals};
use crate::program::Program;

/// A file given to the rewriter: an object or an archive.
#[derive(Clone, Debug)]
pub struct Input {
    /// As diagnostics name it.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// How inputs are merged.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Names that are pulled out of archives even if nothing refers to them.
    pub entries: Vec<String>,
    /// Every archive member takes part, as if it were named on the command line (`ObjectInfo::explicit` is set).
    pub whole_archive: bool,
    /// Imports and built-ins. A definition in the inputs (an archive member too) goes before them; where there is none, a weak
    /// reference to one of them counts as strong (`Definition::Undefined { weak: false }`), because the host provides it.
    pub known_undefined: Vec<String>,
}

/// Reads `inputs` and resolves their references to each other.
///
/// Undefined symbols are not errors here: code that nothing reaches may name them.
///
/// # Errors
/// Every problem found in the inputs, in input order.
pub fn read(inputs: &[Input], options: &MergeOptions) -> Result<Program, Refusals> {
    let _ = options;
    let unread = |i: &Input| Diagnostic::new(Place { object: i.name.clone(), ..Place::default() }, "not-elf", "not an ELF object");
    Err(Refusals(inputs.iter().map(unread).collect()))
}
