//! Users, capabilities, seccomp and keyrings: what a process may do.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::check;

/// Names the session keyring of this process, which it makes anew (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
///
/// `ENOSYS` without keyrings, `EDQUOT` at the limit.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    // SAFETY: operation 1 takes one NUL-terminated string.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr()) })?;
    Ok(())
}

/// The three sets that capset(2) writes, as bits by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSets {
    /// Effective.
    pub effective: u64,
    /// Permitted.
    pub permitted: u64,
    /// Inheritable.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words per set.
const CAP_VERSION: u32 = 0x2008_0522;

/// Sets this thread's capabilities.
///
/// # Errors
///
/// `EPERM` when adding what is not permitted.
pub fn capset(sets: CapSets) -> io::Result<()> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let low = |bits: u64| bits as u32;
    let high = |bits: u64| (bits >> 32) as u32;
    let data = [
        [
            low(sets.effective),
            low(sets.permitted),
            low(sets.inheritable),
        ],
        [
            high(sets.effective),
            high(sets.permitted),
            high(sets.inheritable),
        ],
    ];
    // SAFETY: the header names version 3, for which the kernel reads exactly two data structs of three words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// This thread's capabilities.
///
/// # Errors
///
/// None on a kernel that has version 3 (2.6.26).
pub fn capget() -> io::Result<CapSets> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: the header names version 3, for which the kernel writes exactly two data structs of three words.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let word = |index: usize| u64::from(data[0][index]) | u64::from(data[1][index]) << 32;
    Ok(CapSets {
        effective: word(0),
        permitted: word(1),
        inheritable: word(2),
    })
}

/// prctl(2) with integer arguments only.
///
/// # Errors
///
/// As the option says.
pub fn prctl(option: c_int, two: u64, three: u64) -> io::Result<c_int> {
    // SAFETY: the options used in this crate (capabilities, dumpable, no_new_privs, death signal) take integers.
    let ret = unsafe { libc::prctl(option, two, three, 0u64, 0u64) };
    check(ret.into())?;
    Ok(ret)
}

/// Sets real, effective and saved user id of this thread only.
///
/// # Errors
///
/// `EINVAL` for an id outside the user namespace's map.
pub fn setresuid(uid: u32) -> io::Result<()> {
    // SAFETY: three integers. The raw call: libc's would signal threads, and this process has only one.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Sets real, effective and saved group id of this thread only.
///
/// # Errors
///
/// `EINVAL` for an id outside the user namespace's map.
pub fn setresgid(gid: u32) -> io::Result<()> {
    // SAFETY: three integers; raw for the reason of setresuid.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// Sets the supplementary groups of this thread only.
///
/// # Errors
///
/// `EPERM` where a user namespace denies it, `EINVAL` for unmapped ids.
pub fn setgroups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe one slice of gid_t (u32).
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// One instruction of a classic BPF program, as seccomp(2) takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockFilter {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

impl SockFilter {
    /// From the eight bytes in which the kernel and libseccomp hold it (native order).
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = bytes;
        Self {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        }
    }
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const SECCOMP_NEW_LISTENER: u64 = 1 << 3;

/// Installs a seccomp filter on this thread; with [`SECCOMP_NEW_LISTENER`] the listener comes back.
///
/// # Errors
///
/// `EACCES` without no_new_privs and without `CAP_SYS_ADMIN`; `EINVAL` for a bad program or flag.
pub fn seccomp_set_filter(program: &[SockFilter], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `filter` describes `program`, whose elements have sock_filter's layout; operation 1 only reads them.
    let ret = check(unsafe { libc::syscall(libc::SYS_seccomp, 1, flags, &raw const filter) })?;
    if flags & SECCOMP_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the result is a descriptor just made for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(ret as RawFd) }))
}
