//! The table of images: which exist, what they are called and what they are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files::{self, Share};
use crate::inherit::Attributes;
use crate::layout::Layout;

const VERSION: u32 = 1;

/// All images, by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub(crate) images: BTreeMap<Digest, Entry>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) manifest: Digest,
    /// Diff ids, the lowest layer first.
    pub(crate) layers: Vec<Digest>,
    /// All blobs that belong to it: manifest lists, manifest, configuration, compressed layers.
    pub(crate) blobs: BTreeSet<Digest>,
    /// Bytes on disk, blobs and unpacked layers.
    pub(crate) size: u64,
    /// Directories whose attributes overlayfs would get wrong.
    pub(crate) inherited: BTreeMap<PathBuf, Attributes>,
    /// `docker.io/library/busybox:latest`
    pub(crate) tags: BTreeSet<String>,
    /// `docker.io/library/busybox@sha256:…`
    pub(crate) digests: BTreeSet<String>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: BTreeMap::new(),
        }
    }
}

impl Index {
    /// Adds an image, or its new names; tags move to it from other images.
    pub(crate) fn add(&mut self, id: Digest, entry: Entry) {
        for other in self.images.values_mut() {
            other.tags.retain(|tag| !entry.tags.contains(tag));
        }
        match self.images.get_mut(&id) {
            None => {
                self.images.insert(id, entry);
            }
            Some(known) => {
                known.manifest = entry.manifest;
                known.size = entry.size;
                known.blobs.extend(entry.blobs);
                known.tags.extend(entry.tags);
                known.digests.extend(entry.digests);
            }
        }
    }

    /// The image that a name stands for: `tag` in full, or `repository@digest`.
    pub(crate) fn named(&self, name: &str) -> Option<&Digest> {
        let has = |entry: &Entry| entry.tags.contains(name) || entry.digests.contains(name);
        Some(self.images.iter().find(|(_, entry)| has(entry))?.0)
    }
}

/// The index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's content makes no sense.
    #[error("{path} is not an image index", path = path.display())]
    Malformed {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file was written by a later version of this program.
    #[error("{path} has version {version}; this program knows {VERSION}", path = path.display())]
    Version {
        /// The index.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// The index on disk, and what we last read of it.
#[derive(Debug)]
pub(crate) struct IndexFile {
    layout: Layout,
    cache: Mutex<Option<(Stamp, Arc<Index>)>>,
}

/// Tells one version of the file from the next: each is a new inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl IndexFile {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            cache: Mutex::new(None),
        }
    }

    /// The index as it is now, read again only if another version has taken its place.
    pub(crate) fn read(&self) -> Result<Arc<Index>, IndexError> {
        let path = self.layout.index();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(err) => return Err(err).at("open", &path)?,
        };
        let stamp = Stamp::of(&file.metadata().at("stat", &path)?);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, index)) = &*cache
            && *known == stamp
        {
            return Ok(Arc::clone(index));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).at("read", &path)?;
        let index: Index = match serde_json::from_slice(&text) {
            Ok(index) => index,
            Err(source) => return Err(IndexError::Malformed { path, source }),
        };
        if index.version != VERSION {
            let version = index.version;
            return Err(IndexError::Version { path, version });
        }
        let index = Arc::new(index);
        *cache = Some((stamp, Arc::clone(&index)));
        Ok(index)
    }

    /// Changes the index while nobody else can, durably; an unchanged index is not written.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut Index) -> R) -> Result<R, IndexError> {
        let _lock = files::lock(&self.layout.index_lock(), Share::Exclusive)?;
        let before = self.read()?;
        let mut index = Index::clone(&before);
        let result = change(&mut index);
        if index != *before {
            let text = serde_json::to_vec(&index).expect("maps with string keys are valid JSON");
            files::write_durably(&self.layout.index(), &text)?;
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tags: &[&str]) -> Entry {
        Entry {
            manifest: Digest::of(b"manifest"),
            layers: vec![],
            blobs: BTreeSet::new(),
            size: 1,
            inherited: BTreeMap::new(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: BTreeSet::new(),
        }
    }

    #[test]
    fn a_tag_moves_to_the_image_that_was_added_last() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut index = Index::default();
        index.add(a.clone(), entry(&["x/y:1", "x/y:2"]));
        index.add(b.clone(), entry(&["x/y:2"]));
        assert_eq!(index.named("x/y:1"), Some(&a));
        assert_eq!(index.named("x/y:2"), Some(&b));
        assert_eq!(index.named("x/y:3"), None);
    }

    #[test]
    fn two_openers_of_one_directory_see_each_others_changes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let (one, two) = (IndexFile::new(layout.clone()), IndexFile::new(layout));
        one.update(|index| index.add(Digest::of(b"a"), entry(&["x/y:1"])))
            .unwrap();
        assert_eq!(two.read().unwrap().images.len(), 1);
        two.update(|index| index.images.clear()).unwrap();
        assert_eq!(one.read().unwrap().images.len(), 0);
    }

    #[test]
    fn a_damaged_index_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = IndexFile::new(Layout::create(dir.path()).unwrap());
        fs::write(dir.path().join("index.json"), "{").unwrap();
        let err = file.update(|index| index.images.clear()).unwrap_err();
        assert!(matches!(err, IndexError::Malformed { .. }), "{err}");
        assert_eq!(fs::read(dir.path().join("index.json")).unwrap(), b"{");
    }
}
