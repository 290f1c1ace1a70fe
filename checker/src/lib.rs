//! Cordon's checker: decides whether a sealed image's text may run inside its window.
//!
//! `no_std`, no allocation, no unsafe code, no dependency, no recursion. See `SPEC.md` for the property and the numbered rules,
//! `AUDIT.md` for how to read this crate in one sitting.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "writer"))]
extern crate alloc;

pub mod layout;
pub mod note;
pub mod policy;
mod verdict;

pub use layout::Layout;
pub use policy::{Features, Policy};
pub use verdict::{Reject, Rule, Summary};
