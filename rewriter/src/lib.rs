//! Rewrites ordinary ELF objects into sealed images. `DESIGN.md` lists the phases with their files.
//!
//! The way in is [`rewrite`] with [`Options`]; what comes out is checked already, and the crate `cordon-loader` checks it again and runs it. The
//! modules are public for tests and tools of this workspace.
//!
//! ```
//! use cordon_loader::{Arg, Error, FaultKind, Image, Imports, LoadOptions, Window};
//! use cordon_rewriter::{Options, object::Input, rewrite};
//! use std::process::Command;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (source, object) = (folder.path().join("rows.c"), folder.path().join("rows.o"));
//! std::fs::write(&source, "
//!     extern long price(long id);
//!     long handler(const long *ids, long n) { long sum = 0; while (n-- > 0) sum += price(ids[n]); return sum; }
//! ")?;
//! assert!(Command::new("gcc").args(["-O2", "-c", "-o"]).arg(&object).arg(&source).status()?.success());
//!
//! let input = Input { name: "rows.o".into(), bytes: std::fs::read(&object)? };
//! // What nobody defines is refused, with its place.
//! let refusals = rewrite(&[input.clone()], &Options::default()).expect_err("nobody defines price");
//! assert_eq!((refusals.0[0].code, refusals.0[0].place.symbol.as_deref()), ("undefined-symbol", Some("handler")));
//! let options = Options { imports: vec!["price".into()], ..Options::default() };
//! let rewritten = rewrite(&[input], &options)?;
//!
//! let image = Image::from_bytes(&rewritten.image, &LoadOptions::default())?;
//! let imports = Imports::new().function("price", |_, [id, ..]| 10 * id);
//! let mut window = Window::new(&image, &imports)?;
//! let ids: Vec<u8> = [1_u64, 2, 3].iter().flat_map(|id| id.to_le_bytes()).collect();
//! assert_eq!(window.call("handler", &[Arg::Bytes(&ids), Arg::Int(3)])?, 60);
//! // A wrong pointer ends the call, not the host; the window goes on.
//! let Err(Error::Fault(fault)) = window.call("handler", &[Arg::Int(0), Arg::Int(3)]) else { panic!("null was read") };
//! assert_eq!((fault.kind, fault.function().map(|f| f.0)), (FaultKind::NullZone, Some("handler")));
//! assert_eq!(window.call("handler", &[Arg::Bytes(&ids), Arg::Int(1)])?, 10);
//! # Ok(())
//! # }
//! ```

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
    /// Functions that the host provides; undefined references to other names are refused.
    pub imports: Vec<String>,
    /// Bytes of the heap, rounded up to pages (4 KiB), as are the other areas: `__cordon_heap_start` … `__cordon_heap_end`. With them and what the
    /// objects have, handler memory ends below 2 GiB.
    pub heap: u32,
    /// Bytes of the area where the host places arguments: `__cordon_arg_start` … `__cordon_arg_end`. With 0 it can place none.
    pub argument: u32,
    /// Bytes of the data stack, where everything lies that code addresses through rsp; at least 1, for the kernel at most 64 KiB.
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
    /// Functions that the image holds.
    pub functions: usize,
    /// Instructions of the original code that were kept or changed.
    pub instructions: usize,
    /// Bytes of the original functions and of the padding in and behind them, as linkers take them.
    pub text_in: usize,
    /// Bytes of the new text.
    pub text_out: usize,
    /// Slots of the main table in use.
    pub slots: usize,
    /// Jump tables, each counted once for every copy of the code that jumps through it.
    pub tables: usize,
}

/// How one original instruction was carried over; `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Index into [`emit::Image::objects`].
    pub object: u32,
    /// ELF section index.
    pub section: u32,
    /// Byte offset in that section.
    pub old: u32,
    /// Its bytes.
    pub old_length: u8,
    /// Text offset of what stands for it.
    pub new: u32,
    /// Bytes of what stands for it.
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
    /// What was done.
    pub stats: Stats,
    /// One for each original instruction, and for each copy of it.
    pub explanations: Vec<Explanation>,
}

pub use pipeline::{rewrite, rewrite_watched};
