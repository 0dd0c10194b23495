//! Removal of what nobody needs: unused images when the disk is full, content without an image, leavings of crashed processes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files::{self, Share};
use crate::index::IndexError;
use crate::store::{ImageStore, RemoveError};

/// When to make room, and how much, in percent of the file system that the store is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Up to here nothing is removed. The kubelet's default is 85.
    pub high: u8,
    /// Down to here unused images are removed, the one unused for longest first. The kubelet's default is 80.
    pub low: u8,
}

/// What a garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images removed.
    pub images: Vec<Digest>,
    /// Use of the file system before, in percent.
    pub percent_before: u8,
    /// Use of the file system after.
    pub percent_after: u8,
}

impl ImageStore {
    /// Makes room, if the file system is fuller than the high watermark, by removing images which are neither in `in_use`
    /// nor have a snapshot. Removes content that no image has in any case.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written.
    pub fn gc(
        &self,
        watermarks: Watermarks,
        in_use: &BTreeSet<Digest>,
    ) -> Result<Collected, IndexError> {
        self.sweep()?;
        let mut collected = Collected {
            percent_before: self.percent_used()?,
            ..Collected::default()
        };
        collected.percent_after = collected.percent_before;
        if collected.percent_before <= watermarks.high {
            return Ok(collected);
        }
        for (_, id) in self.by_last_use()? {
            if collected.percent_after <= watermarks.low {
                break;
            }
            if in_use.contains(&id) {
                continue;
            }
            match self.remove(&id.to_string()) {
                Ok(_) => collected.images.push(id),
                Err(RemoveError::Index(err)) => return Err(err),
                // Taken or removed by someone else meanwhile.
                Err(_) => continue,
            }
            collected.percent_after = self.percent_used()?;
        }
        Ok(collected)
    }

    /// When the image was last pulled, imported or used by a container.
    pub fn last_used(&self, id: &Digest) -> Option<SystemTime> {
        fs::metadata(self.inner.layout.blob(id))
            .and_then(|metadata| metadata.modified())
            .ok()
    }

    fn by_last_use(&self) -> Result<Vec<(Option<SystemTime>, Digest)>, IndexError> {
        let index = self.inner.index.read()?;
        let mut images: Vec<_> = index
            .images
            .keys()
            .map(|id| (self.last_used(id), id.clone()))
            .collect();
        images.sort();
        Ok(images)
    }

    fn percent_used(&self) -> Result<u8, FileError> {
        let root = self.inner.layout.root();
        let stat = rustix::fs::statvfs(root).at("stat the file system of", root)?;
        let used = stat.f_blocks - stat.f_bfree;
        // As `df` counts: of what a user may have, rounded up.
        let all = (used + stat.f_bavail).max(1);
        Ok(u8::try_from((used * 100).div_ceil(all)).unwrap_or(100))
    }

    /// Removes blobs and layers that no image has, unless a pull or import is going on.
    pub(crate) fn sweep(&self) -> Result<(), IndexError> {
        let layout = &self.inner.layout;
        let Some(_idle) = files::try_lock(&layout.busy_lock())? else {
            return Ok(());
        };
        let index = self.inner.index.read()?;
        let all = || index.images.values();
        let blobs: BTreeSet<&str> = all().flat_map(|e| &e.blobs).map(Digest::hex).collect();
        let layers: BTreeSet<&str> = all().flat_map(|e| &e.layers).map(Digest::hex).collect();
        for name in files::names_in(&layout.blobs())? {
            if !blobs.contains(&*name) {
                files::remove_all(&layout.blobs().join(name))?;
            }
        }
        for name in files::names_in(&layout.layers())? {
            if !layers.contains(&*name) {
                // Out of the way first: half a layer must not look whole.
                let doomed = layout.work().join(format!("removed-{name}"));
                files::remove_all(&doomed)?;
                let layer = layout.layers().join(&name);
                fs::rename(&layer, &doomed).at("rename to", &doomed)?;
                files::remove_all(&doomed)?;
            }
        }
        let mut configs = self.configs();
        configs.retain(|id, _| index.images.contains_key(id));
        drop(configs);
        self.clear_partials()?;
        Ok(())
    }

    /// Removes downloads that nobody has continued for a day.
    fn clear_partials(&self) -> Result<(), FileError> {
        const KEEP: Duration = Duration::from_secs(24 * 60 * 60);
        let dir = self.inner.layout.partials();
        for name in files::names_in(&dir)? {
            let path = dir.join(name);
            let age = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .ok()
                .and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > KEEP) {
                self.remove_if_free(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what crashed processes were working on.
    pub(crate) fn clear_work(&self) -> Result<(), FileError> {
        {
            // Files on their way to the index or to a snapshot's record are written under this lock.
            let _lock = files::lock(&self.inner.layout.index_lock(), Share::Exclusive)?;
            for dir in [self.inner.layout.root(), &self.inner.layout.snapshots()] {
                for name in files::names_in(dir)? {
                    if name.starts_with(".new-") {
                        files::remove_all(&dir.join(name))?;
                    }
                }
            }
        }
        let dir = self.inner.layout.work();
        for name in files::names_in(&dir)? {
            self.remove_if_free(&dir.join(name))?;
        }
        Ok(())
    }

    fn remove_if_free(&self, path: &Path) -> Result<(), FileError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(err).at("open", path),
        };
        let lock = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        if lock.is_ok() && files::names(path, &file)? {
            files::remove_all(path)?;
        }
        Ok(())
    }

    /// Keeps content without an image from being swept away while it is being brought in.
    pub(crate) fn busy(&self) -> Result<files::Lock, FileError> {
        files::lock(&self.inner.layout.busy_lock(), Share::Shared)
    }

    /// Notes that the image is in use, in the time of its configuration's blob.
    pub(crate) fn touch(&self, id: &Digest) {
        let now = File::options()
            .append(true)
            .open(self.inner.layout.blob(id))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(err) = now {
            // Only the order of garbage collection depends on it.
            tracing::debug!(image = %id, error = %err, "time of last use not noted");
        }
    }
}
