//! The one forward pass over the text.

use crate::layout::Layout;
use crate::policy::Policy;
use crate::verdict::{Reject, Rule, Summary};

/// Longest text, bytes (1 GiB: every direct branch reaches every byte).
pub const TEXT_LIMIT: usize = 1 << 30;

/// Scratch words that [`check`] needs for `text_len` bytes of text.
#[must_use]
pub const fn scratch_len(text_len: usize) -> usize {
    text_len
}

/// Decides whether `text` may run under `policy` with `layout` (SPEC.md states what that proves).
///
/// `scratch` needs [`scratch_len`] words; their content does not matter before. After acceptance they tell instruction starts and
/// states ([`crate::is_start`], [`crate::state_at`], [`crate::starts`]). The layout is validated first.
///
/// # Errors
/// The first violation in text order that the pass meets, with the rule it violates.
pub fn check(text: &[u8], policy: &Policy, layout: &Layout<'_>, scratch: &mut [u64]) -> Result<Summary, Reject> {
    if text.is_empty() || text.len() > TEXT_LIMIT {
        return Err(Reject::at(0, Rule::TextLength));
    }
    if layout.validate(policy).is_err() {
        return Err(Reject::at(0, Rule::Layout));
    }
    scratch.get_mut(..scratch_len(text.len())).ok_or(Reject::at(0, Rule::ScratchLength))?.fill(0);
    Err(Reject::at(0, Rule::NotListed))
}
