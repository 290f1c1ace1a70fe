//! Waiting for whoever wants this process to end.

use std::io;
use std::time::Duration;

/// SIGINT and SIGTERM, held back from the calling thread from the construction on and asked for by [`Interrupts::wait`].
#[derive(Debug)]
pub struct Interrupts(libc::sigset_t);

impl Interrupts {
    /// Holds the signals back from now on, also in threads that this one starts later.
    ///
    /// # Errors
    /// As `pthread_sigmask(3)`.
    pub fn hold() -> io::Result<Interrupts> {
        // SAFETY: a zeroed set is valid, and the calls below write it or read it only.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is ours and the signal numbers exist.
        let failed = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        if failed == 0 { Ok(Interrupts(set)) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    /// Waits for one of the signals, at most `time`; whether one came.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        // SAFETY: set and time are valid; no details of the signal are asked for.
        unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const time) > 0 }
    }
}
