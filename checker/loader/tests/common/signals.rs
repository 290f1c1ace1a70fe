//! What a test that runs code under signals needs first.

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Gives `signals` to `handler` on a stack of its own, which lives for the process; none of them interrupts it.
pub fn install(handler: Handler, signals: &[libc::c_int]) {
    let stack = Vec::leak(vec![0_u8; 1 << 16]);
    // SAFETY: the stack is never freed; the handler is for signals that only the calling test raises.
    unsafe {
        let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        assert_eq!(libc::sigaltstack(&raw const stack, std::ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for &signal in signals {
            libc::sigaddset(&raw mut action.sa_mask, signal);
        }
        for &signal in signals {
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
}

/// What a processor raises for code that it cannot run, traps included.
pub const FAULTS: [libc::c_int; 5] = [libc::SIGILL, libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE];

/// Moves this thread's gs segment, which Rust does not use.
pub fn set_gs(base: u64) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: nothing of this process is addressed through gs but by the code under test.
    assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) }, 0);
}
