//! Volumes that are a place on the node: `emptyDir`, `hostPath`; and the removal of a pod's directory.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Volume;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::resources::units;

/// Makes an `emptyDir`: a directory that everyone may write to, on disk or in memory.
pub(super) fn empty_dir(path: &Path, volume: &Volume, group: Option<u32>) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|e| format!("make {}: {e}", path.display()))?;
    let source = volume.empty_dir.as_ref();
    if source.and_then(|s| s.medium.as_deref()) == Some("Memory") {
        let size = source
            .and_then(|s| s.size_limit.as_ref())
            .map(units)
            .filter(|s| *s > 0);
        tmpfs(path, size)?;
    }
    // Set-group-id lets what is made inside belong to the pod's group.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))
            .map_err(|e| format!("chown {}: {e}", path.display()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| format!("chmod {}: {e}", path.display()))
}

/// Mounts memory at `path`.
pub(super) fn tmpfs(path: &Path, size: Option<i64>) -> Result<(), String> {
    let options = size.map_or_else(|| "mode=0755".to_owned(), |s| format!("mode=0755,size={s}"));
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|e| format!("mount tmpfs at {}: {e}", path.display()))
}

/// Whether something is mounted at `path`.
pub(super) fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata(path).map(|m| m.dev());
    let parent = path.parent().map(|p| fs::metadata(p).map(|m| m.dev()));
    matches!((own, parent), (Ok(own), Some(Ok(parent))) if own != parent)
}

/// Checks a `hostPath` against its type, and makes what `…OrCreate` allows.
///
/// Source: kubernetes, pkg/volume/hostpath/host_path.go.
pub(super) fn host_path(volume: &Volume) -> Result<(), String> {
    let Some(source) = &volume.host_path else {
        return Ok(());
    };
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(|e| format!("make {}: {e}", path.display()))?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::File::create(path).map_err(|e| format!("make {}: {e}", path.display()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))
                .map_err(|e| format!("chmod {}: {e}", path.display()))?;
        }
        // Without a type the runtime makes a directory where there is nothing.
        "" if !path.exists() => {
            fs::create_dir_all(path).map_err(|e| format!("make {}: {e}", path.display()))?;
        }
        _ => {}
    }
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let failed = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not {what}",
            source.path
        ))
    };
    match kind {
        "Directory" | "DirectoryOrCreate" if !found.is_some_and(|t| t.is_dir()) => {
            failed("a directory")
        }
        "File" | "FileOrCreate" if !found.is_some_and(|t| t.is_file()) => failed("a file"),
        "Socket" if !found.is_some_and(|t| t.is_socket()) => failed("a socket file"),
        "CharDevice" if !found.is_some_and(|t| t.is_char_device()) => failed("a character device"),
        "BlockDevice" if !found.is_some_and(|t| t.is_block_device()) => failed("a block device"),
        _ => Ok(()),
    }
}

/// Why a pod's directory is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("read /proc/thread-self/mountinfo")]
    Mounts { source: io::Error },
    #[error("unmount {path:?}")]
    Unmount { path: PathBuf, source: nix::Error },
    #[error("remove {path:?}")]
    Remove { path: PathBuf, source: io::Error },
}

/// Unmounts everything below a pod's directory, then removes it.
///
/// Nothing is removed while anything is mounted: what is behind a mount is not the pod's to delete.
pub(crate) fn remove_pod_dir(directory: &Path) -> Result<(), RemoveError> {
    if !directory.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|source| RemoveError::Mounts { source })?;
    let mut below: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(directory))
        .collect();
    // Later mounts may lie on earlier ones.
    below.reverse();
    for path in below {
        umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|source| {
            RemoveError::Unmount {
                path: path.clone(),
                source,
            }
        })?;
    }
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RemoveError::Remove {
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_mount_namespace;

    fn volume(source: serde_json::Value) -> Volume {
        let mut volume = serde_json::json!({"name": "v"});
        volume["emptyDir"] = source;
        serde_json::from_value(volume).expect("a volume")
    }

    #[test]
    fn a_memory_volume_has_its_size_and_goes_with_the_pod() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let pod = dir.path().join("pod");
            let path = pod.join("volumes/v");
            let volume = volume(serde_json::json!({"medium": "Memory", "sizeLimit": "1Mi"}));
            empty_dir(&path, &volume, Some(1234)).expect("made");
            empty_dir(&path, &volume, Some(1234)).expect("made before");
            assert!(is_mount_point(&path));
            fs::write(path.join("small"), vec![0; 1024]).expect("it fits");
            assert!(
                fs::write(path.join("large"), vec![0; 2 << 20]).is_err(),
                "it does not fit"
            );
            let meta = fs::metadata(&path).expect("there");
            use std::os::unix::fs::MetadataExt;
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o2777, 1234));
            remove_pod_dir(&pod).expect("removed");
            assert!(!pod.exists());
            remove_pod_dir(&pod).expect("removed before");
        });
    }

    #[test]
    fn removing_a_pod_leaves_what_was_mounted_into_it() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let (pod, foreign) = (dir.path().join("pod"), dir.path().join("foreign"));
            fs::create_dir_all(pod.join("place")).expect("made");
            fs::create_dir_all(&foreign).expect("made");
            fs::write(foreign.join("precious"), "x").expect("written");
            mount(
                Some(&foreign),
                &pod.join("place"),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .expect("bound");
            remove_pod_dir(&pod).expect("removed");
            assert_eq!(
                fs::read_to_string(foreign.join("precious")).expect("still there"),
                "x"
            );
        });
    }

    #[test]
    fn spaces_in_mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b/c"), Path::new("/a b/c"));
        assert_eq!(unescape("/plain"), Path::new("/plain"));
    }
}
