//! The Rust half of the kernel module: image reader, checker, tables and fault reports behind a C interface.
//!
//! A reachable panic leaves an undefined symbol, which fails the module's link. `../tests/tests/interface.rs` includes the two modules, to test
//! them on the host.
#![no_std]

mod explain;
mod interface;

unsafe extern "C" {
    /// Defined nowhere: a reachable panic fails the link.
    fn cordon_kmod_panic_is_reachable() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no arguments, and no linked module can contain this call.
    unsafe { cordon_kmod_panic_is_reachable() }
}
