//! The mount itself: layers below, one writable directory above, through overlayfs.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
    unmount,
};

use crate::error::{At, FileError};
use crate::files;
use crate::snapshot::{Directories, SnapshotError};

/// The longest string that fsconfig(2) takes, less its end mark.
const FSCONFIG_MAX: usize = 255;

/// Unmounts whatever is mounted on `path`; files still open keep working, as the mount is detached.
pub(crate) fn unmount_all(path: &Path) -> Result<(), SnapshotError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point, or nothing there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(err) => return Err(err).at("unmount", path)?,
        }
    }
}

pub(crate) fn is_mount_point(path: &Path) -> Result<bool, FileError> {
    let stat = rustix::fs::statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )
    .at("stat", path)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// One mount, through the mount API where the kernel has all of it, else through mount(2).
pub(crate) fn mount_overlay(dirs: &Directories, lowers: &[PathBuf]) -> Result<(), SnapshotError> {
    let failed = |step: &str, source: Errno| SnapshotError::Mount {
        path: dirs.rootfs.clone(),
        step: step.to_owned(),
        source: source.into(),
    };
    // An image without layers: overlayfs demands one.
    let empty;
    let lowers = if lowers.is_empty() {
        empty = [dirs.empty.clone()];
        files::make_private_dir(&empty[0])?;
        &empty[..]
    } else {
        lowers
    };
    // Descriptors give layers short names: 128 of them fit where paths of 130 bytes would not.
    let mut open = Vec::new();
    let mut short = |path: &Path| -> Result<String, FileError> {
        let fd: OwnedFd = File::open(path).at("open", path)?.into();
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open.push(fd);
        Ok(name)
    };
    let mut value = |path: &Path| -> Result<String, FileError> {
        match path.to_str() {
            Some(text) if text.len() <= FSCONFIG_MAX && is_plain(text) => Ok(text.to_owned()),
            _ => short(path),
        }
    };
    let upper = value(&dirs.upper)?;
    let work = value(&dirs.work)?;

    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|err| failed("fsopen(overlay)", err))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value)
            .map_err(|err| failed(&format!("fsconfig({key}={value})"), err))
    };
    set("source", "knarr")?;
    for lower in lowers.iter().rev() {
        let lower = value(lower)?;
        match fsconfig_set_string(&context, "lowerdir+", &*lower) {
            Ok(()) => {}
            // Before Linux 6.8 there is no such parameter.
            Err(Errno::INVAL) => {
                drop(context);
                let lowers: Vec<_> = lowers
                    .iter()
                    .rev()
                    .map(|lower| short(lower))
                    .collect::<Result<_, _>>()?;
                let upper = short(&dirs.upper)?;
                let work = short(&dirs.work)?;
                let options = format!(
                    "lowerdir={},upperdir={upper},workdir={work},index=off,volatile",
                    lowers.join(":")
                );
                let options = std::ffi::CString::new(options).expect("no NUL in what we made");
                return mount(
                    "knarr",
                    &dirs.rootfs,
                    "overlay",
                    MountFlags::empty(),
                    options.as_c_str(),
                )
                .map_err(|err| failed("mount(2)", err));
            }
            Err(err) => return Err(failed(&format!("fsconfig(lowerdir+={lower})"), err)),
        }
    }
    set("upperdir", &upper)?;
    set("workdir", &work)?;
    // Layers are shared between mounts, which the inode index does not allow.
    set("index", "off")?;
    // No sync of the whole disk when a container ends: after a power loss its root is made anew anyway.
    fsconfig_set_flag(&context, "volatile").map_err(|err| failed("fsconfig(volatile)", err))?;
    fsconfig_create(&context).map_err(|err| failed("fsconfig(create)", err))?;
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(|err| failed("fsmount", err))?;
    move_mount(
        &mounted,
        "",
        CWD,
        &dirs.rootfs,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|err| failed("move_mount", err))
}

/// Whether overlayfs takes the text as it stands: it splits and unescapes some of its parameters.
fn is_plain(path: &str) -> bool {
    !path.contains([':', ',', '\\'])
}
