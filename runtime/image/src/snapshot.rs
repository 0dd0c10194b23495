//! The root file systems of containers: an image's layers and one writable directory, through overlayfs.
//!
//! A snapshot's life: a record in `snapshots/` (which keeps the image from being removed), the directories
//! `upper`, `work` and `rootfs` in the container's directory, the mount on `rootfs`. Each step may be repeated, so that after a
//! crash at any point `prepare` goes on and `remove` cleans up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files::{self, Share};
use crate::inherit::{self, Attributes};
use crate::overlay::{is_mount_point, mount_overlay, unmount_all};
use crate::store::ImageStore;

/// A mounted root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rootfs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// What the container wrote, for accounting.
    pub upper: PathBuf,
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name it was prepared under, such as a container's id.
    pub key: String,
    /// Its image's id.
    pub image: Digest,
    /// The container's directory.
    pub dir: PathBuf,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] crate::IndexError),
    /// The image is not there (any more).
    #[error("image {image} is not in the store")]
    NoImage {
        /// The image's id.
        image: Digest,
    },
    /// A key that is no plain file name.
    #[error("{key:?} is not the name of a snapshot")]
    Key {
        /// The key.
        key: String,
    },
    /// The key is taken by another image or directory.
    #[error("snapshot {key} exists already, of image {image} in {dir}", dir = dir.display())]
    Taken {
        /// The key.
        key: String,
        /// The image's id.
        image: Digest,
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused a step of the mount.
    #[error("mount overlay on {path}: {step}", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Which step: a system call and its parameter.
        step: String,
        /// Why.
        source: io::Error,
    },
}

/// The directories of one snapshot.
pub(crate) struct Directories {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// A lower layer for an image that has none.
    pub(crate) empty: PathBuf,
}

impl Directories {
    pub(crate) fn of(dir: &Path) -> Self {
        Self {
            upper: dir.join("upper"),
            work: dir.join("work"),
            rootfs: dir.join("rootfs"),
            empty: dir.join("empty"),
        }
    }
}

impl ImageStore {
    /// Mounts a root file system made of the image in `dir` (at `dir/rootfs`), under the name `key`.
    ///
    /// May be repeated: what is there is used, so it also mounts again after a reboot.
    ///
    /// # Errors
    ///
    /// The image is not in the store, the key is taken, or the kernel refuses.
    pub fn prepare(&self, key: &str, image: &Digest, dir: &Path) -> Result<Rootfs, SnapshotError> {
        let record = self.record(key)?;
        let wanted = Snapshot {
            key: key.to_owned(),
            image: image.clone(),
            dir: dir.to_owned(),
        };
        let (layers, inherited) = {
            // Held until the record is there, so that the image cannot go in between.
            let _lock = files::lock(&self.inner.layout.index_lock(), Share::Shared)?;
            let index = self.inner.index.read()?;
            let Some(entry) = index.images.get(image) else {
                return Err(SnapshotError::NoImage {
                    image: image.clone(),
                });
            };
            match self.recorded(&record)? {
                Some(known) if known == wanted => {}
                Some(Snapshot { key, image, dir }) => {
                    return Err(SnapshotError::Taken { key, image, dir });
                }
                None => self.write_record(&record, &wanted)?,
            }
            (entry.layers.clone(), entry.inherited.clone())
        };
        let lowers: Vec<_> = each_once(&layers)
            .into_iter()
            .map(|layer| self.inner.layers.path(layer))
            .collect();
        let rootfs = mount_in(dir, &lowers, &inherited)?;
        self.touch(image);
        Ok(rootfs)
    }

    /// Unmounts a root file system and removes all that the container wrote; nothing there is fine.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn remove_snapshot(&self, key: &str) -> Result<(), SnapshotError> {
        let record = self.record(key)?;
        if let Some(snapshot) = self.recorded(&record)? {
            remove_from(&snapshot.dir)?;
            self.touch(&snapshot.image);
        }
        Ok(files::remove_all(&record)?)
    }

    /// Unmounts a root file system and keeps what the container wrote.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn unmount_snapshot(&self, key: &str) -> Result<(), SnapshotError> {
        match self.recorded(&self.record(key)?)? {
            None => Ok(()),
            Some(snapshot) => unmount_all(&Directories::of(&snapshot.dir).rootfs),
        }
    }

    /// All snapshots, so that their owner can remove those it does not know.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, FileError> {
        let dir = self.inner.layout.snapshots();
        let mut snapshots = Vec::new();
        for name in files::names_in(&dir)? {
            if !name.starts_with('.') {
                snapshots.extend(self.recorded(&dir.join(name))?);
            }
        }
        Ok(snapshots)
    }

    fn record(&self, key: &str) -> Result<PathBuf, SnapshotError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if key.is_empty() || key.len() > 200 || key.starts_with('.') || !key.bytes().all(plain) {
            return Err(SnapshotError::Key {
                key: key.to_owned(),
            });
        }
        Ok(self.inner.layout.snapshots().join(key))
    }

    /// What the record says, with the container's directory as it is now.
    fn recorded(&self, record: &Path) -> Result<Option<Snapshot>, FileError> {
        Ok(read_record(record)?.map(|mut snapshot| {
            snapshot.dir = self.surroundings().join(snapshot.dir);
            snapshot
        }))
    }

    /// The directory that the store is in. Containers' directories beside the store are recorded as seen from here: when all of it is
    /// moved, or copied, the records mean the directories that came along, not those that were left behind.
    fn surroundings(&self) -> &Path {
        let root = self.inner.layout.root();
        root.parent().unwrap_or(root)
    }

    /// Atomic but not durable: after a power loss no container uses its snapshot.
    fn write_record(&self, path: &Path, snapshot: &Snapshot) -> Result<(), FileError> {
        let dir = self.inner.layout.snapshots();
        let mut snapshot = snapshot.clone();
        if let Ok(relative) = snapshot.dir.strip_prefix(self.surroundings()) {
            snapshot.dir = relative.to_owned();
        }
        let text = serde_json::to_vec(&snapshot).map_err(io::Error::from);
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(&dir)
            .at("make a file in", &dir)?;
        text.and_then(|text| file.write_all(&text))
            .at("write", file.path())?;
        file.persist(path)
            .map_err(|err| err.error)
            .at("rename to", path)?;
        Ok(())
    }
}

/// The layers without those that come again further up: overlayfs takes each directory once, and whatever a layer says of a path, its
/// topmost place says it, and hides what it said below.
fn each_once(layers: &[Digest]) -> Vec<&Digest> {
    let mut seen = BTreeSet::new();
    let mut kept: Vec<_> = layers.iter().rev().filter(|l| seen.insert(*l)).collect();
    kept.reverse();
    kept
}

/// `None` where there is no record, or one that a power loss left without its content.
fn read_record(path: &Path) -> Result<Option<Snapshot>, FileError> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err).at("read", path),
    }
}

/// Makes the directories where missing and mounts, unless that is mounted already. `lowers`: the lowest layer first.
fn mount_in(
    dir: &Path,
    lowers: &[PathBuf],
    inherited: &BTreeMap<PathBuf, Attributes>,
) -> Result<Rootfs, SnapshotError> {
    let dirs = Directories::of(dir);
    let rootfs = Rootfs {
        path: dirs.rootfs.clone(),
        upper: dirs.upper.clone(),
    };
    files::make_private_dir(dir)?;
    files::make_private_dir(&dirs.rootfs)?;
    if is_mount_point(&dirs.rootfs)? {
        return Ok(rootfs);
    }
    if !dirs.upper.exists() {
        let new = dir.join("upper.new");
        files::remove_all(&new)?;
        files::make_private_dir(&new)?;
        // The root that the container sees, as it is where no layer says anything of it.
        let mode = rustix::fs::Mode::from_raw_mode(0o755);
        rustix::fs::chmod(&new, mode).at("chmod", &new)?;
        inherit::make(inherited, &new)?;
        fs::rename(&new, &dirs.upper).at("rename to", &dirs.upper)?;
    }
    // A volatile mount that was not unmounted leaves a mark there, and the kernel refuses the next one.
    files::remove_all(&dirs.work)?;
    files::make_private_dir(&dirs.work)?;
    mount_overlay(&dirs, lowers)?;
    Ok(rootfs)
}

/// Unmounts and removes the directories; what is not there (any more) is fine.
fn remove_from(dir: &Path) -> Result<(), SnapshotError> {
    let dirs = Directories::of(dir);
    unmount_all(&dirs.rootfs)?;
    for path in [
        &dirs.rootfs,
        &dirs.upper,
        &dirs.work,
        &dirs.empty,
        &dir.join("upper.new"),
    ] {
        files::remove_all(path)?;
    }
    Ok(())
}
