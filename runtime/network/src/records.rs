//! The records of attached sandboxes on disk: `<state_dir>/sandboxes/<id>.json`, and `<state_dir>/last-address`.
//!
//! A record is written (by rename, so whole or not at all) before its address is used, and removed
//! after everything of the sandbox is gone. No `fsync`: what a record speaks of does not outlive the kernel either.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{PodNetwork, PortMapping};

/// What is known of one attached sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Where its namespace is pinned.
    pub netns: PathBuf,
    /// The name of its interface outside.
    pub interface: String,
    /// Its host ports.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

impl Record {
    /// What the caller of `attach` gets to see.
    pub fn pod_network(&self) -> PodNetwork {
        PodNetwork {
            ips: self.ips.clone(),
            netns: self.netns.clone(),
        }
    }
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Another process uses this directory.
    #[error("lock {path}: another process uses it")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file or directory could not be read.
    #[error("read {path}")]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file or directory could not be written.
    #[error("write {path}")]
    Write {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is not what we once wrote.
    #[error("parse {path}")]
    Parse {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

/// What was on disk at the start.
pub struct Found {
    /// All records by sandbox.
    pub sandboxes: BTreeMap<String, Record>,
    /// The address given last.
    pub last: Option<IpAddr>,
}

/// The directory of records, locked as long as this lives.
pub struct Records {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Records {
    /// Opens (or makes) the directory and reads all records.
    pub fn open(dir: &Path) -> Result<(Self, Found), RecordError> {
        let sandboxes_dir = dir.join("sandboxes");
        fs::create_dir_all(&sandboxes_dir).map_err(write_error(&sandboxes_dir))?;
        let lock_path = dir.join("lock");
        let file = File::create(&lock_path).map_err(write_error(&lock_path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            RecordError::Locked {
                path: lock_path,
                source: errno.into(),
            }
        })?;
        let mut sandboxes = BTreeMap::new();
        for entry in fs::read_dir(&sandboxes_dir).map_err(read_error(&sandboxes_dir))? {
            let path = entry.map_err(read_error(&sandboxes_dir))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or("");
            let Some(sandbox) = name.strip_suffix(".json") else {
                // A temporary file of a write that never ended.
                fs::remove_file(&path).map_err(write_error(&path))?;
                continue;
            };
            let bytes = fs::read(&path).map_err(read_error(&path))?;
            if bytes.iter().all(|byte| *byte == 0) {
                // The machine lost its power before the content was on the disk. Nothing that the record was for outlived that,
                // and a record that is written while the machine runs is whole, because it is renamed into its place.
                tracing::warn!(path = %path.display(), "a record without content is removed");
                fs::remove_file(&path).map_err(write_error(&path))?;
                continue;
            }
            let record = serde_json::from_slice(&bytes).map_err(|source| RecordError::Parse {
                path: path.clone(),
                source,
            })?;
            sandboxes.insert(sandbox.to_owned(), record);
        }
        let last_path = dir.join("last-address");
        let last = match fs::read_to_string(&last_path) {
            // Unreadable content costs only the order in which addresses are given.
            Ok(text) => text.trim().parse().ok(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(RecordError::Read {
                    path: last_path,
                    source,
                });
            }
        };
        let records = Self {
            dir: dir.to_owned(),
            _lock: lock,
        };
        Ok((records, Found { sandboxes, last }))
    }

    /// Writes the record of a sandbox, and its first address as the one given last.
    pub fn write(&self, sandbox: &str, record: &Record) -> Result<(), RecordError> {
        let bytes = serde_json::to_vec(record).expect("a record has only string keys");
        replace(&self.path(sandbox), &bytes)?;
        let last = record
            .ips
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default();
        replace(&self.dir.join("last-address"), last.as_bytes())
    }

    /// Removes the record of a sandbox, if there is one.
    pub fn remove(&self, sandbox: &str) -> Result<(), RecordError> {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.dir.join("sandboxes").join(format!("{sandbox}.json"))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(write_error(&new))?;
    fs::rename(&new, path).map_err(write_error(path))
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Write { path, source }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Read { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ip: &str) -> Record {
        Record {
            ips: vec![ip.parse().unwrap()],
            netns: "/run/knarr/sandboxes/a/netns".into(),
            interface: "veth0".to_owned(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn what_was_written_is_found_again_without_what_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        {
            let (records, found) = Records::open(dir.path()).unwrap();
            assert!(found.sandboxes.is_empty() && found.last.is_none());
            records.write("a", &record("10.42.0.2")).unwrap();
            records.write("b", &record("10.42.0.3")).unwrap();
            records.remove("a").unwrap();
            records.remove("a").unwrap();
        }
        let (_, found) = Records::open(dir.path()).unwrap();
        assert_eq!(
            found.sandboxes,
            BTreeMap::from([("b".to_owned(), record("10.42.0.3"))])
        );
        assert_eq!(found.last, Some("10.42.0.3".parse().unwrap()));
    }

    #[test]
    fn what_a_loss_of_power_emptied_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        drop(Records::open(dir.path()).unwrap());
        let sandboxes = dir.path().join("sandboxes");
        fs::write(sandboxes.join("empty.json"), "").unwrap();
        fs::write(sandboxes.join("zeros.json"), [0; 64]).unwrap();
        let (_, found) = Records::open(dir.path()).unwrap();
        assert!(found.sandboxes.is_empty());
        assert_eq!(fs::read_dir(&sandboxes).unwrap().count(), 0);
    }

    #[test]
    fn half_a_write_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sandboxes")).unwrap();
        fs::write(dir.path().join("sandboxes/a.new"), "{").unwrap();
        let (_, found) = Records::open(dir.path()).unwrap();
        assert!(found.sandboxes.is_empty());
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Records::open(dir.path()).unwrap();
        assert!(matches!(
            Records::open(dir.path()),
            Err(RecordError::Locked { .. })
        ));
    }
}
