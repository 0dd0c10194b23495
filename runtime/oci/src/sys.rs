//! Every raw system call of the crate: the ones for which `nix` has no wrapper, or none that fits.
//!
//! One call per block. Descriptors come and go as `OwnedFd` and `BorrowedFd`; errors are `io::Error` with the kernel's errno.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

mod bpf;
mod descriptor;
mod inherited;
mod mount;
mod network;
mod privilege;
mod process;
mod program;
mod schedule;
mod terminal;

pub use bpf::*;
pub use descriptor::*;
pub use inherited::*;
pub use mount::*;
pub use network::*;
pub use privilege::*;
pub use process::*;
pub use program::*;
pub use schedule::*;
pub use terminal::*;

/// A path as the kernel wants it; `EINVAL` if it holds a NUL.
pub fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ret)
}

fn check_fd(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(ret)?;
    // SAFETY: every caller passes the result of a call that has just made this descriptor for us, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
