//! Cordon's checker: decides whether a sealed image's text may run inside its window.
//!
//! `no_std`, no allocation, no unsafe code, no dependency, no recursion. See `SPEC.md` for the property and the numbered rules,
//! `AUDIT.md` for how to read this crate in one sitting.
//!
//! An image may claim [`Mode`]s: that each address is what its registers say (match), that each instruction is paid for (metered), or that
//! only stores are confined. The checker holds it to what it claims; [`Policy::mode`] is what a host asks for at least. [`Facts`] and [`track`]
//! are the rules of match mode for one instruction, for whoever inserts its checks.
//!
//! ```
//! use cordon_checker::{Policy, Reject, Rule, Summary, check, note::Note, scratch_len};
//!
//! fn judge(text: &[u8], note: &[u8]) -> Result<Summary, Reject> {
//!     let note = Note::parse(note).expect("a note");
//!     note.validate(&Policy::USER).expect("for this host");
//!     let mut scratch = vec![0; scratch_len(text.len())];
//!     check(text, &Policy::USER, &note.layout, &mut scratch)
//! }
//! # let note = cordon_checker::sample::user().to_bytes();
//! // push %rbx; pop %rbx; ret
//! assert_eq!(judge(&[0x53, 0x5b, 0xc3], &note).map(|s| s.max_depth), Ok(8));
//! // pop %rbx would read the return address.
//! assert_eq!(judge(&[0x5b, 0xc3], &note), Err(Reject { offset: 0, rule: Rule::PopUnwritten }));
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used
)]

#[cfg(any(test, feature = "writer"))]
extern crate alloc;

mod decode;
mod describe;
mod facts;
pub mod layout;
mod modes;
pub mod note;
pub mod policy;
#[cfg(feature = "writer")]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "for tests; not part of the checker"
)]
pub mod sample;
mod state;
mod table;
mod tables;
mod validate;
mod verdict;
mod walk;

pub use describe::{Description, Flow, MemoryOperand, Tracked, describe, describe_in, track};
pub use facts::Facts;
pub use layout::Layout;
pub use policy::{Features, Mode, Policy, Protect};
pub use state::{State, is_start, starts, state_at};
pub use validate::{LayoutError, MAIN_BITS_LIMIT, PAGE, REGION_LIMIT, TABLE_LIMIT};
pub use verdict::{Reject, Rule, Summary};
pub use walk::{TEXT_LIMIT, check, scratch_len};
