//! Descriptors by number: inherited, kept, closed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{check, check_fd};

/// Marks every descriptor from `first` up close-on-exec (close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
///
/// # Errors
///
/// `EINVAL` on older kernels.
pub fn close_range_cloexec(first: u32) -> io::Result<()> {
    // SAFETY: three integers; flag 4 only marks descriptors, so no owner in this process loses one.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 4) })?;
    Ok(())
}

/// Closes every descriptor from `first` up but these. For a process that only waits and then becomes another program or
/// ends: what owned the others here must never be used or dropped again. Source: close_range(2), Linux 5.9.
///
/// # Errors
///
/// None in practice.
pub fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut from = first;
    for number in kept.into_iter().filter(|number| *number >= first) {
        if from < number {
            // SAFETY: three integers. By this function's contract no owner of a descriptor in this range comes to life again.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) })?;
        }
        from = number + 1;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_close_range, from, u32::MAX, 0) })?;
    Ok(())
}

/// Puts a copy of `fd` at number `target` (0, 1 or 2), not close-on-exec.
///
/// # Errors
///
/// `EBADF` never, as `fd` is open.
pub fn dup_to(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: two integers. The number replaced is one of the standard three, which nothing in this process owns.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into())?;
    Ok(())
}

/// Takes descriptor `fd`, which the caller of this program passed to it by number, as a borrowed one.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: two integers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    check_fd(copy.into())
}

/// Takes a descriptor that recvmsg(2) has just put into this process.
pub fn received_fd(raw: RawFd) -> OwnedFd {
    // SAFETY: the caller passes a number out of an SCM_RIGHTS message, which the kernel made for us and nothing else owns.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Lets the next program inherit descriptor `fd`, which the caller of this program passed to it by number.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub fn clear_cloexec(fd: RawFd) -> io::Result<()> {
    // SAFETY: three integers; the flag changes nothing for whoever owns the descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }.into())?;
    Ok(())
}
