//! The files of a layout or archive, wherever they come from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::ImportError;
use crate::error::{At, FileError};
use crate::{files, unpack};

/// The files of a layout or archive, on disk.
pub(super) struct Files {
    pub(super) by_name: BTreeMap<String, PathBuf>,
    /// Whether the files are ours to move.
    pub(super) ours: Option<TempDir>,
}

impl Files {
    /// Those of a directory.
    pub(super) fn list(dir: &Path) -> Result<Self, FileError> {
        let mut by_name = BTreeMap::new();
        list_files(dir, "", &mut by_name)?;
        Ok(Self {
            by_name,
            ours: None,
        })
    }

    /// Writes the archive's files under names of ours; its own are only kept in mind.
    pub(super) fn extract(
        archive: impl Read,
        dir: TempDir,
        limit: u64,
    ) -> Result<Self, ImportError> {
        let archive = unpack::decompress(archive).map_err(ImportError::Archive)?;
        let mut archive = tar::Archive::new(archive.take(limit));
        let mut by_name = BTreeMap::new();
        let mut links = Vec::new();
        for (count, entry) in archive.entries().map_err(ImportError::Archive)?.enumerate() {
            let mut entry = entry.map_err(ImportError::Archive)?;
            let name = plain_name(&entry.path().map_err(ImportError::Archive)?);
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let path = dir.path().join(count.to_string());
                    let mut file = File::create(&path).at("create", &path)?;
                    copy(&mut entry, &mut file, &path)?;
                    by_name.insert(name, path);
                }
                // Older archives have equal layers once, and links to them.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name().map_err(ImportError::Archive)?;
                    if let Some(target) = target {
                        links.push((name, target.into_owned()));
                    }
                }
                _ => {}
            }
        }
        for (name, target) in links {
            let beside = Path::new(&name).parent().unwrap_or(Path::new(""));
            for target in [plain_name(&beside.join(&target)), plain_name(&target)] {
                if let Some(path) = by_name.get(&target).cloned() {
                    by_name.insert(name.clone(), path);
                    break;
                }
            }
        }
        Ok(Self {
            by_name,
            ours: Some(dir),
        })
    }
}

/// A path as a key: no `.`, no `..`, no leading slash. It is never used to open anything.
pub(super) fn plain_name(path: &Path) -> String {
    use std::path::Component;
    let mut parts: Vec<std::borrow::Cow<'_, str>> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts.join("/")
}

/// The regular files below a directory. Links are not followed: a layout has none.
fn list_files(
    dir: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), FileError> {
    for name in files::names_in(dir)? {
        let path = dir.join(&name);
        let below = format!("{prefix}{name}");
        let kind = fs::symlink_metadata(&path).at("stat", &path)?;
        // `blobs/sha256/<hex>` is as deep as it gets.
        if kind.is_dir() && prefix.matches('/').count() < 3 {
            list_files(&path, &format!("{below}/"), files)?;
        } else if kind.is_file() {
            files.insert(below, path);
        }
    }
    Ok(())
}

/// Copies all that is left; an error of the source is the archive's.
pub(super) fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<(), ImportError> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => io::Write::write_all(to, &buffer[..n]).at("write", path)?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(ImportError::Archive(err)),
        }
    }
}
