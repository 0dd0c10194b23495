//! The root file systems of containers: an image's layers and one writable directory, through overlayfs.
//!
//! A snapshot's life: a record in `snapshots/` (which keeps the image from being removed), the directories
//! `upper`, `work` and `rootfs` in the container's directory, the mount on `rootfs`. Each step may be repeated, so that after a
//! crash at any point `prepare` goes on and `remove` cleans up.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
    unmount,
};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files;
use crate::inherit::{self, Attributes};

/// The longest string that fsconfig(2) takes, less its end mark.
const FSCONFIG_MAX: usize = 255;

/// A mounted root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What the container wrote, for accounting.
    pub upper: PathBuf,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name it was prepared under, such as a container's id.
    pub key: String,
    /// Its image's id.
    pub image: Digest,
    /// The container's directory.
    pub dir: PathBuf,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] crate::IndexError),
    /// The image is not there (any more).
    #[error("image {image} is not in the store")]
    NoImage {
        /// The image's id.
        image: Digest,
    },
    /// A key that is no plain file name.
    #[error("{key:?} is not the name of a snapshot")]
    Key {
        /// The key.
        key: String,
    },
    /// The key is taken by another image or directory.
    #[error("snapshot {key} exists already, of image {image} in {dir}", dir = dir.display())]
    Taken {
        /// The key.
        key: String,
        /// The image's id.
        image: Digest,
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused a step of the mount.
    #[error("mount overlay on {path}: {step}", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Which step: a system call and its parameter.
        step: String,
        /// Why.
        source: io::Error,
    },
}

/// The directories of one snapshot.
pub(crate) struct Directories {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// A lower layer for an image that has none.
    empty: PathBuf,
}

impl Directories {
    pub(crate) fn of(dir: &Path) -> Self {
        Self {
            upper: dir.join("upper"),
            work: dir.join("work"),
            rootfs: dir.join("rootfs"),
            empty: dir.join("empty"),
        }
    }
}

/// Makes the directories where missing and mounts, unless that is mounted already. `lowers`: the lowest layer first.
pub(crate) fn prepare(
    dir: &Path,
    lowers: &[PathBuf],
    inherited: &BTreeMap<PathBuf, Attributes>,
) -> Result<Rootfs, SnapshotError> {
    let dirs = Directories::of(dir);
    let rootfs = Rootfs {
        path: dirs.rootfs.clone(),
        upper: dirs.upper.clone(),
    };
    files::make_private_dir(dir)?;
    files::make_private_dir(&dirs.rootfs)?;
    if is_mount_point(&dirs.rootfs)? {
        return Ok(rootfs);
    }
    if !dirs.upper.exists() {
        let new = dir.join("upper.new");
        files::remove_all(&new)?;
        files::make_private_dir(&new)?;
        inherit::make(inherited, &new)?;
        copy_root_attributes(lowers, &new)?;
        fs::rename(&new, &dirs.upper).at("rename to", &dirs.upper)?;
    }
    // A volatile mount that was not unmounted leaves a mark there, and the kernel refuses the next one.
    files::remove_all(&dirs.work)?;
    files::make_private_dir(&dirs.work)?;
    mount_overlay(&dirs, lowers)?;
    Ok(rootfs)
}

/// The upper directory is the root that the container sees: it has the owner and mode of the topmost layer's.
fn copy_root_attributes(lowers: &[PathBuf], upper: &Path) -> Result<(), FileError> {
    use rustix::fs::{Gid, Mode, Uid};
    let (mode, owner) = match lowers.last() {
        None => (Mode::from_raw_mode(0o755), None),
        Some(lower) => {
            let stat = rustix::fs::stat(lower).at("stat", lower)?;
            let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            (Mode::from_raw_mode(stat.st_mode & 0o7777), Some(owner))
        }
    };
    if let Some((uid, gid)) = owner {
        rustix::fs::chown(upper, Some(uid), Some(gid)).at("chown", upper)?;
    }
    rustix::fs::chmod(upper, mode).at("chmod", upper)
}

/// Unmounts and removes the directories; what is not there (any more) is fine.
pub(crate) fn remove(dir: &Path) -> Result<(), SnapshotError> {
    let dirs = Directories::of(dir);
    unmount_all(&dirs.rootfs)?;
    for path in [
        &dirs.rootfs,
        &dirs.upper,
        &dirs.work,
        &dirs.empty,
        &dir.join("upper.new"),
    ] {
        files::remove_all(path)?;
    }
    Ok(())
}

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

fn is_mount_point(path: &Path) -> Result<bool, FileError> {
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
fn mount_overlay(dirs: &Directories, lowers: &[PathBuf]) -> Result<(), SnapshotError> {
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
