//! Every raw system call of the crate: the ones for which `nix` has no wrapper, or none that fits.
//!
//! One call per block. Descriptors come and go as `OwnedFd` and `BorrowedFd`; errors are `io::Error` with the kernel's errno.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::unistd::Pid;

/// `AT_RECURSIVE`: with [`open_tree_clone`] and [`mount_setattr`], the whole tree of mounts below.
pub const AT_RECURSIVE: c_uint = 0x8000;

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

/// Opens a file system type for configuration (fsopen(2), Linux 5.2).
///
/// # Errors
///
/// `ENODEV` if the kernel does not know the type.
pub fn fsopen(fstype: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: `fstype` is a NUL-terminated string; flag 1 is FSOPEN_CLOEXEC.
    check_fd(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), 1) })
}

fn fsconfig(
    fs: BorrowedFd<'_>,
    command: c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are NUL-terminated strings or null, as each of the commands used below wants them.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    })?;
    Ok(())
}

/// Sets one option with a value.
///
/// # Errors
///
/// `EINVAL` if the file system does not know it.
pub fn fsconfig_string(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    fsconfig(fs, 1, Some(key), Some(value))
}

/// Sets one option without a value.
///
/// # Errors
///
/// `EINVAL` if the file system does not know it.
pub fn fsconfig_flag(fs: BorrowedFd<'_>, key: &CStr) -> io::Result<()> {
    fsconfig(fs, 0, Some(key), None)
}

/// Makes the superblock with the options set so far.
///
/// # Errors
///
/// What the file system says.
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> io::Result<()> {
    fsconfig(fs, 6, None, None)
}

/// A detached mount of a configured file system; `attributes` are `MOUNT_ATTR_*`.
///
/// # Errors
///
/// `EPERM` where the kernel protects the type, as procfs in a user namespace that sees only parts of another one.
pub fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: three integers; flag 1 is FSMOUNT_CLOEXEC.
    check_fd(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes) })
}

/// A detached copy (bind) of the mount at `path`, with all below it if `recursive`; an empty path means `at` itself.
///
/// # Errors
///
/// `ENOENT` and the like of path lookup; `EPERM` without `CAP_SYS_ADMIN`.
pub fn open_tree_clone(at: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = 1 | libc::O_CLOEXEC as c_uint;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as c_uint;
    }
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: `path` is a NUL-terminated string; flag 1 is OPEN_TREE_CLONE.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the (detached or attached) mount `mount` on top of what `target` names.
///
/// # Errors
///
/// `ENOTDIR` if one is a directory and the other is not; `EINVAL` for a target outside this mount namespace.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both paths are the empty string; 0x44 is MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            0x44,
        )
    })?;
    Ok(())
}

/// The argument of mount_setattr(2), version 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and the like, or zero.
    pub propagation: u64,
    /// The user namespace of an id-mapped mount, with `MOUNT_ATTR_IDMAP`.
    pub userns_fd: u64,
}

/// Changes the attributes of the mount at `path` (empty: of `at` itself), and of all below it if `recursive`.
///
/// Source: mount_setattr(2), Linux 5.12.
///
/// # Errors
///
/// `EINVAL` if `path` is not the root of a mount; `EPERM` where a user namespace locks an attribute.
pub fn mount_setattr(
    at: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attr: &MountAttr,
) -> io::Result<()> {
    let mut flags = if path.is_empty() {
        libc::AT_EMPTY_PATH as c_uint
    } else {
        0
    };
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: `path` is NUL-terminated, and `attr` is a mount_attr of the size that we name.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

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

/// Opens the other end of a pseudo terminal without a path (`TIOCGPTPEER`, Linux 4.13), after unlocking it.
///
/// # Errors
///
/// `ENOTTY` if `master` is no pseudo terminal's master.
pub fn pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlock: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes the flags as an integer.
    check_fd(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())
}

/// Makes `terminal` the controlling terminal of this session's leader.
///
/// # Errors
///
/// `EPERM` if we lead no session or have a terminal.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())?;
    Ok(())
}

/// Sets the size of a terminal in characters.
///
/// # Errors
///
/// `ENOTTY` if it is none.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}

/// The size of a terminal: rows, columns.
///
/// # Errors
///
/// `ENOTTY` if it is none.
pub fn window_size(terminal: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    // SAFETY: all-zero is a valid winsize.
    let mut size: libc::winsize = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }.into())?;
    Ok((size.ws_row, size.ws_col))
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN` over the namespace.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: three integers.
    let socket = check_fd(
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into(),
    )?;
    // SAFETY: all-zero is a valid ifreq, a struct of integers and a union of them.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(done.into())?;
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

/// Ends this process at once, without running exit handlers or flushing buffers which its parent also has.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: the call does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// The magic number of the file system behind a descriptor, from fstatfs(2).
///
/// # Errors
///
/// None but I/O errors.
pub fn filesystem_magic(fd: BorrowedFd<'_>) -> io::Result<i64> {
    Ok(statfs(fd)?.f_type as i64)
}

/// Whether the mount behind a descriptor is read-only.
///
/// # Errors
///
/// None but I/O errors.
pub fn is_read_only(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = nix::sys::statvfs::fstatvfs(fd)?;
    Ok(stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

fn statfs(fd: BorrowedFd<'_>) -> io::Result<libc::statfs> {
    // SAFETY: all-zero is a valid statfs, a struct of integers.
    let mut stat: libc::statfs = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes one statfs.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) }.into())?;
    Ok(stat)
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

/// The command of bpf(2) that loads a program.
const BPF_PROG_LOAD: c_int = 5;
/// The command of bpf(2) that attaches one to a cgroup.
const BPF_PROG_ATTACH: c_int = 8;

/// Loads a device-control program for cgroup v2; each instruction is its eight bytes.
///
/// # Errors
///
/// `EPERM` without `CAP_BPF`; `EACCES` if the verifier refuses it.
pub fn bpf_load_device_program(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    #[repr(C, align(8))]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        rest: [u8; 104],
    }
    let attr = Load {
        prog_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 104],
    };
    // SAFETY: the pointers in `attr` name the instructions with their count and a NUL-terminated string; the rest is zero.
    check_fd(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            size_of::<Load>(),
        )
    })
}

/// Attaches a device-control program to a cgroup, beside others that are there (`BPF_F_ALLOW_MULTI`).
///
/// # Errors
///
/// `EPERM` if an ancestor forbids it.
pub fn bpf_attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let attr = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: 6, // BPF_CGROUP_DEVICE
        attach_flags: 2,
    };
    // SAFETY: `attr` is the head of bpf_attr for this command; the kernel takes what is missing as zero.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attr,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}

/// Whether `fd` is a namespace of the kind that `flag` names (ioctl_ns(2), `NS_GET_NSTYPE`, Linux 4.11).
pub fn is_namespace_of(fd: &OwnedFd, flag: nix::sched::CloneFlags) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument; on a descriptor of another kind it fails.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), 0xb703) };
    kind == flag.bits()
}

/// Takes a descriptor that recvmsg(2) has just put into this process.
pub fn received_fd(raw: RawFd) -> OwnedFd {
    // SAFETY: the caller passes a number out of an SCM_RIGHTS message, which the kernel made for us and nothing else owns.
    unsafe { OwnedFd::from_raw_fd(raw) }
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

/// Takes back what this program changed of its signals, so that the next one finds them as our caller left them.
///
/// Rust's start-up code ignores `SIGPIPE`, and callers block what they take from a signalfd.
///
/// # Errors
///
/// None in practice.
pub fn reset_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Opens `path` inside `root`: `..`, absolute paths and symlinks stay in it, and magic links are refused.
///
/// The same call, with the same flags, that `pathrs` makes; its errors look up the path of the descriptor for their text,
/// which costs nine system calls, and here a missing path is the normal case. Source: openat2(2), Linux 5.6.
///
/// # Errors
///
/// As open(2); `ELOOP` for a magic link.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid open_how, a struct of integers.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // A rename somewhere in the tree makes the kernel give up on a path with `..`: ask again, but not for ever.
    let mut tries = 128;
    loop {
        // SAFETY: `path` is NUL-terminated, and `how` has the size that we name.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match check_fd(fd) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries > 0 => tries -= 1,
            done => return done,
        }
    }
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
