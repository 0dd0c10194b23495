//! Places in the root that are found once and held: what comes later cannot be led elsewhere by a path that has changed.
//!
//! Masks and device nodes depend on an earlier mount. Found by path again, they could land beside it: an image whose
//! `/proc` is a symlink into a volume, and another container which swaps that volume's directory in between, would have
//! a procfs without its masks (CVE-2019-19921, CVE-2025-52881), or device nodes in a directory of the host
//! (CVE-2026-41579). So the mounts at these few places stay open, and what lies in them is found from there.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::destination::normal;
use super::{Rootfs, metadata};
use crate::error::{Failure, OrFail, Step};
use crate::sys;

/// The places whose mounts are held.
const PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The mounts at [`PLACES`], the latest one of each.
#[derive(Debug, Default)]
pub(super) struct Held(RefCell<Vec<(PathBuf, OwnedFd)>>);

impl Held {
    /// Keeps the mount at `path`, if that is one of the places.
    pub fn keep(&self, path: &Path, mount: OwnedFd) {
        let path = normal(path);
        if PLACES.iter().any(|place| path == Path::new(place)) {
            let mut held = self.0.borrow_mut();
            held.retain(|(other, _)| *other != path);
            held.push((path, mount));
        }
    }
}

impl Rootfs {
    /// As [`Rootfs::resolve`], but what lies in `/proc` or `/sys` is looked up in the very mount that was put there.
    pub(super) fn resolve_held(&self, path: &Path) -> io::Result<OwnedFd> {
        let clean = normal(path);
        for (place, mount) in self.held.0.borrow().iter() {
            // Links in /dev may be absolute, and lead to other places of the root.
            if place == Path::new("/dev") {
                continue;
            }
            if let Ok(inside) = clean.strip_prefix(place) {
                let inside = Path::new("/").join(inside);
                return sys::open_in_root(mount.as_fd(), &sys::c_path(&inside)?, libc::O_PATH);
            }
        }
        self.resolve(path)
    }

    /// The directory of device nodes: the mount that was put at `/dev`, or what the image has there.
    pub(super) fn device_directory(&self) -> Result<OwnedFd, Failure> {
        let held = self.held.0.borrow();
        match held.iter().find(|(place, _)| place == Path::new("/dev")) {
            Some((_, mount)) => mount
                .try_clone()
                .or_fail(Step::Device, || "hold on to /dev"),
            None => self.destination(Path::new("/dev"), true),
        }
    }

    /// A directory for a procfs or sysfs: no symlink may lead there (CVE-2019-19921).
    pub(super) fn plain_directory(&self, path: &Path) -> Result<OwnedFd, Failure> {
        let open = || sys::open_without_links(self.fd.as_fd(), &sys::c_path(path)?, libc::O_PATH);
        let found = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                drop(self.destination(path, true)?);
                open()
            }
            found => found,
        };
        found.or_fail(
            Step::Mount,
            || "it must be mounted on ordinary directory, without symlinks on the way",
        )
    }
}

/// The file `name` in a directory, made empty if it is missing. A symlink is refused: what is mounted here is not meant
/// for the place to which an image's link leads.
pub(super) fn file_in(directory: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let open = || -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(directory, name, flags, Mode::empty())?)
    };
    let found = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            drop(openat(
                directory,
                name,
                create,
                Mode::from_bits_truncate(0o666),
            )?);
            open()?
        }
        found => found?,
    };
    if metadata(found.as_fd())?.mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    Ok(found)
}
