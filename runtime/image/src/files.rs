//! Locks, durable writes and removal of trees: what every part of the store does with files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{At, FileError};

/// A lock that lasts as long as the value, or as the process.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the open description is the lock")] File);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Shared,
    Exclusive,
}

/// Waits for the lock of the file `path`, which is made where missing and never removed.
pub(crate) fn lock(path: &Path, share: Share) -> Result<Lock, FileError> {
    let file = lock_file(path)?;
    let operation = match share {
        Share::Shared => FlockOperation::LockShared,
        Share::Exclusive => FlockOperation::LockExclusive,
    };
    rustix::io::retry_on_intr(|| flock(&file, operation)).at("lock", path)?;
    Ok(Lock(file))
}

/// As [`lock`] with [`Share::Exclusive`], or `None` at once if someone holds it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<Lock>, FileError> {
    let file = lock_file(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(err) => Err(err).at("lock", path),
    }
}

fn lock_file(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .at("open", path)
}

/// Opens and locks a file or directory that others may remove or rename while we wait.
///
/// `open` makes it where it is missing. The result is locked, and is what `path` names at this time.
pub(crate) fn lock_named(
    path: &Path,
    open: impl Fn() -> io::Result<File>,
) -> Result<File, FileError> {
    loop {
        let file = match open() {
            Ok(file) => file,
            // Made and removed by another between the two steps of `open`.
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(err).at("open", path),
        };
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .at("lock", path)?;
        if names(path, &file)? {
            return Ok(file);
        }
    }
}

/// Whether `path` names the very file that is open as `file`.
pub(crate) fn names(path: &Path, file: &File) -> Result<bool, FileError> {
    let open = file.metadata().at("stat", path)?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.dev() == open.dev() && named.ino() == open.ino()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(err).at("stat", path),
    }
}

/// Makes `path` and its missing parents, for root only.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("make directory", path)
}

/// Replaces `path` by a file with this content: after a crash it has the old or the new one.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let parent = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(parent)
        .at("make a file in", parent)?;
    file.write_all(content).at("write", file.path())?;
    file.as_file().sync_all().at("sync", file.path())?;
    file.persist(path)
        .map_err(|err| err.error)
        .at("rename to", path)?;
    sync_dir(parent)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .at("sync", path)
}

/// Removes a file, or a directory with all that is in it; nothing there is fine. What is mounted there stays, and is an error.
pub(crate) fn remove_all(path: &Path) -> Result<(), FileError> {
    knarr_tree::remove(path).at("remove", path)
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names in a directory that are valid UTF-8, as all that the store makes are; none if there is no directory.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err).at("read", path),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.at("read", path)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .expect("every file of the store is in a directory")
}
