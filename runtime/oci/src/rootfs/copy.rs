//! Copies a directory into a new tmpfs (`tmpcopyup`): files, directories and symlinks with mode and owner.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

/// Copies what is in `from` to `to`, both directories. Never follows a symlink, so never leaves either.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let open = |at: BorrowedFd<'_>, name: &std::ffi::CStr| {
        openat(
            at,
            name,
            OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
    };
    let listing = open(from, c".")?;
    for entry in Dir::from_fd(listing)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        match entry.file_type().unwrap_or_else(|| kind(&stat)) {
            Type::Directory => {
                mkdirat(to, name, mode)?;
                tree(open(from, name)?.as_fd(), open(to, name)?.as_fd())?;
            }
            Type::Symlink => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            Type::File => copy_file(from, to, name, mode)?,
            _ => mknodat(
                to,
                name,
                SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT),
                mode,
                stat.st_rdev,
            )?,
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
            // After the change of owner, which drops the set-id bits.
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    let stat = nix::sys::stat::fstat(from)?;
    nix::sys::stat::fchmod(open(to, c".")?, Mode::from_bits_truncate(stat.st_mode))?;
    let own: OwnedFd = open(to, c".")?;
    nix::unistd::fchown(
        own,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    Ok(())
}

fn kind(stat: &FileStat) -> Type {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Type::Directory,
        libc::S_IFLNK => Type::Symlink,
        libc::S_IFREG => Type::File,
        libc::S_IFCHR => Type::CharacterDevice,
        libc::S_IFBLK => Type::BlockDevice,
        libc::S_IFIFO => Type::Fifo,
        _ => Type::Socket,
    }
}

fn copy_file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    mode: Mode,
) -> io::Result<()> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // Non-blocking, for the case that a FIFO has taken its place.
    let read = flags | OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let mut source = File::from(openat(from, name, read, Mode::empty())?);
    let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut copy = File::from(openat(to, name, flags | create, mode)?);
    io::copy(&mut source, &mut copy)?;
    Ok(())
}
