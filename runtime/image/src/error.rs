//! The error of one file operation: what was tried, on which path, and why it failed.

use std::io;
use std::path::{Path, PathBuf};

/// One failed file operation.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}", path = path.display())]
pub struct FileError {
    /// What was tried, as a verb: `open`, `rename to`.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FileError {
    /// Whether the disk had no room, or the user no quota left.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Adds action and path to the result of a system call.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError {
            action,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}
