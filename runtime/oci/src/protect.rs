//! Keeps the runtime's own program out of reach of containers (CVE-2019-5736).
//!
//! A container's process is a copy of ours until it executes the user's program, so `/proc/<pid>/exe` leads to our file;
//! and a program named `/proc/self/exe` in an image even executes it. Whoever holds a descriptor of it can open it for
//! writing through `/proc/self/fd`, once nobody runs it. Hiding the process (`PR_SET_DUMPABLE`) keeps others from looking,
//! but not the image's own script.
//!
//! The remedy: run from a private, read-only mount of the file. A detached mount belongs to no namespace, so nobody can
//! make it writable again. The program is mapped anew from there, in a dozen calls; where the kernel does not let it, it is
//! executed once more. An ordinary user cannot mount, and pays for a copy of the program: a sealed file in memory, executed
//! too.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::sys::{self, MountAttr};

/// Continues in a program that cannot be written: maps it anew from a read-only mount, unless it runs from one, or else
/// executes it from there.
///
/// Call it first thing in `main`, and only in programs that make containers and have one thread.
///
/// # Errors
///
/// If neither the mount nor the copy can be made.
pub fn run_read_only() -> io::Result<()> {
    let exe = std::fs::File::open("/proc/self/exe")?;
    if sys::is_read_only(exe.as_fd())? || is_sealed(exe.as_fd()) {
        // Executed by descriptor, it is named after its number.
        let name = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&name).file_name().unwrap_or_default();
        return sys::set_process_name(&CString::new(name.as_encoded_bytes())?);
    }
    let program = match read_only_mount() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => sealed_copy(exe)?,
        mounted => {
            let mount = mounted?;
            let file = std::fs::File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))?;
            if sys::run_from(&file).is_ok() {
                return Ok(());
            }
            mount
        }
    };
    let strings = |list: Vec<std::ffi::OsString>| {
        list.into_iter()
            .map(|text| CString::new(text.into_vec()))
            .collect::<Result<Vec<_>, _>>()
    };
    let args = strings(std::env::args_os().collect())?;
    let pair = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        pair
    };
    let env = strings(std::env::vars_os().map(pair).collect())?;
    Err(sys::fexecve(program.as_fd(), &args, &env))
}

fn read_only_mount() -> io::Result<OwnedFd> {
    let path = CString::new("/proc/self/exe")?;
    let mount = sys::open_tree_clone(nix::fcntl::AT_FDCWD, &path, false)?;
    let attr = MountAttr {
        set: 1,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_fd(), c"", false, &attr)?;
    Ok(mount)
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

fn is_sealed(file: BorrowedFd<'_>) -> bool {
    // Files of other kinds have no seals, and say so with an error.
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals == all_seals().bits())
}

fn sealed_copy(mut exe: std::fs::File) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = std::fs::File::from(memfd_create(c"knarr-oci", flags)?);
    io::copy(&mut exe, &mut copy)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(all_seals()))?;
    Ok(copy.into())
}
