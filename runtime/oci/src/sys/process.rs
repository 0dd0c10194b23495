//! Making processes, signalling them, becoming another program.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::unistd::Pid;

use super::{check, check_fd};

/// Not libc's, which overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The two sides of [`clone3`].
pub enum Fork {
    /// We are the new process.
    Child,
    /// We are the caller; the process is our child.
    Parent {
        /// Its id in our PID namespace.
        pid: Pid,
        /// Its descriptor, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Makes a child process like fork(2) does, in new namespaces (`flags`) and, on cgroup v2, inside `cgroup`.
///
/// The child gets a copy of this process, so it may use all of it, if this process has one thread.
/// Source: clone3(2), Linux 5.3; `CLONE_INTO_CGROUP` 5.7.
///
/// # Errors
///
/// What the kernel says: `EPERM` without privilege, `ENOSPC` at a limit on namespaces, `EAGAIN` at the limit on processes.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid clone_args, a struct of integers.
    let mut args: libc::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // A sibling (CLONE_PARENT) inherits the exit signal of its maker and may not name one.
    args.exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 {
        libc::SIGCHLD as u64
    } else {
        0
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` lives across the call and has the size we name; without CLONE_VM and a stack the child goes on with a
    // copy of this stack, as after fork, and `pidfd` is written before the call returns in the parent.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match check(ret)? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent {
            pid: Pid::from_raw(pid as i32),
            // SAFETY: CLONE_PIDFD has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Opens a descriptor that keeps meaning process `pid`, even after the id is reused.
///
/// Close-on-exec. Source: pidfd_open(2), Linux 5.3.
///
/// # Errors
///
/// `ESRCH` if no process has this id.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; the kernel touches no memory of ours.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// A copy of descriptor `number` of the process behind `pidfd`. Close-on-exec. Source: pidfd_getfd(2), Linux 5.6.
///
/// # Errors
///
/// `EPERM` without the right to trace it; `EBADF` if it has no such descriptor.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: three integers.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// Sends a signal to the process behind a descriptor. Source: pidfd_send_signal(2), Linux 5.1.
///
/// # Errors
///
/// `ESRCH` if it has been reaped.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: the null pointer asks for the siginfo that kill(2) would send; nothing else is a pointer.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<c_void>(),
            0,
        )
    })?;
    Ok(())
}

/// Ends this process at once, without running exit handlers or flushing buffers which its parent also has.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: the call does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Does the work of a child, which must never return into its parent's code: nor by a panic, whose way out would do the
/// parent's cleaning up (freeze the group that the child itself is in, and wait for it).
pub fn never_return(work: impl FnOnce() -> Infallible) -> ! {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(never) => match never {},
        // Said already, by the hook; to its maker the exit code says enough.
        Err(_) => exit_now(101),
    }
}

/// Replaces this process by the program `path`, with exactly these arguments and this environment. Returns only on failure.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let args: Vec<*const c_char> = pointers(args);
    let env: Vec<*const c_char> = pointers(env);
    // SAFETY: both arrays end with null and point to NUL-terminated strings that live across the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Like [`execve`] with the program given by descriptor.
pub fn fexecve(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let args: Vec<*const c_char> = pointers(args);
    let env: Vec<*const c_char> = pointers(env);
    // SAFETY: the path is empty, both arrays end with null and point to NUL-terminated strings that live across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|text| text.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Whether this process may execute `path`, with its effective ids (faccessat2(2), Linux 5.8).
///
/// # Errors
///
/// `ENOENT`, `EACCES` and the like.
pub fn may_execute(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is NUL-terminated, the rest are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::X_OK,
            libc::AT_EACCESS,
        )
    })?;
    Ok(())
}

/// The working directory as the kernel names it: not absolute if it lies outside this process's root.
///
/// libc's getcwd hides that case, and CVE-2024-21626 is about it.
///
/// # Errors
///
/// `ENOENT` if it was removed.
pub fn getcwd() -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: pointer and length describe `buffer`.
    let length =
        check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    buffer.truncate((length as usize).saturating_sub(1));
    Ok(buffer)
}

/// Whether `fd` is a namespace of the kind that `flag` names (ioctl_ns(2), `NS_GET_NSTYPE`, Linux 4.11).
pub fn is_namespace_of(fd: &OwnedFd, flag: nix::sched::CloneFlags) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument; on a descriptor of another kind it fails.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), 0xb703) };
    kind == flag.bits()
}

/// Sets the NIS domain name of this UTS namespace.
///
/// # Errors
///
/// `EINVAL` if it is too long.
pub fn setdomainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })?;
    Ok(())
}

/// Names this process in lists of processes; the kernel cuts it at 15 bytes.
///
/// # Errors
///
/// None in practice.
pub fn set_process_name(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }.into())?;
    Ok(())
}

/// Gives the pages of the heap that hold nothing back to the kernel; for a process that waits long between its works.
///
/// Source: malloc_trim(3).
pub fn release_free_memory() {
    // SAFETY: it takes the allocator's own locks and touches only what is free. Whether there was something to give back does not matter.
    unsafe { libc::malloc_trim(0) };
}
