//! One file or directory inside a volume, mounted without a race.
//!
//! Whoever writes to the volume can swap directories for links while we look. So the path is resolved inside the
//! volume by descriptor, and the descriptor is bound to a place that containers cannot reach; that place is what the
//! container gets (CVE-2017-1002101, CVE-2021-25741).

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pathrs::Root;

/// Why a path inside a volume could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubPathError {
    #[error("resolve {path:?} inside {volume:?}: {source}")]
    Resolve {
        volume: PathBuf,
        path: PathBuf,
        source: pathrs::error::Error,
    },
    #[error("make {path:?}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("bind to {path:?}: {source}")]
    Bind { path: PathBuf, source: nix::Error },
}

/// Binds `path` inside `volume` to `place`, making it a directory if there is nothing yet.
pub(super) fn bind(
    volume: &Path,
    path: &Path,
    place: &Path,
    group: Option<u32>,
) -> Result<(), SubPathError> {
    let resolve = |source| SubPathError::Resolve {
        volume: volume.to_owned(),
        path: path.to_owned(),
        source,
    };
    let make = |path: &Path| {
        let path = path.to_owned();
        |source| SubPathError::Make { path, source }
    };
    let root = Root::open(volume).map_err(resolve)?;
    let handle = match root.resolve(path) {
        Ok(handle) => handle,
        Err(error)
            if matches!(
                error.kind(),
                pathrs::error::ErrorKind::OsError(Some(libc::ENOENT))
            ) =>
        {
            let handle = root
                .mkdir_all(path, &Permissions::from_mode(0o750))
                .map_err(resolve)?;
            if let Some(group) = group {
                let own = |e: nix::Error| SubPathError::Make {
                    path: path.to_owned(),
                    source: e.into(),
                };
                nix::unistd::fchownat(
                    handle.as_fd(),
                    "",
                    None,
                    Some(group.into()),
                    nix::fcntl::AtFlags::AT_EMPTY_PATH,
                )
                .map_err(own)?;
            }
            handle
        }
        Err(error) => return Err(resolve(error)),
    };
    let source = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let directory = fs::metadata(&source)
        .map_err(make(&PathBuf::from(&source)))?
        .is_dir();
    // A container that starts again finds the place of its predecessor.
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(source) => {
            return Err(SubPathError::Bind {
                path: place.to_owned(),
                source,
            });
        }
    }
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).map_err(make(parent))?;
    }
    match fs::symlink_metadata(place) {
        Ok(meta) if meta.is_dir() && !directory => fs::remove_dir(place).map_err(make(place))?,
        Ok(meta) if !meta.is_dir() && directory => fs::remove_file(place).map_err(make(place))?,
        _ => {}
    }
    if directory {
        fs::create_dir_all(place).map_err(make(place))?;
    } else {
        File::options()
            .create(true)
            .append(true)
            .open(place)
            .map_err(make(place))?;
    }
    mount(
        Some(source.as_str()),
        place,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|source| SubPathError::Bind {
        path: place.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::in_mount_namespace;

    #[test]
    fn a_path_is_bound_made_and_never_leaves_its_volume() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let (volume, place) = (dir.path().join("volume"), dir.path().join("place/0"));
            fs::create_dir_all(volume.join("sub")).expect("made");
            fs::write(volume.join("sub/file"), "inside").expect("written");
            fs::write(dir.path().join("secret"), "outside").expect("written");
            symlink("../secret", volume.join("escape")).expect("linked");
            symlink("/etc", volume.join("etc")).expect("linked");

            bind(&volume, Path::new("sub"), &place, None).expect("a directory");
            assert_eq!(
                fs::read_to_string(place.join("file")).expect("there"),
                "inside"
            );
            bind(&volume, Path::new("sub/file"), &place, None).expect("a file in its place");
            assert_eq!(fs::read_to_string(&place).expect("there"), "inside");
            bind(&volume, Path::new("new/deep"), &place, None).expect("made");
            assert!(volume.join("new/deep").is_dir());

            // A link out of the volume is resolved inside it: `secret` and `etc` there, if anything.
            let _inside = bind(&volume, Path::new("escape"), &place, None);
            assert_ne!(fs::read_to_string(&place).ok().as_deref(), Some("outside"));
            let _inside = bind(&volume, Path::new("etc"), &place, None);
            assert!(!place.join("passwd").exists());
            umount2(&place, MntFlags::MNT_DETACH).expect("unmounted");
        });
    }
}
