//! The one unsafe call of this crate.

#![expect(
    unsafe_code,
    reason = "tokio asks its caller to vouch for the descriptor"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor.
///
/// # Errors
///
/// If epoll cannot watch it.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd owns it.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}
