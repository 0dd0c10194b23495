//! Priorities, limits and memory policy of a process.

use std::ffi::c_int;
use std::io;

use nix::unistd::Pid;

use super::check;

/// Sets the I/O priority of this process. Source: ioprio_set(2).
///
/// # Errors
///
/// `EPERM` for the real-time class without privilege.
pub fn ioprio_set(class: u16, priority: u16) -> io::Result<()> {
    // SAFETY: three integers; `who` 1 is IOPRIO_WHO_PROCESS, id 0 the caller.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            1,
            0,
            (c_int::from(class) << 13) | c_int::from(priority),
        )
    })?;
    Ok(())
}

/// Lets this process run on every processor that its cpuset has: the kernel takes from the mask what it has not.
///
/// # Errors
///
/// `EPERM` where a filter forbids it.
pub fn any_processor() -> io::Result<()> {
    // As many as Linux can have (`NR_CPUS` of x86).
    let mask = [u8::MAX; 8192 / 8];
    // SAFETY: length and pointer describe `mask`, which the kernel only reads; id 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, mask.len(), mask.as_ptr()) })?;
    Ok(())
}

/// The argument of sched_setattr(2), version 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedAttr {
    /// Size of this struct.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for the deadline policy.
    pub runtime: u64,
    /// Nanoseconds, for the deadline policy.
    pub deadline: u64,
    /// Nanoseconds, for the deadline policy.
    pub period: u64,
}

/// Sets the scheduling policy of this thread.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_NICE`, `EINVAL` for a bad combination.
pub fn sched_setattr(attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        ..*attr
    };
    // SAFETY: `attr` lives across the call and says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })?;
    Ok(())
}

/// Sets the memory policy of this thread (set_mempolicy(2)); `nodes` holds one bit per node.
///
/// # Errors
///
/// `EINVAL` for nodes that do not exist or a bad combination.
pub fn set_mempolicy(mode: c_int, nodes: &[u64]) -> io::Result<()> {
    let bits = if nodes.is_empty() {
        0
    } else {
        nodes.len() * 64 + 1
    };
    // SAFETY: the kernel reads `bits - 1` bits, all inside `nodes`.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) })?;
    Ok(())
}

/// Sets a resource limit of another process; gives the old soft and hard limit.
///
/// # Errors
///
/// `EPERM` when raising a hard limit without `CAP_SYS_RESOURCE`; `EINVAL` if soft exceeds hard.
pub fn prlimit(pid: Pid, resource: u32, new: Option<(u64, u64)>) -> io::Result<(u64, u64)> {
    let new = new.map(|(soft, hard)| libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    });
    let new_pointer = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `new_pointer` is null or points to `new`, which lives across the call; the kernel writes one rlimit64 to `old`.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw(),
            resource,
            new_pointer,
            &raw mut old,
        )
    })?;
    Ok((old.rlim_cur, old.rlim_max))
}
