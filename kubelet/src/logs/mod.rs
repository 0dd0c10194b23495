//! Container logs on the node: reading them as `kubectl logs` asks.

pub(crate) mod line;
mod read;

pub(crate) use read::{Options, Source, seconds_ago, stream};

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use knarr_engine::types::{ContainerId, ContainerStatus};

use crate::config::KubeletConfig;
use crate::pod::PodKey;
use crate::sandbox::label;

/// Where log collectors look for a container's log: `containers/<pod>_<namespace>_<container>-<id>.log`.
fn link_path(
    config: &KubeletConfig,
    namespace: &str,
    pod: &str,
    container: &str,
    id: &ContainerId,
) -> PathBuf {
    config
        .log_root
        .join("containers")
        .join(format!("{pod}_{namespace}_{container}-{}.log", id.0))
}

/// Links a container's log to where log collectors look for it.
pub(crate) fn link(
    config: &KubeletConfig,
    pod: &PodKey,
    container: &str,
    id: &ContainerId,
    log: &Path,
) {
    let link = link_path(config, &pod.namespace, &pod.name, container, id);
    if let Err(error) = symlink(log, &link) {
        tracing::warn!(%error, link = %link.display(), "link a container's log");
    }
}

/// Removes a container's log and the link to it.
pub(crate) fn remove(config: &KubeletConfig, status: &ContainerStatus) {
    let label = |name: &str| {
        status
            .config
            .labels
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let (namespace, pod) = (label(label::POD_NAMESPACE), label(label::POD_NAME));
    let link = link_path(config, namespace, pod, &status.config.name, &status.id);
    note(&link, std::fs::remove_file(&link));
    note(&status.log_path, std::fs::remove_file(&status.log_path));
}

/// Removes a pod's whole directory of logs, rotated ones and all.
pub(crate) fn remove_directory(directory: &Path) {
    note(directory, std::fs::remove_dir_all(directory));
}

fn note(path: &Path, result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "remove a log");
        }
        _ => {}
    }
}
