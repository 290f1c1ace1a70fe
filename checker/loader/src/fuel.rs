//! Fuel: the deterministic limit of metered images (DESIGN §8), counted by the text itself in r14.
//!
//! One unit is one instruction of the image's text, a fused unit counting as one, charged in advance for a straight piece of code. Built-in
//! gates take one unit for 16 bytes or 4 elements, host functions what [`crate::CallContext::charge`] says. The entry loads r14 with what
//! the call may use; a call ends when the count, unsigned, would go below 0, and then r14 has its top bit set, for limits are below 2^63.

use crate::context::{Context, flag};
use std::sync::atomic::{AtomicU64, Ordering};

/// The greatest limit, in force where no other is.
pub const MOST: u64 = i64::MAX.cast_unsigned();

/// The fuel of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FuelUse {
    /// What the call could use, in instructions; 2^63 - 1 without a limit.
    pub limit: u64,
    /// What it used; all of the limit if it ran out.
    pub used: u64,
}

impl FuelUse {
    /// The use of an entry that was given `limit` and left `left` in r14.
    pub fn new(limit: u64, left: u64) -> FuelUse {
        FuelUse { limit, used: limit - sound(left).min(limit) }
    }
}

/// A count as a number of instructions: one that went below 0 is 0.
pub const fn sound(left: u64) -> u64 {
    if left > MOST { 0 } else { left }
}

/// The fuel limit of a window and what its last call used.
#[derive(Debug)]
pub struct Tank {
    limit: Option<u64>,
    used: AtomicU64,
}

impl Tank {
    /// A tank for calls with this limit.
    pub const fn new(limit: Option<u64>) -> Tank {
        Tank { limit, used: AtomicU64::new(0) }
    }

    pub const fn limit(&self) -> Option<u64> {
        self.limit
    }

    pub const fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// What the last call used.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// What a call may use that is made from within the invocation `outer`, or from none.
    ///
    /// # Safety
    /// `outer` is null or an invocation of this thread that is running.
    #[cold]
    pub unsafe fn allowed(&self, outer: *mut Context) -> u64 {
        let own = self.limit.map_or(MOST, |limit| limit.min(MOST));
        // SAFETY: the caller's promise.
        match unsafe { payer(outer) } {
            Some(cx) => own.min(sound(cx.frame.fuel)),
            None => own,
        }
    }

    /// Notes the end of a call that [`Tank::allowed`] gave `limit` and that left `left`; the invocation around it pays.
    ///
    /// # Safety
    /// As for [`Tank::allowed`].
    #[cold]
    pub unsafe fn settle(&self, outer: *mut Context, limit: u64, left: u64) {
        let used = FuelUse::new(limit, left).used;
        self.used.store(used, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        if let Some(cx) = unsafe { payer(outer) } {
            cx.frame.fuel = sound(cx.frame.fuel).saturating_sub(used);
        }
    }
}

/// The innermost metered invocation from `cx` outwards.
///
/// # Safety
/// As for [`Tank::allowed`].
unsafe fn payer(mut cx: *mut Context) -> Option<&'static mut Context> {
    // SAFETY: the caller's promise: contexts of running invocations stay mapped, and `outer` is 0 or such a context.
    while let Some(context) = unsafe { cx.as_mut() } {
        if context.flags & flag::METERED != 0 {
            return Some(context);
        }
        cx = context.outer as *mut Context;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_below_zero_is_all_used() {
        assert_eq!(FuelUse::new(10, 4), FuelUse { limit: 10, used: 6 });
        assert_eq!(FuelUse::new(10, 3_u64.wrapping_sub(4)), FuelUse { limit: 10, used: 10 });
        assert_eq!(FuelUse::new(MOST, MOST).used, 0);
    }
}
