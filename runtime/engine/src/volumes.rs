//! The volumes of an image (`VOLUME` in its Dockerfile): each container gets a directory of its own at each of them, with what the image
//! has there, writable also where the root is not.
//!
//! They are below the container's directory and go with it. Source: containerd, `volumeMounts` and `WithVolumes` of its CRI plugin.

use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::error::EngineError;
use crate::types::Mount;

/// One volume of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageVolume {
    /// The directory on the host.
    pub source: PathBuf,
    /// Where it is in the container.
    pub destination: PathBuf,
}

/// Which volumes a container gets, in an order that stays the same: all of the image's but those where the pod mounts something itself.
pub fn plan(image: &ImageConfiguration, mounts: &[Mount], dir: &Path) -> Vec<ImageVolume> {
    let config = image.config().clone().unwrap_or_default();
    let own: BTreeSet<_> = mounts.iter().map(|m| clean(&m.container_path)).collect();
    let wanted: BTreeSet<_> = (config.volumes().iter().flatten())
        .map(|path| clean(Path::new(path)))
        // What there is at the root is the root.
        .filter(|path| path != Path::new("/") && !own.contains(path))
        .collect();
    wanted
        .into_iter()
        .enumerate()
        .map(|(at, destination)| ImageVolume {
            source: dir.join("volumes").join(at.to_string()),
            destination,
        })
        .collect()
}

/// Makes the directories, with what the root has at their places. The container does not run yet, so nobody else writes in it.
///
/// # Errors
///
/// The image has something else than a directory there, or the disk fails.
pub fn make(volumes: &[ImageVolume], rootfs: &Path) -> Result<(), EngineError> {
    let failed = |what: String| |source| EngineError::System { what, source };
    for volume in volumes {
        let shown = volume.source.display();
        // A try that was cut short may have left half of it.
        knarr_tree::remove(&volume.source)
            .map_err(|error| failed(format!("remove {shown}"))(error.into()))?;
        // As where the image has nothing, whatever our umask is.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&volume.source)
            .and_then(|()| {
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(&volume.source, mode)
            })
            .map_err(failed(format!("make directory {shown}")))?;
        knarr_image::copy_directory(rootfs, &volume.destination, &volume.source).map_err(
            |source| EngineError::Volume {
                path: volume.destination.clone(),
                source,
            },
        )?;
    }
    Ok(())
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn image(volumes: &str) -> ImageConfiguration {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{{"Volumes":{volumes}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_mount_of_the_pods_takes_the_place_of_a_volume() {
        let mount = |path: &str| Mount {
            host_path: "/host".into(),
            container_path: path.into(),
            ..Default::default()
        };
        let destinations = |volumes: &str, mounts: &[Mount]| {
            plan(&image(volumes), mounts, Path::new("/c"))
                .into_iter()
                .map(|volume| volume.destination.display().to_string())
                .collect::<Vec<_>>()
        };
        let volumes = r#"{"/data/": {}, "opt/vol": {}, "/a/../b": {}, "/": {}, "/data": {}}"#;
        assert_eq!(destinations(volumes, &[]), ["/b", "/data", "/opt/vol"]);
        let mounts = [mount("/data"), mount("/b/"), mount("/opt")];
        assert_eq!(destinations(volumes, &mounts), ["/opt/vol"]);
        assert_eq!(destinations("null", &[]), [""; 0]);
        let planned = plan(&image(volumes), &[], Path::new("/c"));
        assert_eq!(planned[1].source, Path::new("/c/volumes/1"));
    }

    #[test]
    fn volumes_have_what_the_image_has_and_else_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::fs::write(root.join("data/file"), "x").unwrap();
        std::os::unix::fs::chown(root.join("data"), Some(7), Some(8)).unwrap();
        let volumes = plan(&image(r#"{"/data": {}, "/new": {}}"#), &[], dir.path());
        // Twice, as after a crash.
        for _ in 0..2 {
            make(&volumes, &root).unwrap();
            let data = std::fs::metadata(&volumes[0].source).unwrap();
            assert_eq!((data.uid(), data.gid()), (7, 8));
            assert_eq!(std::fs::read(volumes[0].source.join("file")).unwrap(), b"x");
            let new = std::fs::metadata(&volumes[1].source).unwrap();
            assert_eq!((new.uid(), new.mode() & 0o7777), (0, 0o755));
        }
    }
}
