//! Mounts by descriptor, and paths inside a root.

use std::ffi::{CStr, c_int, c_uint};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// `AT_RECURSIVE`: with [`open_tree_clone`] and [`mount_setattr`], the whole tree of mounts below.
pub const AT_RECURSIVE: c_uint = 0x8000;

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

/// Opens `path` inside `root`: `..`, absolute paths and symlinks stay in it, and magic links are refused.
///
/// The same call, with the same flags, that `pathrs` makes; its errors look up the path of the descriptor for their text,
/// which costs nine system calls, and here a missing path is the normal case. Source: openat2(2), Linux 5.6.
///
/// # Errors
///
/// As open(2); `ELOOP` for a magic link.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    openat2(root, path, flags, resolve)
}

/// As [`open_in_root`], but refuses symlinks altogether.
///
/// # Errors
///
/// As open(2); `ELOOP` for a symlink in any component.
pub fn open_without_links(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS;
    openat2(root, path, flags, resolve)
}

fn openat2(root: BorrowedFd<'_>, path: &CStr, flags: c_int, resolve: u64) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid open_how, a struct of integers.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = resolve;
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
