//! Rewrites ordinary ELF objects into sealed images. `DESIGN.md` lists the phases with their files.

pub mod diag;
pub mod emit;
pub mod object;
pub mod program;
