//! The data directory: which part of it is for whose eyes.
//!
//! The server's part holds every Secret, the node's hold the volumes of pods and the files of images, programs with the setuid bit
//! among them (CVE-2021-41103). So they are root's alone, as the directories of etcd and containerd are, however the files in
//! them are made. The directory itself is open: a kubeconfig in it may be given to somebody.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// The control plane's part.
pub const SERVER: &[&str] = &["server"];

/// The node agent's parts.
pub const NODE: &[&str] = &["containers", "images", "node", "sandboxes"];

/// Makes these parts of a data directory, if they are not there, and closes them to everybody but root.
///
/// # Errors
///
/// If one cannot be made or closed.
pub fn close(data_dir: &Path, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        let path = data_dir.join(part);
        let made = std::fs::create_dir_all(data_dir)
            .and_then(|()| DirBuilder::new().mode(0o700).recursive(true).create(&path))
            // One of an older version is open.
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o700)));
        made.with_context(|| format!("make {} root's alone", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_and_a_node_keep_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir_all(data.join("images")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        close(&data, SERVER).unwrap();
        close(&data, NODE).unwrap();
        for part in SERVER.iter().chain(NODE) {
            assert_eq!(mode(&data.join(part)), 0o700, "{part}");
        }
        assert_eq!(mode(&data), 0o755);
    }
}
