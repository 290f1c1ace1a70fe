//! Host functions written in C: the same rules as for closures ([`Imports::function`]), through a C calling convention.
//!
//! ```c
//! typedef struct cordon_call cordon_call;
//! typedef uint64_t cordon_function(cordon_call *call, const uint64_t arguments[6], void *user);
//! typedef uint64_t cordon_plain_function(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
//! bool cordon_call_read(const cordon_call *call, uint64_t offset, void *to, size_t length);
//! bool cordon_call_write(cordon_call *call, uint64_t offset, const void *from, size_t length);
//! bool cordon_call_charge(cordon_call *call, uint64_t units);
//! ```

use crate::imports::{CallContext, Imports};
use std::ffi::c_void;

/// A host function in C: the call, the six integer argument registers (pointers among them are window offsets), and what was given with it.
pub type CFunction = unsafe extern "C" fn(call: *mut CallContext<'_>, arguments: *const u64, user: *mut c_void) -> u64;

/// A host function in C that needs no call: the six integer argument registers. One that takes fewer finds them in the first ones.
pub type CPlainFunction = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64;

/// A user pointer that may be handed to whichever thread makes the call.
struct User(*mut c_void);

// SAFETY: `Imports::c_function` asks its caller to promise that the function may be called from any thread with this pointer.
unsafe impl Send for User {}
// SAFETY: as above, several at once included.
unsafe impl Sync for User {}

impl User {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

impl Imports {
    /// Offers the C function `function` as `name`; `user` is handed to every call.
    ///
    /// # Safety
    /// `function` must keep to the C calling convention and to the rules of [`Imports::function`], must touch window memory only through
    /// [`cordon_call_read`] and [`cordon_call_write`], and may be called with `user` from any thread, several at once, as long as a window
    /// made with these imports exists. It must not unwind.
    #[must_use]
    pub unsafe fn c_function(self, name: &str, function: CFunction, user: *mut c_void) -> Imports {
        let user = User(user);
        self.function(name, move |call, arguments| {
            // SAFETY: promised by the caller of `c_function`; the context and the arguments live until it returns.
            unsafe { function(std::ptr::from_mut(call).cast(), arguments.as_ptr(), user.get()) }
        })
    }
}

impl Imports {
    /// Offers the C function `function` as `name`, to be called by the gate itself; see [`Imports::plain_function`].
    ///
    /// # Safety
    /// `function` must be sound to call with any six integers, from any thread, several at once, as long as a window made with these imports
    /// exists. It must keep to the C calling convention and to the rules of [`Imports::function`], must not unwind, and must not touch
    /// window memory.
    #[must_use]
    pub unsafe fn c_plain_function(self, name: &str, function: CPlainFunction) -> Imports {
        self.plain(name, function)
    }
}

/// Copies `length` bytes of the calling window's memory at `offset` to `to`. False if part of it lies outside the window or is not mapped.
///
/// # Safety
/// `call` is the one that the host function got and is used on its thread before it returns; `to` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_call_read(call: *const CallContext<'_>, offset: u64, to: *mut u8, length: usize) -> bool {
    // SAFETY: promised by the caller; an empty slice needs no valid pointer of theirs.
    let (call, to) = unsafe { (&*call, if length == 0 { &mut [] } else { std::slice::from_raw_parts_mut(to, length) }) };
    call.read(offset, to).is_ok()
}

/// Copies `length` bytes at `from` to the calling window's memory at `offset`. False if part of it lies outside the window, below the
/// handler's data, is read-only or not mapped.
///
/// # Safety
/// `call` is the one that the host function got and is used on its thread before it returns; `from` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_call_write(call: *mut CallContext<'_>, offset: u64, from: *const u8, length: usize) -> bool {
    // SAFETY: promised by the caller; an empty slice needs no valid pointer of theirs.
    let (call, from) = unsafe { (&mut *call, if length == 0 { &[] } else { std::slice::from_raw_parts(from, length) }) };
    call.write(offset, from).is_ok()
}

/// Makes the running call pay `units` of fuel; false if it has less, and then it ends when the host function returns. True, and nothing is
/// paid, if the image is not metered. See [`CallContext::charge`].
///
/// # Safety
/// `call` is the one that the host function got and is used on its thread before it returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cordon_call_charge(call: *mut CallContext<'_>, units: u64) -> bool {
    // SAFETY: promised by the caller.
    unsafe { (*call).charge(units) }
}
