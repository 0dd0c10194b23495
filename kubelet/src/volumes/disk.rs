//! Volumes that are a place on the node: `emptyDir`, `hostPath`; and the removal of a pod's directory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use knarr_tree::{RemoveError, UnmountError, is_mount_point};
use nix::mount::{MsFlags, mount};

use crate::resources::{self, units};

/// The mode of an `emptyDir`: everyone may write to it.
const OPEN: u32 = 0o777;
/// The mode of one in memory, which is that of any new tmpfs.
const OPEN_IN_MEMORY: u32 = 0o1777;
/// Lets what is made inside belong to the pod's group.
const SET_GROUP: u32 = 0o2000;

/// Makes an `emptyDir`: a directory that everyone may write to, on disk or in memory.
///
/// It is there whole or not at all, whenever we are killed; and memory is mounted anew where a reboot took it away. What the pod made of
/// the mode meanwhile is left alone. Source: kubernetes, pkg/volume/emptydir/empty_dir.go.
pub(super) fn empty_dir(
    path: &Path,
    in_memory: Option<MemorySize>,
    group: Option<u32>,
) -> Result<(), String> {
    if let Some(size) = in_memory {
        return memory(path, Some(size), group);
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(format!("{} is not a directory", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("look at {}: {error}", path.display())),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{} is no place for a volume", path.display()));
    };
    private_directories(parent)?;
    // No volume has such a name.
    let new = parent.join(format!(".{}.new", name.to_string_lossy()));
    match fs::create_dir(&new) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("make {}: {error}", new.display()));
        }
        _ => {}
    }
    own_directory(&new, OPEN, group)?;
    fs::rename(&new, path).map_err(|e| format!("rename {}: {e}", new.display()))
}

/// How much a volume in memory may hold, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemorySize(i64);

impl MemorySize {
    /// The least of the node's memory, the pod's limit and the volume's own, as far as they are set.
    ///
    /// Source: kubernetes, pkg/volume/emptydir/empty_dir.go, `calculateEmptyDirMemorySize`.
    pub(super) fn of(pod: &Pod, volume: &Volume, allocatable: i64) -> Self {
        let own = volume
            .empty_dir
            .as_ref()
            .and_then(|s| s.size_limit.as_ref());
        let limits = [resources::pod(pod).memory_limit, own.map(units)];
        let set = limits.into_iter().flatten().filter(|size| *size > 0);
        Self(set.fold(allocatable, i64::min))
    }
}

/// Mounts memory at `path`, unless it is mounted already.
pub(super) fn memory(
    path: &Path,
    size: Option<MemorySize>,
    group: Option<u32>,
) -> Result<(), String> {
    private_directories(path)?;
    if is_mount_point(path).map_err(|e| format!("look at {}: {e}", path.display()))? {
        return Ok(());
    }
    // Mode and owner come with the mount, so that there is none without them.
    let mut options = match group {
        Some(group) => format!("mode={:o},gid={group}", OPEN_IN_MEMORY | SET_GROUP),
        None => format!("mode={OPEN_IN_MEMORY:o}"),
    };
    if let Some(MemorySize(bytes)) = size {
        options.push_str(&format!(",size={bytes}"));
    }
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(|e| format!("mount tmpfs at {}: {e}", path.display()))
}

/// Makes a directory on disk for files that the agent writes, or gives it back its mode and its owner.
pub(super) fn files(path: &Path, group: Option<u32>) -> Result<(), String> {
    private_directories(path)?;
    own_directory(path, OPEN, group)
}

/// Gives a directory its mode, whatever the process's umask, and its group. One that has both is not touched.
fn own_directory(path: &Path, mode: u32, group: Option<u32>) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let mode = if group.is_some() {
        mode | SET_GROUP
    } else {
        mode
    };
    let found = fs::metadata(path).map_err(|e| format!("look at {}: {e}", path.display()))?;
    if let Some(group) = group.filter(|group| *group != found.gid()) {
        std::os::unix::fs::chown(path, None, Some(group))
            .map_err(|e| format!("chown {}: {e}", path.display()))?;
    } else if found.mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| format!("chmod {}: {e}", path.display()))
}

/// Makes a directory of the agent's own and its missing parents: nobody else on the node has business there.
pub(crate) fn private_directories(path: &Path) -> Result<(), String> {
    make_directories(path, 0o750)
}

/// Makes a directory and its missing parents with just this mode, whatever the process's umask.
fn make_directories(path: &Path, mode: u32) -> Result<(), String> {
    let failed = |path: &Path, error: io::Error| format!("make {}: {error}", path.display());
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(|e| failed(path, e))?,
            // Another pod's volume made it at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(failed(path, error)),
        }
    }
    Ok(())
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
        "DirectoryOrCreate" if !path.exists() => make_directories(path, 0o755)?,
        "FileOrCreate" if !path.exists() => {
            fs::File::create(path).map_err(|e| format!("make {}: {e}", path.display()))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644))
                .map_err(|e| format!("chmod {}: {e}", path.display()))?;
        }
        // Without a type the runtime makes a directory where there is nothing.
        "" if !path.exists() => make_directories(path, 0o755)?,
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
pub(crate) enum PodDirError {
    #[error("unmount the volumes in {path:?}")]
    Unmount { path: PathBuf, source: UnmountError },
    #[error("remove {path:?}")]
    Remove { path: PathBuf, source: RemoveError },
}

/// Unmounts everything below a pod's directory, then removes it.
///
/// Nothing is removed while anything is mounted: what is behind a mount is not the pod's to delete. The directory stays then, and is
/// what tells the next try that there is something left to remove.
pub(crate) fn remove_pod_dir(directory: &Path) -> Result<(), PodDirError> {
    let path = || directory.to_owned();
    knarr_tree::unmount_below(directory).map_err(|source| PodDirError::Unmount {
        path: path(),
        source,
    })?;
    knarr_tree::remove(directory).map_err(|source| PodDirError::Remove {
        path: path(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::in_mount_namespace;

    fn mode(path: &Path) -> (u32, u32) {
        let meta = fs::metadata(path).expect("there");
        (meta.mode() & 0o7777, meta.gid())
    }

    #[test]
    fn a_memory_volume_has_its_size_and_goes_with_the_pod() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let pod = dir.path().join("pod");
            let path = pod.join("volumes/v");
            let size = Some(MemorySize(1 << 20));
            empty_dir(&path, size, Some(1234)).expect("made");
            empty_dir(&path, size, Some(1234)).expect("made before");
            assert!(is_mount_point(&path).expect("there"));
            fs::write(path.join("small"), vec![0; 1024]).expect("it fits");
            assert!(
                fs::write(path.join("large"), vec![0; 2 << 20]).is_err(),
                "it does not fit"
            );
            assert_eq!(mode(&path), (0o3777, 1234));

            // After a reboot the directory is there, and the memory is not.
            knarr_tree::unmount(&path).expect("unmounted");
            assert!(!is_mount_point(&path).expect("there"));
            empty_dir(&path, size, None).expect("mounted again");
            assert!(is_mount_point(&path).expect("there"));
            assert_eq!(mode(&path), (0o1777, 0));

            remove_pod_dir(&pod).expect("removed");
            assert!(!pod.exists());
            remove_pod_dir(&pod).expect("removed before");
        });
    }

    #[test]
    fn a_volume_on_disk_is_open_to_all_and_stays_as_its_pod_left_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (plain, grouped) = (
            dir.path().join("volumes/plain"),
            dir.path().join("volumes/g"),
        );
        // Killed before it was whole.
        fs::create_dir_all(dir.path().join("volumes/.g.new")).expect("made");
        empty_dir(&plain, None, None).expect("made");
        empty_dir(&grouped, None, Some(100)).expect("made");
        assert_eq!(mode(&plain), (0o777, 0));
        assert_eq!(mode(&grouped), (0o2777, 100));
        assert_eq!(
            fs::read_dir(dir.path().join("volumes"))
                .expect("list")
                .count(),
            2
        );
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o700)).expect("changed");
        fs::write(plain.join("file"), "kept").expect("written");
        empty_dir(&plain, None, None).expect("made before");
        assert_eq!(mode(&plain), (0o700, 0));
        assert_eq!(fs::read(plain.join("file")).expect("kept"), b"kept");
    }

    #[test]
    fn memory_is_the_least_of_node_pod_and_volume() {
        const NODE: i64 = 1 << 30;
        let container = |memory: Option<&str>| match memory {
            Some(memory) => json!({"name": "c", "resources": {"limits": {"memory": memory}}}),
            None => json!({"name": "c"}),
        };
        for (limits, pod_level, own, bytes) in [
            (vec![None], None, None, NODE),
            (vec![Some("32Mi")], None, None, 32 << 20),
            (vec![Some("32Mi")], None, Some("1Gi"), 32 << 20),
            (vec![Some("32Mi")], None, Some("8Mi"), 8 << 20),
            (vec![Some("32Mi"), Some("16Mi")], None, None, 48 << 20),
            // One container without a limit, and the pod has none.
            (vec![Some("32Mi"), None], None, None, NODE),
            (vec![Some("32Mi"), None], Some("64Mi"), None, 64 << 20),
            (vec![Some("2Gi")], None, None, NODE),
            (vec![None], None, Some("2Gi"), NODE),
            (vec![None], None, Some("0"), NODE),
        ] {
            let containers: Vec<Value> = limits.iter().map(|l| container(*l)).collect();
            let mut spec = json!({"containers": containers});
            if let Some(memory) = pod_level {
                spec["resources"] = json!({"limits": {"memory": memory}});
            }
            let mut volume = json!({"name": "v", "emptyDir": {"medium": "Memory"}});
            if let Some(own) = own {
                volume["emptyDir"]["sizeLimit"] = own.into();
            }
            let volume: Volume = serde_json::from_value(volume).expect("a volume");
            let size = MemorySize::of(&crate::testing::pod(spec.clone()), &volume, NODE);
            assert_eq!(size, MemorySize(bytes), "{spec} {own:?}");
        }
    }

    /// A data directory behind a link, and a bind mount of the same file system: mountinfo has neither the path that we were given
    /// nor another device number.
    #[test]
    fn removing_a_pod_leaves_what_was_mounted_into_it() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().expect("a directory");
            let foreign = dir.path().join("foreign");
            fs::create_dir_all(dir.path().join("real dir")).expect("made");
            symlink("real dir", dir.path().join("link")).expect("linked");
            let pod = dir.path().join("link/pod");
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
            assert!(!pod.exists());
            assert_eq!(
                fs::read_to_string(foreign.join("precious")).expect("still there"),
                "x"
            );
            // A link in the pod's place is all that goes.
            symlink(&foreign, &pod).expect("linked");
            remove_pod_dir(&pod).expect("removed");
            assert!(!pod.is_symlink() && foreign.join("precious").exists());
        });
    }
}
