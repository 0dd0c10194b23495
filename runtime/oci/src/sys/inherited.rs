//! What a process has from whoever started it, and survives an exec (execve(2)). Our programs depend on none of it that could
//! break them, and containers get none of it:
//!
//! | state | our programs | the processes of containers |
//! |---|---|---|
//! | descriptors above 2 | are passed to nobody that was not to have them | those that are to be preserved |
//! | closed standard streams | `/dev/null` | as ours |
//! | ignored signals | stay ignored, but for `SIGCHLD` | none |
//! | blocked signals | none | none |
//! | file mode mask | 022 | as configured, or 022 |
//! | terminal, process group | the caller's, but for shims | a session of their own |
//! | working directory | the caller's; nothing fails because it is gone | as configured |
//! | processors | the caller's | all of the group |
//! | environment | the caller's, but for shims | as configured |
//! | user, groups, capabilities, no_new_privs | the caller's | as configured |
//! | resource limits | the caller's | as configured, or the caller's |
//! | priorities, personality, timer slack | the caller's, but for shims | as configured, or those of who makes them |
//! | parent-death signal, interval timers | the caller's, who wants this program to end with it or in time | none (fork(2)) |

use std::io;

use super::check;

/// The mask that all of our programs work under: what they make for containers has the modes that the specification says or
/// that are usual, whatever the caller's mask.
pub const MODE_MASK: u32 = 0o022;

/// Makes this process independent of the signals and the mask that its caller left it, as the table of this module says. To be
/// called first of all, before there are threads. What becomes of descriptors is for each program to say, which may have to
/// execute itself once more ([`crate::protect`]) before they are kept from others ([`super::close_range_cloexec`]).
///
/// # Errors
///
/// None in practice.
pub fn settle() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    // Who ignores it cannot wait for children: the kernel reaps them (sigaction(2)).
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(MODE_MASK));
    Ok(())
}

/// Gives this process, and so its children, the priorities and the personality of an ordinary one: a container's share of the
/// processor and the layout of its memory are no matter of who started the node. Gives what could not be had, which a process
/// without privilege may not take back.
pub fn be_ordinary() -> Vec<(&'static str, io::Error)> {
    use nix::sys::personality::{self, Persona};
    let tries = [
        (
            "scheduling policy and nice value",
            super::sched_setattr(&super::SchedAttr::default()),
        ),
        ("I/O priority", super::ioprio_set(0, 0)),
        (
            "personality",
            personality::set(Persona::empty())
                .map(drop)
                .map_err(io::Error::from),
        ),
        // 0 asks for the default of both (prctl(2)).
        (
            "timer slack",
            super::prctl(libc::PR_SET_TIMERSLACK, 0, 0).map(drop),
        ),
        (
            "transparent huge pages",
            super::prctl(libc::PR_SET_THP_DISABLE, 0, 0).map(drop),
        ),
    ];
    let failures = tries.into_iter();
    failures
        .filter_map(|(what, tried)| Some((what, tried.err()?)))
        .collect()
}

/// How many descriptors are open from 3 on, without a gap. At the start of a program these are its caller's, and so they are
/// for as long as nobody closes one.
pub fn count_inherited() -> u32 {
    // SAFETY: two integers; the call reads a flag.
    let is_open = |number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    (3..).take_while(|number| is_open(*number)).count() as u32
}

/// Gives this process the dispositions and the mask of signals that a program expects to be born with, whatever our caller
/// ignored, and Rust's start-up code (`SIGPIPE`), and whatever we block.
///
/// # Errors
///
/// None in practice.
pub fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    // The kernel's own structure: SIG_DFL, no flags, an empty mask. By number, because libc keeps two for itself, which may be
    // ignored nevertheless.
    let default = [0u64; 4];
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        // SAFETY: the kernel reads one structure, which is no longer than `default`; the default disposition runs no code of ours.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        })?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}
