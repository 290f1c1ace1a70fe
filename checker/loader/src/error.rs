//! What can go wrong between the host and the loader.

use crate::fault::Fault;
use cordon_checker::{LayoutError, Reject, note::NoteError};
use std::io;

/// Why an image was not loaded, a window not made, or a call not completed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not an image: `what` says which rule of the container it breaks.
    #[error("not a Cordon image: {what} (file offset {offset:#x})")]
    Format {
        /// The rule, in words.
        what: &'static str,
        /// Byte offset in the file.
        offset: u64,
    },
    /// The image note is malformed.
    #[error("malformed image note: {0:?}")]
    Note(NoteError),
    /// The image is for a kernel host or for a stack place that this loader does not offer.
    #[error("image does not fit this host: {0}")]
    Host(&'static str),
    /// The layout is not valid under the policy.
    #[error("layout refused: {0}")]
    Layout(LayoutError),
    /// The checker refused the text.
    #[error("text refused: {0}")]
    Rejected(Reject),
    /// The text uses an instruction-set extension that this CPU or kernel does not offer.
    #[error("this CPU lacks {0}")]
    Cpu(&'static str),
    /// A fuel limit for an image that does not count its instructions.
    #[error("the image is not metered, so its calls cannot be given a fuel limit")]
    NotMetered,
    /// The image wants more memory than the options allow.
    #[error("image wants {wanted} bytes of memory per window, {limit} are allowed")]
    MemoryLimit {
        /// Bytes that a window takes.
        wanted: u64,
        /// [`crate::LoadOptions::memory_limit`].
        limit: u64,
    },
    /// The image lists an import that the host does not offer.
    #[error("import `{0}` is not offered")]
    MissingImport(String),
    /// The kernel refused memory.
    #[error("cannot {what}: {error}")]
    Memory {
        /// What was to be done, as in "cannot …".
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The process has as many mappings as the kernel lets it have (`vm.max_map_count`), of which every window takes some: see the
    /// crate's documentation.
    #[error(
        "cannot {what}: the process has {mappings} of the {limit} mappings that it may have; more windows need a greater vm.max_map_count"
    )]
    Mappings {
        /// What was to be done, as in "cannot …".
        what: &'static str,
        /// Mappings of the process.
        mappings: u64,
        /// `vm.max_map_count`.
        limit: u64,
    },
    /// The fast window is taken, or something lies below 4 GiB + 64 KiB.
    #[error("fast window not available: {0}")]
    FastWindow(&'static str),
    /// The image has no entry of this name (or this entry belongs to another image).
    #[error("no entry `{0}`")]
    NoEntry(String),
    /// More than six integer or eight floating-point arguments.
    #[error("too many arguments")]
    TooManyArguments,
    /// Byte arguments do not fit the image's argument area.
    #[error("arguments need {wanted} bytes, the argument area has {available}")]
    ArgumentArea {
        /// Bytes of all arguments, with what aligns them.
        wanted: u64,
        /// Bytes of the area.
        available: u64,
    },
    /// A second exact argument: only one can lie at the end of the argument area; or no unmapped page follows that area.
    #[error("no place for an exact argument: {0}")]
    Exact(&'static str),
    /// A memory that cannot be made or cannot be shared.
    #[error("memory cannot be shared: {0}")]
    SharedMemory(&'static str),
    /// A window range that is not mapped, or not writable by the host.
    #[error("window range {offset:#x}+{len:#x} is not accessible")]
    Range {
        /// Window offset of the first byte; in a [`crate::Memory`], offset there.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A callback value that names no function.
    #[error("code pointer {0:#x} names no function")]
    BadCodePointer(u64),
    /// Too many invocations are nested on this thread.
    #[error("calls are nested too deeply")]
    Nesting,
    /// A window was entered from a signal handler on the alternate signal stack, where a fault's signal would overwrite that handler's frames.
    #[error("a window was entered on the alternate signal stack")]
    SignalStack,
    /// The kernel gave this thread no timer for the time limit, so nothing was called.
    #[error("no timer for the time limit: {0}")]
    Timer(io::Error),
    /// The handler was stopped, by a fault or at its time limit.
    #[error("handler stopped: {0}")]
    Fault(Box<Fault>),
    /// A host import ended the call.
    #[error("import `{import}` ended the call: {message}")]
    Import {
        /// Its name.
        import: String,
        /// What [`crate::CallContext::stop`] was given.
        message: String,
    },
    /// Something that cannot happen did; a bug of the loader.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

impl Error {
    /// The fault, if a fault or the time limit ended the call.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Error::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}
