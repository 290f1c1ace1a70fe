//! Cordon's checker: decides whether a sealed image's text may run inside its window.
//!
//! `no_std`, no allocation, no unsafe code, no dependency, no recursion. See `SPEC.md` for the property and the numbered rules,
//! `AUDIT.md` for how to read this crate in one sitting.
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
pub mod layout;
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

pub use describe::{Description, Flow, MemoryOperand, describe};
pub use layout::Layout;
pub use policy::{Features, Policy};
pub use state::{State, is_start, starts, state_at};
pub use validate::{LayoutError, MAIN_BITS_LIMIT, PAGE};
pub use verdict::{Reject, Rule, Summary};
pub use walk::{TEXT_LIMIT, check, scratch_len};
