//! Tests of the loader on hand-written text.

mod attacks;
mod builder;
mod callbacks;
mod calls;
mod checked;
mod faults;
mod fuel;
mod gates;
mod hostile;
mod jumps;
mod leaks;
mod memory;
mod places;
mod plain;
#[path = "../common/random.rs"]
mod random;
mod report;
mod soup;
mod time;

use std::process::{Command, ExitStatus};

/// Set in the process that runs a test's body.
const CHILD: &str = "CORDON_TEST_CHILD";

/// Runs `body` in a process of its own, which runs test `name` only; gives its status, or `None` in that process.
fn child_status(name: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let program = std::env::current_exe().expect("the test program");
    let output = Command::new(program).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().expect("starts the child");
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Some(output.status)
}

/// Gives `signal` an action with the flags `flags`.
///
/// # Safety
/// `handler` may interrupt whatever the process does.
unsafe fn handle(signal: libc::c_int, flags: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the caller's promise; a zeroed action is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// As [`child_status`], for a body that must succeed.
fn in_child(name: &str, body: impl FnOnce()) {
    if let Some(status) = child_status(name, body) {
        assert!(status.success(), "the child failed: {status:?}");
    }
}
