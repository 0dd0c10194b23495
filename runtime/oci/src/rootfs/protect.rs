//! What the container may not change or see: read-only and masked paths.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::{MOUNT_ATTR_RDONLY, Rootfs, device, metadata};
use crate::error::{Failure, OrFail, Step};
use crate::sys::{self, MountAttr};

impl Rootfs {
    /// Makes a path inside the root read-only; a missing one is left alone, as the specification says.
    pub fn make_read_only(&self, path: &Path) -> Result<(), Failure> {
        let what = || format!("make {} read-only", path.display());
        let target = match self.resolve_held(path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(());
            }
            found => found.or_fail(Step::Protect, what)?,
        };
        let tree = sys::open_tree_clone(target.as_fd(), c"", true).or_fail(Step::Protect, what)?;
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), c"", true, &attr).or_fail(Step::Protect, what)?;
        sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Protect, what)
    }

    /// Hides paths: directories under an empty read-only tmpfs, files under `/dev/null` (the host's, checked).
    pub fn mask(&self, paths: &[String]) -> Result<(), Failure> {
        let mut null: Option<OwnedFd> = None;
        let mut empty: Option<OwnedFd> = None;
        for path in paths {
            let what = || format!("mask {path}");
            let target = match self.resolve_held(Path::new(path)) {
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) =>
                {
                    continue;
                }
                found => found.or_fail(Step::Protect, what)?,
            };
            if metadata(target.as_fd())
                .or_fail(Step::Protect, what)?
                .is_dir()
            {
                let cover = match &empty {
                    // A copy of the first one, which is attached by now: older kernels copy only attached mounts.
                    Some(first) => sys::open_tree_clone(first.as_fd(), c"", false)
                        .or_fail(Step::Protect, what)?,
                    None => empty_directory().or_fail(Step::Protect, what)?,
                };
                sys::move_mount(cover.as_fd(), target.as_fd()).or_fail(Step::Protect, what)?;
                empty.get_or_insert(cover);
            } else {
                let null = match &null {
                    Some(null) => null,
                    None => null.insert(device::host_null().or_fail(Step::Protect, what)?),
                };
                let cover =
                    sys::open_tree_clone(null.as_fd(), c"", false).or_fail(Step::Protect, what)?;
                sys::move_mount(cover.as_fd(), target.as_fd()).or_fail(Step::Protect, what)?;
            }
        }
        Ok(())
    }

    /// Makes the root itself read-only, not what is mounted below it.
    pub fn seal_root(&self) -> Result<(), Failure> {
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(self.fd.as_fd(), c"", false, &attr)
            .or_fail(Step::Rootfs, || "make the root read-only")
    }
}

/// An empty directory that stays so.
fn empty_directory() -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"tmpfs")?;
    sys::fsconfig_string(fs.as_fd(), c"nr_inodes", c"1")?;
    sys::fsconfig_string(fs.as_fd(), c"mode", c"0555")?;
    sys::fsconfig_create(fs.as_fd())?;
    // Read-only, nosuid, nodev, noexec.
    sys::fsmount(fs.as_fd(), 0xf)
}
