//! Where everything is in the store's directory.
//!
//! ```text
//! index.json       images, their tags and digests; replaced atomically, by the holder of index.lock
//! index.lock
//! busy.lock        shared: a pull or an import is going on; exclusive: unreferenced content is being removed
//! blobs/<hex>      manifests, configurations and compressed layers, whole and verified
//! partial/<hex>    blobs on their way in; locked by whoever writes, kept for the next try
//! layers/<hex>/    unpacked layers by diff id, whole and verified: `fs` and `layer.json`
//! work/<name>/     layers and archives being unpacked; locked by whoever writes, worthless otherwise
//! snapshots/<key>  which image a container's file system is made of, and where it is
//! ```

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::FileError;
use crate::files;

#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directories where missing.
    pub(crate) fn create(root: &Path) -> Result<Self, FileError> {
        let layout = Self {
            root: root.to_owned(),
        };
        files::make_private_dir(root)?;
        for dir in ["blobs", "partial", "layers", "work", "snapshots"] {
            files::make_private_dir(&root.join(dir))?;
        }
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn index_lock(&self) -> PathBuf {
        self.root.join("index.lock")
    }

    pub(crate) fn busy_lock(&self) -> PathBuf {
        self.root.join("busy.lock")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }
}
