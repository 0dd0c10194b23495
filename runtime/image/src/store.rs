//! The store's face: open, list, resolve, remove; containers' root file systems; removal of what nobody needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use oci_spec::image::ImageConfiguration;

use crate::content::{Content, ContentError};
use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files::{self, Share};
use crate::index::{Entry, IndexError, IndexFile};
use crate::layers::Layers;
use crate::layout::Layout;
use crate::manifest::{self, ManifestError};
use crate::reference::{InvalidReference, Reference};
use crate::snapshot::{self, Rootfs, Snapshot, SnapshotError};
use crate::unpack::UnpackLimits;

/// How the store is to be.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its directory.
    pub dir: PathBuf,
    /// What one layer may use.
    pub limits: UnpackLimits,
    /// Registries (`host[:port]`) beside those on this machine which may speak plain HTTP.
    pub plain_http: BTreeSet<String>,
    /// Blobs of one pull that are fetched at the same time. Default: 3, as Docker and containerd do.
    pub concurrent_downloads: usize,
    /// How often an interrupted download is taken up again within one pull. Default: 5.
    pub retries: u32,
}

impl StoreConfig {
    /// The defaults, in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            limits: UnpackLimits::default(),
            plain_http: BTreeSet::new(),
            concurrent_downloads: 3,
            retries: 5,
        }
    }
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its tags: `docker.io/library/busybox:latest`.
    pub tags: Vec<String>,
    /// Its digests: `docker.io/library/busybox@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// Its configuration: environment, command, user, …
    pub config: Arc<ImageConfiguration>,
    /// Its layers by diff id, the lowest first.
    pub layers: Vec<Digest>,
}

/// All images of one machine. Cheap to clone; several processes may have the same directory open.
///
/// All methods but [`ImageStore::pull`] block on the disk.
#[derive(Clone, Debug)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) layout: Layout,
    pub(crate) index: IndexFile,
    pub(crate) content: Content,
    pub(crate) layers: Layers,
    configs: Mutex<BTreeMap<Digest, Arc<ImageConfiguration>>>,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open the image store")]
pub struct OpenError(#[from] IndexError);

/// Why images could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An image's configuration could not be read.
    #[error("read the configuration of image {id}")]
    Content {
        /// The image.
        id: Digest,
        /// Why not.
        source: ContentError,
    },
    /// An image's configuration makes no sense.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The index or a file could not be read or written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// There is no such image.
    #[error("no image {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Containers are made of it.
    #[error("image {id} is in use by {}", containers.join(", "))]
    InUse {
        /// The image.
        id: Digest,
        /// The keys of the snapshots.
        containers: Vec<String>,
    },
}

impl From<FileError> for RemoveError {
    fn from(err: FileError) -> Self {
        Self::Index(err.into())
    }
}

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name was taken away; the image has others.
    Untagged(String),
    /// The image is gone.
    Deleted(Digest),
}

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
    /// Opens the store, making it where it is missing, and clears away what a crash left.
    ///
    /// # Errors
    ///
    /// The directory cannot be written, or its index makes no sense.
    pub fn open(config: StoreConfig) -> Result<Self, OpenError> {
        let layout = Layout::create(&config.dir).map_err(IndexError::from)?;
        let store = Self {
            inner: Arc::new(Inner {
                index: IndexFile::new(layout.clone()),
                content: Content::new(layout.clone()),
                layers: Layers::new(layout.clone(), config.limits),
                configs: Mutex::default(),
                layout,
                config,
            }),
        };
        store.inner.index.read()?;
        store.clear_work().map_err(IndexError::from)?;
        Ok(store)
    }

    /// All images, by id.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ReadError> {
        let index = self.inner.index.read()?;
        let images = index.images.iter();
        images.map(|(id, entry)| self.image(id, entry)).collect()
    }

    /// The image of this name or id (`sha256:…`, its hexadecimal digits, or at least 12 of them).
    ///
    /// # Errors
    ///
    /// The store cannot be read, or the text can name no image.
    pub fn resolve(&self, name: &str) -> Result<Option<Image>, ReadError> {
        let index = self.inner.index.read()?;
        match find(&index, name)? {
            None => Ok(None),
            Some((id, _)) => Ok(Some(self.image(&id, &index.images[&id])?)),
        }
    }

    /// Removes a name, and the image once it has none left; given an id, the image with all its names.
    ///
    /// # Errors
    ///
    /// There is no such image, or a container is made of it.
    pub fn remove(&self, name: &str) -> Result<Removed, RemoveError> {
        let removed = self.inner.index.update(|index| {
            let Some((id, by_name)) = find(index, name)? else {
                return Err(RemoveError::NotFound {
                    name: name.to_owned(),
                });
            };
            if let Some(known_as) = by_name {
                let entry = index.images.get_mut(&id).expect("just found");
                if entry.tags.len() + entry.digests.len() > 1
                    && entry.tags != [known_as.clone()].into()
                {
                    entry.tags.remove(&known_as);
                    entry.digests.remove(&known_as);
                    return Ok(Removed::Untagged(known_as));
                }
            }
            let containers: Vec<_> = self
                .snapshots()?
                .into_iter()
                .filter(|snapshot| snapshot.image == id)
                .map(|snapshot| snapshot.key)
                .collect();
            if !containers.is_empty() {
                return Err(RemoveError::InUse { id, containers });
            }
            index.images.remove(&id);
            Ok(Removed::Deleted(id))
        })??;
        if matches!(removed, Removed::Deleted(_)) {
            self.sweep()?;
        }
        Ok(removed)
    }

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
            match read_record(&record)? {
                Some(known) if known == wanted => {}
                Some(Snapshot { key, image, dir }) => {
                    return Err(SnapshotError::Taken { key, image, dir });
                }
                None => self.write_record(&record, &wanted)?,
            }
            (entry.layers.clone(), entry.inherited.clone())
        };
        let lowers: Vec<_> = layers
            .iter()
            .map(|layer| self.inner.layers.path(layer))
            .collect();
        let rootfs = snapshot::prepare(dir, &lowers, &inherited)?;
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
        if let Some(snapshot) = read_record(&record)? {
            snapshot::remove(&snapshot.dir)?;
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
        match read_record(&self.record(key)?)? {
            None => Ok(()),
            Some(snapshot) => {
                snapshot::unmount_all(&snapshot::Directories::of(&snapshot.dir).rootfs)
            }
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
                snapshots.extend(read_record(&dir.join(name))?);
            }
        }
        Ok(snapshots)
    }

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
    fn sweep(&self) -> Result<(), IndexError> {
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
        const KEEP: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);
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
    fn clear_work(&self) -> Result<(), FileError> {
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

    pub(crate) fn image(&self, id: &Digest, entry: &Entry) -> Result<Image, ReadError> {
        Ok(Image {
            id: id.clone(),
            tags: entry.tags.iter().cloned().collect(),
            digests: entry.digests.iter().cloned().collect(),
            size: entry.size,
            config: self.config(id)?,
            layers: entry.layers.clone(),
        })
    }

    fn config(&self, id: &Digest) -> Result<Arc<ImageConfiguration>, ReadError> {
        if let Some(config) = self.configs().get(id) {
            return Ok(Arc::clone(config));
        }
        let text = self.inner.content.read(id, manifest::LIMIT);
        let text = text.map_err(|source| ReadError::Content {
            id: id.clone(),
            source,
        })?;
        let config = Arc::new(manifest::parse_config(id, &text)?);
        self.configs().insert(id.clone(), Arc::clone(&config));
        Ok(config)
    }

    fn configs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Arc<ImageConfiguration>>> {
        // Each change is one insertion or removal, whole even after a panic elsewhere.
        self.inner
            .configs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    fn record(&self, key: &str) -> Result<PathBuf, SnapshotError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if key.is_empty() || key.len() > 200 || key.starts_with('.') || !key.bytes().all(plain) {
            return Err(SnapshotError::Key {
                key: key.to_owned(),
            });
        }
        Ok(self.inner.layout.snapshots().join(key))
    }

    /// Atomic but not durable: after a power loss no container uses its snapshot.
    fn write_record(&self, path: &Path, snapshot: &Snapshot) -> Result<(), FileError> {
        let dir = self.inner.layout.snapshots();
        let text = serde_json::to_vec(snapshot).map_err(io::Error::from);
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

/// `None` where there is no record, or one that a power loss left without its content.
fn read_record(path: &Path) -> Result<Option<Snapshot>, FileError> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err).at("read", path),
    }
}

/// The image's id, and the name it was found by, if not by its id.
fn find(
    index: &crate::index::Index,
    name: &str,
) -> Result<Option<(Digest, Option<String>)>, InvalidReference> {
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let by_id = || {
        let mut ids = index.images.keys().filter(|id| id.hex().starts_with(hex));
        match (ids.next(), ids.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    };
    let digits = hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if name.starts_with("sha256:") || (digits && hex.len() == 64) {
        return Ok(by_id().map(|id| (id, None)));
    }
    let reference: Reference = name.parse()?;
    let known_as = match reference.digest() {
        Some(digest) => Some(reference.with_digest(&digest)),
        None => reference.tagged(),
    };
    let by_name = known_as.and_then(|name| Some((index.named(&name)?.clone(), Some(name))));
    Ok(match by_name {
        None if digits => by_id().map(|id| (id, None)),
        other => other,
    })
}
