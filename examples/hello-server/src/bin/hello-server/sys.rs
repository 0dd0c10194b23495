//! The one thing that the standard library cannot do: handle a signal.
#![expect(unsafe_code, reason = "signal(2) and _exit(2) have no safe form")]

use std::ffi::c_int;

const SIGTERM: c_int = 15;

unsafe extern "C" {
    fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn _exit(status: c_int) -> !;
}

/// Ends the process with status 0 when SIGTERM comes.
pub fn end_on_sigterm() {
    extern "C" fn end(_: c_int) {
        // SAFETY: _exit(2) may be called in a signal handler (signal-safety(7)) and does not return.
        unsafe { _exit(0) }
    }
    // SAFETY: `end` has the signature of a handler and touches no data, whatever it interrupts.
    unsafe { signal(SIGTERM, end) };
}
