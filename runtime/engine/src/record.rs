//! What the engine keeps on disk of sandboxes and containers, so that a crash at any moment loses none of them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::types::{ContainerConfig, ContainerId, SandboxConfig, SandboxId};

/// A sandbox on disk: written before anything is made for it, removed after everything is gone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// What it is to be.
    pub config: SandboxConfig,
    /// When it was made.
    pub created_at: SystemTime,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Whether it came to be whole.
    pub complete: bool,
    /// Whether it was told to stop.
    pub stopped: bool,
}

/// A container on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// What it is to be.
    pub config: ContainerConfig,
    /// The name of its image by digest.
    pub image_digest_ref: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// Whether it was made whole.
    pub created: bool,
    /// Why it will not start: what the runtime said when it was to make the container.
    #[serde(default)]
    pub start_failure: Option<String>,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// How it ended.
    pub end: Option<End>,
    /// Its first process.
    pub pid: Option<i32>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: SystemTime,
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `ContainerStatusUnknown`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}", path = path.display())]
pub struct RecordError {
    /// What was tried.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// Writes a record in one step.
///
/// It is not synced: a crash of the program loses nothing, and a crash of the machine ends all containers anyway.
pub fn write(dir: &Path, name: &str, record: &impl Serialize) -> Result<(), RecordError> {
    let path = dir.join(name);
    let failed = |what| {
        let path = path.clone();
        move |source| RecordError { what, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("create the directory of"))?;
    let bytes = serde_json::to_vec(record).expect("records always serialise");
    let temporary = dir.join(format!("{name}.tmp"));
    fs::write(&temporary, bytes).map_err(failed("write"))?;
    fs::rename(&temporary, &path).map_err(failed("write"))
}

/// All records of this name, one per directory below `dir`; a directory without one, left by a crash, comes without.
pub fn read_all<T: DeserializeOwned>(
    dir: &Path,
    name: &str,
) -> Result<Vec<(PathBuf, Option<T>)>, RecordError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(RecordError {
                what: "list",
                path: dir.to_owned(),
                source,
            });
        }
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| RecordError {
            what: "list",
            path: dir.to_owned(),
            source,
        })?;
        let path = entry.path().join(name);
        let record = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(record) => Some(record),
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "a record makes no sense; what it was for is removed");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(RecordError {
                    what: "read",
                    path,
                    source,
                });
            }
        };
        all.push((entry.path(), record));
    }
    Ok(all)
}

/// Removes a directory and all in it, its record at the end; nothing there is fine.
///
/// Whatever stops the removal, the record stays, and the next start finds what is left to remove.
///
/// # Errors
///
/// Something is mounted there, or the system refuses.
pub fn remove(dir: &Path, name: &str) -> Result<(), RecordError> {
    knarr_tree::remove_with_last(dir, name).map_err(|source| RecordError {
        what: "remove",
        path: dir.to_owned(),
        source: source.into(),
    })
}
