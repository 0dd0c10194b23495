//! Where the program begins. Not in the standard library's own entry: that one looks up the stack's bounds in
//! `/proc/self/maps` and sets up a handler for stack overflows, eighteen system calls that each container would pay for
//! twice. The kernel's guard below the stack ends a program that runs over it anyway.
#![allow(
    unsafe_code,
    reason = "the entry that C's start-up code calls, and what the standard library does there first"
)]

use std::ffi::{c_char, c_int};
use std::io;

/// Called by C's start-up code. The arguments are taken from `std::env`, which has them from the loader.
// SAFETY: no other function of this program has this name, which is the one that C's start-up code looks for.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    let code = match prepare() {
        // A panic may not leave a function of C's. Where panics abort this costs nothing; the code is the usual one.
        Ok(inherited) => std::panic::catch_unwind(|| super::main(inherited)).unwrap_or(101),
        Err(_) => 1,
    };
    // This one writes what standard output still holds back.
    std::process::exit(c_int::from(code))
}

/// Has the kernel give at once the pages that every verb comes to use anyway, one after the other, with a fault for each: those
/// of the stack below here, and the first ones of the heap. Where it does not, they come as before.
fn take_pages() {
    use nix::libc;
    const STACK: usize = 60 << 10;
    const HEAP: usize = 40 << 10;
    const PAGE: usize = 4096;
    let first = std::hint::black_box(Box::new(0u8));
    let here = (&raw const first as usize) / PAGE * PAGE;
    let heap = (&raw const *first as usize) / PAGE * PAGE;
    for (start, length) in [(here - STACK, STACK), (heap, HEAP)] {
        // SAFETY: what is mapped there is touched as if it was written to, and keeps its content; what is not is an error.
        let _unasked = unsafe { libc::madvise(start as *mut _, length, libc::MADV_POPULATE_WRITE) };
    }
}

/// What the rest of the program relies on: that a broken pipe is an error and no death, that no file which it opens takes the
/// place of a standard stream that its caller has closed, and that nothing else of the caller's state is in its way.
/// Gives the number of descriptors above these streams that are the caller's.
fn prepare() -> io::Result<u32> {
    use nix::libc;
    use nix::sys::signal::{SigHandler, Signal, signal};
    take_pages();
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the pointer and the length are those of `streams`.
    if unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for stream in streams {
        if stream.revents & libc::POLLNVAL != 0 {
            // The lowest number that is free, which is this one. It stays open.
            // SAFETY: the path is NUL-terminated.
            if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    let inherited = knarr_oci::sys::count_inherited();
    knarr_oci::sys::settle()?;
    Ok(inherited)
}
