//! The mount itself: layers below, one writable directory above, through overlayfs.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Which of the kernel's two interfaces has what we need; found out by the first mount.
static CLASSIC: AtomicBool = AtomicBool::new(false);

/// One mount, through the mount API where the kernel has all of it, else through mount(2).
pub(crate) fn mount_overlay(dirs: &Directories, lowers: &[PathBuf]) -> Result<(), SnapshotError> {
    // An image without layers: overlayfs demands one.
    let empty;
    let lowers = if lowers.is_empty() {
        empty = [dirs.empty.clone()];
        files::make_private_dir(&empty[0])?;
        &empty[..]
    } else {
        lowers
    };
    if CLASSIC.load(Ordering::Relaxed) {
        return mount_classic(dirs, lowers);
    }
    match mount_layer_by_layer(dirs, lowers) {
        // Before Linux 6.8 there is no `lowerdir+`. Before 6.5 this shows only when all parameters are looked at, so that one cannot tell
        // it from another mistake; then the second way fails as well and says why.
        Err(SnapshotError::Mount { source, .. })
            if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
        {
            mount_classic(dirs, lowers)?;
            CLASSIC.store(true, Ordering::Relaxed);
            Ok(())
        }
        other => other,
    }
}

/// Paths as parameters. Descriptors make them short, and free of characters that overlayfs would interpret.
#[derive(Default)]
struct Values {
    open: Vec<OwnedFd>,
}

impl Values {
    fn short(&mut self, path: &Path) -> Result<String, FileError> {
        let fd: OwnedFd = File::open(path).at("open", path)?.into();
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        self.open.push(fd);
        Ok(name)
    }

    /// The path itself where it will do: it is what `mount` shows.
    fn plain(&mut self, path: &Path) -> Result<String, FileError> {
        match path.to_str() {
            Some(text) if text.len() <= FSCONFIG_MAX && is_plain(text) => Ok(text.to_owned()),
            _ => self.short(path),
        }
    }
}

fn failed(dirs: &Directories, step: &str, source: Errno) -> SnapshotError {
    SnapshotError::Mount {
        path: dirs.rootfs.clone(),
        step: step.to_owned(),
        source: source.into(),
    }
}

fn mount_layer_by_layer(dirs: &Directories, lowers: &[PathBuf]) -> Result<(), SnapshotError> {
    let failed = |step: &str, source| failed(dirs, step, source);
    let mut values = Values::default();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|err| failed("fsopen(overlay)", err))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&context, key, value)
            .map_err(|err| failed(&format!("fsconfig({key}={value})"), err))
    };
    set("source", "knarr")?;
    for lower in lowers.iter().rev() {
        set("lowerdir+", &values.plain(lower)?)?;
    }
    set("upperdir", &values.plain(&dirs.upper)?)?;
    set("workdir", &values.plain(&dirs.work)?)?;
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

/// mount(2) takes one page of options: by descriptor, 128 layers fit, where their paths would not.
fn mount_classic(dirs: &Directories, lowers: &[PathBuf]) -> Result<(), SnapshotError> {
    let mut values = Values::default();
    let lowers: Vec<_> = lowers
        .iter()
        .rev()
        .map(|lower| values.short(lower))
        .collect::<Result<_, _>>()?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,volatile",
        lowers.join(":"),
        values.short(&dirs.upper)?,
        values.short(&dirs.work)?
    );
    let options = CString::new(options).expect("no NUL in what we made");
    mount(
        "knarr",
        &dirs.rootfs,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .map_err(|err| failed(dirs, "mount(2)", err))
}

/// Whether overlayfs takes the text as it stands: it splits and unescapes some of its parameters.
fn is_plain(path: &str) -> bool {
    !path.contains([':', ',', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::MsFlags;
    use nix::sched::{CloneFlags, unshare};
    use std::fs;

    /// What kernels before 6.8 get, with as many layers as an image may have.
    #[test]
    fn the_classic_way_mounts_all_layers() {
        unshare(CloneFlags::CLONE_NEWNS).expect("the tests run as root");
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dirs = Directories::of(&dir.path().join("a:b,c"));
        for path in [&dirs.rootfs, &dirs.upper, &dirs.work] {
            fs::create_dir_all(path).unwrap();
        }
        let lowers: Vec<_> = (0..128)
            .map(|i| dir.path().join(format!("{i}-{}", "x".repeat(64))))
            .collect();
        for (i, lower) in lowers.iter().enumerate() {
            fs::create_dir(lower).unwrap();
            fs::write(lower.join(format!("file{i}")), "").unwrap();
            fs::write(lower.join("shared"), i.to_string()).unwrap();
        }
        mount_classic(&dirs, &lowers).unwrap();
        assert!(is_mount_point(&dirs.rootfs).unwrap());
        assert_eq!(fs::read_dir(&dirs.rootfs).unwrap().count(), 129);
        assert_eq!(fs::read(dirs.rootfs.join("shared")).unwrap(), b"127");
        unmount_all(&dirs.rootfs).unwrap();
        assert!(!is_mount_point(&dirs.rootfs).unwrap());
    }
}
