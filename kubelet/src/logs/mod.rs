//! Container logs on the node: reading them as `kubectl logs` asks.

pub(crate) mod line;
mod read;

pub(crate) use read::{Options, Source, seconds_ago, stream};

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use knarr_engine::types::{ContainerId, ContainerStatus};

use crate::config::KubeletConfig;
use crate::pod::PodKey;
use crate::runtime::chain;
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

/// Removes a container's log, those that it was rotated into, and the link to it.
///
/// A rotated log has the log's own name and the time behind it, maybe `.gz` and, half compressed, `.tmp`.
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
    let log = &status.log_path;
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else {
        return;
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return note(directory, Err(error)),
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let rest = file.as_bytes().strip_prefix(name.as_bytes());
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b".")) {
            note(&entry.path(), std::fs::remove_file(entry.path()));
        }
    }
}

/// Removes a pod's whole directory of logs, rotated ones and all.
pub(crate) fn remove_directory(directory: &Path) {
    note(directory, knarr_tree::remove(directory).map_err(Into::into));
}

fn note(path: &Path, result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = chain(&error), "remove a log");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use knarr_engine::types::ContainerState;

    use super::*;
    use crate::testing;

    #[test]
    fn rotated_logs_go_with_their_container_and_those_of_others_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = testing::config(directory.path());
        let logs = directory.path().join("pods/ns_p_u/a");
        std::fs::create_dir_all(&logs).expect("made");
        let files = [
            "1.log",
            "1.log.20261130-120000",
            "1.log.20261130-120000.gz",
            "1.log.20261130-120001.tmp",
            "10.log",
            "11.log.20261130-120000",
            "2.log.gz",
        ];
        for file in files {
            std::fs::write(logs.join(file), "").expect("written");
        }
        let mut status = testing::container("a", 1, ContainerState::Exited, 0);
        status.log_path = logs.join("1.log");
        remove(&config, &status);
        let mut left: Vec<String> = std::fs::read_dir(&logs)
            .expect("listed")
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["10.log", "11.log.20261130-120000", "2.log.gz"]);
    }
}
