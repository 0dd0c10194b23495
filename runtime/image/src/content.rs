//! The content store: blobs by digest. What is in `blobs/` is whole and was verified.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{At, FileError};
use crate::files;
use crate::layout::Layout;

/// Why content could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content is not what its digest says.
    #[error("content of {expected} has digest {actual}")]
    Mismatch {
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        actual: Digest,
    },
    /// A manifest, configuration or layer is unreasonably long.
    #[error("{digest} has {size} bytes; at most {limit} are accepted")]
    TooLong {
        /// Its digest.
        digest: Digest,
        /// Its length.
        size: u64,
        /// The most that is accepted.
        limit: u64,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Content {
    layout: Layout,
}

/// A blob on its way in. Only we write it while this value lives.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) file: File,
    path: PathBuf,
    digest: Digest,
    layout: Layout,
}

impl Content {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout }
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.layout.blob(digest).exists()
    }

    pub(crate) fn open(&self, digest: &Digest) -> Result<File, FileError> {
        let path = self.layout.blob(digest);
        File::open(&path).at("open", &path)
    }

    /// A short blob (a manifest or configuration), verified once more.
    pub(crate) fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ContentError> {
        let path = self.layout.blob(digest);
        let size = fs::metadata(&path).at("stat", &path)?.len();
        if size > limit {
            return Err(ContentError::TooLong {
                digest: digest.clone(),
                size,
                limit,
            });
        }
        let content = fs::read(&path).at("read", &path)?;
        let actual = Digest::of(&content);
        if actual != *digest {
            return Err(ContentError::Mismatch {
                expected: digest.clone(),
                actual,
            });
        }
        Ok(content)
    }

    /// Stores a short blob.
    pub(crate) fn put(&self, content: &[u8]) -> Result<Digest, FileError> {
        let digest = Digest::of(content);
        if !self.has(&digest) {
            files::write_durably(&self.layout.blob(&digest), content)?;
        }
        Ok(digest)
    }

    /// Moves a file of the same file system in, whose content the caller has just hashed.
    pub(crate) fn adopt(&self, path: &Path, digest: &Digest) -> Result<(), FileError> {
        File::open(path)
            .and_then(|file| file.sync_all())
            .at("sync", path)?;
        let blob = self.layout.blob(digest);
        fs::rename(path, &blob).at("rename to", &blob)?;
        files::sync_dir(&self.layout.blobs())
    }

    /// Removes a blob that turned out useless.
    pub(crate) fn forget(&self, digest: &Digest) -> Result<(), FileError> {
        files::remove_all(&self.layout.blob(digest))
    }

    /// Continues or begins a blob; waits while another process or task is at it.
    pub(crate) fn partial(&self, digest: &Digest) -> Result<Partial, FileError> {
        let path = self.layout.partial(digest);
        let file = files::lock_named(&path, || {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)
        })?;
        Ok(Partial {
            file,
            path,
            digest: digest.clone(),
            layout: self.layout.clone(),
        })
    }
}

impl Partial {
    /// How many bytes are there already.
    pub(crate) fn length(&self) -> Result<u64, FileError> {
        Ok(self.file.metadata().at("stat", &self.path)?.len())
    }

    /// Cuts it off at `length` and goes there.
    pub(crate) fn rewind(&mut self, length: u64) -> Result<(), FileError> {
        self.file.set_len(length).at("truncate", &self.path)?;
        self.file
            .seek(io::SeekFrom::Start(length))
            .at("seek in", &self.path)?;
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).at("write", &self.path)
    }

    /// Verifies it and makes it a blob; if it is not what its digest says, it is gone.
    pub(crate) fn finish(mut self) -> Result<(), ContentError> {
        self.file.rewind().at("seek in", &self.path)?;
        let (actual, _) = Digest::of_reader(&self.file).at("read", &self.path)?;
        if actual != self.digest {
            let expected = self.digest.clone();
            self.discard()?;
            return Err(ContentError::Mismatch { expected, actual });
        }
        self.file.sync_all().at("sync", &self.path)?;
        let blob = self.layout.blob(&self.digest);
        fs::rename(&self.path, &blob).at("rename to", &blob)?;
        Ok(files::sync_dir(&self.layout.blobs())?)
    }

    /// Removes it.
    pub(crate) fn discard(self) -> Result<(), FileError> {
        files::absent_is_fine(fs::remove_file(&self.path)).at("remove", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> (tempfile::TempDir, Content) {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::new(Layout::create(dir.path()).unwrap());
        (dir, content)
    }

    #[test]
    fn a_partial_blob_is_continued_and_becomes_whole_only_when_verified() {
        let (_dir, content) = content();
        let digest = Digest::of(b"hello world");
        let mut partial = content.partial(&digest).unwrap();
        partial.write(b"hello ").unwrap();
        drop(partial);
        assert!(!content.has(&digest));
        let mut partial = content.partial(&digest).unwrap();
        let length = partial.length().unwrap();
        assert_eq!(length, 6);
        partial.rewind(length).unwrap();
        partial.write(b"world").unwrap();
        partial.finish().unwrap();
        assert_eq!(content.read(&digest, 100).unwrap(), b"hello world");
    }

    #[test]
    fn wrong_content_is_thrown_away() {
        let (_dir, content) = content();
        let digest = Digest::of(b"right");
        let mut partial = content.partial(&digest).unwrap();
        partial.write(b"wrong").unwrap();
        let err = partial.finish().unwrap_err();
        assert!(matches!(err, ContentError::Mismatch { .. }), "{err}");
        assert!(!content.has(&digest));
        assert_eq!(content.partial(&digest).unwrap().length().unwrap(), 0);
    }

    #[test]
    fn content_that_rots_on_disk_is_noticed() {
        let (dir, content) = content();
        let digest = content.put(b"fine").unwrap();
        fs::write(dir.path().join("blobs").join(digest.hex()), "foul").unwrap();
        let err = content.read(&digest, 100).unwrap_err();
        assert!(matches!(err, ContentError::Mismatch { .. }), "{err}");
    }
}
