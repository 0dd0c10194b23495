//! The store's face: open, list, resolve, remove.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::image::ImageConfiguration;

use crate::content::{Content, ContentError};
use crate::digest::Digest;
use crate::error::FileError;
use crate::index::{Entry, IndexError, IndexFile};
use crate::layers::Layers;
use crate::layout::Layout;
use crate::manifest::{self, ManifestError};
use crate::reference::{InvalidReference, Reference};
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

    pub(crate) fn configs(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<ImageConfiguration>>> {
        // Each change is one insertion or removal, whole even after a panic elsewhere.
        self.inner
            .configs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
    // The digest of its manifest, which `name@digest` has, is as good a name: an image has one content.
    let by_manifest = || {
        let digest = format!("@sha256:{hex}");
        let known = |entry: &Entry| entry.digests.iter().any(|name| name.ends_with(&digest));
        let (id, _) = index.images.iter().find(|(_, entry)| known(entry))?;
        Some(id.clone())
    };
    let digits = hex.len() >= 12 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if name.starts_with("sha256:") || (digits && hex.len() == 64) {
        return Ok(by_id().or_else(by_manifest).map(|id| (id, None)));
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
