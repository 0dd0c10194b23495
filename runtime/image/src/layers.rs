//! Unpacked layers, by diff id. What is in `layers/` is whole, verified and never changed again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::content::Content;
use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files;
use crate::layout::Layout;
use crate::unpack::{self, UnpackError, UnpackLimits, Unpacked};

/// Why a layer is not there.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The archive could not be unpacked.
    #[error("unpack layer {diff_id}")]
    Unpack {
        /// The layer, by the digest of its uncompressed archive.
        diff_id: Digest,
        /// Why not.
        source: UnpackError,
    },
    /// The archive is not what the image's configuration says.
    #[error("layer {expected} has diff id {actual}")]
    Mismatch {
        /// The diff id in the configuration.
        expected: Digest,
        /// That of the archive.
        actual: Digest,
    },
}

impl LayerError {
    /// Whether the archive is at fault, so that its blob is of no use.
    pub(crate) fn is_corrupt(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Unpack { source, .. } => source.is_corrupt(),
            Self::Mismatch { .. } => true,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Layers {
    layout: Layout,
    content: Content,
    limits: UnpackLimits,
}

impl Layers {
    pub(crate) fn new(layout: Layout, limits: UnpackLimits) -> Self {
        Self {
            content: Content::new(layout.clone()),
            layout,
            limits,
        }
    }

    pub(crate) fn has(&self, diff_id: &Digest) -> bool {
        self.layout.layer(diff_id).exists()
    }

    /// The directory for overlayfs.
    pub(crate) fn path(&self, diff_id: &Digest) -> PathBuf {
        self.layout.layer(diff_id).join("fs")
    }

    /// What was noted of a layer when it was unpacked.
    pub(crate) fn about(&self, diff_id: &Digest) -> Result<Unpacked, FileError> {
        let path = self.layout.layer(diff_id).join("layer.json");
        let text = fs::read(&path).at("read", &path)?;
        serde_json::from_slice(&text)
            .map_err(io::Error::from)
            .at("parse", &path)
    }

    /// Unpacks a blob, if the layer is not there yet. Waits while another process or thread is at the same layer.
    pub(crate) fn unpack(&self, blob: &Digest, diff_id: &Digest) -> Result<(), LayerError> {
        if self.has(diff_id) {
            return Ok(());
        }
        let work = self.layout.work().join(diff_id.hex());
        let lock = files::lock_named(&work, || {
            match fs::create_dir(&work) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            File::open(&work)
        })?;
        if self.has(diff_id) {
            return Ok(files::remove_all(&work)?);
        }
        let result = self.unpack_in(&work, self.content.open(blob)?, diff_id);
        if let Err(err) = &result
            && let Err(left) = files::remove_all(&work)
        {
            // Worthless, and removed at the next opening; the first error is the one to report.
            tracing::warn!(error = %left, cause = %err, "half a layer stays behind");
        }
        drop(lock);
        result
    }

    fn unpack_in(
        &self,
        work: &Path,
        archive: impl Read,
        diff_id: &Digest,
    ) -> Result<(), LayerError> {
        for name in files::names_in(work)? {
            files::remove_all(&work.join(name))?;
        }
        let root = work.join("fs");
        fs::create_dir(&root).at("make directory", &root)?;
        rustix::fs::chmod(&root, rustix::fs::Mode::from_raw_mode(0o755)).at("chmod", &root)?;
        let dir = File::open(&root).at("open", &root)?;
        let unpacked = unpack::unpack(archive, dir.into(), self.limits).map_err(|source| {
            LayerError::Unpack {
                diff_id: diff_id.clone(),
                source,
            }
        })?;
        if unpacked.diff_id != *diff_id {
            return Err(LayerError::Mismatch {
                expected: diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        let about = serde_json::to_vec(&unpacked).map_err(io::Error::from);
        let path = work.join("layer.json");
        about
            .and_then(|about| fs::write(&path, about))
            .at("write", &path)?;
        // The name in `layers/` must not be there before all that is below.
        let dir = File::open(work).at("open", work)?;
        rustix::fs::syncfs(&dir).at("sync the file system of", work)?;
        let layer = self.layout.layer(diff_id);
        fs::rename(work, &layer).at("rename to", &layer)?;
        Ok(files::sync_dir(&self.layout.layers())?)
    }
}
