//! Rewrites ordinary ELF objects into sealed images. `DESIGN.md` lists the phases with their files.

use cordon_checker::Mode;

pub mod accounts;
pub mod body;
pub mod copies;
pub mod count;
pub mod diag;
pub mod dispatch;
pub mod dwarf;
pub mod dynamic;
pub mod elf;
pub mod emit;
pub mod fixup;
pub mod functions;
pub mod instrument;
pub mod jumps;
pub mod kernel;
pub mod layout;
pub mod liveness;
pub mod object;
pub mod operand;
pub mod own;
pub mod pipeline;
pub mod plan;
pub mod program;
pub mod progress;
pub mod select;
pub mod space;
pub mod syscall;
pub mod tables;
pub mod thunks;
pub mod transfer;
pub mod values;

/// What the rewriter is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Functions that the host may call; empty = every global function of the objects named as such.
    pub entries: Vec<String>,
    /// Names that the host provides; undefined references to other names are refused.
    pub imports: Vec<String>,
    /// Heap, argument area and data stack in bytes (rounded up to pages).
    pub heap: u32,
    pub argument: u32,
    pub stack: u32,
    /// Keep the two stacks apart by a displacement, at 3 bytes of text for most accesses to the stack: only the window at base 0 wants
    /// that, for the sake of Zen's way predictor (DESIGN §4); others are apart by their base.
    pub fast_window: bool,
    /// Take part with every archive member, not only those that are referred to.
    pub whole_archive: bool,
    /// What the image proves beyond the sandbox: checked accesses, metering, unprotected loads.
    pub mode: Mode,
    /// For the kernel module: windows behind fs, general-purpose instructions only ([`kernel`]).
    pub kernel: bool,
    /// How addresses are forced into the window.
    pub masking: Masking,
    /// Turn `syscall` instructions into calls of the import [`syscall::IMPORT`]; refused otherwise.
    pub syscalls: bool,
}

/// What keeps the 32 low bits of an address and no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masking {
    /// The address-size prefix of the access itself.
    #[default]
    Prefix,
    /// An instruction of its own in front of the access, as in classic schemes of software fault isolation ([`instrument::mask`]).
    Explicit,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            entries: Vec::new(),
            imports: Vec::new(),
            heap: 256 << 20,
            argument: 64 << 20,
            stack: 8 << 20,
            fast_window: false,
            whole_archive: false,
            mode: Mode::default(),
            kernel: false,
            masking: Masking::default(),
            syscalls: false,
        }
    }
}

impl Options {
    /// The same for the kernel module, which gives every byte of an area its own page of memory.
    #[must_use]
    pub fn for_kernel() -> Options {
        Options { kernel: true, heap: 1 << 20, argument: 1 << 20, stack: kernel::STACK, ..Options::default() }
    }
}

/// Sizes of what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub functions: usize,
    /// Instructions of the original code that were kept or changed.
    pub instructions: usize,
    /// Bytes of the original functions and of the padding in and behind them, as linkers take them.
    pub text_in: usize,
    /// Bytes of the new text.
    pub text_out: usize,
    /// Main-table slots in use and jump tables.
    pub slots: usize,
    pub tables: usize,
}

/// How one original instruction was carried over; `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Index into [`emit::Image::objects`].
    pub object: u32,
    /// ELF section index and byte offset there.
    pub section: u32,
    pub old: u32,
    pub old_length: u8,
    /// Text offset and length of what stands for it.
    pub new: u32,
    pub new_length: u32,
    /// Static stack depth in bytes before it.
    pub depth: u32,
    /// What was changed and why; empty = only re-encoded or unchanged.
    pub change: &'static str,
}

/// An accepted image: the checker has already said yes to it.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The image file.
    pub image: Vec<u8>,
    /// The same before it was written as ELF.
    pub parts: emit::Image,
    pub stats: Stats,
    pub explanations: Vec<Explanation>,
}

pub use pipeline::{rewrite, rewrite_watched};
