//! What the checker answers.

use crate::policy::Features;

/// Why and where text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Byte offset into the text of the first byte of the offending instruction (or of the bad branch target).
    pub offset: u32,
    pub rule: Rule,
}

/// The violated rule; each variant is one numbered rule of SPEC.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// The bytes are not an instruction of the allow-list, or not in its one canonical encoding.
    NotListed,
}

/// What a loader needs to know of accepted text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Extensions that the text uses; the loader refuses what CPUID lacks.
    pub features: Features,
    /// Greatest static depth in bytes.
    pub max_depth: u32,
    /// Number of instruction starts.
    pub instructions: u32,
}
