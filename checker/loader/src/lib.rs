//! User-mode loader of Cordon: checks images of untrusted native code, gives them windows, calls them.
//!
//! An [`Image`] is loaded once: its text is copied to a random address, checked there by [`cordon_checker::check`], and made
//! executable. A [`Window`] is 4 GiB of address space in which one instance of the handler lives; it is made from an image and the
//! [`Imports`] that the host offers, called by entry name, reset, dropped. Whatever a handler does, its call ends with a value or an
//! [`Error`], and the window can be used again.
//!
//! ```no_run
//! use cordon_loader::{Arg, Error, Image, Imports, LoadOptions, Window};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = Image::from_bytes(&std::fs::read("filter.cordon")?, &LoadOptions::default())?;
//! let imports = Imports::new().function("log", |call, [text, len, ..]| {
//!     match call.read_vec(text, len.min(4096) as usize) {
//!         Ok(bytes) => println!("handler says {}", String::from_utf8_lossy(&bytes)),
//!         Err(error) => call.stop(error),
//!     }
//!     0
//! });
//! let mut window = Window::new(&image, &imports)?;
//! let packet = [0x45, 0, 0, 20];
//! match window.call("filter", &[Arg::Bytes(&packet), Arg::Int(packet.len() as u64)]) {
//!     Ok(verdict) => println!("verdict {verdict}"),
//!     // Where the handler was stopped, and why: source line, instruction, address, backtrace, registers.
//!     Err(Error::Fault(fault)) => eprintln!("{}", fault.report()),
//!     Err(error) => eprintln!("{error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Faults and reports
//!
//! A call that is stopped gives [`Error::Fault`] with a [`Fault`]: raw facts, cheap to make and to drop, so that a host can end calls by the
//! thousand. [`Fault::report`] makes a [`Report`] of it, which has names, source lines (if the objects were compiled with `-g`), the original
//! instruction, the 64-bit address before it was cut to the window, what lies there, and an exact backtrace. It is printed like a compiler's
//! error, and is a serde value with the feature `serde`. Everything in it that comes from the image but the text itself (names, lines,
//! original instructions) is the image's word only.
//!
//! Images in match mode ([`Mode::matched`]) end with [`FaultKind::StrayAccess`] before an access whose 64-bit address is not the handler's; a host
//! that wants no others sets [`Policy::mode`] in [`LoadOptions::policy`]. Built-in gates refuse such pointers in every image.
//!
//! # Memory of the host
//!
//! Arguments are copied ([`Arg::Bytes`]). What is too large for that, or is to be seen by several windows or processes, is a [`Memory`], which
//! [`Window::share`] maps into a window. With [`Memory::exact`] and [`Arg::Exact`] the first byte past the end is not accessible.
//!
//! # Many windows
//!
//! A window takes a mapping of the process for each of its regions, for its tables, and for each gap between them: 10 if the image has no
//! constants, 12 if it has. A process may have `vm.max_map_count` mappings, 65,530 unless the administrator sets another number, so that about
//! 6,500 windows fit; what does not fit is refused with [`Error::Mappings`]. After `sysctl vm.max_map_count=400000` there is room for 30,000. A small
//! handler's window takes 16 KiB of memory, page tables included, and 2 to 3 KiB of the kernel's own. More than 32,000 windows do not fit into
//! the address space of a process.
//!
//! # What the host must know
//!
//! * Faults of handlers are signals ([`SIGNALS`]). The loader installs its action for them on first use and passes on what is not a
//!   handler's; a host that installs its own later must pass on in the same way. The signals must not be blocked while a handler runs.
//!   Every thread that calls a window gets an alternate signal stack of 64 KiB in place of its own, which must not be taken away again: a
//!   handler that overflows its native stack can be stopped only there.
//! * Every call has a time limit ([`LoadOptions::time_limit`], [`Window::set_time_limit`]). A thread that makes calls with a limit gets a timer
//!   which sends it a real-time signal ([`time_signal`]) every 250 µs to 10 ms, about a quarter of the limit, until about 16 ticks after the last
//!   such call. The loader's action for it has `SA_RESTART`; waits that this does not cover (`poll`, `nanosleep`) fail with `EINTR` meanwhile.
//!   The signal must not be blocked while a handler runs. A child made by `fork` has no timers; the loader makes a new one there, for the
//!   running call at once. A child made by the bare system call runs without time limit.
//! * Images that count their instructions can be given a limit of fuel ([`LoadOptions::fuel`], [`Window::set_fuel`]), which ends a call at the
//!   same instruction in every run.
//! * While a handler or an import runs, segment gs has the window's base. Signal handlers of the host see that, unless they are on another
//!   thread.
//! * Signal handlers of the host should be installed with `SA_ONSTACK`. One that is not runs on the native stack of a handler, which may be
//!   nearly full. If it runs off that, it is lent 60 KiB of the guard; if there is no room even for what the kernel saves (some KiB), the signal is
//!   lost and the call ends with [`FaultKind::NativeStackOverflow`].
//! * A thread that has a shadow stack (glibc's `glibc.cpu.x86_shstk`) needs one as large as the data stack of the images that it calls, and a
//!   page more. It is as large as the thread's stack; a handler that calls itself until it is full leaves the kernel no room for a
//!   signal's return address, and the kernel ends the process.
//! * A signal handler on the alternate stack cannot call a window ([`Error::SignalStack`]). Another one can, if it may allocate memory: a call
//!   may want a native stack of its own, and errors are allocated.
//! * Host functions that write to files or pipes for a handler must survive SIGXFSZ and SIGPIPE ([`survive_failing_writes`]).
//! * Sampling profilers that follow rbp see a handler's values there.
//! * Handlers may import `cordon.setjmp` and `cordon.longjmp`, which the loader serves itself. A jump to a function that has returned, or
//!   over a host function that called back, ends the call with [`FaultKind::BadJump`]. (If another function of the same call waits with its
//!   frame at the very same place, it goes on in that one's frame: nothing that the handler's own code could not have done.)
//! * Imports run on the host's stack and must leave by return or panic.
//! * Timing and speculation are out of scope: two handlers on one core can signal to each other.
#![warn(missing_docs)]

mod c_imports;
mod context;
mod cpu;
mod enter;
mod error;
mod fault;
mod fuel;
mod gates;
mod image;
mod imports;
mod jumps;
mod memory;
mod pages;
mod report;
mod show;
mod signal;
mod thread;
mod time;
mod window;

pub use c_imports::{CFunction, CPlainFunction, cordon_call_charge, cordon_call_read, cordon_call_write};
pub use cordon_checker::layout::{Region, RegionKind};
pub use cordon_checker::{Features, Mode, Policy, Protect, Reject, Rule, Summary};
pub use error::Error;
pub use fault::{Fault, FaultAccess, FaultKind, FaultRegisters};
pub use fuel::FuelUse;
pub use gates::NAMES as BUILT_IN_GATES;
pub use image::elf::{DebugSections, Parts, Segment, split};
pub use image::lines::SourceLine;
pub use image::places::Origin;
pub use image::{Entry, Image, ImportName, LoadOptions};
pub use imports::{CallContext, Imports};
pub use jumps::BadJump;
pub use memory::{Memory, Sharing};
pub use report::instruction::instruction_formatter;
pub use report::region::{Area, Nearest, Relation};
pub use report::{CodePlace, Frame, Report, TimeUse};
pub use signal::{SIGNALS, survive_failing_writes};
pub use time::{DEFAULT as DEFAULT_TIME_LIMIT, Overrun, time_signal};
pub use window::{Arg, Window};
