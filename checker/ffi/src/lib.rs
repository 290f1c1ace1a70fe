//! C interface of the checker (`include/cordon_checker.h` documents it). The only unsafe code here turns the caller's pointers into slices.
#![no_std]

use cordon_checker::note::{FLAG_MATCH, FLAG_METERED, FLAG_STORES, Note, mode_of};
use cordon_checker::policy::Host;
use cordon_checker::{Features, Policy, Rule, check, is_start, scratch_len};

unsafe extern "C" {
    /// Defined nowhere: a reachable panic fails the link.
    fn cordon_checker_panic_is_reachable() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no arguments, and no linked program can contain this call.
    unsafe { cordon_checker_panic_is_reachable() }
}

#[repr(C)]
pub struct CPolicy {
    host: u32,
    max_depth: u32,
    features: u64,
    mode: u64,
}

#[repr(C)]
#[derive(Default)]
pub struct CReport {
    offset: u32,
    rule: u32,
    features: u64,
    max_depth: u32,
    instructions: u32,
}

const ACCEPTED: i32 = 0;
const REJECTED: i32 = 1;
const BAD_NOTE: i32 = 2;
const BAD_LAYOUT: i32 = 3;
const BAD_ARGUMENT: i32 = 4;

impl CPolicy {
    fn to_policy(&self) -> Option<Policy> {
        let host = match self.host {
            0 => Host::User,
            1 => Host::Kernel,
            _ => return None,
        };
        let flags = u32::try_from(self.mode).ok()?;
        if flags & !(FLAG_MATCH | FLAG_METERED | FLAG_STORES) != 0 {
            return None;
        }
        Some(Policy { host, features: Features(self.features), max_depth: self.max_depth, mode: mode_of(flags) })
    }
}

/// The slice of `len` items at `start`; `None` for a null pointer.
///
/// # Safety
/// As for [`core::slice::from_raw_parts`] if `start` is not null.
unsafe fn slice<'a, T>(start: *const T, len: usize) -> Option<&'a [T]> {
    // SAFETY: not null, and the caller vouches for the rest.
    if start.is_null() { None } else { Some(unsafe { core::slice::from_raw_parts(start, len) }) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cordon_default_policy(host: u32) -> CPolicy {
    let policy = if host == 1 { Policy::KERNEL } else { Policy::USER };
    CPolicy { host, max_depth: policy.max_depth, features: policy.features.0, mode: 0 }
}

#[unsafe(no_mangle)]
pub extern "C" fn cordon_scratch_words(text_len: usize) -> usize {
    scratch_len(text_len)
}

/// # Safety
/// The pointers must be null or valid for the stated lengths, and `scratch` and `report` not shared with anything else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_check(
    text: *const u8,
    text_len: usize,
    note: *const u8,
    note_len: usize,
    policy: *const CPolicy,
    scratch: *mut u64,
    scratch_words: usize,
    report: *mut CReport,
) -> i32 {
    if scratch.is_null() {
        return BAD_ARGUMENT;
    }
    // SAFETY: the caller's promise; null was refused above or gives `None`.
    let parts = unsafe { (slice(text, text_len), slice(note, note_len), policy.as_ref(), report.as_mut()) };
    let (Some(text), Some(note), Some(policy), Some(report)) = parts else { return BAD_ARGUMENT };
    // SAFETY: as above.
    let scratch = unsafe { core::slice::from_raw_parts_mut(scratch, scratch_words) };
    *report = CReport::default();
    let Some(policy) = policy.to_policy() else { return BAD_ARGUMENT };
    let Ok(note) = Note::parse(note) else { return BAD_NOTE };
    if note.validate(&policy).is_err() {
        return BAD_LAYOUT;
    }
    match check(text, &policy, &note.layout, scratch) {
        Ok(summary) => {
            report.features = summary.features.0;
            report.max_depth = summary.max_depth;
            report.instructions = summary.instructions;
            ACCEPTED
        }
        Err(reject) => {
            report.offset = reject.offset;
            report.rule = u32::from(reject.rule.number());
            REJECTED
        }
    }
}

/// # Safety
/// `scratch` must be null or valid for `text_len` words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_next_start(scratch: *const u64, text_len: usize, from: usize) -> usize {
    // SAFETY: the caller's promise.
    let words = unsafe { slice(scratch, text_len) }.unwrap_or_default();
    let rest = words.get(from..).unwrap_or_default();
    rest.iter().position(|&word| is_start(word)).map_or(text_len, |more| from.wrapping_add(more))
}

/// # Safety
/// `buffer` must be null or valid for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_rule_text(rule: u32, buffer: *mut u8, size: usize) -> usize {
    let Some(rule) = Rule::ALL.iter().find(|known| u32::from(known.number()) == rule) else { return 0 };
    let text = rule.text().as_bytes();
    if !buffer.is_null() && size > 0 {
        // SAFETY: not null, and the caller vouches for `size` bytes.
        let buffer = unsafe { core::slice::from_raw_parts_mut(buffer, size) };
        buffer.fill(0);
        let room = size.saturating_sub(1);
        for (to, from) in buffer.iter_mut().take(room).zip(text) {
            *to = *from;
        }
    }
    text.len()
}

/// Panics for `at` above 1: what the link must refuse.
#[cfg(feature = "control")]
#[unsafe(no_mangle)]
pub extern "C" fn cordon_panic_control(at: usize) -> u8 {
    [1, 2][at]
}
