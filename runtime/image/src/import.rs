//! Images from files: OCI layouts and docker archives, as directories or (compressed) tar archives.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use crate::content::ContentError;
use crate::digest::{Digest, DigestError};
use crate::error::{At, FileError};
use crate::index::{Entry, IndexError};
use crate::inherit;
use crate::layers::LayerError;
use crate::manifest::{self, Blob, Manifest, ManifestError};
use crate::platform::Platform;
use crate::reference::{InvalidReference, Reference};
use crate::search::{Search, Step};
use crate::store::{Image, ImageStore, ReadError};
use files::{Files, copy, plain_name};

/// Why images could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive could not be read.
    #[error("read the archive")]
    Archive(#[source] io::Error),
    /// Neither an OCI layout nor a docker archive.
    #[error("neither an OCI layout (index.json) nor a docker archive (manifest.json)")]
    NoImages,
    /// Its table of contents makes no sense.
    #[error("parse {name}")]
    Malformed {
        /// `index.json` or `manifest.json`.
        name: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Its table of contents has a digest that is none.
    #[error("in index.json")]
    Digest(#[source] DigestError),
    /// Something that its table of contents names is not there.
    #[error("{name} is missing")]
    Missing {
        /// The file in the layout or archive.
        name: String,
    },
    /// An image has a name that is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A blob is not what its digest says.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer cannot be unpacked.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The index could not be read or written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// An imported image could not be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A name was given for several images.
    #[error("one name was given, and there are {count} images")]
    OneName {
        /// How many images there are.
        count: usize,
    },
}

/// `manifest.json` of a docker archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// `index.json` of an OCI layout, as far as it matters here.
#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutEntry {
    digest: String,
    media_type: Option<String>,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

impl LayoutEntry {
    /// Whether it may be an image for this machine: a layout may also have those for others, signatures, and more.
    fn is_ours(&self) -> bool {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        let platform = self.platform.as_ref();
        (media_type.is_empty() || manifest::MEDIA_TYPES.contains(&media_type))
            && platform.is_none_or(|platform| platform.rank().is_some())
    }
}

/// An image that is about to get into the index.
pub(crate) struct Found {
    pub(crate) manifest: Manifest,
    /// Beside configuration and layers: the manifest and the lists that led to it.
    pub(crate) documents: BTreeSet<Digest>,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
}

impl ImageStore {
    /// Imports all images of an OCI layout directory, or of a file with one or with a docker archive.
    ///
    /// `name` replaces the name that the image has there.
    ///
    /// # Errors
    ///
    /// The file is unreadable, something is missing in it or is not what its digest says.
    pub fn import_path(
        &self,
        path: &Path,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>, ImportError> {
        if fs::metadata(path).at("stat", path)?.is_dir() {
            let files = Files::list(path)?;
            let _busy = self.busy()?;
            return self.import_files(&files, name);
        }
        self.import(File::open(path).at("open", path)?, name)
    }

    /// As [`ImageStore::import_path`], from a stream.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn import(
        &self,
        archive: impl Read,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>, ImportError> {
        let _busy = self.busy()?;
        let work = self.inner.layout.work();
        let dir = tempfile::Builder::new()
            .prefix("import-")
            .tempdir_in(&work)
            .at("make a directory in", &work)?;
        let lock = File::open(dir.path()).at("open", dir.path())?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).at("lock", dir.path())?;
        let files = Files::extract(archive, dir, self.inner.config.limits.bytes)?;
        self.import_files(&files, name)
    }

    fn import_files(
        &self,
        files: &Files,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>, ImportError> {
        let docker = match files.by_name.get("manifest.json") {
            Some(path) => Some(parse::<Vec<DockerImage>>("manifest.json", path)?),
            None => None,
        };
        let mut found = match files.by_name.get("index.json") {
            Some(path) => self.read_layout(files, &parse("index.json", path)?)?,
            None => Vec::new(),
        };
        // `docker save` writes both; whichever has names is the better source.
        if let Some(docker) = docker
            && found.iter().all(|image| image.tags.is_empty())
        {
            found = self.read_docker(files, docker)?;
        }
        if found.is_empty() {
            return Err(ImportError::NoImages);
        }
        if let Some(name) = name {
            if found.len() > 1 {
                return Err(ImportError::OneName { count: found.len() });
            }
            found[0].tags = name.tagged().into_iter().collect();
            found[0].digests = BTreeSet::from([name.with_digest(&found[0].manifest.digest)]);
        }
        found.into_iter().map(|image| self.finish(image)).collect()
    }

    fn read_layout(&self, files: &Files, index: &LayoutIndex) -> Result<Vec<Found>, ImportError> {
        let mut images: Vec<Found> = Vec::new();
        let ours: Vec<_> = index.manifests.iter().filter(|e| e.is_ours()).collect();
        if let (true, Some(first)) = (ours.is_empty(), index.manifests.first()) {
            let first = first.digest.parse().map_err(ImportError::Digest)?;
            return Err(ManifestError::no_platform(&first))?;
        }
        for entry in ours {
            let top: Digest = entry.digest.parse().map_err(ImportError::Digest)?;
            let mut search = Search::new(top.clone());
            let (mut digest, mut platform_known) = (top.clone(), true);
            let manifest = loop {
                self.take(files, &digest)?;
                let text = self.inner.content.read(&digest, manifest::LIMIT)?;
                match search.look(&digest, &text, platform_known)? {
                    Step::Found(manifest) => break manifest,
                    Step::Ask(manifest) => {
                        let config = &manifest.config.digest;
                        self.take(files, config)?;
                        if Manifest::fits(&self.inner.content.read(config, manifest::LIMIT)?) {
                            break manifest;
                        }
                    }
                    Step::Next => {}
                }
                let next = search.next()?;
                (digest, platform_known) = (next.digest, next.platform_known);
            };
            let documents = search.into_documents();
            self.take(files, &manifest.config.digest)?;
            for layer in &manifest.layers {
                self.take(files, &layer.digest)?;
            }
            let mut image = Found {
                manifest,
                documents,
                tags: BTreeSet::new(),
                digests: BTreeSet::new(),
            };
            if let Some(reference) = layout_name(entry.annotations.as_ref())? {
                image.tags.extend(reference.tagged());
                image.digests.insert(reference.with_digest(&top));
            }
            // The same image under several names.
            match images
                .iter_mut()
                .find(|other| other.manifest == image.manifest)
            {
                Some(other) => {
                    other.tags.extend(image.tags);
                    other.digests.extend(image.digests);
                    other.documents.extend(image.documents);
                }
                None => images.push(image),
            }
        }
        Ok(images)
    }

    fn read_docker(
        &self,
        files: &Files,
        images: Vec<DockerImage>,
    ) -> Result<Vec<Found>, ImportError> {
        let mut found = Vec::new();
        for image in images {
            let config = self.take_named(files, &image.config)?;
            let mut layers = Vec::new();
            for layer in &image.layers {
                layers.push(self.take_named(files, layer)?);
            }
            let (digest, text) = synthesize(&config, &layers);
            self.inner.content.put(&text)?;
            let mut tags = BTreeSet::new();
            for tag in image.repo_tags.unwrap_or_default() {
                tags.extend(tag.parse::<Reference>()?.tagged());
            }
            found.push(Found {
                documents: BTreeSet::from([digest.clone()]),
                manifest: Manifest {
                    digest,
                    config,
                    layers,
                },
                tags,
                digests: BTreeSet::new(),
            });
        }
        Ok(found)
    }

    /// Brings a blob of an OCI layout into the content store.
    fn take(&self, files: &Files, digest: &Digest) -> Result<(), ImportError> {
        if self.inner.content.has(digest) {
            return Ok(());
        }
        let actual = self.take_named(files, &format!("blobs/sha256/{}", digest.hex()))?;
        if actual.digest != *digest {
            return Err(ContentError::Mismatch {
                expected: digest.clone(),
                actual: actual.digest,
            })?;
        }
        Ok(())
    }

    /// Brings a file into the content store, under whatever digest it has.
    fn take_named(&self, files: &Files, name: &str) -> Result<Blob, ImportError> {
        let path = files.by_name.get(&plain_name(Path::new(name)));
        let path = path.ok_or_else(|| ImportError::Missing {
            name: name.to_owned(),
        })?;
        // Another name may have had the same content, which is then where it belongs already.
        let mut file = File::open(path).at("open", path)?;
        let (digest, size) = Digest::of_reader(&file).at("read", path)?;
        if self.inner.content.has(&digest) {
            return Ok(Blob { digest, size });
        }
        let mut partial = self.inner.content.partial(&digest)?;
        if files.ours.is_some() {
            partial.discard()?;
            // A second name, so that links in the archive still find the first.
            let beside = path.with_extension("taken");
            fs::hard_link(path, &beside).at("link to", &beside)?;
            self.inner.content.adopt(&beside, &digest)?;
        } else {
            partial.rewind(0)?;
            io::Seek::rewind(&mut file).at("seek in", path)?;
            copy(&mut file, &mut partial.file, path)?;
            partial.finish()?;
        }
        Ok(Blob { digest, size })
    }

    /// Unpacks all layers of an image whose blobs are there, and puts it into the index.
    pub(crate) fn finish(&self, found: Found) -> Result<Image, ImportError> {
        let manifest = &found.manifest;
        let text = self
            .inner
            .content
            .read(&manifest.config.digest, manifest::LIMIT)?;
        let (_, diff_ids) = manifest.config(&text)?;
        let pairs: Vec<_> = manifest.layers.iter().zip(&diff_ids).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let work = || -> Result<(), LayerError> {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((blob, diff_id)) = pairs.get(i) else {
                        return Ok(());
                    };
                    self.inner.layers.unpack(&blob.digest, diff_id)?;
                }
            };
            let workers: Vec<_> = (0..threads.min(pairs.len()))
                .map(|_| scope.spawn(work))
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        Ok(self.register(found, diff_ids)?)
    }

    /// Puts an image into the index whose blobs and layers are all there.
    pub(crate) fn register(&self, found: Found, layers: Vec<Digest>) -> Result<Image, ReadError> {
        let Found {
            manifest,
            mut documents,
            tags,
            digests,
        } = found;
        let id = manifest.config.digest.clone();
        let mut size = manifest.config.size;
        let mut about = Vec::new();
        for diff_id in &layers {
            let noted = self.inner.layers.about(diff_id);
            about.push((
                self.inner.layers.path(diff_id),
                noted.map_err(IndexError::from)?,
            ));
        }
        let unpacked: BTreeMap<_, _> = about.iter().map(|(_, a)| (&a.diff_id, a.bytes)).collect();
        size += unpacked.values().sum::<u64>();
        let stack: Vec<_> = about
            .iter()
            .map(|(root, about)| inherit::Layer {
                root,
                implicit: &about.implicit,
            })
            .collect();
        let inherited = inherit::inherited(&stack).map_err(IndexError::from)?;
        documents.insert(id.clone());
        for layer in manifest.layers {
            // A layer that comes twice is on disk once.
            if documents.insert(layer.digest) {
                size += layer.size;
            }
        }
        let entry = Entry {
            manifest: manifest.digest,
            layers,
            blobs: documents,
            size,
            inherited,
            tags,
            digests,
        };
        let known = self.inner.index.update(|index| {
            index.add(id.clone(), entry);
            index.images[&id].clone()
        })?;
        self.touch(&id);
        self.image(&id, &known)
    }
}

/// A manifest for an image that came without one.
fn synthesize(config: &Blob, layers: &[Blob]) -> (Digest, Vec<u8>) {
    let descriptor = |media_type: &str, blob: &Blob| serde_json::json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor("application/vnd.docker.image.rootfs.diff.tar", layer))
        .collect();
    let text = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": descriptor("application/vnd.docker.container.image.v1+json", config),
        "layers": layers,
    });
    let text = text.to_string().into_bytes();
    (Digest::of(&text), text)
}

/// The name of an image in a layout: containerd's annotation has it whole, the standard one may have only a tag.
fn layout_name(
    annotations: Option<&BTreeMap<String, String>>,
) -> Result<Option<Reference>, InvalidReference> {
    let Some(annotations) = annotations else {
        return Ok(None);
    };
    if let Some(name) = annotations.get("io.containerd.image.name") {
        return Ok(Some(name.parse()?));
    }
    match annotations.get("org.opencontainers.image.ref.name") {
        Some(name) if name.contains(['/', ':']) => Ok(Some(name.parse()?)),
        _ => Ok(None),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(name: &'static str, path: &Path) -> Result<T, ImportError> {
    let file = File::open(path).at("open", path)?;
    let mut text = Vec::new();
    file.take(manifest::LIMIT)
        .read_to_end(&mut text)
        .at("read", path)?;
    serde_json::from_slice(&text).map_err(|source| ImportError::Malformed { name, source })
}
